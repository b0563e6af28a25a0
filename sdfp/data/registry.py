"""The data sets that `config.data.name` can name: `load(settings: Data) -> Dataset`."""

from sdfp.data import cub, digits, image_folder

WITH_TFDS = ("cub",)
"""Those that `config.data.source=tfds` can read."""

DATASETS = {
    "cub": cub.load,
    "image_folder": image_folder.load,
    "digits": digits.load,
    "sklearn_photos": digits.load_photos,
}
