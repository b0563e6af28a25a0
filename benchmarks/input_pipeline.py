"""How fast images reach a training step, here and with the usual torch DataLoader.

    python -m benchmarks.input_pipeline --data CUB_FOLDER --json out.json

Images per second of our decode-once way and of a DataLoader that opens every file anew in each
epoch, with PIL and transformers' ViT processor (the PIL one, which it takes without torchvision).
Both make the same float32 batches of the same files, which is checked, and both are measured alone:
no model runs beside them. The files are in the system's page cache throughout. On a GPU or TPU our
batches end there, the loader's on the host. Beside requirements.txt this needs torch.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Nothing of sdfp up here: the loader forks, and a process that has imported JAX should not.

WORKERS = 2
COMPARED = 8
"""Images of which both sides report the mean colours, to show that they do the same."""
MEASURED = {
    "ours_first": "ours, first epoch: decode and resize all files into the cache",
    "ours_open": "ours, next start: check the cache, place it on the device",
    "ours_resident": "ours, every epoch: batches from the images on the device",
    "ours_streamed": "ours, every epoch, resident_gb=0: batches from the host",
    "torch_first": f"torch DataLoader, {WORKERS} workers, first epoch",
    "torch": f"torch DataLoader, {WORKERS} workers, every later epoch",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What both sides do. Each gets it as JSON, in a process of its own."""

    files: list[str]
    labels: list[int]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int
    epochs: int
    """Timed, after one more that is not: it compiles, or starts the workers."""
    augment: bool


class Files:
    """What the loader reads from: every access opens, decodes and normalises one file."""

    def __init__(self, task: Task):
        from transformers import ViTImageProcessorPil

        self._task = task
        self._processor = ViTImageProcessorPil(
            size={"height": task.image_size, "width": task.image_size},
            image_mean=list(task.mean),
            image_std=list(task.std),
        )

    def __len__(self) -> int:
        return len(self._task.files)

    def __getitem__(self, i: int):
        import torch

        with Image.open(self._task.files[i]) as image:
            made = self._processor(image.convert("RGB"), return_tensors="pt")
        pixels = made["pixel_values"][0]
        if self._task.augment and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return pixels, self._task.labels[i]


def reference(task: Task) -> dict[str, Any]:
    """The DataLoader: workers that live on between epochs, default collate."""
    import torch

    torch.manual_seed(0)
    files = Files(task)
    loader = torch.utils.data.DataLoader(
        files, task.batch, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )

    def epoch() -> None:
        for _ in loader:
            pass

    seconds = [timed(epoch)[0] for _ in range(task.epochs + 1)]
    first, *later = (len(files) / each for each in seconds)
    some = Files(replace(task, files=task.files[:COMPARED], augment=False))
    colours = torch.stack([some[i][0] for i in range(len(some))]).double().mean(dim=(2, 3)).tolist()
    return {"rates": {"torch_first": [first], "torch": later}, "colours": colours}


def timed(work: Callable) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def answer(side: Callable) -> None:
    """A side's process: the task comes on stdin, the answer is the last line of stdout."""
    print(json.dumps(side(Task(**json.load(sys.stdin)))))


def _ask(module: str, side: str, task: Task) -> dict[str, Any]:
    from benchmarks import outcome

    names = f"from benchmarks import input_pipeline, {module}"
    program = f"{names}; input_pipeline.answer({module}.{side})"
    return outcome.answer(["-c", program], json.dumps(asdict(task)))


def measure(task: Task, rounds: int) -> dict[str, Any]:
    """Alternates the sides, so that a slower hour of the machine meets both."""
    from benchmarks import outcome

    for file in task.files:  # what a disk takes to read them is not the question
        Path(file).read_bytes()
    rates: dict[str, list[float]] = {name: [] for name in MEASURED}
    load = os.getloadavg()
    for number in range(rounds):
        mine = _ask("ours_input", "ours", task)
        theirs = _ask("input_pipeline", "reference", task)
        gap = np.abs(np.subtract(mine["colours"], theirs["colours"])).max()
        if gap > 1e-6:
            raise SystemExit(f"the two sides make different images: mean colours differ by {gap}")
        for name, values in {**mine["rates"], **theirs["rates"]}.items():
            rates[name] += values
        print(f"round {number + 1} of {rounds} done", flush=True)
    told = {name: _summary(values) for name, values in rates.items()}
    median = {name: told[name]["median"] for name in told}
    saved = 1 / median["torch"] - 1 / median["ours_resident"]
    return {
        "ratio": median["ours_resident"] / median["torch"],
        "ratio_streamed": median["ours_streamed"] / median["torch"],
        # Epochs after which the decoding has paid for itself.
        "epochs_to_pay": 1 / median["ours_first"] / saved if saved > 0 else None,
        "images_per_second": told,
        "largest_colour_difference": float(gap),
        "machine": {**outcome.machine(), "device": mine["device"], "load_before": load},
    }


def _summary(values: list[float]) -> dict[str, Any]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {"median": middle, "min": low, "max": high, "samples": values}


def make_task(arguments: argparse.Namespace) -> Task:
    """All images of the folder, training and test, as one set.

    Raises:
        UserError: no CUB folder.
    """
    from configs import common
    from sdfp.data import cub

    listing, data = cub.from_files(str(arguments.data.absolute())), common.data()
    examples = [*listing.train, *(listing.test or ())][: arguments.images]
    return Task(
        files=[str(example.path) for example in examples],
        labels=[example.label for example in examples],
        image_size=arguments.image_size,
        mean=data.mean,
        std=data.std,
        batch=arguments.batch,
        epochs=arguments.epochs,
        augment=arguments.augment,
    )


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.exit(2, "torch is not installed: nothing to compare with\n")
    from benchmarks import outcome

    outcome.conclude(lambda: compare(arguments), show, arguments.json)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from sdfp import report
    from sdfp.types import UserError

    try:
        task = make_task(arguments)
    except (UserError, OSError) as error:
        raise UserError(str(error).replace("--config.data.dir", "--data")) from error
    measured = measure(task, arguments.rounds)
    others = {name: metadata.version(name) for name in ("torch", "transformers", "pillow")}
    settings = asdict(task) | {"files": len(task.files), "workers": WORKERS, "data": arguments.data}
    del settings["labels"]
    return {**measured, "settings": settings, "versions": {**report.versions(), **others}}


def show(found: dict[str, Any]) -> None:
    for name, told in found["images_per_second"].items():
        print(f"{told['median']:9.0f} ({told['min']:.0f} to {told['max']:.0f})  {MEASURED[name]}")
    print(f"times the loader's: {found['ratio']:.2f}, streamed {found['ratio_streamed']:.2f}")


def _parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        if int(text) < 1:
            raise ValueError
        return int(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks.input_pipeline")
    parser.add_argument("--data", type=Path, required=True, help="folder in CUB's layout")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--image_size", type=positive, default=224)
    parser.add_argument("--images", type=positive, help="only the first so many")
    parser.add_argument("--epochs", type=positive, default=3, help="timed, per round")
    parser.add_argument("--rounds", type=positive, default=3, help="of both sides in turn")
    parser.add_argument("--augment", action="store_true", help="random flips, on both sides")
    return parser


if __name__ == "__main__":
    main()
