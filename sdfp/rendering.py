"""Tables of compared runs as Markdown, LaTeX and CSV.

One run gives a table with a column for each figure, several a table with a column for each data
set. Both are made once, as text (`table`), and written down in two ways (`markdown`, `latex`);
the CSV has one row per data set and method, with all digits.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sdfp.comparison import ALSO, PLAIN, Line, Run, open_runs
from sdfp.types import UserError, one_line

LEVEL = 0.05
"""p-values below it are marked in a joined table."""

NAMES = {"accuracy": "accuracy (%)", "macro_f1": "macro-F1 (%)", "micro_f1": "micro-F1 (%)"}

NOTHING = "–"

COLUMNS = (
    *("data", "split", "metric", "method", "settings", "mean", "std", "n", "pretrain_seeds"),
    *("difference", "p_value", "pairs", "steps", "seconds", "failed", *ALSO),
)
"""Of the CSV. Scores and `difference` are in percent, `distance` is Euclidean."""

TEX = str.maketrans(
    {
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{character: "\\" + character for character in "_%&#{}$"},
        **{"±": r"$\pm$", "Δ": r"$\Delta$", "−": "$-$", "×": r"$\times$", "†": r"$\dagger$"},
        **{"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", '"': "''"},
    }
)
"""One character at a time, so that nothing is escaped twice."""


class Table(NamedTuple):
    """Plain text, not escaped for any format."""

    rows: list[list[str]]
    """The header first; all of the same length."""
    notes: list[str]


def write(workdirs: Sequence[Path], folder: Path) -> str:
    """Writes table.md, table.csv and table.tex, each wholly or not at all.

    Args:
        workdirs: of one or several runs.

    Returns:
        The text of table.md.

    Raises:
        UserError: a work directory has no results, or `folder` cannot be written to.
    """
    runs = open_runs(workdirs)
    made = table(runs)
    texts = {"md": markdown(made), "csv": csv_text(runs), "tex": latex(made)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            temporary = folder / f"table.{suffix}.tmp"
            # A name from another encoding must not be the end of a table.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
            temporary.replace(folder / f"table.{suffix}")
    except OSError as error:
        raise UserError(f"{folder}: {one_line(error)}; name a folder to write to") from None
    return texts["md"]


def table(runs: Sequence[Run]) -> Table:
    """Of one run: a row per method with its figures. Of several: a column per data set."""
    return _single(runs[0]) if len(runs) == 1 else _joined(runs)


def markdown(made: Table) -> str:
    """A table with aligned columns, and its notes as a list."""
    rows = [[_markdown_escaped(text) for text in row] for row in made.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    aligned = [[text.ljust(width) for text, width in zip(r, widths, strict=True)] for r in rows]
    lines = [f"| {' | '.join(row)} |" for row in aligned]
    return "\n".join([*lines, "", *(f"- {_markdown_escaped(note)}" for note in made.notes), ""])


def _markdown_escaped(text: str) -> str:
    """Without what would start a column, emphasis, code or a tag."""
    return re.sub(r"([\\`*|]|<(?=[A-Za-z/!?]))", r"\\\1", " ".join(text.split()))


def latex(made: Table) -> str:
    r"""A booktabs tabular with its notes below, to be read by \input."""
    header, *rows = [" & ".join(map(_latex_escaped, row)) + r" \\" for row in made.rows]
    lines = [
        r"% \input this file; it needs \usepackage{booktabs}.",
        r"\begin{tabular}{l" + "r" * (len(made.rows[0]) - 1) + "}",
        r"\toprule",
        header,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        r"{\footnotesize\raggedright",
        *(rf"\noindent {_latex_escaped(note)}\par" for note in made.notes),
        "}",
    ]
    return "\n".join([*lines, ""])


def _latex_escaped(text: str) -> str:
    return " ".join(text.split()).translate(TEX)


def csv_text(runs: Sequence[Run]) -> str:
    """One row per data set and method; numbers with all digits, nothing where there is none."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run, line, _ in _each(runs):
        row = {**line._asdict(), **line.means, "data": run.label, "settings": _settings(line)}
        infinite = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        writer.writerow(row | dict.fromkeys(infinite))
    return file.getvalue()


def _single(run: Run) -> Table:
    metric = _metric(run)
    rows = [["method", metric, "n", f"Δ to {PLAIN}", "p", "steps", "time"]]
    for line in run.lines:
        settings = _settings(line)
        cells = [
            line.method + (f" ({settings})" if settings else ""),
            _score(line),
            f"{line.n} ({line.failed} failed)" if line.n and line.failed else str(line.n),
            _number(line.difference, "+.2f").replace("-", "−"),
            _number(line.p_value, ".3f").replace("0.000", "<0.001"),
            _number(line.steps, ",.0f"),
            _clock(line.seconds),
        ]
        rows.append(cells)
    notes = [f"{metric[0].upper()}{metric[1:]} on the {run.lines[0].split} split of {run.label}."]
    notes += [*_on_spread([run]), *_on_difference(run.lines), *_on_cost(run)]
    return Table(rows, [*notes, *_on_settings([run]), *_on_gaps([run])])


def _joined(runs: Sequence[Run]) -> Table:
    columns = [{line.method: line for line in run.lines} for run in runs]
    rows = [["method", *(f"{run.label}, {_metric(run)}" for run in runs)]]
    for method in dict.fromkeys(line.method for _, line, _ in _each(runs)):
        rows.append([method, *(_score(column.get(method), mark=" †") for column in columns)])
    told = [f"{_range(x.n for x in r.lines if x.n)} on the {r.lines[0].split} split" for r in runs]
    if len(set(told)) == 1:
        told = [f"{told[0]} in every column"]
    else:
        told = [f"{text} of {run.label}" for text, run in zip(told, runs, strict=True)]
    marked = f"† above or below {PLAIN} in the same column with p < {LEVEL}"
    notes = [f"n = {'; '.join(told)}.", *_on_spread(runs)]
    notes += _on_test([line for _, line, _ in _each(runs)], marked)
    return Table(rows, [*notes, *_on_settings(runs), *_on_gaps(runs)])


def _metric(run: Run) -> str:
    return NAMES.get(run.lines[0].metric, "score")


def _score(line: Line | None, mark: str = "") -> str:
    """Mean ± standard deviation, in percent; `mark` where p is low."""
    if line is None or not line.n:
        return "failed" if line and line.failed else NOTHING
    spread = "" if line.std is None else f" ± {line.std:.2f}"
    low = line.p_value is not None and line.p_value < LEVEL
    return _number(line.mean, ".2f") + spread + (mark if low else "")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None or not math.isfinite(value) else format(value, form)


def _clock(seconds: float | None) -> str:
    whole = round(seconds or 0)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return NOTHING if seconds is None else clock


def _settings(line: Line) -> str:
    """What was chosen, e.g. "k=0.1, t0=250"; joined methods need their names with it."""
    keep = "+" in line.method
    pairs = [(k if keep else k.rsplit(".", 1)[-1], v) for k, v in line.varied.items()]
    return ", ".join(f"{key}={value}" for key, value in pairs)


def _range(numbers: Iterable[int]) -> str:
    """5, or 3 to 5 where they differ."""
    found = sorted(set(numbers)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _each(runs: Sequence[Run]) -> Iterator[tuple[Run, Line, str]]:
    """Every line, and its name in the notes: with the data set where there are several."""
    for run in runs:
        for line in run.lines:
            yield run, line, line.method + (f" on {run.label}" if len(runs) > 1 else "")


def _on_spread(runs: Sequence[Run]) -> Iterator[str]:
    """Which seeds the ± is over."""
    spread = [(line, name) for _, line, name in _each(runs) if line.std is not None]
    several = [(line, name) for line, name in spread if line.pretrain_seeds > 1]
    one = "the fine-tuning seeds of one pre-trained checkpoint per row"
    if not spread:
        yield "No spread: one value per row."
    elif not several:
        yield (
            f"±: sample standard deviation over {one}, as in the paper; the variance of the "
            "pre-training stages is not in it."
        )
    else:
        words = "{} over {} pre-training × {} fine-tuning seeds"
        told = [words.format(name, x.pretrain_seeds, x.seeds) for x, name in several]
        rest = [f"other rows over {one}"] if len(several) < len(spread) else []
        yield f"±: sample standard deviation; {'; '.join(told + rest)}."


def _on_difference(lines: Sequence[Line]) -> Iterator[str]:
    """What Δ and p are in a table of one run."""
    compared = [line for line in lines if line.difference is not None]
    if not compared:
        yield f"No Δ and no p: there is no row to compare with {PLAIN} seed by seed."
    else:
        averaged = any(line.pretrain_seeds > 1 for line in compared)
        each = ", each averaged over the pre-training seeds first" if averaged else ""
        pairs = _range(line.pairs for line in compared)
        yield f"Δ: mean over the fine-tuning seeds that both rows have ({pairs}){each}."
    yield from _on_test(lines, "p")


def _on_test(lines: Sequence[Line], subject: str) -> Iterator[str]:
    """What the p-values, or the marks that are made of them, say and do not say."""
    tested = [line for line in lines if line.p_value is not None]
    if tested:
        yield (
            f"{subject}: two-sided t-test against {PLAIN}, paired by fine-tuning seed; with n = "
            f"{_range(line.pairs for line in tested)} pairs it is weak evidence, and it is not "
            f"corrected for the number of comparisons ({len(tested)})."
        )


def _on_cost(run: Run) -> Iterator[str]:
    """What steps and time are."""
    if any(line.steps is not None for line in run.lines):
        device = run.results.get("device", "an unknown device")
        search = ", without the search for settings" if run.results.get("tuning") else ""
        yield (
            f"steps, time: of one run from theta_init on{search}; a stage that rows share is "
            f"counted in each of them. Time as measured, compilation included, on {device}."
        )


def _on_settings(runs: Sequence[Run]) -> Iterator[str]:
    """What was chosen, on what and from how many candidates."""
    told, optimistic = [], []
    for run, line, name in _each(runs):
        tuning = run.results.get("tuning", {}).get(line.method)
        if tuning and line.n:
            settings = _settings(line) or "the config's own"
            count = len(tuning["candidates"])
            told.append(f"{name}: {settings} ({tuning['split']} split, {count} candidates)")
            if tuning["split"] == line.split:
                optimistic.append(name)
        elif line.varied:
            told.append(f"{name}: {_settings(line)}")
    if told:
        yield f"Settings chosen for {'; '.join(told)}."
    if optimistic:
        yield (
            f"Optimistic: the score of {', '.join(optimistic)} is the one that its settings were "
            "chosen by."
        )


def _on_gaps(runs: Sequence[Run]) -> Iterator[str]:
    """What failed, and what has not been run yet."""
    for run in runs:
        where = f"{run.label}, " if len(runs) > 1 else ""
        for failure in run.results.get("failed", ()):
            seeds = {"pre-training seed": failure.get("pretrain_seed"), "seed": failure["seed"]}
            told = [f", {name} {seed}" for name, seed in seeds.items() if seed is not None]
            yield f"Failed: {where}{failure['method']}{''.join(told)}: {failure['error']}"
        if run.results.get("complete") is False:
            yield f"{run.label} has not been run to its end: more cells may follow."
