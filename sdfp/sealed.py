"""JSON that carries a digest of itself: whether it still is what was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfp import checked
from sdfp.types import UserError

NAME = "sha256"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its digest, in place of one that it has."""
    own = _own(content)
    return {**own, NAME: digest(own)}


def read(path: Path, advice: str, shape: Any) -> dict[str, Any]:
    """As `checked.read_json`, and with its digest checked. What has none is of an older version.

    Raises:
        UserError: it cannot be read, is of another shape, or was changed.
    """
    found = checked.read_json(path, advice, shape)
    if NAME in found and found[NAME] != digest(_own(found)):
        raise UserError(f"{path}: damaged: not what was written; {advice}")
    return found


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != NAME}
