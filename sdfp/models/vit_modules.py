"""The layers of ViT-MAE: an encoder that can skip hidden patches, and a light decoder.

Every block parameter has a leading layer axis (`nn.scan`), so a kernel is [layers, in, out].
Leaves are called kernel, bias, scale, pos_embed, cls_token or mask_token and nothing else:
weight decay and freezing go by these names.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdfp.models import vit_positions
from sdfp.settings import Data, choice, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The architecture of a ViT-MAE and the rates of its three uses (`config.model`)."""

    MASKED_ONLY: ClassVar = ("mask_ratio", "normalize_targets", "dropout_pretrain")
    FINETUNE_ONLY: ClassVar = ("dropout_finetune",)
    DATA: ClassVar = Data

    image_size: int = number(1)
    patch_size: int = number(1)
    channels: int = number(1)
    dim: int = number(1)
    depth: int = number(1)
    heads: int = number(1)
    mlp_dim: int = number(1)
    decoder_dim: int = number(1)
    decoder_depth: int = number(1)
    decoder_heads: int = number(1)
    decoder_mlp_dim: int = number(1)
    layer_norm_eps: float = number(above=0)
    qkv_bias: bool = choice(True, False)
    mask_ratio: float = number(above=0, below=1)
    normalize_targets: bool = choice(True, False)
    dropout_pretrain: float = number(0, below=1)
    dropout_finetune: float = number(0, below=1)

    def __post_init__(self):
        for part in ("", "decoder_"):
            dim, heads = getattr(self, f"{part}dim"), getattr(self, f"{part}heads")
            if dim % heads or dim % 4:
                raise UserError(
                    f"config.model.{part}dim: must be a multiple of 4 (sine-cosine positions) and "
                    f"of config.model.{part}heads ({heads}); got {dim}"
                )
        if self.image_size % self.patch_size:
            raise UserError(
                f"config.model.image_size: must be a multiple of config.model.patch_size "
                f"({self.patch_size}); got {self.image_size}"
            )
        if not 0 < self.visible < self.patches:
            raise UserError(
                f"config.model.mask_ratio: must leave at least one of {self.patches} patches "
                f"visible and one hidden; got {self.mask_ratio}"
            )
        if self.normalize_targets and self.patch_pixels == 1:
            raise UserError(
                "config.model.normalize_targets: needs patches of more than one value; got True"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    @property
    def patch_pixels(self) -> int:
        """Values of a patch, all channels."""
        return self.patch_size**2 * self.channels

    @property
    def visible(self) -> int:
        """Patches that the encoder sees under a mask, rounded down as MAE does."""
        return int(self.patches * (1 - self.mask_ratio))


class Dropout(nn.Module):
    """Dropout drawn per (key, example index), so that no device count changes it."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        """Zeroes values of x [examples, tokens, dim] and scales up the rest."""
        if self.rate == 0:
            return x
        key = self.make_rng("dropout")
        draw = lambda i: jax.random.bernoulli(
            jax.random.fold_in(key, i), 1 - self.rate, x.shape[1:]
        )
        return jnp.where(jax.vmap(draw)(index), x / (1 - self.rate), jnp.zeros_like(x))


class Block(nn.Module):
    """One pre-norm transformer block over [examples, tokens, dim]."""

    heads: int
    mlp_dim: int
    eps: float
    qkv_bias: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> tuple[jax.Array, None]:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        norm = partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)
        dim = x.shape[-1]

        y = norm(name="norm_attention")(x)
        y = dense(dim, name="out")(self.attention(y))
        x = x + Dropout(self.dropout)(y, index)

        y = norm(name="norm_mlp")(x)
        y = nn.gelu(dense(self.mlp_dim, name="mlp_in")(y), approximate=False)
        y = dense(dim, name="mlp_out")(y)
        return x + Dropout(self.dropout)(y, index), None

    def attention(self, x: jax.Array) -> jax.Array:
        """Multi-head self-attention before its output projection; softmax in float32."""
        examples, tokens, dim = x.shape
        # MAE's Xavier bound is that of one fused [dim, 3 dim] projection: half the variance.
        kernel_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        project = lambda name: nn.Dense(
            dim, self.qkv_bias, dtype=self.dtype, kernel_init=kernel_init, name=name
        )(x).reshape(examples, tokens, self.heads, dim // self.heads)
        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("eqhd,ekhd->ehqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * (dim // self.heads) ** -0.5, axis=-1)
        mixed = jnp.einsum("ehqk,ekhd->eqhd", weights.astype(self.dtype), value)
        return mixed.reshape(examples, tokens, dim)


def blocks(depth: int, **fields) -> nn.Module:
    """`depth` blocks as one scanned module, parameters stacked on a leading layer axis."""
    scanned = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=depth,
    )
    return scanned(**fields, name="blocks")


class Encoder(nn.Module):
    """f_theta: a plain ViT up to its final LayerNorm."""

    settings: Settings
    dtype: Any
    dropout: float

    @nn.compact
    def __call__(self, patches, index, position=None, perturb=None) -> jax.Array:
        """Encodes patches.

        Args:
            patches: [examples, tokens, pixels of a patch].
            index: [examples], what dropout is keyed by.
            position: [examples, tokens], the place of each patch; None for all in order.
            perturb: (embeddings [examples, tokens, dim], index, position) -> embeddings, on
                those of the patches before positions are added; or None.

        Returns:
            [examples, 1 + tokens, dim], [CLS] first, float32.
        """
        s = self.settings
        small = nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", small, (1, 1, s.dim))
        pos_embed = self.param(
            "pos_embed", lambda _: jnp.asarray(vit_positions.sincos(s.dim, s.grid))
        )
        x = nn.Dense(
            s.dim,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="patch_embed",
        )(patches)
        if perturb is not None:
            place = jnp.arange(x.shape[1])[None] if position is None else position
            x = perturb(x, *jnp.broadcast_arrays(index[:, None], place))
        x = x + _places(pos_embed, position).astype(x.dtype)
        first = jnp.broadcast_to(cls_token + pos_embed[:, :1], (x.shape[0], 1, s.dim))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        x = Dropout(self.dropout)(x, index)
        x, _ = blocks(
            s.depth,
            heads=s.heads,
            mlp_dim=s.mlp_dim,
            eps=s.layer_norm_eps,
            qkv_bias=s.qkv_bias,
            dropout=self.dropout,
            dtype=self.dtype,
        )(x, index)
        # float32 out: losses, heads and stored teacher features read this.
        return nn.LayerNorm(
            s.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name="norm"
        )(x)


class Decoder(nn.Module):
    """g_phi: predicts the pixels of the hidden patches."""

    settings: Settings
    dtype: Any

    @nn.compact
    def __call__(self, encoded, visible, hidden) -> jax.Array:
        """Decodes the hidden patches. Nothing is shuffled back: attention has no order.

        Args:
            encoded: [examples, 1 + visible, dim], [CLS] first.
            visible: [examples, visible], the places of the encoded patches.
            hidden: [examples, hidden], the places to predict.

        Returns:
            [examples, hidden, pixels of a patch].
        """
        s = self.settings
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, s.decoder_dim))
        pos_embed = self.param(
            "pos_embed", lambda _: jnp.asarray(vit_positions.sincos(s.decoder_dim, s.grid))
        )
        x = dense(s.decoder_dim, name="embed")(encoded)
        seen = x[:, 1:] + _places(pos_embed, visible).astype(x.dtype)
        guess = (mask_token + _places(pos_embed, hidden)).astype(x.dtype)
        x = jnp.concatenate([x[:, :1] + pos_embed[:, :1].astype(x.dtype), seen, guess], axis=1)
        x, _ = blocks(
            s.decoder_depth,
            heads=s.decoder_heads,
            mlp_dim=s.decoder_mlp_dim,
            eps=s.layer_norm_eps,
            qkv_bias=s.qkv_bias,
            dropout=0.0,
            dtype=self.dtype,
        )(x, None)
        x = x[:, -hidden.shape[1] :]
        x = nn.LayerNorm(s.layer_norm_eps, dtype=self.dtype, use_fast_variance=False, name="norm")(
            x
        )
        return dense(s.patch_pixels, name="pred")(x)


def _places(pos_embed: jax.Array, position: jax.Array | None) -> jax.Array:
    """Rows of pos_embed [1, 1 + patches, dim] for patches at `position`, [CLS] not counted."""
    return pos_embed[:, 1:] if position is None else pos_embed[0, 1 + position]
