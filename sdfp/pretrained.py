"""Finds and reads weight files, and merges them into a model's parameters, strictly.

Knows files, not models: what the tensors are called is the backbone's business. Only
safetensors are read; `python -m sdfp.convert_pth` makes one from a PyTorch pickle, which can
hold code and is therefore never opened here.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdfp import checked, checkpoint, cli, hub_folder, tensor_file
from sdfp.types import Key, Params, UserError, some

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
INDEX = "model.safetensors.index.json"
AGAIN = "get it again, or put the one there that belongs to the weights"
ALLOWED = ["*.safetensors", INDEX, "config.json", "preprocessor_config.json"]


class Weights(NamedTuple):
    """What a weight file holds."""

    path: str
    """The file or folder that was read."""
    config: dict[str, Any] | None
    """The config.json beside it, if there is one."""
    tensors: dict[str, np.ndarray]
    digest: str
    """sha256 over the bytes of the safetensors files, in the order of their names: for a
    single file, what `sha256sum` prints."""


class Report(NamedTuple):
    """What became of each tensor."""

    path: str
    digest: str
    loaded: list[str]
    """The file's tensors that are now parameters."""
    initialised: list[str]
    """Parameters that are freshly initialised because the file lacks them."""
    left_out: list[str]
    """The file's tensors that have no place in the model (heads, poolers)."""
    notes: list[str]

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"Weights: {self.path} (sha256 {self.digest[:12]}): {len(self.loaded)} tensors"]
        if self.initialised:
            lines.append(f"  initialised, not in the file: {some(self.initialised)}")
        if self.left_out:
            lines.append(f"  left out, no place in the model: {some(self.left_out)}")
        return lines + [f"  {note}" for note in self.notes]


def open_weights(weights: str, revision: str = "") -> Weights:
    """Reads a weight file.

    Args:
        weights: a folder (config.json, *.safetensors, sharded or not), one .safetensors file
            (config.json beside it if present), or a Hugging Face hub id.
        revision: branch, tag or commit on the hub; "" for its default.

    Returns:
        Weights, tensors on the host in the file's own types.

    Raises:
        UserError: nothing there, no network, only pickles, an incomplete or broken file.
    """
    path = cli.path(weights)
    if not weights:
        raise UserError(
            "config.init.weights: empty; give a folder, a .safetensors file or a hub id"
        )
    if path.is_file():
        folder, files = path.parent, [path]
        if path.suffix in PICKLES:
            raise UserError(_pickle_only(path))
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: not a .safetensors file")
    elif path.suffix in (".safetensors", *PICKLES) and not path.is_dir():
        raise UserError(f"{weights}: no such file")
    else:
        folder = path if path.is_dir() else hub_folder.download(weights, revision, ALLOWED)
        files = _files_of(folder, weights)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        own = tensor_file.read(file)
        if twice := sorted(tensors.keys() & own.keys()):
            raise UserError(f"{file}: {some(twice)} is in another file of {folder}, too: keep one")
        tensors |= own
    if not tensors:
        raise UserError(f"{files[0]}: no tensor in it; {AGAIN}")
    config = folder / "config.json"
    return Weights(
        path=str(path if path.exists() else folder),
        config=read_json(config) if config.exists() else None,
        tensors=tensors,
        digest=_digest(files),
    )


def load(weights: Weights, backbone, key: Key, missing_decoder: str) -> tuple[Params, Report]:
    """Merges weights into the parameters of a backbone: each is filled exactly, or it stops.

    Args:
        weights: from `open_weights`.
        backbone: `models.interface.Backbone`.
        key: for a decoder from scratch.
        missing_decoder: "stop", or "scratch" to initialise a decoder that is wholly missing.

    Returns:
        `{"encoder", "decoder"}` of float32 arrays, and what was done.

    Raises:
        UserError: names the tensors that are missing, of another shape, unknown or not finite.
    """
    found, renaming = _rename(weights, backbone, head=False)
    missing = _check_values(found, _expected(backbone, 0), weights.path)
    no_decoder = "decoder" not in found and any(name.startswith("decoder/") for name in missing)
    if no_decoder and missing_decoder != "scratch":
        raise UserError(
            f"{weights.path} has no decoder (an 'encoder only' file): use weights that were saved "
            "with the decoder of MAE or the lm_head of RoBERTa, or set "
            "config.init.missing_decoder=scratch to start with a random one"
        )
    unfilled = [n for n in missing if not (no_decoder and n.startswith("decoder/"))]
    _refuse_unfilled(unfilled, renaming, weights.path)
    params = {name: jax.tree.map(_float32, part) for name, part in found.items()}
    if no_decoder:
        params["decoder"] = backbone.init(key)["decoder"]
    told = {"loaded": renaming.loaded, "left_out": renaming.left_out, "notes": renaming.notes}
    return params, Report(weights.path, weights.digest, initialised=missing, **told)


def load_classifier(weights: Weights, backbone, classes: int) -> Params:
    """The parameters of a fine-tuned model: each is filled exactly, or it stops.

    Args:
        weights: from `open_weights`. A decoder in the file is ignored.
        backbone: `models.interface.Backbone`, made from the settings of these weights.
        classes: how many outputs the head must have.

    Returns:
        `{"encoder", "head"}` of float32 arrays.

    Raises:
        UserError: no head; names the tensors that are missing, of another shape, unknown or not
            finite.
    """
    found, renaming = _rename(weights, backbone, head=True)
    if "head" not in found:
        raise UserError(
            f"{weights.path}: no classifier head in it; give the weights of a fine-tuned model"
        )
    if renaming.notes:
        # Fine-tuning adapts to resized positions; here they would silently change predictions.
        raise UserError(f"{weights.path}: {renaming.notes[0]}: not the image size of config.json")
    missing = _check_values(found, _expected(backbone, classes), weights.path)
    _refuse_unfilled(missing, renaming, weights.path)
    return jax.tree.map(_float32, found)


def check_fit(params: Params, backbone, classes: int, path: str) -> None:
    """Whether these are the parameters of a backbone, all of them, and finite. Raises UserError.

    Args:
        classes: of its head; 0 where it has a decoder.
        path: of what says which backbone it is, for messages.
    """
    if missing := _check_values(params, _expected(backbone, classes), path):
        raise UserError(f"{path}: the parameters beside it lack {some(missing)}")


def _expected(backbone, classes: int) -> Any:
    """The shapes of all parameters; with a head where there are classes."""
    headed = lambda params, key: backbone.add_head(params, classes, key) if classes else params
    return jax.eval_shape(lambda key: headed(backbone.init(key), key), jax.random.key(0))


def _rename(weights: Weights, backbone, head: bool) -> tuple[dict[str, Any], Any]:
    """The backbone's `from_torch`: params, and what was `loaded`, `left_out` and `missing`."""
    try:
        return backbone.from_torch(weights.tensors, head=head)
    except UserError as error:
        raise UserError(f"{weights.path}: {error}") from None


def _refuse_unfilled(unfilled: list[str], renaming: Any, path: str) -> None:
    if unfilled:
        names = [name for ours in unfilled for name in renaming.missing.get(ours, [ours])]
        raise UserError(f"{path} lacks {some(names)}")


def _check_values(found: Any, model: Any, path: str) -> list[str]:
    """Every array has a place, its shape, and finite values; returns what is not filled."""
    flat, expected = checkpoint.flatten(found), checkpoint.flatten(model)
    unknown = [name for name in flat if name not in expected]
    if unknown:
        raise UserError(f"{path}: the model has no parameter {some(unknown)}")
    for name, value in flat.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {value.shape}, the model needs {expected[name].shape}: "
                "put the config.json that belongs to these weights beside them"
            )
    broken = [name for name, value in flat.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: NaN or infinite values in {some(broken)}")
    return [name for name in expected if name not in flat]


def _files_of(folder: Path, weights: str) -> list[Path]:
    """The safetensors files of one model, in the order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).exists():
        index = checked.read_json(folder / INDEX, AGAIN, {"weight_map": {str: str}})
        names = set(index["weight_map"].values())
        if not names:
            raise UserError(f"{folder / INDEX}: damaged: it names no shard; {AGAIN}")
        # Only files of this folder: a name like ../other.safetensors is none of them.
        if absent := sorted(names - {file.name for file in files}):
            raise UserError(f"{folder / INDEX} names shards that are not there: {some(absent)}")
        return [file for file in files if file.name in names]
    if not files and ((folder / "stages").is_dir() or (folder / "final").is_dir()):
        raise UserError(
            f"{weights}: of a work directory: give what `python -m sdfp.export --workdir W "
            "--stage further_pretrain --out FOLDER` writes"
        )
    if not files:
        pickles = [file for suffix in PICKLES for file in sorted(folder.glob(f"*{suffix}"))]
        raise UserError(
            _pickle_only(pickles[0])
            if pickles
            else f"{weights}: no .safetensors file there. If it offers a .bin or .pth only, "
            "download that and run `python -m sdfp.convert_pth IN.pth OUT.safetensors`"
        )
    whole = [file for file in files if file.name == "model.safetensors"] or files
    if len(whole) > 1:
        raise UserError(f"{folder} holds several models: {some([f.name for f in files])}; name one")
    return whole


def _pickle_only(path: Path) -> str:
    return (
        f"{path} is a pickle, which can hold code: convert it first, with "
        f"`python -m sdfp.convert_pth {path} {path.with_name('model.safetensors')}`"
    )


def read_json(file: Path) -> dict[str, Any]:
    """A config.json and the like."""
    return checked.read_json(file, AGAIN)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _float32(value: np.ndarray) -> jax.Array:
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        return jnp.asarray(value.astype(np.float32, copy=False))
