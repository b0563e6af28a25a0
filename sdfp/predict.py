"""What a fine-tuned model says about new images or texts:

    python -m sdfp.predict --model runs/digits --input FOLDER --out predictions.csv

--model: a work directory (--stage names one of its fine-tuned models; without it the last method's
first seed), or a folder that `sdfp.export` wrote (or any ViTForImageClassification or
RobertaForSequenceClassification).
--input, for a model of images: a folder (all images below it), an image, or a CSV with the column
`path`, relative to it. Files that cannot be read or decoded are listed and left out.
--input, for a model of texts: a .csv, .tsv or .jsonl file (--text_column names the column or key of
the text; others are ignored), or a .txt with one text per line.
The result has one line per image or text: its path (of a text its id, FILE/0, FILE/1, ...), the
predicted label, the probability of that, and the probability of every class.
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
from sdfp.data import inputs, loading
from sdfp.data.inputs import Kind
from sdfp.data.interface import Split
from sdfp.train import evaluation
from sdfp.trained import Trained
from sdfp.types import UserError, one_line

CHUNK = 8
"""Batches that are read at a time, where not all are."""

list_images = inputs.list_images
"""What `write` takes for a model of images; `inputs.list_texts` is that for texts."""


def predict(
    model: Trained, listed: Sequence, batch_size: int
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """Probabilities, a chunk of examples at a time; the next one is read meanwhile.

    Args:
        listed: as `Kind.find` of the model's kind gives it.

    Yields:
        names of the examples that can be read, their probabilities [examples, classes].
    """
    kind, rows = kind_of(model), min(batch_size, len(listed))
    size = len(listed) if kind.whole else CHUNK * batch_size
    chunks = [listed[start : start + size] for start in range(0, len(listed), size)]
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(total=len(listed), unit=kind.unit, disable=None) as bar,
        _classifier(model, rows, bar) as classify,
    ):
        read = lambda chunk: pool.submit(kind.read, chunk, model.card.input)
        coming, done = read(chunks[0]), 0
        for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
            split, remarks = coming.result()
            coming = read(following) if following else coming
            for line in remarks:
                report.say(line)
            yield split.ids, classify(split)
            done += len(chunk)
            bar.update(done - bar.n)


def kind_of(model: Trained) -> Kind:
    """How the model's examples are found and read."""
    return inputs.KINDS[model.card.input["kind"]]


@contextmanager
def _classifier(model: Trained, rows: int, bar: tqdm) -> Iterator[Callable[[Split], np.ndarray]]:
    """Split -> probabilities [examples, classes], one program for all; `bar` sees each batch."""
    precision, devices = parallel.precision("auto"), parallel.make("jit", 0)

    def gather(tree):
        values = devices.gather(tree)
        bar.update(min(len(values), bar.total - bar.n))  # the last batch may be padded
        return values

    with precision.context():
        params = devices.replicate(model.params)
        log_probabilities = functools.partial(
            evaluation.log_probabilities,
            backbone=model.family.make(model.card.settings, precision.dtype),
            prepare=kind_of(model).prepare(model.card.input),
            devices=devices._replace(gather=gather),
            rows=rows,
        )

        def classify(split: Split) -> np.ndarray:
            feed = loading.open_feed(_at_least(rows, split), devices, resident_gb=0)
            probability = np.exp(log_probabilities(params, feed))[: len(split)]
            if not np.isfinite(probability).all():
                raise UserError(f"{model.name}: its predictions are not finite: damaged weights?")
            return probability

        yield classify


def _at_least(rows: int, split: Split) -> Split:
    """The split, filled up to `rows` examples: fewer would be another program."""
    if not (missing := max(0, rows - len(split))):
        return split
    fill = lambda array: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    arrays = {name: fill(array) for name, array in split.arrays.items()}
    return Split(arrays, split.ids + ("",) * missing)


def write(model: Trained, listed: Sequence, out: Path, batch_size: int) -> None:
    """Predicts and writes the CSV file, the whole of it or nothing.

    Args:
        listed: as `Kind.find` of the model's kind gives it.

    Raises:
        UserError: it cannot be written, or not one example can be read.
    """
    classes, kind, done = model.card.class_names, kind_of(model), 0
    with _whole_file(out) as file:
        table = csv.writer(file)
        table.writerow([kind.id, "predicted", "probability", *(f"p({name})" for name in classes)])
        for names, probability in predict(model, listed, batch_size):
            for name, row in zip(names, probability, strict=True):
                best = int(row.argmax())
                table.writerow([name, classes[best], *(f"{p:.6f}" for p in (row[best], *row))])
            done += len(names)
        if not done:
            raise UserError(
                f"none of the {len(listed)} {kind.unit}s can be decoded; {out} is not written"
            )
    left_out = f", left out {len(listed) - done}" if done < len(listed) else ""
    report.say(f"{out}: predicted {done}{left_out}")


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


def _check_paths(source: Path, out: Path) -> None:
    """Raises UserError where the input is not there, or what is no result would be written over."""
    try:
        if not source.exists():
            raise UserError(f"--input {source}: no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise UserError(f"--input {source}: cannot be read: {one_line(error)}") from error
    try:
        if not out.is_file():
            return
        with out.open("rb") as file:
            ours = not (start := file.read(64)) or b",predicted,probability" in start
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: cannot be written: {one_line(error)}") from error
    if not ours or out.samefile(source):
        raise UserError(f"--out {out}: is there, and holds no predictions; give another file")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = cli.parser("sdfp.predict", __doc__)
    parser.add_argument(
        "--model", type=cli.path, required=True, help="work directory, exported folder"
    )
    parser.add_argument("--stage", default="", help="of a work directory, as in results.json")
    parser.add_argument("--input", type=cli.path, required=True, help="images or texts, see above")
    parser.add_argument("--text_column", default="text", help="of a .csv, .tsv or .jsonl of texts")
    parser.add_argument("--out", type=cli.path, required=True, help="the CSV file to write")
    parser.add_argument("--batch_size", type=int, default=64, help="over all devices")
    given = parser.parse_args(argv)

    def run() -> None:
        if given.batch_size < 1:
            raise UserError(f"--batch_size {given.batch_size}: must be at least 1")
        source, out = given.input, given.out
        _check_paths(source, out)
        model = trained.open_classifier(given.model, given.stage, f"--model {given.model}")
        kind = kind_of(model)
        try:
            listed = kind.find(source, given.text_column)
        except OSError as error:
            raise UserError(f"--input {source}: cannot be read: {one_line(error)}") from error
        report.say(
            f"model: {model.name}, {len(model.card.class_names)} classes; "
            f"input: {len(listed):,} {kind.unit}s"
        )
        write(model, listed, out, given.batch_size)

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
