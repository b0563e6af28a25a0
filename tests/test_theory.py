"""The closed forms of section 4 against what they stand for, and what its bounds are worth."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sdfp import linear_model
from sdfp.linear_model import distil, finetune, lengths, printed_psi, printed_zeta, psi, zeta

# Nothing is drawn anew from run to run, nothing is kept on disk, nothing depends on the clock.
properties = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=60,
)
close = np.testing.assert_allclose
norm = np.linalg.norm


class Case:
    """A random problem: features [d, n], targets [p, n], w_0 and w_init [p, d]."""

    def __init__(self, seed, n, d, p, decay, duration):
        rng = np.random.default_rng(seed)
        self.n, self.decay, self.duration = n, decay, duration
        self.features = rng.normal(size=(d, n))
        self.targets = rng.normal(size=(p, n))
        self.weights, self.initial = rng.normal(size=(2, p, d))
        self.basis = linear_model.spectrum(self.features)

    def start(self, t):
        return distil(self.weights, self.basis, self.decay, t)

    def tuned(self, t):
        return finetune(self.start(t), self.basis, self.targets, self.duration)

    def parts(self, t):
        setting = {"decay": self.decay, "duration": self.duration, "rounds": t}
        return lengths(self.weights, self.basis, self.targets, **setting)


@st.composite
def cases(draw, dependent=True):
    """dependent: examples may be repeated, so that the rank is below n."""
    n = draw(st.integers(1, 5))
    case = Case(
        draw(st.integers(0, 10_000)),
        n,
        n + draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.floats(0.01, 0.3)),
        draw(st.floats(0.01, 2)),
    )
    if dependent and draw(st.booleans()):
        case.features[:, -1] = case.features[:, 0]
        case.basis = linear_model.spectrum(case.features)
    return case


rounds = st.integers(0, 5)

# --- the closed forms


@properties
@given(cases(), st.integers(1, 5))
def test_lemma_1_is_the_minimiser_of_each_round(case, t):
    """The objective as one least-squares problem: rows of the examples, then rows of the decay."""
    d = len(case.features)
    rows = np.vstack([case.features.T / np.sqrt(case.n), np.sqrt(case.decay) * np.eye(d)])
    weights = case.weights
    for _ in range(t):
        teacher = (weights @ case.features).T / np.sqrt(case.n)
        right = np.vstack([teacher, np.zeros((d, len(weights)))])
        weights = np.linalg.lstsq(rows, right)[0].T
    close(case.start(t), weights, rtol=1e-8, atol=1e-10)


@properties
@given(cases(dependent=False), rounds)
def test_lemma_1_as_printed(case, t):
    """With the decomposition of I_p (x) Phi and the paper's order of the weights."""
    u, sigma, vt = np.linalg.svd(np.kron(np.eye(len(case.weights)), case.features))
    seen = u[:, : len(sigma)]
    w = case.weights.ravel()
    predictions = vt @ (case.weights @ case.features).ravel()
    factor = (1 + case.n * case.decay / sigma**2) ** -float(t) / sigma
    expected = seen @ (factor * predictions) + (t == 0) * (w - seen @ (seen.T @ w))
    close(case.start(t).ravel(), expected, rtol=1e-7, atol=1e-9)


@settings(properties, max_examples=25)
@given(cases(), rounds)
def test_finetuning_is_the_gradient_flow(case, t):
    def velocity(_, flat):
        errors = flat.reshape(case.weights.shape) @ case.features - case.targets
        return -(errors @ case.features.T).ravel()

    span = (0, case.duration)
    flow = solve_ivp(velocity, span, case.start(t).ravel(), "DOP853", rtol=1e-10, atol=1e-12)
    close(case.tuned(t).ravel(), flow.y[:, -1], rtol=1e-7, atol=1e-8)


@properties
@given(cases(), rounds, rounds)
def test_rounds_add_up(case, s, t):
    again = distil(case.start(s), case.basis, case.decay, t)
    close(again, case.start(s + t), rtol=1e-9, atol=1e-12)


@properties
@given(cases(), rounds)
def test_the_parts_are_those_of_the_weights(case, t):
    parts = case.parts(t)
    close(sum(parts), norm(case.tuned(t)) ** 2, rtol=1e-9)
    reachable = case.features @ np.linalg.pinv(case.features)
    outside = case.start(t) - case.start(t) @ reachable
    close(parts.null, norm(outside) ** 2, rtol=1e-8, atol=1e-12)


# --- limits


@properties
@given(cases(), rounds)
def test_limits(case, t):
    w, basis, y = case.weights, case.basis, case.targets
    inverse = np.linalg.pinv(case.features)
    small = {"rtol": 1e-6, "atol": 1e-6}
    close(distil(w, basis, 1e-14, 1), w @ case.features @ inverse, **small)  # B goes all the same
    close(distil(w, basis, 1e14, 1), 0 * w, **small)
    close(distil(w, basis, case.decay, 10**6), 0 * w, **small)
    forgotten = finetune(distil(w, basis, case.decay, 10**6), basis, y, case.duration)
    close(forgotten, finetune(0 * w, basis, y, case.duration), **small)
    close(finetune(case.start(t), basis, y, 0), case.start(t), **small)
    # After fine-tuning for ever all rounds but round 0 are the least-squares solution.
    ever = finetune(case.start(t), basis, y, np.inf)
    kept = 0 if t else w - w @ case.features @ inverse
    close(ever, y @ inverse + kept, **small)


# --- the bounds


@properties
@given(cases(), rounds)
def test_our_bounds_hold(case, t):
    parts, tuned = case.parts(t), case.tuned(t)
    assert norm(tuned) <= zeta(parts) * (1 + 1e-12)
    opposite = -3 * tuned  # the farthest that initial weights of their norm can be
    for initial in (case.initial, opposite):
        assert norm(initial - tuned) <= psi(parts, initial) * (1 + 1e-12)
    assert printed_zeta(parts) <= zeta(parts) <= np.sqrt(2) * printed_zeta(parts) * (1 + 1e-12)


@properties
@given(cases(), rounds)
def test_the_printed_bounds_hold_only_without_the_cross_term(case, t):
    parts, tuned = case.parts(t), case.tuned(t)
    if abs(parts.cross) > 1e-9 * sum(parts):
        assert (norm(tuned) > printed_zeta(parts)) == (parts.cross > 0)
        assert (norm(-tuned - tuned) > printed_psi(parts, -tuned)) == (parts.cross > 0)


@properties
@given(cases(), st.integers(0, 2))
def test_what_decreases_with_every_round(case, t):
    now, then = case.parts(t), case.parts(t + 1)
    gap = now.kept + now.null - then.kept - then.null
    assert then.learnt == now.learnt
    assert gap > 0
    # Where fine-tuning has left next to nothing of w_t, the sum rounds the gap away.
    seen = gap > 1e-9 * now.learnt
    for bound in (zeta, printed_zeta):
        assert bound(then) < bound(now) or not seen
    for bound in (psi, printed_psi):
        assert bound(then, case.initial) < bound(now, case.initial) or not seen
    # Of the weights themselves this is so before fine-tuning.
    assert norm(case.start(t + 1)) < norm(case.start(t))
    assert norm(case.start(t + 1) @ case.features) < norm(case.start(t) @ case.features)


@properties
@given(cases(), st.integers(0, 2))
def test_earlier_rounds_do_more(case, t):
    for bound in (zeta, printed_zeta):
        first, second, third = (bound(case.parts(t + step)) for step in (0, 1, 2))
        assert first - second >= second - third - 1e-12


@properties
@given(cases())
def test_round_1_removes_b(case):
    before, after = case.parts(0), case.parts(1)
    outside = case.weights @ case.basis.u[:, np.linalg.matrix_rank(case.features) :]
    close(before.null, norm(outside) ** 2)
    assert after.null == 0
    gap = printed_zeta(before) ** 2 - printed_zeta(after) ** 2
    close(gap, before.null + before.kept - after.kept)


def by_hand(weights, target, t):
    """One example (1, 0); e = 1/2. Returns the fine-tuned weights and their parts."""
    basis = linear_model.spectrum(np.array([[1.0], [0.0]]))
    weights, targets = np.array([weights]), np.array([[target]])
    tuned = finetune(distil(weights, basis, 1.0, t), basis, targets, np.log(2))
    parts = lengths(weights, basis, targets, decay=1.0, duration=np.log(2), rounds=t)
    return tuned, parts


def test_the_printed_bounds_fail_by_hand():
    """q = c = 1: fine-tuning has nothing to do, and the norm stays 1."""
    tuned, parts = by_hand([1.0, 0.0], 1.0, 0)
    close(parts, (0.25, 0.25, 0, 0.5), atol=1e-15)
    close([norm(tuned), printed_zeta(parts), zeta(parts)], [1, np.sqrt(0.5), 1])
    assert norm(-tuned - tuned) == pytest.approx(2)
    assert printed_psi(parts, -tuned) == pytest.approx(1 + np.sqrt(0.5))
    assert psi(parts, -tuned) == pytest.approx(2)


def test_the_norm_can_rise():
    """q = 1, c = -1: what is kept undoes what is learnt, until a round makes it less."""
    before, after = (by_hand([-1.0, 0.0], 1.0, t)[0] for t in (0, 1))
    close(norm(before), 0, atol=1e-15)
    close(norm(after), 0.25)  # 1/2 - 1/2 * 1/2


def test_the_distance_can_rise():
    """w_init = w_0, seen by no example: no distance, until round 1 removes it. psi decreases."""
    initial = np.array([[0.0, 1.0]])
    (before, parts), (after, later) = (by_hand([0.0, 1.0], 0.0, t) for t in (0, 1))
    close([norm(initial - before), norm(initial - after)], [0, 1])
    close([psi(parts, initial), psi(later, initial)], [2, 1])
