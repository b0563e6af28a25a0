"""JSON that carries a digest of itself: whether it still is what was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfp.types import UserError

NAME = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its digest."""
    return {**content, NAME: _digest(content)}


def check(path: Path, content: Mapping[str, Any], advice: str) -> None:
    """Raises UserError where `content`, read from `path`, was changed. What has no digest is of an
    older version."""
    if NAME in content and content[NAME] != _digest(content):
        raise UserError(f"{path}: damaged: not what was written; {advice}")


def _digest(content: Mapping[str, Any]) -> str:
    own = {name: value for name, value in content.items() if name != NAME}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
