"""CUB-200-2011 (Wah et al., 2011): 5,994 training and 5,794 test photos of 200 birds.

Reads the original layout, or a subset of it with the same files (only the classes that occur
are counted then), or the data set `caltech_birds2011` that TensorFlow Datasets prepared. Both
sources list the same bytes in the same order under the same ids.
"""

from pathlib import Path
from typing import Any, NamedTuple

from sdfp.data import cache, images
from sdfp.data.interface import Dataset
from sdfp.settings import Data
from sdfp.types import UserError

PAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
LAYOUT = "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/"


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
    root = _find(folder)
    annotations, names = parse(root)
    return _listing(
        [(a.path, a.class_id, a.train, root / "images" / a.path) for a in annotations],
        names,
        f"CUB-200-2011 files in {root}",
    )


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


def from_tfds(data_dir: str) -> images.Listing:
    """Lists the prepared TFDS data set `caltech_birds2011`, without tensorflow; see `load`."""
    rows, names = [], {}
    for split in ("train", "test"):
        source = _open_tfds(split, data_dir)
        home = f"{source.dataset_info.data_dir} {split}"
        # TFDS's class names are "0" to "199": the real ones are the folders in the file names.
        for number in range(len(source)):
            record = source[number]
            path = "/".join(record["image/filename"].decode().split("/")[-2:])
            class_id = int(record["label"]) + 1
            names[class_id] = path.split("/")[0]
            read = lambda source=source, number=number: source[number]["image"]
            stamp = f"{home} {number} {len(record['image'])}"
            rows.append((path, class_id, split == "train", cache.Record(read, stamp)))
    return _listing(rows, names, f"TFDS {source.dataset_info.full_name} in {home.split()[0]}")


def _listing(rows: list[tuple], names: dict[int, str], source: str) -> images.Listing:
    # Sorted by path: the files are, nearly, and TFDS shuffles its records.
    rows = sorted(rows, key=lambda row: row[0])
    occurring = sorted({class_id for _, class_id, _, _ in rows})
    label = {class_id: position for position, class_id in enumerate(occurring)}
    parts: dict[bool, list[images.Example]] = {True: [], False: []}
    for path, class_id, is_train, where in rows:
        parts[is_train].append(images.Example(where, label[class_id], path))
    return images.Listing(
        train=parts[True],
        test=parts[False] or None,
        class_names=tuple(names[class_id] for class_id in occurring),
        source=source,
    )


def _find(folder: str) -> Path:
    if folder:
        given = Path(folder).expanduser()
        for root in (given / "CUB_200_2011", given):
            if (root / "images.txt").is_file():
                return root
    looked = f"neither {folder}/CUB_200_2011 nor {folder} is one" if folder else "none is given"
    raise UserError(
        f"no CUB-200-2011 folder: {looked} (it holds {LAYOUT}); set --config.data.dir, download "
        f"CUB_200_2011.tgz from {PAGE}"
    )


def _column(file: Path, convert: type = str) -> dict[int, Any]:
    """A file of lines "<id> <value>" -> {id: value}."""
    values = {}
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; a CUB-200-2011 folder holds {LAYOUT}, "
            f"see {PAGE}"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            key, value = line.split(maxsplit=1)
            values[int(key)] = convert(value.strip())
        except ValueError as error:
            raise UserError(
                f"{file}, line {number}: expected '<id> <value>', got {line!r}"
            ) from error
    return values


def _open_tfds(split: str, data_dir: str) -> Any:
    """A sequence of records whose images are still encoded; they are decoded with all others."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "--config.data.source=tfds needs: pip install tensorflow-datasets array_record"
        ) from error
    skip = tfds.decode.SkipDecoding()
    where = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        return tfds.data_source(
            "caltech_birds2011",
            split=split,
            data_dir=where,
            download=False,
            decoders={"image": skip, "segmentation_mask": skip},
        )
    # What TFDS raises where nothing is prepared is a NotImplementedError about TFRecord files.
    except (NotImplementedError, AssertionError, OSError, ValueError) as error:
        raise UserError(
            f"TFDS has no caltech_birds2011 as array_record in {where or '~/tensorflow_datasets'}: "
            "prepare it once, on a machine with network, tensorflow and opencv-python, with `tfds "
            "build caltech_birds2011 --file_format=array_record --data_dir=<dir>`, then set "
            "--config.data.dir=<dir>; reading it needs none of the three"
        ) from error
