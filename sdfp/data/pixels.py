"""Between stored pixels, uint8, and a model's input, normalised float32."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sdfp.types import Batch, Key


def make_prepare(mean: Sequence[float], std: Sequence[float], image_size: int) -> Callable:
    """`prepare(batch, key, augment) -> batch`, for use inside the compiled step.

    `batch["image"]` uint8 [n, height, width, channels] becomes float32 `(image / 255 - mean) /
    std` [n, image_size, image_size, channels]; the other entries are kept. Another size is resized
    as PIL does in decode.py: bilinear, averaging when it shrinks, to whole pixel values.
    `augment` is static: True flips each image left to right with probability 1/2, drawn from
    (key, batch["index"]), so that neither the place in the batch nor the number of devices
    changes it. The same arguments give the same function, and so the same compiled program.
    """
    return _make_prepare(tuple(mean), tuple(std), image_size)


@functools.cache
def _make_prepare(mean: tuple, std: tuple, image_size: int) -> Callable:
    mean_, std_ = (np.array(x, np.float32).reshape(1, 1, 1, -1) for x in (mean, std))

    def prepare(batch: Batch, key: Key, augment: bool) -> Batch:
        image = batch["image"].astype(jnp.float32)
        if image.shape[1:3] != (image_size, image_size):
            image = _resize(image, image_size)
        image = (image / 255 - mean_) / std_
        if augment:
            heads = lambda i: jax.random.bernoulli(jax.random.fold_in(key, i))
            flip = jax.vmap(heads)(batch["index"])
            image = jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)
        return {**batch, "image": image}

    return prepare


def _resize(image: jax.Array, size: int) -> jax.Array:
    # PIL's order: width, then height, each to whole values with halves rounded up.
    for axis in (2, 1):
        shape = (*image.shape[:axis], size, *image.shape[axis + 1 :])
        image = jnp.floor(jax.image.resize(image, shape, "bilinear") + 0.5)
    return image


def make_to_pixels(mean: Sequence[float], std: Sequence[float]) -> Callable:
    """`to_pixels(images) -> uint8`, the inverse of `prepare` on the host (NumPy), for pictures.

    Takes float [..., height, width, channels] in the model's input space. Values outside what
    pixels can show are clipped; NaN turns black.
    """
    mean_, std_ = np.array(mean, np.float32), np.array(std, np.float32)

    def to_pixels(images) -> np.ndarray:
        scaled = (np.asarray(images, np.float32) * std_ + mean_) * 255
        return np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)

    return to_pixels
