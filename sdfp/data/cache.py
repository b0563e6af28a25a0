"""Decode every image once, in threads, into one memory-mapped uint8 array on disk.

A cache is two files named by a hash of what it depends on: `<key>.npy` and `<key>.json` (its
checksum and the list of broken files). The .json is put in place last and the checksum is
verified at every start (about a second per GB), so a damaged or half-written cache is
rebuilt, never used. Two runs that build the same cache do not disturb each other.
"""

import functools
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import tqdm
from PIL import Image, UnidentifiedImageError

from sdfp.data import decode
from sdfp.types import UserError

THREADS = min(16, os.cpu_count() or 1)
"""Each holds one image at its original size, up to about a GB for the largest that is accepted."""
MAX_BYTES = 2**30
"""Of an image file; a larger one is none."""


class Record(NamedTuple):
    """An image that is not a file of its own, such as a TFDS record."""

    read: Callable[[], bytes]
    """The encoded image. Called from several threads."""
    stamp: str
    """Identifies the content in the cache key."""


class Decoded(NamedTuple):
    """The images that could be decoded, in the order of the sources."""

    images: np.ndarray
    """uint8 [kept, image_size, image_size, channels], read-only where it is memory-mapped."""
    kept: np.ndarray
    """int64 [kept], increasing: the position of each image in the sources."""
    broken: dict[int, str]
    """Position in the sources -> why it is left out."""
    file: str
    """Where `images` is memory-mapped from; empty: in memory."""


def decode_all(
    sources: Sequence[Path | Record],
    image_size: int,
    channels: int,
    cache_dir: str,
    *,
    tolerant: bool = False,
) -> Decoded:
    """Decodes `sources`, or maps the cache of an earlier run.

    Args:
      sources: files or records.
      image_size: height and width of the results, pixels.
      channels: 1 (grey) or 3 (RGB).
      cache_dir: folder of the caches, made with mode 0700 if missing; "" keeps all in memory.
      tolerant: a file that cannot be read is broken, too (without a cache, which would remember
        it).

    Raises:
      UserError: a file that cannot be read (permission, I/O), a folder that cannot be
        written, or a full disk. A file whose *content* is wrong goes to `broken`.
    """
    if not cache_dir:
        images = np.zeros((len(sources), image_size, image_size, channels), np.uint8)
        return _result(images, _decode_into(images, sources, tolerant), "")
    try:
        folder = Path(cache_dir).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"--config.data.cache_dir={cache_dir}: no such home folder") from error
    file = folder / f"{_key(sources, image_size, channels)}.npy"
    shape = (len(sources), image_size, image_size, channels)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        cached = _open(file, shape)
        if cached is None:
            _build(file, shape, sources)
            cached = _open(file, shape)
    except OSError as error:
        raise UserError(
            f"cannot write the image cache in {folder}: {error.strerror or error}; choose another "
            "folder with --config.data.cache_dir=..., or '' for none"
        ) from error
    if cached is None:
        raise UserError(f"the image cache {file} does not read back as written: check that disk")
    return _result(*cached, str(file))


def _result(images: np.ndarray, broken: dict[int, str], file: str) -> Decoded:
    kept = np.array([i for i in range(len(images)) if i not in broken], np.int64)
    return Decoded(images[: len(kept)], kept, broken, file)


def _key(sources: Sequence[Path | Record], image_size: int, channels: int) -> str:
    digest = hashlib.sha256(repr((decode.VERSION, PIL.__version__, image_size, channels)).encode())
    for source in sources:
        digest.update(_stamp(source).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def _stamp(source: Path | Record) -> str:
    if isinstance(source, Record):
        return source.stamp
    try:
        status = source.stat()
    except FileNotFoundError:
        return f"{source.absolute()} missing"
    return f"{source.absolute()} {status.st_size} {status.st_mtime_ns}"


def _open(file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[int, str]] | None:
    """The cache, or None where there is none that can be trusted."""
    try:
        beside = json.loads(file.with_suffix(".json").read_text())
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        broken = {int(i): str(why) for i, why in beside["broken"].items()}
        expected = beside["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError):
        return None
    if images.shape != shape or images.dtype != np.uint8 or _checksum(images) != expected:
        return None
    return images, broken


def _checksum(images: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].tobytes())
    return digest.hexdigest()


def _build(file: Path, shape: tuple[int, ...], sources: Sequence[Path | Record]) -> None:
    size = int(np.prod(shape))
    if shutil.disk_usage(file.parent).free < size + 2**20:
        # A memory-mapped file on a full disk ends in SIGBUS, with no message: ask first.
        raise OSError(f"no room for {size / 2**30:.1f} GiB")
    # Another folder, made for this process alone: nobody else writes to these names.
    with tempfile.TemporaryDirectory(prefix="build-", dir=file.parent) as scratch:
        built = Path(scratch) / file.name
        images = np.lib.format.open_memmap(built, "w+", np.uint8, shape)
        broken = _decode_into(images, sources, tolerant=False)
        images.flush()
        beside = {"sha256": _checksum(images), "broken": broken}
        del images
        built.with_suffix(".json").write_text(json.dumps(beside))
        os.replace(built, file)
        os.replace(built.with_suffix(".json"), file.with_suffix(".json"))


def _decode_into(
    images: np.ndarray, sources: Sequence[Path | Record], tolerant: bool
) -> dict[int, str]:
    """Fills the first rows of `images` with what can be decoded; returns what cannot."""

    def one(row: int) -> str | None:
        try:
            data = _read(sources[row])
        except UserError as error:
            if not tolerant:
                raise
            return str(error)
        try:
            if isinstance(data, str):
                return data
            images[row] = decode.decode(data, images.shape[1], images.shape[3])
        except MemoryError:  # this machine's fault, not the file's
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
            return f"more than {most:.0f} million pixels: scale it down"
        except UnidentifiedImageError:  # its message names an object, not the file
            return f"not an image in one of the formats {', '.join(decode.FORMATS)}"
        except Exception as error:  # any kind: see decode.decode
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # Metadata that we do not use may be odd; an image too large to be meant may not.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        progress = functools.partial(tqdm.tqdm, desc="decoding images", unit="", delay=3)
        reasons = pool.map(one, range(len(sources)))
        outcome = list(progress(reasons, total=len(sources), file=sys.stderr, disable=None))
    broken = {row: reason for row, reason in enumerate(outcome) if reason is not None}
    if broken:
        kept = (row for row in range(len(sources)) if row not in broken)
        for to, row in enumerate(kept):
            images[to] = images[row]
    return broken


def _read(source: Path | Record) -> bytes | str:
    """The encoded image, or why there is none."""
    # Apart from decoding: a disk or a permission that fails is no broken image, and a cache
    # must not remember it.
    if isinstance(source, Record):
        return source.read() or "an empty record"
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            return "not a file"
        if status.st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES / 1e9:.1f} GB"
        return source.read_bytes() or "an empty file"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        return "no such file"
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
