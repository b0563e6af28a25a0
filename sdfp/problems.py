"""Several mistakes, told at once: nobody should have to start a run once for each."""

import contextlib
from collections.abc import Iterator

from sdfp.types import UserError


class Problems:
    """The mistakes of checks that do not need each other."""

    def __init__(self):
        self._found: list[str] = []

    def any(self) -> bool:
        return bool(self._found)

    def add(self, line: str) -> None:
        self._found.append(line)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within, a UserError ends the block and is kept; the program goes on behind it."""
        try:
            yield
        except UserError as error:
            self._found += error.problems

    def stop(self) -> None:
        """Raises one UserError of all that was kept, each once, if there is any."""
        if self._found:
            raise UserError(*dict.fromkeys(self._found))
