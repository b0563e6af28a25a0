"""The original layouts of five data sets, written small; their faults; TFDS; the real files."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from data_helpers import reds, settings, write_image
from PIL import Image
from scipy import io
from tfds_helpers import assert_equal_data, write_tfds

from sdfp.data import aircraft, chest_xray, dtd, flowers, image_folder
from sdfp.data.registry import DATASETS
from sdfp.types import UserError

INSIDE = {
    "aircraft": "fgvc-aircraft-2013b",
    "chest_xray": "chest_xray",
    "dogs": "stanford_dogs",
    "dtd": "dtd",
    "flowers": "oxford_flowers102",
}
"""Data set -> the folder that its archive makes (or that fetch puts it in)."""

# What is written: image -> red value, which tells which file a row was read from.


def lines(file, *content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(content) + "\n")


def write_aircraft(root):
    lines(root / "data/variants.txt", "Yak-42", "BAE 146-200", "Never Seen", "F-16A/B")
    train = ("0000003 F-16A/B", "0000001 BAE 146-200", "0000004 Yak-42")
    lines(root / "data/images_variant_trainval.txt", *train)
    lines(root / "data/images_variant_test.txt", "0000002 F-16A/B", "", "0000005 BAE 146-200  ")
    for number in range(1, 6):
        write_image(root / f"data/images/000000{number}.jpg", number)


def write_chest_xray(root):
    """Mendeley's archive: the images of Kaggle's val/ are in train/."""
    write_image(root / "train/PNEUMONIA/person3_virus_4.jpeg", 3)
    write_image(root / "test/NORMAL/IM-0001-0001.jpeg", 5)
    write_image(root / "test/PNEUMONIA/person1_virus_6.jpeg", 6)
    for number, name in enumerate(sorted(chest_xray.VALIDATION)):
        write_image(root / "train" / name, 100 + number)
    folder = root / "train/NORMAL"
    for name, mode, value in (("IM-0115-0001", "L", 1), ("NORMAL2-IM-1427-0002", "RGB", (2, 2, 2))):
        Image.new(mode, (9, 8), value).save(folder / f"{name}.jpeg", "JPEG", quality=100)


def write_dtd(root):
    parts = {
        "train": ("zigzagged/zigzagged_0004.jpg", "banded/banded_0002.jpg"),
        "val": ("dotted/dotted_0003.jpg", "banded/banded_0001.jpg"),
        "test": ("zigzagged/zigzagged_0006.jpg", "banded/banded_0005.jpg"),
    }
    for part, paths in parts.items():
        lines(root / f"labels/{part}1.txt", *paths)
        for path in paths:
            write_image(root / "images" / path, int(path[-5]))


DOGS = {
    "train": {"n02-toy_poodle/n02_3.jpg": 2, "n01-flat-coated_retriever/n01_1.jpg": 1},
    "test": {"n01-flat-coated_retriever/n01_2.jpg": 1, "n02-toy_poodle/n02_4.jpg": 2},
}
"""Part -> path -> label in the file."""


def write_dogs_list(file, labels):
    """As in lists.tar: cells of texts in a column, and the labels in a column."""
    cells, annotations = (np.empty((len(labels), 1), object) for _ in range(2))
    cells[:, 0] = list(labels)
    annotations[:, 0] = [path.removesuffix(".jpg") for path in labels]
    numbers = np.array([list(labels.values())]).T
    content = {"file_list": cells, "annotation_list": annotations, "labels": numbers}
    io.savemat(
        file, {**content, "labels": numbers.astype(np.uint8 if numbers.max() < 256 else int)}
    )


def write_dogs(root):
    for part, labels in DOGS.items():
        for path in labels:
            write_image(root / "Images" / path, int(path[-5]))
        write_dogs_list(root / f"{part}_list.mat", labels)


def write_flowers_files(root, labels=(77, 1, 102, 77, 1, 102, 77), dtype=np.uint16, **parts):
    chosen = {"trnid": [3, 1], "valid": [2], "tstid": [7, 4, 5, 6]} | parts
    io.savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    io.savemat(root / "setid.mat", {name: np.array([n], dtype) for name, n in chosen.items()})


def write_flowers(root):
    for number in range(1, 8):
        write_image(root / f"jpg/image_{number:05d}.jpg", number)
    write_flowers_files(root)


def write(name, folder) -> Path:
    root = folder / INSIDE[name]
    root.mkdir()
    globals()[f"write_{name}"](root)
    return root


EXPECTED = {
    "aircraft": (
        ("Yak-42", "BAE 146-200", "F-16A/B"),
        [("0000001.jpg", 1, 1), ("0000003.jpg", 2, 3), ("0000004.jpg", 0, 4)],
        [("0000002.jpg", 2, 2), ("0000005.jpg", 1, 5)],
    ),
    "chest_xray": (
        ("NORMAL", "PNEUMONIA"),
        [
            ("train/NORMAL/IM-0115-0001.jpeg", 0, 1),
            ("train/NORMAL/NORMAL2-IM-1427-0002.jpeg", 0, 2),
            ("train/PNEUMONIA/person3_virus_4.jpeg", 1, 3),
        ],
        [("test/NORMAL/IM-0001-0001.jpeg", 0, 5), ("test/PNEUMONIA/person1_virus_6.jpeg", 1, 6)],
    ),
    "dtd": (
        ("banded", "dotted", "zigzagged"),
        [
            ("banded/banded_0001.jpg", 0, 1),
            ("banded/banded_0002.jpg", 0, 2),
            ("dotted/dotted_0003.jpg", 1, 3),
            ("zigzagged/zigzagged_0004.jpg", 2, 4),
        ],
        [("banded/banded_0005.jpg", 0, 5), ("zigzagged/zigzagged_0006.jpg", 2, 6)],
    ),
    "dogs": (
        ("flat-coated_retriever", "toy_poodle"),
        [("n01-flat-coated_retriever/n01_1.jpg", 0, 1), ("n02-toy_poodle/n02_3.jpg", 1, 3)],
        [("n01-flat-coated_retriever/n01_2.jpg", 0, 2), ("n02-toy_poodle/n02_4.jpg", 1, 4)],
    ),
    "flowers": (
        ("pink primrose", "passion flower", "blackberry lily"),
        [(f"image_0000{n}.jpg", label, n) for n, label in ((1, 1), (2, 0), (3, 2))],
        [(f"image_0000{n}.jpg", label, n) for n, label in ((4, 1), (5, 0), (6, 2), (7, 1))],
    ),
}
"""Class names; (id, label, red value) of train; of test."""


def rows(split):
    return list(zip(split.ids, split.arrays["label"].tolist(), reds(split), strict=True))


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("given", ["root", "parent"])
def test_original_layout(tmp_path, name, given):
    root = write(name, tmp_path)
    data = DATASETS[name].load(settings(root if given == "root" else tmp_path))
    class_names, train, test = EXPECTED[name]
    assert data.class_names == class_names
    assert rows(data.train) == train
    assert rows(data.test) == test
    assert data.unlabelled is data.train
    assert data.validation is None
    assert data.notes["found"] == (len(train), len(test))
    assert str(root) in data.notes["source"]


PUBLISHED = {
    "aircraft": (6667, 3333),
    "chest_xray": (5216, 624),
    "dogs": (12000, 8580),
    "dtd": (3760, 1880),
    "flowers": (2040, 6149),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_part_is_noted_and_found_before_the_cuts(tmp_path, name):
    write(name, tmp_path)
    whole = DATASETS[name].load(settings(tmp_path))
    cut = DATASETS[name].load(settings(tmp_path, train_labels=len(whole.class_names)))
    for data in (whole, cut):
        assert data.notes["found"] == (len(whole.train), len(whole.test))
        assert data.notes["published"] == PUBLISHED[name]


@pytest.mark.parametrize("name", INSIDE)
def test_not_found(tmp_path, name):
    for folder in ("", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=rf"^no .*data\.dir.*data\.fetch {name} .*http") as e:
            DATASETS[name].load(settings(folder))
        assert "\n" not in str(e.value)
        assert folder in str(e.value)


# --- chest_xray


def test_the_validation_images_are_left_out_in_both_archives(tmp_path):
    assert len(chest_xray.VALIDATION) == 16
    mendeley = write("chest_xray", tmp_path)
    one = chest_xray.load(settings(mendeley))
    for name in chest_xray.VALIDATION:  # Kaggle's archive
        (mendeley / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (mendeley / "train" / name).rename(mendeley / "val" / name)
    assert_equal_data(chest_xray.load(settings(mendeley)), one)


def test_xrays_without_a_test_folder(tmp_path):
    root = write("chest_xray", tmp_path)
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"has no test split.*test_fraction"):
        chest_xray.load(settings(root))
    data = chest_xray.load(settings(root, test_fraction=0.34))
    assert (len(data.train), len(data.test)) == (2, 1)


# --- what is wrong is said


def add(file, *content):
    def spoil(root):
        with (root / file).open("a") as opened:
            opened.write("\n".join(content) + "\n")

    return spoil


def remove(file):
    return lambda root: (root / file).unlink()


def cut(file):
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:150])


def put(file, content):
    return lambda root: (root / file).write_bytes(content)


def mat(file, **content):
    return lambda root: io.savemat(root / file, content)


def flower(**changes):
    return lambda root: write_flowers_files(root, **changes)


def dog(part, **labels):
    changed = DOGS[part] | {f"{path.replace('__', '/')}.jpg": n for path, n in labels.items()}
    return lambda root: write_dogs_list(root / f"{part}_list.mat", changed)


PLANES = np.array([[None]])
PLANES[0, 0] = np.zeros((2, 2))
HDF = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
TWICE = "is listed twice, in {}: remove"
FAULTS = {
    "aircraft": [
        (remove("data/images_variant_test.txt"), r"read .*images_variant_test\.txt: No such file"),
        (add("data/images_variant_trainval.txt", "12"), r"trainval\.txt, line 4: expected.*'12'"),
        (add("data/images_variant_test.txt", "x1 Yak-42"), r"test\.txt, line 4: .*'x1 Yak-42'"),
        (add("data/images_variant_trainval.txt", "0 ../../x y\n0.jpg z"), "line 5: .*'0.jpg z'"),
        (add("data/images_variant_test.txt", "7 Concorde"), r"7\.jpg has the .* class 'Concorde'"),
        (add("data/images_variant_trainval.txt", "0000001 Yak-42"), TWICE.format("train")),
        (add("data/images_variant_test.txt", "0000001 Yak-42"), TWICE.format("train and in test")),
        (add("data/images_variant_test.txt", "9 Yak-42"), r"broken.*9\.jpg \(no such file\)"),
        (put("data/variants.txt", b"F-16A/B"), "unknown class 'BAE 146-200'"),
    ],
    "chest_xray": [
        (lambda root: (root / "train/VIRUS").mkdir(), "class folder .*VIRUS holds no images"),
        (lambda root: write_image(root / "test/VIRUS/1.jpeg"), "unknown class 'VIRUS'"),
        (lambda root: write_image(root / "train/1.jpeg"), "1.jpeg is in no class folder"),
        (cut("train/NORMAL/IM-0115-0001.jpeg"), r"1 of 5 images are broken.*IM-0115-0001"),
        (lambda root: (root / "train").rename(root / "x"), "no train in .*chest_xray"),
    ],
    "dtd": [
        (remove("labels/val1.txt"), r"cannot read .*val1\.txt: No such file"),
        (add("labels/val1.txt", "banded"), r"val1\.txt, line 3: expected '<class>/<image>'"),
        (add("labels/val1.txt", "a/b/c.jpg"), r"val1\.txt, line 3: .*'a/b/c\.jpg'"),
        (add("labels/test1.txt", "../secret.jpg"), r"test1\.txt, line 3: .*secret"),
        (add("labels/val1.txt", "banded/banded_0002.jpg"), TWICE.format("train")),
        (lambda root: (root / "labels/test1.txt").write_text("\n"), r"test1\.txt: is empty"),
        (add("labels/test1.txt", "banded/banded_0002.jpg"), TWICE.format("train and in test")),
        (add("labels/test1.txt", "banded/x.jpg"), r"broken.*banded/x\.jpg \(no such file\)"),
        (add("labels/test1.txt", "banded/\0.jpg"), r"test1\.txt, line 3: holds a null"),
        (add("labels/test1.txt", "novel/x.jpg"), "broken"),
        (lambda root: write_image(root / "images/novel/x.jpg"), None),  # listed nowhere
    ],
    "dogs": [
        (remove("test_list.mat"), r"cannot read .*test_list\.mat: No such file"),
        (cut("train_list.mat"), r"train_list\.mat: not a whole MATLAB 5 file"),
        (put("train_list.mat", b""), r"train_list\.mat: not a whole MATLAB 5 file"),
        (put("train_list.mat", b"<html>404</html>" * 50), r"train_list\.mat: not a whole MATLAB"),
        (put("train_list.mat", HDF), r"train_list\.mat: not a whole MATLAB 5 file"),
        (mat("train_list.mat", labels=[1]), r"train_list\.mat: no variable file_list"),
        (mat("train_list.mat", file_list=[[1.0]], labels=[1]), "expected '<breed>/<image>'"),
        (
            mat("test_list.mat", file_list=PLANES, labels=[1]),
            "test_list.mat: file_list is not a list",
        ),
        (dog("train", n01__x=0), "n01/x.jpg has the label 0, outside 1..120"),
        (dog("test", n01__x=121), "n01/x.jpg has the label 121, outside 1..120"),
        (dog("test", n01__x=120), "broken.*n01/x.jpg .no such file"),
        (dog("train", n07__x=1), r"train_list\.mat: label 1 stands for n01.* and for n07"),
        (dog("train", plain=3), r"expected '<breed>/<image>', got 'plain\.jpg'"),
        (dog("test", **{"n02-toy_poodle__n02_3": 2}), TWICE.format("train and in test")),
        (mat("train_list.mat", file_list=np.array(["a/b"], object), labels=[[1, 2]]), "2 labels"),
    ],
    "flowers": [
        (remove("imagelabels.mat"), r"cannot read .*imagelabels\.mat: No such file"),
        (cut("setid.mat"), r"setid\.mat: not a whole MATLAB 5 file"),
        (mat("setid.mat", trnid=[1]), r"setid\.mat: no variable valid, tstid"),
        (mat("imagelabels.mat", names=[1]), r"imagelabels\.mat: no variable labels"),
        (mat("imagelabels.mat", labels=np.array(["a", 1], object)), r"imagelabels\.mat: image 1 "),
        (flower(labels=(0, 1, 2, 1, 1, 1, 1)), "image 1 has the label 0, outside 1..102"),
        (flower(labels=(1, 2, 103, 1, 1, 1, 1)), "image 3 has the label 103, outside 1..102"),
        (flower(trnid=[0]), r"setid\.mat: trnid has image 0.*1\.\.7"),
        (flower(tstid=[8]), r"setid\.mat: tstid has image 8.*1\.\.7"),
        (flower(tstid=[1.5], dtype=float), r"setid\.mat: tstid has image 1\.5"),
        (flower(dtype=float), None),  # MATLAB's default type
        (flower(valid=[2, 1]), TWICE.format("train")),
        (flower(tstid=[4, 1]), TWICE.format("train and in test")),
        (remove("jpg/image_00004.jpg"), r"broken.*image_00004\.jpg \(no such file\)"),
        (flower(trnid=[3, 3]), TWICE.format("train")),
        (flower(trnid=[2], valid=[5], tstid=[1]), "1 classes have no training example: passion"),
    ],
}


@pytest.mark.parametrize(
    ("name", "spoil", "match"), [(name, *fault) for name in FAULTS for fault in FAULTS[name]]
)
def test_faults_are_one_line(tmp_path, name, spoil, match):
    root = write(name, tmp_path)
    spoil(root)
    if match is None:
        assert rows(DATASETS[name].load(settings(root)).train) == EXPECTED[name][1]
        return
    with pytest.raises(UserError, match=match) as caught:
        DATASETS[name].load(settings(root))
    assert "\n" not in str(caught.value)


# --- TFDS


TFDS = {"dtd": "dtd", "dogs": "stanford_dogs", "flowers": "oxford_flowers102"}


def tfds_example(name, root, image, label):
    """What TFDS stores of one image; its labels are not ours (dtd's, dogs') or are from 0."""
    if name == "dogs":
        rest = {"image/filename": f"Images/{image}", "objects": [], "label": 119 - label}
    else:
        rest = {"file_name": image, "label": label}
    folder = {"dtd": "images", "dogs": "Images", "flowers": "jpg"}[name]
    return {"image": root / folder / image, **rest}


@pytest.mark.parametrize("name", TFDS)
def test_tfds_equals_files(name, tmp_path, monkeypatch):
    root = write(name, tmp_path)
    class_names, train, test = EXPECTED[name]
    splits = {"train": train[1:], "validation": train[:1], "test": test}
    if name == "dogs":
        splits = {"train": train, "test": test}
    official = {
        i: flowers.NAMES.index(c) if name == "flowers" else i + 1 for i, c in enumerate(class_names)
    }
    examples = {
        part: [tfds_example(name, root, image, official[label]) for image, label, _ in listed[::-1]]
        for part, listed in splits.items()
    }
    write_tfds(monkeypatch, tmp_path / "tfds", TFDS[name], examples)
    wanted = settings(tmp_path / "tfds", source="tfds", cache_dir=str(tmp_path / "cache"))
    data = DATASETS[name].load(wanted)
    assert rows(data.train) == train
    assert_equal_data(data, DATASETS[name].load(settings(root)))
    assert f"TFDS {TFDS[name]}/" in data.notes["source"]
    assert data.notes["published"] == PUBLISHED[name]


@pytest.mark.parametrize("name", TFDS)
def test_tfds_not_prepared(tmp_path, name):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match=f"tfds build {TFDS[name]} --file_format=array_rec") as e:
        DATASETS[name].load(settings(tmp_path, source="tfds"))
    assert "\n" not in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_flower_names_are_those_of_tfds(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    info = tfds.builder_cls("oxford_flowers102")(data_dir=tmp_path).info
    assert list(flowers.NAMES) == info.features["label"].names


# --- the real files


@pytest.mark.real_data
def test_real_flower_annotations(real_data):
    folder = real_data / "images/oxford_flowers102_annotations"
    listing = flowers.from_files(str(folder))
    labels = io.loadmat(folder / "imagelabels.mat")["labels"][0]
    sets = {
        name: part[0] for name, part in io.loadmat(folder / "setid.mat").items() if "id" in name
    }
    assert [len(sets[name]) for name in ("trnid", "valid", "tstid")] == [1020, 1020, 6149]
    assert (len(listing.train), len(listing.test)) == listing.published == (2040, 6149)
    assert listing.class_names == flowers.NAMES
    assert len(set(flowers.NAMES)) == 102
    seen = {}
    for part, names in ((listing.train, ("trnid", "valid")), (listing.test, ("tstid",))):
        numbers = sorted(itertools.chain(*(sets[name].tolist() for name in names)))
        assert [e.id for e in part] == [f"image_{number:05d}.jpg" for number in numbers]
        seen |= {number: e.label for number, e in zip(numbers, part, strict=True)}
    assert seen == {number: label - 1 for number, label in enumerate(labels.tolist(), 1)}
    assert np.bincount([e.label for e in listing.train]).tolist() == [20] * 102


@pytest.mark.real_data
def test_real_aircraft_annotations(real_data):
    folder = real_data / "images/fgvc_aircraft_2013b_annotations_reconstructed"
    listing = aircraft.from_files(str(folder))
    data = folder / "fgvc-aircraft-2013b/data"
    parts = {
        part: dict(aircraft.parse(data / f"images_variant_{part}.txt"))
        for part in ("train", "val", "trainval", "test")
    }
    assert parts["train"] | parts["val"] == parts["trainval"]
    assert (len(listing.train), len(listing.test)) == listing.published == (6667, 3333)
    assert listing.class_names == tuple((data / "variants.txt").read_text().splitlines())
    assert len(listing.class_names) == 100
    assert {"707-320", "BAE 146-200", "F-16A/B", "F/A-18"} <= set(listing.class_names)
    for examples, part in ((listing.train, "trainval"), (listing.test, "test")):
        named = {e.id.removesuffix(".jpg"): listing.class_names[e.label] for e in examples}
        assert named == parts[part]
        assert np.bincount([e.label for e in examples]).min() >= 33


@pytest.mark.real_data
def test_real_textures_decode(real_data, tmp_path):
    originals = sorted((real_data / "images/dtd_original_samples/images").glob("*/*.jpg"))
    paths = [f"{file.parent.name}/{file.name}" for file in originals]
    again = [f"{file.parent.name}/again.jpg" for file in originals]
    for path, file in zip(paths + again, originals * 2, strict=True):
        (tmp_path / "dtd/images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dtd/images" / path).symlink_to(file)
    for part, listed in {"train": paths[1:], "val": paths[:1], "test": again}.items():
        lines(tmp_path / f"dtd/labels/{part}1.txt", *listed)
    data = dtd.load(settings(tmp_path, image_size=32))
    assert data.class_names == ("banded", "bubbly", "cracked")
    assert data.train.ids == tuple(paths)
    assert data.notes["test_images_in_train"] == 3
    assert (data.train.arrays["image"].std((1, 2, 3)) > 5).all()


@pytest.mark.real_data
def test_real_xrays_decode(real_data, tmp_path):
    """Grey and RGB files in one folder; the same ones stand in test here, and are counted."""
    originals = real_data / "images/chest_xray_kermany_original_samples/train"
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(originals, target_is_directory=True)
    data = chest_xray.load(settings(tmp_path, image_size=32))
    modes = []
    for path, _ in image_folder.read_classes(tmp_path / "train"):
        with Image.open(path) as image:
            modes.append(image.mode)
    assert set(modes) == {"L", "RGB"}
    assert data.train.arrays["label"].tolist() == [0, 0, 1, 1, 1, 1]
    assert data.notes["test_images_in_train"] == 6
    pixels = data.train.arrays["image"]
    assert (pixels == pixels[..., :1]).all()  # an X-ray is grey, whatever its file says
    assert (pixels.std((1, 2, 3)) > 5).all()
