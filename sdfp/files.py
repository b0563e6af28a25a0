"""Files and folders that the program itself puts into a work directory."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdfp.types import WorkdirError

NO_FLUSH = (errno.EINVAL, errno.ENOTSUP)
"""What is told by file systems that flush files alone (older CIFS, 9p, vboxsf)."""


def folder(path: Path) -> None:
    """Makes it, and those above it.

    Raises:
        WorkdirError: there is a file, or a broken link, in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        way = (*reversed(path.parents), path)
        found = (each for each in way if os.path.lexists(each) and not each.is_dir())
        raise blocked(next(found, path)) from None


def blocked(path: Path) -> WorkdirError:
    """For what should be a folder, and is none."""
    what = "a broken link (is its disk mounted?)" if path.is_symlink() else "a file"
    return WorkdirError(f"{path}: a folder belongs here, and {what} is there: mend or move it")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another path, to write to: the whole file gets its name, or nothing does. Makes its folder.

    Raises:
        WorkdirError: something else is in the place of the file or of its folder.
    """
    folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except IsADirectoryError as error:
        found = error.filename2 or error.filename
        raise WorkdirError(
            f"{found}: a file belongs here, and a folder is there: move it away"
        ) from None


def json_text(value: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes the whole file, or nothing. Errors as `whole`."""
    with whole(path) as temporary:
        temporary.write_text(json_text(value))
        flush(temporary)


def flush(path: Path) -> None:
    """Until the disk has it; of a folder, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """What has this name, if anything: a folder with all that is in it, of a link only itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
