"""The tables of a report: scores, what they say, data, initial parameters, stages, settings."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdfp import checked, comparison, rendering, table_notes
from sdfp.comparison import Run
from sdfp.page import verdicts
from sdfp.page.stages import ADVICE, Stage, manifest
from sdfp.rendering import NAMES, NOTHING, Table

LEFT_OUT = "left out "
"""How a remark of `data.assembly` about a broken file begins."""


class Data(NamedTuple):
    """What results.json says of a data set."""

    facts: list[tuple[str, str]]
    remarks: list[str]
    broken: list[tuple[str, str]]
    """File, what is wrong with it."""


class Start(NamedTuple):
    """Where a theta_init is from."""

    title: str
    lines: list[str]
    digest: str
    """Of the file; "" of random ones."""
    lists: list[tuple[str, list[str]]]
    """Title, names of parameters or tensors."""


def scores(run: Run) -> Table:
    """The table of `sdfp.table`, and for each row verdict, losses, distance, further metrics."""
    made = rendering.table([run])
    split, metric = run.lines[0].split, run.lines[0].metric
    also = [n for n in ("accuracy", "macro_f1") if metric not in ("", "accuracy", n)]
    columns = {
        **{name: NAMES[name] for name in also},
        f"{split}_loss": f"{split} loss",
        "train_loss": "train loss",
        "distance": "distance",
    }
    place = made.rows[0].index("p") + 1  # of the verdict
    rows = [[*made.rows[0][:place], "verdict", *made.rows[0][place:], *columns.values()]]
    for row, line in zip(made.rows[1:], run.lines, strict=True):
        own = [entry for entry in run.results.get("results", ()) if entry["method"] == line.method]
        further = (_spread([e.get(n) for e in own], 2 if n in NAMES else 3) for n in columns)
        verdict = verdicts.verdict(line) or NOTHING
        rows.append([*row[:place], verdict, *row[place:], *further])
    distance = (
        f"{split} loss, train loss: mean cross-entropy in nats without augmentation. distance: "
        "Euclidean, of the encoder from theta_init."
    )
    return Table(rows, [*made.notes, verdicts.MEANING, distance])


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation of the sample, with that many decimals."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not values or len(known) < len(values):
        return NOTHING
    std = comparison.deviation(known)
    mean = sum(known) / len(known)
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def data(found: Mapping[str, Any]) -> Data:
    """Of results.json's `data` or `source`."""
    broken = found.get("broken", {})
    rest = {key: value for key, value in found.items() if key not in ("remarks", "broken")}
    remarks = [remark for remark in found.get("remarks", ()) if not remark.startswith(LEFT_OUT)]
    return Data(flat(rest), remarks, list(broken.items()))


def starts(results: Mapping[str, Any], workdir: Path) -> list[Start]:
    """What stages/init is, and the same stage of larger teachers; empty where nothing tells yet."""
    own = results.get("init") or manifest(workdir / "stages" / "init").get("facts")
    found = {**({"init": own} if own else {}), **results.get("teachers", {})}
    settings = results.get("config", {}).get("init", {})
    return [_start(name, init, settings, workdir / "stages" / name) for name, init in found.items()]


def _start(
    name: str, init: Mapping[str, Any], settings: Mapping[str, Any], directory: Path
) -> Start:
    """A stage of initial parameters; `settings` are those of config.init."""
    if init.get("kind") == "weights":
        lines = [_filled(init, manifest(directory).get("arrays", {})), *init.get("notes", ())]
    else:
        seed = settings.get("seed", "unknown")
        lines = [f"Random parameters (scratch), config.init.seed {seed}."]
        if settings.get("kind") == "pretrain":
            after = name.replace("init", "pretrain", 1)
            lines.append(f"Then pre-trained on config.source: the stage {after}.")
    titles = {
        "initialised": "initialised, not in the file",
        "left_out": "left out, no place in the model",
        "loaded": "loaded",
    }
    lists = [(told, init[key]) for key, told in titles.items() if init.get(key)]
    identity = directory / "identity.json"
    known = checked.read_json(identity, ADVICE) if identity.is_file() else {}
    title = "Initial parameters" + ("" if name == "init" else f" of a teacher, {name}")
    return Start(title, lines, known.get("weights") or "", lists)


def _filled(init: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """How much of the model the weights fill."""
    size = {name: math.prod(array["shape"]) for name, array in arrays.items()}
    fresh, left_out = init.get("initialised", ()), init.get("left_out", ())
    told = f"Weights: {init.get('path')}, {len(init.get('loaded', ()))} tensors loaded"
    if size:
        missing = sum(size.get(name, 0) for name in fresh)
        whole = sum(size.values())
        told += f", which fill {whole - missing:,} of the {whole:,} parameters"
    told += f"; {len(fresh)} of the model's are not in the file and were initialised"
    return f"{told}; {len(left_out)} of the file's have no place in the model."


def sets(results: Mapping[str, Any]) -> list[str]:
    """The data sets that results.json tells of."""
    return [name for name in ("data", "source") if name in results]


def stages(found: Sequence[Stage]) -> Table:
    """What each stage took, and its digests (the first 12 digits)."""
    digests = {
        "digest": "digest",
        "encoder_digest": "encoder",
        "init_digest": "starts from",
        "teacher_digest": "teacher",
    }
    rows = [["stage", "steps", "time", "examples/s", *digests.values()]]
    for stage in found:
        record = stage.record
        rate = record.get("examples_per_second")
        cells = [
            stage.name,
            stage.of if record else f"{stage.done:,} of {stage.of}",
            rendering.clock(record.get("seconds")),
            NOTHING if rate is None else f"{rate:,.0f}",
            *((record.get(key) or NOTHING)[:12] for key in digests),
        ]
        rows.append(cells)
    return Table(rows, [])


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """("a.b", text) for each leaf."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or NOTHING
    if value in ("", {}):
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def failed(results: Mapping[str, Any]) -> list[str]:
    """A line per failed cell."""
    told = []
    for failure in comparison.failures(results):
        varied = table_notes.settings(failure["method"], failure.get("varied") or {})
        name = failure["method"] + (f" ({varied})" if varied else "")
        seed = "" if failure["seed"] is None else f", seed {failure['seed']}"
        told.append(f"{name}{seed} failed: {failure['error']}")
    return told
