"""Describable Textures (Cimpoi et al., 2014), split 1: 3,760 training (train + val) and 1,880 test
photos of 47 textures.

Reads the original layout or TFDS's `dtd`, which is split 1 too; both list the same bytes in the
same order under the same ids.
"""

from pathlib import Path

from sdfp.data import images, layout, tfds
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data
from sdfp.types import UserError

PUBLISHED = (3760, 1880)
ABOUT = (
    "dtd holds labels/train1.txt, labels/val1.txt, labels/test1.txt and images/<class>/; get it "
    "with `python -m sdfp.data.fetch dtd --dir DIR` or from "
    "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
)
DOWNLOADS = (
    Download(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        625_239_812,
        "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
        "dtd-r1.0.1.tar.gz",
    ),
)
PARTS = {"train": True, "val": True, "test": False}
"""Part of split 1 -> whether it is training data."""


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: the folder dtd or the one that holds it; with source "tfds"
    the TFDS data folder ("" = TFDS's own default).

    Raises:
      UserError: nothing there, a file that does not parse, or a reason of `images.assemble`.
    """
    listing = from_tfds(settings.dir) if settings.source == "tfds" else from_files(settings.dir)
    return images.assemble(listing, settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "dtd", "labels/train1.txt", ABOUT)
    rows = [
        layout.Row(path, path.split("/")[0], train, root / "images" / path)
        for part, train in PARTS.items()
        for path in parse(root / "labels" / f"{part}1.txt")
    ]
    return _listing(rows, f"DTD files in {root}")


def parse(file: Path) -> list[str]:
    """The lines "<class>/<image>" of a split file.

    Raises:
      UserError: a missing file, or a line that does not parse.
    """
    paths = []
    for number, line in layout.lines(file):
        if line.count("/") != 1 or ".." in line:
            raise UserError(f"{file}, line {number}: expected '<class>/<image>', got {line!r}")
        paths.append(line)
    return paths


def from_tfds(data_dir: str) -> images.Listing:
    """Lists the prepared TFDS data set `dtd`; see `load`."""

    def id_and_class(features):
        path = features["file_name"].decode()
        return path, path.split("/")[0]

    parts = {"train+validation": True, "test": False}
    return _listing(*tfds.rows("dtd", parts, data_dir, id_and_class))


def _listing(rows: list[layout.Row], source: str) -> images.Listing:
    names = {key: str(key) for key in sorted({str(row.key) for row in rows})}
    return layout.listing(rows, names, source=source, published=PUBLISHED)
