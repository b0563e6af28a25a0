"""A ViT-MAE small enough for tests, and images for it."""

import jax
import jax.numpy as jnp

from sdfp.models import vit_mae

SIZES: dict = {
    "image_size": 16,
    "patch_size": 4,
    "channels": 3,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
    "decoder_dim": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "decoder_mlp_dim": 16,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "mask_ratio": 0.75,
    "normalize_targets": True,
    "dropout_pretrain": 0.0,
    "dropout_finetune": 0.0,
    "attention": "plain",
}


def settings(**changes) -> vit_mae.Settings:
    """16 patches of 4 x 4 RGB pixels, 4 of them visible."""
    return vit_mae.Settings(**{**SIZES, **changes})


def batch(examples=3, side=16, channels=3, seed=0):
    image = jax.random.normal(jax.random.key(seed), (examples, side, side, channels))
    return {"image": image, "index": 10 + jnp.arange(examples), "weight": jnp.ones(examples)}
