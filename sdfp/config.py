"""Flags and config file -> ConfigDict -> settings. A mistake is one line that names the key."""

import contextlib
import copy
import dataclasses
import inspect
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from sdfp import checked, config_checks, settings
from sdfp.problems import Problems
from sdfp.types import UserError, one_line


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
    except SystemExit as error:  # absl ends --help with 1
        raise SystemExit(0) from error
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
        UserError: no such file, variant or key, values that cannot be read (all of them), or
            whatever goes wrong inside the file, with its line.
    """
    path, *variant = file.split(":", 1)
    config = _get_config(os.path.expanduser(path), *variant)
    with _users_code(path):  # a placeholder that must have a value
        known = dict(_items(config))
    arguments, found = [], Problems()
    for override in overrides:
        with found.noted():
            own = _arguments(override, known)
            _changed(copy.deepcopy(config), own)
            arguments += own
    found.stop()
    return _changed(config, arguments)


def _changed(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """With the values of `arguments`; of one alone, UserError where it cannot be read."""
    parser = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=arguments)
    try:
        parser(["", *arguments])
    except (flags.Error, ValueError, RecursionError) as error:  # --noconfig.key=1, ---...-1
        raise UserError(f"{arguments[0]}: cannot be read: {one_line(error)}") from None
    return flag.value


def _arguments(override: str, known: Mapping[str, Any]) -> list[str]:
    """An override as ml_collections reads it. Raises UserError where there is no such key."""
    name, equals, text = override.partition("=")
    key = name.split("config.", 1)[1]
    if key not in known:
        raise UserError(f"--config.{key}: no such key.{checked.nearest(key, known)} {_ALL_KEYS}")
    if isinstance(known[key], ConfigDict) and not text.startswith("{"):
        raise UserError(f"--config.{key}: a block of keys; set one of them, --config.{key}.X=Y")
    # ml_collections reads a,b as one word, but takes an element at a time.
    words = isinstance(known[key], tuple) and re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+", text)
    return [name + equals + part for part in (text.split(",") if words else [text])]


def _get_config(path: str, *variant: str) -> ConfigDict:
    root = str(Path(__file__).parents[1])  # config files import `configs.common` from anywhere
    if root not in sys.path:
        sys.path.append(root)
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"--config={path}: no such Python file")
    with _users_code(path):
        get_config = runpy.run_path(path).get("get_config")
    if not callable(get_config):
        raise UserError(f"--config={path}: it has no function get_config")
    try:
        inspect.signature(get_config).bind(*variant)
    except TypeError:
        raise UserError(f"--config={path}: its get_config cannot take {variant}") from None
    with _users_code(path, *variant):
        config = get_config(*variant)
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(f"--config={path}: its get_config returns no ConfigDict; got {config!r}")
    return config


@contextlib.contextmanager
def _users_code(path: str, *variant: str) -> Iterator[None]:
    """Whatever goes wrong in a config file is the user's to mend, and told with its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        if variant and isinstance(error, ValueError):  # there is no such variant
            raise UserError(f"--config={path}:{variant[0]}: {one_line(error)}") from error
        line = f", line {lines[-1]}" if lines else ""
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--config={path}{line}: {told}") from error


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
        UserError: all unknown or missing keys, wrong types, values out of range, NaN.
    """
    raw = _plain(config)
    model = dict(_block(raw, "model"))
    family = model.pop("name", None)
    checked.one_of("config.model.name", family, families)
    # A method with nothing to set needs no block.
    given = {name: {} for name, cls in methods.items() if not dataclasses.fields(cls)}
    given |= _block(raw, "method")
    found, parsed = Problems(), {"model_name": family}
    with found.noted():
        parsed["model"] = _parse(families[family], model, "model")
    with found.noted():
        kinds = {name: (cls, {}) for name, cls in methods.items()}
        parsed["method"] = _parse_all(kinds, given, "method")
    hints = get_type_hints(settings.Experiment)
    hints |= dict.fromkeys(("data", "source"), families[family].DATA)
    kinds = {
        field.name: (hints[field.name], field.metadata)
        for field in dataclasses.fields(settings.Experiment)
        if field.name not in ("model_name", "model", "method")
    }
    rest = {key: value for key, value in raw.items() if key not in ("model", "method")}
    with found.noted():
        parsed |= _parse_all(kinds, rest, "")
    found.stop()
    experiment = settings.Experiment(**parsed)
    config_checks.check(experiment, methods)
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


def _parse(cls: type, raw: Any, prefix: str):
    """One dataclass from one block of keys."""
    if not isinstance(raw, Mapping):
        raise UserError(f"config.{prefix}: a block of keys is expected; got {checked.shown(raw)}")
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    kinds = {field.name: (hints[field.name], field.metadata) for field in fields}
    return cls(**_parse_all(kinds, raw, prefix))


def _parse_all(kinds: Mapping[str, tuple], raw: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values of a block, {key: (type, metadata)}; what is wrong with all of them is told."""
    dot = f"{prefix}." if prefix else ""
    found, values = Problems(), {}
    for key in sorted(set(map(str, raw)) - kinds.keys()):  # {1: 2} has keys, too
        near = checked.nearest(dot + key, [dot + other for other in sorted(kinds)])
        found.add(f"config.{dot}{key}: no such key.{near} {_ALL_KEYS}")
    for key, (kind, metadata) in kinds.items():
        with found.noted():
            if key not in raw:
                raise UserError(f"config.{dot}{key}: missing; give its values as in {_KEYS}")
            values[key] = _value(kind, metadata, raw[key], dot + key)
    found.stop()
    return values


def _value(kind: Any, metadata: Mapping, raw: Any, key: str):
    """One checked value."""
    if dataclasses.is_dataclass(kind):
        return _parse(kind, raw, key)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(raw, (tuple, list)):
            raise UserError(f"config.{key}: a tuple is expected; got {checked.shown(raw)}")
        return tuple(_scalar(get_args(kind)[0], metadata, item, f"config.{key}") for item in raw)
    return _scalar(kind, metadata, raw, f"config.{key}")


def _scalar(kind: type, metadata: Mapping, raw: Any, key: str):
    value = checked.scalar(kind, metadata, raw, key)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{key}: a number of 64 bits is expected; got {checked.shown(raw)}")
    return value
