"""python -m sdfp.main [--config FILE[:VARIANT]] [--config.key=value ...] [--workdir DIR]"""

from pathlib import Path

from absl import app, flags, logging

from sdfp import cli, config, experiment, hosts, page, signals

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"

_CONFIG = flags.DEFINE_string(
    "config", str(DEFAULT_CONFIG), "FILE[:VARIANT]; single keys: --config.key=value"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "results; default: runs/<config.name>")
_CHECK = flags.DEFINE_bool("check", False, experiment.CHECK)
_COORDINATOR = flags.DEFINE_string("coordinator", None, hosts.HELP["coordinator"])
_COUNT = flags.DEFINE_integer("num_processes", None, hosts.HELP["num_processes"])
_OWN = flags.DEFINE_integer("process_id", None, hosts.HELP["process_id"])


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    values = config.read(_CONFIG.value, overrides=argv[1:])
    workdir = cli.path(_WORKDIR.value or f"runs/{values.get('name')}")
    hosts.start(hosts.Processes(_COORDINATOR.value, _COUNT.value, _OWN.value))
    with signals.handled(hosts.first()), hosts.own_workdir(workdir) as own:
        if _CHECK.value:
            experiment.check(values, own)
            return
        with page.written_last(own):
            results = experiment.run(values, own)
            experiment.show(results, own)
    experiment.refuse_failed(results)  # once all processes have come here


def run() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS report every file
    hosts.leave(lambda: cli.exit_code(lambda: app.run(main, flags_parser=config.parse_flags)))


if __name__ == "__main__":
    run()
