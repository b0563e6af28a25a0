"""CUB-200-2011 (Wah et al., 2011): 5,994 training and 5,794 test photos of 200 birds.

Reads the original layout, or a subset of it with the same files, or the data set
`caltech_birds2011` that TensorFlow Datasets prepared. Both list the same bytes in the same order
under the same ids.
"""

from pathlib import Path
from typing import Any, NamedTuple

from sdfp.data import images, layout, tfds
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data
from sdfp.types import UserError

PUBLISHED = (5994, 5794)
ABOUT = (
    "CUB_200_2011 holds images.txt, image_class_labels.txt, train_test_split.txt, classes.txt "
    "and images/; get it with `python -m sdfp.data.fetch cub --dir DIR` or from "
    "https://www.vision.caltech.edu/datasets/cub_200_2011/"
)
DOWNLOADS = (
    Download(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        1_150_585_339,
        "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        "CUB_200_2011.tgz",
    ),
)


class Annotation(NamedTuple):
    """What the annotation files say about one image."""

    path: str
    """Relative to `images/`, e.g. "001.Black_footed_Albatross/<name>.jpg"."""
    class_id: int
    """As in the files: from 1."""
    train: bool


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`.

    Args:
      settings: with source "files", `dir` is the folder CUB_200_2011 or the one that holds it;
        with source "tfds" it is the TFDS data folder ("" = TFDS's own default).

    Raises:
      UserError: nothing there, a file that does not parse, or a reason of `images.assemble`.
    """
    listing = from_tfds(settings.dir) if settings.source == "tfds" else from_files(settings.dir)
    return images.assemble(listing, settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "CUB_200_2011", "images.txt", ABOUT)
    annotations, names = parse(root)
    rows = [layout.Row(a.path, a.class_id, a.train, root / "images" / a.path) for a in annotations]
    source = f"CUB-200-2011 files in {root}"
    return layout.listing(rows, names, source=source, published=PUBLISHED)


def parse(root: Path) -> tuple[list[Annotation], dict[int, str]]:
    """Reads the annotation files, without looking at the images.

    Returns:
      One annotation per line of images.txt, and the class names by class id (from 1).

    Raises:
      UserError: a missing file, a line that does not parse, or an image or class that one
        file names and another does not.
    """
    paths = _column(root / "images.txt")
    labels = _column(root / "image_class_labels.txt", int)
    train = _column(root / "train_test_split.txt", int)
    names = _column(root / "classes.txt")
    for image in paths:
        if labels.get(image) not in names:
            raise UserError(f"{root}/image_class_labels.txt: image {image} has no known class")
        if train.get(image) not in (0, 1):
            raise UserError(f"{root}/train_test_split.txt: image {image} is neither 0 nor 1")
    return [Annotation(p, labels[i], train[i] == 1) for i, p in paths.items()], names


def _column(file: Path, convert: type = str) -> dict[int, Any]:
    """A file of lines "<id> <value>" -> {id: value}."""
    values = {}
    for number, line in layout.lines(file):
        try:
            key, value = line.split(maxsplit=1)
            image, value = int(key), convert(value)
        except ValueError as error:
            raise UserError(
                f"{file}, line {number}: expected '<id> <value>', got {line!r}"
            ) from error
        if image in values:
            raise UserError(f"{file}, line {number}: the id {image} stands there twice")
        values[image] = value
    return values


def from_tfds(data_dir: str) -> images.Listing:
    """Lists the prepared TFDS data set `caltech_birds2011`; see `load`."""

    def id_and_class(features):
        # TFDS's class names are "0" to "199": the real ones are the folders of the files.
        path = "/".join(features["image/filename"].decode().split("/")[-2:])
        return path, path.split("/")[0]

    parts = {"train": True, "test": False}
    rows, source = tfds.rows(
        "caltech_birds2011", parts, data_dir, id_and_class, "segmentation_mask"
    )
    names = {name: name for name in sorted({str(row.key) for row in rows})}
    return layout.listing(rows, names, source=source, published=PUBLISHED)
