"""The memory of a CPU is what the process may use of it."""

import os

import pytest

from sdfp import machine

THERE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NONE = 2**63 - 4096  # what version 1 says where there is no limit


@pytest.fixture
def groups(tmp_path):
    """Writes what the kernel would show: the lines of /proc/self/cgroup, and files of limits."""

    def write(lines, files):
        everything = {"proc/self/cgroup": lines}
        everything |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
        for name, content in everything.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content + "\n")
        return tmp_path

    return write


def test_the_limit_of_a_container(groups):
    container = groups("0::/", {"memory.max": "8000"})
    assert machine._limits(container) == [8000]


def test_the_groups_above_count_too(groups):
    """As of a step of a SLURM job."""
    job = {"slurm/job/step/memory.max": "max", "slurm/job/memory.max": "5000"}
    assert machine._limits(groups("0::/slurm/job/step", job)) == [5000]


def test_version_1_seen_from_within(groups):
    """The path is the one outside."""
    lines = "9:cpu,cpuacct:/\n4:memory:/docker/1234\n0::/"
    files = {"memory/memory.limit_in_bytes": "7000", "unified/memory.max": "1"}
    assert machine._limits(groups(lines, files)) == [7000]


def test_no_limit_and_no_groups(groups, tmp_path):
    assert machine._limits(tmp_path) == []
    assert machine._limits(groups("0::/", {})) == []


@pytest.mark.parametrize(
    ("limits", "memory"), [([], THERE), ([THERE * 2, THERE // 4], THERE // 4), ([NONE], THERE)]
)
def test_the_smallest_is_there(monkeypatch, limits, memory):
    monkeypatch.setattr(machine, "_limits", lambda root: limits)
    assert machine.memory(1) == memory
