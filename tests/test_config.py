"""Config files and their check: a mistake is one line that names the key."""

import dataclasses
import math
from pathlib import Path

import pytest

from sdfp import config, settings
from sdfp.methods.registry import METHODS
from sdfp.models.registry import BACKBONES
from sdfp.types import UserError

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(
    path for path in FOLDER.glob("*.py") if path.name not in ("common.py", "__init__.py")
)
FAMILIES = {name: family.settings for name, family in BACKBONES.items()}
METHOD_SETTINGS = {name: method.settings for name, method in METHODS.items()}


def parse(values) -> settings.Experiment:
    return config.parse(values, FAMILIES, METHOD_SETTINGS)


@pytest.fixture
def values() -> dict:
    """The default config as plain nested dicts, to spoil."""
    return config.read(str(FOLDER / "digits.py")).to_dict()


def put(values: dict, key: str, value) -> None:
    *blocks, last = key.split(".")
    for block in blocks:
        values = values[block]
    values[last] = value


def told(values) -> str:
    """The line with which a config is refused."""
    with pytest.raises(UserError) as caught:
        parse(values)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("config.")
    return line


@pytest.mark.parametrize("variant", ["", ":full", ":small", ":smoke"])
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_config_file_parses(file, variant):
    parsed = parse(config.read(f"{file}{variant}"))
    assert parsed.name.endswith("_smoke") == (variant == ":smoke")
    rows = ("finetune", "further_pretrain", "self_distillation")
    assert parsed.methods == (rows[1:2] if "source" in file.name else rows)


@pytest.mark.parametrize("variant", ["", ":small"])
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_config_probes_its_masked_stages_often_enough(file, variant):
    """Fewer than four, of which the end is not just behind another, show no rise and fall."""
    parsed = parse(config.read(f"{file}{variant}"))
    for name in ("pretrain", "further_pretrain", "self_distill"):
        steps = getattr(parsed.stages, name).steps
        behind = steps % parsed.run.probe_every
        assert 1 + steps // parsed.run.probe_every + (2 * behind >= parsed.run.probe_every) >= 4


@pytest.mark.parametrize("name", ["scierc", "acl_arc", "chemprot", "twitter_emotion", "file"])
def test_how_often_texts_are_probed(name):
    """8 intervals of the masked stages; of the 20 epochs of `:small` 4."""
    full, small = (
        parse(config.read(str(FOLDER / f"roberta_{name}.py{variant}")))
        for variant in ("", ":small")
    )
    for parsed, intervals in ((full, 8), (small, 4)):
        assert -(-parsed.stages.self_distill.steps // parsed.run.probe_every) == intervals
    assert small.stages.self_distill.steps * 5 == full.stages.self_distill.steps
    assert small.stages.further_pretrain.steps * 5 == full.stages.further_pretrain.steps
    assert small.stages.finetune.steps * 2 == full.stages.finetune.steps


def test_there_are_config_files():
    assert {"digits.py", "vit_cub.py", "vit_folder.py"} <= {path.name for path in FILES}


def test_result_is_frozen_all_the_way_down(values):
    def check(block):
        assert dataclasses.is_dataclass(block)
        for field in dataclasses.fields(block):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(block, field.name, getattr(block, field.name))
            value = getattr(block, field.name)
            assert not isinstance(value, list)
            if dataclasses.is_dataclass(value):
                check(value)

    parsed = parse(values)
    check(parsed)
    for block in parsed.method.values():
        check(block)


def test_values_survive(values):
    """What a config says is what the settings say, and parsing that again changes nothing."""
    put(values, "stages.finetune.learning_rate", 0.125)
    put(values, "seeds", [7, 2**32 - 1])  # a list is as good as a tuple
    parsed = parse(values)
    assert parsed.stages.finetune.learning_rate == 0.125
    assert parsed.seeds == (7, 2**32 - 1)
    again = dataclasses.asdict(parsed)
    again["model"] = {"name": again.pop("model_name"), **again["model"]}
    # A block of nothing is optional.
    method = {**{name: {} for name in METHODS}, **values["method"]}
    assert again == {**values, "seeds": (7, 2**32 - 1), "method": method}
    assert parse(again) == parsed


def test_whole_number_is_a_float(values):
    put(values, "stages.finetune.learning_rate", 1)
    rate = parse(values).stages.finetune.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sead", "seed"),
        ("method_", "methods"),
        ("stages.finetuning", "stages.finetune"),
        ("stages.finetune.stepz", "stages.finetune.steps"),
        ("data.chanels", "data.channels"),
        ("model.dept", "model.depth"),
        ("method.self_distilation", "method.self_distillation"),
        ("method.self_distillation.round", "method.self_distillation.rounds"),
        ("run.zzz", ""),
    ],
)
def test_unknown_key(values, key, meant):
    put(values, key, 3)
    line = told(values)
    assert line.startswith(f"config.{key}: no such key. Did you mean")
    assert f'"{meant}"' in line or not meant


def test_key_in_a_method_without_settings(values):
    put(values, "method.finetune", {"rounds": 3})
    assert told(values).startswith("config.method.finetune.rounds: no such key. All keys")


def dotted(values: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += dotted(value, f"{prefix}{key}.")
    return keys


def test_every_missing_key_is_named():
    fresh = config.read(str(FOLDER / "digits.py"))
    for key in dotted(fresh.to_dict()):
        values = fresh.to_dict()
        *blocks, last = key.split(".")
        block = values
        for name in blocks:
            block = block[name]
        del block[last]
        assert told(values).startswith(f"config.{key}: "), key


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("seed", True, "int"),
        ("seed", 1.0, "int"),
        ("seed", "1", "int"),
        ("seed", None, "int"),
        ("stages.finetune.steps", 2.0, "int"),
        ("stages.finetune.learning_rate", "0.1", "float"),
        ("stages.finetune.learning_rate", True, "float"),
        ("stages.finetune.augment", 1, "bool"),
        ("stages.finetune.augment", "false", "bool"),
        ("name", 3, "str"),
        ("data.dir", None, "str"),
        ("init.kind", 3, "str"),
        ("model.depth", "4", "int"),
        ("method.self_distillation.rounds", 1.0, "int"),
        ("seeds", 3, "a tuple"),
        ("methods", "finetune", "a tuple"),
        ("seeds", (0, True), "int"),
        ("seeds", (0, "1"), "int"),
        ("stages.finetune.no_decay", (3,), "str"),
        ("data.mean", ("0.5",), "float"),
        ("stages.finetune", 3, "a block of keys"),
        ("stages", (), "a block of keys"),
        ("method.finetune", 1, "a block of keys"),
    ],
)
def test_wrong_type(values, key, value, wanted):
    put(values, key, value)
    assert told(values) == f"config.{key}: {wanted} is expected; got {_one(value)!r}"


def _one(value):
    """The element of a tuple that is at fault."""
    return value[-1] if isinstance(value, tuple) and value else value


@pytest.mark.parametrize("key", ["model", "method"])
def test_block_that_is_none(values, key):
    values[key] = 3
    assert told(values).startswith(f"config.{key}: missing, or not a block of keys")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "key", ["stages.finetune.learning_rate", "model.mask_ratio", "data.mean", "run.resident_gb"]
)
def test_not_finite(values, key, value):
    put(values, key, (value,) if key == "data.mean" else value)
    assert told(values).startswith(f"config.{key}: a finite number is expected; got {value!r}")


@pytest.mark.parametrize(
    ("key", "inside", "outside", "words"),
    [
        ("stages.finetune.steps", 1, 0, "at least 1"),
        ("seed", 0, -1, "at least 0"),
        ("seed", 2**32 - 1, 2**32, f"from 0 to {2**32 - 1}"),
        ("init.seed", 2**32 - 1, 2**32, f"from 0 to {2**32 - 1}"),
        ("stages.finetune.learning_rate", 1e-30, 0.0, "above 0"),
        ("stages.finetune.beta1", 0.0, -1e-9, "at least 0"),
        ("stages.finetune.beta1", 0.999, 1.0, "below 1"),
        ("stages.self_distill.weight_decay", 0.0, -0.1, "at least 0"),
        ("model.mask_ratio", 0.5, 0.0, "above 0"),
        ("model.dropout_finetune", 0.0, 1, "below 1"),
        ("data.validation_fraction", 0.5, 1.0, "below 1"),
        ("method.self_distillation.rounds", 1, 0, "at least 1"),
        ("run.resident_gb", 0, -1, "at least 0"),
    ],
)
def test_range(values, key, inside, outside, words):
    put(values, "stages.finetune.warmup_steps", 0)
    put(values, key, inside)
    parse(values)
    put(values, key, outside)
    line = told(values)
    assert line.startswith(f"config.{key}: must be {words}; got {outside}")


def test_an_integer_that_no_machine_number_holds(values):
    put(values, "model.image_size", 2**63)
    assert told(values).startswith("config.model.image_size: a number of 64 bits is expected; got ")


def test_upper_bound():
    """No setting has one today, but `settings.number` offers it."""

    @dataclasses.dataclass(frozen=True)
    class Bounded:
        share: float = settings.number(0, 1)

    def parse_share(share):
        return config._parse(Bounded, {"share": share}, "block").share

    assert parse_share(1) == 1
    with pytest.raises(UserError, match=r"^config\.block\.share: must be at most 1; got 1\.5$"):
        parse_share(1.5)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("precision", "float23", "float32"),
        ("evaluate_on", "tset", "test"),
        ("init.kind", "pretrian", "pretrain"),
        ("data.source", "file", "files"),
        ("data.channels", 2, None),
        ("parallel.backend", "jitt", "jit"),
        ("method.self_distillation.features", "cl", "cls"),
        ("model.name", "vit_mea", "vit_mae"),
        ("methods", ("finetune", "self_distil"), "self_distillation"),
    ],
)
def test_none_of_the_options(values, key, value, meant):
    put(values, key, value)
    line = told(values)
    assert line.startswith(f"config.{key}: {_one(value)!r} is none of ")
    assert meant is None or line.endswith(f'Did you mean "{meant}"?')


@pytest.mark.parametrize(
    ("key", "value"),
    [("methods", ()), ("seeds", ()), ("seeds", (1, 2, 1)), ("methods", ("finetune",) * 2)],
)
def test_none_or_twice(values, key, value):
    put(values, key, value)
    assert told(values).startswith(f"config.{key}: give each of them once, at least one")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_jax_cannot_tell_apart(values, seed):
    """jax.random.key(2**32) is jax.random.key(0)."""
    put(values, "seeds", (0, seed))
    assert told(values) == f"config.seeds: must be from 0 to {2**32 - 1}; got {seed}"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\n", ".", "..", ".hidden"])
def test_name_that_is_no_new_folder(values, name):
    """The default work directory is runs/<name>."""
    put(values, "name", name)
    assert told(values).startswith("config.name: letters, digits, '_', '-' and")


@pytest.mark.parametrize("stage", ["pretrain", "further_pretrain", "self_distill", "finetune"])
def test_warmup_must_end(values, stage):
    put(values, f"stages.{stage}.steps", 10)
    put(values, f"stages.{stage}.warmup_steps", 9)
    parse(values)
    put(values, f"stages.{stage}.warmup_steps", 10)
    assert told(values) == f"config.stages.{stage}.warmup_steps: must be below steps (10); got 10"


@pytest.mark.parametrize("key", ["data.mean", "data.std", "source.mean", "source.std"])
def test_one_mean_and_deviation_per_channel(values, key):
    put(values, key, (0.5, 0.5, 0.5))
    assert told(values).startswith(f"config.{key}: needs 1 values, one per channel")


@pytest.mark.parametrize("std", [0.0, -0.5])
def test_deviation_is_positive(values, std):
    put(values, "source.std", (std,))
    assert told(values).startswith("config.source.std: must be above 0")


def test_weights_need_a_place(values):
    put(values, "init.kind", "weights")
    put(values, "init.weights", "")
    assert told(values).startswith("config.init.weights: ")


@pytest.mark.parametrize("kind", ["scratch", "pretrain"])
def test_weights_that_would_not_be_read(values, kind):
    put(values, "init.kind", kind)
    put(values, "init.weights", "a/b")
    assert told(values).startswith("config.init.weights: 'a/b' would not be read")


def test_self_distillation_learns_something(values):
    put(values, "method.self_distillation.masked_weight", 0.0)
    put(values, "method.self_distillation.distill_weight", 0.0)
    assert told(values).startswith("config.method.self_distillation: both weights are 0")


def test_rule_of_the_model_family(values):
    put(values, "model.heads", 3)
    assert told(values).startswith("config.model.dim: must be a multiple of")


def test_override_reaches_its_key():
    overrides = [
        "--config.stages.finetune.learning_rate=1",
        "--config.seeds=3,4",
        "--config.methods=finetune,self_distillation",
        "--config.data.dir=a,b",
        "--noconfig.run.tensorboard",
        "--config.name=a=b",
        "-config.data.mean=0.25",
        "--config.stages.finetune.frozen=('a',)",
        "--config.method.self_distillation={'rounds': 2, 'features': 'all'}",
    ]
    before = config.read(str(FOLDER / "digits.py"))
    found = config.read(str(FOLDER / "digits.py"), overrides)
    assert found.stages.finetune.learning_rate == 1.0
    assert found.stages.pretrain == before.stages.pretrain
    assert found.seeds == (3, 4)
    assert found.methods == ("finetune", "self_distillation")
    assert found.data.dir == "a,b"
    assert found.run.tensorboard is False
    assert found.name == "a=b"
    assert found.data.mean == (0.25,)
    assert found.stages.finetune.frozen == ("a",)
    assert found.method.self_distillation.to_dict() == {"rounds": 2, "features": "all"}


def test_last_override_wins():
    file = str(FOLDER / "digits.py")
    assert config.read(file, ["--config.seed=3", "--config.seed=4"]).seed == 4
