"""Folders and CSV files of images, and what a user reads when something is wrong."""

import numpy as np
import pytest
from data_helpers import reds, settings, write_classes, write_image

from sdfp.data import image_folder
from sdfp.types import UserError


def load_folder(folder, **changes):
    return image_folder.load(settings(folder, **changes))


def test_split_folders(tmp_path):
    write_classes(tmp_path / "train", {"b": 2, "a": 3})
    write_classes(tmp_path / "test", {"a": 1, "b": 1}, first=50)
    write_image(tmp_path / "val" / "a" / "deep" / "er" / "x.PNG", 90)
    write_image(tmp_path / "train" / "a" / ".hidden.png")
    data = load_folder(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.train.ids == tuple(
        f"train/{name}.png" for name in ("a/000", "a/001", "a/002", "b/000", "b/001")
    )
    assert data.train.arrays["label"].tolist() == [0, 0, 0, 1, 1]
    assert data.train.arrays["label"].dtype == np.int32
    assert data.train.arrays["image"].shape == (5, 4, 4, 3)
    assert reds(data.train) == [2, 3, 4, 0, 1]
    assert reds(data.test) == [50, 51]
    assert data.validation.ids == ("val/a/deep/er/x.PNG",)
    assert data.unlabelled is data.train
    assert data.notes["counts"] == {"train": 5, "unlabelled": 5, "validation": 1, "test": 2}
    assert data.notes["own_splits"] == ["test", "validation"]


def test_class_folders_and_a_held_out_test_split(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 5})
    data = load_folder(tmp_path, test_fraction=0.2)
    assert np.bincount(data.train.arrays["label"]).tolist() == [8, 4]
    assert np.bincount(data.test.arrays["label"]).tolist() == [2, 1]
    assert sorted(data.train.ids + data.test.ids) == sorted(
        f"{name}/{i:03d}.png" for name, count in [("a", 10), ("b", 5)] for i in range(count)
    )
    assert load_folder(tmp_path, test_fraction=0.2, split_seed=1).test.ids != data.test.ids


def test_csv(tmp_path):
    for number in range(4):
        write_image(tmp_path / "files" / f"{number}.png", number)
    (tmp_path / "train.csv").write_text(
        "\ufefflabel,path,note\ncat,files/1.png,x\n dog ,files/0.png,\n", encoding="utf-8"
    )
    (tmp_path / "test.csv").write_text('path,label\n"files/2.png",cat\n')
    (tmp_path / "validation.csv").write_text("path,label\nfiles/3.png,dog\n")
    data = load_folder(tmp_path)
    assert data.train.ids == ("files/1.png", "files/0.png")
    assert data.train.arrays["label"].tolist() == [0, 1]
    assert reds(data.train) == [1, 0]
    assert data.test.ids == ("files/2.png",)
    assert data.validation.arrays["label"].tolist() == [1]
    assert data.notes["test_images_in_train"] == 0


@pytest.mark.parametrize("where", [".", "unlabelled/a/b"])
def test_without_labels(tmp_path, where):
    for number in range(3):
        write_image(tmp_path / where / f"{number}.png", number)
    data = load_folder(tmp_path)
    assert not data.train.labelled
    assert data.class_names == ()
    assert data.test is None
    assert data.validation is None
    assert data.unlabelled is data.train
    assert reds(data.train) == [0, 1, 2]


@pytest.mark.parametrize("layout", ["", "train"])
def test_unlabelled_images_beside_labelled_ones(tmp_path, layout):
    write_classes(tmp_path / layout, {"a": 4, "b": 4})
    write_classes(tmp_path / "unlabelled", {"x": 3}, first=100)
    data = load_folder(tmp_path, test_fraction=0.25, train_labels=2)
    assert len(data.train) == 2
    assert data.unlabelled.ids == tuple(f"unlabelled/x/00{i}.png" for i in range(3))
    assert not data.unlabelled.labelled
    assert reds(data.unlabelled) == [100, 101, 102]


# --- what is wrong is said


def refused(folder, match, **changes):
    with pytest.raises(UserError, match=match) as caught:
        load_folder(folder, **changes)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path):
    refused("", r"no folder \(none given\): set --config.data.dir")
    refused(tmp_path / "nowhere", "no folder .*nowhere")
    refused(tmp_path, "no images in .*: expected train/<class>")


def test_empty_class_folder(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    (tmp_path / "train" / "c").mkdir()
    refused(tmp_path, "class folder .*train/c holds no images")


def test_empty_unlabelled_folder(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    (tmp_path / "unlabelled").mkdir()
    refused(tmp_path, "unlabelled holds no images")


def test_one_class(tmp_path):
    write_classes(tmp_path, {"a": 3})
    refused(tmp_path, "at least two classes, the data set has 1")


def test_no_test_split(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    refused(tmp_path, r"of your own images: a test folder .* --config\.data\.test_fraction=0\.2")
    refused(tmp_path, "test_fraction=0.01 of 6 examples leaves one part empty", test_fraction=0.01)


def test_test_class_that_train_does_not_have(tmp_path):
    write_classes(tmp_path / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "test", {"a": 1, "zebra": 1})
    refused(tmp_path, "test has the class 'zebra', which train does not have")


def test_test_folder_alone_is_not_a_class(tmp_path):
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    write_classes(tmp_path / "other", {"a": 1, "b": 1})
    refused(tmp_path, "test is there, but neither .*train nor .*train.csv")


def test_two_validation_folders(tmp_path):
    for name in ("train", "val", "validation"):
        write_classes(tmp_path / name, {"a": 1, "b": 1})
    refused(tmp_path, "both .*validation and .*val are there")


def test_image_outside_the_class_folders(tmp_path):
    write_classes(tmp_path, {"a": 1, "b": 1})
    write_image(tmp_path / "lost.png")
    refused(tmp_path, "lost.png is in no class folder")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,label\n", r"train\.csv, line 1: no column path"),
        ("", r"train\.csv, line 1: no column label and path"),
        ("path,label\na.png,x\nmissing.png,x\n", r"train\.csv, line 3: no file missing\.png"),
        ("path,label\na.png\n", r"train\.csv, line 2: empty path or label"),
        ("path,label\na.png,\n", r"train\.csv, line 2: empty path or label"),
        ("path,label\na.png,x\na.png,y\n", r"train\.csv, line 3: a\.png stands in this file twice"),
        ("path,label\n/etc/hostname,x\n", r"train\.csv, line 2: no file /etc/hostname"),
    ],
)
def test_csv_faults_name_file_and_line(tmp_path, text, match):
    write_image(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text(text)
    refused(tmp_path, match)


def test_broken_images_are_capped_and_named(tmp_path):
    write_classes(tmp_path / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, first=50)
    for name in ("train/a/001.png", "test/b/000.png"):
        (tmp_path / name).write_bytes(b"")
    refused(
        tmp_path, r"2 of 12 images are broken.*max_broken=0: train/a/001.png \(.*test/b/000.png"
    )
    data = load_folder(tmp_path, max_broken=2)
    assert set(data.notes["broken"]) == {"train/a/001.png", "test/b/000.png"}
    assert reds(data.train) == [0, 2, 3, 4, 5, 6, 7]
    assert data.train.arrays["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert reds(data.test) == [50, 51, 53]
    assert data.test.ids == ("test/a/000.png", "test/a/001.png", "test/b/001.png")


def test_a_class_whose_images_are_all_broken(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 1})
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train" / "b" / "000.png").write_bytes(b"")
    refused(tmp_path, "1 classes have no training example: b", max_broken=1)


@pytest.mark.parametrize("name", ["Train", "test_", "Testing"])
def test_a_split_in_other_letters_is_no_class(tmp_path, name):
    write_classes(tmp_path, {name: 2, "b": 2})
    if name == "test_":
        assert load_folder(tmp_path, test_fraction=0.5).class_names == ("b", "test_")
    else:
        refused(tmp_path, f"{name} looks like a split", test_fraction=0.5)


def test_a_fraction_for_a_split_that_is_there(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, first=9)
    refused(tmp_path, "test_fraction: the data set has its own test split", test_fraction=0.5)


def test_images_of_test_that_train_has_are_counted(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 3}, first=2)
    assert load_folder(tmp_path).notes["test_images_in_train"] == 2


def test_a_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "train.csv").write_bytes("path,label\na.png,Fuß\n".encode("latin-1"))
    refused(tmp_path, "train.csv: not a CSV file in UTF-8")
