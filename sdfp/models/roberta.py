"""RoBERTa (Liu et al. 2019) as a `Backbone`: masked language modelling of packed documents.

A batch holds rows of tokens, each with one document or several, and a table of the documents:

- `tokens`, `segment`, `position`, `document` [rows, length] int32: the token's id (<pad> where
  empty); 1, 2, ... for the document of the row it belongs to and 0 for padding; its place in the
  document, from 0; the table row of its document (any number at padding).
- `index` [examples] int32, `weight` [examples]: as in every batch; `row`, `start` [examples]
  int32: where the document's <s> stands; `length` [examples] int32: its tokens, <s> and </s>
  counted (only for the features of all tokens). A table row without a document has weight 0.

Everything per example is the same, to rounding, however the documents are packed.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sdfp import losses
from sdfp.models import dropout, interface, roberta_config, roberta_modules, roberta_weights

Settings = roberta_modules.Settings
read_config = roberta_config.read_config

OVERFLOW = 1e-12
"""Bound on the probability that a batch draws more masked positions than it has slots."""


class Mask(NamedTuple):
    """What the encoder reads, and the positions to predict in a fixed number of slots."""

    tokens: jax.Array
    """[rows, length] int32: <mask>, a random word or the word itself at the masked positions."""
    row: jax.Array
    """[slots] int32, in reading order of the rows; 0 in a free slot, as the next three."""
    column: jax.Array
    """[slots] int32."""
    target: jax.Array
    """[slots] int32: the word that was there."""
    example: jax.Array
    """[slots] int32: the table row of its document."""
    valid: jax.Array
    """[slots] bool: False in a free slot."""
    overflow: jax.Array
    """[] int32: masked positions without a slot. Above 0 every loss of the batch is NaN."""


def slots(settings: Settings, tokens: int) -> int:
    """How many masked positions a batch of that many tokens has room for.

    Bernstein's inequality for a sum of independent draws: more than this many have a
    probability of at most `OVERFLOW`. 10% above the mean for 32,768 tokens at rate 0.15.
    """
    spread = tokens * settings.mask_rate * (1 - settings.mask_rate)
    surprise = -math.log(OVERFLOW)
    margin = surprise / 3 + math.sqrt((surprise / 3) ** 2 + 2 * surprise * spread)
    return min(tokens, math.ceil(tokens * settings.mask_rate + margin))


def draw_mask(settings: Settings, batch, key, room: int | None = None) -> Mask:
    """Dynamic masking, drawn per (key, example index, position in the document).

    Each word is masked with probability `mask_rate`; of the masked 80% become <mask>, 10% a
    random word, 10% stay. Special tokens are neither masked nor drawn (as fairseq does;
    transformers' collator may draw them).

    Args:
        batch: see the module.
        key: random key.
        room: number of slots; None for `slots` of the batch.

    Returns:
        Mask.

    References: Liu et al. 2019, section 4.1; Devlin et al. 2019, section 3.1.
    """
    places, tokens = places_of(batch), batch["tokens"]
    special = jnp.asarray(settings.special, jnp.int32)

    def draw(key):
        choose, replace = jax.random.split(key)
        word = jax.random.randint(replace, (), 0, settings.vocab_size - len(special))
        return *jax.random.uniform(choose, (2,)), word

    keys = dropout.token_keys(key, places.example, places.position)
    chance, kind, word = jax.vmap(jax.vmap(draw))(keys)
    for taken in settings.special:  # ascending: count on over the ids that are not to be drawn
        word = word + (word >= taken)
    ordinary = (places.segment > 0) & jnp.all(tokens[..., None] != special[None, None], axis=-1)
    masked = ordinary & (chance < settings.mask_rate)
    replaced = jnp.where(kind < 0.8, settings.mask_id, jnp.where(kind < 0.9, word, tokens))

    room = slots(settings, tokens.size) if room is None else room
    (place,) = jnp.nonzero(masked.reshape(-1), size=room, fill_value=tokens.size)
    valid = place < tokens.size
    place = jnp.where(valid, place, 0).astype(jnp.int32)
    read = lambda of_token: jnp.where(valid, of_token.reshape(-1)[place], 0).astype(jnp.int32)
    return Mask(
        tokens=jnp.where(masked, replaced, tokens).astype(jnp.int32),
        row=place // tokens.shape[1],
        column=place % tokens.shape[1],
        target=read(tokens),
        example=read(batch["document"]),
        valid=valid,
        overflow=jnp.maximum(jnp.sum(masked, dtype=jnp.int32) - room, 0),
    )


def places_of(batch) -> roberta_modules.Places:
    """What each token of the batch is; the shapes are checked."""
    by_token = [batch[name] for name in ("tokens", "segment", "position", "document")]
    chex.assert_rank(by_token, 2)
    chex.assert_equal_shape(by_token)
    used = batch["segment"] > 0
    example = batch["index"][jnp.where(used, batch["document"], 0)]
    return roberta_modules.Places(example, batch["position"], batch["segment"])


def encode(
    settings: Settings, dtype, rates, encoder, batch, key, tokens=None, perturb=None, read=None
) -> jax.Array:
    """Runs the encoder.

    Args:
        rates: dropout rates of hidden states and of attention weights; (0, 0) needs no key.
        encoder: parameters.
        tokens: [rows, length] in place of the batch's own, or None.
        perturb: see `interface.Backbone.logits`, or None.
        read: see `stack.run`.

    Returns:
        [rows, length, dim], float32; of them, what `read` takes.

    Raises:
        AssertionError: the batch's arrays by token are not of one shape [rows, length].
    """
    module = roberta_modules.Encoder(settings, dtype, *rates)
    encoded: Any = module.apply(
        {"params": encoder},
        batch["tokens"] if tokens is None else tokens,
        places_of(batch),
        perturb,
        read,
        rngs={"dropout": key} if any(rates) else None,
    )
    return encoded


def first_tokens(batch) -> Callable:
    """[rows, length, ...] -> [examples, ...]: each document's <s>."""
    return lambda tokens: tokens[batch["row"], batch["start"]]


def by_document(hidden_states: jax.Array, batch, longest: int) -> jax.Array:
    """[rows, length, dim] -> [examples, longest, dim], 0 behind each document's end."""
    place = jnp.arange(longest)[None]
    column = jnp.minimum(batch["start"][:, None] + place, hidden_states.shape[1] - 1)
    values = hidden_states[batch["row"][:, None], column]
    return jnp.where((place < batch["length"][:, None])[..., None], values, 0.0)


def reconstruction_loss(prediction, batch, mask: Mask) -> jax.Array:
    """Mean cross-entropy over each document's masked positions.

    Args:
        prediction: [slots, vocab_size] logits.
        batch: needs `index` [examples].
        mask: the one predicted under.

    Returns:
        [examples], in nats; 0 where nothing is masked. All NaN where `mask.overflow` is above 0:
        a position is never dropped silently, and a step with such a loss is skipped and counted.

    Raises:
        AssertionError: prediction and mask do not have the same slots.

    References: Lee et al. 2023, Eq. 1: Z is each document's own number of masked positions.
    """
    return masked_mean(losses.cross_entropy(prediction, mask.target), batch, mask)


def prediction_distance(prediction, teacher, batch, mask: Mask) -> jax.Array:
    """KL(teacher || student) at the masked positions; arguments, result and References as
    `reconstruction_loss`."""
    return masked_mean(
        losses.kl_divergence(jax.lax.stop_gradient(teacher), prediction), batch, mask
    )


def masked_mean(value: jax.Array, batch, mask: Mask) -> jax.Array:
    """Mean of `value` [slots] over each document's masked positions: [examples]."""
    value = jnp.where(mask.valid, value, 0.0)
    total = partial(
        jax.ops.segment_sum, segment_ids=mask.example, num_segments=batch["index"].shape[0]
    )
    mean = total(value) / jnp.maximum(total(mask.valid.astype(jnp.float32)), 1.0)
    return jnp.where(mask.overflow > 0, jnp.nan, mean)


def picture(settings: Settings, reconstruct: Callable, params, batch, key) -> jax.Array:
    """What the model makes of masked rows: [rows, 3, length] int32 token ids: the masked input,
    the same with the likeliest word at the masked positions, the original."""
    mask = draw_mask(settings, batch, key)
    likeliest = jnp.argmax(reconstruct(params, batch, mask, key, False), axis=-1)
    # A free slot points outside of the rows, where nothing is written.
    row = jnp.where(mask.valid, mask.row, batch["tokens"].shape[0])
    guess = mask.tokens.at[row, mask.column].set(likeliest.astype(jnp.int32), mode="drop")
    return jnp.stack([mask.tokens, guess, batch["tokens"]], axis=1)


def init(settings: Settings, dtype, key) -> dict:
    """Random `{"encoder", "decoder"}`: normal of std 0.02, biases 0 and the embeddings of <pad>, of
    word and of position, 0, as RoBERTa starts."""
    encoder_key, decoder_key = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    places = roberta_modules.Places(tokens, tokens, tokens + 1)
    module = roberta_modules.Encoder(settings, dtype, 0.0, 0.0)
    encoder: Any = module.init(encoder_key, tokens, places)["params"]
    for table in ("word", "position"):
        embedding = encoder[table]["embedding"].at[settings.pad_id].set(0.0)
        encoder = {**encoder, table: {"embedding": embedding}}
    decoder = roberta_modules.Decoder(settings, dtype)
    embedding = encoder["word"]["embedding"]
    fresh = decoder.init(decoder_key, jnp.zeros((1, settings.dim)), embedding)["params"]
    return {"encoder": encoder, "decoder": fresh}


def add_head(settings: Settings, params, num_classes: int, key) -> dict:
    """`{"encoder", "head"}`: RoBERTa's two-layer classifier, kernels of std 0.02, biases 0."""
    head = roberta_modules.Classifier(num_classes, 0.0)
    fresh = head.init(key, jnp.zeros((1, settings.dim)), jnp.zeros(1, jnp.int32))
    return {"encoder": params["encoder"], "head": fresh["params"]}


def make(settings: Settings, dtype) -> interface.Backbone:
    """Builds the pure functions of a RoBERTa.

    Args:
        settings: architecture and rates.
        dtype: compute type (float32 or bfloat16). Parameters, softmax, normalisation
            statistics, features, logits and losses are float32 in either case.

    Returns:
        interface.Backbone. `reconstruct` gives [slots, vocab_size] and its gradient reaches the
        word embedding twice, as input and as the head's tied matrix. `features` of "all" tokens
        are [examples, longest, dim], the most tokens that the model takes, so that packing
        changes no shape, and 0 behind a document's end. `perturb` is called on the word
        embeddings [rows, length, dim]. `picture` gives token ids [rows, 3, length].

    References: Liu et al. 2019; Gururangan et al. 2020 (TAPT); Lee et al. 2023, section 3.
    """
    s = settings
    decoder = roberta_modules.Decoder(s, dtype)
    encode_ = partial(encode, s, dtype)
    pretrain = lambda on: (s.dropout_pretrain, s.attention_dropout_pretrain) if on else (0.0, 0.0)
    finetune = lambda on: (s.dropout_finetune, s.attention_dropout_finetune) if on else (0.0, 0.0)

    def reconstruct(params, batch, mask, key, train):
        encoder = params["encoder"]
        here = lambda tokens: tokens[mask.row, mask.column]
        encoded = encode_(pretrain(train), encoder, batch, key, tokens=mask.tokens, read=here)
        return decoder.apply({"params": params["decoder"]}, encoded, encoder["word"]["embedding"])

    def features(encoder, batch, key, train, tokens="cls", perturb=None):
        if tokens not in ("cls", "all"):
            raise ValueError(f"tokens is 'cls' or 'all', not {tokens!r}")
        encoded = partial(encode_, pretrain(train), encoder, batch, key, perturb=perturb)
        if tokens == "cls":
            return encoded(read=first_tokens(batch))
        return by_document(encoded(), batch, s.max_positions - s.first_position)

    def logits(params, batch, key, train, perturb=None):
        rates, read = finetune(train), first_tokens(batch)
        cls = encode_(rates, params["encoder"], batch, key, perturb=perturb, read=read)
        head = roberta_modules.Classifier(params["head"]["out"]["bias"].shape[-1], rates[0])
        # Another key: the head must not draw what the encoder draws for the same <s>.
        rngs = {"dropout": jax.random.fold_in(key, 1)} if rates[0] else None
        return head.apply({"params": params["head"]}, cls, batch["index"], rngs=rngs)

    return interface.Backbone(
        init=jax.jit(partial(init, s, dtype)),
        mask=partial(draw_mask, s),
        reconstruct=reconstruct,
        reconstruction_loss=reconstruction_loss,
        prediction_distance=prediction_distance,
        features=features,
        logits=logits,
        add_head=partial(add_head, s),
        from_torch=partial(roberta_weights.from_torch, settings=s),
        to_torch=partial(roberta_weights.to_torch, settings=s),
        picture=partial(picture, s, reconstruct),
    )
