"""The layers of RoBERTa: a post-norm encoder over packed rows, the masked-token head, a classifier.

A row may hold several documents: attention stays within one, and dropout is keyed by what a token
is (its document's place in the data set, its place in the document), never by where it stands.
Every block parameter has a leading layer axis (models/stack.py), so a kernel is [layers, in, out].
Leaves are called kernel, bias, scale or embedding and nothing else: weight decay and freezing go
by these names.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdfp.models import stack
from sdfp.models.attention import attention
from sdfp.models.dropout import Dropout, dropped, token_keys
from sdfp.settings import TextData, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The architecture of a RoBERTa and the rates of its three uses (`config.model`)."""

    MASKED_ONLY: ClassVar = ("mask_rate", "dropout_pretrain", "attention_dropout_pretrain")
    FINETUNE_ONLY: ClassVar = ("dropout_finetune", "attention_dropout_finetune")
    PORTABLE: ClassVar[dict[str, Any]] = {}
    DATA: ClassVar = TextData
    # No config.model.attention here: several documents in a row take a mask, and attention weights
    # have dropout; cuDNN's attention, as jax offers it, has neither (see `attention.fused`).
    cudnn_shapes: ClassVar = ()

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
    def __call__(self, x: jax.Array, places: Places, read=lambda tokens: tokens) -> jax.Array:
        """Transforms x.

        Args:
            x: [rows, length, dim].
            places: what the tokens are.
            read: [rows, length, ...] -> the tokens that are wanted.

        Returns:
            What `read` takes of [rows, length, dim].
        """
        s = self.settings
        dense = partial(_dense, dtype=self.dtype)
        norm = partial(_norm, s, self.dtype)

        # Attention of all tokens, read or not: gathering the keys and values of each that is read
        # would cost more.
        mixed = read(self.attention(x, places))
        x, places = read(x), jax.tree.map(read, places)
        drop = lambda y: Dropout(self.dropout)(y, places.example, places.position)
        x = norm(name="norm_attention")(x + drop(dense(s.dim, name="out")(mixed)))
        y = nn.gelu(dense(s.mlp_dim, name="mlp_in")(x), approximate=False)
        y = dense(s.dim, name="mlp_out")(y)
        return norm(name="norm_mlp")(x + drop(y))

    def attention(self, x: jax.Array, places: Places) -> jax.Array:
        """Self-attention within documents, before its output projection."""
        project = lambda name: _dense(x.shape[-1], dtype=self.dtype, name=name)(x)
        query, key, value = project("query"), project("key"), project("value")
        segment = places.segment
        together = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
        drop = lambda weights: AttentionDropout(self.attention_dropout)(weights, places)
        return attention(query, key, value, self.settings.heads, together, drop)


class Encoder(nn.Module):
    """f_theta: embeddings and post-norm blocks."""

    settings: Settings
    dtype: Any
    dropout: float
    attention_dropout: float

    @nn.compact
    def __call__(self, tokens: jax.Array, places: Places, perturb=None, read=None) -> jax.Array:
        """Encodes rows of documents.

        Args:
            tokens: [rows, length] int32, below vocab_size. An id or a place out of range makes
                NaN, it is not clipped.
            places: what the tokens are.
            perturb: (embeddings [rows, length, dim], example, position) -> embeddings, float32,
                on those of the words before position and type are added and normalised; or None.
            read: see `stack.run`.

        Returns:
            [rows, length, dim], float32; of them, what `read` takes. What stands at padding means
            nothing.
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
        block = Block(s, self.dropout, self.attention_dropout, self.dtype, parent=None)
        layers = self.param("blocks", stack.init(block, s.depth), x, places)
        key = self.make_rng("dropout") if self.dropout or self.attention_dropout else None
        x = stack.run(block, layers, x, places, key=key, read=read)
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
