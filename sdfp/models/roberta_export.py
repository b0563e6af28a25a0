"""A RoBERTa as a folder that `transformers` loads, and back: contents, no files.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json, README.md (how to load it).
"""

from collections.abc import Mapping
from typing import Any

from sdfp import checked
from sdfp.models import roberta_config, roberta_weights
from sdfp.models.interface import Card
from sdfp.models.roberta_modules import Settings
from sdfp.types import UserError

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""The entries of a tokenizer by the names that `Dataset.input` gives them."""
SHORTEST = 3
"""Tokens of the shortest text: <s>, one, </s>."""


def check_input(settings: Settings, input: Mapping[str, Any], block: str) -> None:
    """Raises UserError where the model cannot take the texts of `config.<block>`: another
    tokenizer than the model's, or texts longer than its positions."""
    where = f"config.{block}"
    if input["kind"] != "text":
        raise UserError(f"{where}.name: a RoBERTa reads texts; this data set has {input['kind']}s")
    if problem := _misfit(settings, input):
        raise UserError(
            f"{where}.tokenizer: {problem}: give the tokenizer that belongs to the weights, or, "
            "from scratch, set config.model to fit it"
        )
    limit = _longest(settings)
    if input["max_length"] > limit:
        raise UserError(
            f"{where}.max_length: must be at most {limit}, the tokens that the model has positions "
            f"for; got {input['max_length']}"
        )


def export(params: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """The files of an exported folder.

    Args:
        params: `{"encoder", "head"}` (a classifier) or `{"encoder", "decoder"}`.
        card: the settings, the input and the class names (by label; of a masked model none).

    Returns:
        {path: content}: of *.safetensors float32 arrays by name, of *.json JSON values, of *.md
        text.

    Raises:
        UserError: class names or input that do not fit the parameters.
    """
    masked = "head" not in params
    settings, classes = card.settings, 0 if masked else params["head"]["out"]["bias"].shape[-1]
    if len(card.class_names) != classes:
        raise UserError(
            f"the model has {classes} classes but {len(card.class_names)} class names: export it "
            "with the names of the data set that it was fine-tuned on"
        )
    if problem := _misfit(settings, card.input):
        raise UserError(f"the tokenizer of the data set is not the model's: {problem}")
    config = roberta_config.write_config(settings, card.class_names, masked)
    return {
        CONFIG: config,
        TOKENIZER: card.input["tokenizer"],
        TOKENIZER_CONFIG: _write_tokenizer_config(card.input),
        "model.safetensors": roberta_weights.to_torch(params, settings),
        "README.md": _write_readme(config["architectures"][0]),
    }


def describe(files: Mapping[str, Any]) -> Card:
    """What a folder's JSON files say about its model, the inverse of `export`.

    Args:
        files: content of config.json, tokenizer.json and perhaps tokenizer_config.json, by name;
            others are ignored.

    Returns:
        Card. Rates of training that no file tells are RoBERTa's (`roberta_config.whole_settings`).

    Raises:
        UserError: a file is missing, another kind of model or tokenizer, a tokenizer that does
            not belong to the model.
    """
    # To transformers null is the same as no entry.
    config = {key: v for key, v in _object(files, CONFIG).items() if v is not None}
    entries = _entries(_object(files, TOKENIZER))
    missing = [token for token in SPECIAL.values() if token not in entries]
    if missing:
        raise UserError(f"{TOKENIZER}: no entry {' '.join(missing)}: not of RoBERTa's kind")
    special = {name: entries[token] for name, token in SPECIAL.items()}
    settings = roberta_config.whole_settings(config, special["mask"])
    longest = _longest(settings)
    if longest < SHORTEST:
        raise UserError(
            f"{CONFIG}: max_position_embeddings leaves {longest} positions for a text; it needs "
            f"{SHORTEST} or more"
        )
    input = {
        "kind": "text",
        "max_length": _read_length(
            _object({TOKENIZER_CONFIG: {}, **files}, TOKENIZER_CONFIG), longest
        ),
        "vocab_size": len(entries),
        "special": special,
        "tokenizer": files[TOKENIZER],
    }
    if problem := _misfit(settings, input):
        raise UserError(f"{TOKENIZER}: {problem}: put the one that belongs to the weights there")
    return Card(settings, input, roberta_config.read_class_names(config))


def _object(files: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A file's content; UserError where there is none."""
    if name not in files:
        advice = f"put the model's own {name} beside its weights"
        if name == TOKENIZER:  # old models have vocab.json and merges.txt only
            advice += ", or make it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        raise UserError(f"no {name}: {advice}")
    if not isinstance(files[name], Mapping):
        raise UserError(f"{name}: not a JSON object")
    return files[name]


def _longest(settings: Settings) -> int:
    """How many tokens a text may have."""
    return settings.max_positions - settings.first_position


def _misfit(settings: Settings, input: Mapping[str, Any]) -> str:
    """Why a tokenizer is not the model's; "" where it is."""
    if input["vocab_size"] != settings.vocab_size:
        return f"it has {input['vocab_size']} entries, the model {settings.vocab_size}"
    for name in ("bos", "pad", "eos", "mask"):
        found, wanted = input["special"][name], getattr(settings, f"{name}_id")
        if found != wanted:
            return f"its {SPECIAL[name]} has the id {found}, the model's {name}_id is {wanted}"
    return ""


def _write_tokenizer_config(input: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # This class takes tokenizer.json as it is; RobertaTokenizer builds its own from the
        # vocabulary, whatever else the file says (add_prefix_space).
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token for name, token in SPECIAL.items()},
        "cls_token": SPECIAL["bos"],
        "sep_token": SPECIAL["eos"],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": input["max_length"],
        "clean_up_tokenization_spaces": False,
    }


def _read_length(config: Mapping[str, Any], longest: int) -> int:
    """The most tokens of a text: `model_max_length`, as far as there are positions."""
    given = config.get("model_max_length")
    if given is None:
        return longest
    # Without a limit, transformers writes int(1e30); others 1e30.
    if isinstance(given, float) and given > longest:
        return longest
    limits, entry = {"low": SHORTEST}, f"{TOKENIZER_CONFIG}: model_max_length"
    return min(checked.scalar(int, limits, given, entry), longest)


def _entries(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Entry -> id of a tokenizer.json: its model's and those that were added later."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocab, Mapping):
        raise UserError(f"{TOKENIZER}: no model.vocab of entries and their ids")
    if not isinstance(added, list) or not all(isinstance(token, Mapping) for token in added):
        raise UserError(f"{TOKENIZER}: added_tokens is not a list of entries")
    pairs = [*vocab.items(), *((token.get("content"), token.get("id")) for token in added)]
    for entry, number in pairs:
        if not isinstance(entry, str) or type(number) is not int:
            raise UserError(f"{TOKENIZER}: entry {entry!r:.60} has the id {number!r:.60}")
    entries = dict(pairs)
    if set(entries.values()) != set(range(len(entries))):
        raise UserError(f"{TOKENIZER}: the ids are not 0 to {len(entries) - 1}, each once")
    return entries


def _write_readme(kind: str) -> str:
    return f"""# {kind}

Written by `python -m sdfp.export`. DIR is this folder.

```python
from transformers import AutoTokenizer, {kind}

model = {kind}.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
inputs = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")
logits = model(**inputs).logits
```
"""
