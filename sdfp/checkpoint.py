"""Checkpoints on disk: the only file that knows Orbax.

Orbax restores flipped bits and cast dtypes without an error, so a manifest with the
SHA-256, shape and dtype of every array is written last, and every read is checked against
it. A directory without a manifest is an unfinished save and counts as nothing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

MANIFEST = "manifest.json"


class DamagedCheckpoint(Exception):
    """A checkpoint that does not hold what its manifest says."""


def flatten(tree: Any) -> dict[str, Any]:
    """A pytree as {"a/b/0": leaf}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/0": leaf} as nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _fingerprints(flat: Mapping[str, np.ndarray]) -> dict[str, dict]:
    def fingerprint(array):
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}

    return {name: fingerprint(np.asarray(leaf)) for name, leaf in sorted(flat.items())}


def digest(tree: Any) -> str:
    """One SHA-256 over names, shapes, dtypes and bytes of all arrays of a tree."""
    return _digest_of(_fingerprints(flatten(tree)))


def _digest_of(fingerprints: Mapping[str, dict]) -> str:
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save(directory: Path, tree: Any, facts: Mapping[str, Any]) -> None:
    """Writes the arrays of a host tree, then the manifest with `facts`.

    Raises:
        FloatingPointError: an array is not finite; nothing is written.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    for name, array in flat.items():
        if not np.all(np.isfinite(array)):
            raise FloatingPointError(f"{name} is not finite: not saved to {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute() / "arrays", unflatten(flat))
    fingerprints = _fingerprints(flat)
    manifest = {"facts": dict(facts), "digest": _digest_of(fingerprints), "arrays": fingerprints}
    write_json(directory / MANIFEST, manifest)


def exists(directory: Path) -> bool:
    """Whether a finished save is there."""
    return (directory / MANIFEST).is_file()


def restore(directory: Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Reads and verifies a checkpoint.

    Args:
        like: a tree whose structure the result gets; nested dicts where None.

    Returns:
        (tree of numpy arrays, the facts it was saved with).

    Raises:
        DamagedCheckpoint: missing or unreadable, an array is missing, extra or changed.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        expected = manifest["arrays"]
        names = unflatten(dict.fromkeys(expected, ocp.RestoreArgs(restore_type=np.ndarray)))
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(directory.absolute() / "arrays", restore_args=names)
    except Exception as error:  # Orbax and TensorStore raise many types for one damaged file
        raise DamagedCheckpoint(
            f"{directory}: cannot be read ({type(error).__name__}: {error})"
        ) from error
    flat = flatten(tree)
    found = _fingerprints(flat)
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if changed or _digest_of(found) != manifest["digest"]:
        raise DamagedCheckpoint(f"{directory}: not what was saved: {', '.join(changed[:5])}")
    if like is not None:
        tree = _in_structure_of(like, flat, directory)
    return tree, manifest["facts"]


def _in_structure_of(like: Any, flat: Mapping[str, np.ndarray], directory: Path) -> Any:
    wanted = flatten(like)
    different = sorted({*wanted} ^ {*flat}) or [
        name
        for name, leaf in wanted.items()
        if (leaf.shape, leaf.dtype) != (flat[name].shape, flat[name].dtype)
    ]
    if different:
        raise DamagedCheckpoint(
            f"{directory}: does not fit this model at {', '.join(different[:5])}"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in wanted])


def stored_digest(directory: Path) -> str:
    """The digest in a manifest: of the arrays as they were saved."""
    return json.loads((directory / MANIFEST).read_text())["digest"]


def save_step(directory: Path, step: int, tree: Any, facts: Mapping[str, Any]) -> None:
    """Saves an interrupted stage's state and drops the one before it."""
    save(directory / f"step_{step:09d}", tree, {**facts, "step": step})
    for older in _steps(directory)[:-1]:
        shutil.rmtree(older)


def restore_step(directory: Path, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest finished save of an interrupted stage, or None."""
    steps = _steps(directory)
    return restore(steps[-1], like) if steps else None


def last_step(directory: Path) -> int | None:
    """The step of an interrupted stage's newest finished save, or None."""
    steps = _steps(directory)
    return int(steps[-1].name.removeprefix("step_")) if steps else None


def drop_steps(directory: Path) -> None:
    """Removes the saves of a stage that has ended."""
    for step in directory.glob("step_*"):
        shutil.rmtree(step)


def _steps(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step_*") if exists(path))
