"""How the command-line tools begin and end."""

import argparse
import sys
from collections.abc import Callable

from sdfp.types import UserError


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m module`; the description's lines are kept as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code(run: Callable[[], None]) -> int:
    """Runs a tool: 0, or 2 after a mistake of the user's, told in one line. Ours is a traceback."""
    try:
        run()
    except UserError as error:
        print("sdfp:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sdfp: interrupted", file=sys.stderr)
        return 130
    return 0
