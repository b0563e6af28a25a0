"""What all image data sets share: cuts, preparation on the device; and the two toy sets."""

import itertools

import jax
import numpy as np
import pytest
from data_helpers import DEFAULTS, grey, settings

from sdfp.data import digits, images, pixels, registry, splits
from sdfp.data.interface import Split
from sdfp.types import UserError

# --- cuts


def labelled(counts) -> Split:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    shuffled = np.random.default_rng(0).permutation(labels)
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    return Split({"image": pixels, "label": shuffled}, tuple(map(str, range(len(labels)))))


def assemble(train, **changes):
    names = tuple(map(str, range(int(train.arrays["label"].max()) + 1)))
    test = splits.take(train, np.arange(len(train)))
    notes = {"source": "made up"}
    return images.assemble_arrays(
        train, test=test, settings=settings(**changes), class_names=names, notes=notes
    )


def test_every_prefix_of_the_order_is_stratified():
    split = labelled([60, 30, 9, 1])
    order = splits.stratified_order(split.arrays["label"], seed=3)
    assert sorted(order) == list(range(100))
    for size in range(4, 101):
        counts = np.bincount(split.arrays["label"][order[:size]], minlength=4)
        assert counts.min() >= 1
        np.testing.assert_allclose(counts, np.array([60, 30, 9, 1]) * size / 100, atol=3)


def test_budgets_are_nested_and_cut_the_unlabelled_images_too():
    train = labelled([50, 50, 20, 5])
    chosen = []
    for budget in (4, 10, 25, 100, 125):
        data = assemble(train, train_labels=budget)
        assert len(data.train) == budget
        assert data.unlabelled is data.train
        assert set(data.train.arrays["label"].tolist()) == {0, 1, 2, 3}
        labels = dict(zip(train.ids, train.arrays["label"].tolist(), strict=True))
        assert [labels[i] for i in data.train.ids] == data.train.arrays["label"].tolist()
        chosen.append(set(data.train.ids))
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert assemble(train, train_labels=10, split_seed=1).train.ids != tuple(sorted(chosen[1]))


@pytest.mark.parametrize("budget", [3, 126])
def test_impossible_budgets(budget):
    with pytest.raises(UserError, match=rf"train_labels={budget} must be at least the 4 .* 125"):
        assemble(labelled([50, 50, 20, 5]), train_labels=budget)


def test_validation_is_cut_from_train_before_the_budget():
    train = labelled([50, 50, 20, 5])
    data = assemble(train, validation_fraction=0.2, train_labels=50)
    assert (len(data.train), len(data.validation)) == (50, 25)
    assert not set(data.train.ids) & set(data.validation.ids)
    assert np.bincount(data.validation.arrays["label"]).tolist() == [10, 10, 4, 1]
    whole = assemble(train, validation_fraction=0.2)
    assert whole.validation.ids == data.validation.ids
    assert set(whole.train.ids) | set(whole.validation.ids) == set(train.ids)
    # Cuts for different purposes are not the same examples.
    test_cut = splits.cut(train, 100, 0, splits.TEST)[1]
    assert set(test_cut.ids) != set(data.validation.ids)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_labels_out_of_range(wrong):
    train, test = labelled([3, 3]), labelled([3, 3])
    test.arrays["label"][0] = wrong
    with pytest.raises(UserError, match=r"a test label is outside 0\.\.1"):
        images.assemble_arrays(
            train, test=test, settings=settings(), class_names=("a", "b"), notes={"source": "x"}
        )


def test_fingerprint_follows_what_training_sees():
    train = labelled([30, 30])
    same, again = assemble(train).fingerprint, assemble(labelled([30, 30])).fingerprint
    assert same == again
    others = {same, assemble(train, train_labels=10).fingerprint}
    others.add(assemble(train, mean=(0.0, 0.0, 0.0)).fingerprint)
    for name, row in (("label", 1 - train.arrays["label"]), ("image", train.arrays["image"] + 1)):
        changed = Split({**train.arrays, name: row.astype(train.arrays[name].dtype)}, train.ids)
        others.add(assemble(changed).fingerprint)
    others.add(assemble(Split(train.arrays, train.ids[::-1])).fingerprint)
    assert len(others) == 6


# --- prepare


def batch_of(index, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 6, 6, channels), np.uint8)
    index = np.array(index, np.int32)
    return {"image": pixels[index], "index": index, "weight": np.ones(len(index), np.float32)}


prepare = pixels.make_prepare(DEFAULTS.mean, DEFAULTS.std, 6)


def test_prepare_normalises_and_keeps_the_rest():
    batch = batch_of([3, 1])
    out = jax.jit(prepare, static_argnums=2)(batch, jax.random.key(0), False)
    expected = (batch["image"] / 255.0 - np.array(DEFAULTS.mean)) / np.array(DEFAULTS.std)
    np.testing.assert_allclose(out["image"], expected, rtol=1e-5, atol=1e-6)
    assert out["image"].dtype == np.float32
    assert set(out) == set(batch)


def test_to_pixels_inverts_prepare():
    batch = batch_of(range(10))
    to_pixels = pixels.make_to_pixels(DEFAULTS.mean, DEFAULTS.std)
    floats = prepare(batch, jax.random.key(0), False)["image"]
    np.testing.assert_array_equal(to_pixels(floats), batch["image"])
    np.testing.assert_array_equal(to_pixels(floats[0]), batch["image"][0])
    extremes = to_pixels(np.full((2, 2, 3), [np.nan, 1e9, -1e9]))
    assert extremes[0, 0].tolist() == [0, 255, 0]


def test_flip_depends_on_key_and_index_alone():
    key, indices = jax.random.key(7), list(range(64))
    flipped = jax.jit(prepare, static_argnums=2)(batch_of(indices), key, True)["image"]
    plain = np.asarray(prepare(batch_of(indices), key, False)["image"])
    distance = lambda other: np.abs(flipped - other).max((1, 2, 3))
    is_flipped = distance(plain[:, :, ::-1]) < 1e-5
    np.testing.assert_array_equal(is_flipped, distance(plain) > 1e-5)
    assert 20 < is_flipped.sum() < 44
    # Another place in another batch, or several devices: the same flips.
    moved = prepare(batch_of([9, 9, 63, 0]), key, True)["image"]
    np.testing.assert_allclose(moved, flipped[np.array([9, 9, 63, 0])], rtol=1e-6, atol=1e-6)
    other = prepare(batch_of(indices), jax.random.key(8), True)["image"]
    assert distance(other).max() > 0.1


def test_prepare_under_pmap():
    batch = {name: array[None] for name, array in batch_of([0, 1]).items()}
    mapped = jax.pmap(lambda b, key: prepare(b, key, True), in_axes=(0, None))
    out = mapped(batch, jax.random.key(0))["image"][0]
    expected = prepare(batch_of([0, 1]), jax.random.key(0), True)["image"]
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


# --- digits and photos


def test_digits():
    data = digits.load(grey(image_size=8, train_labels=100))
    whole = digits.load(grey(image_size=8, split_seed=5))
    assert (len(whole.train), len(whole.test), len(whole.class_names)) == (1000, 797, 10)
    assert len(data.train) == 100
    assert data.test.ids == whole.test.ids  # whatever the seed
    assert not set(whole.train.ids) & set(whole.test.ids)
    for split, low, high in ((data.train, 9, 11), (whole.train, 96, 103), (whole.test, 77, 82)):
        counts = np.bincount(split.arrays["label"])
        assert low <= counts.min()
        assert counts.max() <= high
    assert whole.train.arrays["image"].max() == 255
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    for row, name in enumerate(whole.train.ids[:20]):
        image = whole.train.arrays["image"][row, ..., 0]
        np.testing.assert_allclose(image.ravel() / 255 * 16, values[int(name)], atol=0.04)
        assert whole.train.arrays["label"][row] == labels[int(name)]


def test_digits_in_another_size():
    data = digits.load(settings(image_size=12))
    assert data.train.arrays["image"].shape == (1000, 12, 12, 3)


def test_photos_are_deterministic_full_contrast_and_unlabelled(monkeypatch):
    monkeypatch.setattr(digits, "CROPS", 300)
    data, again = (digits.load_photos(grey(image_size=8)) for _ in range(2))
    other = digits.load_photos(grey(image_size=8, split_seed=1))
    assert data.train.arrays["image"].shape == (300, 8, 8, 1)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert (data.train.arrays["image"].max((1, 2, 3)) == 255).all()
    assert (data.train.arrays["image"].min((1, 2, 3)) == 0).all()
    assert not data.train.labelled
    assert data.test is None
    assert digits.load_photos(settings(image_size=8)).train.arrays["image"].shape[-1] == 3


def test_registry():
    """Every entry can be downloaded or says that it need not be; digests are whole."""
    assert set(registry.DATASETS) >= {"cub", "image_folder", "digits", "sklearn_photos"}
    for entry in registry.DATASETS.values():
        for file in entry.downloads:
            kind, _, digest = file.digest.partition(":")
            assert len(digest) == {"sha256": 64, "md5": 32, "": 0}[kind]
            assert file.size > 0
            assert file.url.startswith(("https://", "http://"))
    assert not {n for n, e in registry.DATASETS.items() if e.tfds and not e.downloads}
