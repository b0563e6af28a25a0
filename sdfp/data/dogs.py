"""Stanford Dogs (Khosla et al., 2011): 12,000 training and 8,580 test photos of 120 breeds.

Reads the original layout or TFDS's `stanford_dogs`; both list the same bytes in the same order
under the same ids.
"""

from pathlib import Path

from sdfp.data import images, layout, tfds
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data
from sdfp.types import UserError

PUBLISHED = (12_000, 8_580)
ABOUT = (
    "Stanford Dogs is a folder with Images/<breed>/, train_list.mat and test_list.mat; get it with "
    "`python -m sdfp.data.fetch dogs --dir DIR` or from "
    "http://vision.stanford.edu/aditya86/ImageNetDogs/"
)
_URL = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
DOWNLOADS = (
    Download(
        f"{_URL}images.tar",
        793_579_520,
        "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
        "images.tar",
        "stanford_dogs",
    ),
    Download(
        f"{_URL}lists.tar",
        481_280,
        "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
        "lists.tar",
        "stanford_dogs",
    ),
)


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: the folder with Images/, or one that holds it as
    stanford_dogs/; with source "tfds" the TFDS data folder ("" = TFDS's own default).

    Raises:
      UserError: nothing there, a file that does not parse, or a reason of `images.assemble`.
    """
    listing = from_tfds(settings.dir) if settings.source == "tfds" else from_files(settings.dir)
    return images.assemble(listing, settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "stanford_dogs", "Images", ABOUT)
    lists = root / "lists" if (root / "lists").is_dir() else root
    rows = [
        layout.Row(path, path.split("/")[0], train, root / "Images" / path)
        for name, train in (("train_list.mat", True), ("test_list.mat", False))
        for path in parse(lists / name)
    ]
    return _listing(rows, f"Stanford Dogs files in {root}")


def parse(file: Path) -> list[str]:
    """The paths "<breed>/<image>.jpg" of a list file.

    Raises:
      UserError: a missing or damaged file, a label outside 1..120, or one for two breeds. Classes
        are told by the folders; the labels number them in the order of their names.
    """
    cells, labels = layout.matlab(file, "file_list", "labels")
    try:
        paths = [str(cell.item()) for cell in cells]
    except (AttributeError, ValueError) as error:
        raise UserError(f"{file}: file_list is not a list of paths") from error
    if len(paths) != len(labels):
        raise UserError(f"{file}: {len(paths)} paths, but {len(labels)} labels")
    breed: dict[int, str] = {}
    for path, label in zip(paths, labels.tolist(), strict=True):
        if path.count("/") != 1 or ".." in path:
            raise UserError(f"{file}: expected '<breed>/<image>', got {path!r}")
        if label not in range(1, 121):
            raise UserError(f"{file}: {path} has the label {label}, outside 1..120")
        if breed.setdefault(label, path.split("/")[0]) != path.split("/")[0]:
            raise UserError(f"{file}: label {label} stands for {breed[label]} and for {path}")
    return paths


def from_tfds(data_dir: str) -> images.Listing:
    """Lists the prepared TFDS data set `stanford_dogs`; see `load`."""

    def id_and_class(features):
        path = "/".join(features["image/filename"].decode().split("/")[-2:])
        return path, path.split("/")[0]

    return _listing(
        *tfds.rows("stanford_dogs", {"train": True, "test": False}, data_dir, id_and_class)
    )


def _listing(rows: list[layout.Row], source: str) -> images.Listing:
    # "n02085620-Chihuahua": ordered by the number, called by the breed.
    folders = sorted({str(row.key) for row in rows})
    names = {folder: folder.partition("-")[2] or folder for folder in folders}
    return layout.listing(rows, names, source=source, published=PUBLISHED)
