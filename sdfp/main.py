"""python -m sdfp.main [--config FILE[:VARIANT]] [--config.key=value ...] [--workdir DIR]"""

import sys
from pathlib import Path

from absl import app, flags, logging

from sdfp import config, experiment
from sdfp.types import UserError

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"

_CONFIG = flags.DEFINE_string(
    "config", str(DEFAULT_CONFIG), "FILE[:VARIANT]; single keys: --config.key=value"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "results; default: runs/<config.name>")


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    values = config.read(_CONFIG.value, overrides=argv[1:])
    experiment.run(values, Path(_WORKDIR.value or f"runs/{values.get('name')}"))


def run() -> None:
    """A mistake of the user's is one line and exit code 2; ours is a traceback."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    try:
        app.run(main, flags_parser=config.parse_flags)
    except UserError as error:
        print("sdfp:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
