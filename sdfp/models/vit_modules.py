"""The layers of ViT-MAE: an encoder that can skip hidden patches, and a light decoder.

Every block parameter has a leading layer axis (models/stack.py), so a kernel is [layers, in, out].
Leaves are called kernel, bias, scale, pos_embed, cls_token or mask_token and nothing else:
weight decay and freezing go by these names.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdfp.models import stack, vit_positions
from sdfp.models.attention import Shape, attention, fused
from sdfp.models.dropout import Dropout
from sdfp.settings import Data, choice, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The architecture of a ViT-MAE and the rates of its three uses (`config.model`)."""

    # Every training stage depends on how attention is computed (by rounding), theta_init does not.
    MASKED_ONLY: ClassVar = ("mask_ratio", "normalize_targets", "dropout_pretrain", "attention")
    FINETUNE_ONLY: ClassVar = ("dropout_finetune", "attention")
    PORTABLE: ClassVar[dict[str, Any]] = {"attention": "plain"}
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
    attention: str = choice("plain", "cudnn")

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

    @property
    def cudnn_shapes(self) -> tuple[Shape, ...]:
        """What cuDNN is to compute attention over: of the encoder with and without a mask, of the
        decoder; empty where it is not asked for."""
        if self.attention == "plain":
            return ()
        encoder = self.heads, self.dim // self.heads
        decoder = self.decoder_heads, self.decoder_dim // self.decoder_heads
        masked, whole = 1 + self.visible, 1 + self.patches
        return Shape(masked, *encoder), Shape(whole, *encoder), Shape(whole, *decoder)


class Places(NamedTuple):
    """What each token is, [examples, tokens] int32 each."""

    example: jax.Array
    """The place of its example in the data set."""
    position: jax.Array
    """Its own in the example: 0 for [CLS], then the patches'."""


class Block(nn.Module):
    """One pre-norm transformer block over [examples, tokens, dim]."""

    heads: int
    mlp_dim: int
    eps: float
    qkv_bias: bool
    dropout: float
    dtype: Any
    cudnn: bool = False
    """Whether attention of all tokens is cuDNN's, where the compute type is bfloat16."""

    @nn.compact
    def __call__(self, x: jax.Array, places: Places | None, read=lambda tokens: tokens):
        """Transforms x.

        Args:
            x: [examples, tokens, dim].
            places: what the tokens are; None where there is no dropout.
            read: [examples, tokens, ...] -> the part of the tokens that is wanted; the others
                give their keys and values.

        Returns:
            What `read` takes of [examples, tokens, dim].
        """
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        norm = partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)
        drop = lambda y: Dropout(self.dropout)(y, *(places or (None, None)))
        dim = x.shape[-1]

        y = norm(name="norm_attention")(x)
        y = dense(dim, name="out")(self.attention(read(y), y))
        x, places = read(x), jax.tree.map(read, places)
        x = x + drop(y)

        y = norm(name="norm_mlp")(x)
        y = nn.gelu(dense(self.mlp_dim, name="mlp_in")(y), approximate=False)
        y = dense(dim, name="mlp_out")(y)
        return x + drop(y)

    def attention(self, reading: jax.Array, x: jax.Array) -> jax.Array:
        """Attention of `reading` to x before its output projection."""
        # MAE's Xavier bound is that of one fused [dim, 3 dim] projection: half the variance.
        kernel_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        project = lambda name, y: nn.Dense(
            y.shape[-1], self.qkv_bias, dtype=self.dtype, kernel_init=kernel_init, name=name
        )(y)
        query, key, value = project("query", reading), project("key", x), project("value", x)
        everything = query.shape == key.shape
        # Not under the `vmap` of `stack.init`, which cuDNN's lacks; nobody reads that result.
        wanted = self.cudnn and not self.is_initializing()
        if wanted and everything and query.dtype == jnp.bfloat16:
            return fused(query, key, value, self.heads)
        return attention(query, key, value, self.heads)


class Encoder(nn.Module):
    """f_theta: a plain ViT up to its final LayerNorm."""

    settings: Settings
    dtype: Any
    dropout: float

    @nn.compact
    def __call__(self, patches, index, position=None, perturb=None, read=None) -> jax.Array:
        """Encodes patches.

        Args:
            patches: [examples, tokens, pixels of a patch].
            index: [examples], what dropout is keyed by.
            position: [examples, tokens], the place of each patch; None for all in order.
            perturb: (embeddings [examples, tokens, dim], index, position) -> embeddings, on
                those of the patches before positions are added; or None.
            read: see `stack.run`.

        Returns:
            [examples, 1 + tokens, dim], [CLS] first, float32; of them, what `read` takes.
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
        place = jnp.arange(x.shape[1])[None] if position is None else position
        if perturb is not None:
            x = perturb(x, *jnp.broadcast_arrays(index[:, None], place))
        x = x + _places(pos_embed, position).astype(x.dtype)
        first = jnp.broadcast_to(cls_token + pos_embed[:, :1], (x.shape[0], 1, s.dim))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        places = None
        if self.dropout:
            place = jnp.pad(place + 1, ((0, 0), (1, 0)))  # [CLS] is at 0
            places = Places(*jnp.broadcast_arrays(index[:, None], place))
            x = Dropout(self.dropout)(x, *places)
        block = Block(
            s.heads,
            s.mlp_dim,
            s.layer_norm_eps,
            s.qkv_bias,
            self.dropout,
            self.dtype,
            cudnn=s.attention == "cudnn",
            parent=None,
        )
        layers = self.param("blocks", stack.init(block, s.depth), x, places)
        key = self.make_rng("dropout") if self.dropout else None
        x = stack.run(block, layers, x, places, key=key, read=read)
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
        block = Block(
            s.decoder_heads,
            s.decoder_mlp_dim,
            s.layer_norm_eps,
            s.qkv_bias,
            0.0,
            self.dtype,
            cudnn=s.attention == "cudnn",
            parent=None,
        )
        layers = self.param("blocks", stack.init(block, s.decoder_depth), x, None)
        guessed = lambda tokens: tokens[:, -hidden.shape[1] :]
        x = stack.run(block, layers, x, None, read=guessed)
        x = nn.LayerNorm(s.layer_norm_eps, dtype=self.dtype, use_fast_variance=False, name="norm")(
            x
        )
        return dense(s.patch_pixels, name="pred")(x)


def _places(pos_embed: jax.Array, position: jax.Array | None) -> jax.Array:
    """Rows of pos_embed [1, 1 + patches, dim] for patches at `position`, [CLS] not counted."""
    return pos_embed[:, 1:] if position is None else pos_embed[0, 1 + position]
