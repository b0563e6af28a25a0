"""Oxford 102 Flowers (Nilsback and Zisserman, 2008): 2,040 training (train + validation, as in the
paper) and 6,149 test photos of 102 kinds.

Reads the original layout or TFDS's `oxford_flowers102`; both list the same bytes in the same order
under the same ids.
"""

from pathlib import Path

import numpy as np

from sdfp.data import images, layout, tfds
from sdfp.data.interface import Dataset, Download
from sdfp.settings import Data
from sdfp.types import UserError

PUBLISHED = (2040, 6149)
ABOUT = (
    "Oxford 102 Flowers is a folder with jpg/, imagelabels.mat and setid.mat; get it with `python "
    "-m sdfp.data.fetch flowers --dir DIR` or from "
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
)
_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
DOWNLOADS = (
    Download(
        f"{_URL}102flowers.tgz",
        344_862_509,
        "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        "102flowers.tgz",
        "oxford_flowers102",
    ),
    Download(
        f"{_URL}imagelabels.mat",
        502,
        "sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
        "imagelabels.mat",
        "oxford_flowers102",
    ),
    Download(
        f"{_URL}setid.mat",
        14_989,
        "sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
        "setid.mat",
        "oxford_flowers102",
    ),
)
PARTS = {"trnid": True, "valid": True, "tstid": False}
"""Variable of setid.mat -> whether it is training data."""
# The files have numbers only: category k of the set's web page is NAMES[k - 1].
NAMES = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea",
    "english marigold", "tiger lily", "moon orchid", "bird of paradise", "monkshood",
    "globe thistle", "snapdragon", "colt's foot", "king protea", "spear thistle", "yellow iris",
    "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger",
    "grape hyacinth", "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke",
    "sweet william", "carnation", "garden phlox", "love in the mist", "mexican aster",
    "alpine sea holly", "ruby-lipped cattleya", "cape flower", "great masterwort", "siam tulip",
    "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia", "bolero deep blue",
    "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura",
    "geranium", "orange dahlia", "pink-yellow dahlia?", "cautleya spicata", "japanese anemone",
    "black-eyed susan", "silverbush", "californian poppy", "osteospermum", "spring crocus",
    "bearded iris", "windflower", "tree poppy", "gazania", "azalea", "water lily", "rose",
    "thorn apple", "morning glory", "passion flower", "lotus", "toad lily", "anthurium",
    "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove",
    "bougainvillea", "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower",
    "trumpet creeper", "blackberry lily",
)  # fmt: skip


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: the folder with jpg/, or one that holds it as
    oxford_flowers102/; with source "tfds" the TFDS data folder ("" = TFDS's own default).

    Raises:
      UserError: nothing there, a file that does not parse, or a reason of `images.assemble`.
    """
    listing = from_tfds(settings.dir) if settings.source == "tfds" else from_files(settings.dir)
    return images.assemble(listing, settings)


def from_files(folder: str) -> images.Listing:
    """Lists the original layout; see `load`."""
    root = layout.find(folder, "oxford_flowers102", "setid.mat", ABOUT)
    labels, parts = parse(root)
    rows = []
    for part, train in PARTS.items():
        for number in parts[part].tolist():
            name = f"image_{number:05d}.jpg"
            rows.append(layout.Row(name, int(labels[number - 1]), train, root / "jpg" / name))
    return _listing(rows, f"Oxford 102 Flowers files in {root}")


def parse(root: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads the annotation files.

    Returns:
      labels [images], from 1, of image 1 and following; and image numbers by name of the part.

    Raises:
      UserError: a missing or damaged file, a label outside 1..102, or a number without label.
    """
    (labels,) = layout.matlab(root / "imagelabels.mat", "labels")
    parts = dict(zip(PARTS, layout.matlab(root / "setid.mat", *PARTS), strict=True))
    if wrong := np.flatnonzero(~np.isin(labels, np.arange(1, len(NAMES) + 1))).tolist():
        raise UserError(
            f"{root}/imagelabels.mat: image {wrong[0] + 1} has the label {labels[wrong[0]]}, "
            f"outside 1..{len(NAMES)}"
        )
    for name, numbers in parts.items():
        if wrong := sorted(set(numbers.tolist()) - set(range(1, len(labels) + 1))):
            raise UserError(
                f"{root}/setid.mat: {name} has image {wrong[0]}, imagelabels.mat has labels for "
                f"1..{len(labels)}"
            )
    # MATLAB's default are floats.
    return labels.astype(np.int64), {name: part.astype(np.int64) for name, part in parts.items()}


def from_tfds(data_dir: str) -> images.Listing:
    """Lists the prepared TFDS data set `oxford_flowers102`; see `load`."""

    def id_and_class(features):
        return features["file_name"].decode(), int(features["label"]) + 1

    parts = {"train+validation": True, "test": False}
    return _listing(*tfds.rows("oxford_flowers102", parts, data_dir, id_and_class))


def _listing(rows: list[layout.Row], source: str) -> images.Listing:
    names = dict(enumerate(NAMES, 1))
    return layout.listing(rows, names, source=source, published=PUBLISHED)
