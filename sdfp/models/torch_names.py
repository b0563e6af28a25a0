"""What every family's renaming between PyTorch's tensors and our parameters needs: no files."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdfp.types import UserError


class Renaming(NamedTuple):
    """What `from_torch` did, for `pretrained.load`: names of the file's tensors that were used
    or have no place here (heads, poolers); our parameters that were not filled, each with the
    names it needs; whatever else the user should know, one line each."""

    loaded: list[str]
    left_out: list[str]
    missing: dict[str, list[str]]
    notes: list[str]


class Slot(NamedTuple):
    """One PyTorch tensor and where it goes."""

    path: tuple[str, ...]
    """Of our parameter."""
    layer: int | None
    """Its place on the parameter's layer axis, if that has one."""
    names: list[str]
    """All spellings that are read; the first is the hub's."""


def bare(name: str) -> str:
    """A tensor's name without the prefixes that training scripts put before it."""
    return name.removeprefix("module.").removeprefix("model.")


def check_sizes(tensors: Mapping[str, np.ndarray], layers: int, width: int) -> None:
    """Refuses sizes that are not of these tensors, before lists and arrays of them are made.

    Raises:
        UserError: more layers than tensors, or a width that no tensor has.
    """
    if layers > len(tensors):
        raise UserError(f"config.json says {layers} layers, too many for these tensors")
    if width > max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0):
        raise UserError(f"config.json says a hidden size of {width}, which no tensor here has")


def floats(tensor: np.ndarray, name: str) -> np.ndarray:
    """The tensor as float32; UserError where it holds no floating point numbers."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} holds {tensor.dtype} values, not floating point numbers")
    return np.asarray(tensor, np.float32)


def values(params: Mapping[str, Any], slots: Iterable[Slot]) -> Iterator[tuple[Slot, np.ndarray]]:
    """Each slot of the parts in `params` with its float32 value, in our layout."""
    flat = traverse_util.flatten_dict(dict(params))
    for slot in slots:
        if slot.path[0] in params:
            leaf: Any = flat[slot.path]
            yield slot, np.asarray(leaf if slot.layer is None else leaf[slot.layer], np.float32)


def stack(
    slots: Iterable[Slot], found: Mapping[tuple[str, ...], Mapping[int | None, np.ndarray]]
) -> tuple[dict[tuple[str, ...], np.ndarray], dict[str, list[str]]]:
    """Puts layers on one axis.

    Args:
        slots: what there should be.
        found: values in our layout by path and layer.

    Returns:
        {path: array} of what is whole, and the names of what is missing, by parameter.

    Raises:
        UserError: a parameter's layers differ in shape.
    """
    missing: dict[str, list[str]] = {}
    for slot in slots:
        if slot.layer not in found.get(slot.path, {}):
            missing.setdefault("/".join(slot.path), []).append(slot.names[0])
    params = {}
    for path, layers in found.items():
        if "/".join(path) in missing:
            continue
        if len({value.shape for value in layers.values()}) > 1:
            raise UserError(f"the layers of {'/'.join(path)} differ in shape")
        whole = None in layers
        params[path] = layers[None] if whole else np.stack([v for _, v in sorted(layers.items())])
    return params, missing
