"""PyTorch checkpoint to safetensors: `python -m sdfp.convert_pth IN.pth OUT.safetensors`.

Needs torch >= 2.10 (`pip install torch`): older versions can be made to run code by a crafted
file even with `weights_only=True` (CVE-2025-32434, CVE-2026-24747).
"""

import hashlib
import pickle
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdfp import cli
from sdfp.types import UserError, one_line, some

MOST_SHARED = 4
"""Times the file's size that its tensors may have together: some are kept once and named twice."""


def convert(source: Path, target: Path) -> tuple[int, str]:
    """Writes the tensors of a PyTorch checkpoint as safetensors.

    Args:
        source: a file of `torch.save`: `{name: tensor}`, or that under the key "model".
        target: the .safetensors file to write; must not exist.

    Returns:
        The number of tensors and the sha256 of the new file.

    Raises:
        UserError: no or an old torch, paths that do not fit, anything in it but tensors.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the output must be called *.safetensors")
    if target.exists():
        raise UserError(f"{target} is there already")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder")
    tensors = _read(source)
    import safetensors.torch

    # Copies: safetensors refuses tensors that share memory.
    try:
        whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        data = safetensors.torch.save(whole, metadata={"format": "pt"})
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # an unusual number format
        raise UserError(f"{source}: no safetensors can hold it: {one_line(error)}") from None
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as scratch:
            partial = Path(scratch) / target.name
            partial.write_bytes(data)
            partial.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {one_line(error)}") from None
    return len(whole), hashlib.sha256(data).hexdigest()


def _read(source: Path) -> Mapping:
    """The tensors of a checkpoint, and nothing that is not a tensor."""
    try:
        import torch
    except ImportError:
        raise UserError("converting needs PyTorch: `pip install 'torch>=2.10'`") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise UserError(f"torch {torch.__version__} can be made to run code: needs torch >= 2.10")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{source} holds more than tensors and plain values; refused, as loading it could run "
            "code. Save its state_dict() alone."
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise UserError(f"{source}: not a PyTorch checkpoint, or cut short: {reason}") from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{source}: no {{name: tensor}} in it")
    plain = lambda value: torch.is_tensor(value) and value.layout is torch.strided
    strangers = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and plain(value) and not value.is_quantized)
    ]
    if strangers:
        raise UserError(
            f"{source}: not tensors: {some(strangers)}. Only {{name: tensor}} or "
            "{'model': {name: tensor}} can be converted, of plain tensors"
        )
    # A few bytes can stand for any number of equal values.
    size = sum(value.numel() * value.element_size() for value in content.values())
    if size > MOST_SHARED * source.stat().st_size:
        raise UserError(f"{source}: its tensors are {size} bytes, far more than the file has")
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = cli.parser("sdfp.convert_pth", __doc__)
    parser.add_argument("source", type=cli.path, metavar="IN.pth")
    parser.add_argument("target", type=cli.path, metavar="OUT.safetensors")
    arguments = parser.parse_args(argv)

    def run() -> None:
        count, digest = convert(arguments.source, arguments.target)
        print(f"{arguments.target}: {count} tensors, sha256 {digest}")

    return cli.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
