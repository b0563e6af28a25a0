"""Everything before training: what a run needs is loaded and checked, and all that is wrong with it
is told at once. `--check` stops behind it."""

import itertools
from pathlib import Path
from typing import NamedTuple

import jax

import sdfp
from sdfp import cells, checkpoint, hosts, initial, memory, parallel, preflight, report, rows
from sdfp.data.interface import Dataset
from sdfp.initial import Initial
from sdfp.models.registry import BACKBONES
from sdfp.parallel import Precision
from sdfp.preflight import Source
from sdfp.problems import Problems
from sdfp.rows import Row
from sdfp.settings import Experiment
from sdfp.stages import Context
from sdfp.train import kept
from sdfp.train.stage import Place
from sdfp.types import UserError


class Prepared(NamedTuple):
    """A run that can begin."""

    context: Context
    start: Initial
    source: Source | None
    """With config.init.kind=pretrain."""


def prepare(
    found: Problems,
    settings: Experiment,
    groups: list[list[Row]],
    workdir: Path,
    precision: Precision,
    pretrain_seeds: int,
) -> Prepared:
    """Loads data, model and weights, and checks whether all that is planned can be done. Nothing is
    kept in the work directory.

    Args:
        found: what is known to be wrong already.

    Raises:
        UserError: with every mistake that can be found before training.
    """
    place = Place(workdir, parallel.make(**vars(settings.parallel)), settings.run)
    _greet(settings, place, precision)
    planned = rows.plan(settings, groups, pretrain_seeds)
    candidates = list(itertools.chain(*groups))
    target = source = start = context = None
    left: list[str] = []
    with found.noted():
        preflight.check_apart("data", settings.data, workdir)
        target = preflight.load_data("data", settings.data, place)
        target = preflight.with_probe(target, place, planned)
    if settings.init.kind == "pretrain":
        with found.noted():
            preflight.check_apart("source", settings.source, workdir)
            source = preflight.load_data("source", settings.source, place, beside=target)
    with found.noted():
        start = initial.read(settings, precision.dtype)
    with found.noted():
        left = hosts.decide(lambda: _check_workdir(workdir, start, planned))
    if target:
        with found.noted():
            _check_held_out(settings, target.data, any(len(group) > 1 for group in groups))
    fits = False
    if start:
        with found.noted():
            _check_model(settings, start, target, source)
            fits = True
    if target and start and fits:  # what does not fit cannot be traced
        facts = {"data": target.data.facts}
        backbone, model = start.backbone, start.model
        context = Context(settings, place, target, backbone, model, precision, facts, {}, {}, {})
        seen: set = set()
        for row in candidates:
            with found.noted():
                cells.check_teacher(context, row, seen)
        with found.noted():
            memory.check(context, candidates, start.shapes, source, left)
    if hosts.any_of(found.any()) and not found.any():
        found.add("another process of this run has found mistakes; see what it says")
    found.stop()
    assert context is not None  # else there was a problem
    assert start is not None
    _agree(context, planned)
    return Prepared(context, start, source)


def _agree(context: Context, planned: dict) -> None:
    """What all processes must have alike: each has its own command and its own disk."""
    teachers = {
        path: [checkpoint.digest(teacher.params), teacher.architecture]
        for path, (teacher, _) in context.teachers.items()
    }
    # Not the commit: that differs by any file of a clone, and where git is lacking.
    software = {name: v for name, v in report.versions().items() if name != "commit"}
    hosts.agree(
        config=repr(context.settings),
        software=software,
        data=context.target.data.fingerprint,
        held_out=context.target.data.notes.get("held_out"),
        rows=planned,
        teachers=teachers,
    )


def _greet(settings: Experiment, place: Place, precision: Precision) -> None:
    report.say(
        f"sdfp {sdfp.__version__}: {settings.name} in {place.workdir}, "
        f"{place.devices.count} x {jax.devices()[0].device_kind} ({settings.parallel.backend}), "
        f"{precision.name}"
    )


def _check_workdir(workdir: Path, start: Initial | None, planned: dict) -> list[str]:
    """Whether it can be written, what is there is of this run, and the rest has room. Returns the
    stages that are not finished."""
    preflight.check_workdir(workdir)
    found = Problems()
    with found.noted():  # the first of them tells what differs
        for name, known in planned.items():
            kept.check_known(workdir / "stages" / name, known)
        if start:
            kept.check_known(workdir / "stages" / "init", start.identity)
    if start:
        with found.noted():
            preflight.check_space(workdir, start.shapes, planned)
    found.stop()
    return preflight.unfinished(workdir, planned)


def _check_held_out(settings: Experiment, data: Dataset, choice: bool) -> None:
    """Whether there is what the rows are measured and chosen by."""
    asked = {f"config.evaluate_on={settings.evaluate_on}": settings.evaluate_on}
    asked |= {"--tune": "validation"} if choice else {}
    preflight.check_held_out(asked, data)
    if choice and not data.train.labelled:
        raise UserError("--tune: the data has no labels to choose by")


def _check_model(
    settings: Experiment, start: Initial, target: Source | None, source: Source | None
) -> None:
    """Whether the model fits the data, the config and the machine."""
    found, family = Problems(), BACKBONES[settings.model_name]
    for block, data in (("data", target), ("source", source)):
        if data:
            with found.noted():
                family.check_input(start.model, data.data.input, block)
    if source and target:
        with found.noted():
            preflight.check_one_tokenizer(source.data, target.data)
    with found.noted():
        preflight.check_attention(start.model)
    with found.noted():
        preflight.check_names(settings, start.shapes)
    found.stop()
