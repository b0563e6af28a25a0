"""RoBERTa's byte-level BPE, read, trained and written with the `tokenizers` library.

transformers is not needed, and is avoided: with wrong arguments it gives an empty tokenizer
without a word. What is opened here is tried at once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp import cli, hub_folder
from sdfp.types import UserError, one_line

SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
FIRST = ("<s>", "<pad>", "</s>", "<unk>")
"""The entries 0 to 3 of a vocabulary that is trained here; <mask> is its last one."""
BYTES = 256
"""Entries that stand for single bytes, so that every text can be written."""
AT_ONCE = 1000
"""Texts whose encodings are held at a time: the library's are a hundred times their tokens."""
FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class Encoded(NamedTuple):
    """Texts as numbers."""

    tokens: list[np.ndarray]
    """int32 [length] each, from <s> to </s>."""
    truncated: list[int]
    """The texts that were longer than allowed and lost their end."""


class Tokenizer(NamedTuple):
    """A tokenizer that puts <s> before and </s> after each text."""

    backend: Any
    """`tokenizers.Tokenizer`, without truncation or padding of its own."""
    vocab_size: int
    """Entries, the special ones included."""
    special: Mapping[str, int]
    """Ids of `bos`, `pad`, `eos`, `unk` and `mask`."""
    digest: str
    """sha256 of all that decides the ids, for the identity of a stage: the same whether it was
    read from tokenizer.json or from vocab.json and merges.txt."""
    files: Mapping[str, bytes]
    """File name -> content, for an export: tokenizer.json, vocab.json, merges.txt."""

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Each text as ids, at most `max_length` of them, <s> and </s> included.

        Special tokens that a text spells out ("<mask>") become the special ids, as in transformers.

        Raises:
            ValueError: max_length < 3, which leaves no place for text.
        """
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3, got {max_length}")
        tokens, truncated = [], []
        for start in range(0, len(texts), AT_ONCE):
            for encoding in self.backend.encode_batch(list(texts[start : start + AT_ONCE])):
                ids = np.array(encoding.ids, np.int32)
                if len(ids) > max_length:
                    ids = np.append(ids[: max_length - 1], ids[-1])
                    truncated.append(len(tokens))
                tokens.append(ids)
        return Encoded(tokens, truncated)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes `files`."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def open_tokenizer(source: str, revision: str = "") -> Tokenizer:
    """Reads a tokenizer of RoBERTa's kind.

    Args:
        source: a folder with tokenizer.json, or with vocab.json and merges.txt, or a Hugging Face
            hub id.
        revision: branch, tag or commit on the hub; "" for its default.

    Raises:
        UserError: no such folder, no network, missing or broken files, another kind of tokenizer.
    """
    if not source:
        raise UserError("no tokenizer given: give a folder or a hub id")
    folder = cli.path(source)
    if folder.is_file():
        raise UserError(
            f"{source}: a file: the tokenizer is in a folder; give that of a model, or one as "
            "--config.data.tokenizer"
        )
    if not folder.is_dir():
        folder = hub_folder.download(source, revision, FILES)
    if (folder / FILES[0]).exists():
        return from_json(_read(folder / FILES[0]), str(folder / FILES[0]))
    if missing := [name for name in FILES[1:] if not (folder / name).exists()]:
        raise UserError(
            f"{folder}: no {' and no '.join(missing)} there, and no tokenizer.json; give the "
            "folder of the tokenizer that belongs to the weights"
        )
    vocab = _read_vocab(folder / FILES[1])
    return _finish(_roberta(vocab, _read_merges(folder / FILES[2]), str(folder)), str(folder))


def from_json(content: str, where: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json holds.

    Args:
        where: what the content is from, for messages.

    Raises:
        UserError: not whole, or another kind of tokenizer.
    """
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{where}: not a whole tokenizer.json: {one_line(error)}") from None
    return _finish(backend, where)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE from texts; the same texts give the same tokenizer.

    Args:
        vocab_size: entries in all, with <s> <pad> </s> <unk> first and <mask> last.

    Raises:
        ValueError: vocab_size has no room for the special entries and the 256 bytes.
        UserError: the texts hold too few different pieces for that size.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    if vocab_size < BYTES + len(SPECIAL):
        raise ValueError(f"vocab_size must be at least {BYTES + len(SPECIAL)}, got {vocab_size}")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes after it
        min_frequency=2,
        show_progress=False,
        special_tokens=list(FIRST),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"]
    if len(vocab) != vocab_size - 1:
        raise UserError(
            f"the texts give a vocabulary of only {len(vocab) + 1} entries, not {vocab_size}: "
            "lower --config.model.vocab_size, or give more text"
        )
    merges = [(first, second) for first, second in model["merges"]]
    return _finish(_roberta({**vocab, SPECIAL["mask"]: len(vocab)}, merges, "training"), "training")


def _roberta(vocab: dict[str, int], merges: list[tuple[str, str]], where: str) -> Any:
    """RoBERTa's pipeline around a vocabulary, as in its published tokenizer.json."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    _refuse_missing([name for name in SPECIAL.values() if name not in vocab], where)
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{where}: vocabulary and merges do not fit: {one_line(error)}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    bos, eos = ((name, vocab[name]) for name in (SPECIAL["bos"], SPECIAL["eos"]))
    backend.post_processor = processors.RobertaProcessing(  # pyright: ignore
        eos, bos, trim_offsets=True, add_prefix_space=False
    )
    # <mask> takes the space before it, as the pieces of words do that it stands for.
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(name, lstrip=name == SPECIAL["mask"], normalized=False)
            for name in sorted(SPECIAL.values(), key=vocab.__getitem__)
        ]
    )
    return backend


def _finish(backend: Any, where: str) -> Tokenizer:
    """Tries the tokenizer, and collects what is known about it."""
    found = {name: backend.token_to_id(token) for name, token in SPECIAL.items()}
    _refuse_missing([SPECIAL[name] for name, number in found.items() if number is None], where)
    backend.no_truncation()
    backend.no_padding()
    size = backend.get_vocab_size(with_added_tokens=True)
    if set(backend.get_vocab(with_added_tokens=True).values()) != set(range(size)):
        raise UserError(f"{where}: the ids are not 0 to {size - 1}, each once")
    ends = [found["bos"], found["eos"]]
    tried = backend.encode("a").ids
    # An untrained tokenizer gives the ends alone; one without a post-processor leaves them out.
    if backend.encode("").ids != ends or [tried[0], tried[-1]] != ends or len(tried) < 3:
        raise UserError(
            f"{where}: turns 'a' into {tried}, not into <s> ({ends[0]}), text, </s> ({ends[1]})"
        )
    whole = json.loads(backend.to_str())
    files = {FILES[0]: _json_bytes(whole)}
    if whole["model"].get("type") == "BPE":
        # Entries that were added to the vocabulary later stand outside of the model's part.
        vocab = dict(sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda e: e[1]))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in whole["model"]["merges"])]
        files[FILES[1]] = _json_bytes(vocab)
        files[FILES[2]] = "".join(f"{line}\n" for line in lines).encode()
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return Tokenizer(backend, size, found, digest, files)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _refuse_missing(names: list[str], where: str) -> None:
    if names:
        raise UserError(f"{where}: no entry {' '.join(names)}: not a tokenizer of RoBERTa's kind")


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {one_line(error)}") from None


def _read_vocab(file: Path) -> dict[str, int]:
    try:
        vocab = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON: {one_line(error)}") from None
    if not isinstance(vocab, dict) or any(type(number) is not int for number in vocab.values()):
        raise UserError(f"{file}: not a JSON object of entries and their numbers")
    if vocab and min(vocab.values()) < 0:
        raise UserError(f"{file}: a number below 0")
    return vocab


def _read_merges(file: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read(file).split("\n"), 1):
        # Only the first line is a comment: "# #" would be a merge.
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2:
            raise UserError(f"{file}, line {number}: expected two pieces, got {line[:40]!r}")
        merges.append((parts[0], parts[1]))
    return merges
