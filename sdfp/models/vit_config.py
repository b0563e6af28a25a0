"""The architecture of a ViT or ViT-MAE as a Hugging Face config.json says it, read and written,
or as the shapes of a weight file tell it. No files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdfp.models import hub_config, torch_names
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
MOST_POSITIONS = 1 << 26
"""Values of position embeddings: ten times those of the largest published models."""


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
    settings = Settings(**_checked(values), **Settings.PORTABLE)
    if settings.patches * max(settings.dim, settings.decoder_dim) > MOST_POSITIONS:
        raise UserError(
            f"config.json: image_size {settings.image_size} with patch_size {settings.patch_size} "
            f"makes {settings.patches} patches, too many for position embeddings"
        )
    return settings


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
    return config | hub_config.write_labels(class_names)


def read_class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a config.json, by label; () for a masked auto-encoder.

    Raises:
        UserError: as `hub_config.read_labels`.
    """
    if config.get("model_type") == "vit_mae":
        return ()
    return hub_config.read_labels(config, "ViTForImageClassification", "ViTMAEForPreTraining")


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    return hub_config.fields(Settings, values, ENCODER | DECODER)


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
    known = {torch_names.bare(name): tuple(shape) for name, shape in shapes.items()}
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
