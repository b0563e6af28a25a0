"""The tables that are made of compared runs, and their notes."""

import csv
import io
import math
import re

import numpy as np
import pytest
from comparison_results import (
    PLAIN,
    joined,
    line_of,
    notes,
    results,
    row_of,
    saved,
    scores,
    single,
)

from sdfp import comparison, rendering
from sdfp.types import UserError


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (36125.0, "10:02:05"), (None, "–")]
)
def test_clock(seconds, text):
    assert rendering.clock(seconds) == text


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


def test_settings_that_were_given_are_not_called_chosen():
    found = tuned("validation")
    del found["tuning"]["recadam"]
    told = notes(single(found))
    assert "Settings given for recadam: k=0.1." in told
    assert "Settings chosen for self_distillation+r3f: r3f.eps=1e-05 (validation split" in told
    found["tuning"] = {}
    assert "chosen" not in notes(single(found))
    assert "given for recadam on B: k=0.1; self_" in notes(joined(results(PLAIN), found))


def test_candidates_that_failed():
    """Older results have no errors."""
    candidates = [
        {"settings": {"mars.radius": 0.01}, "errors": ["loss is not finite", "another"]},
        {"settings": {"mars.radius": 0.1}, "errors": []},
        {"settings": {"mars.radius": 1}},
    ]
    tuning = {"mars": {"split": "validation", "candidates": candidates}}
    ours = {"method": "mars", "seed": 0, "pretrain_seed": None, "error": "a bug"}
    failed = [{**ours, "varied": {"mars.radius": 0.01}}]
    row = scores("mars", 1.0, 2.0, 3.0, varied={"mars.radius": 1})
    found = results([*PLAIN, *row], tuning=tuning, failed=failed)
    assert [note for note in single(found).notes if "ailed" in note] == [
        "mars: 1 of 3 candidates failed and was out: radius=0.01: loss is not finite"
    ]
    assert row_of(single(found), "mars")["n"] == "3"
    candidates[1]["errors"] = ["no memory"]
    assert (
        "mars on B: 2 of 3 candidates failed and were out: radius=0.01: loss is not finite; "
        "radius=0.1: no memory"
    ) in joined(results(PLAIN), found).notes


def test_rows_in_another_precision():
    other = scores("r3f", 1.0, 2.0, 3.0, precision="float32")
    found = results([*PLAIN, *other, *scores("mars", 1.0)], ["finetune", "r3f", "mars", "kd"])
    assert "float32" not in notes(single(found))  # older: the run's is not told
    found["precision"] = "bfloat16"
    assert "r3f: fine-tuned in float32, the other rows in bfloat16." in single(found).notes
    note = "r3f on B: fine-tuned in float32, the other rows on B in bfloat16."
    assert note in joined(results(PLAIN, precision="bfloat16"), found).notes
    alone = results(other, precision="tf32")
    assert "r3f: fine-tuned in float32, not in tf32." in single(alone).notes
    alone["precision"] = "float32"
    assert "fine-tuned in" not in notes(single(alone))


def test_columns_of_other_machines():
    """Of one run there is nothing to tell."""
    a = results(PLAIN, precision="float32", device="1 x cpu", versions={"sdfp": "0.1"})
    b = results(PLAIN, precision="float32", device="2 x cpu", versions={"sdfp": "0.1"})
    c = results(PLAIN, precision="tf32", device="1 x cpu", versions={"sdfp": "0.2"})
    assert "differ" not in notes(joined(a, b)) + notes(single(c))
    told = "The columns differ in precision: float32 (A, B), tf32 (C); sdfp: 0.1 (A, B), 0.2 (C)."
    assert told in joined(a, b, c).notes


def several(method):
    """Two pre-training seeds with three fine-tuning seeds each."""
    values = ((0, 51.0, 54.0, 65.0), (1, 53.0, 60.0, 65.0))
    return [cell for again, *row in values for cell in scores(method, *row, pretrain_seed=again)]


def test_notes_on_several_pretraining_seeds():
    found = results([*PLAIN, *several("further_pretrain")])
    told = notes(single(found))
    assert "further_pretrain over 2 pre-training × 3 fine-tuning seeds; other rows over" in told
    assert "have (3), with all of their pre-training seeds and averaged over them." in told
    assert "as in the paper" not in told
    assert (
        "p: two-sided t-test against finetune, for further_pretrain Welch's, unpaired, of the mean "
        "of each pre-training seed (n = 2) and of finetune's values (n = 3), of the fine-tuning "
        "seeds that all of these have; it is weak evidence, and not corrected for the number of "
        "comparisons (1)."
    ) in single(found).notes
    assert "further_pretrain on B over 2" in notes(joined(results(PLAIN), found))
    (row,) = [
        row
        for row in csv.DictReader(
            io.StringIO(rendering.csv_text([comparison.Run("a", found, comparison.lines(found))]))
        )
        if row["method"] != "finetune"
    ]
    assert (row["test"], row["pairs"], row["pretrain_seeds"]) == ("welch", "0", "2")
    assert float(row["p_value"]) == line_of(found, "further_pretrain").p_value


def test_notes_on_what_p_does_not_hold():
    """Of rows that pre-train once; a mixed table tells both tests."""
    hidden = "A paired test leaves out the variance of the pre-training stages."
    plain = results([*PLAIN, *scores("mars", 51.0, 55.0, 62.0)])
    assert hidden not in notes(single(plain))
    once = scores("self_distillation", 51.0, 55.0, 62.0, pretrain_seed=0)
    assert f"(2). {hidden}" in notes(single(results([*plain["results"], *once])))
    few = scores("self_distillation", 51.0, pretrain_seed=0)  # nothing to test
    assert hidden not in notes(single(results([*plain["results"], *few])))
    mixed = results([*plain["results"], *once, *several("kd")])
    told = notes(joined(plain, mixed))
    assert (
        "p < 0.05: two-sided t-test against finetune, paired by fine-tuning seed, with n = 3 "
        "pairs; for kd on B Welch's,"
    ) in told
    assert f"comparisons (4). {hidden}" in told


def test_an_unfinished_run_says_so():
    found = results(PLAIN) | {"complete": False}
    assert "digits has not been run to its end" in notes(single(found))
    assert "A has not been run to its end" in notes(joined(found, results(PLAIN)))
    assert "end" not in notes(joined(results(PLAIN), results(PLAIN)))
    failed = [{"method": "mars", "seed": 1, "pretrain_seed": None, "error": "x"}]
    assert "end" not in notes(single(results(PLAIN, failed=failed)))  # it came to its end


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
    assert "- p: two-sided t-test against finetune, paired by fine-tuning seed, with n = 3" in text
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
    words |= {"settings": "k=0.1", "precision": "bfloat16", "test": "paired"}
    assert recadam.items() >= words.items()
    assert set(recadam) == set(expected) | set(words)
    assert (plain["difference"], plain["p_value"], plain["steps"]) == ("", "", "")
    assert (plain["test"], plain["pairs"], plain["pretrain_seeds"]) == ("", "0", "1")
    assert (r3f["precision"], r3f["test"]) == ("", "")
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
