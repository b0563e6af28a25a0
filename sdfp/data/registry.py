"""The data sets that `config.data.name` can name: `load(settings: Data) -> Dataset`."""

from sdfp.data import cub, digits, image_folder

DATASETS = {
    "cub": cub.load,
    "image_folder": image_folder.load,
    "digits": digits.load,
    "sklearn_photos": digits.load_photos,
}
