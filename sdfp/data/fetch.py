"""Downloads the original files of a data set: `python -m sdfp.data.fetch NAME --dir D`.

The private folder D/.fetch holds `<name>.part` while a file comes in (a later run goes on where
it ended) and `<name>.tmp` while it is extracted. `<name>.moving` lists the entries before the first
is moved into place, so that a later run can finish that. `<name>.done` comes last: the next run
skips this file. What is yours is never overwritten or deleted: a file that you put to
D/<into>/<name> is verified and used instead of a download, an entry in the way is an error.
"""

import fcntl
import hashlib
import http.client
import json
import os
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sdfp import checked, cli
from sdfp.data import unpack
from sdfp.data.interface import Download
from sdfp.data.registry import DATASETS
from sdfp.report import say
from sdfp.settings import Data
from sdfp.types import UserError, one_line, some

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
TIMEOUT = 60.0  # seconds without a byte
TRIES = 8  # connections for one file, for those that drop midway
PAUSE = 1.0  # seconds before the second one; doubles up to 30


class _Dropped(Exception):
    """No connection, or it ended too early. What has arrived is kept."""


class _Item:
    """One download, and where its stages are."""

    def __init__(self, download: Download, folder: Path):
        self.download, self.archive = download, download.name.endswith(ARCHIVES)
        self.target = folder / download.into
        self.manual = self.target / download.name
        self.private = folder / ".fetch" / download.into
        ends = (".part", ".tmp", ".moving", ".done")
        paths = (self.private / (download.name + end) for end in ends)
        self.part, self.staging, self.moving, self.done = paths

    def recorded(self, record: Path) -> list[str] | None:
        """The entries in a record of this very download; None: no record, or a kill cut it."""
        try:
            content = checked.read_json(record, "", {"entries": [str], "download": list})
        except UserError:
            return None
        return content["entries"] if content["download"] == list(self.download) else None

    def is_done(self) -> bool:
        entries = self.recorded(self.done)
        return entries is not None and all(os.path.lexists(self.target / e) for e in entries)

    def needs(self) -> int:
        """Bytes of disk; pictures are compressed, so that extracting takes about as much again."""
        if self.is_done() or self.recorded(self.moving) is not None:
            return 0
        size = self.download.size
        rest = 0 if self.manual.exists() else max(0, size - _size(self.part))
        return rest + size * self.archive

    def unexpected(self, file: Path, what: str, keep: bool = False) -> UserError:
        """For a file that cannot be used. Ours is deleted, so that the next run starts afresh."""
        if file == self.part and not keep:
            file.unlink(missing_ok=True)
        return UserError(
            f"{self.download.url if file == self.part else file}: {what}: damaged, or not the "
            "known file (a login page?). Run this again, or download "
            f"{self.download.url} with a browser to {self.manual.absolute()}"
        )


def fetch(downloads: Sequence[Download], folder: Path) -> None:
    """Brings files into `folder`: downloads, verifies, extracts; what is there already is skipped.

    Raises:
        UserError: no network, a file that is not the expected one, an archive that is damaged or
            unsafe, something in the way, no room or permission, another run in this folder.
    """
    items = [_Item(download, folder) for download in downloads]
    try:
        (folder / ".fetch").mkdir(parents=True, exist_ok=True)
        with (folder / ".fetch" / "lock").open("w") as lock:
            _take(lock, folder)
            needed, free = sum(item.needs() for item in items), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(
                    f"{folder}: downloading and extracting needs about {needed / 1e9:.1f} GB, free "
                    f"are {free / 1e9:.1f} GB: make room or take another folder"
                )
            for item in items:  # all at once: offline, the user needs every address
                say(f"{item.manual}: {item.download.size:,} bytes, {item.download.url}")
            for item in items:
                _fetch_one(item)
    except OSError as error:  # not the network's: those are caught where they arise
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}. Make room or permit writing "
            "there (or take another folder) and run this again: it goes on where it was"
        ) from None


def _take(lock: Any, folder: Path) -> None:
    """Two runs would write into the same part file. A killed process leaves no lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder}: another run is fetching to it: wait until it ends") from None
    except OSError:  # a file system without locks: then it is up to the user
        say(f"{folder}: cannot be locked; let no other run fetch to it")


def _fetch_one(item: _Item) -> None:
    """All stages of one file, or those that an earlier run has left."""
    name = item.download.name
    if item.is_done():
        say(f"{name}: already there")
        return
    item.private.mkdir(parents=True, exist_ok=True)
    item.target.mkdir(parents=True, exist_ok=True)
    entries = item.recorded(item.moving)
    if entries is None:
        manual = os.path.lexists(item.manual)
        if not manual:
            _download(item)
        source = item.manual if manual else item.part
        _verify(item, source)
        entries = _extract(item, source) if item.archive else [name]
        if not item.archive:
            source.rename(item.manual)  # onto itself, if it is the user's
        content = {"download": item.download, "entries": entries}
        item.moving.write_text(json.dumps(content), encoding="utf-8")
    for entry in entries:
        if os.path.lexists(item.staging / entry):  # else an earlier run has moved it
            _refuse_taken([entry], item.target)
            (item.staging / entry).rename(item.target / entry)
    shutil.rmtree(item.staging, ignore_errors=True)
    item.part.unlink(missing_ok=True)
    item.moving.rename(item.done)
    say(f"{item.target}: {some(entries)}")


def _refuse_taken(entries: Sequence[str], target: Path) -> None:
    if taken := [entry for entry in entries if os.path.lexists(target / entry)]:
        raise UserError(
            f"{target}: {some(taken)} in the way, and not from this command. If that is the whole "
            "data set, nothing needs to be fetched; else move it away or take another folder"
        )


def _verify(item: _Item, file: Path) -> None:
    size = item.download.size
    if (got := file.stat().st_size) != size:
        raise item.unexpected(file, f"expected {size} bytes, got {got}")
    kind, _, expected = item.download.digest.partition(":")
    if kind:
        with file.open("rb") as content:
            # Not for security: where policy forbids MD5 for that, it still finds damaged files.
            digest = hashlib.file_digest(content, lambda: hashlib.new(kind, usedforsecurity=False))
        if (got := digest.hexdigest()) != expected:
            raise item.unexpected(file, f"expected {kind} {expected}, got {got}")


def _download(item: _Item) -> None:
    """Completes the part file. Dropped connections are taken up again, a few times."""
    url, size, have, reason = item.download.url, item.download.size, _size(item.part), ""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: only http and https are downloaded")
    say(f"downloading {item.download.name}{f', {have / size:.0%} are here' if have else ''}")
    with tqdm(total=size, initial=have, unit="B", unit_scale=True, disable=None) as bar:
        for attempt in range(TRIES):
            if attempt:
                say(f"  {reason}; trying again")
                time.sleep(min(30.0, PAUSE * 2 ** (attempt - 1)))
            try:
                _receive(item, bar)
                return
            except _Dropped as error:
                reason = str(error)
            if attempt == 0 and _size(item.part) == have:
                break  # no network, or no such file: waiting would not help
    raise UserError(
        f"{url}: {reason}. Run this again on a machine with network (it goes on where it was), or "
        f"download it with a browser to {item.manual.absolute()} and run this again"
    )


def _receive(item: _Item, bar: tqdm) -> None:
    """One connection: appends to the part file until it is whole."""
    size, have = item.download.size, _size(item.part)
    with item.part.open("ab") as file:
        if have > size:  # of something else
            file.truncate(have := 0)
        if have == size:
            return
        for start, chunk in _chunks(item, have):
            if start == 0:
                file.truncate(0)
            file.write(chunk)
            have = start + len(chunk)
            bar.update(have - bar.n)
            if have > size:
                return  # refused when it is verified
    if have < size:
        raise _Dropped(f"the connection ended after {have} of {size} bytes")


def _chunks(item: _Item, have: int) -> Iterator[tuple[int, bytes]]:
    """The bytes from `have` on, or from 0 if the server cannot continue: (position, bytes)."""
    url, size = item.download.url, item.download.size
    headers = {"User-Agent": "sdfp"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        with _OPENER.open(request, timeout=TIMEOUT) as response:
            start = have if response.status == 206 else 0
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and start + int(length) != size:  # before all of it is read
                what = f"expected {size} bytes, got {start + int(length)}"
                # A login page in its place says nothing about the part that is here.
                raise item.unexpected(item.part, what, keep=start == 0)
            while chunk := response.read(2**16):
                yield start, chunk
                start += len(chunk)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code == 416 and have:
                yield 0, b""  # throws the part away
                raise _Dropped(f"the server has only {have} of {size} bytes, or less") from None
        reason = one_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise _Dropped(reason) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) only, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith(("https://", f"{req.type}://")):
            raise urllib.error.HTTPError(newurl, code, f"refused: to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _extract(item: _Item, archive: Path) -> list[str]:
    """Extracts to the staging folder. Returns the entries of the top level."""
    say(f"extracting {item.download.name}")
    shutil.rmtree(item.staging, ignore_errors=True)  # of a run that was killed
    try:
        entries = unpack.unpack(archive, item.staging, zipped=item.download.name.endswith(".zip"))
        _refuse_taken(entries, item.target)
        return entries
    except BaseException as error:
        shutil.rmtree(item.staging, ignore_errors=True)  # gives the room back
        if isinstance(error, unpack.Damaged):
            raise item.unexpected(archive, str(error)) from None
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    known = sorted(key for key, entry in DATASETS.items() if entry.downloads)
    parser = cli.parser("sdfp.data.fetch", "Downloads the original files of a data set.")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(known)}")
    parser.add_argument("--dir", type=cli.path, required=True, metavar="D", help="for the files")
    given = parser.parse_args(argv)
    name, folder = given.name, given.dir

    def run() -> None:
        if name not in known:
            raise UserError(f"{name}: nothing to download; can be fetched: {', '.join(known)}")
        fetch(DATASETS[name].downloads, folder)
        config = f"{'vit' if DATASETS[name].settings is Data else 'roberta'}_{name}.py"
        where = shlex.quote(str(folder))
        say(f"Next: python -m sdfp.main --config configs/{config} --config.data.dir={where}")

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
