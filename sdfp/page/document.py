"""The page of a work directory as HTML: what the modules beside it find, in one template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sdfp import checked, comparison
from sdfp.comparison import Run
from sdfp.page import curves, facts, finetuning, masked, mistakes, stages, top
from sdfp.rendering import NAMES
from sdfp.types import UserError

TEMPLATE = "page.html"


def html(workdir: Path) -> str:
    """The page: a pure function of the files of a work directory. Raises UserError."""
    results = _results(workdir)
    run = _run(results)
    withheld = results.get("config", {}).get("run", {}).get("pictures") == 0
    found = stages.find(workdir, results)
    trained = masked.masked(found, withheld)
    judged = mistakes.judged(workdir, run, withheld)
    starts = facts.starts(results, workdir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=results.get("config", {}).get("name", "A run that has just begun"),
        summary=top.summary(results),
        warnings=list(top.warnings(results, found, trained)),
        answers=list(top.answers(run, trained, starts)),
        has_examples=_has_examples(trained, judged),
        table=facts.scores(run) if run else None,
        scores=_scores(run),
        candidates=finetuning.candidates(results),
        masked=trained,
        tuned=finetuning.finetuned(found),
        judged=judged,
        starts=starts,
        data={name: facts.data(results[name]) for name in facts.sets(results)},
        stages=facts.stages(found),
        settings={
            "Versions": facts.flat(results.get("versions", {})),
            "Resolved config": facts.flat(results.get("config", {})),
            "Model, as it was built": facts.flat(results.get("model", {})),
        },
        command=results.get("command"),
        machine=[(key, results[key]) for key in ("device", "precision") if key in results],
    )


def _has_examples(trained: Sequence[masked.Masked], judged: Sequence[mistakes.Judged]) -> bool:
    """Whether images or texts of the data are on the page."""
    reconstructed = any(each.picture or each.text for each in trained)
    return reconstructed or any(each.shown == "kept" for each in judged)


def _results(workdir: Path) -> dict[str, Any]:
    """results.json; empty where it is not there yet."""
    path = workdir / "results.json"
    if not path.is_file():
        if not (workdir / "stages").is_dir():
            raise UserError(f"{workdir}: not a work directory: no results.json and no stages in it")
        return {}
    return checked.read_results(path)


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
    return Markup(curves.scores(run.lines, label))
