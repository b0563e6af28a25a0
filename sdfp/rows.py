"""The rows of a table, spelt out: which method, with which settings, from which seed.

`expand` makes them of a config; `planned` tells what each of them trains, by name, without
training anything.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdfp import cli
from sdfp.methods import combination
from sdfp.methods.interface import Method, Teachers
from sdfp.methods.registry import METHODS
from sdfp.settings import Experiment, Recipe
from sdfp.types import UserError


class Row(NamedTuple):
    """What is trained for one line of a table (or one candidate for it)."""

    name: str
    """As in config.methods: "recadam", "self_distillation+label_smoothing"."""
    settings: Experiment
    """The run's, with this row's values of what is varied."""
    varied: Mapping[str, Any] = {}
    """"method.key" -> value, where the row differs from the run's config."""
    first_seed: int | None = None
    """The run's pre-training seed, where this row repeats it with another one."""
    within: str = ""
    """The folder of a larger teacher's stages."""

    @property
    def method(self) -> Method:
        return combination.combine(self.name, self.settings.method)

    def masked_stage(self, name: str, own: bool) -> str:
        """The folder of a masked stage.

        Args:
            own: whether the method's settings change it. Others are shared between rows.
        """
        if self.within:
            return self.within + name + self._tag(_short(self.varied))
        counts = lambda part, key: (
            "pretrain" in combination.changes(part)
            and key not in getattr(METHODS[part].settings, "NOT_IN_STAGES", ())
        )
        varied = {key: v for key, v in self.varied.items() if own and counts(*key.split("."))}
        return name + self._tag(_short(varied))

    def finetuning_stage(self, seed: int) -> str:
        """The folder of the fine-tuning with this seed."""
        if self.within:
            return self.masked_stage("finetune", own=True)
        varied = self.varied if "+" in self.name else _short(self.varied)
        return f"finetune/{self.name}{self._tag(varied)}/seed_{seed}"

    @property
    def pretrains(self) -> bool:
        """Whether anything comes before fine-tuning, and so depends on the pre-training seed."""
        return any("pretrain" in combination.changes(p) for p in combination.parts(self.name))

    def untaught(self) -> "Row":
        """The row without the part that brings a teacher."""
        taught = lambda part: "teacher" in combination.changes(part)
        kept = [part for part in combination.parts(self.name) if not taught(part)]
        varied = {key: v for key, v in self.varied.items() if key.split(".")[0] in kept}
        return self._replace(name="+".join(kept) or "finetune", varied=varied)

    def teacher(self) -> "Row":
        """Plain fine-tuning of the row's larger teacher: one for all of the row's seeds, and for
        all of its settings that do not change it."""
        row = self if self.first_seed is None else self.repeated(self.first_seed)
        changes = lambda part, key: key in getattr(METHODS[part].settings, "TEACHER_ONLY", ())
        varied = {key: value for key, value in self.varied.items() if changes(*key.split("."))}
        return Row("finetune", row.settings, varied, within="teacher/")

    def repeats(self, times: int) -> list["Row"]:
        """The row from so many seeds of the pre-training stages, if it has any."""
        first = self.settings.seed
        return [self.repeated(first + i) for i in range(times if self.pretrains else 1)]

    def repeated(self, seed: int) -> "Row":
        """The row from another seed of the pre-training stages."""
        of_run = self.settings.seed if self.first_seed is None else self.first_seed
        return self._replace(
            settings=dataclasses.replace(self.settings, seed=seed),
            first_seed=None if seed == of_run else of_run,
        )

    def _tag(self, varied: Mapping[str, Any]) -> str:
        told = [f"{key}={value}" for key, value in varied.items()]
        if self.first_seed is not None:
            told.append(f"pretrain_seed={self.settings.seed}")
        return "@" + re.sub(r"[^\w.=,+-]", "_", ",".join(told)) if told else ""


def _short(varied: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without their method: all of them are of one."""
    return {key.split(".")[1]: value for key, value in varied.items()}


def expand(settings: Experiment, grid: Mapping[str, Sequence]) -> list[list[Row]]:
    """For each of config.methods its candidates: one row, or as many as the grid has points.

    Args:
        grid: "method.key" -> the values to choose from.

    Raises:
        UserError: a method of the grid is in no row, parts that cannot be combined, settings that
            cannot work.
    """
    used = {part for name in settings.methods for part in combination.parts(name)}
    for key in grid:
        if key.split(".")[0] not in used:
            raise UserError(f"--tune {key}: no row of config.methods has {key.split('.')[0]}")
    groups = []
    for name in settings.methods:
        keys = sorted(key for key in grid if key.split(".")[0] in combination.parts(name))
        points = itertools.product(*(grid[key] for key in keys))
        groups.append([_row(name, settings, dict(zip(keys, p, strict=True))) for p in points])
    for row in itertools.chain(*groups):
        row.method.make_optimizer(settings.stages.finetune)  # refuses what cannot work
        planned(row, settings.seeds[:1])
    return groups


def _row(name: str, settings: Experiment, values: Mapping[str, Any]) -> Row:
    """The point of a grid; values that are the config's own are not varied."""
    method, varied = dict(settings.method), {}
    for full, value in values.items():
        part, key = full.split(".")
        if getattr(method[part], key) != value:
            varied[full] = value
            method[part] = dataclasses.replace(method[part], **{key: value})
    return Row(name, dataclasses.replace(settings, method=method), varied)


def planned(row: Row, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The stages of a row in their order, and of each the part of its identity that is known before
    anything is read. Nothing is trained: the methods are handed a `fit` and teachers that only
    take notes.

    Raises:
        UserError: a teacher that cannot be made.
    """
    found: dict[str, dict[str, Any]] = {}
    settings, nothing = row.settings, {"encoder": None, "decoder": None}
    recipes = settings.stages

    def note(name, recipe, seed, **more):
        found[name] = {"recipe": dataclasses.asdict(recipe), "seed": seed, **more}

    def fit(name, loss_fn, params, *, recipe=None, times=1, weights=None, identity=None, **_):
        folder = row.masked_stage(name, own=bool(weights or identity))
        wanted = repeat(getattr(recipes, recipe or name), times)
        note(folder, wanted, settings.seed, weights=weights or {}, **(identity or {}))
        return nothing

    def finetuning(row, seed):
        own = combination.finetuning_identity(row.name, row.settings.method)
        more = {"method": own} if own else {}
        note(row.finetuning_stage(seed), recipes.finetune, seed, **more)

    def larger(weights, depth):
        teacher = row.teacher()
        if teacher_kind(settings, weights, depth) == "pretrain":
            note(teacher.masked_stage("pretrain", own=True), recipes.pretrain, settings.seed)
        finetuning(teacher, teacher.settings.seed)

    def given(path):
        if not cli.path(path).exists():
            raise UserError(f"config.method.kd.teacher={path}: there is nothing")

    row.method.pretrain(nothing, backbone=None, fit=fit)
    for seed in seeds:
        same = functools.partial(finetuning, row.untaught(), seed)
        row.method.teacher(Teachers(same, larger, given))
        finetuning(row, seed)
    return found


def plan(
    settings: Experiment, groups: Sequence[Sequence[Row]], pretrain_seeds: int
) -> dict[str, dict[str, Any]]:
    """Every stage of a run, as `planned`, each once. Of a row whose settings are chosen there are
    all candidates; which of them is repeated with other pre-training seeds is not known yet."""
    found: dict[str, dict[str, Any]] = {}
    if settings.init.kind == "pretrain":
        recipe = dataclasses.asdict(settings.stages.pretrain)
        found["pretrain"] = {"recipe": recipe, "seed": settings.seed}
    for candidates in groups:
        for row in candidates:
            for again in row.repeats(pretrain_seeds if len(candidates) == 1 else 1):
                found |= planned(again, settings.seeds)
    return found


def teacher_kind(settings: Experiment, weights: str, depth: int) -> str:
    """How the initial parameters of a larger teacher are made, as in `config.init.kind`.

    Raises:
        UserError: the student starts from weights, and none are named for the teacher; or its
            depth is given twice.
    """
    if weights and depth:
        raise UserError(
            f"config.method.kd.depth: {depth} would not be read, the weights "
            f"({weights}) have their own; set it to 0"
        )
    if not weights and settings.init.kind == "weights":
        raise UserError(
            "config.method.kd.weights: name a larger model's weights, for a teacher to be "
            "fine-tuned from; or give a fine-tuned one as config.method.kd.teacher"
        )
    return "weights" if weights else settings.init.kind


def repeat(recipe: Recipe, times: int) -> Recipe:
    """The recipe with that many times the steps."""
    return dataclasses.replace(recipe, steps=times * recipe.steps)
