"""Parity with transformers' PyTorch RoBERTa on random weights, to 1e-4 (gradients 1e-3)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_roberta
from tiny_roberta import slots_by_document

from sdfp import losses
from sdfp.models import roberta

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

CASES = {
    "base": {},
    # eps large enough to be seen.
    "deeper": {
        "dim": 24,
        "depth": 3,
        "heads": 4,
        "mlp_dim": 40,
        "vocab_size": 61,
        "layer_norm_eps": 0.01,
        "max_positions": 14,
    },
    "one_layer": {"dim": 12, "depth": 1, "heads": 3, "mlp_dim": 12},
}
PACKINGS = {"padded": tiny_roberta.ALONE, "packed": tiny_roberta.PACKED}


def make_model(kind, settings, **more):
    """Every parameter drawn anew, so that no bias is 0 and no scale is 1 by luck."""
    s = settings
    config = transformers.RobertaConfig(
        vocab_size=s.vocab_size,
        hidden_size=s.dim,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=s.mlp_dim,
        max_position_embeddings=s.max_positions,
        layer_norm_eps=s.layer_norm_eps,
        type_vocab_size=1,
        **more,
    )
    model = kind(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def gradients(model):
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def assert_gradients_close(ours, theirs, tolerance=1e-3):
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    everything = norm(theirs)
    chex.assert_trees_all_equal_structs(ours, theirs)
    expected = dict(jax.tree.leaves_with_path(theirs))
    for path, got in jax.tree.leaves_with_path(ours):
        name = jax.tree_util.keystr(path)
        if "['key']['bias']" in name:
            # Exactly 0 in theory (the softmax does not see it): rounding on both sides.
            assert max(norm(got), norm(expected[path])) <= 1e-6 * everything, name
            continue
        error = norm(got - expected[path]) / (norm(expected[path]) + 1e-6 * everything)
        assert error <= tolerance, (name, error)


def their_input(batch, tokens):
    """Rows of one document each, as transformers wants them: it counts positions itself."""
    ids = torch.tensor(np.asarray(tokens)).long()
    return {"input_ids": ids, "attention_mask": torch.tensor(np.asarray(batch["segment"])).long()}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("case", CASES)
def test_masked_language_modelling(case, packing):
    settings = tiny_roberta.settings(**CASES[case], mask_id=38)
    model = make_model(transformers.RobertaForMaskedLM, settings)
    backbone = roberta.make(settings, jnp.float32)
    alone, batch = tiny_roberta.batch(), tiny_roberta.batch(PACKINGS[packing])
    mask_alone, mask = (
        backbone.mask(alone, jax.random.key(3)),
        backbone.mask(batch, jax.random.key(3)),
    )
    logits = model(**their_input(alone, mask_alone.tokens)).logits
    hidden = slots_by_document(alone, mask_alone, mask_alone.target)
    assert len(hidden) > 5
    by_hand = []
    for number in range(5):
        own = {where: int(target) for (n, where), target in hidden.items() if n == number}
        if own:
            target = torch.tensor(list(own.values()))
            by_hand.append(torch.nn.functional.cross_entropy(logits[number, list(own)], target))
        else:
            by_hand.append(torch.zeros(()))
    theirs = torch.stack(by_hand)
    theirs.mean().backward()

    params, renaming = backbone.from_torch(arrays(model.state_dict()))
    assert not renaming.missing
    assert not renaming.left_out

    @jax.jit
    def run(params):
        def loss_of(params):
            prediction = backbone.reconstruct(params, batch, mask, None, False)
            loss = backbone.reconstruction_loss(prediction, batch, mask)
            return loss.mean(), (loss, prediction)

        return jax.grad(loss_of, has_aux=True)(params)

    gradient, (loss, prediction) = run(params)
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-4)
    got = slots_by_document(batch, mask, prediction)
    expected = {place: logits[place].detach().numpy() for place in hidden}
    assert got.keys() == expected.keys()
    chex.assert_trees_all_close(got, expected, atol=1e-4)
    assert_gradients_close(gradient, backbone.from_torch(gradients(model))[0])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("case", ["base", "deeper"])
def test_features_and_classification(case, packing):
    settings = tiny_roberta.settings(**CASES[case])
    kind = transformers.RobertaForSequenceClassification
    model = make_model(kind, settings, num_labels=3)
    backbone = roberta.make(settings, jnp.float32)
    alone, batch = tiny_roberta.batch(), tiny_roberta.batch(PACKINGS[packing])
    given = their_input(alone, alone["tokens"])
    every = model.roberta(**given).last_hidden_state
    theirs = model(**given, labels=torch.tensor(np.asarray(batch["label"])).long())
    theirs.loss.backward()

    params, renaming = backbone.from_torch(arrays(model.state_dict()), head=True)
    assert not renaming.missing
    assert not renaming.left_out

    @jax.jit
    def run(params):
        def loss_of(params):
            logits = backbone.logits(params, batch, None, False)
            return losses.cross_entropy(logits, batch["label"]).mean(), logits

        encoder = params["encoder"]
        cls = backbone.features(encoder, batch, None, False)
        hidden_states = backbone.features(encoder, batch, None, False, tokens="all")
        return cls, hidden_states, jax.grad(loss_of, has_aux=True)(params)

    cls, hidden_states, (gradient, logits) = run(params)
    np.testing.assert_allclose(cls, every[:, 0].detach().numpy(), atol=1e-4)
    for found, expected, length in zip(hidden_states, every, tiny_roberta.LENGTHS, strict=True):
        np.testing.assert_allclose(found[:length], expected[:length].detach().numpy(), atol=1e-4)
        assert not np.any(found[length:])
    np.testing.assert_allclose(logits, theirs.logits.detach().numpy(), atol=1e-4)
    assert_gradients_close(gradient, backbone.from_torch(gradients(model), head=True)[0])


@pytest.mark.parametrize("head", [False, True])
def test_transformers_loads_what_we_write_and_back(tmp_path, head):
    settings = tiny_roberta.settings()
    names = ("RobertaForMaskedLM", "RobertaForSequenceClassification")
    kind = getattr(transformers, names[head])
    model = make_model(kind, settings)
    backbone = roberta.make(settings, jnp.float32)
    params, _ = backbone.from_torch(arrays(model.state_dict()), head=head)
    written = backbone.to_torch(params)
    for name, value in written.items():
        np.testing.assert_array_equal(value, model.state_dict()[name].numpy())
    model.config.save_pretrained(tmp_path)
    safetensors.numpy.save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    again, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    model.save_pretrained(tmp_path)
    saved = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    chex.assert_trees_all_equal(backbone.from_torch(saved, head=head)[0], params)
    config = model.config.to_dict()
    assert roberta.read_config(tiny_roberta.settings(dim=8, heads=1), config, {}) == settings
