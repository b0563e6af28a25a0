"""Figures of section 4: a linear model over rounds of self-distillation.

    python -m sdfp.theory --out theory

draws, each as PNG and SVG, with its numbers as CSV:
    bounds    norm and distance of the fine-tuned weights beside the paper's zeta and psi, and
              beside the bounds that hold
    parts     what the squared norm is made of; B is what round 1 removes
    exceeded  how often random problems exceed the paper's zeta, and how often their norm rises

The data are synthetic: normal features, targets of a random linear map plus noise, and initial
weights that agree with that map as much as --agreement says. The formulas: sdfp/linear_model.py.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdfp import cli, drawing, linear_model
from sdfp.types import UserError

Rows = Sequence[Mapping[str, float]]

NOISE = 0.1  # standard deviation of the targets' noise
ROUNDING = 1e-9  # relative; less is no rise and no excess
# What `exceeded` draws from, all evenly, the last two of their logarithms.
EXAMPLES, MORE_FEATURES, OUTPUTS = (2, 9), (1, 9), (1, 3)
DECAYS, DURATIONS = (1e-3, 1.0), (0.1, 10.0)
AGREEMENTS = tuple(np.linspace(-1, 1, 9).tolist())
TRUE, PRINTED, HOLDS = "#000000", "#d55e00", "#0072b2"  # told apart by the colour-blind, too


class Problem(NamedTuple):
    """features [d, n], targets [p, n], initial: w_init [p, d], weights: w_0 [p, d]."""

    features: np.ndarray
    targets: np.ndarray
    initial: np.ndarray
    weights: np.ndarray


def draw(
    rng: np.random.Generator, *, examples: int, features: int, outputs: int, agreement: float
) -> Problem:
    """A random problem.

    Args:
        examples, features, outputs: n, d and p.
        agreement: correlation of the initial weights with the map that made the targets.
    """
    phi = rng.normal(size=(features, examples)) / math.sqrt(features)
    target_map, other, step = rng.normal(size=(3, outputs, features))
    targets = target_map @ phi + NOISE * rng.normal(size=(outputs, examples))
    initial = agreement * target_map + math.sqrt(1 - agreement**2) * other
    return Problem(phi, targets, initial, initial + 0.3 * step)  # further pre-training: a small way


def over_rounds(problem: Problem, *, decay: float, duration: float, rounds: int) -> Rows:
    """Norm, distance, bounds and parts after fine-tuning from each of w_0 to w_rounds."""
    basis = linear_model.spectrum(problem.features)
    rows = []
    for t in range(rounds + 1):
        start = linear_model.distil(problem.weights, basis, decay, t)
        tuned = linear_model.finetune(start, basis, problem.targets, duration)
        parts = linear_model.lengths(
            problem.weights, basis, problem.targets, decay=decay, duration=duration, rounds=t
        )
        row = {
            "round": t,
            "norm": float(np.linalg.norm(tuned)),
            "printed_zeta": linear_model.printed_zeta(parts),
            "zeta": linear_model.zeta(parts),
            "distance": float(np.linalg.norm(problem.initial - tuned)),
            "printed_psi": linear_model.printed_psi(parts, problem.initial),
            "psi": linear_model.psi(parts, problem.initial),
        }
        rows.append(row | parts._asdict())
    return rows


def exceeded(rng: np.random.Generator, instances: int, rounds: int) -> Rows:
    """For each of AGREEMENTS, `instances` problems of random sizes, decay and duration.

    Shares of them are statements about this distribution only: `distribution` tells it.

    Returns:
        Per problem: norm / printed zeta and norm / zeta after one round, and the share of all
        rounds in which the norm rose.
    """
    rows = []
    for agreement in AGREEMENTS:
        for _ in range(instances):
            examples, outputs = _whole(rng, EXAMPLES), _whole(rng, OUTPUTS)
            features = examples + _whole(rng, MORE_FEATURES)
            decay, duration = _positive(rng, DECAYS), _positive(rng, DURATIONS)
            problem = draw(
                rng, examples=examples, features=features, outputs=outputs, agreement=agreement
            )
            found = over_rounds(problem, decay=decay, duration=duration, rounds=rounds)
            norms = [row["norm"] for row in found]
            sizes = {"examples": examples, "features": features, "outputs": outputs}
            ratios = {
                "to_printed_zeta": norms[1] / found[1]["printed_zeta"],
                "to_zeta": norms[1] / found[1]["zeta"],
                "rising": float(np.mean(np.diff(norms) > ROUNDING * norms[0])),
            }
            setting = {"agreement": agreement, "decay": decay, "duration": duration}
            rows.append(setting | sizes | ratios)
    return rows


def _whole(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(*limits, endpoint=True))


def _positive(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    low, high = limits
    return 10 ** rng.uniform(math.log10(low), math.log10(high))


def distribution() -> str:
    """What `exceeded` draws from, in words."""
    to = lambda limits: "{:g} to {:g}".format(*limits)
    return (
        f"drawn evenly: n {to(EXAMPLES)}, d − n {to(MORE_FEATURES)}, p {to(OUTPUTS)}, and on a "
        f"logarithmic scale λ {to(DECAYS)}, T {to(DURATIONS)}"
    )


def draw_bounds(rows: Rows, caption: str) -> Figure:
    """Left the norm and its bounds, right the distance and its bounds."""
    figure, axes = drawing.panels(caption, 2)
    panels = (
        ("norm", "zeta", "ζ", "Norm of the fine-tuned weights"),
        ("distance", "psi", "ψ", "Distance from the initial weights"),
    )
    for ax, (true, bound, symbol, title) in zip(axes, panels, strict=True):
        t = _column(rows, "round")
        ax.plot(t, _column(rows, bound), "o-", color=HOLDS, label=f"{symbol}, holds")
        printed = _column(rows, f"printed_{bound}")
        ax.plot(t, printed, "s--", color=PRINTED, label=f"{symbol}, as printed")
        ax.plot(t, _column(rows, true), "D-", color=TRUE, label=f"true {true}")
        ax.set(title=title, xlabel="round t of self-distillation", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return figure


def draw_parts(rows: Rows, caption: str) -> Figure:
    """Left the parts of printed zeta^2, stacked; right the cross term that it lacks."""
    figure, (left, right) = drawing.panels(caption, 2)
    t, base = _column(rows, "round"), np.zeros(len(rows))
    for name, label, colour in (
        ("learnt", "learnt in fine-tuning", HOLDS),
        ("kept", "kept of $w_t$", "#56b4e9"),
        ("null", "B: unseen by the examples", "#e69f00"),
    ):
        left.bar(t, _column(rows, name), bottom=base, color=colour, label=label)
        base = base + _column(rows, name)
    left.plot(t, _column(rows, "norm") ** 2, "D-", color=TRUE, label="true squared norm")
    left.set(title="Squared norm: the parts of printed ζ²")
    right.bar(t, _column(rows, "cross"), color=PRINTED)
    right.axhline(0, color=TRUE, linewidth=0.8)
    right.set(title="Cross term, absent from printed ζ²")
    for ax in (left, right):
        ax.set(xlabel="round t of self-distillation", axisbelow=True)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    return figure


def draw_exceeded(rows: Rows, caption: str) -> Figure:
    """Left norm / bound where weights and targets do not agree; right shares over the agreement."""
    figure, (left, right) = drawing.panels(caption, 2)
    unrelated = [row for row in rows if row["agreement"] == 0]
    for name, label, style, colour in (
        ("to_zeta", "ζ, holds", "-", HOLDS),
        ("to_printed_zeta", "ζ, as printed", "--", PRINTED),
    ):
        left.ecdf(_column(unrelated, name), label=label, linestyle=style, color=colour)
    left.axvline(1, color=TRUE, linewidth=1)
    left.set(
        title="Round 1, agreement 0",
        xlabel="norm / bound; right of 1 the bound is exceeded",
        ylabel="share of problems up to there",
    )
    groups = [[row for row in rows if row["agreement"] == value] for value in AGREEMENTS]
    above = {
        name: [float(np.mean(_column(group, name) > 1 + ROUNDING)) for group in groups]
        for name in ("to_printed_zeta", "to_zeta")
    }
    rising = [float(np.mean(_column(group, "rising"))) for group in groups]
    printed = above["to_printed_zeta"]
    right.plot(AGREEMENTS, printed, "s--", color=PRINTED, label="problems above ζ(1) as printed")
    right.plot(
        AGREEMENTS, above["to_zeta"], "o-", color=HOLDS, label="problems above ζ(1) that holds"
    )
    right.plot(AGREEMENTS, rising, "D-", color=TRUE, label="rounds in which the norm rises")
    right.set(
        title="Shares, from contrary to agreeing",
        xlabel="agreement of initial weights and targets",
        ylim=(-0.05, 1.05),
    )
    for ax in (left, right):
        ax.legend()
    return figure


def run(given: argparse.Namespace) -> None:
    """Computes, draws and writes all figures.

    Raises:
        UserError: a number that does not fit, a folder that cannot be written.
    """
    _check(given)
    sizes = {name: getattr(given, name) for name in ("examples", "features", "outputs")}
    problem = draw(np.random.default_rng(given.seed), **sizes, agreement=given.agreement)
    rounds = over_rounds(problem, decay=given.decay, duration=given.duration, rounds=given.rounds)
    # A seed of its own: other sizes above leave these problems as they are.
    many = exceeded(np.random.default_rng([given.seed, 1]), given.instances, given.rounds)
    one = (
        f"n = {given.examples} examples, d = {given.features} features, p = {given.outputs} "
        f"outputs, λ = {given.decay:g}, T = {given.duration:g}, "
        f"agreement {given.agreement:g}, seed {given.seed}"
    )
    all_of_them = (
        f"{given.instances} random problems per agreement, seed {given.seed}, "
        f"{given.rounds} rounds; {distribution()}"
    )
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        with drawing.style():
            drawing.write(given.out, "bounds", rounds, draw_bounds(rounds, one))
            drawing.write(given.out, "parts", rounds, draw_parts(rounds, one))
            drawing.write(given.out, "exceeded", many, draw_exceeded(many, all_of_them))
    except OSError as error:
        raise UserError(f"--out {given.out}: {error.strerror or error}") from None
    print(f"{given.out}: bounds, parts, exceeded, each as .png, .svg and .csv")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = cli.parser("sdfp.theory", __doc__)
    add = parser.add_argument
    add("--out", type=cli.path, required=True, metavar="FOLDER", help="made where it is not there")
    add("--seed", type=int, default=0, help="of the data; default: %(default)s")
    add("--examples", type=int, default=20, help="n; default: %(default)s")
    add("--features", type=int, default=40, help="d, more than n; default: %(default)s")
    add("--outputs", type=int, default=3, help="p; default: %(default)s")
    add("--agreement", type=float, default=0.5, help="-1 to 1; default: %(default)s")
    add("--decay", type=float, default=0.02, help="lambda; default: %(default)s")
    add("--duration", type=float, default=1.0, help="T, of fine-tuning; default: %(default)s")
    add("--rounds", type=int, default=8, help="of self-distillation; default: %(default)s")
    add("--instances", type=int, default=200, help="problems of a share; default: %(default)s")
    arguments = parser.parse_args(argv)
    return cli.exit_code(lambda: run(arguments))


def _check(given: argparse.Namespace) -> None:
    for name in ("examples", "outputs", "rounds", "instances"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name}: at least 1; got {getattr(given, name)}")
    for name in ("decay", "duration"):
        if not 0 < getattr(given, name) < math.inf:
            raise UserError(f"--{name}: a positive number; got {getattr(given, name)}")
    if given.features <= given.examples:
        raise UserError(
            f"--features: section 4 needs more than --examples {given.examples}; "
            f"got {given.features}"
        )
    if not -1 <= given.agreement <= 1:
        raise UserError(f"--agreement: from -1 to 1; got {given.agreement}")
    if given.seed < 0:
        raise UserError(f"--seed: at least 0; got {given.seed}")


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


if __name__ == "__main__":
    sys.exit(main())
