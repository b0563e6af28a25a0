"""Metric files, pictures and tables."""

import csv
import json
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from sdfp import logged, report
from sdfp.types import WorkdirError

NAMES = ('a, "b"', "größe 大", "two\nlines", "plain")


def metrics(*losses):
    """Of the steps of a call; where the loss is not finite, the step was skipped."""
    loss = np.array(losses, np.float32)
    skipped = 1.0 - np.isfinite(loss)
    return {
        "loss": loss,
        "masked": 10 * loss,
        "grad_norm": 100 * loss,
        "examples": np.full_like(loss, 8),
        "skipped": skipped,
    }


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """The events of a TensorBoard folder: records of length, its CRC, data, its CRC."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            record, data = data[12 : 12 + length], data[16 + length :]
            assert len(record) == length
            found.append(event_pb2.Event.FromString(record))
    return found


def shown(folder):
    """What TensorBoard shows: {name: {step: value}}, without what a restart declared void."""
    values = {}
    for event in events(folder):
        if event.session_log.status == event_pb2.SessionLog.START:
            for steps in values.values():
                for step in [step for step in steps if step >= event.step]:
                    del steps[step]
        for value in event.summary.value:
            values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values


def test_a_line_is_the_mean_since_the_line_before(tmp_path):
    """Whatever the calls, every 3 steps and after the last one."""
    with report.StageLog(tmp_path / "stage", "x", 7, 0, 3, None) as log:
        log.add(2, metrics(1, 2))
        assert lines(tmp_path / "stage") == []
        log.add(6, metrics(6, 10, 20, 30))
        assert len(lines(tmp_path / "stage")) == 2  # on disk at once, not at the end
        log.add(7, metrics(5))
    found = lines(tmp_path / "stage")
    assert [line["step"] for line in found] == [3, 6, 7]
    assert [line["loss"] for line in found] == [3, 20, 5]
    assert [line["masked"] for line in found] == [30, 200, 50]
    rates = [line.get("examples_per_second") for line in found]
    assert rates[0] > 0
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["metrics.jsonl"]


def test_a_line_has_the_largest_loss_and_gradient(tmp_path):
    """Which its mean hides."""
    with report.StageLog(tmp_path, "x", 4, 0, 2, None) as log:
        log.add(4, metrics(1, 1, 9, 1))
    told = [(x["loss"], x["loss_max"], x["grad_norm_max"]) for x in lines(tmp_path)]
    assert told == [(1, 1, 100), (5, 9, 900)]


def test_skipped_steps_are_counted_and_not_averaged(tmp_path, capfd):
    nan, inf = np.nan, np.inf
    with report.StageLog(tmp_path, "x", 8, 0, 4, tmp_path / "board") as log:
        log.add(6, metrics(1, nan, 3, inf, nan, nan))
        waiting = json.loads(json.dumps(log.waiting, allow_nan=False))  # as a checkpoint keeps it
    assert waiting == [{"examples": 8, "skipped": 1}] * 2
    with report.StageLog(tmp_path, "x", 8, 6, 4, None, waiting) as log:
        log.add(8, metrics(nan, nan))
    first, second = lines(tmp_path)
    assert first == {
        **{"step": 4, "loss": 2, "masked": 20, "grad_norm": 200, "examples": 8},
        **{"loss_max": 3, "grad_norm_max": 300, "skipped": 2},
    }
    assert second["skipped"] == 4
    assert "loss" not in second
    assert shown(tmp_path / "board")["skipped"] == {4: 2}
    assert capfd.readouterr().out.startswith("  x 8/8  all skipped")


def test_a_checkpoint_that_did_not_know_of_skipped_steps(tmp_path):
    waiting = [{"loss": 3.0, "masked": 30.0, "examples": 8.0}]
    with report.StageLog(tmp_path, "x", 2, 1, 2, None, waiting) as log:
        log.add(2, metrics(1))
    assert [(x["loss"], x["skipped"], x["grad_norm"]) for x in lines(tmp_path)] == [(2, 0, 100)]


def test_resumed_log_goes_on_after_the_checkpoint(tmp_path):
    """The first sitting went on to step 6 and half a line; the checkpoint is of step 4."""
    with report.StageLog(tmp_path, "x", 8, 0, 2, None) as log:
        log.add(6, metrics(1, 1, 2, 2, 3, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    with report.StageLog(tmp_path, "x", 8, 4, 2, None) as log:
        log.add(8, metrics(7, 7, 8, 8))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 1),
        (4, 2),
        (6, 7),
        (8, 8),
    ]


def test_a_line_that_a_stop_cuts_in_two(tmp_path):
    """It is the mean of both sittings' steps, as if there had been one."""
    with report.StageLog(tmp_path, "x", 8, 0, 4, None) as log:
        log.add(6, metrics(1, 2, 3, 4, 5, 6))
        waiting = json.loads(json.dumps(log.waiting))  # as a checkpoint keeps it
    with report.StageLog(tmp_path, "x", 8, 6, 4, None, waiting) as log:
        log.add(8, metrics(7, 8))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(4, 2.5), (8, 6.5)]


def test_resumed_log_survives_a_kill_before_its_first_line(tmp_path):
    """Compiling takes a while: a second kill then must not lose the first sitting's lines."""
    with report.StageLog(tmp_path, "x", 8, 0, 2, None) as log:
        log.add(4, metrics(1, 1, 2, 2))
    with report.StageLog(tmp_path, "x", 8, 4, 2, None):
        assert [line["step"] for line in lines(tmp_path)] == [2, 4]


LOST = {
    "nothing": (lambda text: text, ""),
    "half a line more": (lambda text: text + '{"step": 7, "lo', ""),
    "half of it": (
        lambda text: text[: len(text) * 2 // 3],
        "it ends at step 2, and the stage did 4",
    ),
    "a byte": (
        lambda text: text.replace("step", "stop", 1),
        "damaged lines, which are left out: 1",
    ),
    "everything": (lambda text: "", "it ends at step 0, and the stage did 4"),
}


@pytest.mark.parametrize("damage", LOST)
def test_what_a_resumed_log_lacks_is_told(tmp_path, capfd, damage):
    spoil, told = LOST[damage]
    path = tmp_path / "metrics.jsonl"
    with report.StageLog(tmp_path, "x", 8, 0, 2, None) as log:
        log.add(5, metrics(1, 1, 2, 2, 3))
        waiting = log.waiting
    path.write_text(spoil(path.read_text()))
    with report.StageLog(tmp_path, "x", 8, 5, 2, None, waiting):
        pass
    said = capfd.readouterr().out
    assert said.startswith(f"warning: {path}: {told}: ") if told else not said


def test_a_log_that_is_no_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    assert logged.read(tmp_path) == []
    assert logged.lacking(tmp_path, 4).startswith(f"{path}: there is no such file; it ends")
    with pytest.raises(WorkdirError, match=f"^{path}: a file belongs here, and a folder is there"):
        report.StageLog(tmp_path, "x", 8, 0, 2, None)


@pytest.mark.parametrize("place", ["board", "board/stage", "stage"])
def test_a_file_where_a_folder_of_the_log_belongs(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    with pytest.raises(WorkdirError, match="a folder belongs here, and a file is there") as caught:
        report.StageLog(tmp_path / "stage", "x", 8, 0, 2, tmp_path / "board/stage")
    assert str(caught.value).startswith(f"{tmp_path / place}: ")


def test_tensorboard_shows_what_the_lines_say(tmp_path):
    with report.StageLog(tmp_path, "x", 6, 0, 2, tmp_path / "board" / "x") as log:
        log.add(6, metrics(1, 1, 2, 2, 3, 3))
    time.sleep(1.1)  # tensorboardX names its files by the second
    with report.StageLog(tmp_path, "x", 6, 2, 3, tmp_path / "board" / "x") as log:
        log.add(4, metrics(5, 7))
        log.add(6, metrics(7, 7))
    values = shown(tmp_path / "board" / "x")
    assert values["loss"] == {2: 1, 3: 5, 6: 7}  # step 4 of the first sitting is void
    assert values["masked"] == {2: 10, 3: 50, 6: 70}
    assert values["loss"] == {line["step"]: line["loss"] for line in lines(tmp_path)}
    # The first call of each sitting compiles: no rate.
    means = {"loss", "masked", "grad_norm", "examples", "examples_per_second"}
    assert set(values) == means | {"loss_max", "grad_norm_max", "skipped"}
    assert set(values["examples_per_second"]) == {6}


def test_the_first_call_of_a_sitting_has_no_rate(tmp_path):
    """It compiles, which takes longer than all the rest."""
    with report.StageLog(tmp_path, "x", 6, 0, 2, None) as log:
        time.sleep(0.5)
        log.add(3, metrics(1, 1, 1))
        time.sleep(0.05)
        log.add(6, metrics(1, 1, 1))
    first, second, _ = lines(tmp_path)
    assert "examples_per_second" not in first
    assert 8 < second["examples_per_second"] < 3 * 8 / 0.05  # the three steps of its call


def test_rates_are_those_of_the_calls(tmp_path):
    """Lines of one call are written microseconds apart: that is no rate of training."""
    with report.StageLog(tmp_path, "x", 6, 0, 1, None) as log:
        for done in (2, 4, 6):
            time.sleep(0.05)
            log.add(done, metrics(1, 1))
    rates = [line["examples_per_second"] for line in lines(tmp_path)[2:]]
    assert max(rates) <= 2 * 8 / 0.05


def test_no_bar_and_few_lines_where_nobody_watches(tmp_path, capfd):
    """Not a terminal: the last step is said, stderr stays clean."""
    with report.StageLog(tmp_path, "stage", 4, 0, 1, None) as log:
        log.add(2, metrics(1, 1))
        log.add(4, metrics(1, 0.5))
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    assert out.startswith("  stage 4/4  loss 0.5")
    assert out.endswith(" steps/s  0:00 left\n")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_duration(seconds, text):
    assert report._duration(seconds) == text


@pytest.mark.parametrize(("side", "zoom"), [(8, 14), (56, 2), (112, 1), (224, 1)])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures(tmp_path, side, zoom, channels, mode):
    """Rows of examples, three columns, 4 white pixels between; tiny images are enlarged."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    pictures = np.broadcast_to(values[:, :, None, None, None], (2, 3, side, side, channels)).copy()
    if channels == 3:
        pictures[..., 2] = 7
    path = tmp_path / "new" / "p.png"
    report.save_pictures(path, pictures)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", mode)
        step = side * zoom + 4
        assert image.size == (3 * step, 2 * step)
        canvas = np.asarray(image).reshape(2 * step, 3 * step, channels)
    for row in range(2):
        for column in range(3):
            cell = canvas[row * step :, column * step :][: side * zoom, : side * zoom]
            np.testing.assert_array_equal(cell[::zoom, ::zoom], pictures[row, column])
            assert (cell == cell[0, 0]).all()  # nothing blurred
    assert (canvas[side * zoom : step] == 255).all()
    assert (canvas[:, side * zoom : step] == 255).all()


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_predictions(tmp_path):
    probability = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0, 0, 1, 0]])
    ids = ("x/1, 2.png", 'ä"3".png', "4")
    report.save_predictions(tmp_path / "p.csv", ids, np.array([3, 1, 2]), probability, NAMES)
    assert read_csv(tmp_path / "p.csv") == [
        ["id", "label", "predicted", "probability"],
        [ids[0], NAMES[3], NAMES[3], "0.400000"],
        [ids[1], NAMES[1], NAMES[0], "0.700000"],
        [ids[2], NAMES[2], NAMES[2], "1.000000"],
    ]


def test_confusion(tmp_path):
    matrix = np.arange(16).reshape(4, 4)
    report.save_confusion(tmp_path / "c.csv", matrix, NAMES)
    header, *rows = read_csv(tmp_path / "c.csv")
    assert header == ["true \\ predicted", *NAMES]
    assert [row[0] for row in rows] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == matrix.tolist()


def test_summary_uses_the_sample_deviation():
    assert report.summarise([1.0, 2.0, 6.0]) == {
        "mean": 3.0,
        "std": pytest.approx(7**0.5),  # (4 + 1 + 9) / 2
        "n": 3,
    }
    assert report.summarise([1.5]) == {"mean": 1.5, "std": None, "n": 1}


def test_table():
    rows = {
        "finetune": {"accuracy": report.summarise([50, 60]), "loss": report.summarise([1, 1.5])},
        "other": {"accuracy": report.summarise([1, 2]), "loss": report.summarise([np.nan, 1])},
    }
    assert report.table(rows, ["accuracy", "loss", "distance"]).splitlines() == [
        "| method   | accuracy       | loss          | distance | seeds |",
        "| -------- | -------------- | ------------- | -------- | ----- |",
        "| finetune | 55.000 ± 7.071 | 1.250 ± 0.354 | –        | 2     |",
        "| other    | 1.500 ± 0.707  | –             | –        | 2     |",
    ]


def test_table_of_one_seed_has_no_deviation():
    rows = {"finetune": {"accuracy": report.summarise([50])}}
    assert report.table(rows, ["accuracy"]).splitlines() == [
        "| method   | accuracy | seeds |",
        "| -------- | -------- | ----- |",
        "| finetune | 50.000   | 1     |",
    ]
