"""WORKDIR/report.html: all of a work directory in one file that opens offline, in any browser.

    python -m sdfp.page --workdir runs/digits

makes it of the files in the work directory alone, also of a run that is still going on: what is
not there yet, or was not kept by an older version, is told as such. sdfp.main and sdfp.table make
it last, also of a run that fails or is interrupted.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from sdfp import hosts, lock, logged, report
from sdfp.types import UserError, one_line

NAME = "report.html"


def write(workdir: Path) -> None:
    """Writes WORKDIR/report.html, wholly or not at all.

    Raises:
        UserError: not a work directory, a results.json that cannot be read, or no place to write.
    """
    from sdfp.page import document  # figures and templates: training must not wait for them

    # A name from another encoding must not be the end of a page.
    text = document.html(workdir).encode("utf-8", "backslashreplace")
    path = workdir / NAME
    temporary = path.with_name(NAME + ".tmp")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from None
    report.say(f"report: {path}")


@contextlib.contextmanager
def written_last(workdir: Path) -> Iterator[None]:
    """For a run: however it ends, the page is written of what it left.

    A page that cannot be made is told. It is not the run's error, and takes the place of none.
    """
    before = _sources(workdir)
    try:
        yield
    finally:
        try:
            # A run that was refused has changed nothing; of several processes one has it all.
            after = _sources(workdir)
            new = after != before or (after and not (workdir / NAME).exists())
            if hosts.first() and new:
                # Where another run is at work, what is new is that one's, and so is the page.
                with contextlib.suppress(lock.Busy), lock.held_behind(workdir):
                    write(workdir)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()  # a fault of ours must not pass unseen
            report.say(f"warning: {NAME} is not up to date: {one_line(error)}")


def _sources(workdir: Path) -> dict[Path, tuple[int, int]]:
    """What the page is made of, and when it was written: to see whether any of it changes. Not
    whether it is newer than the page: a clock may be set back."""
    paths = [*workdir.glob("results.json"), *workdir.glob(f"stages/**/{logged.NAME}")]
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a folder that is being deleted
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_size)
    return found
