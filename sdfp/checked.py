"""What comes from outside, checked: single values of a config or another file, JSON files."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdfp.types import UserError, one_line

LONGEST = 100
"""Characters of a value that a message shows."""

NUMBER = (int, float)
CELL = {
    **{"method": str, "seed": int, "metric": str, "value": NUMBER},
    **{"split?": str, "stage?": str, "stages?": [str], "varied?": dict, "precision?": str},
    "pretrain_seed?": (int, type(None)),
    **dict.fromkeys(("accuracy?", "macro_f1?", "micro_f1?", "distance?"), NUMBER),
    **dict.fromkeys(("train_loss?", "train_accuracy?"), NUMBER),
    **dict.fromkeys(("test_loss?", "validation_loss?"), NUMBER),
}
CANDIDATE = {
    "settings": dict,
    "values": [(*NUMBER, type(None))],
    "mean": (*NUMBER, type(None)),
    "errors?": [str],
}
START = {
    **dict.fromkeys(("kind?", "path?", "digest?"), str),
    **{key: [str] for key in ("loaded?", "initialised?", "left_out?", "notes?")},
}
DATA = {
    **{"classes?": int, "counts?": {str: int}, "remarks?": [str], "broken?": {str: str}},
    "held_out?": {str: str},
}
RESULTS = {
    "complete?": bool,
    "config": {
        **{"name": str, "methods": [str], "evaluate_on": str, "seeds?": [int]},
        **dict.fromkeys(("data?", "init?", "method?", "run?", "stages?"), dict),
    },
    **{"data?": DATA, "source?": DATA, "init?": START, "teachers?": {str: START}},
    **{"model?": dict, "versions?": dict, "pretrain_seeds?": int, "device?": str},
    **{"precision?": str, "command?": str, "summary?": dict},
    "stages?": [
        {
            **{"name": str, "steps?": int, "seconds?": NUMBER, "examples_per_second?": NUMBER},
            **dict.fromkeys(("digest?", "encoder_digest?", "init_digest?", "key?"), str),
            **{"teacher_digest?": (str, type(None)), "warning?": str},
        }
    ],
    "tuning?": {
        str: {
            **{"split": str, "metric": str, "candidates": [CANDIDATE]},
            "chosen?": (int, type(None)),
        }
    },
    "results?": [CELL],
    "failed?": [
        {
            **{"method": str, "seed": (int, type(None)), "error": str, "ours?": bool},
            **{"pretrain_seed?": (int, type(None)), "varied?": (dict, type(None))},
        }
    ],
}
"""The shape (see `misfit`) of a results.json. Older ones lack what has a question mark."""


def shown(value: Any) -> str:
    """`repr` of a value, as much of it as a message of one line can hold."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a list in a list in ...
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def nearest(key: Any, options: Iterable) -> str:
    """A hint at the option that was perhaps meant, or nothing."""
    words = [str(option) for option in options]
    near = difflib.get_close_matches(shown(key).strip("'"), words, 1, 0.0)
    return f' Did you mean "{near[0]}"?' if near else ""


def one_of(key: str, value, options: Iterable) -> None:
    """Raises UserError where `value` is none of the options; `key` names it to the user."""
    options = list(options)
    if value not in options:
        listed = ", ".join(map(str, options))
        raise UserError(f"{key}: {shown(value)} is none of {listed}.{nearest(value, options)}")


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
            raise UserError(f"{key}: a finite number is expected; got {shown(raw)}") from None
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise UserError(f"{key}: {kind.__name__} is expected; got {shown(raw)}")
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
            raise UserError(f"{key}: must be {words}; got {shown(raw)}")
    return raw


def misfit(value: Any, shape: Any, at: str = "") -> str:
    """What is wrong with a JSON value, in words; "" where it has the shape.

    Args:
        shape: a type or several (a bool is no number, `object` is anything); [shape] of a list's
            elements; {str: shape} of an object's values, whatever their keys; {"key": shape,
            "key?": shape} of an object that has the first key and may have the second. Further
            keys are not looked at.
        at: where the value is.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _no(at, "list")
        found = (misfit(each, shape[0], f"{at}[{i}]") for i, each in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _no(at, "object")
        if str in shape:
            shape = dict.fromkeys(value, shape[str])
        dot = f"{at}." if at else ""
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name not in value and name == key:
                return f"{dot}{name} is missing"
            if name in value and (wrong := misfit(value[name], inner, f"{dot}{name}")):
                return wrong
        return ""
    kinds = shape if isinstance(shape, tuple) else (shape,)
    if object in kinds or (isinstance(value, kinds) and (bool in kinds or type(value) is not bool)):
        return ""
    words = [word for kind, word in _WORDS.items() if kind in kinds]
    return _no(at, words[-1])


_WORDS = {
    **{str: "text", bool: "true or false", int: "whole number", float: "number"},
    **{dict: "object", list: "list"},
}
"""Of several kinds, the last one is what the value is called: a whole number is a number."""


def _no(at: str, what: str) -> str:
    return f"{at or 'the whole of it'} is no {what}"


def read_json(path: Path, advice: str, shape: Any = dict) -> Any:
    """What a JSON file holds, of the given shape (see `misfit`).

    Args:
        advice: what to do where it is damaged.

    Raises:
        UserError: it cannot be read, is of another shape, or a number in it is not finite.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {one_line(error)}; {advice}") from None
    if wrong := misfit(value, shape):
        raise UserError(f"{path}: damaged: {wrong}; {advice}")
    return value


def _finite(text: str) -> float:
    """Of NaN and Infinity, too, which JSON does not have and Python reads all the same."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def read_results(path: Path) -> dict[str, Any]:
    """What is in a results.json. Raises UserError where it cannot be read, or is another file."""
    advice = "run the same command again, which writes it anew"
    results = read_json(path, advice, object)
    config = results.get("config") if isinstance(results, dict) else None
    if not isinstance(config, dict) or not {"name", "methods", "evaluate_on"} <= config.keys():
        raise UserError(f"{path}: not the results of a run; name the work directory of one")
    if wrong := misfit(results, RESULTS):
        raise UserError(f"{path}: damaged: {wrong}; {advice}")
    return results
