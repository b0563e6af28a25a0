"""Which stages a work directory has, finished or not, and what their metrics.jsonl says."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdfp import checked, checkpoint, logged, report
from sdfp.train import probe

ADVICE = "run the command of its work directory again: it says what to do"

FINETUNING = re.compile(r"(finetune/.+)/seed_[^/]+|(teacher/finetune[^/]*)", re.DOTALL)


class Stage(NamedTuple):
    """A stage as its folder and results.json tell of it."""

    name: str
    directory: Path
    record: Mapping[str, Any]
    """Its entry of results.json, or what it says itself once it is finished; else empty."""
    lines: Sequence[Mapping[str, float]]
    """Of metrics.jsonl, those of training steps, by step."""
    probes: Sequence[Mapping[str, Any]]
    """Those of probes."""
    steps: int | None
    """That it is to have; None where nothing tells."""
    warning: str
    """What its probes warn of, also while it goes on; "" as a rule."""
    skipped: int
    """Steps so far whose loss or gradient was not finite."""

    @property
    def row(self) -> str | None:
        """The folder that its seeds share, if it is a fine-tuning; None of a masked stage."""
        found = FINETUNING.fullmatch(self.name)
        return (found[1] or found[2]) if found else None

    @property
    def seed(self) -> str:
        """Of a fine-tuning."""
        return self.name.rsplit("seed_", 1)[1] if "/seed_" in self.name else ""

    @property
    def done(self) -> int:
        """The last step that metrics.jsonl has."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def progress(self) -> list[str]:
        """How far it has come, and what it took."""
        record = self.record
        if not record:
            return self.remarks
        known = {"steps": "steps", "seconds": "seconds", "examples_per_second": "examples/s"}
        told = [f"{record[key]:,.0f} {unit}" for key, unit in known.items() if key in record]
        held_out = [key for key in record if key.endswith("_masked_loss")]
        told += [f"{key.replace('_', ' ')} {record[key]:.4f}" for key in held_out]
        return told + self.remarks

    @property
    def remarks(self) -> list[str]:
        """What is not as with any other stage."""
        told = []
        if not self.record:
            told.append(f"not finished: step {self.done:,} of {self.of} is logged")
        if self.skipped:
            told.append(f"steps skipped as not finite: {self.skipped:,}")
        return told

    @property
    def of(self) -> str:
        """`steps` as text."""
        return "?" if self.steps is None else f"{self.steps:,}"


def find(workdir: Path, results: Mapping[str, Any]) -> list[Stage]:
    """The stages of a run: those that results.json names, and those that are not finished.

    A finished stage that a complete run does not name is of other rows of the work directory.
    """
    records = {record["name"]: record for record in results.get("stages", ())}
    root = workdir / "stages"
    others = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob(logged.NAME))
    others = [
        name
        for name in others
        if name not in records
        and not (results.get("complete") and checkpoint.exists(root / name / "final"))
    ]
    return [_read(root / name, name, records.get(name)) for name in [*records, *others]]


def manifest(directory: Path) -> Mapping[str, Any]:
    """Of a finished stage: `facts` about it, `arrays` and their shapes; empty of any other."""
    path = directory / "final" / checkpoint.MANIFEST
    shape = {"facts?": dict, "arrays?": {str: {"shape": [int]}}}
    return checked.read_json(path, ADVICE, shape) if path.is_file() else {}


def _read(directory: Path, name: str, known: Mapping[str, Any] | None) -> Stage:
    """A stage's folder; `known` is its entry of results.json, None where that has none (yet)."""
    found = {"loss": {}, "probe_knn": {}}
    lines = logged.read(directory)
    for line in lines:
        for key in found.keys() & line.keys():
            found[key][line["step"]] = line  # of a step that is there twice the later one
    training, probes = ([own[step] for step in sorted(own)] for own in found.values())
    warning = (probe.warning(lines) or "") if known is None else known.get("warning", "")
    record = manifest(directory).get("facts", {}) if known is None else known
    skipped = record.get("skipped", sum(int(line.get("skipped", 0)) for line in lines))
    steps = _steps(directory, record)
    return Stage(name, directory, record, training, probes, steps, warning, skipped)


def _steps(directory: Path, record: Mapping[str, Any]) -> int | None:
    if "steps" in record:
        return record["steps"]
    path = directory / "identity.json"
    known = checked.read_json(path, ADVICE, {"recipe.steps?": int}) if path.is_file() else {}
    return known.get("recipe.steps")


def terms(stage: Stage) -> list[str]:
    """The parts of the loss that a line holds, and the whole of it where there are several."""
    other = {"step", "examples", "skipped", "examples_per_second"}
    other |= {*report.PEAKS, *report.PEAKS.values()}
    names = list(dict.fromkeys(key for line in stage.lines for key in line))
    parts = [n for n in names if n not in other and not n.startswith("probe_")]
    weighted = any(
        not math.isclose(line.get(name, math.nan), line["loss"], rel_tol=1e-6)
        for name in parts
        for line in stage.lines
    )
    return [*parts, "loss"] if len(parts) != 1 or weighted else parts
