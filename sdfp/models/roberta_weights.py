"""RoBERTa weights and configuration between transformers' names and ours: no files.

One naming is read and written: the hub's, whose encoder may lack its `roberta.` prefix.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_type_hints

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdfp import checked
from sdfp.models import vit_config
from sdfp.models.roberta_modules import Settings
from sdfp.models.vit_weights import Renaming
from sdfp.types import UserError, some

# Ours: theirs, without "roberta.".
SINGLE = {
    "encoder/word": "embeddings.word_embeddings",
    "encoder/position": "embeddings.position_embeddings",
    "encoder/type": "embeddings.token_type_embeddings",
    "encoder/norm_embed": "embeddings.LayerNorm",
    "decoder/dense": "lm_head.dense",
    "decoder/norm": "lm_head.layer_norm",
    "decoder/bias": "lm_head.bias",
    "head/dense": "classifier.dense",
    "head/out": "classifier.out_proj",
}
STACK = "encoder.layer"
IN_BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "norm_mlp": "output.LayerNorm",
}
# The head's tensors that transformers keeps twice: the second name must hold the same values.
TIED = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
SIZES = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
}
IDS = {"bos_id": "bos_token_id", "pad_id": "pad_token_id", "eos_id": "eos_token_id"}


class Slot(NamedTuple):
    """One PyTorch tensor and where it goes."""

    path: tuple[str, ...]
    layer: int | None
    name: str


def from_torch(
    tensors: Mapping[str, np.ndarray], settings: Settings, head: bool = False
) -> tuple[dict, Renaming]:
    """Renames PyTorch tensors, transposes kernels, stacks layers.

    Args:
        tensors: arrays by transformers' names; `roberta.` and a leading `model.` or `module.`
            may be there or not. `position_ids` of old files are passed over.
        settings: the architecture.
        head: False for pre-training and fine-tuning, which start with a fresh head: a head in
            the file is left out. True for a classifier: a masked-token head is left out.

    Returns:
        `{"encoder", "decoder"}`, with `head` `{"encoder", "head"}`, of float32 arrays, without
        what the file does not have, and a Renaming.

    Raises:
        UserError: a block's tensor has no place here (more layers, another architecture), two
            tensors claim one place, a masked-token head that is not tied to the embeddings.
    """
    if settings.depth > len(tensors):  # before lists of that length are made
        raise UserError(f"config.json says {settings.depth} layers, too many for these tensors")
    parts = ("encoder", "head" if head else "decoder")
    slots = [slot for slot in _slots(settings) if slot.path[0] in parts]
    places = {slot.name: slot for slot in slots}
    by_name: dict[str, str] = {}
    loaded, left_out, found = [], [], {}
    for name in tensors:
        plain = _plain(name)
        if plain.endswith("position_ids"):
            continue
        if plain in by_name:
            raise UserError(f"two tensors for one parameter: {by_name[plain]} and {name}")
        by_name[plain] = name
    if not head:
        by_name = _untwinned(tensors, by_name, loaded)
    for plain, name in by_name.items():
        if plain not in places:
            left_out.append(name)
            continue
        slot = places[plain]
        found.setdefault(slot.path, {})[slot.layer] = _to_flax(slot.path, tensors[name], name)
        loaded.append(name)
    strangers = [name for name in left_out if _plain(name).startswith(f"{STACK}.")]
    if strangers:
        raise UserError(
            f"no place in this model for {some(strangers)}: another depth or design than "
            "config.json (or the sizes read from the shapes) says; use weights of a plain RoBERTa"
        )
    return _assemble(slots, found, loaded, left_out)


def to_torch(params: Mapping[str, Any], settings: Settings) -> dict[str, np.ndarray]:
    """transformers' names and layouts for our parameters.

    Args:
        params: any of `encoder`, `decoder` and `head`.
        settings: the architecture.

    Returns:
        float32 arrays by name: what RobertaForMaskedLM (with a decoder; its `lm_head.decoder` is
        not written, transformers ties it) or RobertaForSequenceClassification (with a head) loads.
    """
    tensors = {}
    flat = traverse_util.flatten_dict(dict(params))
    for slot in _slots(settings):
        if slot.path[0] in params:
            leaf: Any = flat[slot.path]
            value = np.asarray(leaf if slot.layer is None else leaf[slot.layer], np.float32)
            value = value.T if slot.path[-1] == "kernel" else value
            name = f"roberta.{slot.name}" if slot.path[0] == "encoder" else slot.name
            tensors[name] = np.ascontiguousarray(value)
    return tensors


def read_config(
    settings: Settings, config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> Settings:
    """The architecture of a weight file over the run's own masking and dropout.

    Args:
        settings: of the run. `mask_id` stays: no config.json tells it.
        config: a Hugging Face config.json of model_type roberta; None to read the shapes
            instead, with the published models' 64 dimensions per head and eps of 1e-5.
        shapes: of the file's tensors, by name.

    Returns:
        Settings.

    Raises:
        UserError: another model_type, activation or number of token types, a missing entry,
            sizes that cannot be read or do not fit.
    """
    values = _from_shapes(shapes) if config is None else _from_config(config)
    kinds = get_type_hints(Settings)
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    told = SIZES | IDS
    sizes = {
        name: checked.scalar(
            kinds[name], fields[name].metadata, value, f"config.json: {told[name]}"
        )
        for name, value in values.items()
    }
    return replace(settings, **sizes)


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and ids by our names."""
    expected = {
        "model_type": "roberta",
        "hidden_act": "gelu",
        "type_vocab_size": 1,
        "position_embedding_type": "absolute",
    }
    # What transformers leaves out where it is the default; model_type is always there, and the
    # default number of token types is BERT's 2.
    defaults = {"hidden_act": "gelu", "type_vocab_size": 2, "position_embedding_type": "absolute"}
    for entry, wanted in expected.items():
        got = config.get(entry, defaults.get(entry))
        if got != wanted:
            raise UserError(f"config.json: {entry} is {got!r}; this backbone reads {wanted!r}")
    missing = [theirs for theirs in SIZES.values() if theirs not in config]
    if missing:
        raise UserError(f"config.json: no {some(missing)}")
    values = {ours: config[theirs] for ours, theirs in SIZES.items()}
    return values | {ours: config[theirs] for ours, theirs in IDS.items() if theirs in config}


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes of a published RoBERTa."""
    known = {_plain(name): tuple(shape) for name, shape in shapes.items()}
    layers = [name.split(".")[2] for name in known if name.startswith(f"{STACK}.")]
    try:
        vocab_size, dim = known["embeddings.word_embeddings.weight"]
        positions, _ = known["embeddings.position_embeddings.weight"]
        mlp_dim, _ = known[f"{STACK}.0.intermediate.dense.weight"]
        depth = 1 + max(int(layer) for layer in layers)
    except (KeyError, ValueError):
        raise UserError("no config.json, sizes unreadable: put it beside the weights") from None
    if dim % 64:
        raise UserError(f"no config.json, and heads unknown for dimension {dim}: put it beside")
    return {
        "vocab_size": vocab_size,
        "max_positions": positions,
        "dim": dim,
        "depth": depth,
        "heads": dim // 64,
        "mlp_dim": mlp_dim,
        "layer_norm_eps": 1e-5,
    }


def _plain(name: str) -> str:
    """A tensor's name without the prefixes of models and training scripts."""
    return vit_config.bare(name).removeprefix("roberta.")


def _slots(settings: Settings) -> Iterator[Slot]:
    """Every tensor of the architecture."""
    for ours, theirs in SINGLE.items():
        yield from _leaves(tuple(ours.split("/")), None, theirs)
    for layer in range(settings.depth):
        for module, theirs in IN_BLOCK.items():
            yield from _leaves(("encoder", "blocks", module), layer, f"{STACK}.{layer}.{theirs}")


def _leaves(path: tuple[str, ...], layer: int | None, name: str) -> Iterator[Slot]:
    """The slots of one module: weight and perhaps bias, or the parameter itself."""
    if path[-1] == "bias":
        yield Slot(path, layer, name)
    elif path[-1] in ("word", "position", "type"):
        yield Slot((*path, "embedding"), layer, f"{name}.weight")
    else:
        weight = "scale" if "norm" in path[-1] else "kernel"
        yield Slot((*path, weight), layer, f"{name}.weight")
        yield Slot((*path, "bias"), layer, f"{name}.bias")


def _untwinned(tensors, by_name: dict[str, str], loaded: list[str]) -> dict[str, str]:
    """The names without those that repeat another (added to `loaded`); alone, a repeating name
    stands for the other."""
    kept = dict(by_name)
    for twin, original in TIED.items():
        if twin not in kept:
            continue
        name = kept.pop(twin)
        if original not in kept:
            kept[original] = name
        elif np.array_equal(tensors[name], tensors[kept[original]]):
            loaded.append(name)
        else:
            raise UserError(
                f"{name} differs from {kept[original]}: this backbone ties the masked-token "
                "head to the word embeddings; use weights of a plain RoBERTa"
            )
    return kept


def _to_flax(path: tuple[str, ...], tensor: np.ndarray, name: str) -> np.ndarray:
    """torch [out, in] -> [in, out] for kernels, float32."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} holds {tensor.dtype} values, not floating point numbers")
    value = np.asarray(tensor, np.float32)
    return value.T if path[-1] == "kernel" else value


def _assemble(slots, found, loaded, left_out) -> tuple[dict, Renaming]:
    """Stacks the layers and lists what is missing."""
    params: dict[tuple[str, ...], np.ndarray] = {}
    missing: dict[str, list[str]] = {}
    for slot in slots:
        if slot.layer not in found.get(slot.path, {}):
            missing.setdefault("/".join(slot.path), []).append(slot.name)
    for path, layers in found.items():
        if "/".join(path) in missing:
            continue
        if len({value.shape for value in layers.values()}) > 1:
            raise UserError(f"the layers of {'/'.join(path)} differ in shape")
        stacked = None not in layers
        params[path] = np.stack([layers[n] for n in sorted(layers)]) if stacked else layers[None]
    return traverse_util.unflatten_dict(params), Renaming(loaded, left_out, missing, [])
