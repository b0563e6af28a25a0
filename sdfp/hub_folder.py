"""Writes the folder of an exported model (`models.interface.Family.export`)."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from sdfp.types import UserError, one_line


def write_folder(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes the whole folder or nothing; the same content gives the same bytes.

    Args:
        folder: where; not there yet, or empty.
        files: content by path below `folder`. Of *.safetensors {name: ndarray}; of *.json JSON
            values, written in the order they have; of *.md text.

    Raises:
        UserError: the folder exists and is not empty, or cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already, and not an empty folder; give another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, because only within one file system does a folder appear whole.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
            for name, content in files.items():
                _write(Path(scratch) / "whole" / name, content)
            (Path(scratch) / "whole").replace(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {one_line(error)}") from None


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        # transformers 4 refuses a file that does not say "pt".
        path.write_bytes(safetensors.numpy.save(content, metadata={"format": "pt"}))
    elif path.suffix == ".md":
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
