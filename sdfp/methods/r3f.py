"""Row "R3F": predictions may not change when the embeddings are moved a little.

Aghajanyan, Shrivastava, Gupta, Goyal, Zettlemoyer, Gupta: Better Fine-Tuning by Reducing
Representational Collapse, ICLR 2021 (R3F, without R4F's spectral normalisation):

    CE(f(x), y) + lambda [KL(p(x) || p(x + z)) + KL(p(x + z) || p(x))]

z is added to what words or patches are embedded as, before positions. As in the authors' code the
noised pass sees embeddings without gradient, and the gradient of both KL terms flows into both
passes. Published: U(-eps, eps) or N(0, eps^2), eps = 1e-5, lambda = 1 (0.7 in one recipe).
Lee et al. 2023 (section 4) say Gaussian noise and no values: normal is our default.
"""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from sdfp import losses
from sdfp.methods.interface import Method
from sdfp.models.interface import Backbone
from sdfp.settings import choice, number
from sdfp.types import Batch, Key, LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.r3f`."""

    noise: str = choice("normal", "uniform")
    epsilon: float = number(above=0)
    weight: float = number(0)


def draw_noise(key: Key, example, position, dim: int, *, kind: str, epsilon: float) -> jax.Array:
    """Noise per (key, example, position): no batch, packing or device count changes it.

    Args:
        example: [..., tokens] int32, the place of each token's example in the data set.
        position: same shape, its place in the example.
        dim: values per token.
        kind: "normal" for N(0, epsilon^2), "uniform" for U(-epsilon, epsilon).

    Returns:
        [..., tokens, dim], float32 (1e-5 next to 0.5 is rounded away in bfloat16).
    """
    draw = {"normal": jax.random.normal, "uniform": _between_minus_one_and_one}[kind]

    def of_token(example, position):
        token_key = jax.random.fold_in(jax.random.fold_in(key, example), position)
        return epsilon * draw(token_key, (dim,), jnp.float32)

    return jnp.vectorize(of_token, signature="(),()->(dim)")(example, position)


def _between_minus_one_and_one(key: Key, shape, dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


@cache
def finetune_loss(backbone: Backbone, settings: Settings) -> LossFn:
    """Cross-entropy of the clean pass, and how far the noised pass's prediction is from it."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        # Two passes as two forward calls would be: each drops out for itself.
        clean_key, noised_key, noise_key = jax.random.split(key, 3)

        def perturb(embeddings, example, position):
            stopped = jax.lax.stop_gradient(embeddings).astype(jnp.float32)
            return stopped + draw_noise(
                noise_key,
                example,
                position,
                embeddings.shape[-1],
                kind=settings.noise,
                epsilon=settings.epsilon,
            )

        clean = backbone.logits(params, batch, clean_key, train=True)
        noised = backbone.logits(params, batch, noised_key, train=True, perturb=perturb)
        distance = losses.kl_divergence(clean, noised) + losses.kl_divergence(noised, clean)
        return {
            "cross_entropy": losses.cross_entropy(clean, batch["label"]),
            "symmetric_kl": settings.weight * distance,
        }

    return loss


# The noise and what it does to the logits are below the resolution of bfloat16 and of tf32: the
# row would be plain fine-tuning with rounding errors for noise. So it is always in float32.
METHOD = Method(settings=Settings, finetune_loss=finetune_loss, float32=True)
