"""The README's own method: as it stands there, in the registry, and it runs."""

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit

from sdfp import algorithm, config, experiment
from sdfp.data import digits
from sdfp.methods.registry import METHODS
from sdfp.models import vit_mae

ROOT = Path(__file__).parents[1]


def readme_method():
    text = (ROOT / "README.md").read_text()
    name, code = re.search(r"`sdfp/methods/(\w+)\.py`:\n\n```python\n(.*?)```", text, re.S).groups()
    module = types.ModuleType(name)
    exec(compile(code, f"README.md:{name}", "exec"), module.__dict__)
    assert f'`"{name}": {name}.METHOD,`' in text
    return name, module.METHOD, code


def test_it_is_short():
    _, _, code = readme_method()
    heading = ('"""', "import", "from")
    lines = [line for line in code.splitlines() if line and not line.startswith(heading)]
    assert len(lines) <= 10


def test_its_loss_is_what_it_says():
    backbone = vit_mae.make(tiny_vit.settings(), jnp.float32)
    params = backbone.add_head(backbone.init(jax.random.key(0)), 3, jax.random.key(1))
    batch = {**tiny_vit.batch(), "label": jnp.array([0, 2, 1])}
    key = jax.random.key(2)
    found = readme_method()[1].finetune_loss(backbone, None)(params, None, batch, key)
    plain = algorithm.finetune_loss(backbone)(params, None, batch, key)
    np.testing.assert_allclose(found["plain"], plain["cross_entropy"])
    p = np.asarray(jax.nn.softmax(backbone.logits(params, batch, None, False)), np.float64)
    np.testing.assert_allclose(found["penalty"], 0.1 * np.sum(p * np.log(p), axis=1), rtol=1e-5)


@pytest.mark.slow
def test_it_runs_alone_and_joined(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "CROPS", 200)
    name, method, _ = readme_method()
    monkeypatch.setitem(METHODS, name, method)
    rows = ["finetune", name, f"further_pretrain+{name}"]
    given = [f"--config.methods={','.join(rows)}"]
    results = experiment.run(config.read(str(ROOT / "tests/tiny_config.py"), given), tmp_path)
    assert [entry["method"] for entry in results["results"]] == rows
    assert not results["failed"]
    digests = {stage["name"]: stage["digest"] for stage in results["stages"]}
    plain, own, joined = (digests[f"finetune/{row}/seed_0"] for row in rows)
    assert len({plain, own, joined}) == 3
