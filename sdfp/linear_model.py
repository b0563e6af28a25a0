"""The linear model of section 4, in closed form: W phi(x), self-distilled, then fine-tuned.

Notation: features Phi [d, n], one column phi(x_i) per example; targets Y [p, n]; weights W [p, d].
The paper's w has the rows of W one below the other, and it decomposes I_p (x) Phi. That repeats
the singular values of Phi p times, so here Phi alone is decomposed: the entries of `weights @ u`,
[p, d], are the paper's p * d coefficients u_i^T w. Float64 throughout.

What the paper says and what holds
    Its bounds, `printed_zeta` on the norm of the fine-tuned weights and `printed_psi` on their
    distance from the initial ones, add squared lengths as if what fine-tuning learns and what it
    keeps were orthogonal. They share directions: ||w_{t,T}||^2 has the further term
    `Lengths.cross`, of either sign. So the printed formulas decrease with every round, but
    `printed_zeta` is no bound where `cross` > 0: where pre-trained weights and targets agree.
    `zeta` and `psi` use the triangle inequality instead: they hold always, decrease with every
    round, too, and lose `null`, the paper's B, in round 1.
    It is the bounds that decrease; norm and distance can rise. The distance from w_init does where
    w_0 is near it, since a round pulls towards 0.

Reference: Lee et al., ICLR 2023, section 4 and Appendix A.
"""

from typing import NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """Singular values and vectors of the features: (u * sigma) @ v.T.

    Attributes:
        u: [d, d], orthogonal; the columns beyond the rank span what no example sees.
        sigma: [d], decreasing; exactly 0 beyond the rank.
        v: [n, d]; columns of zeros where there is no right singular vector.
    """

    u: np.ndarray
    sigma: np.ndarray
    v: np.ndarray


class Lengths(NamedTuple):
    """Squared lengths of the parts of fine-tuned weights w_{t,T} (Appendix A).

    With c the coefficients of w_t, q those of the least-squares solution, e = exp(-sigma^2 T):

    Attributes:
        learnt: sum of q^2 (1 - e)^2: what fine-tuning put in. The same in all rounds.
        kept: sum of c^2 e^2 over sigma > 0: what fine-tuning left of w_t. Decreases with t.
        null: sum of c^2 over sigma = 0: B for t = 0 and 0 after.
        cross: sum of 2 q c e (1 - e), of either sign. The paper's proof leaves it out.
    """

    learnt: float
    kept: float
    null: float
    cross: float


def spectrum(features: np.ndarray) -> Spectrum:
    """Decomposes features [d, n].

    Singular values that rounding cannot tell from 0 become 0. So the rank counts, where the paper's
    B starts after np: the same unless features of examples depend linearly on each other.
    """
    d, n = features.shape
    u, values, vt = np.linalg.svd(features)
    sigma, v = np.zeros(d), np.zeros((n, d))
    rank = np.count_nonzero(values > values.max() * max(d, n) * np.finfo(float).eps)
    sigma[:rank] = values[:rank]
    v[:, :rank] = vt[:rank].T
    return Spectrum(u, sigma, v)


def distil(weights: np.ndarray, basis: Spectrum, decay: float, rounds: int) -> np.ndarray:
    """Lemma 1: w_t, from w_0 after `rounds` rounds of self-distillation.

    Round t minimises sum_i ||f(x_i, w) - f(x_i, w_{t-1})||^2 / n + decay ||w||^2.

    Args:
        weights: w_0 [p, d], of further pre-training.
        basis: of features [d, n].
        decay: lambda > 0.
        rounds: t >= 0.

    Returns:
        w_t [p, d].
    """
    return (weights @ basis.u * _shrinkage(basis, decay, rounds)) @ basis.u.T


def finetune(
    weights: np.ndarray, basis: Spectrum, targets: np.ndarray, duration: float
) -> np.ndarray:
    """w_{t,T}: gradient flow on sum_i ||f(x_i, w) - y_i||^2 / 2 for the time T (Appendix A).

    Args:
        weights: where it starts, w_t [p, d].
        basis: of features [d, n].
        targets: [p, n].
        duration: T >= 0; inf for its limit.

    Returns:
        Fine-tuned weights [p, d]. Directions that no example sees stay as they were.
    """
    learnt, keep = _flow(basis, targets, duration)
    return (learnt + keep * (weights @ basis.u)) @ basis.u.T


def lengths(
    weights: np.ndarray,
    basis: Spectrum,
    targets: np.ndarray,
    *,
    decay: float,
    duration: float,
    rounds: int,
) -> Lengths:
    """Of w_{t,T}, in parts; their sum is its squared norm.

    Args:
        weights: w_0 [p, d]; the others as in `distil` and `finetune`.
    """
    learnt, keep = _flow(basis, targets, duration)
    kept = keep * (weights @ basis.u) * _shrinkage(basis, decay, rounds)
    seen = basis.sigma > 0
    return Lengths(
        learnt=float(np.sum(learnt**2)),
        kept=float(np.sum(kept[:, seen] ** 2)),
        null=float(np.sum(kept[:, ~seen] ** 2)),
        cross=float(2 * np.sum(learnt * kept)),
    )


def printed_zeta(parts: Lengths) -> float:
    """The paper's bound zeta(t) on ||w_{t,T}||. It holds if and only if parts.cross <= 0.

    zeta is the factor of the generalisation bound that depends on the round.
    """
    return float(np.sqrt(parts.learnt + parts.kept + parts.null))


def zeta(parts: Lengths) -> float:
    """A bound on ||w_{t,T}|| that holds: both parts at their lengths, at whatever angle.

    Replaces the paper's zeta(t); at most sqrt(2) times as large.
    """
    return float(np.sqrt(parts.learnt) + np.sqrt(parts.kept + parts.null))


def printed_psi(parts: Lengths, initial: np.ndarray) -> float:
    """The paper's bound psi(t) on ||w_init - w_{t,T}||; initial [p, d]. Can fail if cross > 0."""
    return printed_zeta(parts) + float(np.linalg.norm(initial))


def psi(parts: Lengths, initial: np.ndarray) -> float:
    """A bound on ||w_init - w_{t,T}|| that holds; initial [p, d]. Replaces the paper's psi(t)."""
    return zeta(parts) + float(np.linalg.norm(initial))


def _shrinkage(basis: Spectrum, decay: float, rounds: int) -> np.ndarray:
    """(1 + n decay / sigma^2)^-t, [d], in a form that has no division by 0.

    Where sigma = 0 it is 0^t: 1 for t = 0 and 0 after, the indicator of Lemma 1.
    """
    squared = basis.sigma**2
    return (squared / (squared + len(basis.v) * decay)) ** rounds


def _flow(basis: Spectrum, targets: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """What gradient flow adds, q (1 - e) [p, d], and what it keeps of its start, e [d]."""
    seen = basis.sigma > 0
    exponent = np.zeros_like(basis.sigma)
    np.multiply(basis.sigma**2, duration, out=exponent, where=seen)  # not 0 * inf
    solution = np.zeros((len(targets), len(seen)))
    np.divide(targets @ basis.v, basis.sigma, out=solution, where=seen)
    return -solution * np.expm1(-exponent), np.exp(-exponent)
