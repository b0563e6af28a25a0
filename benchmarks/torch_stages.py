"""The authors' procedure written plainly in PyTorch and transformers: what we are measured against.

`make_models` and `make_step` are one stage, of images or texts. `python -m benchmarks.torch_stages
JOB.json` is the reference side of benchmarks/pipeline.py: all stages of one job on image files, and
the test set; one JSON line out. Nothing of sdfp is imported: the time that takes is not theirs, and
a process that has imported JAX should not fork loaders.
"""

import contextlib
import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image

WORKERS = 2
PARTS = {"bias": "bias", "position_embeddings": "pos_embed", "decoder_pos_embed": "pos_embed"}
PARTS["cls_token"] = "cls_token"


class Models(NamedTuple):
    """What one stage trains, and what it learns from."""

    student: Any
    """ViTMAEForPreTraining or RobertaForMaskedLM; to be fine-tuned, a classifier."""
    teacher: Any = None
    """A bare encoder in evaluation mode, for self-distillation."""


def make_models(family: str, sizes: Any, stage: str, classes: int = 0) -> Models:
    """Random weights.

    Args:
        family: "vit_mae" or "roberta".
        sizes: with the names of our `vit_mae.Settings` or `roberta.Settings`.
    """
    use = "finetune" if stage == "finetune" else "pretrain"
    config = (_roberta if family == "roberta" else _vit)(sizes, use)
    config.num_labels = classes
    kind = getattr(transformers, config.architectures[0])
    teacher = kind(config).base_model.eval() if stage == "self_distill" else None
    return Models(kind(config).train(), teacher)


def _vit(sizes: Any, use: str) -> Any:
    common = {
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "num_channels": sizes.channels,
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_dim,
        "layer_norm_eps": sizes.layer_norm_eps,
        "qkv_bias": sizes.qkv_bias,
        "hidden_dropout_prob": getattr(sizes, f"dropout_{use}"),
        "attention_probs_dropout_prob": 0.0,
    }
    if use == "finetune":
        return transformers.ViTConfig(**common, architectures=["ViTForImageClassification"])
    return transformers.ViTMAEConfig(
        **common,
        decoder_hidden_size=sizes.decoder_dim,
        decoder_num_hidden_layers=sizes.decoder_depth,
        decoder_num_attention_heads=sizes.decoder_heads,
        decoder_intermediate_size=sizes.decoder_mlp_dim,
        mask_ratio=sizes.mask_ratio,
        norm_pix_loss=sizes.normalize_targets,
        architectures=["ViTMAEForPreTraining"],
    )


def _roberta(sizes: Any, use: str) -> Any:
    kind = "ForSequenceClassification" if use == "finetune" else "ForMaskedLM"
    return transformers.RobertaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_dim,
        max_position_embeddings=sizes.max_positions,
        layer_norm_eps=sizes.layer_norm_eps,
        type_vocab_size=1,
        bos_token_id=sizes.bos_id,
        pad_token_id=sizes.pad_id,
        eos_token_id=sizes.eos_id,
        hidden_dropout_prob=getattr(sizes, f"dropout_{use}"),
        attention_probs_dropout_prob=getattr(sizes, f"attention_dropout_{use}"),
        architectures=[f"Roberta{kind}"],
    )


def losses(stage: str, models: Models, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The terms of a stage's objective.

    Args:
        batch: `plain` and `masked`, arguments of the model for the whole and the masked input, and
            `labels`. ViTMAE masks by itself: its two inputs are one. Transformers' loss of masked
            texts is one mean over all masked tokens of the batch.
    """
    student, teacher = models
    if stage == "finetune":
        return {"cross_entropy": student(**batch["plain"], labels=batch["labels"]).loss}
    terms = {"masked": student(**batch["masked"]).loss}
    if stage == "self_distill":
        with torch.no_grad():
            target = features(teacher, batch["plain"])
        distance = (features(student.base_model, batch["plain"]) - target).square().sum()
        terms["distill"] = distance / len(target)
    return terms


def features(encoder: Any, plain: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The last hidden state of the first token, of the whole input."""
    with _unmasked(encoder.config):
        return encoder(**plain).last_hidden_state[:, 0].float()


@contextlib.contextmanager
def _unmasked(config: Any) -> Iterator[None]:
    """ViTMAE of transformers masks in every call; ratio 0 keeps (and shuffles) all."""
    if config.model_type != "vit_mae":
        yield
        return
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    try:
        yield
    finally:
        config.mask_ratio = ratio


def make_step(stage: str, models: Models, recipe: Any, bfloat16: bool = False) -> Callable:
    """`step(*micro_batches) -> loss`: one update of the student, on the device that it is on.

    Args:
        recipe: with the names of our `settings.Recipe`.
    """
    parameters = list(models.student.parameters())
    device = parameters[0].device.type
    optimizer, schedule = _optimizer(models.student, recipe)

    def step(*micro_batches: Mapping[str, Any]) -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for batch in micro_batches:
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = torch.stack(list(losses(stage, models, batch).values())).sum()
            loss = loss / len(micro_batches)
            loss.backward()
            total += loss.detach()
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        return total

    return step


def _optimizer(model: Any, recipe: Any):
    groups: dict[float, list] = {recipe.weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        # What our recipes call it: the norms' weights are the only other vectors.
        part = PARTS.get(name.rsplit(".", 1)[-1], "scale" if parameter.ndim == 1 else "kernel")
        parameter.requires_grad_(part not in recipe.frozen)
        if parameter.requires_grad:
            groups[0.0 if part in recipe.no_decay else recipe.weight_decay].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": part, "weight_decay": decay} for decay, part in groups.items()],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
    )
    steps, warmup = recipe.steps, recipe.warmup_steps

    def factor(step: int) -> float:
        return step / warmup if step < warmup else max(0.0, (steps - step) / (steps - warmup))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def set_precision(name: str) -> None:
    """How float32 is multiplied: "tf32", or exactly."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def image_batch(pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """What `losses` takes, of normalised images [examples, channels, height, width]."""
    plain = {"pixel_values": pixels}
    return {"plain": plain, "masked": plain, "labels": labels}


class Images(torch.utils.data.Dataset):
    """Image files, opened anew whenever they are asked for."""

    def __init__(self, rows: list, job: Mapping[str, Any], flip: bool):
        self.rows, self.size, self.flip = rows, job["image_size"], flip
        self.mean, self.std = (np.array(job[key], np.float32) for key in ("mean", "std"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.rows[number]
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        return tensor.flip(2) if self.flip and torch.rand(()) < 0.5 else tensor, label


def _loader(images: Images, batch_size: int, shuffle: bool) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        images,
        batch_size,
        shuffle=shuffle,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def _train(stage: str, models: Models, job: Mapping[str, Any], device: str) -> None:
    recipe = SimpleNamespace(**job["recipes"][stage])
    loader = _loader(Images(job["train"], job, recipe.augment), recipe.batch_size, shuffle=True)
    step = make_step(stage, models, recipe)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for pixels, labels in itertools.islice(epochs, recipe.steps):
        loss = step(image_batch(pixels.to(device), labels.to(device)))
    print(f"{stage}: last loss {float(loss):.4f}", flush=True)  # waits for the device
    torch.save(models.student.state_dict(), Path(job["workdir"], f"{stage}.pt"))


def _accuracy(model: Any, job: Mapping[str, Any], device: str) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for pixels, labels in _loader(Images(job["test"], job, False), job["eval_batch"], False):
            guess = model(pixels.to(device)).logits.argmax(-1).cpu()
            right += int((guess == labels).sum())
    return 100 * right / len(job["test"])


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Algorithm 1, fine-tuning, the test set: seconds of each stage, and percent that are right."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_precision("tf32" if device == "cuda" else "float32")
    sizes, seconds = SimpleNamespace(**job["sizes"]), {}

    def timed(stage: str, models: Models) -> None:
        began = time.perf_counter()
        _train(stage, models, job, device)
        seconds[stage] = time.perf_counter() - began

    student = make_models("vit_mae", sizes, "further_pretrain").student.to(device)
    start = copy.deepcopy(student.state_dict())
    timed("further_pretrain", Models(student))
    teacher = copy.deepcopy(student.base_model).eval()
    student.load_state_dict(start)
    timed("self_distill", Models(student, teacher))
    classifier = make_models("vit_mae", sizes, "finetune", job["classes"]).student.to(device)
    classifier.base_model.load_state_dict(student.base_model.state_dict())
    timed("finetune", Models(classifier))
    return {"stages": seconds, "accuracy": _accuracy(classifier, job, device)}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
