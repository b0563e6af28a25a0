"""ViT-MAE weights between PyTorch's names and ours: pure renaming, no files.

Four spellings are read: the hub's files, what transformers 5 has in memory, what its
`save_pretrained` writes (the decoder's blocks are named differently there), and the original
MAE repository's, which timm shares. The hub's is written (every version of transformers reads
it), and timm's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sdfp.models import torch_names, vit_positions
from sdfp.models.torch_names import Renaming, Slot
from sdfp.models.vit_modules import Settings
from sdfp.types import UserError, some

# Ours: (the hub's, other spellings ..., the original repository's and timm's). All are read, the
# first is written by `to_torch`, the last by `to_timm`.
SINGLE = {
    "encoder/cls_token": ("vit.embeddings.cls_token", "cls_token"),
    "encoder/pos_embed": ("vit.embeddings.position_embeddings", "pos_embed"),
    "encoder/patch_embed": ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
    "encoder/norm": ("vit.layernorm", "norm"),
    "decoder/embed": ("decoder.decoder_embed", "decoder_embed"),
    "decoder/mask_token": ("decoder.mask_token", "mask_token"),
    "decoder/pos_embed": ("decoder.decoder_pos_embed", "decoder_pos_embed"),
    "decoder/norm": ("decoder.decoder_norm", "decoder_norm"),
    "decoder/pred": ("decoder.decoder_pred", "decoder_pred"),
    "head": ("classifier", "head"),
}
STACK = {
    "encoder/blocks": ("vit.encoder.layer", "vit.layers", "blocks"),
    "decoder/blocks": ("decoder.decoder_layers", "decoder.decoder_encoder.layer", "decoder_blocks"),
}
IN_BLOCK = {
    "norm_attention": ("layernorm_before", "norm1"),
    "query": ("attention.attention.query", "attention.q_proj", "attn.q"),
    "key": ("attention.attention.key", "attention.k_proj", "attn.k"),
    "value": ("attention.attention.value", "attention.v_proj", "attn.v"),
    "out": ("attention.output.dense", "attention.o_proj", "attn.proj"),
    "norm_mlp": ("layernorm_after", "norm2"),
    "mlp_in": ("intermediate.dense", "mlp.fc1"),
    "mlp_out": ("output.dense", "mlp.fc2"),
}


def from_torch(
    tensors: Mapping[str, np.ndarray], settings: Settings, head: bool = False
) -> tuple[dict, Renaming]:
    """Renames PyTorch tensors, transposes kernels, stacks layers, resizes position embeddings.

    Args:
        tensors: arrays by name, in any of the four spellings; `vit.` and a leading `model.`
            or `module.` may be there or not.
        settings: the architecture.
        head: False for pre-training and fine-tuning, which start with a fresh head: a head in
            the file is left out. True for a classifier: a decoder in the file is left out.

    Returns:
        `{"encoder", "decoder"}`, with `head` `{"encoder", "head"}`, of float32 arrays, without
        what the file does not have, and a Renaming.

    Raises:
        UserError: a block's tensor has no place here (more layers, another architecture), two
            tensors claim one place, position embeddings are not of a square grid.
    """
    torch_names.check_sizes(tensors, settings.depth, settings.dim)
    decoder = {n: t for n, t in tensors.items() if torch_names.bare(n).startswith("decoder")}
    if not head and any("decoder_embed" in name for name in decoder):  # else another model's
        torch_names.check_sizes(decoder, settings.decoder_depth, settings.decoder_dim)
    tensors = _without_fused_projections(tensors)
    parts = ("encoder", "head" if head else "decoder")
    slots = [slot for slot in _slots(settings) if slot.path[0] in parts]
    places = {name: slot for slot in slots for name in slot.names}
    found: dict[tuple, dict] = {}
    loaded, left_out = [], []
    for name, tensor in tensors.items():
        slot = places.get(torch_names.bare(name))
        if slot is None:
            left_out.append(name)
        elif slot.layer in found.setdefault(slot.path, {}):
            raise UserError(f"two tensors for one parameter, one of them is {name}")
        else:
            found[slot.path][slot.layer] = _to_flax(slot.path, tensor, name)
            loaded.append(name)
    strangers = [name for name in left_out if _in_a_block(torch_names.bare(name), parts)]
    if strangers:
        raise UserError(
            f"no place in this model for {some(strangers)}: another depth or design than "
            "config.json (or the sizes read from the shapes) says; use weights of a plain ViT-MAE"
        )
    return _assemble(slots, found, loaded, left_out, settings)


def to_torch(params: Mapping[str, Any], settings: Settings) -> dict[str, np.ndarray]:
    """The hub's names and layouts for our parameters.

    Args:
        params: any of `encoder`, `decoder` and `head` (written as `classifier`).
        settings: the architecture.

    Returns:
        float32 arrays by name: what ViTMAEForPreTraining (with a decoder), ViTModel or
        ViTForImageClassification (with a head) of transformers loads.
    """
    return _spelled(params, settings, 0)


def to_timm(params: Mapping[str, Any], settings: Settings) -> dict[str, np.ndarray]:
    """timm's names and layouts for our parameters: the original repository's, query, key and
    value fused to attn.qkv.

    Args:
        params: `encoder` and perhaps `head` (timm knows no decoder).
        settings: the architecture.

    Returns:
        float32 arrays by name: what a VisionTransformer of timm loads.
    """
    split = _spelled(params, settings, -1)
    fused = {}
    for name, tensor in split.items():
        if ".attn.q." in name:
            three = [split[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            fused[name.replace(".attn.q.", ".attn.qkv.")] = np.concatenate(three)
        elif ".attn.k." not in name and ".attn.v." not in name:
            fused[name] = tensor
    return fused


def _spelled(params: Mapping[str, Any], settings: Settings, spelling: int) -> dict[str, np.ndarray]:
    """PyTorch's layouts, each tensor under its slot's name number `spelling`."""
    return {
        slot.names[spelling]: _from_flax(slot.path, value, settings)
        for slot, value in torch_names.values(params, _slots(settings))
    }


def _slots(settings: Settings) -> Iterator[Slot]:
    """Every tensor of the architecture with all its spellings: the hub's first, timm's last."""
    for ours, names in SINGLE.items():
        yield from _leaves(tuple(ours.split("/")), None, names)
    depths = {"encoder": settings.depth, "decoder": settings.decoder_depth}
    for ours, stacks in STACK.items():
        part, blocks = ours.split("/")
        for layer in range(depths[part]):
            for module, names in IN_BLOCK.items():
                full = [f"{stack}.{layer}.{name}" for stack in stacks for name in names]
                for slot in _leaves((part, blocks, module), layer, full):
                    projection = module in ("query", "key", "value")
                    if settings.qkv_bias or not projection or slot.path[-1] != "bias":
                        yield slot


def _leaves(path: tuple[str, ...], layer: int | None, names) -> Iterator[Slot]:
    """The slots of one module: weight and bias, or the parameter itself."""
    bare = [name.removeprefix("vit.") for name in names if name.startswith("vit.")]
    names = [names[0], *bare, *names[1:]]
    if path[-1] in ("cls_token", "pos_embed", "mask_token"):
        yield Slot(path, layer, names)
        return
    weight = "scale" if "norm" in path[-1] else "kernel"
    yield Slot((*path, weight), layer, [f"{name}.weight" for name in names])
    yield Slot((*path, "bias"), layer, [f"{name}.bias" for name in names])


def _in_a_block(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to a transformer block of `parts`, where all must have a place."""
    stacks = [s for ours, spelled in STACK.items() if ours.split("/")[0] in parts for s in spelled]
    return any(name.startswith((f"{s}.", f"{s.removeprefix('vit.')}.")) for s in stacks)


def _without_fused_projections(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the original's attn.qkv [3 * dim, ...] into attn.q, attn.k and attn.v."""
    split: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name and tensor.ndim and len(tensor) % 3 == 0:
            for part, third in zip("qkv", np.split(tensor, 3), strict=True):
                split[name.replace(".attn.qkv.", f".attn.{part}.")] = third
        else:
            split[name] = tensor
    return split


def _to_flax(path: tuple[str, ...], tensor: np.ndarray, name: str) -> np.ndarray:
    """torch [out, in] or [out, channels, height, width] -> [in, out], float32."""
    value = torch_names.floats(tensor, name)
    if path[-1] == "kernel" and value.ndim == 4:
        return value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    return value.T if path[-1] == "kernel" else value


def _from_flax(path: tuple[str, ...], value: np.ndarray, settings: Settings) -> np.ndarray:
    """The inverse of `_to_flax`, contiguous as safetensors wants it."""
    if path[-1] == "kernel" and path[-2] == "patch_embed":
        side = settings.patch_size
        value = value.reshape(side, side, settings.channels, -1).transpose(3, 2, 0, 1)
    elif path[-1] == "kernel":
        value = value.T
    return np.ascontiguousarray(value)


def _assemble(slots, found, loaded, left_out, settings) -> tuple[dict, Renaming]:
    """Stacks the layers, resizes positions, and lists what is missing."""
    params, missing = torch_names.stack(slots, found)
    notes = []
    for path, value in params.items():
        if path[-1] == "pos_embed" and value.shape[1:2] != (1 + settings.patches,):
            params[path] = vit_positions.resize(value, settings.grid)
            notes.append(f"{'/'.join(path)}: resized from {value.shape} to {params[path].shape}")
    return traverse_util.unflatten_dict(params), Renaming(loaded, left_out, missing, notes)
