"""From a split in host memory to the rows that a compiled step reads."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from sdfp.data import packing
from sdfp.data.interface import Split
from sdfp.parallel import Devices


class Feed(NamedTuple):
    """A split on its way to the devices.

    Small splits stay on the devices whole (`resident`) and a batch is only `index` and
    `weight`; of larger ones the host sends the rows of each batch. Texts are of unequal lengths:
    the host packs those of each batch.
    """

    split: Split
    resident: Mapping
    """Device arrays [data set, ...], or empty."""
    streamed: Mapping[str, np.ndarray]
    """Host arrays [data set, ...] whose rows travel with each batch, or empty."""

    def held(self) -> int:
        """Bytes that stay on every device."""
        return sum(self.split.arrays[name].nbytes for name in self.resident)

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The streamed rows at `index` (of any shape)."""
        return {name: array[index] for name, array in self.streamed.items()}

    def layout(
        self, batches: Iterable[Mapping[str, np.ndarray]], devices: int, complete: bool
    ) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
        """How a batch is laid out, one function for all batches of a job.

        Args:
            batches: `index` and `weight` [..., examples]: those of the job, or some like them.
            devices: that the examples of a batch are spread over.
            complete: whether `batches` are all that there will be.

        Returns:
            Batch -> batch: of images the same one, of texts what `packing.layout` says.
        """
        if "tokens" not in self.split.arrays:
            return lambda batch: batch
        arrays = self.split.arrays
        return packing.layout(arrays["tokens"], arrays["length"], batches, devices, complete)


def open_feed(split: Split, devices: Devices, resident_gb: float) -> Feed:
    """Keeps a split of up to `resident_gb` on every device, streams a larger one."""
    feed = on_host(split)
    if resident_bytes(split, resident_gb):
        return Feed(split, devices.replicate(dict(feed.streamed)), {})
    return feed._replace(resident=devices.replicate({}))


def resident_bytes(split: Split, resident_gb: float) -> int:
    """What `open_feed` keeps of a split on every device: all or nothing."""
    size = sum(array.nbytes for array in on_host(split).streamed.values())
    return size if size <= resident_gb * 1e9 else 0


def on_host(split: Split) -> Feed:
    """Keeps nothing on the devices."""
    packed = ("tokens",)
    return Feed(split, {}, {name: a for name, a in split.arrays.items() if name not in packed})


def gather(resident: Mapping, batch: Mapping) -> dict:
    """A batch with the resident arrays' rows, inside a compiled step."""
    return {**{name: array[batch["index"]] for name, array in resident.items()}, **batch}
