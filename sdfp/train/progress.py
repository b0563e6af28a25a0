"""What a stage keeps, and tells, while it goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdfp import logged, report
from sdfp.train import probe as probing
from sdfp.train.skips import Skips
from sdfp.types import Params


class Progress(NamedTuple):
    """What a checkpoint keeps beside the state of the training."""

    seconds: float = 0.0
    """Spent, those of probes not."""
    waiting: Sequence[Mapping[str, float]] = ()
    """The metrics of steps that have no line yet."""
    skips: Skips = Skips()

    def facts(self) -> dict[str, Any]:
        """As JSON; `of` reads it again."""
        return {**self._asdict(), "skips": self.skips._asdict()}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Progress":
        skips = Skips(**facts.get("skips", {}))  # which earlier versions did not save
        return cls(facts["seconds"], facts.get("waiting", ()), skips)


class Looks:
    """The probes of a stage, each told, and once where the curve of them falls."""

    def __init__(self, name: str, directory: Path, log: report.StageLog, probe: Callable):
        self._name, self._directory, self._log, self._probe = name, directory, log, probe
        self._warned = False

    def __call__(self, done: int, params: Params) -> float:
        """Looks at the parameters, on the devices, after a step. Returns the seconds it took."""
        began = time.monotonic()
        self._log.probe(done, self._probe(params))
        told = None if self._warned else probing.warning(logged.read(self._directory))
        if told:
            report.say(f"warning: {self._name}: {told}")
            self._warned = True
        return time.monotonic() - began
