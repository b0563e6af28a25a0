"""How the command-line tools begin and end."""

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from sdfp.types import UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a disk that is full, or a quota or a limit that is used up, is told by."""
PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
"""What a path is told by that this user may not reach, or nobody can."""

GONE = (errno.EPIPE, errno.EIO)
"""What a pipe without a reader is told by, and a terminal whose connection is closed."""


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m module`; the description's lines are kept as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def path(text: str) -> Path:
    """Of a flag; the shell leaves the ~ of --flag=~/x as it is. Of nobody's home it stays."""
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def reader_may_go(stream: TextIO) -> Iterator[None]:
    """Within, a line for `stream` (stdout or stderr) may find nobody who reads it: it is lost, and
    so are all that follow, but the program goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        # Not another `sys.stdout`: what is still in this one's buffer must get away at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def exit_code(run: Callable[[], None]) -> int:
    """Runs a tool: 0, or 2 after mistakes of the user's or on a full disk, 143 or 130 after a
    signal, told in a line each. Ours is a traceback."""
    try:
        run()
    except UserError as error:
        several = len(error.problems) > 1
        head = [f"sdfp: {len(error.problems)} problems:"] if several else []
        lines = [("  - " if several else "sdfp: ") + problem for problem in error.problems]
        _tell(*head, *lines)
        return 2
    except OSError as error:
        if error.errno not in (*DISK, *PATHS):
            return _code_of_stop(error)
        more = "; what was saved before is as it was" if error.errno in DISK else ""
        _tell(f"sdfp: {error}{more}")
        return 2
    except (KeyboardInterrupt, Exception) as error:
        return _code_of_stop(error)
    return 0


def _code_of_stop(error: BaseException) -> int:
    """Of a signal's error; of one that came of it, too. Any other is raised again.

    A signal raises anywhere, and a library that it meets at a bad moment may end with an error of
    its own. That one is shown in full: it may be ours.
    """
    stop: BaseException | None = error
    while stop is not None and not isinstance(stop, KeyboardInterrupt):
        stop = stop.__context__
    if stop is None:
        raise error
    if stop is not error:
        _tell("".join(traceback.format_exception(error)).rstrip())
    _tell(f"sdfp: {str(stop) or 'interrupted'}")
    return getattr(stop, "code", 130)  # of signals.Interrupted


def _tell(*lines: str) -> None:
    with reader_may_go(sys.stderr):
        print(*lines, sep="\n", file=sys.stderr, flush=True)
