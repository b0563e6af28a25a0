"""Small results.json, and what is made of them."""

import json

from sdfp import comparison, rendering


def entry(
    method,
    seed,
    value,
    pretrain_seed=None,
    stages=(),
    varied=None,
    metric="accuracy",
    precision="bfloat16",
):
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
        "precision": precision,
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
