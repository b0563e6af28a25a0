"""Your own images: folders of files, or CSV files that name them.

The layout decides, the first that fits:

1. `dir/train.csv` (also `test.csv`, `validation.csv`): columns `path` (relative to dir, and below
   it) and `label`.
2. `dir/train/<class>/**` (also `test/`, and `validation/` or `val/`).
3. `dir/<class>/**`: all of it is train; set `test_fraction` to hold out a test split.
4. `dir/*.jpg` and so on, or only `dir/unlabelled/**`: images without labels, for the
   pre-training stages alone.

Beside 1 to 3, the images in `dir/unlabelled/**` are what the pre-training stages see *instead*
of the train images. Classes are numbered in the order of their sorted names (as text: "10"
comes before "2"). Names that start with a dot are skipped. The id of an image is its path
relative to `dir`.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from sdfp.data import images, splits, tables
from sdfp.data.interface import Dataset
from sdfp.problems import Problems
from sdfp.settings import Data
from sdfp.types import UserError, some

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "val")}
UNLABELLED = "unlabelled"
FOLDERS = {name for names in SPLITS.values() for name in names} | {UNLABELLED}
READ = FOLDERS | {f"{name}.csv" for name in FOLDERS - {UNLABELLED}}
TOLD = 4
"""Faulty lines of a CSV file."""

Files = dict[str, list[tuple[Path, str]]]
"""By split: images and the name of their class."""


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`, see above.

    Raises:
      UserError: no layout fits, a class without images, a test label that train does not
        have, almost the name of a split, a test split that is not read beside train, a CSV file
        with a fault (named with its line), or a reason of `images.assemble`.
    """
    listing = list_folder(settings.dir)
    if listing.class_names and listing.test is None and not settings.test_fraction:
        _refuse_unread_test(Path(os.path.expanduser(settings.dir)))
    return images.assemble(listing, settings)


def _refuse_unread_test(root: Path) -> None:
    for place in (root / "test", root / "test.csv"):
        if place.exists():
            train = "the folder train" if place.suffix else "train.csv"
            raise UserError(
                f"{place} is not read beside {train}: make both folders or both CSV files, or hold "
                "out a part of train with --config.data.test_fraction=0.2"
            )


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
        return bool(FOLDERS.intersection(top))
    return True


def _labelled(root: Path) -> Files:
    """The labelled images by split, empty where the folder has no labels."""
    csvs, folders = {}, {}
    for split, names in SPLITS.items():
        csvs[split] = _one_of([root / f"{name}.csv" for name in names])
        folders[split] = _one_of([root / name for name in names])
    _refuse_misnamed(
        root, csvs=bool(csvs["train"] or not folders["train"]), folders=not csvs["train"]
    )
    if csvs["train"]:
        return _read_each(functools.partial(_read_csv, root), csvs)
    if folders["train"]:
        return _read_each(read_classes, folders)
    if alone := [path for path in (*csvs.values(), *folders.values()) if path]:
        raise UserError(f"{alone[0]} is there, but neither {root}/train nor {root}/train.csv")
    # Without any class folder, loose images are images without labels, not a fault.
    return {"train": read_classes(root, UNLABELLED)} if _subfolders(root, UNLABELLED) else {}


def _read_each(
    read: Callable[[Path], list[tuple[Path, str]]], places: dict[str, Path | None]
) -> Files:
    """The images of each split; what is wrong with several is told at once."""
    files, problems = {}, Problems()
    for split, place in places.items():
        with problems.noted():
            if place:
                files[split] = read(place)
    problems.stop()
    return files


def _one_of(paths: list[Path]) -> Path | None:
    found = [path for path in paths if path.exists()]
    if len(found) > 1:
        raise UserError(f"both {found[0]} and {found[1]} are there: keep one")
    return found[0] if found else None


def _refuse_misnamed(root: Path, *, csvs: bool, folders: bool) -> None:
    """Refuses a split by almost its name: it would be a class, or left out without a word.

    Args:
        csvs, folders: whether a split may be one.
    """
    for path in sorted(root.iterdir()):
        is_csv = path.suffix.lower() == ".csv" and path.is_file()
        meant = splits.MEANT.get((path.stem if is_csv else path.name).lower())
        if not meant or path.name in READ:
            continue
        counts = csvs if is_csv else folders or meant == UNLABELLED
        if counts and (is_csv or (path.is_dir() and images_in(path))):
            name = f"{meant}.csv" if is_csv and meant in SPLITS else f"the folder {meant}"
            raise UserError(
                f"{path} looks like a split, but by this name it is not read: make it {name}, or "
                "call it something else if it is none"
            )


def read_classes(folder: Path, skip: str = "") -> list[tuple[Path, str]]:
    """The images of `folder`/<class>/** with the names of their classes, in a fixed order.

    Args:
      skip: a folder that is no class.

    Raises:
      UserError: an image beside the class folders, an empty class folder, or one that is named
        like a split.
    """
    if loose := _loose(folder):
        more = f" ({len(loose) - 1} more are, too)" if len(loose) > 1 else ""
        raise UserError(
            f"{loose[0]} is in no class folder{more}: expected {folder}/<class>/<image>"
        )
    classes = {path: images_in(path) for path in _subfolders(folder, skip)}
    if like := [path for path in classes if path.name.lower() in splits.MEANT]:
        raise UserError(
            f"{like[0]} looks like a split, not a class: splits are called train, test, validation "
            "(or val) and unlabelled, in lower case, and hold no further splits"
        )
    if empty := [str(path) for path, found in classes.items() if not found]:
        raise UserError(
            f"the class folder {some(empty)} holds no images ({' '.join(SUFFIXES)}): fill it or "
            "remove it"
        )
    return [(path, place.name) for place, found in classes.items() for path in found]


def _read_csv(root: Path, file: Path) -> list[tuple[Path, str]]:
    files, faults = {}, []
    for where, (path, label) in tables.values(file, ("path", "label")):
        if fault := _fault(root, path):
            faults.append(f"{where}: {fault}")
        elif root / path in files:
            faults.append(f"{where}: {path} stands in this file twice")
        files[root / path] = label
    if len(faults) > TOLD:
        faults[TOLD:] = [f"{file}: {len(faults) - TOLD} more lines like these"]
    if faults:
        raise UserError(*faults)
    return list(files.items())


def _fault(root: Path, path: str) -> str:
    """Why a path in a CSV file is none of an image in the folder; empty where it is one."""
    shown = path if len(path) < 300 else f"{path[:300]}..."
    if Path(path).is_absolute():
        return f"{shown} is absolute: paths are relative to {root}"
    if ".." in Path(path).parts:  # it could also name one image in two ways
        return f"{shown} holds '..': all images are below {root}, each by its direct path"
    try:
        return "" if (root / path).is_file() else f"no file {shown} in {root}"
    except OSError as error:
        return f"cannot read {shown} in {root}: {error.strerror}"


def _listing(root: Path, files: Files, unlabelled: list[images.Example] | None) -> images.Listing:
    class_names = sorted({name for _, name in files["train"]})
    label = {name: position for position, name in enumerate(class_names)}
    parts: dict[str, list[images.Example] | None] = {}
    problems = Problems()
    for split, members in files.items():
        if unknown := sorted({name for _, name in members} - set(class_names)):
            told = some([repr(name) for name in unknown])
            problems.add(f"{root}: {split} has classes that train does not have: {told}")
        parts[split] = [_example(root, path, label.get(name)) for path, name in members]
    problems.stop()
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


def _subfolders(folder: Path, skip: str) -> list[Path]:
    """The class folders in `folder`, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name != skip and not path.name.startswith(".")
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
