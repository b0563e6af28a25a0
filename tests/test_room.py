"""Data that are to stay on the devices, and do not fit there: one line, with the key."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sdfp import config, experiment, parallel, preflight
from sdfp.data.interface import Split
from sdfp.train.stage import Place
from sdfp.types import UserError

TINY = str(Path(__file__).parent / "tiny_config.py")
LOWER = "take a lower one; what is larger is sent batch by batch"


def test_target_and_source_are_counted_together(monkeypatch, tmp_path):
    """Before the second one is tried: a CPU would end the process."""
    kept = []

    def open_feed(split, devices, resident_gb, opened=preflight.loading.open_feed):
        feed = opened(split, devices, resident_gb)
        kept.append(sum(array.nbytes for array in feed.resident.values()))
        return feed

    raw = config.read(TINY, ["--config.run.resident_gb=3"])
    monkeypatch.setattr(preflight.loading, "open_feed", open_feed)
    experiment.check(raw, tmp_path)
    assert len(kept) >= 2
    size, opened = sum(kept), len(kept)
    assert min(kept) > 0
    monkeypatch.setattr(preflight.machine, "memory", lambda count: size - 1)
    with pytest.raises(UserError) as caught:
        experiment.check(raw, tmp_path)
    told = [preflight.report.gigabytes(each) for each in (size, size - 1)]
    assert caught.value.problems == (
        f"config.run.resident_gb=3: a device is to keep {told[0]} of data, {told[1]} are there: "
        + LOWER,
    )
    assert len(kept) == 2 * opened - 1


def open_one(resident_gb):
    """64 TB that take a byte here."""
    image = np.broadcast_to(np.zeros(1, np.uint8), (2**46,))
    run = SimpleNamespace(resident_gb=resident_gb)
    place = Place(Path(), parallel.make("jit", 1), run)
    return preflight._on_devices([Split({"image": image}, ())], 0, place)


def test_what_a_device_refuses(monkeypatch):
    """Its memory is not known, say, or another program has some of it."""
    monkeypatch.setattr(preflight.machine, "memory", lambda count: None)
    told = (
        r"^config.run.resident_gb=1e\+06: a device is to keep 70368.7 GB of data, and has no room"
    )
    with pytest.raises(UserError, match=told):
        open_one(1e6)


def test_nothing_is_kept_of_what_is_larger():
    (feed,) = open_one(4)
    assert not feed.resident
    assert feed.held() == 0


def test_what_else_fails_on_a_device_is_no_mistake(monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(preflight.loading, "open_feed", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        open_one(4)
