"""Tables of compared runs as Markdown, LaTeX and CSV.

One run gives a table with a column for each figure, several a table with a column for each data
set. Both are made once, as text (`table`), and written down in two ways (`markdown`, `latex`);
the CSV has one row per data set and method, with all digits.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdfp import table_notes
from sdfp.comparison import ALSO, PLAIN, Line, Run, open_runs
from sdfp.table_notes import each, settings
from sdfp.types import UserError, one_line

LEVEL = 0.05
"""p-values below it are marked in a joined table."""

NAMES = {"accuracy": "accuracy (%)", "macro_f1": "macro-F1 (%)", "micro_f1": "micro-F1 (%)"}

NOTHING = "–"

COLUMNS = (
    *("data", "split", "metric", "method", "settings", "mean", "std", "n", "pretrain_seeds"),
    *("precision", "difference", "test", "p_value", "pairs", "steps", "seconds", "failed", *ALSO),
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
    for run, line, _ in each(runs):
        row = {**line._asdict(), **line.means, "pairs": line.pairs}
        row |= {"data": run.label, "settings": settings(line.method, line.varied)}
        infinite = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        writer.writerow(row | dict.fromkeys(infinite))
    return file.getvalue()


def _single(run: Run) -> Table:
    metric = _metric(run)
    rows = [["method", metric, "n", f"Δ to {PLAIN}", "p", "steps", "time"]]
    for line in run.lines:
        varied = settings(line.method, line.varied)
        cells = [
            line.method + (f" ({varied})" if varied else ""),
            _score(line),
            f"{line.n} ({line.failed} failed)" if line.n and line.failed else str(line.n),
            _number(line.difference, "+.2f").replace("-", "−"),
            _number(line.p_value, ".3f").replace("0.000", "<0.001"),
            _number(line.steps, ",.0f"),
            clock(line.seconds),
        ]
        rows.append(cells)
    first = f"{metric[0].upper()}{metric[1:]} on the {run.lines[0].split} split of {run.label}."
    return Table(rows, [first, *table_notes.of_one(run)])


def _joined(runs: Sequence[Run]) -> Table:
    columns = [{line.method: line for line in run.lines} for run in runs]
    rows = [["method", *(f"{run.label}, {_metric(run)}" for run in runs)]]
    for method in dict.fromkeys(line.method for _, line, _ in each(runs)):
        rows.append([method, *(_score(column.get(method), mark=" †") for column in columns)])
    marked = f"† above or below {PLAIN} in the same column with p < {LEVEL}"
    return Table(rows, table_notes.of_several(runs, marked))


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


def clock(seconds: float | None) -> str:
    """1:02:03; a dash for None."""
    whole = round(seconds or 0)
    clock = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return NOTHING if seconds is None else clock
