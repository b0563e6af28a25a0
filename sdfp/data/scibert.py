"""What SciERC, ACL-ARC and ChemProt share: JSON lines in the repository of SciBERT.

The files are train.txt, dev.txt and test.txt there; in the release of TAPT (Gururangan et al.,
2020) they are called *.jsonl.
"""

from sdfp.data import layout, text_files, texts
from sdfp.data.interface import Download
from sdfp.types import UserError

COMMIT = "06793f77d7278898159ed50da30d173cdc8fdea9"
_PATH = "data/text_classification"
RAW = f"https://raw.githubusercontent.com/allenai/scibert/{COMMIT}/{_PATH}"
PAGE = f"https://github.com/allenai/scibert/tree/{COMMIT}/{_PATH}"


def downloads(folder: str, **files: tuple[int, str]) -> tuple[Download, ...]:
    """The files of the data set in `folder` of the repository: part=(bytes, sha256)."""
    return tuple(
        Download(f"{RAW}/{folder}/{part}.txt", size, f"sha256:{digest}", f"{part}.txt", folder)
        for part, (size, digest) in files.items()
    )


def from_files(
    given: str,
    folder: str,
    told: str,
    published: tuple[int, int],
    metric: str = "macro_f1",
) -> texts.Listing:
    """Reads the three files in `given`/`folder` or `given`.

    Args:
        told: for the user, see `layout.find`.

    Raises:
        UserError: no such folder, or a file that is missing or faulty.
    """
    try:
        root, suffix = layout.find(given, folder, "train.jsonl", told), ".jsonl"
    except UserError:
        root, suffix = layout.find(given, folder, "train.txt", told), ".txt"
    train, validation, test = (
        text_files.read_jsonl(root / f"{part}{suffix}") for part in ("train", "dev", "test")
    )
    return texts.Listing(
        train=train,
        validation=validation,
        test=test,
        source=f"{folder} files in {root}",
        published=published,
        metric=metric,
    )
