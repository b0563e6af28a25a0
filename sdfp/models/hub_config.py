"""What every family reads from and writes to a Hugging Face config.json: no files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from sdfp import checked
from sdfp.types import UserError

MOST = 1 << 24
"""A size above this is no model's, and its arithmetic might not fit int32."""
MOST_OF: dict[str, int] = {
    **dict.fromkeys(("depth", "decoder_depth"), 1 << 12),
    **dict.fromkeys(("dim", "decoder_dim"), 1 << 16),
}
"""Of what lists and arrays are made before the weights are looked at."""


def fields(
    settings: type,
    values: Mapping[str, Any],
    entries: Mapping[str, str],
    file: str = "config.json",
) -> dict[str, Any]:
    """The values, where they are such as a family's settings allow.

    Args:
        settings: the dataclass.
        values: by its fields.
        entries: what the file calls them, where that is another name.
        file: for messages.

    Raises:
        UserError: names the entry whose value is of another type or out of range.
    """
    kinds = get_type_hints(settings)
    limits = {field.name: field.metadata for field in dataclasses.fields(settings)}
    found = {}
    for name, value in values.items():
        entry = f"{file}: {entries.get(name, name)}"
        found[name] = checked.scalar(kinds[name], limits[name], value, entry)
        most = MOST_OF.get(name, MOST)
        if isinstance(value, int | float) and value > most:
            raise UserError(f"{entry}: must be at most {most}; got {checked.shown(value)}")
    return found


def write_labels(class_names: Sequence[str]) -> dict[str, dict]:
    """The entries id2label and label2id for class names by label."""
    # id2label is what predictions are read with, so it is exact. Of classes with one name,
    # label2id can only hold one: the first.
    labels = {str(label): name for label, name in enumerate(class_names)}
    first = {name: label for label, name in reversed(list(enumerate(class_names)))}
    return {"id2label": labels, "label2id": {name: first[name] for name in class_names}}


def read_labels(config: Mapping[str, Any], classifier: str, masked: str) -> tuple[str, ...]:
    """The class names by label.

    Args:
        config: a config.json, not of a masked model.
        classifier: what `architectures` says of a classifier.
        masked: the same of a masked model, for the message.

    Raises:
        UserError: not a classifier of one label per example, labels that are not 0, 1, 2, ...
    """
    kind = config.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        raise UserError(
            f"config.json: problem_type is {kind!r}; one label per example is known only"
        )
    labels = config.get("id2label")
    if labels is None:
        if classifier not in architectures(config):
            raise UserError(
                "config.json: neither a classifier (no id2label) nor a masked model; use a "
                f"{classifier} or {masked}"
            )
        # transformers leaves out its default, two classes.
        limits, count = {"low": 2, "high": MOST}, config.get("num_labels", 2)
        count = checked.scalar(int, limits, count, "config.json: num_labels")
        labels = {label: f"LABEL_{label}" for label in range(count)}
    if not isinstance(labels, Mapping) or len(labels) < 2:
        raise UserError(
            f"config.json: id2label is {labels!r:.60}; a classifier has two labels or more"
        )
    names = {str(label): str(name) for label, name in labels.items()}
    try:
        return tuple(names[str(label)] for label in range(len(names)))
    except KeyError as error:
        raise UserError(
            f"config.json: id2label has {len(names)} entries but none for {error.args[0]}; "
            "number the classes 0, 1, 2, ..."
        ) from None


def architectures(config: Mapping[str, Any]) -> list:
    """The entry `architectures`, empty where there is none."""
    named = config.get("architectures")
    return named if isinstance(named, list) else []
