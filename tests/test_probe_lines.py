"""What lines of probes tell: warnings, the errors of differences, damaged and older ones."""

import json

import numpy as np
import pytest

from sdfp import logged, report
from sdfp.train import probe, progress


def curve(knn, linear=None, masked=(), examples=1000):
    """Lines of metrics.jsonl: probes at 0, 10, ..., the masked loss at 5, 15, ..."""
    lines = []
    for number, value in enumerate(knn):
        found = {"probe_knn": value, "probe_linear": (linear or knn)[number]}
        lines.append({"step": 10 * number, **found, "probe_examples": examples, "probe_seconds": 1})
        lines += [{"step": 10 * number + 5, "masked": loss} for loss in masked[number : number + 1]]
    return lines


IMPROVING = (0.9, 0.6, 0.5, 0.4)


def looked(step, hits, linear=None):
    """The line of a probe that had these examples right."""
    both = {"probe_knn": hits, "probe_linear": hits if linear is None else linear}
    line = {"step": step, "probe_examples": len(hits), "probe_seconds": 1.0}
    for name, right in both.items():
        line[name] = round(100 * float(np.mean(right)), 4)
        line[logged.RIGHT[name]] = np.packbits(right).tobytes().hex()
    return line


def without(line, *keys):
    return {key: value for key, value in line.items() if key not in keys}


def test_a_fall_while_the_masked_loss_improves_is_told():
    told = probe.warning(curve((30, 40, 35, 31, 32), masked=IMPROVING))
    assert told.startswith(
        "the k-NN accuracy of frozen features was 40.0 % at step 10 and at most 32.0 % in the "
        "last two probes (until step 40), while the masked loss fell from 0.9 to 0.4: the stage "
        "over-fits"
    )
    only_linear = probe.warning(curve((30,) * 4, (30, 40, 33, 31), IMPROVING))
    assert only_linear.startswith("the linear accuracy of frozen features was 40.0 %")
    at_once = probe.warning(curve((40, 35, 30, 30), masked=IMPROVING))
    assert "40.0 % at step 0 and" in at_once
    assert "while the masked loss fell from 0.9 to 0.5" in at_once
    early = [*curve((40, 35, 30, 30), masked=IMPROVING), {"step": 7, "masked": 0.7}]
    assert "while the masked loss fell from 0.8 to 0.5" in probe.warning(early)  # a mean


def test_of_equal_bests_the_last_one_counts():
    told = probe.warning(curve((40, 35, 40, 30, 30), masked=IMPROVING))
    assert "40.0 % at step 20 and" in told


def test_the_masked_loss_is_compared_where_it_is_logged_more_seldom():
    """Steps 25 and 45; probes every 10."""
    probes = curve((40, 40, 40, 30, 30))
    logged = [{"step": step, "masked": loss} for step, loss in ((25, 0.9), (45, 0.5))]
    lines = sorted([*probes, *logged], key=lambda line: line["step"])
    assert probe.warning(lines[:-1]) is None  # one line: nobody knows
    assert "fell from 0.9 to 0.5" in probe.warning(lines)


@pytest.mark.parametrize(
    "lines",
    [
        curve((30, 40, 39, 38, 36), masked=IMPROVING),  # within the error of 1,000 examples
        curve((30, 40, 35, 31, 30), masked=IMPROVING, examples=50),
        curve((30, 40, 31, 40), masked=IMPROVING),  # recovered
        curve((30, 40, 40, 31), masked=IMPROVING),  # once: it may be chance
        curve((30, 40, 35, 31, 31), masked=(0.5, 0.6, 0.9, 1)),  # diverges: another trouble
        curve((30, 40, 35, 31, 31), masked=(0.5, 0.5, 0.499, 0.498)),  # nothing is learnt
        curve((30, 40, 35, 31, 31)),  # no masked loss in this stage
        curve((40, 30)),
        [],
    ],
)
def test_nothing_is_told_of_anything_else(lines):
    assert probe.warning(lines) is None


def mcnemar(first, second):
    """The standard error in points: n times it is the root of what changed sides."""
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    return 100 * (lost + gained) ** 0.5 / len(first)


@pytest.mark.parametrize("examples", [1, 7, 8, 90, 500, 1000])
def test_the_error_of_a_difference_is_mcnemars(examples):
    rng = np.random.default_rng(examples)
    for _ in range(20):
        first, second, third = rng.random((3, examples)) < rng.random((3, 1))
        one, other = looked(0, first, second), looked(10, second, third)
        for name, pair in (("probe_knn", (first, second)), ("probe_linear", (second, third))):
            found = probe.difference_error(one, other, name)
            assert found == pytest.approx(mcnemar(*pair))
            assert found == probe.difference_error(other, one, name)
        assert probe.difference_error(one, looked(10, first), "probe_knn") == 0


def test_without_the_single_examples_the_error_is_that_of_two_samples():
    rng = np.random.default_rng(0)
    one, other = looked(0, rng.random(400) < 0.6), looked(10, rng.random(400) < 0.5)
    samples = (
        100
        * sum(p * (1 - p) / 400 for p in (one["probe_knn"] / 100, other["probe_knn"] / 100)) ** 0.5
    )
    older = [without(line, *logged.RIGHT.values()) for line in (one, other)]
    for pair in ((older[0], other), (one, older[1]), older):
        assert probe.difference_error(*pair, "probe_knn") == pytest.approx(samples)
    fewer = looked(10, np.arange(300) % 2 == 0)  # as of a version that took another sample
    assert probe.difference_error(one, fewer, "probe_knn") == pytest.approx(
        np.hypot(*(probe.standard_error(line, "probe_knn") for line in (one, fewer)))
    )
    oldest = without(older[0], "probe_examples")
    assert np.isnan(probe.difference_error(oldest, other, "probe_knn"))
    assert np.isnan(probe.difference_error(other, oldest, "probe_knn"))
    assert np.isnan(probe.difference_error(oldest, oldest, "probe_knn"))


def fallen(lost=50, gained=15):
    """60 % of 500 examples, three times, then without `lost` of them and with `gained` others."""
    before = np.arange(500) < 300
    after = before.copy()
    after[:lost], after[300 : 300 + gained] = False, True
    lines = [looked(10 * i, hits) for i, hits in enumerate((before, before, before, after, after))]
    return lines + [{"step": 10 * i + 5, "masked": loss} for i, loss in enumerate(IMPROVING)]


def test_a_fall_that_only_the_single_examples_show():
    """Of 500 examples 50 are lost and 15 gained: 4.3 paired standard errors, 2.2 of two samples."""
    lines = fallen()
    assert (lines[2]["probe_knn"], lines[3]["probe_knn"]) == (60, 53)
    told = "the k-NN accuracy of frozen features was 60.0 % at step 20 and at most 53.0 %"
    assert probe.warning(lines).startswith(told)
    assert probe.warning([without(line, *logged.RIGHT.values()) for line in lines]) is None
    assert probe.warning(fallen(lost=135, gained=100)) is None  # 7 points, of which 235 tell
    assert probe.warning(fallen(lost=0, gained=0)) is None  # nothing changed sides


def test_both_of_the_last_two_must_be_lower_by_more_than_their_own_error():
    """The last one is the lower one, but so much changed sides that it may be chance."""
    before = np.arange(500) < 300
    after, stirred = before.copy(), before.copy()
    after[:36] = False
    stirred[:240], stirred[300:] = False, True
    lines = [looked(10 * i, hits) for i, hits in enumerate((before, before, after, stirred))]
    lines += [{"step": 10 * i + 5, "masked": loss} for i, loss in enumerate(IMPROVING)]
    assert lines[3]["probe_knn"] < lines[2]["probe_knn"]
    assert probe.warning(lines) is None
    assert probe.warning([*lines[:3], {**lines[2], "step": 30}, *lines[4:]])


@pytest.mark.parametrize(("last", "told"), [(31, False), (34, False), (35, True), (40, True)])
def test_an_end_just_behind_a_probe_is_no_second_look(last, told):
    """Probes every 10, then the end: nearer than 5 it sees what the probe before has seen."""
    lines = curve((30, 40, 40, 31, 31), masked=IMPROVING)
    lines = [{**line, "step": last} if line["step"] == 40 else line for line in lines]
    lines.sort(key=lambda line: line["step"])
    assert bool(probe.warning(lines)) == told


def test_a_stage_is_warned_of_once(tmp_path, capsys):
    """While it goes on, with the fall; what follows tells nothing new."""
    waiting = curve((40, 40, 40, 30, 30, 20, 20))

    def measure(params):
        line = waiting.pop(0)
        with (tmp_path / logged.NAME).open("a") as file:
            file.write(json.dumps({"step": line["step"], "masked": 1 / (1 + line["step"])}) + "\n")
        return without(line, "step")

    with report.StageLog(tmp_path, "stage", 60, 0, 1, None) as log:
        look = progress.Looks("stage", tmp_path, log, measure)
        said = []
        for done in range(0, 70, 10):
            look(done, {})
            said.append(capsys.readouterr().out.count("warning: stage: the k-NN accuracy"))
    assert said == [0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("every", [1, 7, 10])
def test_too_few_probes_are_those_that_can_never_warn(every):
    """Of a stage that falls at once."""
    for steps in range(1, 40):
        at = [*range(0, steps, every), steps]
        found = [(step, 90 if step == 0 else 10) for step in at]
        told = {"probe_examples": 1000, "probe_seconds": 1}
        lines = [{"step": s, "probe_knn": x, "probe_linear": x, **told} for s, x in found]
        lines += [{"step": step, "masked": 1 - step / 100} for step in range(1, steps + 1)]
        assert probe.too_few(steps, every) == (probe.warning(lines) is None)


def test_the_record_has_the_curve():
    lines = curve((30, 40, 32, 31), (50, 50, 51, 52), IMPROVING)
    assert probe.summary(lines) == {
        "probe": [[0, 30, 50], [10, 40, 50], [20, 32, 51], [30, 31, 52]],
        "probe_seconds": 4,
        "warning": probe.warning(lines),
    }
    assert "warning" not in probe.summary(curve((30, 40)))
    assert probe.summary([{"step": 1, "masked": 1.0}]) == {}


WHOLE = {"step": 8, "probe_knn": 30.0, "probe_linear": 40.0, "probe_seconds": 1.0}


@pytest.mark.parametrize(
    "damage",
    [
        ("probe_linear", "probe_linuar"),
        ("probe_knn", "qrobe_knn"),
        ("probe_seconds", "probe_secomds"),
        ("30.0", "930.0"),
        ("40.0", "-40.0"),
        ("30.0", "NaN"),
        ("30.0", "true"),
        ("30.0", '"30.0"'),
        (" 1.0", " 1e999"),
        (" 1.0", " 1" + 400 * "0"),
        ("1000", "0"),
        ("step", "stop"),
        ("8", "NaN"),
    ],
)
def test_a_damaged_probe_is_left_out(tmp_path, damage):
    """A disk may change any byte: what only tells of a stage must not fail it."""
    texts = [json.dumps(line) for line in curve((30, 40, 35, 31), masked=IMPROVING)]
    spoilt = json.dumps({**WHOLE, "probe_examples": 1000}).replace(*damage)
    (tmp_path / logged.NAME).write_text("\n".join([spoilt, *texts]))
    lines = logged.read(tmp_path)
    assert len(lines) == len(texts)
    assert len(probe.summary(lines)["probe"]) == 4
    assert "damaged lines, which are left out: 1: " in logged.lacking(tmp_path, 0)


RIGHT = looked(8, np.arange(12) < 3, np.arange(12) < 6)
KNN, LINEAR = RIGHT["probe_knn_right"], RIGHT["probe_linear_right"]


def test_a_whole_probe_is_read_as_it_was_written(tmp_path):
    (tmp_path / logged.NAME).write_text(json.dumps(RIGHT))
    assert (KNN, LINEAR) == ("e000", "fc00")
    assert logged.read(tmp_path) == [RIGHT]
    assert logged.lacking(tmp_path, 0) == ""


@pytest.mark.parametrize(
    "damage",
    [
        {"probe_knn_right": "e0"},  # of 8 examples
        {"probe_knn_right": "e00000"},
        {"probe_knn_right": "g000"},
        {"probe_knn_right": "e_00"},
        {"probe_knn_right": "٣000"},  # a digit, too
        {"probe_knn_right": ""},
        {"probe_knn_right": None},
        {"probe_knn_right": 0},
        {"probe_linear_right": "fe00"},  # one more than the accuracy says
        {"probe_examples": 11},
        {"probe_examples": 1e300},
        {"probe_examples": "fc00"},
        {"probe_right": "fc00"},
        {"step": "fc00"},
    ],
)
def test_damaged_bits_of_a_probe_are_left_out(tmp_path, damage):
    (tmp_path / logged.NAME).write_text(json.dumps({**RIGHT, **damage}) + "\n")
    assert logged.read(tmp_path) == []
    assert "damaged lines, which are left out: 1: " in logged.lacking(tmp_path, 0)


@pytest.mark.parametrize("key", ["probe_examples", "probe_knn", "probe_linear", "probe_seconds"])
def test_bits_alone_are_no_probe(tmp_path, key):
    for right in (KNN, ""):
        line = without({**RIGHT, "probe_knn_right": right}, key)
        (tmp_path / logged.NAME).write_text(json.dumps(line))
        assert logged.read(tmp_path) == []


def test_a_probe_of_nobody_knows_how_many_examples():
    """Of an earlier version: nothing is told of it."""
    lines = curve((90, 80, 10, 10), masked=IMPROVING)
    assert probe.warning(lines)
    for line in lines:
        line.pop("probe_examples", None)
    assert len(probe.summary(lines)["probe"]) == 4
    assert "warning" not in probe.summary(lines)


def test_half_a_line_is_not_read(tmp_path):
    (tmp_path / logged.NAME).write_text('{"step": 1, "masked": 2.0}\n{"step": 2, "mas')
    assert logged.read(tmp_path) == [{"step": 1, "masked": 2.0}]
    assert logged.read(tmp_path / "nowhere") == []
