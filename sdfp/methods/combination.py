"""Methods that are joined by "+": each changes another part of the same row."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from sdfp.methods.interface import Method
from sdfp.methods.registry import METHODS
from sdfp.types import UserError

FINETUNING = ("teacher", "finetune_loss", "make_optimizer", "float32")
"""What changes the fine-tuning; its settings are part of that stage's identity."""


def parts(name: str) -> list[str]:
    """The methods that a row's name joins: of "mars+r3f" mars and r3f."""
    return name.split("+")


def changes(part: str) -> list[str]:
    """In which fields of `Method`, settings aside, a method differs from plain fine-tuning."""
    method, plain = METHODS[part], Method()
    differs = lambda field: getattr(method, field) != getattr(plain, field)
    return [field for field in Method._fields if field != "settings" and differs(field)]


def combine(name: str, settings: Mapping[str, Any]) -> Method:
    """The method that a row's name stands for, its settings filled in.

    Args:
        name: a method, or several joined by "+".
        settings: method name -> its settings.

    Returns:
        A Method whose functions need no `settings` any more.

    Raises:
        UserError: two parts change the same thing, or a part changes nothing.
    """
    plain, fields, changed_by = Method(), {}, {}
    for part in parts(name):
        method, changed = METHODS[part], changes(part)
        if not changed and part != name:
            raise UserError(f"config.methods: {name}: {part} changes nothing, leave it out")
        for field in changed:
            if field in changed_by:
                raise UserError(
                    f"config.methods: {name}: {changed_by[field]} and {part} both change what "
                    f"{WORDS[field]}; they cannot be combined"
                )
            changed_by[field] = part
            value = getattr(method, field)
            fields[field] = partial(value, settings=settings[part]) if callable(value) else value
    return _filled(plain)._replace(**fields)


WORDS = {
    "pretrain": "fine-tuning starts from",
    "teacher": "the teacher is",
    "finetune_loss": "the loss of fine-tuning is",
    "make_optimizer": "the optimiser of fine-tuning is",
    "float32": "the precision of fine-tuning is",
}


def _filled(plain: Method) -> Method:
    functions = {f: getattr(plain, f) for f in Method._fields if f not in ("settings", "float32")}
    return plain._replace(**{f: partial(value, settings=None) for f, value in functions.items()})


def finetuning_identity(name: str, settings: Mapping[str, Any]) -> dict[str, dict]:
    """Of each part that changes the fine-tuning its settings, as far as they change it: the
    teacher itself has a digest."""
    found = {}
    for part in parts(name):
        if not {*changes(part)} & {*FINETUNING}:
            continue
        left_out = getattr(METHODS[part].settings, "TEACHER_ONLY", ())
        fields = asdict(settings[part]).items()
        found[part] = {key: value for key, value in fields if key not in left_out}
    return found
