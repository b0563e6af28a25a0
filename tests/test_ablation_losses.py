"""The losses of Table 3's rows: values in float64, gradients of PyTorch, what is computed."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import tiny_roberta
import tiny_vit

from sdfp import algorithm, losses
from sdfp.methods import distill_only, mars, prediction_matching, weight_matching_l2
from sdfp.models import roberta, vit_mae
from sdfp.train import step

DISTANCES = {"l2": weight_matching_l2.squared_distance, "mars": mars.distance}
KEY = jax.random.key(3)  # masks words of every document that has some
VIT, ROBERTA = tiny_vit.settings, tiny_roberta.settings
MODELS = {"vit": (vit_mae, VIT), "roberta": (roberta, ROBERTA)}
BATCHES = {"vit": tiny_vit.batch(), "roberta": tiny_roberta.batch(tiny_roberta.PACKED)}


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """A backbone without and with dropout, a batch, a student and a teacher clearly apart."""
    model, settings = MODELS[request.param]
    make = lambda rate: model.make(settings(dropout_pretrain=rate), jnp.float32)
    backbone, batch = make(0.0), BATCHES[request.param]
    student, teacher = (backbone.init(jax.random.key(seed)) for seed in (0, 1))
    teacher = jax.tree.map(lambda x: 3 * x, teacher)
    return SimpleNamespace(
        backbone=backbone, dropping=make(0.3), batch=batch, student=student, teacher=teacher
    )


@pytest.fixture(scope="module")
def values(family):
    """Terms of the losses without dropout, and what other implementations start from."""
    backbone, batch = family.backbone, family.batch

    @jax.jit
    def run(student, teacher):
        mask = backbone.mask(batch, jax.random.split(KEY)[0])
        models = {"student": student, "teacher": teacher}
        predict = lambda params: backbone.reconstruct(params, batch, mask, None, False)
        found = {
            "mask": mask,
            "predictions": {name: predict(params) for name, params in models.items()},
            "matching": prediction_matching.matching_loss(backbone)(student, teacher, batch, KEY),
        }
        for tokens in ("cls", "all"):
            target = algorithm.teacher_features(backbone, tokens)(teacher["encoder"], batch)
            loss = distill_only.distill_loss(backbone, tokens)
            terms = loss(student, None, {**batch, "target": target}, KEY)
            features = backbone.features(student["encoder"], batch, None, False, tokens=tokens)
            found[tokens] = terms, features, target
        return found

    return jax.device_get(run(family.student, family.teacher))


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_distill_only_by_numpy(family, values, tokens):
    terms, student, target = values[tokens]
    expected = ((np.float64(student) - target) ** 2).sum(-1)
    if tokens == "all":
        expected = expected.sum(1) / np.float64(family.batch.get("length", expected.shape[1]))
    assert list(terms) == ["distill"]
    assert expected.min() > 1
    np.testing.assert_allclose(terms["distill"], expected, rtol=1e-5)


def test_distill_only_is_the_other_term_of_self_distillation(family):
    """With its dropout: the same key draws the same. And phi has no gradient, not a small one."""
    backbone, student = family.dropping, family.student
    target = jax.random.normal(KEY, (len(family.batch["index"]), 16))
    batch = {**family.batch, "target": target}

    def gradients(student, key):
        def objective(loss, params):
            return loss(params, None, batch, key)["distill"].sum()

        both = algorithm.self_distillation_loss(backbone, "cls")
        return [
            jax.value_and_grad(partial(objective, loss))(student)
            for loss in (distill_only.distill_loss(backbone, "cls"), both)
        ]

    run = jax.jit(gradients)
    (value, found), expected = run(student, KEY)
    chex.assert_trees_all_close((value, found), expected, rtol=1e-5, atol=1e-5)
    (other, _), _ = run(student, jax.random.key(4))
    assert abs(value / other - 1) > 1e-4
    assert optax.tree.norm(found["encoder"]) > 0
    assert not any(map(np.any, jax.tree.leaves(found["decoder"])))


def test_the_masked_pass_is_not_in_distill_onlys_program(family):
    """A step costs what one costs whose loss never heard of masks, and less than both terms."""
    backbone, batch = family.backbone, family.batch
    sgd = optax.sgd(1.0)
    example = jax.tree.map(lambda leaf: leaf[None], batch)
    example["target"] = jnp.zeros((1, len(batch["index"]), 16))

    def plain(params, frozen, batch, key):
        features = backbone.features(params["encoder"], batch, None, False)
        return {"distill": losses.squared_distance(features, batch["target"])}

    def flops(loss):
        prepare = lambda frozen, resident, batch, key: batch
        run = partial(step.train_step, loss_fn=loss, prepare=prepare, tx=sgd, weights={})
        lowered = jax.jit(run).lower(step.init_state(family.student, sgd), None, {}, example, KEY)
        return lowered.cost_analysis()["flops"]

    alone = flops(distill_only.distill_loss(backbone, "cls"))
    both = flops(algorithm.self_distillation_loss(backbone, "cls"))
    print(alone, both)
    assert alone == pytest.approx(flops(plain), rel=1e-3)
    assert alone < 0.8 * both


def slots_of(batch, mask):
    """Per document, which slots are its masked words."""
    return [mask.valid & (mask.example == i) for i in range(len(batch["index"]))]


def test_prediction_matching_by_numpy(family, values):
    ours, theirs = (np.float64(values["predictions"][name]) for name in ("student", "teacher"))
    if "image" in family.batch:
        expected = ((ours - theirs) ** 2).mean((1, 2))
    else:
        log_p, log_q = (scipy.special.log_softmax(x, axis=-1) for x in (theirs, ours))
        kl = scipy.special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(-1)
        slots = slots_of(family.batch, values["mask"])
        expected = np.array([kl[here].mean() if here.any() else 0.0 for here in slots])
    assert set(values["matching"]) == {"masked", "matching"}
    assert expected[:3].min() > 1e-2
    np.testing.assert_allclose(values["matching"]["matching"], expected, rtol=1e-5, atol=1e-7)


def test_prediction_matching_has_one_mask_one_student_pass_and_a_teacher_without_dropout(family):
    backbone, batch, passes = family.dropping, family.batch, []

    def reconstruct(params, batch, mask, key, train):
        passes.append((params, mask, train))
        return backbone.reconstruct(params, batch, mask, key, train)

    @jax.jit
    def run(student, teacher):
        counting = backbone._replace(reconstruct=reconstruct)
        terms = prediction_matching.matching_loss(counting)(student, teacher, batch, KEY)
        (first, mask, trained), (second, same_mask, not_trained) = passes
        assert (trained, not_trained) == (True, False)
        assert first is student
        assert second is teacher
        assert mask is same_mask
        return terms, algorithm.masked_loss(backbone)(student, None, batch, KEY)["masked"]

    terms, masked = run(family.student, jax.tree.map(jnp.copy, family.student))
    np.testing.assert_array_equal(terms["masked"], masked)
    assert terms["matching"][0] > 1e-6  # dropout is all that is between the two


def stub(family):
    """A backbone whose masked loss is a number per example, without a model's pass."""
    examples = len(family.batch["index"])
    return family.backbone._replace(
        mask=lambda batch, key: key,
        reconstruct=lambda params, batch, mask, key, train: jax.random.uniform(mask, (examples,)),
        reconstruction_loss=lambda prediction, batch, mask: prediction,
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_weight_matching_adds_one_number_to_the_masked_loss(family, distance):
    backbone, batch = stub(family), family.batch
    loss = jax.jit(weight_matching_l2.matching_loss(backbone, DISTANCES[distance]))
    terms = loss(family.student, family.teacher["encoder"], batch, KEY)
    masked = algorithm.masked_loss(backbone)(family.student, None, batch, KEY)["masked"]
    np.testing.assert_array_equal(terms["masked"], masked)
    expected = 0.0
    reference = dict(jax.tree.leaves_with_path(family.teacher["encoder"]))
    for path, leaf in jax.tree.leaves_with_path(family.student["encoder"]):
        change = np.float64(leaf) - reference[path]
        if distance == "l2":
            expected += (change**2).sum()
        elif path[-1].key == "kernel":
            for layer in change.reshape(-1, *change.shape[-2:]):
                expected += max(np.abs(layer[:, unit]).sum() for unit in range(layer.shape[1]))
    assert expected > 1
    chex.assert_type(terms["matching"], jnp.float32)
    np.testing.assert_allclose(terms["matching"], [expected] * len(batch["index"]), rtol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_weight_matching(family, distance):
    """Of the encoder alone; none into the teacher; finite where both are equal."""
    loss = weight_matching_l2.matching_loss(stub(family), DISTANCES[distance])
    total = lambda params, frozen: loss(params, frozen, family.batch, KEY)["matching"].sum()
    run = jax.jit(jax.grad(total, argnums=(0, 1)))
    to_student, to_teacher = run(family.student, family.teacher["encoder"])
    assert optax.tree.norm(to_student["encoder"]) > 0
    assert optax.tree.norm(to_student["decoder"]) == optax.tree.norm(to_teacher) == 0
    at_teacher, _ = run(family.student, family.student["encoder"])
    # L2 has a minimum there, MARS a kink: any slope up to 1 per example.
    most = 0 if distance == "l2" else len(family.batch["index"])
    assert all(np.all(np.abs(leaf) <= most) for leaf in jax.tree.leaves(at_teacher))


def test_l2_refuses_encoders_that_do_not_fit():
    of = weight_matching_l2.squared_distance
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    np.testing.assert_allclose(of(params, jax.tree.map(lambda x: 3 * x, params)), 4 * 9)
    for other in ({**params, "kernel": jnp.ones((1, 3))}, {"kernel": params["kernel"]}):
        with pytest.raises(AssertionError):  # the first would broadcast
            of(params, other)


@pytest.mark.torch
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_weight_distances_are_torchs(family, distance):
    torch = pytest.importorskip("torch")
    ours = jax.jit(jax.grad(DISTANCES[distance]))(
        family.student["encoder"], family.teacher["encoder"]
    )
    reference, found = (dict(jax.tree.leaves_with_path(t["encoder"])) for t in
                        (family.teacher, {"encoder": ours}))  # fmt: skip
    total, tensors = torch.zeros((), dtype=torch.float64), {}
    for path, leaf in jax.tree.leaves_with_path(family.student["encoder"]):
        tensors[path] = torch.tensor(np.float64(leaf), requires_grad=True)
        change = tensors[path] - torch.tensor(np.float64(reference[path]))
        if distance == "l2":
            total = total + change.pow(2).sum()
        elif path[-1].key == "kernel":
            total = total + change.abs().sum(-2).amax(-1).sum()
    total.backward()
    for path, tensor in tensors.items():
        expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_gradients_of_prediction_matching_are_torchs(family, values):
    """Torch's gradient with respect to the prediction, sent back through the student's pass."""
    torch = pytest.importorskip("torch")
    backbone, batch, mask = family.backbone, family.batch, values["mask"]
    theirs = torch.tensor(np.float64(values["predictions"]["student"]), requires_grad=True)
    fixed = torch.tensor(np.float64(values["predictions"]["teacher"]))
    if "image" in batch:
        total = (theirs - fixed).pow(2).mean((1, 2)).sum()
    else:
        p, q = (torch.softmax(x, -1) for x in (fixed, theirs))
        kl = (p * (p / q).log()).sum(-1)
        total = sum(kl[torch.tensor(here)].mean() for here in slots_of(batch, mask) if here.any())
    total.backward()

    def gradients(student, teacher, cotangent):
        loss = prediction_matching.matching_loss(backbone)
        matching = lambda *both: loss(*both, batch, KEY)["matching"].sum()
        predict = lambda params: backbone.reconstruct(params, batch, mask, None, False)
        (expected,) = jax.vjp(predict, student)[1](cotangent)
        return *jax.grad(matching, argnums=(0, 1))(student, teacher), expected

    cotangent = np.float32(theirs.grad.numpy())
    ours, to_teacher, expected = jax.jit(gradients)(family.student, family.teacher, cotangent)
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert min(optax.tree.norm(ours[part]) for part in ours) > 1e-3
    assert optax.tree.norm(to_teacher) == 0
