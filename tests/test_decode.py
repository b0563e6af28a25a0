"""Image files of every mode, and files that are none."""

import errno
import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from sdfp.data import cache, decode
from sdfp.types import UserError


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixel(data: bytes, channels=3) -> list[int]:
    """The value of a file whose pixels are all the same."""
    array = decode.decode(data, 4, channels)
    assert array.shape == (4, 4, channels)
    assert array.dtype == np.uint8
    assert (array == array[0, 0]).all()
    return array[0, 0].tolist()


def plain(mode, value) -> Image.Image:
    return Image.new(mode, (6, 5), value)


def palette(*rgb) -> Image.Image:
    return plain("RGB", rgb).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("image", "kind", "rgb"),
    [
        (plain("RGB", (200, 100, 50)), "PNG", [200, 100, 50]),
        (plain("L", 77), "PNG", [77, 77, 77]),
        (plain("1", 1), "PNG", [255, 255, 255]),
        (plain("1", 0), "TIFF", [0, 0, 0]),
        (plain("LA", (100, 255)), "PNG", [100, 100, 100]),
        (plain("LA", (100, 0)), "PNG", [255, 255, 255]),
        (plain("RGBA", (200, 100, 50, 255)), "PNG", [200, 100, 50]),
        (plain("RGBA", (200, 100, 50, 0)), "PNG", [255, 255, 255]),
        (plain("RGBA", (0, 100, 255, 51)), "PNG", [204, 224, 255]),
        (palette(200, 100, 50), "PNG", [200, 100, 50]),
        (palette(200, 100, 50), "GIF", [200, 100, 50]),
        (plain("CMYK", (0, 255, 255, 0)), "TIFF", [255, 0, 0]),
        (plain("YCbCr", (76, 85, 255)), "TIFF", [254, 0, 0]),
    ],
)  # fmt: skip
def test_mode_to_rgb(image, kind, rgb):
    np.testing.assert_allclose(pixel(encoded(image, kind)), rgb, atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "I;16"])
def test_mode_to_grey(mode):
    white = {"RGB": (255,) * 3, "LA": (255, 255), "RGBA": (255,) * 4, "1": 1, "I;16": 65535}
    image = plain("L", 255).convert("P") if mode == "P" else plain(mode, white.get(mode, 255))
    assert pixel(encoded(image), channels=1) == [255]


def test_grey_of_a_colour_is_its_luma():
    assert pixel(encoded(plain("RGB", (255, 0, 0))), channels=1) == [76]


def test_palette_with_a_transparent_entry():
    image = plain("P", 3)
    image.putpalette([0, 0, 0] * 3 + [10, 20, 30])
    assert pixel(encoded(image)) == [10, 20, 30]
    assert pixel(encoded(image, transparency=3)) == [255, 255, 255]


def test_12_bit_values_are_refused():
    """X-rays often are: scaled as 16 bits they would be black, and nobody would be told."""
    with pytest.raises(ValueError, match="12-bit values"):
        pixel(encoded(Image.fromarray(np.full((5, 6), 4095, np.uint16)), "PNG"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("value", "grey"), [(0, 0), (4096, 16), (257 * 77, 77), (32768, 128), (65535, 255)]
)
def test_16_bit_is_scaled_not_clipped(kind, value, grey):
    image = Image.fromarray(np.full((5, 6), value, np.uint16))
    assert image.mode == "I;16"
    assert pixel(encoded(image, kind)) == [grey] * 3


def test_16_bit_big_endian_tiff():
    # PIL writes little-endian only. Width, height, bits, no compression, black is zero, one
    # strip of 2 x 2 values at byte 200; each entry: tag, type 3 = short, count, value.
    tags = [(256, 2), (257, 2), (258, 16), (259, 1), (262, 1), (273, 200), (278, 2), (279, 8)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
    data = data.ljust(200, b"\0") + (257 * 77).to_bytes(2, "big") * 4
    assert pixel(data) == [77, 77, 77]


def test_32_bit_integers_in_the_16_bit_range():
    assert pixel(encoded(plain("I", 257 * 77), "TIFF")) == [77, 77, 77]
    with pytest.raises(ValueError, match=r"outside 0\.\.65535"):
        decode.decode(encoded(plain("I", 70000), "TIFF"), 4, 3)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        decode.decode(encoded(plain("F", 0.5), "TIFF"), 4, 3)


@pytest.mark.parametrize(
    ("cmyk", "rgb"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0,) * 3)]
)
def test_cmyk_jpeg(cmyk, rgb):
    value = pixel(encoded(plain("CMYK", cmyk), "JPEG", quality=95))
    np.testing.assert_allclose(value, rgb, atol=6)


def test_resize_does_not_keep_the_aspect_and_averages():
    ramp = np.zeros((10, 40, 3), np.uint8)
    ramp[:, 20:] = 200
    small = decode.decode(encoded(Image.fromarray(ramp)), 2, 3)
    assert small.shape == (2, 2, 3)
    assert small[0, 0, 0] < 60
    assert small[0, 1, 0] > 140
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200  # without averaging: 0 or 200
    np.testing.assert_allclose(decode.decode(encoded(Image.fromarray(stripes)), 4, 1), 100, atol=8)


def test_exif_orientation_is_not_applied():
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = decode.decode(encoded(image, "JPEG", exif=exif, quality=100), 8, 1)
    assert turned[0, 0] > 200
    assert turned[-1, 0] < 50


def write_faulty(folder):
    """name -> (file, what the report says)"""
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    jpeg, png = (encoded(Image.fromarray(noise), kind) for kind in ("JPEG", "PNG"))
    contents = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "zero.jpg": b"",
        "text.jpg": b"this is no image",
        "flipped.png": png[:60] + bytes(100) + png[160:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [*(folder / name for name in contents), folder / "missing.jpg"]


def test_broken_files_are_left_out_and_named(tmp_path):
    good = tmp_path / "good.png"
    good.write_bytes(encoded(plain("RGB", (1, 2, 3))))
    faulty = write_faulty(tmp_path)
    sources = [faulty[0], good, *faulty[1:], good]
    decoded = cache.decode_all(sources, 4, 3, "")
    assert decoded.kept.tolist() == [1, 7]
    assert sorted(decoded.broken) == [0, 2, 3, 4, 5, 6]
    assert "truncated" in decoded.broken[0]
    assert decoded.broken[6] == "no such file"
    assert (decoded.images == [1, 2, 3]).all()
    assert len(decoded.images) == 2


@pytest.mark.parametrize("limit", [100, 200])  # 16 x 16: over twice the limit, over the limit
def test_a_decompression_bomb_is_broken(tmp_path, monkeypatch, limit):
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("L", (16, 16))))
    (tmp_path / "good.png").write_bytes(encoded(Image.new("L", (8, 8))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    decoded = cache.decode_all([tmp_path / "bomb.png", tmp_path / "good.png"], 4, 1, "")
    assert decoded.kept.tolist() == [1]
    assert "pixels: scale it down" in decoded.broken[0]


def test_a_disk_error_is_not_a_broken_image(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(type(tmp_path), "read_bytes", fail)
    with pytest.raises(UserError, match=r"cannot read .*a\.jpg: Input/output error"):
        cache.decode_all([tmp_path / "a.jpg"], 4, 3, "")
    decoded = cache.decode_all([tmp_path / "a.jpg"], 4, 3, "", tolerant=True)
    assert "Input/output error" in decoded.broken[0]


def test_what_is_no_regular_file_is_broken(tmp_path, monkeypatch):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    monkeypatch.setattr(cache, "MAX_BYTES", 10)
    names = ["folder.jpg", "pipe.jpg", "large.jpg", "a\0b.jpg"]
    decoded = cache.decode_all([tmp_path / name for name in names], 4, 3, "")
    assert list(decoded.broken.values()) == [
        "not a file",
        "not a file",
        "larger than 0.0 GB",
        "no such file",
    ]


def test_postscript_never_reaches_ghostscript(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    assert "not an image in one of" in cache.decode_all([tmp_path / "a.jpg"], 4, 3, "").broken[0]


@pytest.mark.real_data
def test_real_originals_decode(real_data):
    """X-rays mix grey and RGB files; CUB has a few grey ones."""
    files = sorted((real_data / "images").glob("*_original_samples/**/*.jp*g"))
    modes = []
    for file in files:
        with Image.open(file) as image:
            modes.append(image.mode)
    assert set(modes) == {"L", "RGB"}
    decoded = cache.decode_all(files, 64, 3, "")
    assert not decoded.broken
    assert decoded.images.shape == (len(files), 64, 64, 3)
    assert all(image.std() > 5 for image in decoded.images)
    for mode, image in zip(modes, decoded.images, strict=True):
        assert mode == "RGB" or (image[..., 0] == image[..., 2]).all()
