"""SIGTERM, SIGINT and SIGHUP while a run goes on: it saves its state and leaves, within 30 seconds.

Python's own handlers wait until the main thread is out of compiled code, which may take minutes.
So a thread reads the signals, too (`signal.set_wakeup_fd`), and ends the process where the main
thread does not come round. Whatever is on the disk is whole at every moment.

With several processes a stage agrees on the step after which all stop, see `stopping`.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

GRACE = 25.0
"""Seconds for the main thread to come round: the notice of a spot machine is 30."""
TWICE = 0.2
"""Seconds within which a repeated signal is the same one: `timeout` sends two."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last: the terminal is gone."""
GOES_ON = "the same command goes on from where it was"


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop; `code` is the exit code by custom: 143, 130 or 129.

    `agreed`: every process of the run stops here, and may wait for the others.
    """

    def __init__(self, number: int, agreed: bool = False):
        super().__init__(f"stopped by {signal.Signals(number).name}; {GOES_ON}")
        self.code, self.agreed = 128 + number, agreed


class _Watch:
    """The signals that came while `handled` is open."""

    def __init__(self, saves: bool):
        self.saves = saves
        self.asked: int | None = None
        self.deferred = False
        self.agreed = self.saving = False
        self.ours, self.kernel = socket.socketpair()
        self.kernel.setblocking(False)
        self.thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def handle(self, number: int, frame) -> None:
        """Runs in the main thread, once that is out of compiled code."""
        del frame
        again, self.asked = self.asked is not None, self.asked or number
        if not self.deferred and not again:
            raise Interrupted(number)

    def _listen(self) -> None:
        first = self._next(None)
        if not first:
            return
        name = signal.Signals(first).name
        _tell(f"{name}: saves what there is, and stops; once more to stop at once")
        again = first
        while again:
            again = self._next(TWICE)
        second = self._next(GRACE if self.saves else None)
        if second is None and (self.saving or self.agreed):
            second = self._next(None)
        if second != 0:
            _tell(f"stopped by {name}, without a save; {GOES_ON}")
            for act in _before_exit:
                with contextlib.suppress(
                    OSError
                ):  # a disk that is gone must not keep it from ending
                    act()
            os._exit(128 + first)

    def _next(self, seconds: float | None) -> int | None:
        """The number of the next signal; 0 from the end on; None after so many seconds."""
        self.ours.settimeout(seconds)
        try:
            while (number := ord(self.ours.recv(1) or b"\0")) not in (0, *SIGNALS):
                pass
        except TimeoutError:
            return None
        return number


_watch: _Watch | None = None  # signals are the process's, and so is this
_before_exit: list[Callable[[], None]] = []


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print("sdfp:", line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def handled(saves: bool = True) -> Iterator[None]:
    """Within, the first of SIGNALS raises `Interrupted` where nothing is `deferred`, and the second
    one ends the process. Does nothing outside the main thread, and to signals that are ignored (as
    by nohup, or of a job that a script put into the background).

    Args:
        saves: whether it is this process that saves. Of several one does, and another one that does
            not come round must not be gone before: with it the run would be.
    """
    global _watch
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    if _watch or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch(saves)
    before = signal.set_wakeup_fd(watch.kernel.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, watch.handle) for number in numbers}
    watch.thread.start()
    try:
        yield
    finally:
        _watch = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        watch.kernel.close()
        watch.thread.join()
        watch.ours.close()


@contextlib.contextmanager
def before_exit(act: Callable[[], None]) -> Iterator[None]:
    """Within, `act` is called where a signal ends the process at once."""
    _before_exit.append(act)
    try:
        yield
    finally:
        _before_exit.remove(act)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal raises nothing: the work asks `asked`, and comes to its end. Behind it (or
    at the start, where an error kept it from being heard) `Interrupted` is raised."""
    watch = _watch
    if watch is None:
        yield
        return
    _raise(watch)
    watch.deferred = True
    try:
        yield
    finally:
        watch.deferred = False
    _raise(watch)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within, in what is `deferred`, a signal raises again: nothing is there to be saved yet."""
    watch = _watch
    if watch is None or not watch.deferred:
        yield
        return
    _raise(watch)
    watch.deferred = False
    try:
        yield
    finally:
        watch.deferred = True


def asked() -> bool:
    """Whether to stop."""
    return _watch is not None and _watch.asked is not None


def stopping() -> None:
    """The stop is agreed on (perhaps it was another process that heard the signal): from here on
    there is as long as it takes to save."""
    if _watch is not None:
        _watch.asked = _watch.asked or signal.SIGTERM
        _watch.agreed = True


def stop() -> NoReturn:
    """Raises the `Interrupted` of a stop that is agreed on."""
    raise Interrupted((_watch and _watch.asked) or signal.SIGTERM, agreed=True)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Within, there is as long as it takes, too: a save that is cut off would be none."""
    watch = _watch
    if watch is None:
        yield
        return
    before, watch.saving = watch.saving, True
    try:
        yield
    finally:
        watch.saving = before


def _raise(watch: _Watch) -> None:
    if watch.asked is not None:
        raise Interrupted(watch.asked, watch.agreed)
