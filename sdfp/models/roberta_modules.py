"""The layers of RoBERTa: a post-norm encoder over packed rows, the masked-token head, a classifier.

A row may hold several documents: attention stays within one, and dropout is keyed by what a token
is (its document's place in the data set, its place in the document), never by where it stands.
Every block parameter has a leading layer axis (`nn.scan`), so a kernel is [layers, in, out].
Leaves are called kernel, bias, scale or embedding and nothing else: weight decay and freezing go
by these names.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdfp.settings import TextData, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The architecture of a RoBERTa and the rates of its three uses (`config.model`)."""

    MASKED_ONLY: ClassVar = ("mask_rate", "dropout_pretrain", "attention_dropout_pretrain")
    FINETUNE_ONLY: ClassVar = ("dropout_finetune", "attention_dropout_finetune")
    DATA: ClassVar = TextData

    vocab_size: int = number(1)
    max_positions: int = number(1)
    dim: int = number(1)
    depth: int = number(1)
    heads: int = number(1)
    mlp_dim: int = number(1)
    layer_norm_eps: float = number(above=0)
    bos_id: int = number(0)
    pad_id: int = number(0)
    eos_id: int = number(0)
    mask_id: int = number(0)
    mask_rate: float = number(above=0, below=1)
    dropout_pretrain: float = number(0, below=1)
    dropout_finetune: float = number(0, below=1)
    attention_dropout_pretrain: float = number(0, below=1)
    attention_dropout_finetune: float = number(0, below=1)

    def __post_init__(self):
        if self.dim % self.heads:
            raise UserError(
                f"config.model.dim: must be a multiple of config.model.heads ({self.heads}); "
                f"got {self.dim}"
            )
        if len(set(self.special)) < 4 or self.special[-1] >= self.vocab_size:
            raise UserError(
                "config.model.bos_id, pad_id, eos_id, mask_id: must be four ids below "
                f"config.model.vocab_size ({self.vocab_size}); got {self.special}"
            )
        if self.vocab_size == 4:
            raise UserError("config.model.vocab_size: must leave ids that are not special; got 4")
        if self.max_positions <= self.first_position:
            raise UserError(
                f"config.model.max_positions: must be above {self.first_position}, the id of the "
                f"first place; got {self.max_positions}"
            )

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that are never masked nor drawn, ascending."""
        return tuple(sorted((self.bos_id, self.pad_id, self.eos_id, self.mask_id)))

    @property
    def first_position(self) -> int:
        """The position id of a document's first token: fairseq counts on from the padding's."""
        return self.pad_id + 1


class Places(NamedTuple):
    """What each token is, [rows, length] int32 each."""

    example: jax.Array
    """The place of its document in the data set: what randomness is keyed by."""
    position: jax.Array
    """Its place in the document."""
    segment: jax.Array
    """Which document of the row it belongs to; 0 is padding."""


def token_keys(key: jax.Array, example: jax.Array, position: jax.Array) -> jax.Array:
    """One random key per token, from (key, example, position in the document).

    Args:
        key: random key.
        example: any shape, int32.
        position: same shape, int32.

    Returns:
        Random keys of that shape.
    """
    draw = lambda e, p: jax.random.fold_in(jax.random.fold_in(key, e), p)
    return _over_all(draw, example.ndim)(example, position)


def dropped(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zeroes values of x [..., values] and scales up the rest; `keys` [...] is one per row.

    16 random bits per value, two values per word: random bits are most of dropout's cost. So
    the rate is a multiple of 1 / 65536 (0.1 becomes 0.100006), and the scale fits it exactly.
    """
    threshold = min(round(rate * 65536), 65535)
    values = x.shape[-1]
    draw = lambda key: jax.random.bits(key, ((values + 1) // 2,), jnp.uint32)
    words = _over_all(draw, keys.ndim)(keys)
    halves = jnp.stack([words & 0xFFFF, words >> 16], axis=-1)
    halves = halves.reshape(*keys.shape, -1)[..., :values]
    return jnp.where(halves >= threshold, x / (1 - threshold / 65536), jnp.zeros_like(x))


class Dropout(nn.Module):
    """Dropout drawn per (key, example, position): packing and device counts change nothing."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, example, position) -> jax.Array:
        """Zeroes values of x [..., dim]; `example` and `position` are [...]."""
        if self.rate == 0:
            return x
        return dropped(x, token_keys(self.make_rng("dropout"), example, position), self.rate)


class AttentionDropout(nn.Module):
    """Dropout of attention weights, drawn per (key, example, query position, key position)."""

    rate: float

    @nn.compact
    def __call__(self, weights: jax.Array, places: Places) -> jax.Array:
        """Zeroes values of weights [rows, heads, queries, keys]."""
        if self.rate == 0:
            return weights
        queries = token_keys(self.make_rng("dropout"), places.example, places.position)
        # A key per pair, not a table per query read at `position`: no gather of that size. Pairs
        # of two documents get keys too, but their weight is 0.
        of_pair = jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None)))
        pairs = of_pair(queries, places.position)
        return dropped(weights.transpose(0, 2, 3, 1), pairs, self.rate).transpose(0, 3, 1, 2)


class Block(nn.Module):
    """One post-norm transformer block over [rows, length, dim]."""

    settings: Settings
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, places: Places) -> tuple[jax.Array, None]:
        s = self.settings
        dense = partial(_dense, dtype=self.dtype)
        norm = partial(_norm, s, self.dtype)
        drop = lambda y: Dropout(self.dropout)(y, places.example, places.position)

        y = dense(s.dim, name="out")(self.attention(x, places))
        x = norm(name="norm_attention")(x + drop(y))
        y = nn.gelu(dense(s.mlp_dim, name="mlp_in")(x), approximate=False)
        y = dense(s.dim, name="mlp_out")(y)
        return norm(name="norm_mlp")(x + drop(y)), None

    def attention(self, x: jax.Array, places: Places) -> jax.Array:
        """Self-attention within documents, before its output projection; softmax in float32."""
        rows, length, dim = x.shape
        heads = self.settings.heads
        project = lambda name: _dense(dim, dtype=self.dtype, name=name)(x).reshape(
            rows, length, heads, dim // heads
        )
        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("rqhd,rkhd->rhqk", query, key, preferred_element_type=jnp.float32)
        segment = places.segment
        together = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
        # The lowest number, not -inf: a padding query sees nothing, and its softmax must not be
        # NaN (nothing reads it, but 0 * NaN in the backward pass is NaN).
        lowest = jnp.finfo(scores.dtype).min
        scores = jnp.where(together[:, None], scores * (dim // heads) ** -0.5, lowest)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = AttentionDropout(self.attention_dropout)(weights, places)
        mixed = jnp.einsum("rhqk,rkhd->rqhd", weights.astype(self.dtype), value)
        return mixed.reshape(rows, length, dim)


class Encoder(nn.Module):
    """f_theta: embeddings and post-norm blocks."""

    settings: Settings
    dtype: Any
    dropout: float
    attention_dropout: float

    @nn.compact
    def __call__(self, tokens: jax.Array, places: Places, perturb=None) -> jax.Array:
        """Encodes rows of documents.

        Args:
            tokens: [rows, length] int32, below vocab_size. An id or a place out of range makes
                NaN, it is not clipped.
            places: what the tokens are.
            perturb: (embeddings [rows, length, dim], example, position) -> embeddings, float32,
                on those of the words before position and type are added and normalised; or None.

        Returns:
            [rows, length, dim], float32. What stands at padding means nothing.
        """
        s = self.settings
        embed = partial(nn.Embed, features=s.dim, embedding_init=nn.initializers.normal(0.02))
        x = embed(s.vocab_size, name="word")(tokens)
        x = x if perturb is None else perturb(x, places.example, places.position)
        position = jnp.where(places.segment > 0, places.position + s.first_position, s.pad_id)
        x = x + embed(s.max_positions, name="position")(position)
        x = x + embed(1, name="type")(jnp.zeros_like(tokens))
        x = _norm(s, self.dtype, name="norm_embed")(x)
        x = Dropout(self.dropout)(x, places.example, places.position)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=s.depth,
        )(s, self.dropout, self.attention_dropout, self.dtype, name="blocks")
        x, _ = blocks(x, places)
        # float32 out: losses, heads and stored teacher features read this.
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """g_phi: the masked-token head, whose last matrix is the encoder's word embedding."""

    settings: Settings
    dtype: Any

    @nn.compact
    def __call__(self, encoded: jax.Array, embedding: jax.Array) -> jax.Array:
        """Scores every word.

        Args:
            encoded: [slots, dim], final hidden states at masked positions.
            embedding: [vocab_size, dim], the encoder's; it gets gradient from here too.

        Returns:
            [slots, vocab_size] logits, float32.
        """
        s = self.settings
        x = nn.gelu(_dense(s.dim, dtype=self.dtype, name="dense")(encoded), approximate=False)
        x = _norm(s, self.dtype, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (s.vocab_size,))
        logits = jnp.einsum(
            "sd,vd->sv", x, embedding.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return logits + bias[None]


class Classifier(nn.Module):
    """The head of fine-tuning on <s>: dropout, dense and tanh, dropout, linear; float32."""

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, cls: jax.Array, example: jax.Array) -> jax.Array:
        """Classifies documents.

        Args:
            cls: [examples, dim], final hidden states at <s>.
            example: [examples] int32, what dropout is keyed by.

        Returns:
            [examples, classes] logits.
        """
        first = jnp.zeros_like(example)
        x = Dropout(self.dropout)(cls, example, first)
        x = jnp.tanh(_dense(cls.shape[-1], dtype=jnp.float32, name="dense")(x))
        x = Dropout(self.dropout)(x, example, first)
        return _dense(self.classes, dtype=jnp.float32, name="out")(x)


_dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


def _norm(settings: Settings, dtype, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nn.LayerNorm(settings.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


def _over_all(function, axes: int):
    """The function of scalars, over arrays with that many axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function
