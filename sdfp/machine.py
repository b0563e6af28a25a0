"""What the machine has: devices, and the memory of each."""

import os

import jax

from sdfp.types import UserError, one_line


def devices() -> list[jax.Device]:
    """Those of all processes of the run. Called before anything else asks for one.

    Raises:
        UserError: there is none of the kind that is asked for, or another program holds it.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # The latter says nothing: GPUs are asked for, and there is none.
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms}: there is nothing of the kind"
        raise UserError(f"no device: {one_line(error) or asked}") from error


def memory(count: int) -> int | None:
    """Bytes of each of `count` devices; None if unknown. A CPU's are those of the machine, shared
    among its devices."""
    own = jax.local_devices()
    if own[0].platform != "cpu":
        return (own[0].memory_stats() or {}).get("bytes_limit")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return there // min(count, len(own))
