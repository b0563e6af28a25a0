"""Devices (of all processes: hosts.py). One body of a step, two ways to spread it.

Each device runs the step on its own examples and adds up with `psum` over `AXIS`: `jit` by a
`shard_map` over a 1-D mesh, `pmap` by itself. (The compiler could place the sums under `jit`, but
packed texts pick their masked tokens out of all rows, which it would not keep on one device.) Both
are handed to the rest of the program as the functions of `Devices`.
"""

import contextlib
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    shard: Callable
    """(host tree, axis) -> rows of `axis` (the examples) spread over the devices."""
    fetch: Callable
    """(replicated device tree) -> host tree of numpy arrays."""
    gather: Callable
    """(device tree with a leading example axis) -> host tree, every example in order."""
    compile_train: Callable
    """(fn) -> compiled fn(state, frozen, resident, batches, key, count) -> (state, metrics),
    all replicated but `batches`, sharded over its third axis. `state` is donated."""
    compile_map: Callable
    """(fn) -> compiled fn(params, resident, batch) -> [examples, ...]; batch is sharded."""


def make(backend: str, devices: int) -> Devices:
    """Devices for a back end ("jit" or "pmap"); `devices` of them, 0 for all.

    Raises:
        UserError: fewer devices than asked for.
    """
    found = jax.devices()
    if devices and jax.process_count() > 1:
        raise UserError("config.parallel.devices: with several processes all are used; leave it 0")
    if devices > len(found):
        raise UserError(
            f"config.parallel.devices: {devices} asked for, {len(found)} found "
            f"({found[0].platform})"
        )
    return _make(backend, tuple(found[: devices or len(found)]))


def keep_programs(folder: str) -> None:
    """Keeps compiled programs in a folder, for later runs; "" keeps none.

    Raises:
        UserError: the folder cannot be made, or others can write to it: what lies there is run.
    """
    if not folder:
        return
    path = Path(folder).expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UserError(f"config.run.compilation_cache={folder}: {error.strerror}") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"config.run.compilation_cache={folder}: others can write to it, and what lies there "
            "is run; name a new folder"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"config.run.compilation_cache={folder}: it cannot be written")
    jax.config.update("jax_compilation_cache_dir", str(path))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """A host tree on the devices. Every process has all of it; its devices take their part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(spread, tree)


def _gather(tree: Any) -> Any:
    """Of arrays that are spread over the devices, all of it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


@lru_cache  # one mesh per process, so that compiled steps are shared
def _make(backend: str, devices: tuple) -> Devices:
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return (_pmap if backend == "pmap" else _jit)(mesh, devices)


def _jit(mesh, devices: tuple) -> Devices:
    replicated = PartitionSpec()
    everywhere = NamedSharding(mesh, replicated)
    # check_vma would add the sums of gradients by itself, a second time.
    per_device = partial(jax.shard_map, mesh=mesh, check_vma=False)

    def rows(axis: int) -> PartitionSpec:
        return PartitionSpec(*[None] * axis, AXIS)

    def compile_train(fn):
        if len(devices) == 1:
            return jax.jit(partial(fn, axis_name=None), donate_argnums=0, out_shardings=everywhere)
        specs = (replicated, replicated, replicated, rows(2), replicated, replicated)
        body = per_device(partial(fn, axis_name=AXIS), in_specs=specs, out_specs=replicated)
        return jax.jit(body, donate_argnums=0)

    def compile_map(fn):
        if len(devices) == 1:
            return jax.jit(fn, out_shardings=everywhere)
        return jax.jit(
            per_device(fn, in_specs=(replicated, replicated, rows(0)), out_specs=rows(0))
        )

    return Devices(
        count=len(devices),
        replicate=lambda tree: _put(tree, everywhere),
        shard=lambda tree, axis: _put(tree, NamedSharding(mesh, rows(axis))),
        fetch=jax.device_get,
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

    def shard(tree, axis):
        def split(leaf):
            leaf = np.asarray(leaf)
            shape = (*leaf.shape[:axis], count, leaf.shape[axis] // count, *leaf.shape[axis + 1 :])
            return _put(np.moveaxis(leaf.reshape(shape), axis, 0), per_device)

        return jax.tree.map(split, tree)

    def fetch(tree):
        # Every device holds the same values: read the first one's.
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)

    def gather(tree):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), _gather(tree))

    return Devices(
        count=count,
        replicate=replicate,
        shard=shard,
        fetch=fetch,
        gather=gather,
        compile_train=lambda fn: jax.pmap(
            partial(fn, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(0, 0, 0, 0, None, None),
            donate_argnums=0,
            devices=devices,
        ),
        compile_map=lambda fn: jax.pmap(fn, axis_name=AXIS, devices=devices),
    )


def total(values: Any, axis_name: str | None) -> Any:
    """Sum over the devices, inside a compiled step; of one device it has no axis."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


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
        UserError: tf32 asked for where there is none.
    """
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


def memory(devices: Devices) -> int | None:
    """Bytes of each device; of a CPU the machine's, shared among its devices; None if unknown."""
    own = jax.local_devices()
    if own[0].platform == "cpu":
        return (
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // min(devices.count, len(own))
        )
    return (own[0].memory_stats() or {}).get("bytes_limit")
