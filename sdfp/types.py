"""Names for the shapes of things that travel between the modules."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Params = Mapping[str, Any]
"""A nested dict of float arrays, e.g. `{"encoder": {...}, "decoder": {...}}`."""

Batch = Mapping[str, jax.Array]
"""Arrays with a leading example axis. Always holds `index` [examples] (position
in the data set) and `weight` [examples] (1 for an example, 0 for padding)."""

Key = jax.Array
"""A typed JAX random key."""

LossFn = Callable[[Params, Any, Batch, Key], dict[str, jax.Array]]
"""`(params, frozen, batch, key) -> {term: [examples]}`. Values are per example:
only the training step reduces them, so that padding, accumulation and devices
cannot change the mean. `frozen` is whatever is read but never trained; a loss that reads
`batch["target"]` must not count on it: with a table of targets it is None."""


class UserError(Exception):
    """A mistake of the user's: told in one line (what, where, what to do), exit code 2.

    Made with one line, or with one for each of several mistakes.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each mistake."""
        return tuple(one_line(problem, limit=None) for problem in self.args)

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


class WorkdirError(UserError):
    """What is in the work directory is damaged or another run's: nothing goes on there."""


def one_line(error: object, limit: int | None = 300) -> str:
    """A library's message for use in a `UserError`."""
    return " ".join(str(error).split())[:limit]


def some(names: Sequence[str]) -> str:
    """A few names and how many more."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
