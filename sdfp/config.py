"""Flags and config file -> ConfigDict -> settings. A mistake is one line that names the key."""

import dataclasses
import inspect
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags

from sdfp import checked, settings
from sdfp.types import UserError, one_line

MAX_SEED = 2**32 - 1
"""JAX reads 32 bits of a seed: a larger one would repeat a smaller one's run."""


def parse_flags(argv: Sequence[str]) -> list[str]:
    """`absl.app.run`'s flags parser: every mistake on the command line is a `UserError`.

    Returns:
        The program's name and the overrides, `--config.key=value`, for `read`.
    """
    overrides = [argument for argument in argv if re.match(r"--?(no)?config\.", argument)]
    try:
        program, *left = flags.FLAGS([a for a in argv if a not in overrides])
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    if left:
        raise UserError(
            f"Arguments not understood: {' '.join(left)}. Overrides are written --config.key=value"
        )
    return [program, *overrides]


def read(file: str, overrides: Sequence[str] = ()) -> Any:
    """What a config file returns, with single values changed.

    Args:
        file: "FILE" or "FILE:VARIANT"; the variant is handed to the file's `get_config`.
        overrides: "--config.key=value" each.

    Returns:
        A ConfigDict.

    Raises:
        UserError: no such file, variant or key, or a value that cannot be read. What else
            goes wrong inside the file is its own error.
    """
    config = _get_config(*file.split(":", 1))
    known = dict(_items(config))
    arguments = []
    for override in overrides:
        name, equals, text = override.partition("=")
        key = name.split("config.", 1)[1]
        if key not in known:
            raise UserError(
                f"--config.{key}: no such key.{checked.nearest(key, known)} {_ALL_KEYS}"
            )
        if isinstance(known[key], ConfigDict) and not text.startswith("{"):
            raise UserError(f"--config.{key}: a block of keys; set one of them, --config.{key}.X=Y")
        # ml_collections reads a,b as one word, but takes an element at a time.
        words = isinstance(known[key], tuple) and re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+", text)
        arguments += [name + equals + part for part in (text.split(",") if words else [text])]
    parser = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=arguments)
    try:
        parser(["", *arguments])
    except (flags.Error, ValueError, RecursionError) as error:  # --noconfig.key=1, ---...-1
        raise UserError(one_line(error)) from None
    return flag.value


def _get_config(path: str, *variant: str) -> ConfigDict:
    root = str(Path(__file__).parents[1])  # config files import `configs.common` from anywhere
    if root not in sys.path:
        sys.path.append(root)
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"--config={path}: no such Python file")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(f"--config={path}: it has no function get_config")
    try:
        inspect.signature(get_config).bind(*variant)
    except TypeError:
        raise UserError(f"--config={path}: its get_config cannot take {variant}") from None
    try:
        config = get_config(*variant)
    except ValueError as error:
        if not variant:
            raise
        raise UserError(f"--config={path}:{variant[0]}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: its get_config returns no ConfigDict; got {config!r}")
    return config


def _items(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value and every block of values, by its dotted key."""
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, ConfigDict):
            yield from _items(value, f"{prefix}{key}.")


_KEYS = "configs/common.py (of texts configs/common_text.py)"
_ALL_KEYS = f"All keys are in {_KEYS}"


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
    checked.one_of("config.model.name", family, families)
    # A method with nothing to set needs no block.
    given = {name: {} for name, cls in methods.items() if not dataclasses.fields(cls)}
    given |= _block(raw, "method")
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
    hints |= dict.fromkeys(("data", "source"), families[family].DATA)
    metadata = {f.name: f.metadata for f in dataclasses.fields(settings.Experiment)}
    for key in fields:
        parsed[key] = _value(hints[key], metadata[key], rest[key], key)
    experiment = settings.Experiment(**parsed)
    _check_across(experiment, methods)
    return experiment


def parse_grid(texts: Iterable[str], methods: Mapping[str, type]) -> dict[str, tuple]:
    """Reads `--tune` arguments, "method.key=a,b,c" each.

    Args:
        methods: method name -> its settings dataclass.

    Returns:
        "method.key" -> the values.

    Raises:
        UserError: no such key, a value of another type or out of its range, one value twice.
    """
    known = {
        f"{name}.{field.name}": (get_type_hints(cls)[field.name], field.metadata)
        for name, cls in methods.items()
        for field in dataclasses.fields(cls)
    }
    grid: dict[str, tuple] = {}
    for text in texts:
        key, _, values = text.partition("=")
        where = f"--tune {key}"
        if key not in known:
            raise UserError(f"{where}: no such setting.{checked.nearest(key, known)} {_ALL_KEYS}")
        if key in grid:
            raise UserError(f"{where}: given twice; join the values by commas")
        kind, metadata = known[key]
        grid[key] = tuple(
            checked.scalar(kind, metadata, _literal(kind, value), where)
            for value in values.split(",")
        )
        if len(set(grid[key])) != len(grid[key]):
            raise UserError(f"{where}: give each value once; got {values}")
    return grid


def _literal(kind: type, text: str) -> Any:
    """The text as a value of that type, or as it is: `checked.scalar` tells what is wrong."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        return text


def _check_across(experiment: settings.Experiment, methods: Iterable[str]) -> None:
    """What no single key can tell."""
    for name in experiment.methods:
        for part in name.split("+"):
            checked.one_of("config.methods", part, methods)
    for key, names in (("methods", experiment.methods), ("seeds", experiment.seeds)):
        if not names or len(set(names)) != len(names):
            raise UserError(f"config.{key}: give each of them once, at least one; got {names}")
    seeds = [("seed", experiment.seed), ("init.seed", experiment.init.seed)]
    for key, seed in seeds + [("seeds", seed) for seed in experiment.seeds]:
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"config.{key}: must be from 0 to {MAX_SEED}; got {seed}")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", experiment.name):
        raise UserError(
            "config.name: letters, digits, '_', '-' and, but not first, '.'; "
            f"got {experiment.name!r}"
        )
    for name, recipe in vars(experiment.stages).items():
        if recipe.warmup_steps >= recipe.steps:
            raise UserError(
                f"config.stages.{name}.warmup_steps: must be below steps ({recipe.steps}); "
                f"got {recipe.warmup_steps}"
            )
        if recipe.augment and isinstance(experiment.data, settings.TextData):
            raise UserError(f"config.stages.{name}.augment: texts have no augmentation; set False")
    for key, data in (("data", experiment.data), ("source", experiment.source)):
        if isinstance(data, settings.Data):
            _check_normalisation(key, data)
    kind, weights = experiment.init.kind, experiment.init.weights
    data = experiment.data
    if kind == "weights" and isinstance(data, settings.TextData) and not data.tokenizer:
        raise UserError(
            "config.data.tokenizer: weights have a tokenizer; give its folder or hub id"
        )
    if kind == "weights" and not weights:
        raise UserError(
            "config.init.weights: give a Hugging Face id, a folder or a .safetensors file"
        )
    if kind != "weights" and weights:
        raise UserError(
            f"config.init.weights: {weights!r} would not be read with config.init.kind={kind}; "
            "set the kind to weights"
        )


def _check_normalisation(key: str, data: settings.Data) -> None:
    for part in ("mean", "std"):
        values = getattr(data, part)
        if len(values) != data.channels:
            raise UserError(
                f"config.{key}.{part}: needs {data.channels} values, one per channel; got {values}"
            )
    if min(data.std) <= 0:
        raise UserError(f"config.{key}.std: must be above 0; got {data.std}")


def _plain(value):
    """ConfigDicts as dicts, all the way down."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _block(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    block = raw.get(key)
    if not isinstance(block, Mapping):
        raise UserError(f"config.{key}: missing, or not a block of keys; see {_KEYS}")
    return block


def _same_keys(prefix: str, given: Iterable[str], expected: Iterable[str]) -> None:
    dot = f"{prefix}." if prefix else ""
    given, expected = set(map(str, given)), set(expected)  # {1: 2} has keys, too
    for key in sorted(given - expected):
        near = checked.nearest(dot + key, [dot + other for other in sorted(expected)])
        raise UserError(f"config.{dot}{key}: no such key.{near} {_ALL_KEYS}")
    for key in sorted(expected - given):
        raise UserError(f"config.{dot}{key}: missing; give its values as in {_KEYS}")


def _parse(cls: type, raw: Any, prefix: str):
    """One dataclass from one block of keys."""
    if not isinstance(raw, Mapping):
        raise UserError(f"config.{prefix}: a block of keys is expected; got {checked.shown(raw)}")
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
            raise UserError(f"config.{key}: a tuple is expected; got {checked.shown(raw)}")
        return tuple(
            checked.scalar(get_args(kind)[0], metadata, item, f"config.{key}") for item in raw
        )
    return checked.scalar(kind, metadata, raw, f"config.{key}")
