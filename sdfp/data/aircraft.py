"""FGVC Aircraft (Maji et al., 2013), variants: 6,667 training (train + val) and 3,333 test photos
of 100 kinds of aircraft.

Reads the original layout. The lowest 20 pixels of a photo show its copyright banner; it is left
in, as in the usual readers.
"""

from pathlib import Path

from sdfp.data import images, layout
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data
from sdfp.types import UserError

PUBLISHED = (6667, 3333)
ABOUT = (
    "fgvc-aircraft-2013b holds data/variants.txt, data/images_variant_trainval.txt, "
    "data/images_variant_test.txt and data/images/; get it with `python -m sdfp.data.fetch "
    "aircraft --dir DIR` or from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
)
DOWNLOADS = (
    Download(
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        2_753_340_328,
        "md5:d4acdd33327262359767eeaa97a4f732",
        "fgvc-aircraft-2013b.tar.gz",
    ),
)


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: fgvc-aircraft-2013b or the folder that holds it.

    Raises:
      UserError: nothing there, a file that does not parse, or a reason of `images.assemble`.
    """
    return images.assemble(from_files(settings.dir), settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "fgvc-aircraft-2013b", "data/variants.txt", ABOUT) / "data"
    names = {name: name for _, name in layout.lines(root / "variants.txt")}
    rows = [
        layout.Row(f"{image}.jpg", variant, train, root / "images" / f"{image}.jpg")
        for part, train in (("trainval", True), ("test", False))
        for image, variant in parse(root / f"images_variant_{part}.txt")
    ]
    source = f"FGVC Aircraft files in {root}"
    return layout.listing(rows, names, source=source, published=PUBLISHED)


def parse(file: Path) -> list[tuple[str, str]]:
    """(image number, variant) of every line "<number> <variant>"; variants may hold spaces and
    slashes.

    Raises:
      UserError: a missing file, or a line that does not parse.
    """
    pairs = []
    for number, line in layout.lines(file):
        image, _, variant = line.partition(" ")
        if not image.isdecimal() or not variant.strip():
            raise UserError(f"{file}, line {number}: expected '<number> <variant>', got {line!r}")
        pairs.append((image, variant.strip()))
    return pairs
