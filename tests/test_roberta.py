"""Structure of the RoBERTa backbone, without any reference implementation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roberta
from tiny_roberta import by_document, slots_by_document

from sdfp import losses
from sdfp.models import dropout, roberta, roberta_config, roberta_modules, roberta_weights
from sdfp.types import UserError

KEY = jax.random.key(7)
SETTINGS = tiny_roberta.settings(
    dropout_pretrain=0.2,
    dropout_finetune=0.1,
    attention_dropout_pretrain=0.3,
    attention_dropout_finetune=0.2,
)
BACKBONE = roberta.make(SETTINGS, jnp.float32)
ALONE = tiny_roberta.batch()
PACKED = tiny_roberta.batch(tiny_roberta.PACKED)


@pytest.fixture(scope="module")
def params():
    """Encoder, decoder and a head of three classes, large enough to tell things apart."""
    fresh = BACKBONE.init(jax.random.key(0))
    fresh = fresh | BACKBONE.add_head(fresh, 3, KEY)
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(KEY, x.shape), fresh)


def every_use(backbone, train):
    """One compiled function with the results and gradients of every use."""

    def total(params, batch):
        mask = backbone.mask(batch, KEY)
        prediction = backbone.reconstruct(params, batch, mask, KEY, train)
        loss = backbone.reconstruction_loss(prediction, batch, mask)
        encoder = params["encoder"]
        cls = backbone.features(encoder, batch, KEY, train)
        logits = backbone.logits(params, batch, KEY, train)
        entropy = losses.cross_entropy(logits, batch["label"])
        by_example = {"loss": loss, "cls": cls, "logits": logits, "entropy": entropy}
        every = backbone.features(encoder, batch, KEY, train, tokens="all")
        out = {"by_example": by_example, "every": every, "prediction": prediction, "mask": mask}
        return jnp.sum((loss + entropy) * batch["weight"]), out

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.fixture(scope="module")
def uses():
    return {train: every_use(BACKBONE, train) for train in (False, True)}


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(False, id="without_dropout", marks=pytest.mark.slow),
        pytest.param(True, id="with_dropout"),
    ],
)
def test_packing_changes_nothing(params, uses, train):
    (_, alone), slope = uses[train](params, ALONE)
    (_, packed), slope_packed = uses[train](params, PACKED)
    chex.assert_trees_all_close(packed["by_example"], alone["by_example"], atol=2e-5)
    chex.assert_trees_all_close(packed["every"], alone["every"], atol=2e-5)
    assert alone["every"].shape == (5, 18, 16)
    behind = np.arange(18) >= np.array(tiny_roberta.LENGTHS)[:, None]
    assert not np.any(alone["every"][behind])
    assert np.abs(alone["every"][~behind]).sum(axis=-1).min() > 0.1
    chex.assert_trees_all_close(
        slots_by_document(PACKED, packed["mask"], packed["prediction"]),
        slots_by_document(ALONE, alone["mask"], alone["prediction"]),
        atol=2e-5,
    )
    chex.assert_trees_all_close(slope_packed, slope, atol=2e-5, rtol=1e-4)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) > 0.1


def test_dropout_is_on_in_training_only_and_follows_the_key(params, uses):
    (_, off), _ = uses[False](params, ALONE)
    (_, on), _ = uses[True](params, ALONE)
    for name in ("cls", "logits", "loss"):
        difference = np.abs(off["by_example"][name] - on["by_example"][name])
        assert np.all(difference.reshape(5, -1)[:2].max(axis=1) > 1e-3), name
    other = BACKBONE.features(params["encoder"], ALONE, jax.random.key(8), True)
    assert not np.allclose(other, on["by_example"]["cls"], atol=1e-3)


@pytest.mark.slow
def test_micro_batches_change_nothing(params, uses):
    (_, whole), _ = uses[True](params, ALONE)
    half = {name: value[2:] for name, value in ALONE.items()}
    half["document"], half["row"] = half["document"] - 2, half["row"] - 2
    (_, part), _ = uses[True](params, half)
    expected = jax.tree.map(lambda x: x[2:], whole["by_example"])
    chex.assert_trees_all_close(part["by_example"], expected, atol=2e-5)


def test_masks_are_the_same_packed_and_alone():
    alone, packed = BACKBONE.mask(ALONE, KEY), BACKBONE.mask(PACKED, KEY)
    chex.assert_trees_all_equal(
        by_document(ALONE, alone.tokens), by_document(PACKED, packed.tokens)
    )
    chex.assert_trees_all_equal(
        slots_by_document(ALONE, alone, alone.target),
        slots_by_document(PACKED, packed, packed.target),
    )
    chex.assert_trees_all_equal(alone, BACKBONE.mask(ALONE, KEY))
    other = BACKBONE.mask(ALONE, jax.random.key(8))
    assert not np.array_equal(alone.tokens, other.tokens)
    moved = BACKBONE.mask(ALONE | {"index": ALONE["index"] + 1}, KEY)
    assert not np.array_equal(alone.tokens, moved.tokens)


def test_masking_rates_and_what_is_never_touched():
    settings = tiny_roberta.settings(mask_rate=0.15, vocab_size=50, max_positions=600)
    lengths = (500,) * 80
    rows = [(n,) for n in range(80)]
    batch = tiny_roberta.batch(rows, lengths, length=512, vocab_size=40)
    batch["tokens"] = batch["tokens"].at[:, 3].set(39)  # a <mask> of the text itself
    mask = jax.jit(roberta.make(settings, jnp.float32).mask)(batch, KEY)
    tokens, original = np.asarray(mask.tokens), np.asarray(batch["tokens"])
    untouchable = np.isin(original, settings.special) | (np.asarray(batch["segment"]) == 0)
    assert np.array_equal(tokens[untouchable], original[untouchable])

    where = np.asarray(mask.row)[mask.valid], np.asarray(mask.column)[mask.valid]
    assert not untouchable[where].any()
    chosen = np.zeros(original.shape, bool)
    chosen[where] = True
    assert np.array_equal(tokens[~chosen], original[~chosen])
    np.testing.assert_array_equal(np.asarray(mask.target)[mask.valid], original[where])
    count = chosen.sum()
    assert count == mask.valid.sum()
    assert int(mask.overflow) == 0
    # Five standard deviations each.
    ordinary = (~untouchable).sum()
    assert abs(count / ordinary - 0.15) < 5 * (0.15 * 0.85 / ordinary) ** 0.5
    hidden, same = tokens[chosen] == 39, tokens[chosen] == original[chosen]
    random = tokens[chosen][~hidden & ~same]
    for share, expected in [(hidden.mean(), 0.8), (same.mean(), 0.1 + 0.1 / 46)]:
        assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    assert set(random) == set(range(50)) - set(settings.special)


def test_nothing_masked_is_a_loss_of_zero_and_its_gradient_is_finite(params, uses):
    (_, alone), slope = uses[False](params, ALONE)
    assert float(alone["by_example"]["loss"][4]) == 0  # <s> </s>
    assert np.all(np.asarray(alone["by_example"]["loss"])[:2] > 0)
    chex.assert_tree_all_finite(slope)


def test_too_few_slots_make_the_loss_nan(params):
    full = BACKBONE.mask(ALONE, KEY)
    drawn = int(full.valid.sum())
    for room, lost in [(drawn, 0), (drawn - 2, 2)]:
        mask = roberta.draw_mask(SETTINGS, ALONE, KEY, room)
        assert int(mask.overflow) == lost
        assert mask.row.shape == (room,)
        logits = jnp.zeros((room, SETTINGS.vocab_size))
        loss = BACKBONE.reconstruction_loss(logits, ALONE, mask)
        assert np.all(np.isnan(loss)) if lost else np.allclose(loss[:2], np.log(40))


def test_slots_cover_a_batch():
    assert roberta.slots(SETTINGS, 10) == 10  # never more than there are tokens
    base = tiny_roberta.settings(mask_rate=0.15)
    assert 1.05 < roberta.slots(base, 32768) / (0.15 * 32768) < 1.11


def test_loss_is_the_mean_over_each_documents_masked_positions():
    mask = BACKBONE.mask(PACKED, KEY)
    logits = jax.random.normal(KEY, (len(mask.valid), SETTINGS.vocab_size))
    got = BACKBONE.reconstruction_loss(logits, PACKED, mask)
    each = slots_by_document(PACKED, mask, losses.cross_entropy(logits, mask.target))
    for number in (0, 1, 3):  # the others have nothing masked under this key
        own = [value for (document, _), value in each.items() if document == number]
        np.testing.assert_allclose(got[number], np.mean(own), rtol=1e-5)


def test_documents_of_a_row_do_not_see_each_other_and_padding_is_not_read(params):
    run = jax.jit(lambda b: BACKBONE.features(params["encoder"], b, None, False))
    before = run(PACKED)
    changed = PACKED["tokens"].at[0, 2].set(30).at[0, 1].set(31)  # of document 3, row 0
    changed = jnp.where(PACKED["segment"] > 0, changed, 17)
    after = run(PACKED | {"tokens": changed})
    np.testing.assert_array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))
    assert not np.allclose(after[3], before[3], atol=1e-3)


def test_dropout_rate_scale_and_independence():
    example, position = jnp.zeros((200,), jnp.int32), jnp.arange(200)
    keys = dropout.token_keys(KEY, example, position)
    x = dropout.dropped(jnp.ones((200, 301)), keys, 0.1)
    kept = np.asarray(x) > 0
    np.testing.assert_allclose(np.asarray(x)[kept], 1 / 0.9, rtol=1e-5)
    assert abs(kept.mean() - 0.9) < 5 * (0.09 / kept.size) ** 0.5
    # Two values share a word, neighbours a key: the chance that both go is that of each squared.
    for pair in (~kept[:, :-1:2] & ~kept[:, 1::2], ~kept[:-1] & ~kept[1:]):
        assert abs(pair.mean() - 0.01) < 5 * (0.01 / pair.size) ** 0.5
    weights = jnp.ones((1, 3, 50, 50)) / 50
    module = roberta_modules.AttentionDropout(0.25)
    line = jnp.arange(50)[None]
    places = roberta_modules.Places(jnp.zeros_like(line), line, jnp.ones_like(line))
    kept = np.asarray(module.apply({}, weights, places, rngs={"dropout": KEY})) > 0
    assert abs(kept.mean() - 0.75) < 5 * (0.1875 / kept.size) ** 0.5
    assert not np.array_equal(kept[0, 0], kept[0, 1])
    assert not np.array_equal(kept[0, 0], kept[0, 0].T)


def test_parameters_have_a_layer_axis_and_the_agreed_names(params):
    assert set(params) == {"encoder", "decoder", "head"}
    chex.assert_shape(params["encoder"]["blocks"]["query"]["kernel"], (2, 16, 16))
    chex.assert_shape(params["encoder"]["word"]["embedding"], (40, 16))
    chex.assert_shape(params["decoder"]["bias"], (40,))
    leaves = {path[-1].key for path, _ in jax.tree.leaves_with_path(params)}
    assert leaves == {"kernel", "bias", "scale", "embedding"}


def test_tied_matrix_gets_gradient_from_the_head(params):
    mask = BACKBONE.mask(ALONE, KEY)

    def loss(params):
        prediction = BACKBONE.reconstruct(params, ALONE, mask, None, False)
        return BACKBONE.reconstruction_loss(prediction, ALONE, mask).sum()

    slope = jax.jit(jax.grad(loss))(params)["encoder"]["word"]["embedding"]
    unused = sorted(set(range(40)) - set(np.asarray(mask.tokens).ravel().tolist()))
    assert np.all(np.any(np.asarray(slope)[unused] != 0, axis=1))


@pytest.mark.slow
def test_bfloat16_is_close_and_gives_float32(params):
    run = lambda backbone: every_use(backbone, False)(params, PACKED)[0][1]["by_example"]
    exact, rough = run(BACKBONE), run(roberta.make(SETTINGS, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(rough, exact, atol=0.2)
    assert not np.array_equal(rough["cls"], exact["cls"])


def test_perturb_sees_the_word_embeddings(params):
    seen = []
    run = lambda f: BACKBONE.features(params["encoder"], PACKED, None, False, perturb=f)
    same = run(lambda *given: seen.append(given) or given[0])
    np.testing.assert_allclose(same, run(None), atol=1e-6)
    expected = params["encoder"]["word"]["embedding"][PACKED["tokens"]]
    np.testing.assert_array_equal(seen[0][0], expected)
    used = PACKED["segment"] > 0
    document = PACKED["index"][PACKED["document"][used]]
    np.testing.assert_array_equal(seen[0][1][used], document)
    np.testing.assert_array_equal(seen[0][2], PACKED["position"])
    assert not np.allclose(run(lambda x, *_: x + 1.0 * (jnp.arange(16) % 2)[None, None]), same)
    with pytest.raises(ValueError, match="cls"):
        BACKBONE.features(params["encoder"], PACKED, None, False, tokens="some")


def test_picture_shows_masked_predicted_and_original(params):
    shown = np.asarray(BACKBONE.picture(params, PACKED, KEY))
    mask = BACKBONE.mask(PACKED, KEY)
    np.testing.assert_array_equal(shown[:, 0], mask.tokens)
    np.testing.assert_array_equal(shown[:, 2], PACKED["tokens"])
    same = np.ones(shown[:, 0].shape, bool)
    same[np.asarray(mask.row)[mask.valid], np.asarray(mask.column)[mask.valid]] = False
    np.testing.assert_array_equal(shown[:, 1][same], shown[:, 2][same])


def test_only_the_embeddings_of_padding_start_at_0():
    settings = tiny_roberta.settings(bos_id=1, pad_id=3, mask_id=0)
    encoder = roberta.init(settings, jnp.float32, KEY)["encoder"]
    for table in ("word", "position"):
        zero = np.all(np.asarray(encoder[table]["embedding"]) == 0, axis=1)
        np.testing.assert_array_equal(np.flatnonzero(zero), [3])
        assert 0.01 < np.std(encoder[table]["embedding"]) < 0.03


def test_names_round_trip_byte_exact(params):
    masked = {part: params[part] for part in ("encoder", "decoder")}
    tensors = BACKBONE.to_torch(masked)
    again, renaming = BACKBONE.from_torch(tensors)
    assert not renaming.missing
    assert not renaming.left_out
    chex.assert_trees_all_equal(again, jax.tree.map(np.asarray, masked))
    bare = {name.removeprefix("roberta."): value for name, value in tensors.items()}
    extra = {"embeddings.position_ids": np.arange(20)[None], "pooler.dense.bias": np.zeros(16)}
    again, renaming = BACKBONE.from_torch(bare | extra)
    assert renaming.left_out == ["pooler.dense.bias"]
    chex.assert_trees_all_equal(again, jax.tree.map(np.asarray, masked))
    classifier = {part: params[part] for part in ("encoder", "head")}
    again, renaming = BACKBONE.from_torch(BACKBONE.to_torch(classifier), head=True)
    assert not renaming.missing
    chex.assert_trees_all_equal(again, jax.tree.map(np.asarray, classifier))
    again, renaming = BACKBONE.from_torch(BACKBONE.to_torch(classifier))
    assert "decoder/bias" in renaming.missing
    assert set(again) == {"encoder"}


def test_files_that_do_not_fit_are_refused(params):
    tensors = BACKBONE.to_torch({part: params[part] for part in ("encoder", "decoder")})
    word = "roberta.embeddings.word_embeddings.weight"
    for more, message in [
        ({"lm_head.decoder.weight": tensors[word] + 1}, "ties"),
        ({"embeddings.word_embeddings.weight": tensors[word]}, "two tensors"),
        ({"roberta.encoder.layer.2.output.dense.bias": np.zeros(16)}, "no place"),
        ({"lm_head.bias": np.zeros(40, np.int32)}, "int32"),
        ({"roberta.encoder.layer.1.output.dense.bias": np.zeros(3, np.float32)}, "differ"),
    ]:
        with pytest.raises(UserError, match=message):
            BACKBONE.from_torch(tensors | more)
    with pytest.raises(UserError, match="too many"):
        roberta_weights.from_torch(tensors, tiny_roberta.settings(depth=1000))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dim": 15}, "heads"), ({"mask_id": 40}, "four ids"), ({"eos_id": 0}, "four ids"),
     ({"vocab_size": 4, "mask_id": 3}, "not special"), ({"max_positions": 2}, "max_positions")],
)  # fmt: skip
def test_impossible_settings(change, message):
    with pytest.raises(UserError, match=message):
        tiny_roberta.settings(**change)


def test_config_is_read():
    entries = {theirs: SETTINGS.__dict__[o] for o, theirs in roberta_config.SIZES.items()}
    config = {"model_type": "roberta", "type_vocab_size": 1, **entries}
    other = dataclasses.replace(SETTINGS, dim=8, depth=1, max_positions=99)
    assert roberta.read_config(other, config, {}) == SETTINGS
    for change in (
        {"model_type": "bert"},
        {"hidden_act": "relu"},
        {"type_vocab_size": 2},
        {"is_decoder": True},
    ):
        with pytest.raises(UserError, match=next(iter(change))):
            roberta.read_config(other, config | change, {})
    with pytest.raises(UserError, match="hidden_size"):
        roberta.read_config(other, {k: v for k, v in config.items() if k != "hidden_size"}, {})


def test_sizes_are_read_from_the_shapes():
    settings = tiny_roberta.settings(dim=128, heads=2, depth=3)
    fresh = jax.eval_shape(roberta.make(settings, jnp.float32).init, KEY)
    tensors = roberta_weights.to_torch(jax.tree.map(lambda x: np.zeros(x.shape), fresh), settings)
    shapes = {name: value.shape for name, value in tensors.items()}
    assert roberta.read_config(tiny_roberta.settings(), None, shapes) == settings
    with pytest.raises(UserError, match="unreadable"):
        roberta.read_config(settings, None, {})
