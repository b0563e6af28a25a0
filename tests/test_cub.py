"""CUB-200-2011: the original layout, TFDS, and the real annotation files."""

import numpy as np
import pytest
from data_helpers import reds, settings, write_image
from tfds_helpers import assert_equal_data, write_tfds

from sdfp.data import cub
from sdfp.types import UserError


def write_cub(root, classes=(1, 7), per_class=4):
    """The original layout with the given class ids; odd image ids are train."""
    paths, labels, train = [], [], []
    number = 0
    for class_id in classes:
        for i in range(per_class):
            number += 1
            path = f"{class_id:03d}.Bird_{class_id}/Bird_{i}.jpg"
            write_image(root / "images" / path, number)
            paths.append(f"{number} {path}")
            labels.append(f"{number} {class_id}")
            train.append(f"{number} {number % 2}")
    names = [f"{i} {i:03d}.Bird_{i}" for i in range(1, 10)]
    files = {
        "images": paths,
        "image_class_labels": labels,
        "train_test_split": train,
        "classes": names,
    }
    for name, lines in files.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("inside", [False, True])
def test_cub_original_layout(tmp_path, inside):
    root = write_cub(tmp_path / "CUB_200_2011")
    data = cub.load(settings(root if inside else tmp_path))
    assert data.class_names == ("001.Bird_1", "007.Bird_7")  # those that occur, from 0
    assert data.train.arrays["label"].tolist() == [0, 0, 1, 1]
    assert data.train.ids[0] == "001.Bird_1/Bird_0.jpg"
    assert reds(data.train) == [1, 3, 5, 7]
    assert reds(data.test) == [2, 4, 6, 8]


def test_cub_not_found(tmp_path):
    for folder in ("", str(tmp_path)):
        with pytest.raises(UserError, match=r"^no .*config\.data\.dir.*images\.txt.*https://") as e:
            cub.load(settings(folder))
        assert "\n" not in str(e.value)


def test_the_same_image_twice(tmp_path):
    root = write_cub(tmp_path)
    lines = (root / "images.txt").read_text().splitlines()
    lines[1] = "2 " + lines[0].split()[1]  # image 1 is train, image 2 test
    (root / "images.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"Bird_0\.jpg is listed twice, in train and in test"):
        cub.load(settings(root))


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("images.txt", "1 a.jpg\nnonsense\n", r"images\.txt, line 2: expected '<id> <value>'"),
        ("image_class_labels.txt", "1 x\n", r"image_class_labels\.txt, line 1"),
        ("image_class_labels.txt", "1 1\n", "image 2 has no known class"),
        ("image_class_labels.txt", "1 99\n", "image 1 has no known class"),
        ("train_test_split.txt", "1 1\n2 3\n", "image 2 is neither 0 nor 1"),
        ("classes.txt", None, r"cannot read .*classes\.txt: No such file"),
    ],
)
def test_cub_faults_name_file_and_line(tmp_path, file, text, match):
    root = write_cub(tmp_path)
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(UserError, match=match):
        cub.load(settings(root))


def test_cub_images_that_are_missing_are_named(tmp_path):
    root = write_cub(tmp_path)
    (root / "images/001.Bird_1/Bird_0.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 8 images are broken.*Bird_0\.jpg \(no such file\)"):
        cub.load(settings(root))


def test_cub_from_tfds_equals_cub_from_files(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = write_cub(tmp_path / "CUB_200_2011")
    splits = {"train": [], "test": []}
    for a in cub.parse(root)[0]:
        splits["train" if a.train else "test"].append(
            {
                "image": root / "images" / a.path,
                "image/filename": f"CUB_200_2011/images/{a.path}",
                "label": a.class_id - 1,
                "label_name": "bird",
                "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                "segmentation_mask": root / "images" / a.path,
            }
        )
    write_tfds(monkeypatch, tmp_path / "tfds", "caltech_birds2011", splits)
    data = cub.load(settings(tmp_path / "tfds", source="tfds", cache_dir=str(tmp_path / "cache")))
    assert_equal_data(data, cub.load(settings(root)))
    assert "caltech_birds2011" in data.notes["source"]


def test_cub_tfds_not_prepared(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match="tfds build caltech_birds2011 --file_format=array_record"):
        cub.load(settings(tmp_path, source="tfds"))


@pytest.mark.real_data
def test_real_cub_annotations(real_data):
    root = real_data / "images/cub200_2011_annotations_full/CUB_200_2011"
    annotations, names = cub.parse(root)
    assert len(annotations) == 11788
    assert sum(a.train for a in annotations) == 5994
    assert sum(not a.train for a in annotations) == 5794
    assert {a.class_id for a in annotations} == set(names) == set(range(1, 201))
    assert names[200] == "200.Common_Yellowthroat"
    assert all(a.path.startswith(names[a.class_id] + "/") for a in annotations)


@pytest.mark.real_data
def test_real_cub_subset(real_data):
    folder = real_data / "images/cub200_2011_first50classes_short112"
    data = cub.load(settings(folder, image_size=16))
    assert (len(data.train), len(data.test), len(data.class_names)) == (1500, 1389, 50)
    assert not data.notes["broken"]
    assert np.bincount(data.train.arrays["label"]).tolist() == [30] * 50
    for name, label in zip(data.train.ids, data.train.arrays["label"], strict=True):
        assert name.split("/")[0] == data.class_names[label]
    pixels = data.train.arrays["image"]
    greys = (pixels == pixels[..., :1]).all((1, 2, 3))
    assert 0 < greys.sum() < 30  # CUB has a few grey photos
