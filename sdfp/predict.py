"""What a fine-tuned model says about new images:

    python -m sdfp.predict --model runs/digits --input FOLDER --out predictions.csv

--model: a work directory (--stage names one of its fine-tuned models; without it the last method's
first seed), or a folder that `sdfp.export` wrote (or any ViTForImageClassification).
--input: a folder (all images below it), an image, or a CSV with the column `path`, relative to it.
The result has one line per image: path, label, its probability, the probability of every class.
Files that cannot be decoded are listed and left out.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sdfp import cli, parallel, report, trained
from sdfp.data import cache, image_folder, images, loading
from sdfp.data.interface import Split
from sdfp.train import evaluation
from sdfp.trained import Trained
from sdfp.types import UserError, one_line

CHUNK = 8
"""Batches that are decoded at a time."""


def open_classifier(path: Path, stage: str) -> Trained:
    """The fine-tuned model in a work directory or in an exported folder.

    Args:
        stage: of a work directory; "" for its last method's first seed.

    Raises:
        UserError: nothing there, or it has no head.
    """
    if (path / "config.json").is_file():
        if stage:
            raise UserError(f"{path} is an exported model; --stage is for work directories")
        model = trained.open_folder(path)
    elif (path / "stages").is_dir():
        model = trained.open_stage(path, stage or trained.default_classifier(path))
    else:
        raise UserError(
            f"--model {path}: no work directory (it has stages/), no exported model (config.json)"
        )
    if "head" not in model.params:
        raise UserError(f"{model.name}: not fine-tuned: it has no classifier head")
    return model


def list_images(path: Path) -> list[tuple[str, Path]]:
    """The images that --input means, with the names they get in the result.

    Raises:
        UserError: nothing there, or a CSV with a fault.
    """
    if path.is_dir():
        found = [(p.relative_to(path).as_posix(), p) for p in image_folder.images_in(path)]
        if not found:
            listed = " ".join(image_folder.SUFFIXES)
            raise UserError(f"--input {path}: no image in it ({listed})")
        return found
    if not path.is_file():
        raise UserError(f"--input {path}: no such file or folder")
    if path.suffix.lower() == ".csv":
        rows = image_folder.csv_rows(path, ("path",))
        if not rows:
            raise UserError(f"--input {path}: it names no image")
        return [(name, path.parent / name) for _, (name,) in rows]
    return [(path.name, path)]


def predict(
    model: Trained, listed: Sequence[tuple[str, Path]], batch_size: int
) -> Iterator[tuple[list[str], np.ndarray, dict[str, str]]]:
    """Probabilities, a chunk of images at a time.

    Yields:
        names of the images, their probabilities [images, classes], and what is left out with the
        reasons, by name.
    """
    precision = parallel.precision("auto")
    devices, made = parallel.make("jit", 0), model.card.input
    with precision.context():
        how: dict[str, Any] = {
            "backbone": model.family.make(model.card.settings, precision.dtype),
            "prepare": images.make_prepare(made["mean"], made["std"], made["image_size"]),
            "devices": devices,
            "rows": batch_size,
        }
        params = devices.replicate(model.params)
        for start in range(0, len(listed), CHUNK * batch_size):
            names, paths = zip(*listed[start : start + CHUNK * batch_size], strict=True)
            decoded = cache.decode_all(paths, made["image_size"], made["channels"], "")
            kept = [names[row] for row in decoded.kept]
            probability = np.empty((0, len(model.card.class_names)))
            if kept:
                feed = loading.open_feed(Split({"image": decoded.images}, tuple(kept)), devices, 0)
                probability = np.exp(evaluation.log_probabilities(params, feed, **how))
            yield kept, probability, {names[row]: why for row, why in decoded.broken.items()}


def write(model: Trained, listed: Sequence[tuple[str, Path]], out: Path, batch_size: int) -> None:
    """Predicts and writes the CSV file, the whole of it or nothing.

    Raises:
        UserError: it cannot be written, or not one image can be decoded.
    """
    classes, done, broken = model.card.class_names, 0, 0
    with _whole_file(out) as file, tqdm(total=len(listed), unit="image", disable=None) as bar:
        table = csv.writer(file)
        table.writerow(["path", "label", "probability", *(f"p({name})" for name in classes)])
        for names, probability, left_out in predict(model, listed, batch_size):
            for name, row in zip(names, probability, strict=True):
                best = int(row.argmax())
                table.writerow([name, classes[best], *(f"{p:.6f}" for p in (row[best], *row))])
            for name, why in left_out.items():
                report.say(f"left out {name}: {why}")
            done, broken = done + len(names), broken + len(left_out)
            bar.update(len(names) + len(left_out))
        if not done:
            raise UserError(f"none of the {broken} images can be decoded; {out} is not written")
    report.say(f"{out}: {done} images{f', {broken} left out' if broken else ''}")


@contextmanager
def _whole_file(path: Path) -> Iterator[Any]:
    """A text file that appears under its name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sdfp.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="work directory, exported folder")
    parser.add_argument("--stage", default="", help="of a work directory, as in results.json")
    parser.add_argument("--input", type=Path, required=True, help="folder, image or CSV file")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--batch_size", type=int, default=64, help="over all devices")
    given = parser.parse_args(argv)

    def run() -> None:
        if given.batch_size < 1:
            raise UserError(f"--batch_size {given.batch_size}: must be at least 1")
        listed = list_images(given.input.expanduser())
        model = open_classifier(given.model.expanduser(), given.stage)
        report.say(f"model: {model.name}, {len(model.card.class_names)} classes")
        write(model, listed, given.out.expanduser(), given.batch_size)

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
