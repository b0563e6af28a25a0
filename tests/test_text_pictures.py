"""reconstructions.txt: what a person reads of masked texts."""

import functools

import numpy as np
from text_helpers import BYTES_ONLY

from sdfp.data import texts, tokenizer


@functools.cache
def words():
    """A tokenizer with whole words, and what writes its pictures."""
    corpus = ["the cat sat on a mat\nand on é 🙂"] * 9
    opened = tokenizer.train_tokenizer(corpus, 281)
    return opened, texts.make_to_text(opened)


def ids(*pieces):
    """Without the ends, piece by piece: a special token, or a text of one token."""
    encoded = [words()[0].encode([piece], 99).tokens[0][1:-1] for piece in pieces]
    return np.concatenate(encoded).tolist()


def test_reconstructions():
    _, to_text = words()
    # Kept (" on", " mat"), replaced (" a") and hidden ones, some of them guessed.
    original = ids("the", " cat", " sat", " on", " a", " mat", "\n", "and")
    assert len(original) == 8
    mask, a, on = words()[0].special["mask"], *ids(" a", " on")
    masked = [original[0], mask, mask, on, on, *original[5:7], mask]
    predicted = [*original[:2], a, on, original[4], a, original[6], on]
    one = [[0, *row, 2] for row in (masked, predicted, original)]
    other = [[0, row[0], 2] for row in (masked, predicted, original)]
    assert to_text(np.array([[a + b + [1, 1] for a, b in zip(one, other, strict=True)]])) == (
        "masked:    the <mask> <mask> on {on mat} <mask>\n"
        "predicted: the {cat a} on {a a}  {on}\n"
        "original:  the {cat sat} on {a mat} {and}\n"
        "\n"
        "masked:    the\n"
        "predicted: the\n"
        "original:  the\n"
    )


def test_half_a_character():
    """é is two bytes: masking one of them is no reason to fail."""
    opened, to_text = words()
    learnt = tokenizer.train_tokenizer(["é"], BYTES_ONLY)
    tokens = learnt.encode(["aé"], 9).tokens[0]
    masked = np.where(np.arange(5) == 2, learnt.special["mask"], tokens)
    shown = texts.make_to_text(learnt)(np.stack([masked, tokens, tokens])[None])
    assert shown.startswith("masked:    a<mask>\ufffd\npredicted: a{\ufffd}\ufffd\n")
    assert to_text(np.full((2, 3, 4), opened.special["pad"])) == ""


def test_any_ids_can_be_written():
    opened, to_text = words()
    rng = np.random.default_rng(0)
    for _ in range(50):
        pictures = rng.integers(0, opened.vocab_size, (2, 3, 12))
        pictures[:, :, 0] = opened.special["bos"]
        lines = to_text(pictures).splitlines()
        documents = int((pictures[:, 2] == opened.special["bos"]).sum())
        assert sum(line.startswith("masked: ") for line in lines) == documents
        assert len(to_text(pictures).split("\n")) == 4 * documents
