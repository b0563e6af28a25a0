"""Extracts a downloaded archive, without trusting it."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sdfp.types import UserError, one_line

MAX_RATIO = 20  # an archive that holds more than so many times its size is a bomb, not pictures
MAX_MEMBERS = 1_000_000
# What the libraries raise for a file that is no whole archive, or one that they cannot read.
_LIBRARIES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


class Damaged(Exception):
    """Not a whole archive."""


def unpack(archive: Path, folder: Path, *, zipped: bool) -> list[str]:
    """Extracts into `folder`, which is new. What macOS adds to archives is left out.

    Returns:
        The entries of the top level.

    Raises:
        Damaged: cut short, or a checksum does not fit.
        UserError: a member that leads out of the folder, or far more than pictures would be.
    """
    try:
        return (_unzip if zipped else _untar)(archive, folder)
    except (*_LIBRARIES, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the archive's
            raise
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
    with tarfile.open(archive, "r:*") as opened:  # by content: DTD's tar.gz is a plain tar
        # Stricter than "data", which let chains of links through ".." out (CVE-2025-4517).
        facts = ((m, m.name, m.size, m.isdev() or _leads_out(m.linkname)) for m in opened)
        members, entries = _plan(archive, facts)
        while opened.fileobj and opened.fileobj.read(2**16):
            pass  # up to gzip's checksum, which tarfile does not reach
        opened.extractall(folder, members, filter="data")
    return entries


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
    return wanted, sorted(entries)
