"""What comes from outside, checked: single values of a config or another file, results.json."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdfp.types import UserError, one_line


def nearest(key: Any, options: Iterable) -> str:
    """A hint at the option that was perhaps meant, or nothing."""
    near = difflib.get_close_matches(str(key), [str(option) for option in options], 1, 0.0)
    return f' Did you mean "{near[0]}"?' if near else ""


def one_of(key: str, value, options: Iterable) -> None:
    """Raises UserError where `value` is none of the options; `key` names it to the user."""
    options = list(options)
    if value not in options:
        listed = ", ".join(map(str, options))
        raise UserError(f"{key}: {value!r} is none of {listed}.{nearest(value, options)}")


def scalar(kind: type, metadata: Mapping, raw: Any, key: str):
    """`raw`, where it is of type `kind` and within the limits that `settings.number` and
    `settings.choice` keep as a field's metadata.

    Raises:
        UserError: it is not; `key` names it to the user.
    """
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        try:
            raw = float(raw)
        except OverflowError:
            raise UserError(f"{key}: a finite number is expected; got {str(raw)[:20]}...") from None
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise UserError(f"{key}: {kind.__name__} is expected; got {raw!r}")
    if kind is float and not math.isfinite(raw):
        raise UserError(f"{key}: a finite number is expected; got {raw!r}")
    if "options" in metadata:
        one_of(key, raw, metadata["options"])
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    for bad, words in (
        (low is not None and raw < low, f"at least {low}"),
        (high is not None and raw > high, f"at most {high}"),
        (above is not None and raw <= above, f"above {above}"),
        (below is not None and raw >= below, f"below {below}"),
    ):
        if bad:
            raise UserError(f"{key}: must be {words}; got {raw!r}")
    return raw


def read_results(path: Path) -> Any:
    """What is in a results.json. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON: {one_line(error)}; run sdfp.main on it again"
        ) from None
