"""What the tests of the data sets share: settings and small images on disk."""

import dataclasses

from PIL import Image

from sdfp.data.interface import Split
from sdfp.settings import Data

DEFAULTS = Data(
    name="image_folder",
    dir="",
    source="files",
    image_size=4,
    channels=3,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    test_fraction=0.0,
    validation_fraction=0.0,
    train_labels=0,
    split_seed=0,
    max_broken=0,
    cache_dir="",
)


def settings(folder="", **changes) -> Data:
    return dataclasses.replace(DEFAULTS, dir=str(folder), **changes)


def grey(folder="", **changes) -> Data:
    return settings(folder, channels=1, mean=(0.5,), std=(0.5,), **changes)


def write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 6), (value, 0, 255 - value)).save(path, "PNG")


def write_classes(folder, counts, first=0):
    """`folder/<class>/<number>.png`; the red channel is the running number of the image."""
    for name, count in counts.items():
        for number in range(count):
            write_image(folder / name / f"{number:03d}.png", first)
            first += 1
    return folder


def reds(split: Split) -> list[int]:
    return split.arrays["image"][:, 0, 0, 0].tolist()
