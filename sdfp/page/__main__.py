"""python -m sdfp.page --workdir W"""

import sys
from collections.abc import Sequence

from sdfp import cli, page


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = cli.parser("sdfp.page", page.__doc__)
    told = "of a run, finished or not"
    parser.add_argument("--workdir", type=cli.path, required=True, metavar="W", help=told)
    given = parser.parse_args(argv)
    return cli.exit_code(lambda: page.write(given.workdir))


if __name__ == "__main__":
    sys.exit(main())
