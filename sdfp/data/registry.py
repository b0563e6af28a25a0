"""The data sets that `config.data.name` can name, one line each."""

from sdfp.data import (
    acl_arc,
    aircraft,
    chemprot,
    chest_xray,
    cifar100,
    cub,
    digits,
    docstrings,
    dogs,
    dtd,
    flowers,
    image_folder,
    scierc,
    text_file,
    twitter_emotion,
)
from sdfp.data.interface import Entry
from sdfp.settings import TextData

DATASETS: dict[str, Entry] = {
    "acl_arc": Entry(acl_arc.load, acl_arc.DOWNLOADS, settings=TextData),
    "aircraft": Entry(aircraft.load, aircraft.DOWNLOADS),
    "chemprot": Entry(chemprot.load, settings=TextData),
    "chest_xray": Entry(chest_xray.load, chest_xray.DOWNLOADS),
    "cifar100": Entry(cifar100.load, cifar100.DOWNLOADS, tfds=True),
    "cub": Entry(cub.load, cub.DOWNLOADS, tfds=True),
    "digits": Entry(digits.load),
    "docstrings": Entry(docstrings.load, settings=TextData),
    "dogs": Entry(dogs.load, dogs.DOWNLOADS, tfds=True),
    "dtd": Entry(dtd.load, dtd.DOWNLOADS, tfds=True),
    "flowers": Entry(flowers.load, flowers.DOWNLOADS, tfds=True),
    "image_folder": Entry(image_folder.load, reads=image_folder.reads),
    "package_docstrings": Entry(docstrings.load_source, settings=TextData),
    "scierc": Entry(scierc.load, scierc.DOWNLOADS, settings=TextData),
    "sklearn_photos": Entry(digits.load_photos),
    "text_file": Entry(text_file.load, settings=TextData),
    "twitter_emotion": Entry(twitter_emotion.load, twitter_emotion.DOWNLOADS, settings=TextData),
}
