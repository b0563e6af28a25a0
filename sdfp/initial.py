"""theta_init and phi_init: from published weights or from scratch, kept like a stage.

They are written to WORKDIR/stages/init and read back, so every later run of a work directory
starts from the same bits, on any device, and anybody can look at what was loaded.
"""

import dataclasses
from functools import cache
from typing import Any

import jax

from sdfp import pretrained, report, trained
from sdfp.models.interface import Backbone, Card, Family
from sdfp.models.registry import BACKBONES
from sdfp.settings import Experiment
from sdfp.train.kept import Outcome, keep
from sdfp.train.stage import Place


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


def load(
    settings: Experiment, place: Place, dtype: Any, input: dict[str, Any], name: str = "init"
) -> tuple[Backbone, Any, Outcome]:
    """Builds the backbone and its initial parameters.

    With `init.kind` "weights" the architecture is the weight file's.

    Args:
        input: of the data set that the model is made for, see `data.interface.Dataset`.
        name: folder below stages/.

    Returns:
        (backbone, its resolved settings, the outcome with parameters on the host).

    Raises:
        UserError: no such weights, or weights that do not fit.
    """
    init, family, model = settings.init, BACKBONES[settings.model_name], settings.model
    weights = None
    if init.kind == "weights":
        weights = pretrained.open_weights(init.weights, init.revision)
        shapes = {name: array.shape for name, array in weights.tensors.items()}
        model = family.read_config(model, weights.config, shapes)
    backbone = make_backbone(family, model, dtype)
    key = jax.random.key(init.seed)

    def make(directory):
        del directory
        if weights is None:
            report.say(f"{name}: random parameters, seed {init.seed}")
            return jax.device_get(backbone.init(key)), {"kind": "scratch"}
        params, loaded = pretrained.load(weights, backbone, key, init.missing_decoder)
        for line in loaded.lines():
            report.say(line)
        return jax.device_get(params), {"kind": "weights", **loaded._asdict()}

    random = weights is None or init.missing_decoder == "scratch"
    identity = {
        "weights": weights.digest if weights else None,
        "seed": init.seed if random else None,
        "model": architecture(settings.model_name, model),
    }
    card = trained.to_json(settings.model_name, Card(model, input, ()))
    return backbone, model, keep(place.workdir, name, identity, card, make)
