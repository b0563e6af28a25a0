"""A ViT or ViT-MAE as a folder that `transformers` and `timm` load, and back: contents, no files.

config.json, model.safetensors, preprocessor_config.json    transformers
timm/config.json, timm/model.safetensors                    timm.create_model("local-dir:...")
README.md                                                   how to load both
"""

import math
from collections.abc import Mapping
from typing import Any

from sdfp import checked
from sdfp.models import vit_config, vit_weights
from sdfp.models.interface import Card
from sdfp.models.vit_modules import Settings
from sdfp.types import UserError

# That of timm's LayerNorm. Its config.json cannot say another one, so the user must. (1e-6 for the
# hub's 1e-12 changed the logits of a random ViT-B by 3e-4.)
TIMM_EPS = 1e-6
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
BILINEAR = 2  # in PIL's numbering


def export(params: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """The files of an exported folder.

    A masked auto-encoder's timm model is its encoder alone.

    Args:
        params: `{"encoder", "head"}` (a classifier) or `{"encoder", "decoder"}`.
        card: the settings, the input and the class names (by label; of a masked auto-encoder none).

    Returns:
        {path: content}: of *.safetensors float32 arrays by name, of *.json JSON values, of *.md
        text.

    Raises:
        UserError: class names or input that do not fit the parameters.
    """
    masked = "head" not in params
    settings, classes = card.settings, 0 if masked else params["head"]["bias"].shape[-1]
    if len(card.class_names) != classes:
        raise UserError(
            f"the model has {classes} classes but {len(card.class_names)} class names: export it "
            "with the names of the data set that it was fine-tuned on"
        )
    fitting = {"image_size": settings.image_size, "channels": settings.channels}
    if any(card.input[name] != value for name, value in fitting.items()):
        raise UserError(f"the model needs images of {fitting}, its data set makes {card.input}")
    files = {
        CONFIG: vit_config.write_config(settings, card.class_names, masked),
        PROCESSOR: _write_processor(card.input),
        "model.safetensors": vit_weights.to_torch(params, settings),
    }
    encoder = {name: part for name, part in params.items() if name != "decoder"}
    files["timm/config.json"] = _write_timm(card)
    files["timm/model.safetensors"] = vit_weights.to_timm(encoder, settings)
    files["README.md"] = _write_readme(files[CONFIG], settings)
    return files


def _write_readme(config: Mapping[str, Any], settings: Settings) -> str:
    kind, eps = config["architectures"][0], settings.layer_norm_eps
    norm = f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})"
    return f"""# {kind}

Written by `python -m sdfp.export`. DIR is this folder.

```python
from transformers import AutoImageProcessor, {kind}

model = {kind}.from_pretrained("DIR")
processor = AutoImageProcessor.from_pretrained("DIR")
```

```python
import functools, timm, torch

model = timm.create_model("local-dir:DIR/timm", pretrained=True{norm * (eps != TIMM_EPS)})
```
"""


def describe(files: Mapping[str, Any]) -> Card:
    """What a folder's JSON files say about its model, the inverse of `export`.

    Images are always made grey or RGB, whatever `do_convert_rgb` says.

    Args:
        files: content of config.json and preprocessor_config.json, by name; others are ignored.

    Returns:
        Card. A classifier's settings have a made-up decoder (see `vit_config.whole_settings`).

    Raises:
        UserError: a file is missing, another kind of model, images that are not resized to a
            square and scaled from 0..255 to 0..1.
    """
    for name in (CONFIG, PROCESSOR):
        if name not in files:
            raise UserError(f"no {name}: put the model's own beside its weights")
    # To transformers null is the same as no entry.
    config, processor = (
        {key: value for key, value in files[name].items() if value is not None}
        for name in (CONFIG, PROCESSOR)
    )
    settings = vit_config.whole_settings(config)
    return Card(
        settings=settings,
        input=_read_processor(processor, settings),
        class_names=vit_config.read_class_names(config),
    )


def _write_processor(input: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessor_config.json for how `data/decode.py` and `images.make_prepare` make images."""
    return {
        "image_processor_type": "ViTImageProcessor",
        # Grey, palette and transparent images become RGB. No switch makes them grey, so for one
        # channel the user does it, with PIL's `image.convert("L")`: the processor leaves RGB at
        # three channels, which the model refuses, and takes palette indices for grey levels.
        "do_convert_rgb": input["channels"] == 3,
        "do_resize": True,
        "size": {"height": input["image_size"], "width": input["image_size"]},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(input["mean"]),
        "image_std": list(input["std"]),
    }


def _read_processor(processor: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """`Dataset.input` from a preprocessor_config.json; entries may be missing, as in old ones."""
    side, size = settings.image_size, processor.get("size", 224)
    crop, scale = processor.get("do_center_crop", False), processor.get("do_rescale", True)
    if processor.get("resample", BILINEAR) != BILINEAR:
        raise UserError(
            f"{PROCESSOR}: resample is {processor['resample']}; images are resized bilinearly here "
            f"({BILINEAR}), which would change the predictions of this model"
        )
    if crop or size not in (side, {"height": side, "width": side}):
        raise UserError(
            f"{PROCESSOR}: size {size} with do_center_crop {crop} is not the plain resize to "
            f"{side} x {side} pixels (image_size of {CONFIG}), the only one known here"
        )
    factor = processor.get("rescale_factor", 1 / 255)
    factor = checked.scalar(float, {}, factor, f"{PROCESSOR}: rescale_factor")
    if not scale or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise UserError(
            f"{PROCESSOR}: rescale_factor {factor} with do_rescale {scale} is not 1/255; set it "
            "to that and change image_mean and image_std to match"
        )
    statistics = {"mean": 0.0, "std": 1.0}
    if processor.get("do_normalize", True):
        # 0.5 is what ViTImageProcessor takes where the file says nothing.
        statistics = {name: processor.get(f"image_{name}", 0.5) for name in statistics}
    for name, given in statistics.items():
        values = list(given) if isinstance(given, list | tuple) else [given] * settings.channels
        limit = {"above": 0} if name == "std" else {}
        values = [checked.scalar(float, limit, v, f"{PROCESSOR}: image_{name}") for v in values]
        if len(values) != settings.channels:
            raise UserError(
                f"{PROCESSOR}: image_{name} has {len(values)} values, num_channels of {CONFIG} is "
                f"{settings.channels}; give one value per channel"
            )
        statistics[name] = values
    return {"kind": "image", "image_size": side, "channels": settings.channels, **statistics}


def _write_timm(card: Card) -> dict[str, Any]:
    """The config.json of timm's folder."""
    s, classes = card.settings, len(card.class_names)
    ratio = s.mlp_dim / s.dim
    if int(s.dim * ratio) != s.mlp_dim:  # timm rounds down, e.g. 28 * (61 / 28)
        ratio = math.nextafter(ratio, math.inf)
    labels = {"label_names": list(card.class_names)} if classes else {}
    return {
        # A plain ViT that timm knows; every size is then overridden by model_args.
        "architecture": "vit_base_patch16_224",
        "num_classes": classes,
        "num_features": s.dim,
        "global_pool": "token",
        **labels,
        "model_args": {
            "img_size": s.image_size,
            "patch_size": s.patch_size,
            "in_chans": s.channels,
            "num_classes": classes,
            "embed_dim": s.dim,
            "depth": s.depth,
            "num_heads": s.heads,
            "mlp_ratio": ratio,
            "qkv_bias": s.qkv_bias,
            "global_pool": "token",
        },
        "pretrained_cfg": {
            "num_classes": classes,
            "input_size": [s.channels, s.image_size, s.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(card.input["mean"]),
            "std": list(card.input["std"]),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
