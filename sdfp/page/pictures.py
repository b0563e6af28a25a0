"""Pictures within the page: as data: URIs, small enough for a page of many."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

BYTES = 30_000
"""Larger pictures are embedded as JPEG."""
WIDEST, TALLER = 700, 4
"""Pixels: wider pictures are reduced to that, and those that are so many times as tall."""
SHOWN = 112
"""Pixels: smaller pictures are enlarged to that."""


class Picture(NamedTuple):
    """An image for the page."""

    uri: str
    width: int
    """Pixels on the page."""


def embed(path: Path, widest: int = WIDEST) -> Picture | None:
    """An image file for the page; None where there is none, or not a whole one.

    Args:
        widest: pixels; a wider one is reduced to that.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # a broken one fails here
            limits = widest, TALLER * widest
            if len(data) > BYTES or image.width > limits[0] or image.height > limits[1]:
                image = image.convert("RGB")
                image.thumbnail(limits)
                data = _encoded(image, "JPEG", quality=85)
            shown = max(image.width, min(SHOWN, SHOWN * image.width // image.height))
            return Picture(_uri(data), shown)
    except (OSError, SyntaxError, ValueError):  # the latter two are PIL's words for a broken PNG
        return None


def embed_exactly(image: Image.Image) -> str:
    """The data: URI of an image whose every pixel counts."""
    return _uri(_encoded(image, "PNG", optimize=True))


def _encoded(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def _uri(data: bytes) -> str:
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
