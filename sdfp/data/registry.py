"""The data sets that `config.data.name` can name, one line each."""

from sdfp.data import (
    aircraft,
    chest_xray,
    cifar100,
    cub,
    digits,
    dogs,
    dtd,
    flowers,
    image_folder,
)
from sdfp.data.interface import Entry

DATASETS: dict[str, Entry] = {
    "aircraft": Entry(aircraft.load, aircraft.DOWNLOADS),
    "chest_xray": Entry(chest_xray.load, chest_xray.DOWNLOADS),
    "cifar100": Entry(cifar100.load, cifar100.DOWNLOADS, tfds=True),
    "cub": Entry(cub.load, cub.DOWNLOADS, tfds=True),
    "digits": Entry(digits.load),
    "dogs": Entry(dogs.load, dogs.DOWNLOADS, tfds=True),
    "dtd": Entry(dtd.load, dtd.DOWNLOADS, tfds=True),
    "flowers": Entry(flowers.load, flowers.DOWNLOADS, tfds=True),
    "image_folder": Entry(image_folder.load),
    "sklearn_photos": Entry(digits.load_photos),
}
