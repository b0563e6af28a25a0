"""Trains methods on 1 and 2 devices; test_method_contract.py runs this and compares.

python device_worker_methods.py FOLDER ROW/BACKBONE ..., with 2 devices visible.
"""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

import method_runs

LAYOUTS = {"jit1": ("jit", 1), "jit2": ("jit", 2), "pmap2": ("pmap", 2)}
BATCH, STEPS = 7, 3  # an epoch of method_runs.TRAIN; 2 devices have 4 and 3 of each batch


def main(folder: Path, names: list[str]) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 2
    pairs = [name.split("/") for name in names]
    for backbone in sorted({backbone for _, backbone in pairs}):
        data = method_runs.write_data(backbone, folder / backbone / "data")
        rows = [row for row, other in pairs if other == backbone]
        for layout, (backend, count) in LAYOUTS.items():
            made = method_runs.tiny(backbone, data, *rows, steps=STEPS)
            made.parallel.update({"backend": backend, "devices": count})
            for recipe in made.stages.values():
                # The epsilon: see `training.masked`.
                recipe.update({"batch_size": BATCH, "epsilon": 1e-3})
            method_runs.run(made, folder / backbone / layout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
