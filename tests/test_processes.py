"""Several processes are one run: the same numbers as one process with all devices, bit for bit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdfp import hosts
from sdfp.hosts import Processes
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
    for name in alone.keys() - {"any"}:
        for found in (first, second):
            np.testing.assert_array_equal(found[name], alone[name], err_msg=name)
            assert found[name].dtype == alone[name].dtype
    # The second process raised a flag; both see it.
    assert [list(found["any"]) for found in (alone, first, second)] == [
        [False, False],
        [True, False],
        [True, False],
    ]


def test_a_message_holds_every_bit():
    arrays = {
        "bits": np.float32([-0.0, np.inf, 1e-45]),
        "empty": np.zeros((0, 3), np.int8),
        "scalar": np.array(7, np.int64),
    }
    value, found = hosts._unpack(hosts._pack({"value": {"é": [1, None]}}, arrays))
    assert value == {"é": [1, None]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "kind"), [("UserError", UserError), ("WorkdirError", WorkdirError)]
)
def test_a_mistake_found_by_the_first_is_one_on_all(name, kind):
    with pytest.raises(kind, match="first process: no such"):
        hosts._unpack(hosts._pack({"error": name, "text": "no such"}, {}))


def test_other_errors_are_no_mistake_of_the_users():
    with pytest.raises(RuntimeError, match="first process: broken"):
        hosts._unpack(hosts._pack({"error": "ZeroDivisionError", "text": "broken"}, {}))


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
