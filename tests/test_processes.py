"""Several processes are one run: the same numbers as one process with all devices, bit for bit."""

import os
import signal
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sdfp import hosts, preparation, signals
from sdfp.hosts import Processes
from sdfp.methods.interface import Teacher
from sdfp.types import UserError, WorkdirError

HERE = Path(__file__).parent


def start(folder: Path, count: int) -> list[dict[str, np.ndarray]]:
    """What each of `count` processes with 8 devices in all found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // count)}
    worker = (sys.executable, HERE / "process_worker.py")
    commands = [
        [*worker, folder / f"{own}.npz", coordinator, str(count), str(own)] for own in range(count)
    ]
    processes = [
        subprocess.Popen(c, cwd=HERE.parent, env=os.environ | devices, stderr=subprocess.PIPE)
        for c in commands
    ]
    try:
        told = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, told
    return [dict(np.load(folder / f"{own}.npz")) for own in range(count)]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    (alone,) = start(tmp_path, 1)
    first, second = start(tmp_path, 2)
    assert first.keys() == second.keys() == alone.keys()
    assert len(alone["jit0/self_distill/loss"]) == len(alone["parts/mars/loss"]) == 6
    each = {"any", "jit/read", "pmap/read"}
    for name in alone.keys() - each:
        for found in (first, second):
            np.testing.assert_array_equal(found[name], alone[name], err_msg=name)
            assert found[name].dtype == alone[name].dtype
    for backend in ("jit", "pmap"):
        reversed_rows = np.arange(32).reshape(16, 2)[::-1]
        np.testing.assert_array_equal(alone[f"{backend}/rows"].reshape(16, 2), reversed_rows)
        # Of a batch's rows each process reads those of its own devices, once.
        assert [found[f"{backend}/read"] for found in (alone, first, second)] == [16, 8, 8]
    # The second process raised a flag; both see it.
    assert [list(found["any"]) for found in (alone, first, second)] == [
        [False, False],
        [True, False],
        [True, False],
    ]


@pytest.fixture
def wire(monkeypatch):
    """`hosts.share` of two processes, one after the other: what the first one sends is kept, and
    handed to the second."""
    sent = []

    def share(own, make):
        left = list(sent)

        def broadcast(words):
            assert words.dtype == np.uint32
            if own == 0:
                sent.append(words.copy())
                return words
            assert not words.any()  # they are added up
            assert words.shape == left[0].shape
            return left.pop(0)

        monkeypatch.setattr(hosts, "several", lambda: True)
        monkeypatch.setattr(hosts, "first", lambda: own == 0)
        monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", broadcast)
        found = hosts.share(make)
        assert own == 0 or not left
        return found

    share.sent = sent
    return share


def never():
    raise AssertionError("only the first process makes it")


def test_a_message_holds_every_bit(wire, monkeypatch):
    monkeypatch.setattr(hosts, "WORDS", (2, 16))  # one array takes several messages
    arrays = {
        "bits": np.float32([-0.0, np.inf, 1e-45]),
        "empty": np.zeros((0, 3), np.int8),
        "scalar": np.array(7, np.int64),
        "rounded": np.array([1.5, np.nan], "bfloat16"),
        "turned": np.arange(99, dtype=np.int16).reshape(9, 11).T,
    }
    wire(0, lambda: ({"é": [1, None]}, arrays))
    assert {words.size for words in wire.sent} == {2, 16}
    value, found = wire(1, never)
    assert value == {"é": [1, None]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_arrays_are_sent_without_a_second_copy(wire):
    """A state may fill half of the memory."""
    arrays = {str(i): np.full(2**23, i, np.float32) for i in range(4)}  # 32 MiB each
    for own, make, more in ((0, lambda: (None, arrays), 0), (1, never, 4)):
        size = 4 * hosts.WORDS[-1]
        tracemalloc.start()
        wire(own, make)
        kept = sum(words.nbytes for words in wire.sent) if own == 0 else 0  # by this test
        peak = tracemalloc.get_traced_memory()[1] - kept
        tracemalloc.stop()
        assert peak < more * 2**25 + 1.5 * size
    _, found = wire(1, never)
    assert all((found[str(i)] == i).all() for i in range(4))


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no such"), UserError),
        (WorkdirError("no such"), WorkdirError),
        (ZeroDivisionError("no such"), RuntimeError),
    ],
)
def test_what_fails_on_the_first_fails_on_all(wire, error, kind):
    """A mistake is one on all."""
    with pytest.raises(type(error)):
        wire(0, lambda: fail(error))
    with pytest.raises(kind, match="first process: no such"):
        wire(1, never)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_stops_the_first_stops_all(wire, number, code):
    """Not a fault of theirs: launchers start them again."""
    with pytest.raises(signals.Interrupted):
        wire(0, lambda: fail(signals.Interrupted(number)))
    with pytest.raises(signals.Interrupted, match=number.name) as caught:
        wire(1, never)
    assert caught.value.code == code


def test_teachers_that_differ_are_seen_before_training(monkeypatch):
    """Each process reads the one on its own disk."""
    digests = []

    def gathered(own):
        digests.append(own)
        return np.stack([own, digests[0]])

    def agree(weight, depth):
        teacher = Teacher(None, {"head": np.full(2, weight)}, {"depth": depth})
        target = SimpleNamespace(data=SimpleNamespace(fingerprint="", notes={}))
        context = SimpleNamespace(teachers={"a/run": (teacher, [])}, target=target, settings="")
        preparation._agree(context, {})

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gathered)
    for _ in range(2):
        agree(1.0, 2)
    for weight, depth in ((2.0, 2), (1.0, 3)):
        with pytest.raises(UserError, match=r"^teachers of process 1 is not that"):
            agree(weight, depth)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Processes("localhost:1"), "all three"),
        (Processes(None, 2, 0), "all three"),
        (Processes("localhost", 2, 0), "HOST:PORT"),
        (Processes(":80", 2, 0), "HOST:PORT"),
        (Processes("localhost:99999", 2, 0), "HOST:PORT"),
        (Processes("localhost:80", 2, 2), "from 0"),
        (Processes("localhost:80", 0, 0), "from 0"),
        (Processes("localhost:80", 2, -1), "from 0"),
    ],
)
def test_flags_that_do_not_fit_together(given, told):
    with pytest.raises(UserError, match=told):
        hosts.start(given)


def test_alone_there_is_nothing_to_start(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    hosts.start()
    hosts.agree(data="any")
    with hosts.own_workdir(tmp_path) as own:
        assert own == tmp_path
    assert hosts.decide(lambda: 3) == 3
