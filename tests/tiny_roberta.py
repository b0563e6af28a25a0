"""A RoBERTa small enough for tests, and documents for it, packed in any way."""

import jax.numpy as jnp
import numpy as np

from sdfp.models import roberta

SIZES: dict = {
    "vocab_size": 40,
    "max_positions": 20,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 24,
    "layer_norm_eps": 1e-5,
    "bos_id": 0,
    "pad_id": 1,
    "eos_id": 2,
    "mask_id": 39,
    "mask_rate": 0.3,
    "dropout_pretrain": 0.0,
    "dropout_finetune": 0.0,
    "attention_dropout_pretrain": 0.0,
    "attention_dropout_finetune": 0.0,
}
LENGTHS = (7, 12, 4, 9, 2)
"""Of the documents, <s> and </s> counted: the last one is empty."""
ALONE = ((0,), (1,), (2,), (3,), (4,))
PACKED = ((3, 0), (2, 1), (4,))
"""The documents of each row, two of the rows out of the table's order."""


def settings(**changes) -> roberta.Settings:
    """Two layers, 40 words."""
    return roberta.Settings(**{**SIZES, **changes})


def document(number: int, length: int, vocab_size: int = 40) -> np.ndarray:
    """<s>, random words, </s>."""
    words = np.random.default_rng(number).integers(4, vocab_size - 1, length - 2)
    return np.array([0, *words, 2], np.int32)


def batch(rows=ALONE, lengths=LENGTHS, length=16, vocab_size=40):
    """The documents in rows of `length`; the table is the same for every packing."""
    shape = (len(rows), length)
    out = {name: np.zeros(shape, np.int32) for name in ("segment", "position")}
    out["tokens"] = np.ones(shape, np.int32)
    out["document"] = np.full(shape, 99, np.int32)  # any number will do at padding
    table = {name: np.zeros(len(lengths), np.int32) for name in ("row", "start")}
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, 1):
            here = np.s_[row, start : start + lengths[number]]
            out["tokens"][here] = document(number, lengths[number], vocab_size)
            out["segment"][here] = segment
            out["position"][here] = np.arange(lengths[number])
            out["document"][here] = number
            table["row"][number], table["start"][number] = row, start
            start += lengths[number]
    table["length"] = np.array(lengths, np.int32)
    table["index"] = 10 + np.arange(len(lengths), dtype=np.int32)
    table["weight"] = np.ones(len(lengths), np.float32)
    table["label"] = np.arange(len(lengths), dtype=np.int32) % 3
    return {name: jnp.asarray(value) for name, value in {**out, **table}.items()}


def by_document(batch, value) -> dict[tuple[int, int], np.ndarray]:
    """[rows, length, ...] -> {(document, position): ...} without padding."""
    value = np.asarray(value)
    return {
        (int(batch["document"][row, column]), int(batch["position"][row, column])): value[
            row, column
        ]
        for row, column in zip(*np.nonzero(np.asarray(batch["segment"])), strict=True)
    }


def slots_by_document(batch, mask, value) -> dict[tuple[int, int], np.ndarray]:
    """[slots, ...] -> {(document, position): ...} without free slots."""
    position = np.asarray(batch["position"])[np.asarray(mask.row), np.asarray(mask.column)]
    where = zip(np.asarray(mask.example).tolist(), position.tolist(), strict=True)
    rows = zip(where, np.asarray(mask.valid), np.asarray(value), strict=True)
    return {place: entry for place, valid, entry in rows if valid}
