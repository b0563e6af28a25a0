"""Extracts a downloaded archive, without trusting it."""

import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sdfp.types import UserError, one_line

MAX_RATIO = 20  # an archive that holds more than so many times its size is a bomb, not pictures
MAX_MEMBERS = 1_000_000
MAX_READ = 1 << 20
"""Bytes of a tar's header, which is read in one piece: names, not pictures."""
# What the libraries raise for a file that is no whole archive, or one that they cannot read.
_LIBRARIES = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(RuntimeError, ValueError, KeyError, OverflowError),
)
# What the disk says of members that no disk could hold: a file within a file, a name too long.
_IMPOSSIBLE = (
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP),
)


class Damaged(Exception):
    """Not a whole archive."""


def unpack(archive: Path, folder: Path, *, zipped: bool) -> list[str]:
    """Extracts into `folder`, which is new. What macOS adds to archives is left out.

    Returns:
        The entries of the top level.

    Raises:
        Damaged: cut short, empty, a checksum does not fit, or members that exclude each other.
        UserError: a member that leads out of the folder, or far more than pictures would be.
    """
    try:
        return (_unzip if zipped else _untar)(archive, folder)
    except (*_LIBRARIES, OSError) as error:
        if isinstance(error, OSError) and error.errno and error.errno not in _IMPOSSIBLE:
            raise  # the disk's, not the archive's
        raise Damaged(f"cannot be extracted: {one_line(error)}") from None


def _unzip(archive: Path, folder: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        facts = (
            (m, m.filename, m.file_size, stat.S_ISLNK(m.external_attr >> 16))
            for m in opened.infolist()
        )
        members, entries = _plan(archive, facts)
        opened.extractall(folder, members)
    return entries


def _untar(archive: Path, folder: Path) -> list[str]:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("extracting safely needs Python 3.11.4 or newer")
    with archive.open("rb") as raw:  # by content: DTD's tar.gz is a plain tar
        compressed = raw.read(2) == b"\x1f\x8b"
    with (
        gzip.open(archive) if compressed else archive.open("rb") as stream,
        tarfile.open(fileobj=cast(Any, _InPieces(stream)), mode="r:") as opened,
    ):
        # Stricter than "data", which let chains of links through ".." out (CVE-2025-4517).
        facts = ((m, m.name, m.size, m.isdev() or _leads_out(m.linkname)) for m in opened)
        members, entries = _plan(archive, facts)
        while stream.read(2**16):
            pass  # up to gzip's checksum, which tarfile does not reach
        opened.extractall(folder, members, filter="data")
    return entries


class _InPieces:
    """A file for tarfile, which believes headers that say they are gigabytes long."""

    def __init__(self, file: Any):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _plan(archive: Path, facts: Iterable[tuple]) -> tuple[list, list[str]]:
    """The members to extract and their top-level entries, before anything is written.

    Args:
        facts: (member, name, size, whether it is a device or a link that leads out).
    """
    wanted, entries, total, most = [], set(), 0, MAX_RATIO * archive.stat().st_size
    for count, (member, name, size, unsafe) in enumerate(facts, start=1):
        total += size
        if unsafe or _leads_out(name):
            raise UserError(f"{archive}: not extracted: {name!r} leads out of the folder")
        if total > most or count > MAX_MEMBERS:
            raise UserError(
                f"{archive}: not extracted: more than {MAX_RATIO} times its size, or more than "
                f"{MAX_MEMBERS} members"
            )
        parts = PurePosixPath(name).parts
        mac = any(part in ("__MACOSX", ".DS_Store") or part.startswith("._") for part in parts)
        if parts and not mac:
            wanted.append(member)
            entries.add(parts[0])
    if not entries:
        raise Damaged("there is nothing in it")
    return wanted, sorted(entries)
