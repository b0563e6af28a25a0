"""A table of methods with one command: the same run as `sdfp.main`, and its table in three formats.

    python -m sdfp.table --config configs/vit_cub.py --methods paper --seeds 5 --workdir runs/cub
    python -m sdfp.table --from runs/cub runs/dogs --out tables

The first writes table.md, table.csv, table.tex and report.html into the work directory. What is
there already is used; the same command again goes on where it was interrupted. --list shows what
there is and what is lacking, and trains nothing. Single keys of the config: --config.key=value.
The second joins work directories, data sets as columns.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from sdfp import cli, config, experiment, hosts, listing, page, rendering, report, signals
from sdfp.experiment import Wish
from sdfp.hosts import Processes
from sdfp.methods import registry
from sdfp.types import UserError


def make(
    file: str,
    overrides: Sequence[str],
    *,
    methods: str | None,
    seeds: int | None,
    workdir: Path | None,
    wish: Wish,
    only_list: bool,
    only_check: bool,
    processes: Processes = hosts.ALONE,
) -> None:
    """Runs (or lists) a table and writes it.

    Args:
        file, overrides: as `config.read` takes them.
        methods: names and groups of `registry.GROUPS`, joined by commas; None for the config's.
        seeds: how many fine-tuning seeds, from 0; None for the config's.
        processes: those of the run, see `hosts.start`.

    Raises:
        UserError: a mistake in the arguments, or cells failed (the table is written before).
    """
    values = config.read(file, overrides)
    if methods is not None:
        names = [registry.GROUPS.get(name, (name,)) for name in methods.split(",")]
        values.methods = tuple(dict.fromkeys(itertools.chain(*names)))
    if seeds is not None:
        values.seeds = tuple(range(seeds))
    workdir = workdir or Path(f"runs/{values.get('name')}")
    if only_list:
        for line in listing.lines(experiment.plan(values, wish), workdir):
            report.say(line)
        return
    hosts.start(processes)
    with signals.handled(hosts.first()), hosts.own_workdir(workdir) as own:
        if only_check:
            experiment.check(values, own, wish)
            return
        with page.written_last(own):
            results = experiment.run(values, own, wish)
            if results["results"] or results["failed"]:
                join([own], own)
    experiment.refuse_failed(results)  # once all processes have come here


def join(workdirs: Sequence[Path], out: Path) -> None:
    """Writes the table of one or several work directories, and shows it."""
    report.say("\n" + rendering.write(workdirs, out))
    report.say(f"tables: {out / 'table.md'}, table.csv, table.tex")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("sdfp.table", __doc__)
    add = parser.add_argument
    add("--config", metavar="FILE[:VARIANT]", help="as of sdfp.main")
    add("--methods", help=f"a,b,c of methods and {', '.join(registry.GROUPS)}; a row of two: a+b")
    add("--seeds", type=int, metavar="N", help="fine-tuning seeds 0 to N - 1")
    add("--workdir", type=cli.path, help="default: runs/<config.name>")
    choice = "choose the value with the best score on the validation part"
    values = "METHOD.KEY=A,B,C"
    add("--tune", nargs="+", action="extend", default=[], metavar=values, help=choice)
    again = "repeat the pre-training stages, too, with N seeds"
    add("--pretrain_seeds", type=int, metavar="N", help=again)
    add("--coordinator", help=hosts.HELP["coordinator"])
    for name in ("num_processes", "process_id"):
        add(f"--{name}", type=int, help=hosts.HELP[name])
    add("--check", action="store_true", help=experiment.CHECK)
    add("--list", action="store_true", help="show what would run and what is there")
    joined = "join the tables of work directories; runs nothing"
    add("--from", dest="joined", nargs="+", type=cli.path, metavar="WORKDIR", help=joined)
    add("--out", type=cli.path, help="folder for the joined table; default: the current one")
    return parser


def _check(
    given: argparse.Namespace, overrides: Sequence[str], parser: argparse.ArgumentParser
) -> None:
    """Refuses what would be ignored."""
    of_run = (
        "config",
        "methods",
        "seeds",
        "workdir",
        "tune",
        "pretrain_seeds",
        "list",
        "check",
    )
    if given.joined:
        for name in (*of_run, *hosts.HELP):
            if getattr(given, name) != parser.get_default(name):
                raise UserError(f"--from joins what is there; leave --{name} out")
        if overrides:
            raise UserError(f"--from joins what is there; leave {overrides[0]} out")
        return
    if given.out:
        raise UserError("--out is for --from: a run's table goes to its work directory")
    if not given.config:
        raise UserError("--config: give a config file, e.g. configs/digits.py; or --from")
    for name in ("seeds", "pretrain_seeds"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: at least 1; got {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in arguments if a.startswith(("--config.", "-config.", "--noconfig."))]
    parser = _parser()
    given = parser.parse_args([a for a in arguments if a not in overrides])

    def start() -> None:
        _check(given, overrides, parser)
        if given.joined:
            join(given.joined, given.out or Path("."))
            return
        settings = {name: method.settings for name, method in registry.METHODS.items()}
        make(
            given.config,
            overrides,
            methods=given.methods,
            seeds=given.seeds,
            workdir=given.workdir,
            wish=Wish(config.parse_grid(given.tune, settings), given.pretrain_seeds or 1),
            only_list=given.list,
            only_check=given.check,
            processes=Processes(given.coordinator, given.num_processes, given.process_id),
        )

    return cli.exit_code(start)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS report every file
    hosts.leave(main)
