"""Data sets as TFDS prepares them, written by TFDS's own builders from images of a test."""

import types

import numpy as np
import pytest


def write_tfds(monkeypatch, folder, name, splits, names=None):
    """Prepares the data set `name` in `folder`, with {split: [example]} and, where the builder
    reads them from its download, {label feature: names}. Skips the test without TFDS."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    builder = tfds.builder_cls(name)

    def generators(self, manager):
        for feature, values in (names or {}).items():
            self.info.features[feature].names = list(values)
        return {split: enumerate(examples) for split, examples in splits.items()}

    monkeypatch.setattr(builder, "_split_generators", generators)
    # Nothing is downloaded; TFDS's own manager would need packages that reading does not.
    manager = types.SimpleNamespace(downloaded_size=0, download_size=0)
    monkeypatch.setattr(builder, "_make_download_manager", lambda *a, **k: manager)
    builder(data_dir=folder, file_format="array_record").download_and_prepare()


def assert_equal_data(data, other):
    """That a program sees no difference between two data sets."""
    assert data.fingerprint == other.fingerprint
    assert data.class_names == other.class_names
    for one, two in ((data.train, other.train), (data.test, other.test)):
        assert one.ids == two.ids
        assert one.arrays["label"].tolist() == two.arrays["label"].tolist()
        np.testing.assert_array_equal(one.arrays["image"], two.arrays["image"])
