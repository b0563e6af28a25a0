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
    for name in "cd":
        (tmp_path / "train" / name).mkdir()
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "test" / "b" / "000.png").unlink()
    refused(tmp_path, "class folder .*train/c, .*train/d holds no .*class folder .*test/b holds no")


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
    write_classes(tmp_path / "val", {"a": 1, "yak": 1, "zebra": 1})
    refused(tmp_path, "test has .* not have: 'zebra'; .*validation has .* not have: 'yak', 'zebra'")


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
        ("file,label\n", r"train\.csv, line 1: no column 'path'; the columns are file, label"),
        ("", r"train\.csv, line 1: no column 'path' and 'label'"),
        ("path,label\na.png,x\nmissing.png,x\n", r"train\.csv, line 3: no file missing\.png"),
        ("path,label\na.png\n", r"train\.csv, line 2: empty path or label"),
        ("path,label\na.png,\n", r"train\.csv, line 2: empty path or label"),
        ("path,label\na.png,x\na.png,y\n", r"train\.csv, line 3: a\.png stands in this file twice"),
        ("path,label\na.png,x\n./a.png,y\n", r"line 3: \./a\.png stands in this file twice"),
        ("path,label\nb/../a.png,x\n", r"train\.csv, line 2: b/\.\./a\.png holds '\.\.'"),
        (
            "path,label\n/etc/hostname,x\n",
            r"train\.csv, line 2: /etc/hostname is absolute: paths are relative",
        ),
        (
            "path,label\n\nx,x\ny,y\n",
            r"train\.csv, line 3: no file x .*train\.csv, line 4: no file y",
        ),
        ("path,label\n" + "x,x\n" * 9, r"line 5: no file x in [^;]*; .*train\.csv: 5 more lines"),
        (
            "path,label\n" + "x" * 5000 + ",x\n",
            r"train\.csv, line 2: cannot read x{300}\.\.\. in .*long",
        ),
        ("path,label\n" + "x" * 200_000 + ",x\n", r"train\.csv, line 2: cannot read x{300}\.\.\. "),
        ("path,label\n", r"train\.csv: no row below the"),
    ],
)
def test_csv_faults_name_file_and_line(tmp_path, text, match):
    write_image(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text(text)
    refused(tmp_path, match)


def test_faults_of_two_csv_files(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\nx,a\n")
    (tmp_path / "test.csv").write_text("path\n")
    refused(
        tmp_path, r"train\.csv, line 2: no file x in .*; .*test\.csv, line 1: no column 'label'"
    )


def test_a_file_of_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def is_file(path):  # tests may run as root, whom no mode stops
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "train.csv").write_text("path,label\na/b.png,x\n")
    monkeypatch.setattr(type(tmp_path), "is_file", is_file)
    monkeypatch.setattr(image_folder, "_refuse_misnamed", lambda *_, **__: None)
    refused(tmp_path, r"train\.csv, line 2: cannot read a/b\.png in .*: Permission denied")


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


@pytest.mark.parametrize("train", ["train", "train.csv", "."])
@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("unlabeled", "the folder unlabelled"),
        ("Unlabelled", "the folder unlabelled"),
        ("valid", "the folder validation"),
        ("Test", "the folder test"),
        ("valid.csv", "validation.csv"),
        ("test.CSV", "test.csv"),
    ],
)
def test_almost_the_name_of_a_split(tmp_path, train, name, called):
    """Refused where it could be meant: train.csv may list images of such folders."""
    kinds = ("file" if file.lower().endswith(".csv") else "folder" for file in (train, name))
    rows = "".join(f"images/{c}/{n}.png,{c}\n" for c in "ab" for n in ("000", "001"))
    for file, kind in zip((train, name), kinds, strict=True):
        write_classes(tmp_path / ("images" if kind == "file" else file), {"a": 3, "b": 3})
        if kind == "file":
            (tmp_path / file).write_text(f"path,label\n{rows}")
    mixed = train != "." and train.endswith("csv") != name.lower().endswith("csv")
    if mixed and called != "the folder unlabelled":
        assert load_folder(tmp_path, test_fraction=0.5).class_names == ("a", "b")
    else:
        refused(tmp_path, f"{name} looks like a split, .*: make it {called}, or", test_fraction=0.5)


def test_an_empty_folder_of_almost_the_name_of_a_split(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "dev").mkdir()
    assert load_folder(tmp_path, test_fraction=0.5).class_names == ("a", "b")
    write_classes(tmp_path / "train", {"unlabelled": 2})
    refused(tmp_path, "train/unlabelled looks like a split, not a class", test_fraction=0.5)


@pytest.mark.parametrize("unread", ["test", "test.csv"])
def test_a_test_split_of_another_kind_than_train(tmp_path, unread):
    images = write_classes(tmp_path / "train", {"a": 2, "b": 2})
    rows = "".join(
        f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in images.rglob("*.png")
    )
    if unread == "test":
        write_classes(tmp_path / "test", {"a": 2, "b": 2})
    (tmp_path / ("train.csv" if unread == "test" else unread)).write_text(f"path,label\n{rows}")
    refused(tmp_path, rf"/{unread} is not read beside .*train.*: make both")
    assert len(load_folder(tmp_path, test_fraction=0.5).train) == 2


def test_a_fraction_for_a_split_that_is_there(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, first=9)
    refused(tmp_path, "test_fraction: the data set has its own test split", test_fraction=0.5)


def test_a_class_that_test_does_not_have_is_remarked(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, first=9)
    remark = "the test split has no example of 1 of the 3 classes: c"
    assert load_folder(tmp_path).remarks == (remark,)
    write_classes(tmp_path / "test", {"c": 1}, first=20)
    assert load_folder(tmp_path).remarks == ()


def test_images_of_test_that_train_has_are_counted(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 2, "b": 3}, first=2)
    assert load_folder(tmp_path).notes["test_images_in_train"] == 2


def test_a_csv_that_is_not_utf8(tmp_path):
    (tmp_path / "train.csv").write_bytes("path,label\na.png,Fuß\n".encode("latin-1"))
    refused(tmp_path, r"train\.csv, line 2: not UTF-8")
