"""One safetensors file, or what else lies under such a name."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from sdfp.types import UserError, one_line

_PICKLE = "a pickle: see `python -m sdfp.convert_pth --help`"
IMPOSTORS = {
    b"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull` in its repository",
    b"pk\x03\x04": "a pickle or a zip: see `python -m sdfp.convert_pth --help`",
    **dict.fromkeys((b"\x80\x02\x8a", b"\x80\x02}", b"\x80\x04\x95", b"\x80\x05\x95"), _PICKLE),
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml"), "a web page: get the file itself"),
}
"""How other files begin that are found under such a name, in lower case."""


def read(file: Path) -> dict[str, np.ndarray]:
    """Name -> tensor.

    Raises:
        UserError: it is no whole safetensors file, or holds numbers that numpy does not have.
    """
    try:
        return safetensors.numpy.load_file(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {one_line(error)}") from None
    except AttributeError as error:
        raise UserError(
            f"{file}: holds a number format that cannot be read here, such as float8 "
            f"({one_line(error)}): convert it to float32 or bfloat16"
        ) from None
    except (safetensors.SafetensorError, ValueError) as error:
        # ValueError: an array without elements whose other sides are too long for numpy.
        raise UserError(
            f"{file}: not a whole safetensors file ({_impostor(file)}): {one_line(error)}"
        ) from None


def _impostor(file: Path) -> str:
    """What it may be instead, and what to do."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    found = (told for known, told in IMPOSTORS.items() if start.startswith(known))
    return next(found, "cut short? get it again")
