"""One run per work directory: WORKDIR/lock is locked as long as the process lives."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sdfp import report
from sdfp.types import UserError

NAME = "lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the work directory, and keeps other runs out of it.

    The kernel drops the lock of a process that dies, so one that is left behind holds up nobody.
    Where the file system has no locks, that is told, and nothing is kept out.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    path = workdir / NAME
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": report.command(),
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = _open(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    with file:
        with contextlib.suppress(OSError):  # a full disk: held it is all the same
            file.truncate(0)
            file.write((json.dumps(holder, indent=2) + "\n").encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: nobody else's is removed


def _open(path: Path) -> BinaryIO:
    """The file, open and locked."""
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
            raise UserError(
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
    file.seek(0)
    try:
        found = json.loads(file.read())
        who = f"process {found['pid']} on {found['host']}, since {found['started']}"
        return f"{who} ({' '.join(found['command'].split())[:300]})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it has just begun"
