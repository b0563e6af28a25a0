"""A stage on disk: whose it is, whether it is finished, and its parameters."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp import checked, checkpoint, files, hosts, report, sealed, signals
from sdfp.types import Params, UserError, WorkdirError

MODEL = "model.json"
CARD = {"family": str, "settings": dict, "input": {"kind": str}, "class_names": [str]}
"""Its shape, see `checked.misfit`."""


class Outcome(NamedTuple):
    """What a finished stage left."""

    params: Params
    record: dict[str, Any]
    """For results.json: key, name, steps, seconds and examples_per_second (compilation and
    checkpoints included, probes not), and digests: init_digest of what the stage started from,
    teacher_digest of its teacher (the encoder_digest of an earlier stage), digest of all its
    parameters."""
    directory: Path
    new: bool
    """Whether this run made it, or an earlier one."""


def keep(
    workdir: Path,
    name: str,
    identity: Mapping[str, Any],
    card: Mapping[str, Any],
    make: Callable,
) -> Outcome:
    """Reads the finished parameters of this name, or makes and saves them.

    Args:
        name: of the stage: its folder is `workdir`/stages/`name`.
        identity: all that changes the parameters; its hash is the key.
        card: how to use them elsewhere (`trained.to_json`), written to model.json.
        make: (directory) -> (parameters on the host, facts for the record). Signals are deferred
            until what it made is saved.

    Raises:
        WorkdirError: made with another identity, or damaged; no folder is in the place of one.
    """
    directory = workdir / "stages" / name
    final = directory / "final"
    hosts.agree(**{f"stage {name}": key(identity)})
    new = hosts.decide(lambda: _open(directory, final, _flat(identity), card))
    facts = {"key": key(identity), "name": name}
    if new:
        with signals.deferred():
            params, more = make(directory)
            if hosts.first():
                with signals.saving():
                    checkpoint.save(final, params, {**facts, **more})
            if hosts.any_of(signals.asked()):
                signals.stopping()
    record, flat = hosts.share(lambda: _read(final, directory, facts))
    if not new:
        report.say(f"{name}: finished, verified and read")
    return Outcome(checkpoint.unflatten(flat), record, directory, new)


def _open(directory: Path, final: Path, identity: dict[str, Any], card: Mapping[str, Any]) -> bool:
    """Makes or claims the folder of a stage. Returns whether it is to be trained."""
    if os.path.lexists(final) and not final.is_dir():
        raise files.blocked(final)  # a result on another disk, perhaps: not to be trained again
    _claim(directory, identity)
    checkpoint.drop_unfinished(directory)
    # Class names are in no identity: labels are numbers to training. All else in it is, or is of no
    # use to this stage's parameters.
    path = directory / MODEL
    known = told_if_damaged(path, "it is written again", CARD) if path.is_file() else None
    if not known or known["class_names"] != list(card["class_names"]):
        files.write_json(path, sealed.seal(card))
    return not final.is_dir()


def key(identity: Mapping[str, Any]) -> str:
    """A stage's identity in 16 characters."""
    return sealed.digest(_flat(identity))[:16]


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """With dots, as it will be read back."""
    return json.loads(json.dumps(_dotted(identity)))


def told_if_damaged(path: Path, advice: str, shape: Any) -> dict[str, Any] | None:
    """As `sealed.read`; None of a damaged file, which is told."""
    try:
        return sealed.read(path, advice, shape)
    except UserError as error:
        report.say(f"warning: {error}")
        return None


def _read(
    final: Path, directory: Path, of: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Record and parameters by name of a finished stage."""
    try:
        params, facts = checkpoint.restore(final, of=of)
    except checkpoint.DamagedCheckpoint as error:
        raise WorkdirError(f"{error}. Delete {directory} to train this stage again") from error
    return {**facts, "digest": checkpoint.stored_digest(final)}, checkpoint.flatten(params)


def _claim(directory: Path, identity: dict[str, Any]) -> None:
    """Writes the identity of a new stage; refuses a directory that holds another one."""
    path = directory / "identity.json"
    if not path.exists():
        files.write_json(path, identity)
        return
    known = _known(path)
    _refuse(directory, known, identity, {*known, *identity})


def _known(path: Path) -> dict[str, Any]:
    # The checkpoints hold a digest of it: whose they are is still checked without this file.
    advice = "delete this file: it is written again, and the checkpoints beside it are kept"
    try:
        return checked.read_json(path, advice)
    except UserError as error:
        raise WorkdirError(str(error)) from None


def check_known(directory: Path, identity: Mapping[str, Any]) -> None:
    """Refuses a directory that holds a stage of another identity, as far as it is known.

    Args:
        identity: a part of that of the stage.

    Raises:
        WorkdirError: the directory's differs there.
    """
    path, flat = directory / "identity.json", _flat(identity)
    if path.exists():
        _refuse(directory, _known(path), flat, flat)


def _refuse(directory: Path, known: Mapping, identity: Mapping, keys: Iterable[str]) -> None:
    different = [key for key in sorted(keys) if known.get(key) != identity.get(key)]
    if different:
        told = ", ".join(
            f"{key} ({known.get(key)} there, {identity.get(key)} now)" for key in different
        )
        raise WorkdirError(
            f"{directory} was made with other settings: {told}. Use another --workdir, or delete "
            "this folder to make the stage again"
        )


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
