"""One run per work directory: WORKDIR/lock is locked as long as the process lives.

The file is removed at the run's end. So one that is found was left by a run that died without a
word: killed for its memory, say. Launchers start such a run again; `held` ends that where none of
them comes further.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sdfp import hosts, report, signals
from sdfp.types import UserError

NAME = "lock"
DEATHS = 20
"""In a row, and with nothing saved between them, after which a run is refused: more than what a
machine that is taken away again and again makes by chance."""
SAVED = ("stages/**/manifest.json", "stages/**/evaluation.json")
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Busy(UserError):
    """Another run is at work in the directory."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the work directory, and keeps other runs out of it.

    The kernel drops the lock of a process that dies, so one that is left behind holds up nobody.
    Where the file system has no locks, that is told, and nothing is kept out.

    Raises:
        Busy: another process holds it.
        UserError: the directory cannot be written, or the last `DEATHS` runs died there and saved
            nothing.
    """
    with _made(workdir), _open(workdir) as file:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": report.command(),
            **_deaths(workdir, _content(file)),
        }
        with contextlib.suppress(OSError):  # a full disk: held it is all the same
            file.truncate(0)
            file.write((json.dumps(holder, indent=2) + "\n").encode())
        died = False
        try:
            # Who asks twice to stop wants it so: that is no death.
            with signals.before_exit(lambda: _remove(workdir)):
                yield
        except Exception as error:
            died = hosts.lost(error)  # of what kills another process, this one dies, too
            raise
        finally:
            if not died:
                _remove(workdir)


@contextlib.contextmanager
def held_behind(workdir: Path) -> Iterator[None]:
    """The same for what is no run (the end of one, a check): what a run left in the file stays.

    Raises:
        Busy, UserError: as `held`.
    """
    with _made(workdir), _open(workdir) as file:
        left = _content(file)
        try:
            yield
        finally:
            if not left:
                _remove(workdir)


@contextlib.contextmanager
def _made(workdir: Path) -> Iterator[None]:
    """Folders that are made for nothing are removed again."""
    new = [path for path in (workdir, *workdir.parents) if not os.path.lexists(path)]
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # something is in it
                path.rmdir()


def _remove(workdir: Path) -> None:
    (workdir / NAME).unlink(missing_ok=True)  # while it is locked: nobody else's is removed


def _deaths(workdir: Path, left: dict[str, Any]) -> dict[str, Any]:
    """What is saved there, and how often this command died since, by what the last run `left`."""
    names = (str(path.relative_to(workdir)) for pattern in SAVED for path in workdir.glob(pattern))
    # With another command it is another run.
    told = "\n".join([report.command(), *sorted(names)])
    saved = hashlib.sha256(told.encode()).hexdigest()[:16]
    before = left.get("deaths")
    deaths = before + 1 if left.get("saved") == saved and isinstance(before, int) else 0
    if deaths >= DEATHS:
        raise UserError(
            f"--workdir={workdir}: the last {deaths} runs died here, none with an error of its "
            "own, and saved nothing new (too little memory?). See their logs; to try again all "
            f"the same, delete {workdir / NAME}"
        )
    return {"deaths": deaths, "saved": saved}


def _open(workdir: Path) -> BinaryIO:
    """The file, open and locked; makes the directory."""
    if (workdir / NAME).is_symlink():
        raise UserError(f"{workdir / NAME}: a link, which no run has made: remove it")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return _locked(workdir / NAME)
    except FileExistsError as error:
        raise UserError(f"--workdir={workdir}: a file or a broken link, no folder") from error
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


def _locked(path: Path) -> BinaryIO:
    while True:
        file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, its last holder may have removed it.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            told = _holder(file)
            file.close()
            raise Busy(
                f"--workdir={path.parent}: another run is at work in it: {told}. Wait for it, stop "
                "it, or use another --workdir"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                file.close()
                raise
            report.say(
                f"warning: {path}: no locks on this file system ({error.strerror}): see to it "
                "that no second run uses this work directory"
            )
            return file
        file.close()


def _holder(file: BinaryIO) -> str:
    try:
        found = _content(file)
        who = f"process {found['pid']} on {found['host']}, since {found['started']}"
        return f"{who} ({' '.join(found['command'].split())[:300]})"
    except (KeyError, TypeError, AttributeError):
        return "it has just begun"


def _content(file: BinaryIO) -> dict[str, Any]:
    """What the last holder wrote; {} of one that had no time to, or of anything else."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
