"""Exported RoBERTa folders: read back exactly, refused where they do not fit, the same to
transformers."""

import copy
import functools
import json
import random
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roberta

from sdfp import hub_folder, pretrained, trained
from sdfp.data import tokenizer
from sdfp.models import registry, roberta, roberta_export
from sdfp.models.interface import Card
from sdfp.types import UserError

FAMILY = registry.BACKBONES["roberta"]
NAMES = ("joy", "Ärger", "10", "a b")
KINDS = ("classifier", "masked")
TEXTS = [
    "",
    " ",
    "a  b   c",
    " leading and trailing ",
    "naïve café 🙂 don't",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "tab\tline\nnext\u2028\x85",
    "日本語 العربية ß ﬁ",
    "x <mask> y<mask>z </s> <pad> <s>",
    "1234 !!!???",
    "a word of some length, cut at the end " * 3,
]
SAFE = [text for text in TEXTS if "<pad>" not in text]
"""Where a text spells out <pad>, transformers counts no position for it, and we do."""


@functools.cache
def learnt():
    texts = [f"{word} number {i} of a small café, isn't it?" for i in range(30) for word in "abc"]
    return tokenizer.train_tokenizer(texts, 290)


def settings(**changes):
    sizes = {"vocab_size": 290, "mask_id": 289, "max_positions": 60, "layer_norm_eps": 0.01}
    rates = {"mask_rate": 0.15, "dropout_pretrain": 0.2, "dropout_finetune": 0.2}
    return tiny_roberta.settings(**{**sizes, **rates, **changes})


def texts_of(opened, max_length=40):
    """`Dataset.input` as the text data sets make it."""
    return {
        "kind": "text",
        "max_length": max_length,
        "vocab_size": opened.vocab_size,
        "special": dict(opened.special),
        "tokenizer": json.loads(opened.files["tokenizer.json"]),
    }


def card(kind):
    return Card(settings(), texts_of(learnt()), NAMES if kind == "classifier" else ())


@functools.cache
def exported(kind):
    """(params, files); no bias is 0, no scale is 1."""
    generator = np.random.default_rng(0)

    def shapes(key):
        params = roberta.init(settings(), jnp.float32, key)
        classifier = kind == "classifier"
        return roberta.add_head(settings(), params, len(NAMES), key) if classifier else params

    def draw(path, leaf):
        values = 0.2 * generator.standard_normal(leaf.shape) + ("scale" in str(path))
        return values.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(shapes, jax.random.key(0)))
    return params, FAMILY.export(params, card(kind))


def changed(kind="classifier", file="config.json", **entries):
    """The JSON files of an export with entries of one changed; `...` takes an entry out."""
    files = {name: v for name, v in exported(kind)[1].items() if name.endswith(".json")}
    content = files[file] | entries
    return {**files, file: {k: value for k, value in content.items() if value is not ...}}


def refuses(*words):
    """A UserError of one line that has all the words."""
    return pytest.raises(
        UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words)
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- without torch


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_reads_back_exactly(tmp_path, kind):
    params, files = exported(kind)
    hub_folder.write_folder(tmp_path / "one", files)
    for name in ("vocab.json", "trainer_state.json", "generation_config.json"):
        (tmp_path / "one" / name).write_text("{broken")
    opened = trained.open_folder(tmp_path / "one")
    assert opened.family is FAMILY
    assert opened.card == card(kind)
    chex.assert_trees_all_equal(opened.params, params)
    hub_folder.write_folder(tmp_path / "two", FAMILY.export(opened.params, opened.card))
    again = contents(tmp_path / "two")
    assert {name: contents(tmp_path / "one")[name] for name in again} == again
    hub = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(again) == hub | {"README.md"}
    kept = tokenizer.open_tokenizer(str(tmp_path / "two"))
    assert (kept.digest, kept.special) == (learnt().digest, learnt().special)


def test_an_exported_folder_starts_a_run(tmp_path):
    params, files = exported("masked")
    hub_folder.write_folder(tmp_path / "model", files)
    weights = pretrained.open_weights(str(tmp_path / "model"))
    run = settings(dim=64, depth=7, mask_rate=0.3, dropout_finetune=0.0)
    read = FAMILY.read_config(run, weights.config, {})
    assert read == settings(mask_rate=0.3, dropout_finetune=0.0)
    backbone = FAMILY.make(read, jnp.float32)
    loaded, report = pretrained.load(weights, backbone, jax.random.key(0), "stop")
    chex.assert_trees_all_equal(loaded, params)
    assert report.initialised == report.left_out == report.notes == []
    # A classifier's encoder can be trained further; its missing decoder is told.
    hub_folder.write_folder(tmp_path / "tuned", exported("classifier")[1])
    weights = pretrained.open_weights(str(tmp_path / "tuned"))
    with refuses("has no decoder", "lm_head"):
        pretrained.load(weights, backbone, jax.random.key(0), "stop")
    _, report = pretrained.load(weights, backbone, jax.random.key(0), "scratch")
    assert len(report.left_out) == 4


def test_what_is_left_out_has_its_default():
    described = FAMILY.describe(changed(file="tokenizer_config.json", model_max_length=...))
    assert described.input["max_length"] == 58
    for given, read in ((int(1e30), 58), (1e30, 58), (None, 58), (58, 58), (59, 58), (3, 3)):
        files = changed(file="tokenizer_config.json", model_max_length=given)
        assert FAMILY.describe(files).input["max_length"] == read
    del files["tokenizer_config.json"]
    assert FAMILY.describe(files).input["max_length"] == 58
    defaults = {"bos_token_id": None, "pad_token_id": ..., "eos_token_id": ..., "hidden_act": ...}
    rates = {"hidden_dropout_prob": None, "attention_probs_dropout_prob": ...}
    described = FAMILY.describe(changed(**defaults, **rates, is_decoder=..., label2id=...))
    dropout = {name: 0.1 for name in vars(settings()) if "dropout" in name}
    assert described == card("classifier")._replace(settings=settings(**dropout))
    two = FAMILY.describe(changed(id2label=..., label2id=...))
    assert two.class_names == ("LABEL_0", "LABEL_1")
    assert FAMILY.describe(changed(architectures=None)).class_names == NAMES


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "bert"}, ("model_type is 'bert'",)),
        ({"is_decoder": True}, ("is_decoder is True",)),
        ({"type_vocab_size": ...}, ("type_vocab_size is 2",)),
        ({"hidden_size": "16"}, ("hidden_size: int is expected",)),
        ({"hidden_size": ...}, ("no hidden_size",)),
        ({"num_attention_heads": 3}, ("multiple", "heads")),
        ({"hidden_dropout_prob": 1.5}, ("hidden_dropout_prob: must be below 1",)),
        ({"pad_token_id": [1]}, ("pad_token_id: int is expected",)),
        ({"pad_token_id": 7}, ("tokenizer.json", "<pad>", "1", "7", "belongs to the weights")),
        ({"vocab_size": 50265}, ("tokenizer.json", "290 entries", "50265")),
        ({"max_position_embeddings": 10**30}, ("max_position_embeddings: must be at most",)),
        ({"max_position_embeddings": 4}, ("max_position_embeddings leaves 2",)),
        ({"architectures": ["RobertaModel"], "id2label": ...}, ("neither a classifier",)),
        ({"architectures": 3, "id2label": ...}, ("neither a classifier",)),
        ({"problem_type": "regression"}, ("problem_type is 'regression'",)),
        ({"id2label": ["a", "b"]}, ("id2label is ['a', 'b']",)),
        ({"id2label": ..., "num_labels": 10**12}, ("num_labels: must be at most",)),
    ],
)
def test_models_that_cannot_be_described(entries, words):
    with refuses(*words):
        FAMILY.describe(changed(**entries))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model": ...}, ("no model.vocab",)),
        ({"model": []}, ("no model.vocab",)),
        ({"model": {"vocab": [["<s>", 0.0]]}}, ("no model.vocab",)),
        ({"model": {"vocab": {"<s>": "0"}}}, ("entry '<s>' has the id '0'",)),
        ({"model": {"vocab": {}}, "added_tokens": []}, ("no entry <s> <pad>",)),
        ({"added_tokens": 3}, ("added_tokens is not a list",)),
        ({"added_tokens": ["<s>"]}, ("added_tokens is not a list",)),
        ({"added_tokens": [{"content": "<s>"}]}, ("entry '<s>' has the id None",)),
        ({"added_tokens": [{"content": "new", "id": 290}]}, ("291 entries, the model 290",)),
        ({"added_tokens": [{"content": "new", "id": 295}]}, ("the ids are not 0 to 290",)),
        ({"added_tokens": [{"content": "<mask>", "id": -1}]}, ("the ids are not 0 to 289",)),
    ],
)
def test_tokenizers_that_cannot_be_described(entries, words):
    with refuses("tokenizer.json", *words):
        FAMILY.describe(changed(file="tokenizer.json", **entries))


@pytest.mark.parametrize("value", [2, -1, "512", [512], 3.5, True, float("nan")])
def test_lengths_that_cannot_be_described(value):
    with refuses("tokenizer_config.json: model_max_length"):
        FAMILY.describe(changed(file="tokenizer_config.json", model_max_length=value))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_both_files_are_needed(name):
    files = changed()
    del files[name]
    with refuses(f"no {name}: put the model's own"):
        FAMILY.describe(files)


def places(value, path=()):
    """The paths of all values in JSON, the first few of each list or object."""
    yield path
    if isinstance(value, dict | list):
        children = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, child in children[:40]:
            yield from places(child, (*path, key))


def test_whatever_a_file_holds_is_described_or_refused():
    generator = random.Random(0)
    odd = [None, True, 0, -1, 10**30, 1.5, 1e30, "", "x", [], [1], [[]], {}, {"a": []}, [{}]]
    files = changed()
    everywhere = [(name, path) for name, content in files.items() for path in places(content)]
    refused = []
    for _ in range(1200):
        name, path = generator.choice(everywhere)
        fuzzed = files
        if path:
            fuzzed = {**files, name: copy.deepcopy(files[name])}
            inner = fuzzed[name]
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = generator.choice(odd)
        else:
            fuzzed = {**files, name: generator.choice(odd)}
        try:
            described = FAMILY.describe(fuzzed)
        except UserError as error:
            refused.append(str(error))
        else:
            assert isinstance(described.input["max_length"], int)
    assert 100 < len(refused) < 1100
    assert not any("\n" in line for line in refused)


def test_exports_that_do_not_fit():
    params, right = exported("classifier")[0], card("classifier")
    with refuses("4 classes", "3 class names"):
        FAMILY.export(params, right._replace(class_names=NAMES[:3]))
    with refuses("0 classes", "4 class names"):
        FAMILY.export(exported("masked")[0], right)
    with refuses("tokenizer", "200 entries", "290"):
        FAMILY.export(params, right._replace(input=right.input | {"vocab_size": 200}))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"vocab_size": 300}, ("config.source.tokenizer", "300 entries, the model 290")),
        ({"special": {"pad": 0}}, ("config.source.tokenizer", "<pad> has the id 0", "pad_id is 1")),
        ({"special": {"mask": 5}}, ("config.source.tokenizer", "<mask>", "mask_id is 289")),
        ({"max_length": 59}, ("config.source.max_length", "at most 58", "got 59")),
        ({"kind": "image"}, ("config.source.name", "images")),
    ],
)
def test_data_that_the_model_cannot_take(entries, words):
    data = texts_of(learnt(), max_length=58)
    FAMILY.check_input(settings(), data, "data")
    FAMILY.check_input(settings(), data | {"special": data["special"] | {"unk": 9}}, "data")
    special = data["special"] | entries.get("special", {})
    with refuses(*words):
        FAMILY.check_input(settings(), data | entries | {"special": special}, "source")


def test_classifiers_that_do_not_fit():
    tensors = exported("classifier")[1]["model.safetensors"]

    def load(changes, classes=4):
        content = {name: v for name, v in (tensors | changes).items() if v is not None}
        weights = pretrained.Weights("somewhere", None, content, "")
        return pretrained.load_classifier(weights, FAMILY.make(settings(), jnp.float32), classes)

    head = [name for name in tensors if name.startswith("classifier.")]
    assert len(head) == 4
    with refuses("somewhere", "no classifier head"):
        load(dict.fromkeys(head))
    for name in head:
        with refuses("somewhere", f"lacks {name}"):
            load({name: None})
    with refuses("head/out/bias", "(4,)", "(7,)"):
        load({}, classes=7)
    with refuses("lacks roberta.embeddings.LayerNorm.bias"):
        load({"roberta.embeddings.LayerNorm.bias": None})


def test_the_names_of_special_entries_are_those_of_the_data_side():
    assert roberta_export.SPECIAL == tokenizer.SPECIAL


# --- with torch


def rows_of(encoded):
    """Our batch with one text per row."""
    length, lengths = max(map(len, encoded)), [len(ids) for ids in encoded]
    tokens = np.full((len(encoded), length), 1, np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    count = np.arange(len(encoded), dtype=np.int32)
    place = np.arange(length, dtype=np.int32)[None]
    used = (place < np.array(lengths)[:, None]).astype(np.int32)
    batch = {
        "tokens": tokens,
        "segment": used,
        "position": place * used,
        "document": np.broadcast_to(count[:, None], tokens.shape),
        "index": count,
        "row": count,
        "start": 0 * count,
        "weight": np.ones(len(encoded), np.float32),
    }
    return jax.tree.map(jnp.asarray, batch)


def our_logits(opened, encoded):
    """Of a `trained.Trained`: [texts, classes] or, masked, [texts, length, vocab_size]."""
    backbone, batch = opened.family.make(opened.card.settings, jnp.float32), rows_of(encoded)
    if opened.card.class_names:
        return np.asarray(backbone.logits(opened.params, batch, None, False))
    rows, length = batch["tokens"].shape
    row, column = np.divmod(np.arange(rows * length), length)
    free = jnp.zeros(rows * length, jnp.int32)
    mask = roberta.Mask(
        batch["tokens"], jnp.asarray(row), jnp.asarray(column), free, free, free == 0, free[0]
    )
    logits = backbone.reconstruct(opened.params, batch, mask, None, False)
    return np.asarray(logits).reshape(rows, length, -1)


def their_logits(model, encoded):
    import torch

    batch = rows_of(encoded)
    ids, mask = (torch.tensor(np.asarray(batch[name])).long() for name in ("tokens", "segment"))
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits.numpy()


def assert_equal_logits(opened, model, encoded):
    ours, theirs = our_logits(opened, encoded), their_logits(model, encoded)
    assert np.ptp(ours) > 0.5
    if opened.card.class_names:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:  # padding means nothing
        for mine, other, ids in zip(ours, theirs, encoded, strict=True):
            np.testing.assert_allclose(mine[: len(ids)], other[: len(ids)], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_does_as_we_do(tmp_path, kind):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hub_folder.write_folder(tmp_path / "model", exported(kind)[1])
    auto, own = {
        "classifier": ("AutoModelForSequenceClassification", "RobertaForSequenceClassification"),
        "masked": ("AutoModelForMaskedLM", "RobertaForMaskedLM"),
    }[kind]
    model, info = getattr(transformers, auto).from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert type(model).__name__ == own
    assert not any(info.values()), info
    encoded = learnt().encode(TEXTS, 40).tokens
    for reader in (transformers.AutoTokenizer, transformers.RobertaTokenizer):
        theirs = reader.from_pretrained(tmp_path / "model")
        ids = theirs(TEXTS, truncation=True)["input_ids"]
        assert [tokens.tolist() for tokens in encoded] == ids
        assert (theirs.model_max_length, len(theirs)) == (40, 290)
        special = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 289, "cls": 0, "sep": 2}
        assert {name: getattr(theirs, f"{name}_token_id") for name in special} == special
    opened = trained.open_folder(tmp_path / "model")
    assert_equal_logits(opened, model, learnt().encode(SAFE, 40).tokens)
    assert model.config.hidden_dropout_prob == 0.2
    if kind == "classifier":
        assert model.config.id2label == dict(enumerate(NAMES))
        assert model.config.label2id == {name: label for label, name in enumerate(NAMES)}
        assert model.config.num_labels == 4
        assert model.classifier.dropout.p == 0.2


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_loads_the_model(tmp_path, kind):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    hub_folder.write_folder(tmp_path / "model", exported(kind)[1])
    text = (tmp_path / "model" / "README.md").read_text().replace("DIR", f"{tmp_path}/model")
    found: dict = {}
    exec(re.findall("```python\n(.*?)```", text, re.DOTALL)[0], found)  # as its reader would
    assert found["logits"].shape[0] == 1


@pytest.mark.torch
def test_a_pipeline_classifies(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hub_folder.write_folder(tmp_path / "model", exported("classifier")[1])
    classify = transformers.pipeline("text-classification", str(tmp_path / "model"), device="cpu")
    found = classify(SAFE, truncation=True, batch_size=4)
    opened = trained.open_folder(tmp_path / "model")
    logits = our_logits(opened, learnt().encode(SAFE, 40).tokens)
    assert [entry["label"] for entry in found] == [NAMES[label] for label in logits.argmax(1)]
    scores = [entry["score"] for entry in found]
    np.testing.assert_allclose(scores, jax.nn.softmax(logits).max(1), atol=1e-5)


@pytest.mark.torch
def test_a_tokenizer_with_more_settings_stays_what_it_is(tmp_path):
    transformers = pytest.importorskip("transformers")
    _, files = exported("masked")
    other = copy.deepcopy(files["tokenizer.json"])
    other["pre_tokenizer"]["add_prefix_space"] = True
    hub_folder.write_folder(tmp_path / "model", files | {"tokenizer.json": other})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = tokenizer.open_tokenizer(str(tmp_path / "model")).encode(["a b"], 40).tokens[0]
    assert theirs("a b")["input_ids"] == ours.tolist()
    assert ours.tolist() != learnt().encode(["a b"], 40).tokens[0].tolist()


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_folder_of_transformers_is_read(tmp_path, kind, form):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    s = settings()
    config = transformers.RobertaConfig(
        vocab_size=s.vocab_size,
        hidden_size=s.dim,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=s.mlp_dim,
        max_position_embeddings=s.max_positions,
        layer_norm_eps=s.layer_norm_eps,
        type_vocab_size=1,
        **({"id2label": dict(enumerate(NAMES))} if kind == "classifier" else {}),
    )
    names = {"classifier": "RobertaForSequenceClassification", "masked": "RobertaForMaskedLM"}
    model = getattr(transformers, names[kind])(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    learnt().save(tmp_path)
    if form == "RobertaTokenizer":
        theirs = transformers.RobertaTokenizer.from_pretrained(str(tmp_path))
    else:
        special = {f"{name}_token": token for name, token in tokenizer.SPECIAL.items()}
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), **special
        )
    model.save_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")
    opened = trained.open_folder(tmp_path / "model")
    assert opened.card.class_names == (NAMES if kind == "classifier" else ())
    assert opened.card.input["max_length"] == 58
    assert opened.card.settings.dropout_pretrain == 0.1
    again = tokenizer.open_tokenizer(str(tmp_path / "model"))
    assert (opened.card.input["special"], opened.card.input["vocab_size"]) == (again.special, 290)
    encoded = again.encode(TEXTS, 40).tokens
    ids = theirs(TEXTS, truncation=True, max_length=40)["input_ids"]
    assert [tokens.tolist() for tokens in encoded] == ids
    assert_equal_logits(opened, model, again.encode(SAFE, 40).tokens)
