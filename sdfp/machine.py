"""What the machine has: devices, and the memory of each."""

import contextlib
import os
from pathlib import Path

import jax

from sdfp.types import UserError, one_line

LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}
"""Of a control group of version 2 and of version 1, by what /proc/self/cgroup calls it."""


def devices() -> list:
    """Those of all processes of the run. Called before anything else asks for one.

    Raises:
        UserError: there is none of the kind that is asked for, or another program holds it.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # The latter says nothing: GPUs are asked for, and there is none.
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: there is nothing of the kind"
        raise UserError(f"no device: {one_line(error) or asked}") from error


def memory(count: int) -> int | None:
    """Bytes of each of `count` devices; None if unknown. A CPU's are those of the machine, or of
    its container or job, shared among its devices."""
    own = jax.local_devices()
    if own[0].platform != "cpu":
        return (own[0].memory_stats() or {}).get("bytes_limit")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([there, *_limits(Path("/"))]) // min(count, len(own))


def _limits(root: Path) -> list[int]:
    """Bytes that the control groups around this process may use together, of those that say so."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            top, own = root / "sys/fs/cgroup" / kind, Path(path.lstrip("/"))
            # Within a container the path may be the one outside it, and its own group at the top.
            for group in (own, *own.parents) if kind in LIMITS else ():
                with contextlib.suppress(OSError, ValueError):  # not there; "max"
                    found.append(int((top / group / LIMITS[kind]).read_text()))
    return found
