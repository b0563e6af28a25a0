"""`python -m sdfp.theory`: its random problems, its files, its mistakes."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sdfp import theory

TOLD = Path(__file__).parents[1] / "docs" / "theory.md"
QUICK = ("--rounds", "2", "--instances", "2")


def shown_in(svg):
    """The text of a figure, without its line breaks."""
    return " ".join(" ".join(ElementTree.parse(svg).getroot().itertext()).split())


def test_figures(tmp_path, capsys):
    for folder in ("once", "again"):
        assert theory.main(["--out", str(tmp_path / folder), *QUICK]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    kinds = ("csv", "png", "svg")
    assert files == [f"{n}.{kind}" for n in ("bounds", "exceeded", "parts") for kind in kinds]
    for name in files:
        data = (tmp_path / "once" / name).read_bytes()
        assert data == (tmp_path / "again" / name).read_bytes()
        assert name.endswith("csv") or len(data) > 5000
    with (tmp_path / "once" / "bounds.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["round"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["norm"] <= row["zeta"]
        assert row["distance"] <= row["psi"]
    assert b"seed 0" in (tmp_path / "once" / "bounds.svg").read_bytes()
    shown = shown_in(tmp_path / "once" / "exceeded.svg")
    assert "2 random problems per agreement, seed 0, 2 rounds; drawn evenly: n 2 to 9," in shown
    assert "p 1 to 3, and on a logarithmic scale λ 0.001 to 1, T 0.1 to 10" in shown


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--examples", "0"), "--examples: at least 1; got 0"),
        (("--features", "20"), "--features: section 4 needs more than --examples 20; got 20"),
        (("--decay", "0"), "--decay: a positive number; got 0.0"),
        (("--duration", "nan"), "--duration: a positive number; got nan"),
        (("--agreement", "1.5"), "--agreement: from -1 to 1; got 1.5"),
        (("--seed", "-1"), "--seed: at least 0; got -1"),
    ],
)
def test_mistakes(tmp_path, capsys, flags, told):
    assert theory.main(["--out", str(tmp_path / "out"), *QUICK, *flags]) == 2
    assert capsys.readouterr().err == f"sdfp: {told}\n"
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert theory.main(["--out", str(tmp_path / "out"), *QUICK]) == 2
    assert capsys.readouterr().err == f"sdfp: --out {tmp_path / 'out'}: File exists\n"


def test_the_command():
    """Without --out; and the figures bring no tensorflow."""
    command = [sys.executable, "-m", "sdfp.theory"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--out" in done.stderr
    show = "import sys, sdfp.theory; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_docs_say_of_how_often():
    """The table of docs/theory.md, to the last digit that it prints."""
    rows = theory.exceeded(np.random.default_rng([0, 1]), instances=200, rounds=8)
    told = re.findall(r"^\| (-?[\d.]+) \| ([\d.]+) % \| ([\d.]+) % \|$", TOLD.read_text(), re.M)
    assert len(told) == 5
    for agreement, above, rising in told:
        own = [row for row in rows if row["agreement"] == float(agreement)]
        for text, values in (
            (above, [row["to_printed_zeta"] > 1 + theory.ROUNDING for row in own]),
            (rising, [row["rising"] for row in own]),
        ):
            share, digits = 100 * np.mean(values), len(text.partition(".")[2])
            assert abs(share - float(text)) <= 0.5 * 10**-digits + 1e-9
            assert share == 0 or float(text) > 0  # 0 reads as never


def test_the_drawn_problems():
    """As wide as the caption and the docs say, and no wider."""
    limits = (theory.EXAMPLES, theory.MORE_FEATURES, theory.OUTPUTS, theory.DECAYS)
    docs = " ".join(TOLD.read_text().split())
    for name, pair in zip(
        ("n", "d - n", "p", "lambda", "T"), (*limits, theory.DURATIONS), strict=True
    ):
        assert "{} {:g} to {:g}".format(name, *pair) in docs
    rows = theory.exceeded(np.random.default_rng(0), instances=60, rounds=1)
    sizes = {"examples": theory.EXAMPLES, "outputs": theory.OUTPUTS}
    for name, limits in sizes.items():
        found = [row[name] for row in rows]
        assert (min(found), max(found)) == limits
    more = [row["features"] - row["examples"] for row in rows]
    assert (min(more), max(more)) == theory.MORE_FEATURES
    for name, (low, high) in {"decay": theory.DECAYS, "duration": theory.DURATIONS}.items():
        found = [row[name] for row in rows]
        assert low <= min(found) < 1.1 * low
        assert 0.9 * high < max(found) <= high


def test_how_often_the_printed_bound_fails():
    rows = theory.exceeded(np.random.default_rng(0), instances=60, rounds=3)

    def share(agreement, name, limit):
        chosen = [row[name] > limit for row in rows if row["agreement"] == agreement]
        return np.mean(chosen)

    assert 0.35 < share(0, "to_printed_zeta", 1 + 1e-9) < 0.65
    assert share(1, "to_printed_zeta", 1 + 1e-9) > 0.9
    assert share(-1, "to_printed_zeta", 1 + 1e-9) < 0.1
    assert share(-1, "rising", 0) > 0.4
    assert max(row["to_zeta"] for row in rows) <= 1 + 1e-12
    assert 1.2 < max(row["to_printed_zeta"] for row in rows) <= np.sqrt(2)
