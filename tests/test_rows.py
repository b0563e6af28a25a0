"""Rows, their stages by name, and what is listed of them. Nothing is trained."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from sdfp import algorithm, checkpoint, config, experiment, files, listing, optim, preflight, rows
from sdfp.methods import combination, kd, label_smoothing, mars
from sdfp.methods.interface import Method
from sdfp.methods.registry import METHODS
from sdfp.rows import Row
from sdfp.types import UserError

CONFIG = str(Path(__file__).with_name("tiny_config.py"))


def settings(*methods, overrides=()):
    values = config.read(CONFIG, overrides)
    values.methods = methods or values.methods
    return experiment.parse(values)


def expand(*methods, grid=None, overrides=()):
    return rows.expand(settings(*methods, overrides=overrides), grid or {})


def row(name, *overrides, grid=None) -> Row:
    """The last candidate of a row."""
    return expand(name, grid=grid, overrides=overrides)[0][-1]


def refused(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_data(monkeypatch):
    """Whatever is refused is refused before data is loaded."""

    def never(*_):
        raise AssertionError("data was loaded")

    monkeypatch.setattr(preflight, "load_data", never)


def test_one_row_for_each_method_in_its_order():
    names = ("self_distillation", "finetune", "mars", "further_pretrain+r3f")
    groups = expand(*names)
    assert [[row.name for row in group] for group in groups] == [[name] for name in names]
    parsed = settings(*names)
    assert all(row == Row(row.name, parsed) for (row,) in groups)


def test_candidates_are_the_product_of_the_grid():
    grid = {
        "recadam.midpoint": (5, 3),
        "mars.radius": (1.0,),  # of another row
        "recadam.schedule": ("linear", "sigmoid", "constant"),
    }
    plain, tuned, other = expand("finetune", "recadam", "mars", grid=grid)
    assert len(plain) == len(other) == 1
    values = [row.settings.method["recadam"] for row in tuned]
    found = [(value.midpoint, value.schedule) for value in values]
    assert found == list(itertools.product(*(grid[k] for k in grid if k.startswith("recadam"))))
    # Nothing else than what is varied.
    old = settings("finetune", "recadam", "mars")
    for candidate, value in zip(tuned, values, strict=True):
        assert value.penalty == old.method["recadam"].penalty
        method = {**old.method, "recadam": value}
        assert candidate.settings == dataclasses.replace(old, method=method)


def test_a_value_that_is_the_configs_is_not_varied():
    grid = {"mars.radius": (0.5, 8.0), "mars.head_radius": (16.0, 2.0)}
    (candidates,) = expand("mars", grid=grid)
    assert [dict(row.varied) for row in candidates] == [
        {"mars.radius": 0.5},
        {},
        {"mars.head_radius": 2.0, "mars.radius": 0.5},
        {"mars.head_radius": 2.0},
    ]
    assert [row.finetuning_stage(3) for row in candidates] == [
        "finetune/mars@radius=0.5/seed_3",
        "finetune/mars/seed_3",
        "finetune/mars@head_radius=2.0,radius=0.5/seed_3",
        "finetune/mars@head_radius=2.0/seed_3",
    ]
    assert candidates[1] == Row("mars", settings("mars"))


def test_the_order_on_the_command_line_names_no_other_folder():
    grid = {"mars.radius": (0.5, 1.0), "mars.head_radius": (2.0, 3.0)}
    turned = {key: grid[key] for key in reversed(grid)}
    (first,), (second,) = expand("mars", grid=grid), expand("mars", grid=turned)
    name = lambda candidates: {one.finetuning_stage(0) for one in candidates}
    assert name(first) == name(second)


def test_the_grid_reaches_the_optimiser_of_a_combined_row():
    (group,) = expand("further_pretrain+mars", grid={"mars.radius": (0.5, 2.0)})
    recipe = group[0].settings.stages.finetune
    for candidate, radius in zip(group, (0.5, 2.0), strict=True):
        expected = mars.Settings(radius=radius, head_radius=16.0)
        made = mars.make_optimizer(recipe, settings=expected)  # cached: it tells the settings
        assert candidate.method.make_optimizer(recipe) is made


def test_a_grid_for_no_row_is_refused():
    line = refused(expand, "finetune", "mars", grid={"recadam.penalty": (1.0,)})
    assert line == "--tune recadam.penalty: no row of config.methods has recadam"


def test_stage_names():
    plain = row("self_distillation")
    assert plain.masked_stage("further_pretrain", own=False) == "further_pretrain"
    assert plain.masked_stage("self_distill_1", own=True) == "self_distill_1"
    assert plain.finetuning_stage(4) == "finetune/self_distillation/seed_4"
    tuned = row("self_distillation", grid={"self_distillation.masked_weight": (2.0,)})
    assert list(rows.planned(tuned, (0, 1))) == [
        "further_pretrain",  # shared: it does not depend on the weight
        "self_distill_1@masked_weight=2.0",
        "finetune/self_distillation@masked_weight=2.0/seed_0",
        "finetune/self_distillation@masked_weight=2.0/seed_1",
    ]


def test_stage_names_of_another_pretraining_seed():
    tuned = row("self_distillation", grid={"self_distillation.features": ("all",)})
    assert list(rows.planned(tuned.repeated(1), (0,))) == [
        "further_pretrain@pretrain_seed=1",
        "self_distill_1@features=all,pretrain_seed=1",
        "finetune/self_distillation@features=all,pretrain_seed=1/seed_0",
    ]


def test_a_seed_that_is_the_runs_own_is_no_repeat():
    first = row("further_pretrain", "--config.seed=3")
    again = first.repeated(4)
    assert again.settings == dataclasses.replace(first.settings, seed=4)
    assert again.finetuning_stage(0) == "finetune/further_pretrain@pretrain_seed=4/seed_0"
    assert first.repeated(3) == again.repeated(3) == first
    assert again.repeated(5).finetuning_stage(0).endswith("@pretrain_seed=5/seed_0")


@pytest.mark.parametrize("value", ["/a/b c", "../up", "a\\b:c*?", "ü", 1e-05, -1])
def test_values_make_one_folder(value):
    odd = Row("kd", settings("kd"), {"kd.teacher": value})
    first, second, third = odd.finetuning_stage(0).split("/")
    assert (first, third) == ("finetune", "seed_0")
    assert second.startswith("kd@teacher=")
    assert not set(second) & set("/\\:*? ")


def test_no_two_candidates_share_a_folder():
    grid = {"weight_matching_l2.weight": (1.0, 2.0), "r3f.weight": (1.0, 2.0)}
    (candidates,) = expand("weight_matching_l2+r3f", grid=grid)
    assert len({candidate.finetuning_stage(0) for candidate in candidates}) == 4


def test_settings_of_the_fine_tuning_leave_masked_stages_shared():
    tuned = row("self_distillation+label_smoothing", grid={"label_smoothing.alpha": (0.2,)})
    assert list(rows.planned(tuned, (0,))) == [
        "further_pretrain",
        "self_distill_1",
        "finetune/self_distillation+label_smoothing@label_smoothing.alpha=0.2/seed_0",
    ]
    grid = {"self_distillation.masked_weight": (2.0,), "label_smoothing.alpha": (0.2,)}
    both = row("self_distillation+label_smoothing", grid=grid).repeated(1)
    assert list(rows.planned(both, (0,)))[:2] == [
        "further_pretrain@pretrain_seed=1",
        "self_distill_1@masked_weight=2.0,pretrain_seed=1",
    ]


def test_rounds_share_the_students_that_they_have_in_common():
    grid = {"self_distillation.rounds": (1, 3)}
    parsed = settings("self_distillation")
    assert list(plan(parsed, grid)) == [
        *("pretrain", "further_pretrain", "self_distill_1"),
        "finetune/self_distillation/seed_0",
        *("self_distill_2", "self_distill_3"),
        "finetune/self_distillation@rounds=3/seed_0",
    ]


def test_what_pretrains():
    pretrains = {name for name in METHODS if row(name).pretrains}
    assert pretrains == {
        *("further_pretrain", "self_distillation", "distill_only", "further_pretrain_x2"),
        *("prediction_matching", "weight_matching_l2", "weight_matching_mars"),
    }
    assert row("self_distillation+mars").pretrains


def test_untaught():
    assert row("self_kd").untaught().name == "finetune"
    grid = {"self_kd.alpha": (0.25,), "mars.radius": (0.5,)}
    joined = row("further_pretrain+self_kd+mars", grid=grid).repeated(1)
    without = joined.untaught()
    assert without.name == "further_pretrain+mars"
    assert dict(without.varied) == {"mars.radius": 0.5}
    assert without.settings.seed == 1
    assert list(rows.planned(joined, (7,)))[1:] == [
        "finetune/further_pretrain+mars@mars.radius=0.5,pretrain_seed=1/seed_7",
        "finetune/further_pretrain+self_kd+mars@mars.radius=0.5,self_kd.alpha=0.25,"
        "pretrain_seed=1/seed_7",
    ]


def test_the_larger_teacher_is_one_for_all_that_does_not_change_it():
    tuned = row("kd+further_pretrain", grid={"kd.alpha": (0.25,)})
    deeper = row("kd", grid={"kd.depth": (3,), "kd.alpha": (0.25,)})
    for student in (tuned, tuned.repeated(1), deeper):
        teacher = student.teacher()
        assert (teacher.name, teacher.within) == ("finetune", "teacher/")
        assert teacher.settings.seed == 0
        assert teacher.finetuning_stage(0) == teacher.finetuning_stage(5)
    assert tuned.teacher().finetuning_stage(0) == "teacher/finetune"
    assert tuned.repeated(1).teacher() == tuned.teacher()
    assert deeper.teacher().finetuning_stage(0) == "teacher/finetune@depth=3"
    assert list(rows.planned(deeper, (0, 1))) == [
        "teacher/pretrain@depth=3",  # as the student starts: from the photos
        "teacher/finetune@depth=3",
        "finetune/kd@alpha=0.25,depth=3/seed_0",
        "finetune/kd@alpha=0.25,depth=3/seed_1",
    ]
    scratch = row("kd", "--config.init.kind=scratch")
    assert list(rows.planned(scratch, (0,))) == ["teacher/finetune", "finetune/kd/seed_0"]


TEACHER = {"kd": ["teacher/pretrain", "teacher/finetune"], "self_kd": ["finetune/finetune/seed_0"]}


@pytest.mark.parametrize("name", METHODS)
def test_planned_is_what_the_method_asks_for(name):
    """Every registered one: the known part of its stages' identities, as it will be told."""
    overrides = ["--config.stages.self_distill.steps=9", "--config.seed=3"]
    asked, parsed = {}, settings(name, overrides=overrides)

    def known(recipe, seed, **more):
        return {"recipe": dataclasses.asdict(recipe), "seed": seed, **more}

    def fit(stage, loss_fn, params, *, recipe=None, times=1, weights=(), identity=(), **_):
        of = rows.repeat(getattr(parsed.stages, recipe or stage), times)
        asked[stage] = known(of, 3, weights=dict(weights), **dict(identity))
        return {"encoder": stage, "decoder": stage}

    nothing = {"encoder": None, "decoder": None}
    METHODS[name].pretrain(nothing, backbone=None, fit=fit, settings=parsed.method[name])
    ((first,),) = rows.expand(parsed, {})
    planned, last = rows.planned(first, (0,)), f"finetune/{name}/seed_0"
    assert list(planned) == [*asked, *TEACHER.get(name, []), last]
    for stage, expected in asked.items():
        assert planned.pop(stage) == expected
    own = combination.finetuning_identity(name, parsed.method)
    assert planned.pop(last) == known(parsed.stages.finetune, 0, **({"method": own} if own else {}))
    for stage, found in planned.items():
        kind = "pretrain" if stage == "teacher/pretrain" else "finetune"
        seed = 3 if stage.startswith("teacher/") else 0
        assert found == known(getattr(parsed.stages, kind), seed)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mars+recadam", "mars and recadam both change what the optimiser of fine-tuning is"),
        ("r3f+label_smoothing", "r3f and label_smoothing both change what the loss of fine-tun"),
        ("tf_reg+self_kd", "tf_reg and self_kd both change what the loss of fine-tuning is"),
        ("kd+self_kd", "kd and self_kd both change what the teacher is"),
        ("further_pretrain+self_distillation", "both change what fine-tuning starts from"),
        ("mars+mars", "mars and mars both change"),
        ("finetune+mars", "finetune changes nothing, leave it out"),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_parts_that_cannot_be_combined(name, line, tmp_path):
    values = config.read(CONFIG)
    values.methods = ("finetune", name)
    told = refused(experiment.run, values, tmp_path / "work")
    assert told.startswith(f"config.methods: {name}: ")
    assert line in told
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("name", "part", "meant"),
    [
        ("mars+r3", "'r3'", "r3f"),
        ("selfdistillation+mars", "'selfdistillation'", "self_distillation"),
        ("recadm", "'recadm'", "recadam"),
    ],
)
def test_a_misspelt_part(name, part, meant):
    line = refused(settings, "finetune", name)
    assert line.startswith(f"config.methods: {part} is none of finetune, ")
    assert line.endswith(f'Did you mean "{meant}"?')


@pytest.mark.parametrize("name", ["mars+", "+mars", "mars++r3f", ""])
def test_an_empty_part(name):
    assert refused(settings, "finetune", name).startswith("config.methods: '' is none of ")


def test_each_function_gets_its_own_parts_settings(monkeypatch):
    seen = []
    start = lambda init_params, *, backbone, fit, settings: seen.append(("start", settings))
    teacher = lambda teachers, settings: seen.append(("teacher", settings))
    loss = lambda backbone, settings: seen.append(("loss", settings))
    optimizer = lambda recipe, settings: seen.append(("optimizer", settings))
    monkeypatch.setitem(METHODS, "a", Method(pretrain=start, make_optimizer=optimizer))
    monkeypatch.setitem(METHODS, "b", Method(teacher=teacher, finetune_loss=loss, float32=True))
    for name in ("a+b", "b+a"):
        joined = combination.combine(name, {"a": "of a", "b": "of b"})
        joined.pretrain({}, backbone=None, fit=None)
        joined.teacher(None)
        joined.finetune_loss(None)
        joined.make_optimizer(None)
        assert joined.float32 is True
        expected = [("start", "of a"), ("teacher", "of b"), ("loss", "of b"), ("optimizer", "of a")]
        assert seen == expected
        seen.clear()
    assert combination.combine("a", {"a": None}).float32 is False


def test_what_no_part_changes_is_plain():
    recipe, nothing = settings().stages.finetune, {"encoder": 1}
    joined = row("mars").method
    assert joined.pretrain(nothing, backbone=None, fit=None) is nothing
    assert joined.teacher(None) is None
    assert joined.finetune_loss(None) is algorithm.finetune_loss(None)
    plain = row("further_pretrain").method
    assert plain.make_optimizer(recipe) is optim.adamw_of(recipe)
    smooth = row("further_pretrain+label_smoothing").method
    alpha = label_smoothing.Settings(alpha=0.1)
    assert smooth.finetune_loss(None) is label_smoothing.finetune_loss(None, settings=alpha)


def test_identity_of_the_fine_tuning():
    method = settings().method
    identity = lambda name: combination.finetuning_identity(name, method)
    for name in METHODS:
        changed = name in ("recadam", "mars", "r3f", "label_smoothing", "tf_reg", "kd", "self_kd")
        assert list(identity(name)) == ([name] if changed else [])
    assert identity("self_distillation+mars") == {"mars": {"radius": 8.0, "head_radius": 16.0}}
    assert identity("mars+r3f") == {**identity("mars"), **identity("r3f")}
    # Which teacher is told by its digest.
    assert identity("kd") == {"kd": {"alpha": 0.5, "temperature": 2.0}}
    assert {*kd.Settings.TEACHER_ONLY} == {"teacher", "weights", "depth"}
    assert identity("recadam") == {"recadam": dataclasses.asdict(method["recadam"])}


@pytest.mark.usefixtures("no_data")
def test_a_diverging_recadam_is_refused_at_once(tmp_path):
    overrides = ["--config.stages.finetune.learning_rate=0.1"]
    line = refused(expand, "finetune", "self_distillation+recadam", overrides=overrides)
    assert line.startswith("config.method.recadam.penalty: 1000 diverges, at step ")
    values = config.read(CONFIG, [*overrides, "--config.methods=recadam"])
    assert refused(experiment.run, values, tmp_path / "work") == line
    assert not (tmp_path / "work").exists()
    # Also as one candidate of several.
    wish = experiment.Wish({"recadam.penalty": (10.0, 1e6)})
    values = config.read(CONFIG, ["--config.methods=recadam"])
    line = refused(experiment.run, values, tmp_path / "work", wish)
    assert line.startswith("config.method.recadam.penalty: 1e+06 diverges")
    assert expand("finetune", overrides=overrides)  # where no row uses them


WEIGHTS = ["--config.init.kind=weights", "--config.init.weights=a/b"]


@pytest.mark.usefixtures("no_data")
def test_what_a_larger_teacher_starts_from(tmp_path):
    kind = lambda weights, *more: rows.teacher_kind(settings(overrides=more), weights, 0)
    assert (kind(""), kind("", "--config.init.kind=scratch")) == ("pretrain", "scratch")
    assert kind("c/d") == kind("c/d", *WEIGHTS) == "weights"
    line = refused(kind, "", *WEIGHTS)
    assert line.startswith("config.method.kd.weights: name a larger model's weights")
    values = config.read(CONFIG, [*WEIGHTS, "--config.methods=finetune,kd"])
    assert refused(experiment.run, values, tmp_path / "work") == line
    assert not (tmp_path / "work").exists()
    values = [*WEIGHTS, "--config.method.kd.weights=c/d"]
    assert expand("kd", overrides=values)
    # Its depth is in the weights: another one would say nothing.
    line = refused(expand, "kd", overrides=[*values, "--config.method.kd.depth=3"])
    assert line.startswith("config.method.kd.depth: 3 would not be read, the weights (c/d) ")
    assert rows.teacher_kind(settings(), "", 3) == "pretrain"


@pytest.mark.usefixtures("no_data")
def test_a_given_teacher_that_is_missing(tmp_path):
    values = config.read(CONFIG, ["--config.methods=kd", "--config.method.kd.teacher=/nowhere"])
    line = refused(experiment.run, values, tmp_path / "work")
    assert line == "config.method.kd.teacher=/nowhere: there is nothing"
    found = row("kd", f"--config.method.kd.teacher={tmp_path}")
    assert list(rows.planned(found, (0,))) == ["finetune/kd/seed_0"]


def test_states(tmp_path):
    recipe = dataclasses.asdict(settings().stages.finetune)
    known = {"recipe": recipe, "seed": 0, "method": {"mars": {"radius": 8.0}}}
    assert listing.state(tmp_path / "new", known) == "to do"
    stage = tmp_path / "finetune/mars/seed_0"
    flat = {f"recipe.{key}": value for key, value in recipe.items()}
    flat |= {"seed": 0, "method.mars.radius": 8.0, "init": "not known before it is read"}
    files.write_json(stage / "identity.json", {**flat, "recipe.no_decay": ["bias"]})
    told = listing.state(stage, known)
    assert told.startswith(f"refused: {stage} was made with other settings: recipe.no_decay (['b")
    # Tuples are lists in a file: that is no change.
    files.write_json(stage / "identity.json", flat)
    assert listing.state(stage, known) == "to do"
    tree, facts = {"a": np.ones(2, np.float32)}, {"seconds": 1.0}
    checkpoint.save_step(stage, 4, tree, facts)
    assert listing.state(stage, known) == "interrupted after step 4"
    (stage / "step_000000006" / "arrays").mkdir(parents=True)  # killed while it was saved
    assert listing.state(stage, known) == "interrupted after step 4"
    checkpoint.save(stage / "final", tree, facts)
    assert listing.state(stage, known) == "there"
    others = {
        "seed (0 there, 1 now)": {**known, "seed": 1},
        "method.mars.radius (8.0 there, 2.0 now)": {**known, "method": {"mars": {"radius": 2.0}}},
        "features (None there, all now)": {**known, "features": "all"},
        "recipe.learning_rate (0.001 there, 0.5 now), recipe.steps (8 there, 9 now)": {
            **known,
            "recipe": {**recipe, "steps": 9, "learning_rate": 0.5},
        },
    }
    for told, other in others.items():
        line = f"refused: {stage} was made with other settings: {told}. Use another --workdir, "
        assert listing.state(stage, other).startswith(line)


def plan(parsed, grid=None, pretrain_seeds=1):
    return rows.plan(parsed, rows.expand(parsed, grid or {}), pretrain_seeds)


def test_listing_of_a_whole_config(tmp_path):
    parsed = settings("finetune", "further_pretrain", "self_distillation", "self_kd")
    parsed = dataclasses.replace(parsed, seeds=(0, 1))
    found = plan(parsed)
    tuned = lambda name: [f"finetune/{name}/seed_{seed}" for seed in (0, 1)]
    assert list(found) == [
        *("pretrain", *tuned("finetune")),
        *("further_pretrain", *tuned("further_pretrain")),
        *("self_distill_1", *tuned("self_distillation"), *tuned("self_kd")),
    ]
    checkpoint.save(tmp_path / "stages/pretrain/final", {"a": np.ones(1)}, {})
    checkpoint.save_step(tmp_path / "stages/further_pretrain", 6, {"a": np.ones(1)}, {})
    *told, last = listing.lines(found, tmp_path)
    assert [line.split()[0] for line in told] == list(found)
    assert all(line.split()[1:3] == ["8", "steps"] for line in told)
    states = dict(zip(found, (line.split("steps  ")[1] for line in told), strict=True))
    assert states.pop("pretrain") == "there"
    assert states.pop("further_pretrain") == "interrupted after step 6"
    assert set(states.values()) == {"to do"}
    assert last == "1 of 11 stages there; 80 steps to do at most"
    scratch = settings("finetune", overrides=["--config.init.kind=scratch"])
    assert list(plan(scratch)) == ["finetune/finetune/seed_0"]


def test_listing_of_repeats_and_candidates():
    grid = {"self_distillation.masked_weight": (0.5, 1.0)}
    parsed = settings("finetune", "further_pretrain", "self_distillation")
    assert list(plan(parsed, grid, 2)) == [
        "pretrain",
        "finetune/finetune/seed_0",
        "further_pretrain",
        "finetune/further_pretrain/seed_0",
        "further_pretrain@pretrain_seed=1",
        "finetune/further_pretrain@pretrain_seed=1/seed_0",
        # Which candidate is repeated is not known before they are compared.
        "self_distill_1@masked_weight=0.5",
        "finetune/self_distillation@masked_weight=0.5/seed_0",
        "self_distill_1",
        "finetune/self_distillation/seed_0",
    ]


def test_settings_that_exclude_each_other():
    grid = {f"self_distillation.{kind}_weight": (0.0, 1.0) for kind in ("masked", "distill")}
    line = refused(expand, "self_distillation", grid=grid)
    assert line == "config.method.self_distillation: both weights are 0, nothing to learn"
