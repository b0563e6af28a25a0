"""From a split in host memory to the rows that a compiled step reads."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sdfp.data.interface import Split
from sdfp.parallel import Devices


class Feed(NamedTuple):
    """A split on its way to the devices.

    Small splits stay on the devices whole (`resident`) and a batch is only `index` and
    `weight`; of larger ones the host sends the rows of each batch.
    """

    split: Split
    resident: Mapping
    """Device arrays [data set, ...], or empty."""
    streamed: Mapping[str, np.ndarray]
    """Host arrays [data set, ...] whose rows travel with each batch, or empty."""

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The streamed rows at `index` (of any shape)."""
        return {name: array[index] for name, array in self.streamed.items()}


def open_feed(split: Split, devices: Devices, resident_gb: float) -> Feed:
    """Keeps a split of up to `resident_gb` on every device, streams a larger one."""
    size = sum(array.nbytes for array in split.arrays.values())
    if size <= resident_gb * 1e9:
        return Feed(split, devices.replicate(dict(split.arrays)), {})
    return Feed(split, devices.replicate({}), split.arrays)


def gather(resident: Mapping, batch: Mapping) -> dict:
    """A batch with the resident arrays' rows, inside a compiled step."""
    return {**{name: array[batch["index"]] for name, array in resident.items()}, **batch}
