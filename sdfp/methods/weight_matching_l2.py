"""Row "Weight-Matching (L2)" of Table 3: the student's parameters stay near the teacher's.

Instead of features, the ablation compares parameters: next to L_MAE stands the squared Euclidean
distance of the student's encoder to the teacher's. The other distance is in weight_matching_mars.

Our choices: one round (T' = 1); all of the encoder's parameters count and none of the decoder's,
which Algorithm 1 drops from the teacher; the distance is squared, so that its gradient is smooth
where both are equal. The paper's text names no weight of the term: it is a setting.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import chex
import jax
import jax.numpy as jnp

from sdfp import algorithm
from sdfp.methods.interface import Method
from sdfp.models.interface import Backbone
from sdfp.settings import number
from sdfp.types import Batch, Key, LossFn, Params


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.weight_matching_l2`."""

    weight: float = number(above=0)


def squared_distance(params: Params, reference: Params) -> jax.Array:
    """||params - reference||^2 over all leaves: a scalar, float32 as parameters are.

    Raises:
        AssertionError: structures or shapes differ.
    """
    chex.assert_trees_all_equal_shapes(params, reference)
    of_leaf = lambda leaf, other: jnp.sum(jnp.square(leaf - other))
    return sum(jax.tree.leaves(jax.tree.map(of_leaf, params, reference)), jnp.zeros(()))


@cache
def matching_loss(backbone: Backbone, distance: Callable) -> LossFn:
    """L_MAE, and a distance of the student's parameters to the teacher's.

    Args:
        distance: (encoder, teacher's encoder) -> scalar. It does not depend on the example: every
            example has the same value, so that the step's mean is that value.

    References: Lee et al. 2023, Table 3.
    """
    masked = algorithm.masked_loss(backbone)

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        terms = masked(params, frozen, batch, key)
        apart = distance(params["encoder"], jax.lax.stop_gradient(frozen))
        return {**terms, "matching": jnp.broadcast_to(apart, terms["masked"].shape)}

    return loss


def matched_pretraining(
    name: str, distance: Callable, init_params: Params, *, backbone: Backbone, fit, weight: float
) -> Params:
    """Further pre-training, then the stage `name` next to its encoder by `distance`."""
    teacher = algorithm.further_pretraining(init_params, backbone=backbone, fit=fit)
    return fit(
        name,
        matching_loss(backbone, distance),
        init_params,
        recipe="self_distill",
        stream="self_distill_1",  # the batches, masks and dropout of the row it is compared with
        frozen=teacher["encoder"],
        weights={"matching": weight},
    )


def pretrain(init_params, *, backbone, fit, settings: Settings):
    return matched_pretraining(
        "weight_matching_l2",
        squared_distance,
        init_params,
        backbone=backbone,
        fit=fit,
        weight=settings.weight,
    )


METHOD = Method(pretrain, Settings)
