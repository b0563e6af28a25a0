"""Your own images: folders of files, or CSV files that name them.

The layout decides, the first that fits:

1. `dir/train.csv` (also `test.csv`, `validation.csv`): columns `path` (relative to dir) and
   `label`.
2. `dir/train/<class>/**` (also `test/`, and `validation/` or `val/`).
3. `dir/<class>/**`: all of it is train; set `test_fraction` to hold out a test split.
4. `dir/*.jpg` and so on, or only `dir/unlabelled/**`: images without labels, for the
   pre-training stages alone.

Beside 1 to 3, the images in `dir/unlabelled/**` are what the pre-training stages see *instead*
of the train images. Classes are numbered in the order of their sorted names (as text: "10"
comes before "2"). Names that start with a dot are skipped. The id of an image is its path
relative to `dir`.
"""

import csv
import os
from pathlib import Path

from sdfp.data import images
from sdfp.data.interface import Dataset
from sdfp.settings import Data
from sdfp.types import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val")}
UNLABELLED = "unlabelled"
SPLIT_LIKE = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
"""Folder names, in lower case, that are no classes."""

Files = dict[str, list[tuple[Path, str]]]
"""By split: images and the name of their class."""


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`, see above.

    Raises:
      UserError: no layout fits, a class without images, a test label that train does not
        have, a CSV file with a fault (named with its line), or a reason of `images.assemble`.
    """
    return images.assemble(list_folder(settings.dir), settings)


def list_folder(folder: str) -> images.Listing:
    """Lists the images in `folder`, whichever of the layouts it has."""
    root = Path(os.path.expanduser(folder))
    if not folder or not root.is_dir():
        raise UserError(
            f"no folder {folder or '(none given)'}: set --config.data.dir to a folder with "
            "train/<class>/*.jpg, <class>/*.jpg, train.csv, or *.jpg without labels"
        )
    labelled = _labelled(root)
    extra = images_in(root / UNLABELLED)
    if (root / UNLABELLED).is_dir() and not extra:
        raise UserError(f"{root / UNLABELLED} holds no images ({' '.join(SUFFIXES)})")
    unlabelled = [_example(root, path, None) for path in extra]
    if labelled:
        return _listing(root, labelled, unlabelled or None)
    train = [_example(root, path, None) for path in _loose(root)] + unlabelled
    if not train:
        raise UserError(
            f"no images in {root}: expected train/<class>/*.jpg, <class>/*.jpg, train.csv, or "
            f"*.jpg without labels ({' '.join(SUFFIXES)})"
        )
    return images.Listing(train=train, class_names=(), source=f"images without labels in {root}")


def reads(folder: str, path: Path) -> bool:
    """Whether `list_folder` looks for images in `path` (that may not be there yet), too."""
    root, path = Path(os.path.expanduser(folder)).resolve(), path.resolve()
    if not folder or not path.is_relative_to(root):
        return False
    top = path.relative_to(root).parts[:1]
    if (root / "train.csv").is_file():
        return top == (UNLABELLED,)
    if (root / "train").is_dir():
        return top in {(name,) for name in (*sum(SPLITS.values(), ()), UNLABELLED)}
    return True


def _labelled(root: Path) -> Files:
    """The labelled images by split, empty where the folder has no labels."""
    csvs, folders = {}, {}
    for split, names in SPLITS.items():
        csvs[split] = _one_of([root / f"{name}.csv" for name in names])
        folders[split] = _one_of([root / name for name in names])
    if csvs["train"]:
        return {split: _read_csv(root, file) for split, file in csvs.items() if file}
    if folders["train"]:
        return {split: read_classes(path) for split, path in folders.items() if path}
    if alone := [path for path in (*csvs.values(), *folders.values()) if path]:
        raise UserError(f"{alone[0]} is there, but neither {root}/train nor {root}/train.csv")
    # Without any class folder, loose images are images without labels, not a fault.
    return {"train": read_classes(root)} if _subfolders(root) else {}


def _one_of(paths: list[Path]) -> Path | None:
    found = [path for path in paths if path.exists()]
    if len(found) > 1:
        raise UserError(f"both {found[0]} and {found[1]} are there: keep one")
    return found[0] if found else None


def read_classes(folder: Path) -> list[tuple[Path, str]]:
    """The images of `folder`/<class>/** with the names of their classes, in a fixed order.

    Raises:
      UserError: an image beside the class folders, an empty class folder, or one that is named
        like a split.
    """
    if loose := _loose(folder):
        raise UserError(f"{loose[0]} is in no class folder: expected {folder}/<class>/<image>")
    files = []
    for class_folder in _subfolders(folder):
        if class_folder.name.lower() in SPLIT_LIKE:
            raise UserError(
                f"{class_folder} looks like a split, not a class: splits are called train, test "
                "and validation (or val), in lower case"
            )
        found = images_in(class_folder)
        if not found:
            raise UserError(
                f"the class folder {class_folder} holds no images ({' '.join(SUFFIXES)}): fill it "
                "or remove it"
            )
        files += [(path, class_folder.name) for path in found]
    return files


def csv_rows(file: Path, columns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The values of some columns of a CSV file, each row with "file, line n" for messages.

    Raises:
      UserError: not a CSV file in UTF-8, a column or a value is missing.
    """
    found = []
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened, skipinitialspace=True)
            names = rows.fieldnames or ()
            missing = set(columns) - set(names)
            if missing:
                raise UserError(
                    f"{file}, line 1: no column {' and '.join(sorted(missing))}; the first line "
                    f"must name the columns {' and '.join(columns)}, separated by commas"
                )
            if twice := [name for name in columns if names.count(name) > 1]:
                raise UserError(f"{file}, line 1: {names.count(twice[0])} columns {twice[0]}")
            for row in rows:
                # What DictReader has no name for; a comma at the end adds nothing.
                if any(extra.strip() for extra in row.get(None) or ()):
                    raise UserError(
                        f"{file}, line {rows.line_num}: more fields than the first line names; put "
                        'double quotes around a value that holds a comma ("a, b")'
                    )
                where, values = f"{file}, line {rows.line_num}", [row[name] for name in columns]
                if not all(value and value.strip() for value in values):
                    raise UserError(f"{where}: empty {' or '.join(columns)}")
                found.append((where, [value.strip() for value in values]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a CSV file in UTF-8 ({error}): save it as one") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    return found


def _read_csv(root: Path, file: Path) -> list[tuple[Path, str]]:
    files = {}
    for where, (path, label) in csv_rows(file, ("path", "label")):
        if Path(path).is_absolute() or not (root / path).is_file():
            raise UserError(f"{where}: no file {path} in {root}")
        if root / path in files:
            raise UserError(f"{where}: {path} stands in this file twice")
        files[root / path] = label
    return list(files.items())


def _listing(root: Path, files: Files, unlabelled: list[images.Example] | None) -> images.Listing:
    class_names = sorted({name for _, name in files["train"]})
    label = {name: position for position, name in enumerate(class_names)}
    parts: dict[str, list[images.Example] | None] = {}
    for split, members in files.items():
        unknown = sorted({name for _, name in members} - set(class_names))
        if unknown:
            raise UserError(
                f"{root}: {split} has the class {unknown[0]!r}, which train does not have"
            )
        parts[split] = [_example(root, path, label[name]) for path, name in members]
    return images.Listing(
        train=parts["train"] or [],
        test=parts.get("test"),
        validation=parts.get("validation"),
        unlabelled=unlabelled,
        class_names=tuple(class_names),
        source=f"image folder {root}",
    )


def _example(root: Path, path: Path, label: int | None) -> images.Example:
    return images.Example(path, label, path.relative_to(root).as_posix())


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _loose(folder: Path) -> list[Path]:
    """The images in `folder` itself, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _subfolders(folder: Path) -> list[Path]:
    """The class folders in `folder`, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name != UNLABELLED and not path.name.startswith(".")
    )


def images_in(folder: Path) -> list[Path]:
    """The images at any depth below `folder`, sorted. A missing folder holds none.

    Raises:
      UserError: a folder that cannot be read, or a link to a folder that holds it.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if os.path.islink(parent) and _is_inside(parent, os.path.realpath(parent)):
            raise UserError(f"{parent} is a link to a folder that holds it: remove the link")
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_image(name)]
    return sorted(found)


def _is_inside(link: str, folder: str) -> bool:
    return f"{os.path.realpath(os.path.dirname(link))}/".startswith(f"{folder}/")


def _refuse(error: OSError) -> None:
    # os.walk would leave an unreadable folder out, without a word.
    if not isinstance(error, FileNotFoundError):
        raise UserError(f"cannot read {error.filename}: {error.strerror}")
