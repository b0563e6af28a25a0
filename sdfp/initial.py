"""theta_init and phi_init: from published weights or from scratch, kept like a stage.

They are written to WORKDIR/stages/init and read back, so every later run of a work directory
starts from the same bits, on any device, and anybody can look at what was loaded.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax

from sdfp import pretrained, report, signals, trained
from sdfp.models.interface import Backbone, Card, Family
from sdfp.models.registry import BACKBONES
from sdfp.settings import Experiment
from sdfp.train.kept import Outcome, keep
from sdfp.train.stage import Place
from sdfp.types import Params, UserError


def architecture(name: str, model: Any, *also: str) -> dict[str, Any]:
    """The part of the model's settings that parameters depend on, and the fields `also`.

    A PORTABLE value goes without saying: so stages from before there was a choice still fit.
    """
    other = {*model.MASKED_ONLY, *model.FINETUNE_ONLY} - set(also)
    other |= {key for key, value in model.PORTABLE.items() if getattr(model, key) == value}
    fields = dataclasses.asdict(model).items()
    return {"name": name, **{key: value for key, value in fields if key not in other}}


@cache
def make_backbone(family: Family, model: Any, dtype: Any) -> Backbone:
    """Cached: one backbone's losses are compiled once."""
    return family.make(model, dtype)


class Initial(NamedTuple):
    """A backbone and its initial parameters, read and checked but not kept yet."""

    backbone: Backbone
    model: Any
    """The resolved settings: with `init.kind` "weights" the architecture is the weight file's."""
    identity: dict[str, Any]
    """All that changes the parameters."""
    shapes: Params
    told: list[str]
    """Where the parameters are from, for people."""
    make: Callable
    """() -> the parameters on the host, and the facts for the record."""


def read(settings: Experiment, dtype: Any) -> Initial:
    """Builds the backbone, and reads its weights where there are some.

    Raises:
        UserError: no such weights, or weights that do not fit.
    """
    init, family, model = settings.init, BACKBONES[settings.model_name], settings.model
    key = jax.random.key(init.seed)
    if init.kind == "weights":
        weights = pretrained.open_weights(init.weights, init.revision)
        shapes = {name: array.shape for name, array in weights.tensors.items()}
        try:
            model = family.read_config(model, weights.config, shapes)
        except UserError as error:
            named = (f"{weights.path}: {problem}" for problem in error.problems)
            raise UserError(*named) from error
        backbone = make_backbone(family, model, dtype)
        loaded, what = pretrained.load(weights, backbone, key, init.missing_decoder)
        params = jax.device_get(loaded)
        digest, random = weights.digest, init.missing_decoder == "scratch"
        told, make = what.lines(), lambda: (params, {"kind": "weights", **what._asdict()})
    else:
        backbone = make_backbone(family, model, dtype)
        digest, random = None, True
        told = [f"init: random parameters, seed {init.seed}"]
        make = lambda: (jax.device_get(backbone.init(key)), {"kind": "scratch"})
    identity = {
        "weights": digest,
        "seed": init.seed if random else None,
        "model": architecture(settings.model_name, model),
    }
    return Initial(backbone, model, identity, jax.eval_shape(backbone.init, key), told, make)


def kept(
    start: Initial, settings: Experiment, place: Place, input: dict[str, Any], name: str = "init"
) -> Outcome:
    """The parameters of `start` on the host, read from or written to stages/`name`.

    Args:
        input: of the data set that the model is made for, see `data.interface.Dataset`.

    Raises:
        WorkdirError: other ones are kept there.
    """

    def make(directory):
        del directory
        for line in start.told:
            report.say(line)
        with signals.at_once():
            return start.make()

    card = trained.to_json(settings.model_name, Card(start.model, input, ()))
    return keep(place.workdir, name, start.identity, card, make)
