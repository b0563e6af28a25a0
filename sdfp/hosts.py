"""Several processes as one run: how they start, agree, and who writes.

Every process runs the same program on the same data, and the devices of all form one mesh
(parallel.py). The work directory is the first process's alone, and need not be on a shared disk.
What the first finds there (a finished stage, a checkpoint, an earlier result) it hands to the
others (`share`); they write to a scratch folder that is deleted, and say nothing.
"""

import collections
import contextlib
import faulthandler
import hashlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdfp import machine, signals
from sdfp.types import UserError, WorkdirError, one_line

HEARTBEAT = 30
"""Seconds after which a process that says nothing counts as gone."""
LAST = 120
"""Seconds that a process waits at its end for the others: the first one writes the report."""
LOST = ("Gloo", "UNAVAILABLE", "Socket closed", "oordination service")
"""In messages of what fails where another process is gone. JAX may see it first: then it ends this
one with 134 (SIGABRT)."""
WORKERS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
WORDS = tuple(2**bits for bits in (10, 13, 16, 19, 22, 24))
"""Of 4 bytes, that one message holds: one of these numbers."""
HELP = {
    "coordinator": "HOST:PORT of the first process, where a run has several",
    "num_processes": "how many",
    "process_id": "which one this is, from 0",
}
_joined = False  # a process is of one run
ERRORS = {error.__name__: error for error in (UserError, WorkdirError)}


class Processes(NamedTuple):
    """What the command line says of them; all None: found out from the environment."""

    coordinator: str | None = None
    """HOST:PORT of the first process; it listens at this address alone."""
    count: int | None = None
    own: int | None = None
    """This one's number, from 0."""


ALONE = Processes()


def start(given: Processes = ALONE) -> None:
    """Joins the processes of a run: those of the flags, of a SLURM step or of a TPU slice.

    Alone where there is nothing of the kind. Before anything asks for devices.

    Raises:
        UserError: flags that do not fit together, or the others do not come.
    """
    _check(given)
    if given.coordinator is None and not (_slurm() or _tpu()):
        return
    global _joined
    # Its own handler would swallow SIGTERM, and nothing here listens to it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            given.coordinator,
            given.count,
            given.own,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LAST,
            coordinator_bind_address=given.coordinator if given.own == 0 else None,
        )
        found = machine.devices()
    except (RuntimeError, ValueError) as error:
        where = given.coordinator or "the cluster's coordinator"
        raise UserError(f"processes: {where}: {one_line(error)}") from error
    _joined = True
    # Where another process is gone, JAX may abort this one from a thread of its own. What absl asks
    # for, the traces of all Python threads, would read them while they run, and may crash at it.
    faulthandler.enable(all_threads=False)
    devices = collections.Counter(device.process_index for device in found)
    if len(set(devices.values())) > 1:
        raise UserError(f"processes: each needs as many devices; they have {dict(devices)}")


def _check(given: Processes) -> None:
    if given == ALONE:
        return
    if given.coordinator is None or given.count is None or given.own is None:
        raise UserError("--coordinator, --num_processes and --process_id: give all three, or none")
    host, _, port = given.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={given.coordinator}: HOST:PORT of the first process")
    if given.count < 1 or not 0 <= given.own < given.count:
        raise UserError(
            f"--process_id={given.own}: of --num_processes={given.count} from 0 to one less"
        )


def _slurm() -> bool:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _tpu() -> bool:
    """A slice of several hosts: named in the environment, or by the machine's metadata server."""
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    if importlib.util.find_spec("libtpu") is None:
        return False
    asked = urllib.request.Request(WORKERS, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return b"," in answer.read()
    except OSError:  # no such server: not Google's cloud, or not a slice
        return False


def several() -> bool:
    """Whether the run has more processes than this one."""
    return _joined and jax.process_count() > 1  # JAX would wait for those that did not come


def first() -> bool:
    """Whether this process is the one that reads and writes the work directory."""
    return not several() or jax.process_index() == 0


@contextlib.contextmanager
def own_workdir(workdir: Path) -> Iterator[Path]:
    """`workdir` for the first process; for the others a folder that is deleted in the end, and
    nothing that they say is shown. Left by all together, unless one fails: where one ends, some
    launchers end the others, and the first one may still be saving."""
    try:
        if first():
            yield workdir
        else:
            with (
                tempfile.TemporaryDirectory(prefix="sdfp_process_") as folder,
                contextlib.redirect_stdout(io.StringIO()),
            ):
                yield Path(folder)
    except signals.Interrupted as stop:
        if stop.agreed:
            any_of(False)
        raise
    any_of(False)


def lost(error: BaseException) -> bool:
    """Whether this is what fails where another process of the run is gone."""
    return several() and any(sign in str(error) for sign in LOST)


def leave(run: Callable[[], int]) -> NoReturn:
    """Ends the process with the exit code that `run` returns.

    Of several, one that fails is gone at once: its orderly end would wait for the others, and they
    wait for it within a step. They notice that it is gone.
    """
    try:
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        if not several():
            raise
        traceback.print_exc()
        code = 134 if lost(error) else 1
        if code != 1:
            print("sdfp: another process of the run is gone; see what it says", file=sys.stderr)
    if code and several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def decide(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first process, as JSON, on all. Errors as `share`."""
    return share(lambda: (make(), {}))[0]


def share(
    make: Callable[[], tuple[Any, Mapping[str, np.ndarray]]],
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """What `make` returns on the first process, on all: a JSON value, and arrays by name.

    Raises:
        UserError, WorkdirError, signals.Interrupted: as `make` did on the first process.
        RuntimeError: it failed there otherwise.
    """
    if not several():
        return make()
    if not first():
        return _received()
    try:
        value, arrays = make()
        # One at a time: together they may be as large as the state of a training.
        shapes = [(name, list(np.shape(a)), str(np.asarray(a).dtype)) for name, a in arrays.items()]
        head = json.dumps({"value": value, "arrays": shapes})
    except BaseException as error:
        told: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, signals.Interrupted):
            told["code"], error.agreed = error.code, True  # by now all know
            signals.stopping()
        _send_text(json.dumps(told))
        raise
    _send_text(head)
    for array in arrays.values():
        _copied(_bytes(np.ascontiguousarray(array)))
    return value, arrays


def _received() -> tuple[Any, dict[str, np.ndarray]]:
    head = json.loads(_sent_text())
    if "code" in head:
        signals.stopping()
        raise signals.Interrupted(head["code"] - 128, agreed=True)
    if "error" in head:
        raise ERRORS.get(head["error"], RuntimeError)(f"the first process: {head['text']}")
    arrays = {name: np.empty(shape, dtype) for name, shape, dtype in head["arrays"]}
    for array in arrays.values():
        _copied(_bytes(array))
    return head["value"], arrays


def _send_text(text: str) -> None:
    _copied(_bytes(np.array([len(text.encode())])))
    _copied(np.frombuffer(text.encode(), np.uint8))


def _sent_text() -> str:
    _copied(_bytes(length := np.zeros(1, int)))
    _copied(text := np.zeros(length[0], np.uint8))
    return text.tobytes().decode()


def _bytes(array: np.ndarray) -> np.ndarray:
    """Those of a contiguous array, in place."""
    return array.reshape(-1).view(np.uint8)


def _copied(data: np.ndarray) -> None:
    """Bytes of the first process, in their place on all."""
    for start_ in range(0, data.size, 4 * WORDS[-1]):
        piece = data[start_ : start_ + 4 * WORDS[-1]]
        # Few shapes are few programs. Whole numbers: a sum with the others' zeros must not change
        # a bit.
        words = np.zeros(next(count for count in WORDS if 4 * count >= piece.size), np.uint32)
        if first():
            words.view(np.uint8)[: piece.size] = piece
        words = multihost_utils.broadcast_one_to_all(words)
        if not first():
            piece[:] = np.asarray(words, np.uint32).view(np.uint8)[: piece.size]


def agree(**facts: Any) -> None:
    """Refuses processes that would not compute the same: with several, each fact (JSON) must be the
    same on all.

    Raises:
        UserError: one is not, on every process.
    """
    if not several():
        return
    digest = lambda fact: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest()
    own = np.stack([np.frombuffer(digest(fact), np.uint32) for fact in facts.values()])
    found = multihost_utils.process_allgather(own)  # [processes, facts, words]
    for name, digests in zip(facts, np.moveaxis(found, 1, 0), strict=True):
        other = np.flatnonzero((digests != digests[0]).any(axis=1))
        if other.size:
            raise UserError(
                f"{name} of process {other[0]} is not that of process 0: every process must be "
                "started with the same command, software and files"
            )


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))
