"""What every data set goes through, images and texts: cuts, checks, counts, fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sdfp.data import splits
from sdfp.data.interface import Dataset, Split
from sdfp.settings import Examples
from sdfp.types import UserError, some

TEST_FILES = {"image": "a test folder or test.csv", "text": "test.csv, test.tsv or test.jsonl"}


class Parts(NamedTuple):
    """The splits that a data set brings."""

    train: Split
    test: Split | None = None
    validation: Split | None = None
    unlabelled: Split | None = None
    """None: what the pre-training stages see is `train`."""

    @property
    def seen(self) -> tuple[Split, ...]:
        """What stages are trained on: fine-tuning first, the pre-training ones last."""
        if self.unlabelled is None or self.unlabelled is self.train:
            return (self.train,)
        return self.train, self.unlabelled


def assemble(
    parts: Parts,
    settings: Examples,
    *,
    kind: str,
    class_names: tuple[str, ...],
    notes: dict[str, Any],
    count_shared: Callable[[Split, Split], int],
    header: str,
    published: tuple[int, int] | None = None,
    metric: str = "accuracy",
    **how: Any,
) -> Dataset:
    """Cuts test, validation and label budget from `train`, as far as they are not given.

    `settings.test_fraction` counts only where there is no test split, `validation_fraction` only
    where there is no validation split; the budget `train_labels` is taken from what is left,
    stratified like all cuts. Without labels nothing is cut. Where the data set has no unlabelled
    examples of its own, the budget cuts `unlabelled` with `train` (they are one object); else they
    stay as they are.

    Args:
      kind: "image" or "text", for messages.
      class_names: by label; empty where `train` has no labels.
      notes: goes to results.json, with the counts added. `source`: what was read; `broken`: files
        that were left out, and why.
      count_shared: (split, test) -> how many test examples are in that split.
      header: what the arrays alone do not tell of the model's input; in the fingerprint.
      published: training and test examples of the whole data set, where that is known.
      how: `prepare`, `input` and `to_pixels` or `to_text` of the Dataset.

    Raises:
      UserError: nothing left, fewer than two classes, a class without training examples, a label
        out of range, a budget that cannot be met, no test split, or a fraction for one it has.
    """
    train, test, validation, unlabelled = parts
    if not len(train):
        raise UserError(f"no {kind} to train on in {notes['source']}")
    if train.labelled:
        train, test, validation = cut(kind, train, test, validation, settings, len(class_names))
        _check_labels({"train": train, "validation": validation, "test": test}, class_names)
    every = Parts(train, test, validation, train if unlabelled is None else unlabelled)
    if not len(every.seen[-1]):
        raise UserError(f"no unlabelled {kind} in {notes['source']}")
    facts = _facts(kind, parts, every, header, count_shared)
    facts |= {"classes": len(class_names), "published": published or facts["found"]}
    return Dataset(
        **every._asdict(),
        class_names=class_names,
        fingerprint=_fingerprint(every.seen, header),
        notes={**notes, **facts},
        remarks=(*_remarks(kind, facts, notes.get("broken", {})), *_absent(test, class_names)),
        metric=metric,
        **how,
    )


def _facts(
    kind: str, given: Parts, parts: Parts, header: str, count_shared: Callable[[Split, Split], int]
) -> dict[str, Any]:
    """What is in the parts, which of them were given, and what test shares with the others."""
    test = parts.test
    shared = [0 if test is None else count_shared(split, test) for split in parts.seen]
    held_out = {"validation": parts.validation, "test": parts.test}
    order = ("train", "unlabelled", "validation", "test")
    return {
        "counts": {name: len(getattr(parts, name) or ()) for name in order},
        "own_splits": [name for name in ("test", "validation") if getattr(given, name)],
        "held_out": {n: _fingerprint([s], header) for n, s in held_out.items() if s},
        "found": (len(given.train), len(given.test or ())),
        f"test_{kind}s_in_train": shared[0],
        f"test_{kind}s_in_unlabelled": shared[-1],
    }


def _remarks(kind: str, facts: dict[str, Any], broken: dict[str, str]) -> tuple[str, ...]:
    told = []
    found, published = facts["found"], facts["published"]
    if found != published:
        told.append(
            f"not the whole published set: it has {published[0]} train and {published[1]} test "
            f"{kind}s, here are {found[0]} and {found[1]}"
        )
    told += [f"left out {name}: {why}" for name, why in broken.items()]
    exactly = {"image": "pixel for pixel", "text": "character for character"}[kind]
    in_train, in_unlabelled = (facts[f"test_{kind}s_in_{part}"] for part in ("train", "unlabelled"))
    if in_train:
        told.append(f"{in_train} test {kind}s are in train too, {exactly}")
    if in_unlabelled > in_train:
        told.append(
            f"{in_unlabelled} test {kind}s are among the unlabelled ones, {exactly}: the masked "
            "stages see them"
        )
    return tuple(told)


def _absent(test: Split | None, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """A remark where test does not have all the classes."""
    if test is None or not test.labelled:
        return ()
    seen = set(test.arrays["label"].tolist())
    absent = [name for label, name in enumerate(class_names) if label not in seen]
    told = f"the test split has no example of {len(absent)} of the {len(class_names)} classes"
    return (f"{told}: {some(absent)}",) if absent else ()


def cut(
    kind: str,
    train: Split,
    test: Split | None,
    validation: Split | None,
    settings: Examples,
    classes: int,
) -> tuple[Split, Split, Split | None]:
    """train, test and validation, with what `settings` asks for cut from train."""
    seed = settings.split_seed
    for name, split in (("test", test), ("validation", validation)):
        if split is not None and getattr(settings, f"{name}_fraction"):
            raise UserError(
                f"--config.data.{name}_fraction: the data set has its own {name} split; leave it 0"
            )
    if classes < 2:
        raise UserError(f"a classifier needs at least two classes, the data set has {classes}")
    if test is None:
        if not settings.test_fraction:
            raise UserError(
                f"the data set has no test split (of your own {kind}s: {TEST_FILES[kind]}); "
                "hold out a part of train with --config.data.test_fraction=0.2"
            )
        keep = _left(len(train), settings.test_fraction, "test_fraction")
        train, test = splits.cut(train, keep, seed, splits.TEST)
    if validation is None and settings.validation_fraction:
        keep = _left(len(train), settings.validation_fraction, "validation_fraction")
        train, validation = splits.cut(train, keep, seed, splits.VALIDATION)
    budget = settings.train_labels
    if budget:
        if not classes <= budget <= len(train):
            raise UserError(
                f"--config.data.train_labels={budget} must be at least the {classes} classes and "
                f"at most the {len(train)} training examples (0 = all)"
            )
        train, _ = splits.cut(train, budget, seed, splits.BUDGET)
    return train, test, validation


def _left(examples: int, fraction: float, name: str) -> int:
    keep = examples - round(examples * fraction)
    if not 0 < keep < examples:
        raise UserError(
            f"--config.data.{name}={fraction} of {examples} examples leaves one part empty"
        )
    return keep


def _check_labels(parts: dict[str, Split | None], class_names: tuple[str, ...]) -> None:
    # On the device a wrong label is no error: -1 would count as the last class.
    for name, split in parts.items():
        if split is None:
            continue
        if not len(split):
            raise UserError(f"the {name} split is empty")
        labels = split.arrays["label"]
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(f"a {name} label is outside 0..{len(class_names) - 1}")
        absent = sorted(set(range(len(class_names))) - set(labels.tolist()))
        if name == "train" and absent:
            names = ", ".join(class_names[label] for label in absent[:5])
            raise UserError(f"{len(absent)} classes have no training example: {names}")


def _fingerprint(parts: Sequence[Split], header: str) -> str:
    """Hash of what a program sees: ids, pixels or tokens, labels, their order and `header`."""
    digest = hashlib.sha256(header.encode())
    for split in parts:
        digest.update(repr(split.ids).encode("utf-8", "surrogateescape"))
        for name in sorted(split.arrays):
            array = split.arrays[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            for start in range(0, len(array), 256):
                digest.update(array[start : start + 256].tobytes())
    return digest.hexdigest()
