"""What Algorithm 1 and the methods need to know about a model family."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Backbone(NamedTuple):
    """One model family as pure functions. `params` is `{"encoder", "decoder"}` during
    the masked stages and `{"encoder", "head"}` during fine-tuning.

    `train` switches dropout on: the pre-training rate in `reconstruct` and
    `features`, the fine-tuning rate in `logits`. `mask` is opaque to the callers;
    inside, 1 or "hidden" always means: not seen by the encoder.
    """

    init: Callable
    """(key) -> {"encoder", "decoder"}: theta and phi from scratch."""
    mask: Callable
    """(batch, key) -> mask. Drawn per (key, example index): no device count changes it."""
    reconstruct: Callable
    """(params, batch, mask, key, train) -> prediction at the hidden positions."""
    reconstruction_loss: Callable
    """(prediction, batch, mask) -> [examples], the mean over each example's hidden positions."""
    prediction_distance: Callable
    """(prediction, teacher's prediction, batch, mask) -> [examples]: how far two predictions of
    one mask are apart, the same mean; the teacher's gets no gradient."""
    features: Callable
    """(encoder, batch, key, train, tokens="cls"|"all", perturb=None)
    -> [examples, dim] or [examples, tokens, dim]: the final hidden state of the unmasked input;
    where examples have unequal numbers of tokens, 0 behind the last one (see
    `losses.squared_distance`)."""
    logits: Callable
    """(params, batch, key, train, perturb=None) -> [examples, classes]. `perturb` is called once:
    (embeddings [..., tokens, dim], example, position, both int32 [..., tokens]) -> embeddings, on
    what patches or words are embedded as; a token is known by its example's place in the data set
    and its own in the example."""
    add_head: Callable
    """(params, num_classes, key) -> {"encoder", "head"}: decoder dropped, fresh head added."""
    from_torch: Callable
    """({name: ndarray}, head=False) -> (params, renaming): from the public key namings; no files.
    A classifier head is left out, or with `head` read."""
    to_torch: Callable
    """(params) -> {name: ndarray}: the Hugging Face hub's naming."""
    picture: Callable
    """(params, batch, key) -> masked input, reconstruction and original, as the model reads them:
    [examples, 3, height, width, channels], of texts token ids [rows, 3, length]."""


class Card(NamedTuple):
    """What it takes, beside the parameters, to use a model outside of its run."""

    settings: Any
    """The family's settings."""
    input: dict[str, Any]
    """See `data.interface.Dataset.input`."""
    class_names: tuple[str, ...]
    """Of a classifier, by label; empty for a masked auto-encoder."""


class Family(NamedTuple):
    """A registry entry: how a `Backbone` is made from its settings."""

    settings: type
    """The frozen dataclass that `config.model` is parsed into. Its MASKED_ONLY and FINETUNE_ONLY
    name the fields that the other stages do not depend on; theta_init depends on neither. Its
    PORTABLE names fields that say how one machine computes, each with the value that suits any
    machine: a kept model has those. Its DATA is the dataclass of `config.data` and `config.source`.
    Its `cudnn_shapes` are the `attention.Shape`s that cuDNN is asked for, as a rule none."""
    make: Callable
    """(settings, dtype) -> Backbone; `dtype` is the compute type, parameters stay float32."""
    read_config: Callable
    """(settings, config.json as a dict or None, {name: shape}) -> settings: the architecture
    of a weight file, over the settings of the run."""
    check_input: Callable
    """(settings, Dataset.input, block) -> None; raises UserError where the model cannot take what
    the data set of `config.<block>` makes."""
    model_types: tuple[str, ...]
    """What `model_type` in a config.json may say for this family."""
    export: Callable
    """(params, Card) -> {path: content}: the files of a folder that other libraries load. Content
    of *.safetensors: {name: ndarray}; of *.json: JSON values; of *.md: text. Parameters with a
    `head` make a classifier, with a `decoder` a masked auto-encoder."""
    describe: Callable
    """({file name: content of each *.json in such a folder}) -> Card, the inverse of `export`."""
