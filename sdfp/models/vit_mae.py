"""ViT-MAE (He et al. 2022) as a `Backbone`: masked auto-encoding of image patches.

`batch["image"]` is [examples, height, width, channels], float32, already normalised.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from sdfp import losses
from sdfp.models import interface, vit_config, vit_modules, vit_weights
from sdfp.types import UserError

Settings = vit_modules.Settings
read_config = vit_config.read_config


class Mask(NamedTuple):
    """Which patches the encoder sees; every image hides the same number."""

    visible: jax.Array
    """[examples, visible] int32, patch numbers in row-major order of the image."""
    hidden: jax.Array
    """[examples, hidden] int32, the other patches: not seen by the encoder."""


def patchify(image: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into patches.

    Args:
        image: [examples, height, width, channels].
        patch_size: side of a patch in pixels.

    Returns:
        [examples, patches, patch_size**2 * channels], patches and pixels in row-major order,
        channels last.
    """
    examples, height, width, channels = image.shape
    rows, columns = height // patch_size, width // patch_size
    x = image.reshape(examples, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(examples, rows * columns, -1)


def unpatchify(patches: jax.Array, patch_size: int, grid: int) -> jax.Array:
    """The inverse of `patchify` for square images of grid * grid patches."""
    x = patches.reshape(patches.shape[0], grid, grid, patch_size, patch_size, -1)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(patches.shape[0], grid * patch_size, grid * patch_size, -1)


def mask_from_noise(noise: jax.Array, visible: int) -> Mask:
    """Random shuffling: the patches with the smallest noise stay visible.

    Args:
        noise: [examples, patches].
        visible: how many patches stay visible.

    Returns:
        Mask; `hidden` is in shuffled order too.

    References: He et al. 2022, section 3 and appendix A.1.
    """
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    return Mask(order[:, :visible], order[:, visible:])


def draw_mask(settings: Settings, batch, key) -> Mask:
    """A fresh mask per example, drawn from (key, example index).

    Args:
        batch: needs `index` [examples].
        key: random key.

    Returns:
        Mask with exactly int(patches * (1 - mask_ratio)) visible patches per example.
    """
    draw = lambda index: jax.random.uniform(jax.random.fold_in(key, index), (settings.patches,))
    return mask_from_noise(jax.vmap(draw)(batch["index"]), settings.visible)


def reconstruction_target(settings: Settings, batch, mask: Mask) -> jax.Array:
    """The pixels to predict, normalised within each patch where the settings say so.

    Returns:
        [examples, hidden, pixels of a patch], float32.

    References: He et al. 2022, section 3 "Reconstruction target".
    """
    target = take(patches_of(settings, batch), mask.hidden).astype(jnp.float32)
    if settings.normalize_targets:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    return target


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (unbiased, plus MAE's 1e-6) over the last axis, kept."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    return mean, jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)


def patches_of(settings: Settings, batch) -> jax.Array:
    """[examples, patches, pixels of a patch] of the batch's images, whose shape is checked."""
    side = settings.image_size
    chex.assert_shape(batch["image"], (None, side, side, settings.channels))
    return patchify(batch["image"], settings.patch_size)


def take(patches: jax.Array, position: jax.Array) -> jax.Array:
    """Each example's patches at `position` [examples, tokens]."""
    return jnp.take_along_axis(patches, position[:, :, None], axis=1)


def encode(
    settings: Settings, dtype, rate: float, encoder, batch, key, mask=None, perturb=None, read=None
) -> jax.Array:
    """Runs the encoder on all patches, or on `mask.visible` only.

    Args:
        rate: dropout rate; 0 needs no key.
        encoder: parameters.
        mask: None for the whole image.
        perturb: see `interface.Backbone.logits`, or None.
        read: see `stack.run`.

    Returns:
        [examples, 1 + tokens, dim]; of them, what `read` takes.
    """
    patches = patches_of(settings, batch)
    module = vit_modules.Encoder(settings, dtype, rate)
    encoded: Any = module.apply(
        {"params": encoder},
        patches if mask is None else take(patches, mask.visible),
        batch["index"],
        None if mask is None else mask.visible,
        perturb,
        read,
        rngs={"dropout": key} if rate else None,
    )
    return encoded


def first_token(tokens: jax.Array) -> jax.Array:
    """[CLS] of [examples, tokens, ...], its axis kept."""
    return tokens[:, :1]


def picture(settings: Settings, reconstruct: Callable, params, batch, key) -> jax.Array:
    """What the model makes of masked images, for the eye.

    Returns:
        [examples, 3, height, width, channels]: the input with hidden patches at 0 (the data
        set's mean colour), the prediction at the hidden patches, the original. A prediction of
        normalised pixels is shown with the true patch's mean and standard deviation.
    """
    mask = draw_mask(settings, batch, key)
    original = patches_of(settings, batch)
    prediction = reconstruct(params, batch, mask, key, False).astype(original.dtype)
    if settings.normalize_targets:
        mean, std = patch_statistics(take(original, mask.hidden))
        prediction = prediction * std + mean
    fill = jax.vmap(lambda patches, hidden, values: patches.at[hidden].set(values))
    masked = fill(original, mask.hidden, jnp.zeros_like(prediction))
    rows = [masked, fill(original, mask.hidden, prediction), original]
    images = [unpatchify(row, settings.patch_size, settings.grid) for row in rows]
    return jnp.stack(images, axis=1)


def init(settings: Settings, dtype, key) -> dict:
    """Random `{"encoder", "decoder"}`, initialised as MAE does."""
    encoder_key, decoder_key = jax.random.split(key)
    everything = jnp.arange(settings.patches)[None]
    visible, hidden = everything[:, : settings.visible], everything[:, settings.visible :]
    patches = jnp.zeros((1, settings.patches, settings.patch_pixels))
    encoded = jnp.zeros((1, 1 + settings.visible, settings.dim))
    encoder = vit_modules.Encoder(settings, dtype, 0.0)
    decoder = vit_modules.Decoder(settings, dtype)
    return {
        "encoder": encoder.init(encoder_key, patches, None)["params"],
        "decoder": decoder.init(decoder_key, encoded, visible, hidden)["params"],
    }


def add_head(settings: Settings, params, num_classes: int, key) -> dict:
    """`{"encoder", "head"}`: one linear layer on [CLS], kernel of std 0.02, bias 0."""
    head = nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.02))
    fresh = head.init(key, jnp.zeros((1, settings.dim)))["params"]
    return {"encoder": params["encoder"], "head": fresh}


def check_input(settings: Settings, input: Mapping[str, Any], block: str) -> None:
    """Raises UserError where the images of `config.<block>` have another size than the model's."""
    for key in ("image_size", "channels"):
        if getattr(settings, key) != input[key]:
            raise UserError(
                f"config.{block}.{key} is {input[key]}, config.model.{key} is "
                f"{getattr(settings, key)}: they must be equal"
            )


def make(settings: Settings, dtype) -> interface.Backbone:
    """Builds the pure functions of a ViT-MAE.

    Args:
        settings: architecture and rates.
        dtype: compute type (float32 or bfloat16). Parameters, softmax, normalisation
            statistics, features, logits and losses are float32 in either case.

    Returns:
        interface.Backbone. `reconstruct` gives [examples, hidden, pixels of a patch],
        `prediction_distance` the mean squared error. `perturb` is called on the patch embeddings
        [examples, patches, dim] before positions are added.

    References: He et al. 2022; Lee et al. 2023, section 3.
    """
    decoder = vit_modules.Decoder(settings, dtype)
    encode_ = partial(encode, settings, dtype)

    def reconstruct(params, batch, mask, key, train):
        rate = settings.dropout_pretrain if train else 0.0
        encoded = encode_(rate, params["encoder"], batch, key, mask=mask)
        return decoder.apply({"params": params["decoder"]}, encoded, mask.visible, mask.hidden)

    def reconstruction_loss(prediction, batch, mask):
        target = reconstruction_target(settings, batch, mask)
        return losses.patch_mean_squared_error(prediction, target)

    def prediction_distance(prediction, teacher, batch, mask):
        del batch, mask
        return losses.patch_mean_squared_error(prediction, jax.lax.stop_gradient(teacher))

    def features(encoder, batch, key, train, tokens="cls", perturb=None):
        if tokens not in ("cls", "all"):
            raise ValueError(f"tokens is 'cls' or 'all', not {tokens!r}")
        rate = settings.dropout_pretrain if train else 0.0
        read = first_token if tokens == "cls" else None
        hidden_states = encode_(rate, encoder, batch, key, perturb=perturb, read=read)
        return hidden_states[:, 0] if tokens == "cls" else hidden_states

    def logits(params, batch, key, train, perturb=None):
        rate = settings.dropout_finetune if train else 0.0
        encoder = params["encoder"]
        cls = encode_(rate, encoder, batch, key, perturb=perturb, read=first_token)
        head = nn.Dense(params["head"]["bias"].shape[-1])
        return head.apply({"params": params["head"]}, cls[:, 0])

    return interface.Backbone(
        init=jax.jit(partial(init, settings, dtype)),
        mask=partial(draw_mask, settings),
        reconstruct=reconstruct,
        reconstruction_loss=reconstruction_loss,
        prediction_distance=prediction_distance,
        features=features,
        logits=logits,
        add_head=partial(add_head, settings),
        from_torch=partial(vit_weights.from_torch, settings=settings),
        to_torch=partial(vit_weights.to_torch, settings=settings),
        picture=partial(picture, settings, reconstruct),
    )
