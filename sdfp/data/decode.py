"""One image file -> uint8 array [image_size, image_size, channels].

First to 8-bit grey or RGB, then bilinear resize with PIL (which
averages when it shrinks), aspect not kept. The EXIF orientation is not applied, as in the
authors' code. Transparency is composited over white, the way a viewer shows it; colours
hidden under alpha 0 are arbitrary.
"""

import io

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""PIL knows more, and would hand an EPS file, whatever its name, to Ghostscript."""
VERSION = 1
"""Raise it when a change below changes pixels: caches of older versions are then rebuilt."""


def decode(data: bytes, image_size: int, channels: int) -> np.ndarray:
    """Decodes the bytes of one image file.

    Args:
      data: the file's content, in one of FORMATS; of an animation the first frame.
      image_size: height and width of the result, pixels.
      channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).

    Returns:
      uint8 [image_size, image_size, channels].

    Raises:
      Exception: PIL's decoders raise many kinds, and ValueError stands for a pixel range
        that cannot be known. Callers treat every one of them as "this file is broken".
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return to_array(image, image_size, channels)


def to_array(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """An opened image of any mode -> uint8 [image_size, image_size, channels]."""
    image = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(image_size, image_size, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image with 8 bits per channel and no transparency (any colour space)."""
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise ValueError("float pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _from_integers(image: Image.Image) -> Image.Image:
    # PIL's own convert("L") clips 16-bit values at 255: nearly every pixel turns white.
    # 65535 is white, whatever the largest value of this image is.
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels outside 0..65535 have no known range")
    if 0 < values.max() < 4096:
        raise ValueError(
            f"12-bit values (up to {values.max()}) in a 16-bit image would be nearly black: "
            "scale them to 16 or 8 bits first"
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
