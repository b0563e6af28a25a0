"""RoBERTa weights between transformers' names and ours: pure renaming, no files.

One naming is read and written: the hub's, whose encoder may lack its `roberta.` prefix.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sdfp.models import torch_names
from sdfp.models.roberta_config import STACK, plain_name
from sdfp.models.roberta_modules import Settings
from sdfp.models.torch_names import Renaming, Slot
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
    torch_names.check_sizes(tensors, settings.depth, settings.dim)
    parts = ("encoder", "head" if head else "decoder")
    slots = [slot for slot in _slots(settings) if slot.path[0] in parts]
    places = {name: slot for slot in slots for name in slot.names}
    by_name: dict[str, str] = {}
    loaded, left_out, found = [], [], {}
    for name in tensors:
        plain = plain_name(name)
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
    strangers = [name for name in left_out if plain_name(name).startswith(f"{STACK}.")]
    if strangers:
        raise UserError(
            f"no place in this model for {some(strangers)}: another depth or design than "
            "config.json (or the sizes read from the shapes) says; use weights of a plain RoBERTa"
        )
    filled, missing = torch_names.stack(slots, found)
    return traverse_util.unflatten_dict(filled), Renaming(loaded, left_out, missing, [])


def to_torch(params: Mapping[str, Any], settings: Settings) -> dict[str, np.ndarray]:
    """transformers' names and layouts for our parameters.

    Args:
        params: any of `encoder`, `decoder` and `head`.
        settings: the architecture.

    Returns:
        float32 arrays by name: what RobertaForMaskedLM (with a decoder; its `lm_head.decoder` is
        not written, transformers ties it) or RobertaForSequenceClassification (with a head) loads.
    """
    return {
        slot.names[0]: np.ascontiguousarray(value.T if slot.path[-1] == "kernel" else value)
        for slot, value in torch_names.values(params, _slots(settings))
    }


def _slots(settings: Settings) -> Iterator[Slot]:
    """Every tensor of the architecture."""
    for ours, theirs in SINGLE.items():
        yield from _leaves(tuple(ours.split("/")), None, theirs)
    for layer in range(settings.depth):
        for module, theirs in IN_BLOCK.items():
            yield from _leaves(("encoder", "blocks", module), layer, f"{STACK}.{layer}.{theirs}")


def _leaves(path: tuple[str, ...], layer: int | None, name: str) -> Iterator[Slot]:
    """The slots of one module: weight and perhaps bias, or the parameter itself."""
    names = [f"roberta.{name}", name] if path[0] == "encoder" else [name]
    if path[-1] == "bias":
        yield Slot(path, layer, names)
    elif path[-1] in ("word", "position", "type"):
        yield Slot((*path, "embedding"), layer, [f"{name}.weight" for name in names])
    else:
        weight = "scale" if "norm" in path[-1] else "kernel"
        yield Slot((*path, weight), layer, [f"{name}.weight" for name in names])
        yield Slot((*path, "bias"), layer, [f"{name}.bias" for name in names])


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
    value = torch_names.floats(tensor, name)
    return value.T if path[-1] == "kernel" else value
