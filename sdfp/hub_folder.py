"""Folders in the format of the Hugging Face hub: downloaded from there, and written."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from sdfp.types import UserError, one_line


def download(source: str, revision: str, patterns: Sequence[str]) -> Path:
    """Downloads files from the hub, or finds them in its local cache.

    Args:
        source: a hub id, or a path where nothing is.
        revision: branch, tag or commit; "" for the default.
        patterns: of the files' names.

    Returns:
        The folder with the files.

    Raises:
        UserError: `source` can only be a path, no such id or revision, no access, no network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"{source}: no such file or folder, and reading from the hub needs "
            "`pip install huggingface_hub`"
        ) from None
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision or None, allow_patterns=list(patterns)
        )
    except errors.HFValidationError:
        raise UserError(f"{source}: no such file or folder, and not a hub id") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{source}: the hub has no revision {revision!r} of it") from None
    except errors.GatedRepoError:
        raise UserError(f"{source}: gated on the hub; ask for access, then log in") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{source}: no such file or folder, and no such model on the hub (or a private one)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{source}: no such file or folder, and the hub cannot be reached (no network, or "
            "HF_HUB_OFFLINE is set): download it elsewhere and give the folder"
        ) from None
    except Exception as error:
        # Whatever the hub's network library of the day raises: timeouts, resets, a full disk.
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{source}: download failed: {reason}") from None
    return Path(folder)


def write_folder(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes an exported model (`models.interface.Family.export`): the whole folder or nothing;
    the same content gives the same bytes.

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
