"""The benchmarks run: tiny, in processes of their own, with the flags of docs/performance.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TINY = "--backbone tiny --stage self_distill --batch 8"


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("step_time", "--against nothing --steps 2 --repeats 1", "ours"),
        ("roofline", "", "parts"),
        ("memory_estimate", "", "activations"),
        ("probe", "", "share"),
        ("fsdp", "", "layouts"),
    ],
)
def test_a_benchmark_measures_and_writes_what_it_found(tmp_path, name, flags, told):
    out = tmp_path / "out.json"
    words = [*TINY.split(), *flags.split(), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert json.loads(out.read_text())[told]
