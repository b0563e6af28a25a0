"""The architecture of a ViT or ViT-MAE as a Hugging Face config.json says it, read and written,
or as the shapes of a weight file tell it. No files."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from sdfp import checked
from sdfp.models.vit_modules import Settings
from sdfp.types import UserError, some

# Ours: theirs.
ENCODER = {
    "patch_size": "patch_size",
    "channels": "num_channels",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
}
DECODER = {f"decoder_{ours}": f"decoder_{ENCODER[ours]}" for ours in list(ENCODER)[2:6]}
# The original repository's sizes: heads cannot be read from the shapes.
HEADS_OF_WIDTH = {768: 12, 1024: 16, 1280: 16}


def read_config(
    settings: Settings, config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> Settings:
    """The architecture of a weight file over the run's own image size, masking and dropout.

    Args:
        settings: of the run.
        config: a Hugging Face config.json of model_type vit_mae, or vit (encoder sizes only);
            None to read the shapes instead, possible for the original repository's names.
        shapes: of the file's tensors, by name.

    Returns:
        Settings.

    Raises:
        UserError: another model_type or activation, a missing entry, sizes that cannot be read.
    """
    if config is None:
        return replace(settings, **_checked(_sizes_from_shapes(shapes)))
    return replace(settings, **_checked(_sizes_from_config(config)))


def whole_settings(config: Mapping[str, Any]) -> Settings:
    """All settings from a config.json alone, the inverse of `write_config`; dropout rates 0.

    Raises:
        UserError: as `read_config`; an image size that is not one number.
    """
    sizes = _sizes_from_config(config)
    if "image_size" not in config:
        raise UserError("config.json: no image_size")
    if config["model_type"] == "vit_mae":
        # The defaults of transformers, for a config.json that leaves them out.
        mask_ratio, normalize = config.get("mask_ratio", 0.75), config.get("norm_pix_loss", False)
    else:
        # A classifier has neither decoder nor masks, but Settings wants valid values: the
        # encoder's sizes are valid together, and one layer is cheap where a decoder is made.
        mask_ratio, normalize = 0.75, False
        sizes |= {ours: sizes[ours.removeprefix("decoder_")] for ours in DECODER}
        sizes["decoder_depth"] = 1
    values = sizes | {
        "image_size": config["image_size"],
        "mask_ratio": mask_ratio,
        "normalize_targets": normalize,
        "dropout_pretrain": 0.0,
        "dropout_finetune": 0.0,
    }
    return Settings(**_checked(values))


def write_config(settings: Settings, class_names: Sequence[str], masked: bool) -> dict[str, Any]:
    """A config.json that `transformers` loads.

    Args:
        settings: the architecture; dropout rates are not written, they belong to training.
        class_names: by label, of a classifier; the number of classes is told by them alone.
        masked: True for a ViTMAEForPreTraining, False for a ViTForImageClassification.

    Returns:
        JSON values.
    """
    entries = ENCODER | DECODER if masked else ENCODER
    config = {
        "architectures": ["ViTMAEForPreTraining" if masked else "ViTForImageClassification"],
        "model_type": "vit_mae" if masked else "vit",
        "image_size": settings.image_size,
        **{theirs: getattr(settings, ours) for ours, theirs in entries.items()},
        "qkv_bias": settings.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }
    if masked:
        masking = {"mask_ratio": settings.mask_ratio, "norm_pix_loss": settings.normalize_targets}
        return config | masking
    # id2label is what predictions are read with, so it is exact. Of classes with one name,
    # label2id can only hold one: the first.
    labels = {str(label): name for label, name in enumerate(class_names)}
    first = {name: label for label, name in reversed(list(enumerate(class_names)))}
    ids = {name: first[name] for name in class_names}
    return config | {"id2label": labels, "label2id": ids}


def read_class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a config.json, by label; () for a masked auto-encoder.

    Raises:
        UserError: neither classifier nor masked auto-encoder, labels that are not 0, 1, 2, ...
    """
    if config.get("model_type") == "vit_mae":
        return ()
    kind = config.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        raise UserError(f"config.json: problem_type is {kind!r}; one label per image is known only")
    labels = config.get("id2label")
    if labels is None:
        if "ViTForImageClassification" not in (config.get("architectures") or ()):
            raise UserError(
                "config.json: neither a classifier (no id2label) nor a masked auto-encoder; use "
                "a ViTForImageClassification or ViTMAEForPreTraining"
            )
        # transformers leaves out its default, two classes.
        count = checked.scalar(
            int, {"low": 2}, config.get("num_labels", 2), "config.json: num_labels"
        )
        labels = {label: f"LABEL_{label}" for label in range(count)}
    if not isinstance(labels, Mapping) or len(labels) < 2:
        raise UserError(
            f"config.json: id2label is {labels!r:.60}; a classifier has two labels or more"
        )
    names = {str(label): str(name) for label, name in labels.items()}
    try:
        return tuple(names[str(label)] for label in range(len(names)))
    except KeyError as error:
        raise UserError(
            f"config.json: id2label has {len(names)} entries but none for {error.args[0]}; "
            "number the classes 0, 1, 2, ..."
        ) from None


def bare(name: str) -> str:
    """A tensor's name without the prefixes that training scripts put before it."""
    return name.removeprefix("module.").removeprefix("model.")


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, where they are such as `Settings` allows."""
    kinds, fields = (
        get_type_hints(Settings),
        {field.name: field for field in dataclasses.fields(Settings)},
    )
    told = ENCODER | DECODER
    return {
        name: checked.scalar(
            kinds[name], fields[name].metadata, value, f"config.json: {told.get(name, name)}"
        )
        for name, value in values.items()
    }


def _sizes_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes by our names; the decoder's only where there is one."""
    kind = config.get("model_type")
    if kind not in ("vit_mae", "vit"):
        raise UserError(f"config.json: model_type is {kind!r}; this backbone reads vit_mae and vit")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"config.json: hidden_act is {config['hidden_act']!r}; only gelu is known")
    entries = ENCODER | DECODER if kind == "vit_mae" else ENCODER
    missing = [theirs for theirs in entries.values() if theirs not in config]
    if missing:
        raise UserError(f"config.json: no {some(missing)}")
    values = {ours: config[theirs] for ours, theirs in entries.items()}
    return values | {"qkv_bias": config.get("qkv_bias", True)}


def _sizes_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes from a file with the original repository's names."""
    known = {bare(name): tuple(shape) for name, shape in shapes.items()}
    try:
        dim, channels, patch_size, _ = known["patch_embed.proj.weight"]
        sizes = {
            "patch_size": patch_size,
            "channels": channels,
            "dim": dim,
            "depth": _depth(known, "blocks"),
            "heads": HEADS_OF_WIDTH[dim],
            "mlp_dim": known["blocks.0.mlp.fc1.weight"][0],
            "layer_norm_eps": 1e-6,
            "qkv_bias": "blocks.0.attn.qkv.bias" in known,
        }
    except (KeyError, ValueError):
        raise UserError("no config.json, sizes unreadable: put it beside the weights") from None
    if "decoder_blocks.0.mlp.fc1.weight" in known and "decoder_embed.weight" in known:
        sizes["decoder_dim"] = known["decoder_embed.weight"][0]
        sizes["decoder_depth"] = _depth(known, "decoder_blocks")
        sizes["decoder_heads"] = 16
        sizes["decoder_mlp_dim"] = known["decoder_blocks.0.mlp.fc1.weight"][0]
    return sizes


def _depth(names: Mapping[str, Any], stack: str) -> int:
    """Number of blocks in a stack, from the names."""
    return 1 + max(int(name.split(".")[1]) for name in names if name.startswith(f"{stack}."))
