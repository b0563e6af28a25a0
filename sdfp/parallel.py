"""Devices (of all processes: hosts.py). One body of a step, two ways to spread it.

A step says which of its functions are to be summed over the examples of all devices. Each device
computes them of its own examples and adds up over `AXIS`: `jit` by a `shard_map` over a 1-D mesh,
`pmap` by itself. (The compiler could place the sums under `jit`, but packed texts pick their masked
tokens out of all rows, which it would not keep on one device.) The rest of a step is the same on
every device; under `jit` the compiler may spread it, too: with `fsdp` each device holds a part of
the state. All are handed to the rest of the program as the functions of `Devices`.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sdfp import machine
from sdfp.types import UserError

AXIS = "data"

# Left to itself, a CPU's compiler puts what could run side by side next to each other, and so keeps
# the activations of both losses at once (docs/performance.md). XLA reads this when JAX first looks
# for devices, and jit's compiler_options do not reach it. The user's own flags come last and win;
# without a dash they are the name of a file, which must stand alone.
_FLAGS = os.environ.get("XLA_FLAGS", "").split()
if not _FLAGS or _FLAGS[0].startswith("-"):
    _FLAGS.insert(0, "--xla_cpu_enable_concurrency_optimized_scheduler=false")
    os.environ["XLA_FLAGS"] = " ".join(_FLAGS)


class Devices(NamedTuple):
    """How arrays reach the devices and functions run there."""

    count: int
    replicate: Callable
    """(host tree) -> the same values on every device."""
    place: Callable
    """(host tree of parameters or a state) -> as training keeps it: on every device, or parts."""
    shard: Callable
    """(host batch with `index`, axis, {name: host array [data set, ...]}) -> the batch, and the
    arrays' rows at `index`, spread over the devices along `axis`, the examples. Each process reads
    only the rows of its own devices."""
    fetch: Callable
    """(device tree, of `replicate`, `place` or a training step) -> host tree of numpy arrays. All
    processes must ask: with fsdp each has a part."""
    gather: Callable
    """(device tree with a leading example axis) -> host tree, every example in order."""
    compile_train: Callable
    """(fn) -> compiled fn(state, frozen, resident, batches, key, count) -> (state, metrics).
    `state`, which is donated, and `frozen` come from `place`, `batches` are sharded over their
    third axis, all else is replicated. `fn` gets a keyword `summed`: (function of a batch with
    leaves [micro-batches, examples, ...], and of what is replicated) -> the same, of each device's
    own examples, added up."""
    compile_map: Callable
    """(fn) -> compiled fn(params, resident, batch) -> [examples, ...]; batch is sharded."""


def make(backend: str, devices: int, fsdp: bool = False) -> Devices:
    """Devices for a back end ("jit" or "pmap"); `devices` of them, 0 for all.

    Args:
        fsdp: whether each keeps only a part of what `place` is given, along the largest dimension
            of each array that they divide, and gets the rest of the parameters for a step.

    Raises:
        UserError: no devices, or fewer than asked for; or fsdp with pmap.
    """
    if fsdp and backend == "pmap":
        raise UserError("config.parallel.fsdp: with config.parallel.backend=jit only")
    found = machine.devices()
    if devices and jax.process_count() > 1:
        raise UserError("config.parallel.devices: with several processes all are used; leave it 0")
    if devices > len(found):
        raise UserError(
            f"config.parallel.devices: {devices} asked for, {len(found)} found "
            f"({found[0].platform})"
        )
    return _make(backend, tuple(found[: devices or len(found)]), fsdp)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """A host tree on the devices. Every process has all of it; its devices take their part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(spread, tree)


def _put_batch(batch: Mapping, arrays: Mapping, sharding: NamedSharding) -> dict[str, Any]:
    """A host batch on the devices, and the arrays' rows at its `index`."""
    index = batch["index"]

    def put(array):
        shape = (*index.shape, *array.shape[1:])
        # A device's part: slices of all axes, those of `index` first.
        part = lambda slices: array[index[slices[: index.ndim]]]
        return jax.make_array_from_callback(shape, sharding, part)

    return {**_put(batch, sharding), **{name: put(array) for name, array in arrays.items()}}


def _gather(tree: Any) -> Any:
    """Of arrays that are spread over the devices, all of it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _fetch(tree: Any) -> Any:
    """Of arrays that are whole on every device, or spread over those of all processes."""

    def whole(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


@lru_cache  # one mesh per process, so that compiled steps are shared
def _make(backend: str, devices: tuple, fsdp: bool) -> Devices:
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    if backend == "pmap":
        return _pmap(mesh, devices)
    return _jit(mesh, len(devices), fsdp and len(devices) > 1)


def _rows(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS)


def _part(shape: tuple[int, ...], count: int) -> PartitionSpec:
    """How an array is spread over so many devices."""
    divisible = [axis for axis, size in enumerate(shape) if size and size % count == 0]
    return _rows(max(divisible, key=shape.__getitem__)) if divisible else PartitionSpec()


def _jit(mesh, count: int, fsdp: bool) -> Devices:
    everywhere = NamedSharding(mesh, PartitionSpec())
    # check_vma would add the sums of gradients by itself, a second time.
    per_device = partial(jax.shard_map, mesh=mesh, check_vma=False)

    def held(leaf) -> NamedSharding:
        return NamedSharding(mesh, _part(np.shape(leaf), count)) if fsdp else everywhere

    def add(leaf):
        """Over the devices; each gets the part that it holds of an array of this shape."""
        spec = held(leaf).spec
        if AXIS not in spec:
            return jax.lax.psum(leaf, AXIS)
        return jax.lax.psum_scatter(leaf, AXIS, scatter_dimension=spec.index(AXIS), tiled=True)

    def summed(fn):
        def run(batch, *given):
            specs = PartitionSpec()
            if fsdp:
                first = lambda leaf: leaf[:, : leaf.shape[1] // count]
                one = lambda batch, *given: fn(jax.tree.map(first, batch), *given)
                specs = jax.tree.map(
                    lambda leaf: held(leaf).spec, jax.eval_shape(one, batch, *given)
                )
            own = lambda *arguments: jax.tree.map(add, fn(*arguments))
            in_specs = (_rows(1), *[PartitionSpec()] * len(given))
            return per_device(own, in_specs=in_specs, out_specs=specs)(batch, *given)

        return fn if count == 1 else run

    def compile_train(fn):
        def train_steps(state, *arguments):
            state, metrics = fn(state, *arguments, summed=summed)
            return jax.lax.with_sharding_constraint(state, jax.tree.map(held, state)), metrics

        if fsdp:
            return jax.jit(train_steps, donate_argnums=0)
        return jax.jit(partial(fn, summed=summed), donate_argnums=0, out_shardings=everywhere)

    def compile_map(fn):
        if count == 1:
            return jax.jit(fn, out_shardings=everywhere)
        specs = (PartitionSpec(), PartitionSpec(), _rows(0))
        return jax.jit(per_device(fn, in_specs=specs, out_specs=_rows(0)))

    return Devices(
        count=count,
        replicate=lambda tree: _put(tree, everywhere),
        place=lambda tree: jax.tree.map(lambda leaf: _put(leaf, held(leaf)), tree),
        shard=lambda batch, axis, arrays: _put_batch(
            batch, arrays, NamedSharding(mesh, _rows(axis))
        ),
        fetch=_fetch,
        gather=_gather,
        compile_train=compile_train,
        compile_map=compile_map,
    )


def _pmap(mesh, devices: tuple) -> Devices:
    count = len(devices)
    per_device = NamedSharding(mesh, PartitionSpec(AXIS))

    def replicate(tree):
        def copy(leaf):
            leaf = np.asarray(leaf)
            return _put(np.broadcast_to(leaf, (count, *leaf.shape)), per_device)

        return jax.tree.map(copy, tree)

    def shard(batch, axis, arrays):
        def split(leaf):
            shape = (*leaf.shape[:axis], count, leaf.shape[axis] // count, *leaf.shape[axis + 1 :])
            return np.moveaxis(leaf.reshape(shape), axis, 0)

        return _put_batch(jax.tree.map(split, batch), arrays, per_device)

    def fetch(tree):
        # Every device holds the same values: read the first one's.
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)

    def gather(tree):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), _gather(tree))

    return Devices(
        count=count,
        replicate=replicate,
        place=replicate,
        shard=shard,
        fetch=fetch,
        gather=gather,
        compile_train=lambda fn: jax.pmap(
            partial(fn, summed=lambda part: lambda *given: jax.lax.psum(part(*given), AXIS)),
            axis_name=AXIS,
            in_axes=(0, 0, 0, 0, None, None),
            donate_argnums=0,
            devices=devices,
        ),
        compile_map=lambda fn: jax.pmap(fn, axis_name=AXIS, devices=devices),
    )


class Precision(NamedTuple):
    """How numbers are multiplied. Parameters, reductions and losses are float32 throughout."""

    name: str
    dtype: Any
    """Compute type of the model."""
    matmul: str
    """JAX's name for the precision of float32 products."""

    def context(self) -> contextlib.AbstractContextManager:
        return jax.default_matmul_precision(self.matmul)


def precision(name: str) -> Precision:
    """float32, tf32 (NVIDIA GPUs only) or bfloat16; "auto" is float32 on CPU, tf32 on GPU
    (nearest to the published runs) and bfloat16 on TPU.

    Raises:
        UserError: no devices, or tf32 asked for where there is none.
    """
    machine.devices()  # or why there are none
    platform = jax.default_backend()
    if name == "auto":
        name = {"cpu": "float32", "gpu": "tf32"}.get(platform, "bfloat16")
    if name == "tf32" and platform != "gpu":
        raise UserError(
            f"config.precision=tf32 needs an NVIDIA GPU; this is {platform}. "
            "Use float32 or bfloat16"
        )
    matmul = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}[name]
    return Precision(name, jnp.bfloat16 if name == "bfloat16" else jnp.float32, matmul)


def check_cudnn(asked: str, precision: Precision) -> None:
    """Raises UserError where cuDNN cannot compute attention, which `asked` (key=value) wants."""
    platform = jax.default_backend()
    if platform != "gpu" or precision.name != "bfloat16":
        raise UserError(
            f"{asked} needs an NVIDIA GPU and config.precision=bfloat16; this is {platform} with "
            f"{precision.name}. Use plain"
        )
