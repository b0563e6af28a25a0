"""The architecture of a RoBERTa as a Hugging Face config.json says it, read and written, or as the
shapes of a weight file tell it. No files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdfp.models import hub_config, torch_names
from sdfp.models.roberta_modules import Settings
from sdfp.types import UserError, some

# Ours: theirs.
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
DROPOUT = {
    "dropout_finetune": "hidden_dropout_prob",
    "attention_dropout_finetune": "attention_probs_dropout_prob",
}
# What a config.json must say.
FIXED = {
    "model_type": "roberta",
    "hidden_act": "gelu",
    "type_vocab_size": 1,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
STACK = "encoder.layer"
MASKED, CLASSIFIER = "RobertaForMaskedLM", "RobertaForSequenceClassification"


def read_config(
    settings: Settings, config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> Settings:
    """The architecture of a weight file over the run's own masking and dropout.

    Args:
        settings: of the run. No config.json tells `mask_id`: it stays with a vocabulary of the
            settings' size, and is the last entry, as RoBERTa's is, of any other.
        config: a Hugging Face config.json of model_type roberta; None to read the shapes
            instead, with the published models' 64 dimensions per head and eps of 1e-5.
        shapes: of the file's tensors, by name.

    Returns:
        Settings.

    Raises:
        UserError: another model_type, activation or number of token types, a missing entry,
            sizes that cannot be read or do not fit.
    """
    found = _checked(_from_shapes(shapes) if config is None else _from_config(config))
    if found["vocab_size"] != settings.vocab_size:
        found["mask_id"] = found["vocab_size"] - 1
    return replace(settings, **found)


def whole_settings(config: Mapping[str, Any], mask_id: int) -> Settings:
    """All settings from a config.json alone, the inverse of `write_config`.

    Args:
        config: without entries that are null.
        mask_id: the id of <mask>.

    Returns:
        Settings, with RoBERTa's rate of masking; pre-training drops out as fine-tuning does.

    Raises:
        UserError: as `read_config`.
    """
    # The defaults of transformers, for a config.json that leaves them out.
    rates = {ours: config.get(theirs, 0.1) for ours, theirs in DROPOUT.items()}
    values = {"bos_id": 0, "pad_id": 1, "eos_id": 2} | _from_config(config) | rates
    found = _checked(values)
    return Settings(
        **found,
        mask_id=mask_id,
        mask_rate=0.15,
        dropout_pretrain=found["dropout_finetune"],
        attention_dropout_pretrain=found["attention_dropout_finetune"],
    )


def write_config(settings: Settings, class_names: Sequence[str], masked: bool) -> dict[str, Any]:
    """A config.json that `transformers` loads.

    Args:
        settings: the architecture, and the dropout of fine-tuning.
        class_names: by label, of a classifier; the number of classes is told by them alone.
        masked: True for a RobertaForMaskedLM, False for a RobertaForSequenceClassification.

    Returns:
        JSON values.
    """
    config = {
        "architectures": [MASKED if masked else CLASSIFIER],
        **FIXED,
        **{theirs: getattr(settings, ours) for ours, theirs in (SIZES | IDS | DROPOUT).items()},
        "classifier_dropout": settings.dropout_finetune,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }
    return config if masked else config | hub_config.write_labels(class_names)


def read_class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a config.json, by label; () for a masked language model.

    Raises:
        UserError: as `hub_config.read_labels`.
    """
    if MASKED in hub_config.architectures(config):
        return ()
    return hub_config.read_labels(config, CLASSIFIER, MASKED)


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes of models and training scripts."""
    return torch_names.bare(name).removeprefix("roberta.")


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    return hub_config.fields(Settings, values, SIZES | IDS | DROPOUT)


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and ids by our names."""
    # What transformers leaves out where it is the default; model_type is always there, and the
    # default number of token types is BERT's 2.
    defaults = FIXED | {"model_type": None, "type_vocab_size": 2}
    for entry, wanted in FIXED.items():
        got = config.get(entry, defaults[entry])
        if got != wanted:
            raise UserError(f"config.json: {entry} is {got!r}; this backbone reads {wanted!r}")
    missing = [theirs for theirs in SIZES.values() if theirs not in config]
    if missing:
        raise UserError(f"config.json: no {some(missing)}")
    values = {ours: config[theirs] for ours, theirs in SIZES.items()}
    return values | {ours: config[theirs] for ours, theirs in IDS.items() if theirs in config}


def _from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes of a published RoBERTa."""
    known = {plain_name(name): tuple(shape) for name, shape in shapes.items()}
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
