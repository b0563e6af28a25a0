"""From lists of texts to a `Dataset`: what all text data sets share."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sdfp.data import assembly, text_files, tokenizer
from sdfp.data.interface import Dataset, Split
from sdfp.data.text_files import Document
from sdfp.data.tokenizer import Tokenizer
from sdfp.problems import Problems
from sdfp.settings import TextData
from sdfp.types import UserError, some

LEGEND = """\
<mask>: hidden from the model. In {braces}, of the masked text: a random word in place of the right
one; of the predicted one: what the model says; of the original: the right words.

"""
LEAST_VOCABULARY = tokenizer.BYTES + len(tokenizer.SPECIAL)


class Listing(NamedTuple):
    """What a data set made of texts consists of, before anything is tokenised."""

    train: list[Document]
    """All with a label, or all without. The ids are unique over all splits."""
    source: str
    """What was read, for results.json."""
    test: list[Document] | None = None
    validation: list[Document] | None = None
    unlabelled: list[Document] | None = None
    """Texts for the pre-training stages; None: those of `train`."""
    published: tuple[int, int] | None = None
    """How many training and test texts the whole data set has, where that is known."""
    metric: str = "macro_f1"
    """The headline one: accuracy, micro_f1 or macro_f1."""
    corpus: Sequence[str] | None = None
    """What a tokenizer is learnt from, where none is given; None: what is left of `train` after
    the cuts, but for the label budget, and `unlabelled`."""


class Encoded(NamedTuple):
    """The texts of one split as numbers."""

    split: Split
    truncated: set[str]
    """Ids of the texts that lost their end."""
    spelling: set[str]
    """Ids of the texts that spell out a special token."""


def assemble(listing: Listing, settings: TextData) -> Dataset:
    """Tokenises what `listing` names and cuts it, as `assembly.assemble` says.

    The classes are those of `train`, by sorted name. The tokenizer is the one that
    `settings.tokenizer` names, or is learnt.

    Raises:
        UserError: fewer than two classes, a label that no training text has, a tokenizer that
            cannot be read or learnt, or one of `assembly.assemble`'s reasons.
    """
    lists = {
        name: documents
        for name in assembly.Parts._fields
        if (documents := getattr(listing, name)) is not None
    }
    labelled = any(document.label is not None for document in listing.train)
    mapping = text_files.label_map(listing.train) if labelled else {}
    labels, problems = {}, Problems()
    for name, documents in lists.items():
        if labelled and name != "unlabelled":
            with problems.noted():
                labels[name] = text_files.encode_labels(documents, mapping, name)
    problems.stop()
    opened, origin = _open(settings, lambda: _corpus(listing, labels, settings))
    encoded = {
        name: encode(documents, labels.get(name), opened, settings.max_length)
        for name, documents in lists.items()
    }
    text_of = {document.id: document.text for part in lists.values() for document in part}
    data = assembly.assemble(
        assembly.Parts(**{name: part.split for name, part in encoded.items()}),
        settings,
        kind="text",
        class_names=tuple(mapping),
        notes={
            "source": listing.source,
            "tokenizer": {"from": origin, "digest": opened.digest},
        },
        count_shared=lambda split, test: _shared_texts(split, test, text_of),
        header=opened.digest,
        published=listing.published,
        metric=listing.metric,
        prepare=prepare,
        to_text=lambda pictures: LEGEND + make_to_text(opened)(pictures),
        input={
            "kind": "text",
            "max_length": settings.max_length,
            "vocab_size": opened.vocab_size,
            "special": dict(opened.special),
            "tokenizer": json.loads(opened.files["tokenizer.json"]),
        },
    )
    return _with_lengths(data, encoded, settings.max_length)


def _corpus(
    listing: Listing, labels: Mapping[str, np.ndarray], settings: TextData
) -> Sequence[str]:
    """What a tokenizer is learnt from: no text that is held out, but for all label budgets the
    same."""
    if listing.corpus is not None:
        return listing.corpus
    train = listing.train
    if labels:
        splits = {
            name: Split({"label": label}, tuple(each.id for each in getattr(listing, name)))
            for name, label in labels.items()
        }
        kept, _, _ = assembly.cut(
            "text",
            splits["train"],
            splits.get("test"),
            splits.get("validation"),
            dataclasses.replace(settings, train_labels=0),
            len(np.unique(labels["train"])),
        )
        ids = set(kept.ids)
        train = [document for document in train if document.id in ids]
    return [document.text for document in (*train, *(listing.unlabelled or ()))]


def _with_lengths(data: Dataset, encoded: Mapping[str, Encoded], max_length: int) -> Dataset:
    """Adds to notes and remarks what the splits, after the cuts, have of tokens."""
    splits = {name: getattr(data, name) for name in assembly.Parts._fields}
    if data.unlabelled is data.train:
        del splits["unlabelled"]
    splits = {name: split for name, split in splits.items() if split}
    truncated = set().union(*(part.truncated for part in encoded.values()))
    spelling = set().union(*(part.spelling for part in encoded.values()))
    notes = {
        "truncated": {name: len(truncated.intersection(s.ids)) for name, s in splits.items()},
        "tokens": {name: _lengths(split) for name, split in splits.items()},
    }
    parts = {name: Encoded(split, truncated, spelling) for name, split in splits.items()}
    return data._replace(
        notes=data.notes | notes, remarks=(*data.remarks, *remarks(parts, max_length))
    )


def prepare(batch, key, augment):
    """Texts are all set: the same batch."""
    return batch


def make_to_text(opened: Tokenizer) -> Callable[[np.ndarray], str]:
    """The function that writes `Backbone.picture` down for a person.

    Its argument: ids [rows, 3, length], the masked input, the prediction, the original; a row may
    hold several documents, each from its <s> on. Its result has three lines per document. The
    places that were masked, as far as the ids tell, are <mask> or in {braces}; [brackets] are what
    SciERC and ChemProt mark entities with.
    """

    def to_text(pictures: np.ndarray) -> str:
        documents = [each for row in np.asarray(pictures) for each in _documents(row, opened)]
        return "\n".join(_show(document, opened) for document in documents)

    return to_text


def _documents(row: np.ndarray, opened: Tokenizer) -> Iterator[np.ndarray]:
    """[3, length] -> [3, tokens] for each document, without its ends."""
    original, special = row[2], opened.special
    starts = np.flatnonzero(original == special["bos"])
    for start, end in itertools.pairwise([*starts, len(original)]):
        ends = np.isin(original[start:end], [special[name] for name in ("bos", "eos", "pad")])
        yield row[:, start:end][:, ~ends]


def _show(document: np.ndarray, opened: Tokenizer) -> str:
    """[3, tokens] -> three lines."""
    masked, predicted, original = document
    chosen = (masked != original) | (predicted != original)
    return "".join(
        f"{name:11}{_line(ids, original, chosen, opened)}\n"
        for name, ids in (("masked:", masked), ("predicted:", predicted), ("original:", original))
    )


def _line(ids: np.ndarray, original: np.ndarray, chosen: np.ndarray, opened: Tokenizer) -> str:
    """The text of `ids`, with those at `chosen` marked; all [tokens]."""
    decode = lambda part: opened.backend.decode(part.tolist(), skip_special_tokens=False)
    hidden = chosen & (ids == opened.special["mask"])
    text, start = "", 0
    # Run by run, since a character may take several tokens.
    for (is_hidden, is_chosen), run in itertools.groupby(zip(hidden, chosen, strict=True)):
        end = start + len(list(run))
        piece = decode(ids[start:end])
        if is_hidden:  # spaced like the words that it hides
            words = [decode(original[place : place + 1]) for place in range(start, end)]
            piece = "".join(" <mask>" if word.startswith(" ") else "<mask>" for word in words)
        elif is_chosen:
            word = piece.lstrip()
            piece = f"{piece[: len(piece) - len(word)]}{{{word}}}"
        text, start = text + piece, end
    return re.sub(r"\s", " ", text).strip()


def _open(settings: TextData, corpus: Callable[[], Sequence[str]]) -> tuple[Tokenizer, str]:
    """The tokenizer, and where it is from."""
    if source := settings.tokenizer:
        revision = settings.tokenizer_revision
        opened = tokenizer.open_tokenizer(source, revision)
        return opened, f"{source}@{revision}" if revision else source
    if settings.vocab_size < LEAST_VOCABULARY:
        raise UserError(
            f"--config.data.vocab_size={settings.vocab_size}: a tokenizer that is learnt has at "
            f"least {LEAST_VOCABULARY} entries; or name one with --config.data.tokenizer"
        )
    texts = corpus()
    opened = tokenizer.train_tokenizer(texts, settings.vocab_size)
    return opened, f"learnt from {len(texts)} texts"


def encode(
    documents: Sequence[Document], labels: np.ndarray | None, opened: Tokenizer, max_length: int
) -> Encoded:
    """Texts to a split.

    Args:
        labels: int32 [documents], or None.
        max_length: in tokens; longer texts lose their end.
    """
    tokens, truncated = opened.encode([document.text for document in documents], max_length)
    length = np.array([len(ids) for ids in tokens], np.int32)
    padded = np.full((len(tokens), length.max(initial=0)), opened.special["pad"], np.int32)
    for row, ids in zip(padded, tokens, strict=True):
        row[: len(ids)] = ids
    arrays = {"tokens": padded, "length": length}
    if labels is not None:
        arrays["label"] = labels
    names = tuple(document.id for document in documents)
    # The two ends and the padding are special; any more, the text has spelt out.
    special = np.isin(padded, list(opened.special.values())).sum(1)
    spelt = np.flatnonzero(special > padded.shape[1] - length + 2)
    return Encoded(
        Split(arrays, names), {names[row] for row in truncated}, {names[row] for row in spelt}
    )


def _lengths(split: Split) -> dict[str, float]:
    """In tokens, as far as they are read."""
    length = split.arrays["length"]
    if not len(length):
        return {"mean": 0.0, "longest": 0}
    return {"mean": round(float(length.mean()), 1), "longest": int(length.max())}


def remarks(encoded: Mapping[str, Encoded], max_length: int) -> Iterator[str]:
    """What the user should be told about splits, by name."""
    for name, part in encoded.items():
        if cut := part.truncated.intersection(part.split.ids):
            yield (
                f"{len(cut):,} of {len(part.split):,} {name} texts are longer than "
                f"max_length={max_length} tokens and lose their end"
            )
    names = [each for part in encoded.values() for each in part.split.ids if each in part.spelling]
    if names:
        yield (
            f"{len(names):,} texts spell out a special token like <mask> or </s>, and it is "
            f"read as that token: {some(names)}"
        )


def _shared_texts(split: Split, test: Split, text_of: Mapping[str, str]) -> int:
    """How many test texts also stand in `split`, character for character."""
    seen = {text_of[each] for each in split.ids}
    return sum(text_of[each] in seen for each in test.ids)
