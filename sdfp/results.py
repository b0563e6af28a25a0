"""results.json while a run goes on, and the failures that do not stop it."""

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import jax

from sdfp import checkpoint, report
from sdfp.rows import Row
from sdfp.stages import Context
from sdfp.types import UserError, WorkdirError, one_line


@dataclasses.dataclass
class Results:
    """results.json as far as the run has come."""

    context: Context
    init: dict[str, Any]
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tuning: dict[str, dict] = dataclasses.field(default_factory=dict)

    def write(self, complete: bool) -> dict[str, Any]:
        context = self.context
        results = {
            "complete": complete and not self.failed,
            "config": dataclasses.asdict(context.settings),
            "model": dataclasses.asdict(context.model),
            "versions": report.versions(),
            "device": f"{context.place.devices.count} x {jax.devices()[0].device_kind}",
            "precision": context.precision.name,
            **context.facts,
            "init": self.init,
            "stages": list(context.records.values()),
            "tuning": self.tuning,
            "results": self.entries,
            "failed": self.failed,
            "summary": report.summary(self.entries),
        }
        checkpoint.write_json(context.place.workdir / "results.json", results)
        return results

    def attempt(
        self, row: Row, seed: int | None, run: Callable[[], Any], failed: list | None = None
    ) -> Any:
        """What `run` returns; None if it fails, which is told here and noted in `failed`."""
        try:
            return run()
        except WorkdirError:
            raise
        except Exception as error:
            ours = not isinstance(error, UserError)
            if ours:
                traceback.print_exc()
            told = one_line(error) if str(error) else type(error).__name__
            report.say(f"{row.finetuning_stage(seed or 0)}: failed: {told}")
            repeat = row.settings.seed if row.pretrains else None
            (self.failed if failed is None else failed).append(
                {"method": row.name, "varied": dict(row.varied), "pretrain_seed": repeat}
                | {"seed": seed, "error": told, "ours": ours}
            )
            return None
