"""Saves beside training: the devices go on while the disk is written."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdfp import checkpoint, hosts, report, signals


class Saver(contextlib.AbstractContextManager):
    """Writes one state at a time in a thread. Left, it has written the last one.

    What goes wrong in the thread is raised by the next call here, or on leaving: a stage does not
    end, and a process does not exit, with a save that is not finished or that failed.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "saver")
        self._last: Future | None = None

    def save(self, directory: Path, step: int, state: Any, facts: Mapping[str, Any]) -> None:
        """As `checkpoint.save_step`, of a state on the host, after the one before it; on the first
        process, others do nothing."""
        if not hosts.first():
            return
        self.wait()
        # A copy: on a CPU it may be the devices' own memory, which the next call writes to.
        state = jax.tree.map(np.array, state)
        self._last = self._thread.submit(checkpoint.save_step, directory, step, state, facts)

    def wait(self) -> None:
        """Until the last state is on the disk. Raises what `checkpoint.save_step` raised."""
        last, self._last = self._last, None
        if last:
            with signals.saving():
                last.result()

    def __exit__(self, kind, *_) -> None:
        try:
            self.wait()
            self._thread.shutdown()
        except BaseException as error:
            if kind is None:
                raise
            report.say(f"warning: {error}")  # what ended the training comes first
