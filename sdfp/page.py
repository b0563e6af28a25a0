"""The report of a work directory as one HTML file that needs nothing else.

    python -m sdfp.page --workdir runs/digits

writes runs/digits/report.html: the table, the curves of all stages, reconstructions, confusion
matrices, the worst mistakes, and what was run. sdfp.main and sdfp.table write it at their end. It
is made of the files in the work directory alone, also of a run that is still going on: what is
not there yet, or was not kept by an older version, is told as such.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from sdfp import cli, comparison, page_curves, page_facts, page_rows, page_stages, report
from sdfp.comparison import Run
from sdfp.page_stages import Stage
from sdfp.rendering import NAMES
from sdfp.types import UserError, one_line

NAME, TEMPLATE = "report.html", "page.html"


class Masked(NamedTuple):
    """A masked stage: its curves and what it reconstructs."""

    stage: Stage
    anchor: str
    facts: list[str]
    losses: Markup | None
    probes: Markup | None
    picture: page_rows.Picture | None
    text: str | None


class Tuned(NamedTuple):
    """The fine-tuning runs of a row."""

    name: str
    facts: list[str]
    losses: Markup


class Judged(NamedTuple):
    """What the first seed of a row gets wrong."""

    name: str
    anchor: str
    score: str
    stage: str
    confusion: page_rows.Confusion | None
    worst: list[dict[str, Any]]
    kept: bool
    """Whether the examples were kept with the mistakes."""


def write(workdir: Path) -> None:
    """Writes WORKDIR/report.html, wholly or not at all.

    Raises:
        UserError: not a work directory, a results.json that cannot be read, or no place to write.
    """
    # A name from another encoding must not be the end of a page.
    text = html(workdir).encode("utf-8", "backslashreplace")
    path = workdir / NAME
    temporary = path.with_name(NAME + ".tmp")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from None
    report.say(f"report: {path}")


def html(workdir: Path) -> str:
    """The page: a pure function of the files of a work directory. Raises UserError."""
    results = _results(workdir)
    run = _run(results)
    stages = page_stages.find(workdir, results)
    masked = [_masked(stage, i) for i, stage in enumerate(s for s in stages if s.row is None)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=results.get("config", {}).get("name", "A run that has just begun"),
        summary=_summary(results, run),
        warnings=_warnings(results, masked),
        table=page_facts.scores(run) if run else None,
        scores=_scores(run),
        verdicts=list(page_facts.verdicts(run)) if run else [],
        masked=masked,
        tuned=_tuned(stages),
        judged=_judged(workdir, run),
        start=page_facts.start(results, workdir),
        data={name: page_facts.data(results[name]) for name in _sets(results)},
        stages=page_facts.stages(stages),
        settings={
            "Versions": page_facts.flat(results.get("versions", {})),
            "Resolved config": page_facts.flat(results.get("config", {})),
            "Model, as it was built": page_facts.flat(results.get("model", {})),
        },
        command=results.get("command"),
        machine=[(key, results[key]) for key in ("device", "precision") if key in results],
    )


def _results(workdir: Path) -> dict[str, Any]:
    """results.json; empty where it is not there yet."""
    path = workdir / "results.json"
    if not path.is_file():
        if not (workdir / "stages").is_dir():
            raise UserError(f"{workdir}: not a work directory: no results.json and no stages in it")
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON: {one_line(error)}; run sdfp.main on it again"
        ) from None
    if not isinstance(results, dict) or not isinstance(results.get("config"), dict):
        raise UserError(f"{path}: not the results of a run; name the work directory of one")
    return results


def _run(results: Mapping[str, Any]) -> Run | None:
    """What can be compared; None where nothing has been measured."""
    if not results.get("results") and not results.get("failed"):
        return None
    return Run(results["config"]["name"], results, comparison.lines(results))


def _scores(run: Run | None) -> Markup | None:
    """Where anything was measured."""
    if run is None or not run.lines[0].metric:
        return None
    label = f"{run.lines[0].split} {NAMES.get(run.lines[0].metric, 'score')}"
    return Markup(page_curves.scores(run.lines, label))


def _sets(results: Mapping[str, Any]) -> list[str]:
    return [name for name in ("data", "source") if name in results]


def _summary(results: Mapping[str, Any], run: Run | None) -> list[str]:
    """What was run, in a few words."""
    if not results:
        return ["no results.json yet: the first row is still in training"]
    config, counts = results["config"], results.get("data", {}).get("counts", {})
    held_out = config.get("evaluate_on", "test")
    name = config.get("data", {}).get("name", "unknown")
    told = [f"data set {name}"]
    if counts:
        told.append(f"{counts.get('train', 0):,} training examples")
        told.append(f"{counts.get(held_out, 0):,} {held_out} examples")
    rows, seeds = len(config.get("methods", ())), len(config.get("seeds", ()))
    told.append(f"{rows} row{'s' * (rows != 1)} × {seeds} seed{'s' * (seeds != 1)}")
    if run and run.lines[0].metric:
        told.append(f"{held_out} {NAMES.get(run.lines[0].metric, 'score')}")
    told.append("complete" if results.get("complete") else "not complete")
    failures = len(results.get("failed", ()))
    told.append(f"{failures} failed cell{'s' * (failures != 1)}" if failures else "no failed cells")
    return told


def _warnings(results: Mapping[str, Any], masked: Sequence[Masked]) -> list[tuple[str, str]]:
    """(text, anchor that it is about or "")."""
    told = [(line, "") for line in page_facts.failed(results)]
    if results and not results.get("complete"):
        told.append(("The run has not come to its end: more cells may follow.", ""))
    for each in masked:
        if warning := each.stage.record.get("warning"):
            told.append((f"{each.stage.name}: {warning}", each.anchor))
    for name in _sets(results):
        found = page_facts.data(results[name])
        told += [(f"{name}: {remark}", "data") for remark in found.remarks]
        if found.broken:
            told.append((f"{name}: {len(found.broken)} broken files were left out", "data"))
    return told


def _masked(stage: Stage, number: int) -> Masked:
    text = stage.directory / "reconstructions.txt"
    return Masked(
        stage=stage,
        anchor=f"masked-{number + 1}",
        facts=_progress(stage),
        losses=Markup(page_curves.losses(stage)) if stage.lines else None,
        probes=Markup(page_curves.probes(stage)) if stage.probes else None,
        picture=page_rows.picture(stage.directory / "reconstructions.png"),
        text=text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None,
    )


def _progress(stage: Stage) -> list[str]:
    """How far a stage has come, and what it took."""
    record = stage.record
    if not record:
        return [f"not in results.json: step {stage.done:,} of {stage.steps or '?'} is logged"]
    told = [f"{record['steps']:,} steps", f"{record['seconds']:,.0f} seconds"]
    told.append(f"{record['examples_per_second']:,.0f} examples/s")
    held_out = [key for key in record if key.endswith("_masked_loss")]
    return told + [f"{key.replace('_', ' ')} {record[key]:.4f}" for key in held_out]


def _tuned(stages: Sequence[Stage]) -> list[Tuned]:
    """A panel per row, all with one axis: what differs between rows is then to be seen."""
    rows: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.row and stage.lines:
            rows.setdefault(stage.row, []).append(stage)
    every = [line["loss"] for own in rows.values() for stage in own for line in stage.lines]
    shared = page_curves.limits(every)
    made = []
    for row, own in rows.items():
        facts = [f"seed {stage.seed}: {_progress(stage)[0]}" for stage in own if not stage.record]
        panel = Markup(page_curves.finetuning(row, own, shared))
        made.append(Tuned(row.removeprefix("finetune/"), facts, panel))
    return made


def _judged(workdir: Path, run: Run | None) -> list[Judged]:
    """The first seed of each row that has one."""
    first = {}
    for entry in run.results.get("results", ()) if run else ():
        first.setdefault(entry["method"], entry)
    made = []
    for method in (line.method for line in run.lines if line.method in first) if run else ():
        entry = first[method]
        directory = workdir / "stages" / entry["stage"]
        worst, kept = page_rows.worst(directory)
        name = NAMES.get(entry["metric"], entry["metric"])
        made.append(
            Judged(
                name=method,
                anchor=f"row-{len(made) + 1}",
                score=f"{entry['split']} {name} {entry['value']:.2f}",
                stage=entry["stage"],
                confusion=page_rows.confusion(directory),
                worst=worst,
                kept=kept,
            )
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = cli.parser("sdfp.page", __doc__)
    told = "of a run, finished or not"
    parser.add_argument("--workdir", type=Path, required=True, metavar="W", help=told)
    given = parser.parse_args(argv)
    return cli.exit_code(lambda: write(given.workdir))


if __name__ == "__main__":
    sys.exit(main())
