"""What a fine-tuned model says about new images:

    python -m sdfp.predict --model runs/digits --input FOLDER --out predictions.csv

--model: a work directory (--stage names one of its fine-tuned models; without it the last method's
first seed), or a folder that `sdfp.export` wrote (or any ViTForImageClassification).
--input: a folder (all images below it), an image, or a CSV with the column `path`, relative to it.
The result has one line per image: its path, the predicted label, the probability of that, and the
probability of every class. Files that cannot be read or decoded are listed and left out.
"""

import csv
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sdfp import cli, parallel, report, trained
from sdfp.data import cache, image_folder, loading, pixels
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
            f"--model {path}: neither a work directory (no stages/ in it) nor an exported model "
            "(no config.json)"
        )
    if "head" not in model.params:
        raise UserError(
            f"{model.name}: not fine-tuned: it has no classifier head; --stage finetune/... names "
            "a fine-tuned stage"
        )
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
) -> Iterator[tuple[list[str], np.ndarray, list[tuple[str, str]]]]:
    """Probabilities, a chunk of images at a time; the next one is decoded meanwhile.

    Yields:
        names of the images, their probabilities [images, classes], and what is left out: name and
        reason.
    """
    size = CHUNK * batch_size
    chunks = [listed[start : start + size] for start in range(0, len(listed), size)]
    rows = min(batch_size, len(listed))
    with ThreadPoolExecutor(1) as pool, _classifier(model, rows) as classify:
        decode = lambda chunk: pool.submit(_decode, model, chunk)
        coming = decode(chunks[0])
        for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
            decoded = coming.result()
            coming = decode(following) if following else coming
            names = [name for name, _ in chunk]
            left_out = [(names[row], why) for row, why in decoded.broken.items()]
            yield [names[row] for row in decoded.kept], classify(decoded.images), left_out


def _decode(model: Trained, chunk: Sequence[tuple[str, Path]]) -> cache.Decoded:
    size, channels = model.card.input["image_size"], model.card.input["channels"]
    return cache.decode_all([path for _, path in chunk], size, channels, "", tolerant=True)


@contextmanager
def _classifier(model: Trained, rows: int) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """uint8 [images, height, width, channels] -> probabilities [images, classes], one program."""
    precision, made = parallel.precision("auto"), model.card.input
    devices = parallel.make("jit", 0)
    with precision.context():
        params = devices.replicate(model.params)
        log_probabilities = functools.partial(
            evaluation.log_probabilities,
            backbone=model.family.make(model.card.settings, precision.dtype),
            prepare=pixels.make_prepare(made["mean"], made["std"], made["image_size"]),
            devices=devices,
            rows=rows,
        )

        def classify(image: np.ndarray) -> np.ndarray:
            # Fewer than `rows` would be another program.
            padding = np.zeros((max(0, rows - len(image)), *image.shape[1:]), np.uint8)
            padded = np.concatenate([image, padding])
            split = Split({"image": padded}, ("",) * len(padded))
            feed = loading.open_feed(split, devices, resident_gb=0)
            probability = np.exp(log_probabilities(params, feed))[: len(image)]
            if not np.isfinite(probability).all():
                raise UserError(f"{model.name}: its predictions are not finite: damaged weights?")
            return probability

        yield classify


def write(model: Trained, listed: Sequence[tuple[str, Path]], out: Path, batch_size: int) -> None:
    """Predicts and writes the CSV file, the whole of it or nothing.

    Raises:
        UserError: it cannot be written, or not one image can be decoded.
    """
    classes, done, broken = model.card.class_names, 0, 0
    with _whole_file(out) as file, tqdm(total=len(listed), unit="image", disable=None) as bar:
        table = csv.writer(file)
        table.writerow(["path", "predicted", "probability", *(f"p({name})" for name in classes)])
        for names, probability, left_out in predict(model, listed, batch_size):
            for name, row in zip(names, probability, strict=True):
                best = int(row.argmax())
                table.writerow([name, classes[best], *(f"{p:.6f}" for p in (row[best], *row))])
            for name, why in left_out:
                report.say(f"left out {name}: {why}")
            done, broken = done + len(names), broken + len(left_out)
            bar.update(len(names) + len(left_out))
        if not done:
            raise UserError(f"none of the {broken} images can be decoded; {out} is not written")
    report.say(f"{out}: predicted {done}, left out {broken}")


@contextmanager
def _whole_file(path: Path) -> Iterator[Any]:
    """A text file that appears under its name when it is complete."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"--out {path}: {what}; give the name of a file to write")
    try:
        with tempfile.TemporaryDirectory(prefix=".predict-", dir=path.parent) as scratch:
            partial = Path(scratch) / path.name
            with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                yield file
            partial.replace(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {one_line(error)}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = cli.parser("sdfp.predict", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="work directory, exported folder")
    parser.add_argument("--stage", default="", help="of a work directory, as in results.json")
    parser.add_argument("--input", type=Path, required=True, help="folder, image or CSV file")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--batch_size", type=int, default=64, help="over all devices")
    given = parser.parse_args(argv)

    def run() -> None:
        if given.batch_size < 1:
            raise UserError(f"--batch_size {given.batch_size}: must be at least 1")
        source, out = given.input.expanduser(), given.out.expanduser()
        if out.exists() and source.exists() and out.samefile(source):
            raise UserError(f"--out {out}: is the input, too; give another file")
        try:
            listed = list_images(source)
        except (OSError, ValueError) as error:
            raise UserError(f"--input {source}: cannot be read: {one_line(error)}") from error
        model = open_classifier(given.model.expanduser(), given.stage)
        report.say(f"model: {model.name}, {len(model.card.class_names)} classes")
        write(model, listed, out, given.batch_size)

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
