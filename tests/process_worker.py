"""The jobs of device_worker.py on all devices of several processes; test_processes.py starts them.

python process_worker.py FILE.npz COORDINATOR COUNT OWN
"""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdfp import hosts, parallel


class Rows:
    """An array that counts its rows that are read."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.read = array, array.shape, 0

    def __getitem__(self, index):
        self.read += index.size
        return self.array[index]


def main(path: str, coordinator: str, count: str, own: str) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    hosts.start(hosts.Processes(coordinator, int(count), int(own)))
    import device_worker as worker  # makes keys: the processes must have joined before
    import fsdp_worker

    assert (jax.process_count(), len(jax.devices())) == (int(count), 8)
    init = jax.device_get(worker.BACKBONE.init(jax.random.key(0)))
    teacher = jax.device_get(worker.BACKBONE.init(jax.random.key(1))["encoder"])
    found = {}
    for backend in ("jit", "pmap"):
        found.update(worker.trained(backend, 0, worker.jobs(init, teacher)))
        found.update(worker.probed(backend, 0, init))
        found.update(worker.mapped(backend, 0))
    parts = parallel.make("jit", 0, True)
    found.update(fsdp_worker.trained("parts", parts, fsdp_worker.small_jobs()))
    arrays = {"params": np.float32([-0.0, np.nan, 1e-45]), "empty": np.zeros((0, 2), np.int8)}
    value, shared = hosts.share(lambda: ({"here": own}, arrays | {"own": np.array(own)}))
    found |= {f"shared/{name}": array for name, array in shared.items()}
    found["value"] = np.array(value["here"])
    batch = {"index": np.arange(16, dtype=np.int32)[::-1]}
    for backend in ("jit", "pmap"):
        devices, rows = (
            parallel.make(backend, 0),
            Rows(np.arange(32, dtype=np.float32).reshape(16, 2)),
        )
        found[f"{backend}/rows"] = devices.gather(devices.shard(batch, 0, {"a": rows}))["a"]
        found[f"{backend}/read"] = np.array(rows.read)
    found["any"] = np.array([hosts.any_of(own == "1"), hosts.any_of(False)])
    np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
