"""The reference side of benchmarks/step_time.py: `python -m benchmarks.torch_step JSON`, where JSON
has the fields of `cases.Case`; its last line of output is one JSON object.

The authors' procedure in PyTorch and transformers (benchmarks/torch_stages.py): the teacher runs in
every step, texts are padded to the longest of their batch, words are predicted at all positions.
`precision` is float32 | tf32 | bfloat16 (autocast) | bfloat16_compile (and torch.compile); "auto"
is ours. What a step reads is ready on the device before its clock starts, masked words drawn,
which favours this side.
"""

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from benchmarks import cases, torch_stages
from benchmarks.torch_stages import Models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(case: cases.Case) -> cases.Made:
    """The case's data and recipe; its precision is of this side, which our config does not know."""
    return cases.make(replace(case, precision="auto"))


def make_models(made: cases.Made, stage: str, device: str = DEVICE) -> Models:
    """Student and teacher of a stage, with random weights, on the device."""
    settings = made.settings
    models = torch_stages.make_models(settings.model_name, settings.model, stage, made.classes)
    if device == "cpu":
        return models
    return Models(*(model and model.to(device) for model in models))


def inputs(made: cases.Made, step: int, device: str = DEVICE, part: int = 0, parts: int = 1):
    """What `torch_stages.losses` takes: the examples of a step, or one of `parts` of them, on the
    device. Texts are padded to the longest of the step, in each of its parts: a micro-batch stands
    for a piece of the batch that does not fit, and does the same work."""
    batch, arrays = made.batch(step), made.split.arrays
    whole = batch["index"][batch["weight"] > 0]
    index = np.array_split(whole, parts)[part]
    labels = torch.tensor(arrays["label"][index]).long().to(device)
    if "image" in arrays:
        data = made.settings.data
        mean, std = (np.array(values, np.float32) for values in (data.mean, data.std))
        pixels = (arrays["image"][index] / np.float32(255) - mean) / std
        return torch_stages.image_batch(
            torch.tensor(pixels).permute(0, 3, 1, 2).contiguous().to(device), labels
        )
    length = arrays["length"][index]
    longest = arrays["length"][whole].max()
    tokens = arrays["tokens"][index, :longest]
    attended = np.arange(longest) < length[:, None]
    masked, target = mask_words(tokens, made.settings.model, np.random.default_rng(step))
    tensor = lambda array: torch.tensor(array).long().to(device)
    plain = {"input_ids": tensor(tokens), "attention_mask": tensor(attended)}
    hidden = {**plain, "input_ids": tensor(masked), "labels": tensor(target)}
    return {"plain": plain, "masked": hidden, "labels": labels}


def mask_words(tokens: np.ndarray, model, random: np.random.Generator):
    """Dynamic masking: of the masked words 80% become <mask>, 10% a random word, 10% stay.

    Returns:
        Two arrays like `tokens`: what the model reads, and what it is to predict, -100 elsewhere.
    """
    words = np.setdiff1d(np.arange(model.vocab_size), model.special)
    chosen = np.isin(tokens, model.special, invert=True)
    chosen &= random.random(tokens.shape) < model.mask_rate
    kind, drawn = random.random(tokens.shape), random.choice(words, tokens.shape)
    replaced = np.where(kind < 0.8, model.mask_id, np.where(kind < 0.9, drawn, tokens))
    return np.where(chosen, replaced, tokens), np.where(chosen, tokens, -100)


def micro_batches(made: cases.Made, case: cases.Case, step: int, device: str = DEVICE) -> list:
    """Of one step."""
    parts = case.micro_batches
    return [inputs(made, step, device, part, parts) for part in range(parts)]


def timed(step: Callable, batches: list) -> tuple[float, float]:
    """Seconds and loss of one step."""
    _wait()
    began = time.perf_counter()
    loss = step(*batches)
    _wait()
    return time.perf_counter() - began, float(loss)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(case: cases.Case) -> dict:
    """All that benchmarks/step_time.py reads."""
    imported = 0 if DEVICE == "cuda" else peak_bytes()
    precision = case.precision
    if precision == "auto":  # as ours
        precision = "tf32" if DEVICE == "cuda" else "float32"
    if precision not in ("float32", "tf32", "bfloat16", "bfloat16_compile"):
        raise ValueError(f"no precision {precision!r}")
    torch_stages.set_precision(precision)
    made = make(case)
    models = make_models(made, case.stage)
    bfloat16 = precision.startswith("bfloat16")
    if precision == "bfloat16_compile":
        for model in (models.student, models.student.base_model, models.teacher):
            if model:
                model.compile()
    step = torch_stages.make_step(case.stage, models, made.recipe, bfloat16)
    # As on our side, every shape of texts has been seen; torch.compile may do so twice.
    warm = range(case.steps if "tokens" in made.split.arrays else 2)
    first = sum(timed(step, micro_batches(made, case, number))[0] for number in warm)
    measured = [timed(step, micro_batches(made, case, number)) for number in range(case.steps)]
    seconds, losses = zip(*measured, strict=True)
    return {
        "side": "reference",
        "seconds": seconds,
        "counts": [1] * len(seconds),
        "first_seconds": first,
        "losses": losses,
        "peak_bytes": peak_bytes(),
        "import_bytes": imported,
        "flops": count_flops(made, case),
        "matmul_peak": matmul_peak(torch.bfloat16 if bfloat16 else torch.float32),
        "precision": "bfloat16" if bfloat16 else precision,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        },
    }


def peak_bytes() -> int:
    """Of the device; on a CPU of the process, with all that it has imported."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def count_flops(made: cases.Made, case: cases.Case) -> float:
    """Mean of the timed steps: matrix products and convolutions, of models that are not compiled.

    Attention as its plain products: the fused ones are counted only on some devices, and those
    compute some products twice.
    """
    total, of_shape = 0, {}
    # Fake tensors have shapes and no values: nothing is computed, or initialised.
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        models = make_models(made, case.stage, "cpu")
        step = torch_stages.make_step(case.stage, models, made.recipe)
        batches = (micro_batches(made, case, number, "cpu") for number in range(case.steps))
        for batch in itertools.chain.from_iterable(batches):
            shape = next(iter(batch["plain"].values())).shape
            if shape not in of_shape:
                with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    step(batch)
                of_shape[shape] = counter.get_total_flops()
            total += of_shape[shape]
    return total / case.steps


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large square product, the best of several."""
    size = 8192 if DEVICE == "cuda" else 2048
    matrix = torch.randn(size, size, device=DEVICE, dtype=dtype)
    product = lambda matrix: torch.matmul(matrix, matrix)[0, 0]
    timed(product, [matrix])
    return 2 * size**3 / min(timed(product, [matrix])[0] for _ in range(8))


if __name__ == "__main__":
    print(json.dumps(measure(cases.Case(**json.loads(sys.argv[1])))))
