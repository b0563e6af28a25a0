"""python -m sdfp.main [--config FILE[:VARIANT]] [--config.key=value ...] [--workdir DIR]"""

import sys
from pathlib import Path

from absl import app, flags, logging

from sdfp import cli, config, experiment, page

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"

_CONFIG = flags.DEFINE_string(
    "config", str(DEFAULT_CONFIG), "FILE[:VARIANT]; single keys: --config.key=value"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "results; default: runs/<config.name>")


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    values = config.read(_CONFIG.value, overrides=argv[1:])
    workdir = Path(_WORKDIR.value or f"runs/{values.get('name')}")
    with page.written_last(workdir):
        experiment.conclude(experiment.run(values, workdir), workdir)


def run() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS report every file
    sys.exit(cli.exit_code(lambda: app.run(main, flags_parser=config.parse_flags)))


if __name__ == "__main__":
    run()
