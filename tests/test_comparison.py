"""Several runs compared, and the tables that are made of it."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from sdfp import comparison, rendering
from sdfp.types import UserError


def entry(method, seed, value, pretrain_seed=None, stages=(), varied=None, metric="accuracy"):
    return {
        "method": method,
        "pretrain_seed": pretrain_seed,
        "seed": seed,
        "split": "test",
        "metric": metric,
        "value": value,
        "accuracy": value,
        "micro_f1": value,
        "macro_f1": value - 1.5,
        "test_loss": value / 7,
        "train_loss": value / 11,
        "distance": value / 13,
        "stage": f"finetune/{method}/seed_{seed}",
        "stages": list(stages),
        "varied": varied or {},
    }


def results(entries, methods=None, name="digits", **more):
    methods = methods or list(dict.fromkeys(entry["method"] for entry in entries))
    config = {"name": name, "methods": methods, "evaluate_on": "test", "seeds": [0, 1, 2]}
    return {"complete": True, "config": config, "device": "1 x cpu", "results": entries, **more}


def scores(method, *values, **more):
    return [entry(method, seed, value, **more) for seed, value in enumerate(values)]


def saved(folder, found):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def line_of(found, method):
    (line,) = [line for line in comparison.lines(found) if line.method == method]
    return line


def single(found):
    return rendering.table([comparison.Run("digits", found, comparison.lines(found))])


def joined(*found):
    """The columns are named A, B, ..."""
    return rendering.table(
        [comparison.Run(chr(65 + i), each, comparison.lines(each)) for i, each in enumerate(found)]
    )


def row_of(table, method):
    (row,) = [row for row in table.rows[1:] if row[0].split(" (")[0] == method]
    return dict(zip(table.rows[0], row, strict=True))


def notes(table):
    return "\n".join(table.notes)


PLAIN = scores("finetune", 50.0, 53.0, 59.0)


def test_mean_std_and_p_by_hand():
    """Differences 1, 2, 3: t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    plain, row = comparison.lines(results([*PLAIN, *scores("mars", 51.0, 55.0, 62.0)]))
    assert (plain.mean, plain.std) == (54.0, pytest.approx(21**0.5))  # (16 + 1 + 25) / 2
    assert (plain.difference, plain.p_value, plain.pairs) == (None, None, 0)
    assert (row.mean, row.std) == (56.0, pytest.approx(31**0.5))  # (25 + 1 + 36) / 2
    assert (row.n, row.seeds, row.pretrain_seeds, row.failed) == (3, 3, 1, 0)
    assert row.values == (51.0, 55.0, 62.0)
    assert (row.difference, row.pairs) == (2.0, 3)
    assert row.p_value == pytest.approx(1 - 12**0.5 / 14**0.5, rel=1e-12)
    assert (row.metric, row.split) == ("accuracy", "test")


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_p_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(70, 3, (2, n))
    found = comparison.paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found[0] == pytest.approx(a.mean() - b.mean())
    assert found[1] == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert found[2] == n


def test_p_of_far_differences():
    """With 1 degree of freedom p = 1 - 2 atan(t) / pi; and no underflow to a wrong side."""
    assert comparison.paired({0: 3.0, 1: 1.0}, {0: 0.0, 1: 0.0})[1] == pytest.approx(
        1 - 2 * math.atan(2) / math.pi
    )
    row = {seed: 50 + 1e-3 * seed for seed in range(9)}
    p = comparison.paired(row, dict.fromkeys(row, 10.0))[1]
    assert p is not None
    assert 0 < p < 1e-20


def test_only_seeds_of_both_rows_are_paired():
    """Seeds 1 and 2 are common: differences 2 and 4, t = 3."""
    row = [entry("mars", seed, value) for seed, value in [(2, 63.0), (1, 55.0), (7, 0.0)]]
    line = line_of(results([*PLAIN, *row]), "mars")
    assert (line.mean, line.n) == (pytest.approx(118 / 3), 3)
    assert (line.difference, line.pairs) == (3.0, 2)
    assert line.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert "both rows have (2)" in notes(single(results([*PLAIN, *row])))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([55.0], (5.0, None, 1)),  # one pair
        ([55.1, 58.1, 64.1], (pytest.approx(5.1), None, 3)),  # the same but for rounding
        ([50.0, 53.0, 59.0], (0.0, 1.0, 3)),
    ],
)
def test_p_where_there_is_none(values, expected):
    """Warnings are errors here: none comes of it."""
    line = line_of(results([*PLAIN, *scores("mars", *values)]), "mars")
    assert (line.difference, line.p_value, line.pairs) == expected


def test_no_common_seed_and_no_plain_row():
    other = [entry("mars", 8, 1.0), entry("mars", 9, 2.0)]
    for found in (results([*PLAIN, *other]), results(other)):
        line = line_of(found, "mars")
        assert (line.difference, line.p_value, line.pairs) == (None, None, 0)
        assert "No Δ and no p" in notes(single(found))


def test_one_seed_has_no_spread():
    table = single(results([entry("finetune", 0, 50.0), entry("mars", 0, 51.0)]))
    assert line_of(results([entry("mars", 0, 51.0)]), "mars").std is None
    assert row_of(table, "mars")["accuracy (%)"] == "51.00"
    assert "No spread: one value per row." in table.notes
    assert "t-test" not in notes(table)


def test_pretraining_seeds_are_averaged_before_pairing():
    """Per fine-tuning seed 52, 57, 65: differences 2, 4, 6. The spread is over all six values."""
    values = {(0, 0): 51.0, (1, 0): 53.0, (0, 1): 54.0, (1, 1): 60.0, (0, 2): 65.0, (1, 2): 65.0}
    row = [entry("further_pretrain", s, v, pretrain_seed=p) for (p, s), v in values.items()]
    found = results([*PLAIN, *row])
    line = line_of(found, "further_pretrain")
    assert (line.n, line.pretrain_seeds, line.seeds, line.pairs) == (6, 2, 3, 3)
    assert (line.mean, line.difference) == (58.0, 4.0)
    assert line.std == pytest.approx(((49 + 25 + 16 + 4 + 49 + 49) / 5) ** 0.5)
    assert line.p_value == pytest.approx(1 - 12**0.5 / 14**0.5)
    told = notes(single(found))
    assert "further_pretrain over 2 pre-training × 3 fine-tuning seeds; other rows over" in told
    assert "averaged over the pre-training seeds first" in told
    assert "as in the paper" not in told
    assert "further_pretrain on B over 2" in notes(joined(results(PLAIN), found))


def test_cost_is_of_one_run_with_shared_stages():
    """Two cells: 100 + 10 steps each, 50 + 6 and 50 + 8 seconds; a stage counts once."""
    stages = [
        {"name": "further", "steps": 100, "seconds": 3590.0},
        {"name": "f0", "steps": 10, "seconds": 6.0},
        {"name": "f1", "steps": 10, "seconds": 8.4},
        {"name": "other", "steps": 7, "seconds": 1.0},
    ]
    row = [entry("mars", s, 5.0, stages=["further", "further", f"f{s}"]) for s in (0, 1)]
    plain = [entry("finetune", s, 5.0, stages=[f"f{s}"]) for s in (0, 1)]
    found = results([*plain, *row], stages=stages)
    assert (line_of(found, "mars").steps, line_of(found, "mars").seconds) == (110, 3597.2)
    table = single(found)
    assert (row_of(table, "mars")["steps"], row_of(table, "mars")["time"]) == ("110", "0:59:57")
    assert row_of(table, "finetune")["time"] == "0:00:07"
    assert "counted in each of them" in notes(table)
    assert "compilation included, on 1 x cpu" in notes(table)
    assert "search" not in notes(table)
    searched = {"candidates": [], "split": "validation"}
    assert "without the search" in notes(single(found | {"tuning": {"mars": searched}}))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (36125.0, "10:02:05"), (None, "–")]
)
def test_clock(seconds, text):
    assert rendering._clock(seconds) == text


def test_older_results_lack_what_they_lack():
    """No stages of a cell, no failures, no tuning, no losses: the table is made all the same."""
    keys = ("method", "seed", "split", "metric", "value")
    entries = [{key: cell[key] for key in keys} for cell in [*PLAIN, *scores("mars", 1, 2, 3)]]
    found = results(entries, stages=[])
    line = line_of(found, "mars")
    assert (line.steps, line.seconds, line.means, line.varied) == (None, None, {}, {})
    assert row_of(single(found), "mars")["time"] == "–"
    assert "compilation" not in notes(single(found))
    partly = [entry("mars", 0, 1.0, stages=["known"]), entry("mars", 1, 1.0, stages=["gone"])]
    record = {"name": "known", "steps": 1, "seconds": 1.0}
    assert line_of(results(partly, stages=[record]), "mars").steps is None


def test_order_is_that_of_the_config():
    order = ["mars", "finetune", "r3f", "kd"]
    found = results([*PLAIN, *scores("mars", 1.0)], methods=order)
    assert [line.method for line in comparison.lines(found)] == order
    assert [row[0] for row in single(found).rows] == ["method", *order]
    assert row_of(single(found), "r3f")["accuracy (%)"] == "–"  # neither run nor failed


def test_failed_rows():
    failed = [
        {"method": "r3f", "seed": None, "pretrain_seed": None, "error": "no memory | left"},
        {"method": "mars", "seed": 2, "pretrain_seed": 4, "error": "loss is not finite"},
    ]
    found = results(
        [*PLAIN, *scores("mars", 50.0, 54.0)], ["finetune", "r3f", "mars"], failed=failed
    )
    line = line_of(found, "r3f")
    assert (line.n, line.failed, line.mean, line.std, line.p_value) == (0, 3, None, None, None)
    table = single(found)
    assert row_of(table, "r3f")["accuracy (%)"] == "failed"
    assert row_of(table, "r3f")["n"] == "0"
    assert row_of(table, "mars")["n"] == "2 (1 failed)"
    assert "Failed: r3f: no memory | left" in table.notes
    assert "Failed: mars, pre-training seed 4, seed 2: loss is not finite" in table.notes
    both = joined(results(PLAIN), found)
    assert row_of(both, "r3f") == {
        "method": "r3f",
        "A, accuracy (%)": "–",
        "B, accuracy (%)": "failed",
    }
    assert "Failed: B, r3f: no memory | left" in both.notes
    assert both.notes[0] == "n = 3 on the test split of A; 2 to 3 on the test split of B."
    tuning = {"r3f": {"split": "test", "candidates": [{"settings": {}}]}}
    assert not re.search("Settings|Optimistic", notes(single(found | {"tuning": tuning})))


def test_a_run_where_everything_failed(tmp_path):
    failed = [{"method": "mars", "seed": None, "pretrain_seed": None, "error": "why"}]
    found = results([], ["mars"], failed=failed)
    (run,) = comparison.open_runs([saved(tmp_path / "run", found)])
    assert rendering.table([run]).rows[1][:3] == ["mars", "failed", "0"]
    assert rendering.table([run]).rows[0][1] == "score"


def tuned(split):
    candidates = [{"settings": {"recadam.k": k}, "values": [1.0], "mean": 1.0} for k in (0.1, 0.5)]
    tuning = {"split": split, "metric": "accuracy", "candidates": candidates, "chosen": 0}
    entries = [*PLAIN, *scores("recadam", 51.0, 55.0, 62.0, varied={"recadam.k": 0.1})]
    name = "self_distillation+r3f"
    entries += scores(name, 51.0, 55.0, 62.0, varied={"r3f.eps": 1e-05})
    return results(entries, tuning={"recadam": tuning, name: tuning})


def test_tuned_rows_tell_what_was_chosen():
    table = single(tuned("validation"))
    assert [row[0] for row in table.rows] == [
        "method",
        "finetune",
        "recadam (k=0.1)",
        "self_distillation+r3f (r3f.eps=1e-05)",
    ]
    assert "recadam: k=0.1 (validation split, 2 candidates); self_dist" in notes(table)
    assert "without the search" not in notes(table)  # no steps are known here
    assert "Optimistic" not in notes(table)
    both = joined(results(PLAIN), tuned("validation"))
    assert [row[0] for row in both.rows][2:] == ["recadam", "self_distillation+r3f"]
    assert "recadam on B: k=0.1 (" in notes(both)
    assert "Settings" not in notes(single(results(PLAIN)))


def test_a_score_that_was_chosen_by_is_called_optimistic():
    found = tuned("test")
    assert "Optimistic: the score of recadam, self_distillation+r3f is" in notes(single(found))
    assert "Optimistic: the score of recadam on B, self" in notes(joined(results(PLAIN), found))


def test_an_unfinished_run_says_so():
    found = results(PLAIN) | {"complete": False}
    assert "digits has not been run to its end" in notes(single(found))
    assert "A has not been run to its end" in notes(joined(found, results(PLAIN)))
    assert "end" not in notes(joined(results(PLAIN), results(PLAIN)))


def test_markdown_of_one_run():
    found = results([*PLAIN, *scores("mars", 49.0, 51.0, 56.0), *scores("r3f", 80.0, 83.0, 89.1)])
    text = rendering.markdown(single(found))
    assert text.splitlines()[:7] == [
        "| method   | accuracy (%) | n | Δ to finetune | p      | steps | time |",
        "| -------- | ------------ | - | ------------- | ------ | ----- | ---- |",
        "| finetune | 54.00 ± 4.58 | 3 | –             | –      | –     | –    |",
        "| mars     | 52.00 ± 3.61 | 3 | −2.00         | 0.074  | –     | –    |",
        "| r3f      | 84.03 ± 4.64 | 3 | +30.03        | <0.001 | –     | –    |",
        "",
        "- Accuracy (%) on the test split of digits.",
    ]
    assert "- p: two-sided t-test against finetune, paired by fine-tuning seed; with n = 3" in text
    assert "number of comparisons (2)." in text
    assert text.endswith(".\n")


def test_joined_rows_columns_and_marks():
    """Rows in order of first appearance; a mark in the column where the row is far off."""
    a = results([*scores("mars", 80.0, 83.0, 89.1), *PLAIN])
    rows = {"finetune": (50.0, 53.0, 59.0), "r3f": (20.0, 23.0, 29.1), "mars": (51.0, 55.0, 62.0)}
    b = results([cell for k, v in rows.items() for cell in scores(k, *v, metric="macro_f1")])
    b["config"]["evaluate_on"] = "validation"
    table = joined(a, b)
    assert table.rows == [
        ["method", "A, accuracy (%)", "B, macro-F1 (%)"],
        ["mars", "84.03 ± 4.64 †", "56.00 ± 5.57"],
        ["finetune", "54.00 ± 4.58", "54.00 ± 4.58"],
        ["r3f", "–", "24.03 ± 4.64 †"],
    ]
    lines = rendering.markdown(table).splitlines()[:5]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len({tuple(at.start() for at in re.finditer(r"\|", line)) for line in lines}) == 1
    assert table.notes[0] == "n = 3 on the test split of A; 3 on the validation split of B."
    assert "† above or below finetune in the same column with p < 0.05" in notes(table)
    assert "comparisons (3)" in notes(table)


def test_joined_n():
    assert joined(results(PLAIN), results(PLAIN)).notes[0] == (
        "n = 3 on the test split in every column."
    )
    fewer = results([*PLAIN, *scores("mars", 1.0)])
    assert joined(results(PLAIN), fewer).notes[0] == (
        "n = 3 on the test split of A; 1 to 3 on the test split of B."
    )
    assert "†" not in notes(joined(results(PLAIN), results(PLAIN)))  # nothing is compared


def test_csv_holds_what_results_json_holds():
    """Every number comes back bit for bit; where there is none, the field is empty."""
    stages = [{"name": "further", "steps": 100, "seconds": 0.5}]
    row = scores("recadam", 51.1, 55.7, 62.3, stages=["further"], varied={"recadam.k": 0.1})
    failed = [{"method": "r3f", "seed": 1, "pretrain_seed": None, "error": "x"}]
    found = results([*PLAIN, *row], ["finetune", "recadam", "r3f"], stages=stages, failed=failed)
    runs = [comparison.Run('a, "b"', found, comparison.lines(found))]
    text = rendering.csv_text([*runs, comparison.Run("c", found, runs[0].lines)])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["data"], r["method"]) for r in rows] == [
        (data, method) for data in ('a, "b"', "c") for method in ("finetune", "recadam", "r3f")
    ]
    plain, recadam, r3f = rows[:3]
    expected = {
        "mean": np.mean([51.1, 55.7, 62.3]),
        "std": np.std([51.1, 55.7, 62.3], ddof=1),
        "difference": runs[0].lines[1].difference,
        "p_value": runs[0].lines[1].p_value,
        "accuracy": np.mean([cell["accuracy"] for cell in row]),
        "micro_f1": np.mean([cell["micro_f1"] for cell in row]),
        "macro_f1": np.mean([cell["macro_f1"] for cell in row]),
        "loss": np.mean([cell["test_loss"] for cell in row]),
        "train_loss": np.mean([cell["train_loss"] for cell in row]),
        "distance": np.mean([cell["distance"] for cell in row]),
        "steps": 100,
        "seconds": 0.5,
        "n": 3,
        "pairs": 3,
        "pretrain_seeds": 1,
        "failed": 0,
    }
    assert {key: float(recadam[key]) for key in expected} == expected
    words = {"data": 'a, "b"', "split": "test", "metric": "accuracy", "method": "recadam"}
    assert recadam.items() >= (words | {"settings": "k=0.1"}).items()
    assert set(recadam) == set(expected) | set(words) | {"settings"}
    assert (plain["difference"], plain["p_value"], plain["steps"]) == ("", "", "")
    assert (r3f["mean"], r3f["std"], r3f["distance"], r3f["n"], r3f["failed"]) == (
        *("", "", ""),
        *("0", "1"),
    )


def test_values_that_are_not_finite():
    """Python's JSON can hold them: a dash and an empty field, and no warning."""
    found = results([*PLAIN, *scores("mars", 51.0, math.inf, 62.0), *scores("r3f", math.nan, 1.0)])
    runs = [comparison.Run("digits", found, comparison.lines(found))]
    for method in ("mars", "r3f"):
        assert list(row_of(rendering.table(runs), method).values())[1:5] == [
            "–",
            str(len([cell for cell in found["results"] if cell["method"] == method])),
            "–",
            "–",
        ]
    for row in list(csv.DictReader(io.StringIO(rendering.csv_text(runs))))[1:]:
        assert (row["mean"], row["std"], row["loss"], row["p_value"]) == ("", "", "", "")


def test_latex_structure():
    found = tuned("validation")
    for table in (single(found), joined(found, results(PLAIN))):
        text = rendering.latex(table)
        assert text.startswith("% ")
        body = text.split("\\begin{tabular}")[1].split("\\end{tabular}")[0]
        spec, *lines = body.strip().splitlines()
        width = len(table.rows[0])
        assert spec == "{l" + "r" * (width - 1) + "}"
        rows = [line for line in lines if not line.startswith("\\")]
        assert len(rows) == len(table.rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {width - 1}
        assert all(row.endswith(r" \\") for row in rows)
        rules = [line for line in lines if line.startswith("\\")]
        assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
        assert text.count("\\begin{") == text.count("\\end{") == 1
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert text.count("\\noindent ") == text.count("\\par\n") == len(table.notes)
        assert text.isascii()


def test_latex_escapes():
    escaped = rendering._latex_escaped("a_b %&#{}~^\\$ ± – −1 <x>\nΔ†×")
    assert escaped == (
        r"a\_b \%\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$ "
        r"$\pm$ -- $-$1 $<$x$>$ $\Delta$$\dagger$$\times$"
    )


def test_markdown_escapes():
    table = rendering.Table([["a|b", "c"], ["self_distillation", "p < 0.05"]], ["<b>*x*`\\\n| y"])
    assert rendering.markdown(table).splitlines() == [
        r"| a\|b              | c        |",
        "| ----------------- | -------- |",
        "| self_distillation | p < 0.05 |",
        "",
        r"- \<b>\*x\*\`\\ \| y",
    ]


def test_labels_are_unique(tmp_path):
    """By the folder's name; by its path where that is the same as well."""
    names = {"x/run": "digits", "y/run": "digits", "z": "digits", "u": "dtd"}
    folders = [
        saved(tmp_path / folder, results(PLAIN, name=name)) for folder, name in names.items()
    ]
    assert [run.label for run in comparison.open_runs(folders)] == [
        f"digits ({(tmp_path / 'x/run').resolve()})",
        f"digits ({(tmp_path / 'y/run').resolve()})",
        "digits (z)",
        "dtd",
    ]


def test_write(tmp_path):
    """One work directory: its figures; several: a column each. No temporary file stays."""
    a = saved(tmp_path / "a", results([*PLAIN, *scores("mars", 51.0, 55.0, 62.0)]))
    b = saved(tmp_path / "b", results(PLAIN, name="größe_大\udce4"))
    for workdirs, heads in (([a], "Δ to finetune"), ([b, a], "digits, accuracy (%)")):
        text = rendering.write(workdirs, tmp_path / "new" / "out")
        out = {path.name: path for path in (tmp_path / "new" / "out").iterdir()}
        assert sorted(out) == ["table.csv", "table.md", "table.tex"]
        assert heads in text.splitlines()[0]
        if workdirs == [a]:
            assert out["table.md"].read_text(encoding="utf-8") == text
    runs = comparison.open_runs([b, a])
    told = text.encode(errors="backslashreplace")
    assert out["table.md"].read_bytes() == told
    assert rendering.latex(rendering.table(runs)).encode(errors="backslashreplace") == (
        out["table.tex"].read_bytes()
    )
    assert len(out["table.csv"].read_text(encoding="utf-8").splitlines()) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder to write to"):
        rendering.write([a], tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no results.json there; name the work directory of a run"),
        ('{"config": ', "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        ("[1]", "not the results of a run"),
        ('{"config": {"name": "x"}}', "not the results of a run"),
        (json.dumps(results([], ["finetune"])), "no results in it"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, match):
    if text is not None:
        raw = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "results.json").write_bytes(raw)
    with pytest.raises(UserError, match=match) as caught:
        comparison.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_work_directories_that_cannot_be_compared(tmp_path):
    folder = saved(tmp_path / "run", results(PLAIN))
    with pytest.raises(UserError, match="run is named twice"):
        comparison.open_runs([folder, tmp_path / "run" / ".." / "run"])
    with pytest.raises(UserError, match="no work directory named"):
        comparison.open_runs([])


def test_starts_without_the_slow_libraries():
    code = "import sys; from sdfp import rendering; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sdfp.comparison" in loaded
    assert not loaded & {"flax", "optax", "orbax", "scipy.stats", "tensorboardX", "PIL"}
