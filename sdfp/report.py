"""What a run tells: metric files, progress, pictures, tables. Host side only."""

import contextlib
import csv
import functools
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

import sdfp
from sdfp import cli, files, logged

VERSIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
    "tokenizers",
)


def say(line: str) -> None:
    """One line for the person who watches, if there is one."""
    encoding = sys.stdout.encoding or "utf-8"
    with cli.reader_may_go(sys.stdout):
        shown = line.encode(encoding, "backslashreplace").decode(encoding)
        # A signal's error while the lock is taken would end in another one, as it is released.
        tqdm.write(shown, file=sys.stdout, nolock=True)
        sys.stdout.flush()


PEAKS = {"loss": "loss_max", "grad_norm": "grad_norm_max"}
"""Metrics of which a line has the largest value, too: a mean of many steps hides one that is not
like the others."""


class StageLog(contextlib.AbstractContextManager):
    """Metrics of one stage: metrics.jsonl, TensorBoard, and a bar (on a terminal) or lines.

    A line holds the mean of each metric over the steps since the line before, without those that
    were skipped, of which it says how many they were, and the largest value of some (`PEAKS`).
    `waiting` are the metrics of the steps that have no line yet: a checkpoint keeps them, and an
    interrupted stage goes on with them.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        steps: int,
        done: int,
        log_every: int,
        board: Path | None,
        waiting: Sequence[Mapping[str, float]] = (),
    ):
        files.folder(directory)
        if board:
            files.folder(board)
        self._name, self._steps, self._every = name, steps, log_every
        self.waiting = list(waiting)
        behind = done - len(self.waiting)
        if done and (lacking := logged.lacking(directory, behind, interrupted=True)):
            say(f"warning: {lacking}")
        self._file = logged.go_on(directory, done)
        # purge_step: events that an interrupted run wrote beyond its checkpoint.
        self._board = (
            SummaryWriter(str(board), purge_step=done + 1, flush_secs=10) if board else None
        )
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=done,
            desc=name,
            unit="step",
            disable=not self._terminal,
            leave=True,
        )
        self._since = self._said = time.monotonic()
        self._timed = done
        self._compiling = True  # within the first call: its rate would mislead

    def add(self, done: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Takes the metrics [steps] of a call that ended after step `done`."""
        now, count = time.monotonic(), len(metrics["loss"])
        rate = None
        if not self._compiling:
            rate = (done - self._timed) / max(now - self._since, 1e-9)
        due = self._compiling
        for i in range(count):
            found = {name: float(values[i]) for name, values in metrics.items()}
            if found["skipped"]:
                found = {name: found[name] for name in ("examples", "skipped")}
            self.waiting.append(found)
            step = done - count + i + 1
            if step % self._every == 0 or step == self._steps:
                self._write(step, rate)
                due = True
        self._bar.update(count)
        if due:
            self._compiling, self._since, self._timed = False, now, done

    def probe(self, step: int, found: Mapping[str, float]) -> float:
        """Takes what `probe.measure` found after a step: a line of its own. Returns its seconds."""
        self._file.write(json.dumps({"step": step, **found}) + "\n")
        self._file.flush()
        told = {name: found[name] for name in logged.PROBED if name in found}
        if self._board:
            for name, value in told.items():
                self._board.add_scalar(name, value, step)
        values = ", ".join(f"{name[6:]} {value:.1f} %" for name, value in told.items())
        say(
            f"  {self._name} {step}/{self._steps}  probe: {values or 'the features are not finite'}"
        )
        self._since += found["probe_seconds"]  # no step was done in them
        return found["probe_seconds"]

    def _write(self, step: int, rate: float | None) -> None:
        now = time.monotonic()
        line, told = {"step": step, **_summary(self.waiting)}, ""
        if rate is not None:
            line["examples_per_second"] = rate * line["examples"]
            left = _duration((self._steps - step) / rate)
            told = f"  {rate:.3g} steps/s  {left} left"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board:
            for key in line.keys() - {"step"}:
                self._board.add_scalar(key, line[key], step)
        loss = f"loss {line['loss']:.4g}" if "loss" in line else "all skipped"
        self._bar.set_postfix_str(loss)
        if not self._terminal and (now - self._said > 10 or step == self._steps):
            say(f"  {self._name} {step}/{self._steps}  {loss}{told}")
            self._said = now
        self.waiting = []

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()


def _summary(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a line says of its steps; without losses where all of them were skipped."""
    names = dict.fromkeys(name for found in steps for name in found)
    values = {name: [found[name] for found in steps if name in found] for name in names}
    line = {name: float(np.mean(own)) for name, own in values.items()}
    line |= {peak: max(values[name]) for name, peak in PEAKS.items() if name in values}
    return line | {"skipped": sum(values.get("skipped", ()))}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def save_pictures(path: Path, pictures: np.ndarray) -> None:
    """A PNG with one row per example: masked input, reconstruction, original.

    Args:
        pictures: uint8 [examples, 3, height, width, channels].
    """
    zoom = max(1, 112 // pictures.shape[2])  # tiny images are shown larger
    pictures = pictures.repeat(zoom, axis=2).repeat(zoom, axis=3)
    gap = [(0, 0), (0, 0), (0, 4), (0, 4), (0, 0)]
    rows = np.pad(pictures, gap, constant_values=255)
    canvas = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    image = Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)
    with files.whole(path) as temporary:  # half of one would never be made again
        image.save(temporary, "PNG")


def save_predictions(
    path: Path, ids: Sequence[str], labels, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """predictions.csv: id, label, predicted, probability (of the predicted class)."""
    predicted = probabilities.argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "predicted", "probability"])
        for i, best in enumerate(predicted):
            row = [ids[i], names[labels[i]], names[best], f"{probabilities[i, best]:.6f}"]
            writer.writerow(row)


def save_confusion(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """confusion.csv: rows are the true classes, columns the predicted ones."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))


@functools.cache  # what the process began with
def versions() -> dict[str, str]:
    """Of everything that a result may depend on; of a clone the commit, "-dirty" with changes."""
    found = {name: metadata.version(name) for name in VERSIONS}
    own = {"sdfp": sdfp.__version__, **_commit(Path(sdfp.__file__).parents[1])}
    return {**own, "python": platform.python_version(), **found}


def _commit(clone: Path) -> dict[str, str]:
    if not (clone / ".git").exists():
        return {}
    asked = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*asked, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder's owner
        return {}
    return {"commit": done.stdout.strip()}


def command() -> str:
    """The command line of this process, quoted for a shell; of the interpreter only its name.
    "" where it is none of sdfp's (a notebook, a test): that would not repeat the run."""
    started = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`
    if not (started and started.name.startswith("sdfp.") and sys.orig_argv):
        return ""
    interpreter, *arguments = sys.orig_argv
    return shlex.join([Path(interpreter).name, *arguments])


def gigabytes(size: float) -> str:
    """Bytes for people, two digits at least."""
    gb = size / 1e9
    return f"{gb:.1f} GB" if gb >= 10 else f"{gb:.2g} GB"


def summarise(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean and sample standard deviation; no deviation from a single value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict]]:
    """summary[method][metric] = {mean, std, n} over the seeds of results.json's entries."""
    rows: dict[str, list] = {}
    for entry in entries:
        rows.setdefault(entry["method"], []).append(entry)
    told = {}
    for method, runs in rows.items():
        shared = [key for key in runs[0] if all(key in run for run in runs)]  # not so of old ones
        columns = [k for k in shared if k.endswith(("_loss", "accuracy", "_f1")) or k == "distance"]
        told[method] = {runs[0]["metric"]: summarise([run["value"] for run in runs])}
        told[method] |= {column: summarise([run[column] for run in runs]) for column in columns}
    return told


def table(rows: Mapping[str, Mapping[str, Mapping]], columns: Sequence[str]) -> str:
    """A Markdown table of mean ± std, one row per method.

    Args:
        rows: {method: {metric: `summarise(...)`}}.
    """

    def cell(summary):
        if summary is None or not math.isfinite(summary["mean"]):
            return "–"
        spread = "" if summary["std"] is None else f" ± {summary['std']:.3f}"
        return f"{summary['mean']:.3f}{spread}"

    lines = [["method", *columns, "seeds"]]
    for method, metrics in rows.items():
        count = str(next(iter(metrics.values()))["n"])
        lines.append([method, *(cell(metrics.get(column)) for column in columns), count])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
