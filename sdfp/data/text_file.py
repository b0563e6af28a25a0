"""Your own texts: a table, JSON lines or plain lines per split.

`dir` is a folder with train.csv, .tsv, .jsonl or .txt, or such a file itself, which then is train.
Beside train there may be dev (or validation, val), test, and unlabelled: texts that the
pre-training stages see *instead* of those of train. Each may have another suffix.

A .csv or .tsv names its columns in the first line, a .jsonl has an object per line; `text_column`
and `label_column` say which are read. With `label_column` "" there are no labels, for the
pre-training stages alone; so it is where train is a .txt, which has one text per line and nothing
else. Classes are numbered in the order of their sorted names (as text: "10" comes before "2").
"""

import os
from pathlib import Path

from sdfp.data import splits, text_files, texts
from sdfp.data.interface import Dataset
from sdfp.data.text_files import Document
from sdfp.problems import Problems
from sdfp.settings import TextData
from sdfp.types import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
SPLITS = {
    "train": ("train",),
    "test": ("test",),
    "validation": ("dev", "validation", "val"),
    "unlabelled": ("unlabelled",),
}
"""Split -> the names that its file may have."""


def load(settings: TextData) -> Dataset:
    """The data set in `settings.dir`, see above.

    Raises:
        UserError: no train there, two files for one split, a faulty file, one without labels
            beside a train with labels, or a reason of `texts.assemble`.
    """
    files = find(settings.dir)
    label = settings.label_column or None
    if _is_plain(files["train"]):
        label = None
    parts, problems = {}, Problems()
    for split, file in files.items():
        if label and split != "unlabelled" and _is_plain(file):
            problems.add(
                f"{file}: plain lines have no labels, {files['train'].name} has: make it a .csv, "
                ".tsv or .jsonl, or set --config.data.label_column='' to use none"
            )
            continue
        wanted = None if split == "unlabelled" else label
        with problems.noted():
            parts[split] = read(file, settings.text_column, wanted)
    problems.stop()
    return texts.assemble(texts.Listing(**parts, source=f"texts in {settings.dir}"), settings)


def find(given: str) -> dict[str, Path]:
    """The file of each split that is there; `train` always is.

    Raises:
        UserError: no train, two files for one split, or one by almost the name of a split.
    """
    root = Path(os.path.expanduser(given))
    if given and root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise UserError(f"{root}: a file of texts is one of {' '.join(SUFFIXES)}")
        return {"train": root}
    known = sorted(root.iterdir()) if given and root.is_dir() else []
    known = [file for file in known if file.suffix.lower() in SUFFIXES]
    files = {}
    for split, names in SPLITS.items():
        found = [file for file in known if file.stem in names]
        meant = [file for file in known if splits.MEANT.get(file.stem.lower()) == split]
        if other := [file for file in meant if file not in found]:
            raise UserError(
                f"{other[0]} looks like a split, but by this name it is not read: make it "
                f"{names[0]}{other[0].suffix}, or call it something else if it is none"
            )
        if len(found) > 1:
            raise UserError(f"both {found[0]} and {found[1]} are there: keep one as {split}")
        if found:
            files[split] = found[0]
    if "train" not in files:
        raise UserError(
            f"no train.csv, .tsv, .jsonl or .txt in {given or '(no folder given)'}: set "
            "--config.data.dir to a folder that has one, or to such a file"
        )
    return files


def _is_plain(file: Path) -> bool:
    return file.suffix.lower() == ".txt"


def read(file: Path, text: str, label: str | None) -> list[Document]:
    """The texts of one file, by its suffix; `text` and `label` name columns, None no labels.

    Raises:
        UserError: a reason of `text_files`.
    """
    if _is_plain(file):
        return text_files.read_lines(file)
    if file.suffix.lower() == ".jsonl":
        return text_files.read_jsonl(file, text, label)
    return text_files.read_table(file, text, label)
