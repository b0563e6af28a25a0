"""Checkpoints on disk: the only file that knows Orbax.

Orbax restores flipped bits and cast dtypes without an error, so a manifest with the SHA-256 of
every file and every array (and of itself) is written last, and every read is checked against it.
A save is written to a folder of its own, flushed, and renamed: under its name it is whole.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from sdfp import files, report, sealed
from sdfp.types import WorkdirError, one_line, some

MANIFEST = "manifest.json"
FORMAT = 2
"""1 had no digests of files, and was not renamed."""
DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG, errno.EUCLEAN)
"""Errors of reading that will come again. Others may pass: no rights, no more open files."""
KEPT = 2
"""Saves of an interrupted stage: were the newest one damaged, there is the one before it."""

# Orbax logs an error with its traceback, and then raises it: it is told once, by who catches it.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)


class DamagedCheckpoint(Exception):
    """A checkpoint that does not hold what its manifest says."""


def flatten(tree: Any) -> dict[str, Any]:
    """A pytree as {"a/b/0": leaf}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/0": leaf} as nested dicts."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _fingerprints(flat: Mapping[str, np.ndarray]) -> dict[str, dict]:
    def fingerprint(array):
        own = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # no copy: it takes longer
        digest = hashlib.sha256(own.data).hexdigest()
        return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}

    return {name: fingerprint(np.asarray(leaf)) for name, leaf in sorted(flat.items())}


def digest(tree: Any) -> str:
    """One SHA-256 over names, shapes, dtypes and bytes of all arrays of a tree."""
    return sealed.digest(_fingerprints(flatten(tree)))


def save(directory: Path, tree: Any, facts: Mapping[str, Any]) -> None:
    """Writes the arrays of a host tree and a manifest with `facts`, all of it or nothing.

    Raises:
        FloatingPointError: an array is not finite.
        WorkdirError: the disk is full, or cannot be written.
    """
    flat = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    for name, array in flat.items():
        if not np.all(np.isfinite(array)):
            raise FloatingPointError(f"{name} is not finite: not saved to {directory}")
    temporary = directory.with_name(directory.name + ".saving")
    try:
        _write(temporary, flat, facts)
        _put_in_place(temporary, directory)
    except (OSError, ValueError) as error:  # TensorStore tells a full disk as a ValueError
        shutil.rmtree(temporary, ignore_errors=True)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        why = os.strerror(int(code[1])) if code else one_line(error)
        raise WorkdirError(
            f"{directory}: cannot be saved ({why}); what was saved before is as it was. Mend "
            "that, and run the same command again: it goes on from there"
        ) from error


def _write(directory: Path, flat: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    files.remove(directory)
    directory.mkdir(parents=True)
    with _orbax() as checkpointer:
        checkpointer.save(directory.absolute() / "arrays", unflatten(flat))
    fingerprints = _fingerprints(flat)
    manifest = {
        "format": FORMAT,
        "versions": report.versions(),
        "facts": dict(facts),
        "digest": sealed.digest(fingerprints),
        "arrays": fingerprints,
        "files": _files(directory),
    }
    files.write_json(directory / MANIFEST, sealed.seal(manifest))


def _orbax() -> ocp.Checkpointer:
    """Of this process alone: others of the run neither save nor wait."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"process_{own}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _put_in_place(temporary: Path, directory: Path) -> None:
    """Renames a folder once the disk has all of it."""
    for path in [*temporary.rglob("*"), temporary]:
        files.flush(path)
    files.remove(directory)
    temporary.replace(directory)
    files.flush(directory.parent)


def _files(directory: Path) -> dict[str, str]:
    """SHA-256 of everything but the manifest, by its path; "" of what is no file."""

    def sha256(path):
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    paths = (path for path in sorted(directory.rglob("*")) if not path.is_dir())
    found = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: sha256(path) for name, path in found.items() if name != MANIFEST}


def exists(directory: Path) -> bool:
    """Whether a finished save is there."""
    return (directory / MANIFEST).is_file()


def restore(
    directory: Path, like: Any = None, of: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads and verifies a checkpoint.

    Args:
        like: a tree whose structure the result gets; nested dicts where None.
        of: facts that it must have been saved with, if with any under these names.

    Returns:
        (tree of numpy arrays, the facts it was saved with).

    Raises:
        DamagedCheckpoint: missing or unreadable; a file or an array is missing, extra or changed;
            it is of something else.
        WorkdirError: it is not damaged, and cannot be read here and now, or is of other arrays
            than `like`.
    """
    manifest, tree = _read(directory)
    flat = flatten(tree)
    _refuse_changes(directory, manifest["arrays"], _fingerprints(flat))
    facts = manifest["facts"]
    for name, value in (of or {}).items():
        if facts.get(name, value) != value:
            raise DamagedCheckpoint(f"{directory}: is of {name} {facts[name]}, not of {value}")
    if like is not None:
        tree = _in_structure_of(like, flat, directory)
    return tree, facts


def _read(directory: Path) -> tuple[dict[str, Any], Any]:
    """The manifest and the arrays. Errors as `restore`."""
    whole = False
    try:
        manifest = _read_manifest(directory)
        whole = "files" in manifest  # they are those that were saved
        restored = ocp.RestoreArgs(restore_type=np.ndarray)
        names = unflatten(dict.fromkeys(manifest["arrays"], restored))
        with _orbax() as checkpointer:
            arrays = directory.absolute() / "arrays"
            return manifest, checkpointer.restore(arrays, restore_args=names)
    except (DamagedCheckpoint, MemoryError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for one damaged file
        told = f"{directory}: cannot be read ({type(error).__name__}: {error})"
        if whole or (isinstance(error, OSError) and error.errno not in DAMAGE):
            raise WorkdirError(f"{told}; nothing was done to it") from error
        raise DamagedCheckpoint(told) from error


def _read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, once all files are found to be those that it names."""
    text = (directory / MANIFEST).read_text()
    manifest = json.loads(text)
    changed = manifest["digest"] != sealed.digest(manifest["arrays"])
    if manifest.keys() != {"facts", "digest", "arrays"}:  # those of format 1
        changed |= text != files.json_text(manifest)
        changed |= manifest.pop(sealed.NAME) != sealed.digest(manifest)
    if changed:
        raise DamagedCheckpoint(f"{directory}: not what was saved: {MANIFEST}")
    if manifest.get("format", 1) > FORMAT:
        raise DamagedCheckpoint(f"{directory}: a newer version of sdfp made it")
    if "files" in manifest:
        _refuse_changes(directory, manifest["files"], _files(directory))
    return manifest


def _refuse_changes(directory: Path, expected: Mapping, found: Mapping) -> None:
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if changed:
        raise DamagedCheckpoint(f"{directory}: not what was saved: {', '.join(changed[:5])}")


def _in_structure_of(like: Any, flat: Mapping[str, np.ndarray], directory: Path) -> Any:
    wanted = flatten(like)
    different = sorted({*wanted} ^ {*flat}) or [
        name
        for name, leaf in wanted.items()
        if (leaf.shape, leaf.dtype) != (flat[name].shape, flat[name].dtype)
    ]
    if different:
        raise WorkdirError(
            f"{directory}: does not fit this model at {some(different)}: other software made it "
            f"(its {MANIFEST} has the versions). Use that, or delete {directory.parent} to train "
            "this stage again"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in wanted])


def stored_digest(directory: Path) -> str:
    """The digest in a manifest: of the arrays as they were saved."""
    return json.loads((directory / MANIFEST).read_text())["digest"]


def save_step(directory: Path, step: int, tree: Any, facts: Mapping[str, Any]) -> None:
    """Saves an interrupted stage's state, and drops those before the last `KEPT`.

    Raises:
        FloatingPointError, WorkdirError: as `save`.
    """
    save(directory / f"step_{step:09d}", tree, {**facts, "step": step})
    for older in _steps(directory)[:-KEPT]:
        files.remove(older)


def restore_step(
    directory: Path, like: Any, of: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]] | None:
    """The newest save of an interrupted stage that is sound, or None; `like`, `of`: see `restore`.

    A damaged one is told and set aside (`step_*.damaged`): the one before it is taken.
    """
    steps = _steps(directory)
    for path in reversed(steps):
        try:
            return restore(path, like, of)
        except DamagedCheckpoint as error:
            report.say(f"warning: {one_line(error)}. It is set aside, and not used")
            aside = path.with_name(path.name + ".damaged")
            files.remove(aside)
            path.replace(aside)
    if steps:
        report.say(f"warning: {directory}: none of its checkpoints is good: it starts anew")
    return None


def last_step(directory: Path) -> int | None:
    """The step of an interrupted stage's newest finished save, or None."""
    steps = [path for path in _steps(directory) if exists(path)]
    return int(steps[-1].name.removeprefix("step_")) if steps else None


def drop_steps(directory: Path) -> None:
    """Removes the saves of a stage that has ended."""
    for path in _named(directory, r"step_\d{9}(\.damaged)?"):
        files.remove(path)


def drop_unfinished(directory: Path) -> None:
    """Removes what a save left that was killed."""
    for path in _named(directory, r"(final|step_\d{9})\.saving"):
        files.remove(path)


def _steps(directory: Path) -> list[Path]:
    """Sound or not, in their order."""
    return _named(directory, r"step_\d{9}")


def _named(directory: Path, names: str) -> list[Path]:
    """What is ours by its whole name: other names are the user's."""
    return sorted(path for path in directory.glob("*") if re.fullmatch(names, path.name))
