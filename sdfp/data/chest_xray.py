"""Chest X-rays of Kermany et al. (2018): 5,216 training and 624 test images, normal or pneumonia.

Reads the layout of both public archives: Kaggle's with train/, val/, test/, and Mendeley's, whose
train/ holds Kaggle's 16 validation images too. As in the paper these 16 are not used, so that both
archives give one data set. The files are a mixture of grey and RGB.
"""

from sdfp.data import image_folder, images, layout
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data

PUBLISHED = (5216, 624)
ABOUT = (
    "chest_xray holds train/ and test/, each with NORMAL/ and PNEUMONIA/; get it with `python -m "
    "sdfp.data.fetch chest_xray --dir DIR` or from https://data.mendeley.com/datasets/rscbjbr9sj/2"
)
DOWNLOADS = (
    Download(
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        1_235_512_464,
        "",  # none is published that we know of; each member of a zip has a checksum
        "ChestXRay2017.zip",
    ),
)
CLASSES = ("NORMAL", "PNEUMONIA")
_NORMAL = (1427, 1430, 1431, 1436, 1437, 1438, 1440, 1442)
_PNEUMONIA = (
    "1946_bacteria_4874", "1946_bacteria_4875", "1947_bacteria_4876", "1949_bacteria_4880",
    "1950_bacteria_4881", "1951_bacteria_4882", "1952_bacteria_4883", "1954_bacteria_4886",
)  # fmt: skip
VALIDATION = {
    *(f"NORMAL/NORMAL2-IM-{number}-0001.jpeg" for number in _NORMAL),
    *(f"PNEUMONIA/person{name}.jpeg" for name in _PNEUMONIA),
}
"""The images that Kaggle's archive moved from train/ to val/."""


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: the folder chest_xray or the one that holds it.

    Raises:
      UserError: nothing there, another class, an empty class folder, or a reason of
        `images.assemble`.
    """
    return images.assemble(from_files(settings.dir), settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "chest_xray", "train", ABOUT)
    rows = []
    for split in ("train", "test"):
        if not (root / split).is_dir():
            continue
        for path, name in image_folder.read_classes(root / split):
            if split == "train" and f"{name}/{path.name}" in VALIDATION:
                continue
            place = path.relative_to(root).as_posix()
            rows.append(layout.Row(place, name, split == "train", path))
    return layout.listing(
        rows,
        {name: name for name in CLASSES},
        source=f"chest X-rays in {root}",
        published=PUBLISHED,
    )
