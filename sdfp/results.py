"""results.json while a run goes on, and the failures that do not stop it."""

import contextlib
import dataclasses
import functools
import os
import shlex
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sdfp import checked, files, hosts, report
from sdfp.rows import Row
from sdfp.stages import Context
from sdfp.types import UserError, WorkdirError, one_line

NAME = "results.json"


def earlier(workdir: Path) -> dict[str, Any]:
    """What an earlier run left in results.json; empty where there was none.

    A damaged one is told and set aside: all that a run needs is in the stages.

    Raises:
        WorkdirError: it cannot be read, or not be set aside.
    """
    path = workdir / NAME
    try:
        if path.exists():
            path.read_bytes()
    except OSError as error:  # not damaged: nothing is done to it
        raise WorkdirError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        return checked.read_results(path) if path.exists() else {}
    except UserError as error:
        aside = path.with_name(NAME + ".damaged")
        if aside.is_dir():
            raise WorkdirError(
                f"{error}. It cannot be set aside as {aside}, which is a folder: move that away"
            ) from None
        path.replace(aside)
        report.say(f"warning: {error}. It is set aside as {aside.name}")
        return {}


@dataclasses.dataclass
class Results:
    """results.json as far as the run has come."""

    context: Context
    init: dict[str, Any]
    pretrain_seeds: int = 1
    """How many were asked for."""
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tuning: dict[str, dict] = dataclasses.field(default_factory=dict)
    earlier: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What results.json held before."""

    def write(self, complete: bool) -> dict[str, Any]:
        """Writes what there is; until the run is complete also what was there before of the cells
        that it will come to."""
        context = self.context
        entries, records = self.entries, list(context.records.values())
        tuning, teachers = self.tuning, context.facts.get("teachers", {})
        if not complete:
            teachers = {**self.earlier.get("teachers", {}), **teachers}
            earlier = self.earlier.get("tuning", {})
            awaited = {k: v for k, v in earlier.items() if k in context.settings.methods}
            tuning = {**awaited, **tuning}
            entries = entries + [e for e in self.earlier.get("results", ()) if self._awaited(e)]
            names = context.records.keys()
            records += [r for r in self.earlier.get("stages", ()) if r["name"] not in names]
        results = {
            "complete": complete,
            "config": dataclasses.asdict(context.settings),
            "model": dataclasses.asdict(context.model),
            "command": _command(),
            "versions": report.versions(),
            "device": f"{context.place.devices.count} x {jax.devices()[0].device_kind}",
            "precision": context.precision.name,
            **context.facts,
            "init": self.init,
            "teachers": teachers,
            "pretrain_seeds": self.pretrain_seeds,
            "stages": records,
            "tuning": tuning,
            "results": entries,
            "failed": self.failed,
            "summary": report.summary(entries),
        }
        files.write_json(context.place.workdir / NAME, results)
        return results

    def _awaited(self, earlier: dict[str, Any]) -> bool:
        """Whether an earlier entry is of a cell of this run that has not been reached."""
        settings = self.context.settings
        if (
            earlier["method"] not in settings.methods
            or earlier["seed"] not in settings.seeds
            or earlier.get("split") != settings.evaluate_on
        ):
            return False
        for new in [*self.entries, *self.failed]:
            if new["method"] == earlier["method"]:
                same_start = new["pretrain_seed"] == earlier.get("pretrain_seed")
                same_cell = same_start and new["seed"] in (earlier["seed"], None)
                if same_cell or new["varied"] != earlier.get("varied", {}):
                    return False
        return True

    def attempt(
        self, row: Row, seed: int | None, run: Callable[[], Any], failed: list | None = None
    ) -> Any:
        """What `run` returns; None if it fails, which is told here and noted in `failed`."""
        try:
            return run()
        except (WorkdirError, OSError):  # of the disk: it would fail the others, too
            raise
        except Exception as error:
            if hosts.several() and not isinstance(error, UserError):
                raise  # of this process alone, perhaps: the others are elsewhere
            ours = not isinstance(error, UserError)
            if ours:
                traceback.print_exc()
            told = one_line(error) if str(error) else type(error).__name__
            cell = row.name if seed is None else f"{row.name}, seed {seed}"
            report.say(f"failed: {cell}: {told}")
            repeat = row.settings.seed if row.pretrains else None
            (self.failed if failed is None else failed).append(
                {"method": row.name, "varied": dict(row.varied), "pretrain_seed": repeat}
                | {"seed": seed, "error": told, "ours": ours}
            )
            return None


@functools.cache  # the folder may go while the run goes on
def _command() -> str:
    """What repeats the run: its paths may be relative ones."""
    command = report.command()
    with contextlib.suppress(FileNotFoundError):
        return command and f"cd {shlex.quote(os.getcwd())} && {command}"
    return command
