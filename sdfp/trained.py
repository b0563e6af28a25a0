"""A trained model, out of a work directory or an exported folder."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdfp import checked, checkpoint, machine, pretrained, sealed
from sdfp.data import inputs
from sdfp.models import hub_config
from sdfp.models.interface import Card, Family
from sdfp.models.registry import BACKBONES
from sdfp.train.kept import CARD, MODEL
from sdfp.types import Params, UserError, one_line

DESCRIPTION = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What the families' `describe` reads of a folder. Others, such as vocab.json, are left alone."""


class Trained(NamedTuple):
    """Parameters, and what it takes to use them."""

    name: str
    """What was read, for the user."""
    family: Family
    card: Card
    params: Params
    """On the host: `{"encoder", "head"}` of a classifier, else `{"encoder", "decoder"}`."""


def to_json(family: str, card: Card) -> dict[str, Any]:
    """What a stage keeps as model.json: a Card, and its family's name in the registry. How this
    machine computes is left out: `open_stage` puts in what any machine can."""
    settings = dataclasses.asdict(card.settings)
    return {
        "family": family,
        "settings": {k: v for k, v in settings.items() if k not in card.settings.PORTABLE},
        "input": card.input,
        "class_names": list(card.class_names),
    }


def open_stage(workdir: Path, stage: str) -> Trained:
    """The result of a finished stage.

    Args:
        stage: as in results.json, e.g. "further_pretrain" or "finetune/further_pretrain/seed_0".

    Raises:
        UserError: no such stage, not finished, or damaged; or no device here.
    """
    finished, stage = stages(workdir), stage.strip("/")
    if stage not in finished:
        directory = workdir / "stages" / stage
        if checkpoint.exists(directory / "final") and not (directory / MODEL).exists():
            raise UserError(
                f"{workdir}: {stage} is finished, but has no {MODEL} (an older version made it): "
                "run the same training command once more, it adds what is missing"
            )
        listed = ", ".join(finished) or "none"
        raise UserError(f"{workdir}: no finished stage {stage!r}; finished are: {listed}")
    directory = workdir / "stages" / stage
    family, card = _read_card(directory / MODEL)
    machine.devices()  # Orbax asks for one: without, what is sound would seem damaged
    try:
        params, _ = checkpoint.restore(directory / "final")
    except checkpoint.DamagedCheckpoint as error:
        raise UserError(f"{one_line(error)}. Delete {directory} and run it again") from error
    backbone = family.make(card.settings, jnp.float32)
    pretrained.check_fit(params, backbone, len(card.class_names), str(directory / MODEL))
    return Trained(str(directory), family, card, params)


def _read_card(path: Path) -> tuple[Family, Card]:
    """A model.json: the inverse of `to_json`."""
    advice = "delete it and run the same training command once more: it is written again"
    content = sealed.read(path, advice, CARD)
    try:
        family = BACKBONES[content["family"]]
        values = hub_config.fields(family.settings, content["settings"], {}, path.name)
        settings = family.settings(**values, **family.settings.PORTABLE)
        card = Card(settings, inputs.checked_input(content["input"]), tuple(content["class_names"]))
        family.check_input(settings, card.input, "data")
    except (KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{path}: damaged, or not of this version ({one_line(error)}); {advice}"
        ) from None
    return family, card


def stages(workdir: Path) -> list[str]:
    """The finished stages of a work directory, as `open_stage` takes them.

    Raises:
        UserError: not a work directory.
    """
    root = workdir / "stages"
    if not root.is_dir():
        raise UserError(f"{workdir}: not a work directory of sdfp: it has no folder stages")
    found = [path.parent for path in sorted(root.glob("**/final")) if checkpoint.exists(path)]
    return [path.relative_to(root).as_posix() for path in found if (path / MODEL).exists()]


def default_classifier(workdir: Path) -> str:
    """The stage of a run's last method and that method's first seed.

    Raises:
        UserError: nothing is fine-tuned there.
    """
    tuned = [stage for stage in stages(workdir) if stage.startswith("finetune/")]
    results = workdir / "results.json"
    entries = checked.read_results(results).get("results", ()) if results.exists() else ()
    entries = [entry for entry in entries if entry.get("stage") in tuned]
    if not entries:
        listed = ", ".join(tuned) or "none is fine-tuned yet"
        raise UserError(f"{workdir}: name a fine-tuned model with --stage ({listed})")
    return next(e["stage"] for e in entries if e["method"] == entries[-1]["method"])


def open_folder(folder: Path) -> Trained:
    """An exported folder, or any folder in that format.

    Raises:
        UserError: not such a folder, another kind of model, or weights that do not fit.
    """
    paths = [folder / name for name in DESCRIPTION]
    files = {path.name: pretrained.read_json(path) for path in paths if path.exists()}
    kind = files.get("config.json", {}).get("model_type")
    family = next((f for f in BACKBONES.values() if kind in f.model_types), None)
    if family is None:
        known = ", ".join(kind for f in BACKBONES.values() for kind in f.model_types)
        raise UserError(
            f"{folder}/config.json: model_type is {kind!r}, which is none of {known}; give a "
            "folder of transformers (of an exported one not its timm folder)"
        )
    try:
        card = family.describe(files)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    backbone = family.make(card.settings, jnp.float32)
    weights = pretrained.open_weights(str(folder))
    if card.class_names:
        params = pretrained.load_classifier(weights, backbone, len(card.class_names))
    else:
        params, _ = pretrained.load(weights, backbone, jax.random.key(0), "stop")
    return Trained(str(folder), family, card, jax.device_get(params))


def open_classifier(path: Path, stage: str, asked: str) -> Trained:
    """The fine-tuned model in a work directory (or its folder below stages/), or an exported one.

    Args:
        stage: of a work directory; "" for its last method's first seed.
        asked: how the user named `path`, for messages.

    Raises:
        UserError: nothing there, or it has no head.
    """
    if (path / "config.json").is_file():
        if stage:
            raise UserError(f"{path} is an exported model; --stage is for work directories")
        model = open_folder(path)
    elif (path / MODEL).is_file() and "stages" in path.parts:
        workdir = next(parent for parent in path.parents if parent.name == "stages").parent
        model = open_stage(workdir, path.relative_to(workdir / "stages").as_posix())
    elif (path / "stages").is_dir():
        model = open_stage(path, stage or default_classifier(path))
    else:
        raise UserError(
            f"{asked}: neither a work directory (no stages/ in it) nor an exported model "
            "(no config.json)"
        )
    if "head" not in model.params:
        raise UserError(
            f"{model.name}: not fine-tuned: it has no classifier head; --stage finetune/... names "
            "a fine-tuned stage"
        )
    return model
