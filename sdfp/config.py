"""ml_collections ConfigDict -> settings. A mistake is one line that names the key."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import config_flags

from sdfp import settings
from sdfp.types import UserError


def parse_flags(argv: Sequence[str]) -> list[str]:
    """`absl.app.run`'s flags parser: every mistake on the command line is a `UserError`."""
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    except AttributeError as error:
        raise UserError(_unknown_override(argv, error)) from None
    if left[1:]:
        raise UserError(
            f"Arguments not understood: {' '.join(left[1:])}. Overrides are written --config.key=value"
        )
    return left


def _unknown_override(argv: Sequence[str], error: AttributeError) -> str:
    """ml_collections names only the last part of an unknown key: find the whole one."""
    named = re.search(r"\w+", str(error))
    for argument in argv[1:]:
        key = re.match(r"--?config\.([\w.]+)", argument)
        if named and key and named.group() in key.group(1).split("."):
            near = re.search(r'Did you mean "(\w+)"', str(error))
            meant = f' Did you mean "{near.group(1)}"?' if near else ""
            return f"--config.{key.group(1)}: no such key.{meant} All keys are in configs/common.py"
    raise error


def define_config_flag(default: str) -> flags.FlagHolder:
    """`--config FILE[:VARIANT]` and `--config.key=value`."""
    return config_flags.DEFINE_config_file("config", default, "FILE[:VARIANT]", lock_config=True)


def values_of(flag: flags.FlagHolder):
    """The ConfigDict of a parsed flag.

    Raises:
        UserError: the file is missing, or says itself what is wrong with its variant.
    """
    try:
        return flag.value
    except (OSError, ValueError) as error:
        raise UserError(f"--config: {' '.join(str(error).split())}") from None


def parse(
    config: Mapping[str, Any], families: Mapping[str, type], methods: Mapping[str, type]
) -> settings.Experiment:
    """Checks every key, type and range of a config.

    Args:
        config: a ConfigDict or dict with the keys of configs/common.py.
        families: model family name -> its settings dataclass.
        methods: method name -> its settings dataclass.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range, NaN.
    """
    raw = _plain(config)
    model = dict(_block(raw, "model"))
    family = model.pop("name", None)
    _one_of("model.name", family, families)
    given = dict(_block(raw, "method"))
    _same_keys("method", given, methods)
    parsed = {
        "model_name": family,
        "model": _parse(families[family], model, "model"),
        "method": {
            name: _parse(cls, given[name], f"method.{name}") for name, cls in methods.items()
        },
    }
    rest = {key: value for key, value in raw.items() if key not in ("model", "method")}
    fields = [f.name for f in dataclasses.fields(settings.Experiment) if f.name not in parsed]
    _same_keys("", rest, fields)
    hints = get_type_hints(settings.Experiment)
    metadata = {f.name: f.metadata for f in dataclasses.fields(settings.Experiment)}
    for key in fields:
        parsed[key] = _value(hints[key], metadata[key], rest[key], key)
    experiment = settings.Experiment(**parsed)
    _check_across(experiment, methods)
    return experiment


def _check_across(experiment: settings.Experiment, methods: Iterable[str]) -> None:
    """What no single key can tell."""
    for name in experiment.methods:
        _one_of("methods", name, methods)
    for key, names in (("methods", experiment.methods), ("seeds", experiment.seeds)):
        if not names or len(set(names)) != len(names):
            raise UserError(f"config.{key}: give each of them once, at least one; got {names}")
    if any(seed < 0 for seed in experiment.seeds):
        raise UserError(f"config.seeds: must not be negative; got {experiment.seeds}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", experiment.name):
        raise UserError(
            f"config.name: letters, digits, '.', '_' and '-' only; got {experiment.name!r}"
        )
    for name, recipe in vars(experiment.stages).items():
        if recipe.warmup_steps >= recipe.steps:
            raise UserError(
                f"config.stages.{name}.warmup_steps: must be below steps ({recipe.steps}); got {recipe.warmup_steps}"
            )
    for key, data in (("data", experiment.data), ("source", experiment.source)):
        for part in ("mean", "std"):
            values = getattr(data, part)
            if len(values) != data.channels:
                raise UserError(
                    f"config.{key}.{part}: needs {data.channels} values, one per channel; got {values}"
                )
        if min(data.std) <= 0:
            raise UserError(f"config.{key}.std: must be above 0; got {data.std}")
    if experiment.init.kind == "weights" and not experiment.init.weights:
        raise UserError(
            "config.init.weights: give a Hugging Face id, a folder or a .safetensors file"
        )
    if experiment.evaluate_on == "validation" and not experiment.data.validation_fraction:
        raise UserError(
            "config.evaluate_on=validation needs config.data.validation_fraction above 0"
        )


def _plain(value):
    """ConfigDicts as dicts, all the way down."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _block(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    block = raw.get(key)
    if not isinstance(block, Mapping):
        raise UserError(f"config.{key}: missing, or not a block of keys; see configs/common.py")
    return block


def _same_keys(prefix: str, given: Iterable[str], expected: Iterable[str]) -> None:
    dot = f"{prefix}." if prefix else ""
    given, expected = set(given), set(expected)
    for key in sorted(given - expected):
        near = difflib.get_close_matches(key, expected, 1, 0.0)
        meant = f' Did you mean "{dot}{near[0]}"?' if near else ""
        raise UserError(f"config.{dot}{key}: no such key.{meant} All keys are in configs/common.py")
    for key in sorted(expected - given):
        raise UserError(f"config.{dot}{key}: missing; see configs/common.py")


def _one_of(key: str, value, options: Iterable) -> None:
    options = list(options)
    if value not in options:
        near = difflib.get_close_matches(str(value), [str(o) for o in options], 1, 0.0)
        meant = f' Did you mean "{near[0]}"?' if near else ""
        raise UserError(
            f"config.{key}: {value!r} is none of {', '.join(map(str, options))}.{meant}"
        )


def _parse(cls: type, raw: Any, prefix: str):
    """One dataclass from one block of keys."""
    if not isinstance(raw, Mapping):
        raise UserError(f"config.{prefix}: a block of keys is expected; got {raw!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    _same_keys(prefix, raw, fields)
    return cls(**{k: _value(hints[k], fields[k].metadata, raw[k], f"{prefix}.{k}") for k in fields})


def _value(kind: Any, metadata: Mapping, raw: Any, key: str):
    """One checked value."""
    if dataclasses.is_dataclass(kind):
        return _parse(kind, raw, key)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(raw, (tuple, list)):
            raise UserError(f"config.{key}: a tuple is expected; got {raw!r}")
        return tuple(_scalar(get_args(kind)[0], metadata, item, key) for item in raw)
    return _scalar(kind, metadata, raw, key)


def _scalar(kind: type, metadata: Mapping, raw: Any, key: str):
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        raw = float(raw)
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise UserError(f"config.{key}: {kind.__name__} is expected; got {raw!r}")
    if kind is float and not math.isfinite(raw):
        raise UserError(f"config.{key}: a finite number is expected; got {raw!r}")
    if "options" in metadata:
        _one_of(key, raw, metadata["options"])
    low, high, above, below = (metadata.get(name) for name in ("low", "high", "above", "below"))
    for bad, words in (
        (low is not None and raw < low, f"at least {low}"),
        (high is not None and raw > high, f"at most {high}"),
        (above is not None and raw <= above, f"above {above}"),
        (below is not None and raw >= below, f"below {below}"),
    ):
        if bad:
            raise UserError(f"config.{key}: must be {words}; got {raw!r}")
    return raw
