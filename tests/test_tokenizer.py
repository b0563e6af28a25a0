"""RoBERTa's tokenizer: the known ids, equal to transformers, and nothing wrong is silent."""

import json

import numpy as np
import pytest

from sdfp.data import tokenizer
from sdfp.data.text_files import read_jsonl, read_lines
from sdfp.types import UserError

TEXTS = [f"{word} number {i} of a small café, isn't it? 🙂" for i in range(40) for word in "abcd"]
HARD = [
    "",
    " ",
    "a  b   c",
    " leading and trailing ",
    "naïve café 🙂 don't",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "tab\tline\nnext\u2028\x85",
    "日本語 العربية ß ﬁ",
    "x <mask> y<mask>z </s> <pad>",
    "I've we'll 'S 1234567 !!!???",
    "\u0000\ufffd",
]
PLAIN = [text for text in HARD if "<mask>" not in text] + ["x </s> <pad>"]
"""Built from vocab.json, transformers 5 keeps the space before a <mask> that a text spells out;
the published tokenizer.json, and so we, take it into the <mask>."""


@pytest.fixture(scope="module")
def roberta_folder(real_data):
    return real_data / "tokenizer/roberta-base"


@pytest.fixture(scope="module")
def roberta(roberta_folder):
    return tokenizer.open_tokenizer(str(roberta_folder))


@pytest.fixture(scope="module")
def small():
    return tokenizer.train_tokenizer(TEXTS, 300)


def ids(opened, text, max_length=512):
    return opened.encode([text], max_length).tokens[0].tolist()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", [0, 31414, 232, 2]),
        ("Hello world!", [0, 31414, 232, 328, 2]),
        (" Hello world", [0, 20920, 232, 2]),
        ("naïve café 🙂 don't", [0, 2133, 48350, 26059, 45868, 218, 75, 2]),
        ("", [0, 2]),
    ],
)
def test_known_ids(roberta, text, expected):
    assert ids(roberta, text) == expected


@pytest.mark.real_data
def test_roberta_facts(roberta):
    special = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 50264}
    assert (roberta.vocab_size, roberta.special) == (50265, special)


@pytest.mark.real_data
def test_equal_to_transformers(roberta, roberta_folder, real_data):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.RobertaTokenizer.from_pretrained(str(roberta_folder))
    folder = real_data / "text"
    texts = [d.text for d in read_lines(folder / "tweeteval-emotion/train_text.txt")[:400]]
    texts += [d.text for d in read_jsonl(folder / "sciie-relation-extraction/dev.txt")[:100]]
    texts += PLAIN
    for length in (512, 12):
        expected = theirs(texts, truncation=True, max_length=length)["input_ids"]
        ours = roberta.encode(texts, length)
        assert [tokens.tolist() for tokens in ours.tokens] == expected
    assert len(ours.truncated) > 100


@pytest.mark.real_data
def test_transformers_reads_what_is_saved(roberta, small, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, opened in (("roberta", roberta), ("small", small)):
        for keep in (("tokenizer.json",), ("vocab.json", "merges.txt")):
            folder = tmp_path / f"{name}_{len(keep)}"
            folder.mkdir()
            opened.save(folder)
            for file in opened.files.keys() - keep:
                (folder / file).unlink()
            theirs = transformers.RobertaTokenizer.from_pretrained(str(folder))
            expected = theirs(PLAIN)["input_ids"]
            assert [ids(opened, text) for text in PLAIN] == expected


def test_training_gives_the_layout_of_roberta(small):
    assert small.vocab_size == 300
    assert small.special == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 299}
    assert small.digest == tokenizer.train_tokenizer(iter(TEXTS), 300).digest
    assert small.digest != tokenizer.train_tokenizer(TEXTS, 299).digest
    assert len(ids(small, TEXTS[0])) < len(TEXTS[0].encode()) / 2
    assert list(json.loads(small.files["vocab.json"]))[:4] == ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize("text", [text for text in HARD if "<" not in text])
def test_every_text_comes_back(small, text):
    tokens = ids(small, text)
    assert tokens[0] == 0
    assert tokens[-1] == 2
    assert 3 not in tokens
    assert small.decode(tokens) == text


def test_mask_takes_the_space_before_it(small):
    assert ids(small, "x <mask> y") == [0, *ids(small, "x")[1:-1], 299, *ids(small, " y")[1:]]


def test_truncation_keeps_the_end_token_and_is_counted(small):
    whole = ids(small, TEXTS[0])
    encoded = small.encode([TEXTS[0], "a", TEXTS[0]], len(whole) - 1)
    assert len(encoded.truncated) == 2
    assert encoded.tokens[0].tolist() == [*whole[:-2], 2]
    assert encoded.tokens[0].dtype == np.int32
    assert small.encode([TEXTS[0]], len(whole)).truncated == []
    assert small.encode([], 5) == ([], [])
    with pytest.raises(ValueError, match="at least 3"):
        small.encode(["a"], 2)


def test_saved_and_opened_is_the_same(small, tmp_path):
    small.save(tmp_path)
    whole = tokenizer.open_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    parts = tokenizer.open_tokenizer(str(tmp_path))
    for opened in (whole, parts):
        assert opened.digest == small.digest
        assert opened.files == small.files
        assert opened.special == small.special


def test_truncation_of_the_file_is_switched_off(small, tmp_path):
    content = json.loads(small.files["tokenizer.json"])
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    opened = tokenizer.open_tokenizer(str(tmp_path))
    assert opened.digest == small.digest
    assert ids(opened, TEXTS[0]) == ids(small, TEXTS[0])


def test_a_vocabulary_the_texts_cannot_fill():
    with pytest.raises(UserError, match=r"only \d+ entries, not 5000: lower"):
        tokenizer.train_tokenizer(TEXTS, 5000)
    with pytest.raises(ValueError, match="at least 261"):
        tokenizer.train_tokenizer(TEXTS, 260)


def broken(name, change):
    """A fault in the content of one file; the others stay, but tokenizer.json goes unless it is
    the one."""

    def spoil(folder):
        if name != "tokenizer.json":
            (folder / "tokenizer.json").unlink()
        file = folder / name
        file.write_bytes(change(file.read_bytes()))

    return spoil


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def edit(change):
    def edited(content):
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return edited


FAULTS = [
    (without("tokenizer.json", "vocab.json"), "no vocab.json there, and no tokenizer.json"),
    (without(*tokenizer.FILES), "no vocab.json and no merges.txt there"),
    (broken("tokenizer.json", lambda b: b[:500]), "tokenizer.json: not a whole tokenizer.json"),
    (broken("tokenizer.json", lambda _: b"\xff"), r"cannot read .*tokenizer\.json"),
    (
        broken("tokenizer.json", edit(lambda v: v.update(post_processor=None))),
        r"turns 'a' into \[\d+\], not into <s> \(0\)",
    ),
    (broken("vocab.json", lambda b: b[:500]), "vocab.json: not readable as JSON"),
    (broken("vocab.json", lambda _: b"[1]"), "vocab.json: not a JSON object of entries"),
    (broken("vocab.json", lambda _: b'{"a": -1}'), "a number below 0"),
    (broken("vocab.json", lambda _: b"{}"), "no entry <s> <pad> </s> <unk> <mask>"),
    (broken("vocab.json", edit(lambda v: v.pop("a"))), "vocabulary and merges|ids are not"),
    (broken("vocab.json", edit(lambda v: v.update(b=400))), "the ids are not 0 to"),
    (broken("merges.txt", lambda b: b + b"one\n"), r"merges\.txt, line \d+: expected two pieces"),
    (broken("merges.txt", lambda b: b + b"zz qq\n"), "vocabulary and merges do not fit"),
]


@pytest.mark.parametrize(("spoil", "match"), FAULTS)
def test_faults_are_one_line(small, tmp_path, spoil, match):
    small.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=match) as caught:
        tokenizer.open_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_untrained_tokenizer_is_refused(tmp_path):
    """What transformers gives without a word where its arguments are wrong."""
    vocab = {name: number for number, name in enumerate(tokenizer.SPECIAL.values())}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"turns 'a' into \[0, 2\]"):
        tokenizer.open_tokenizer(str(tmp_path))


def test_hub(monkeypatch, small, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    small.save(tmp_path)
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        if name == "no/net":
            raise hub.errors.LocalEntryNotFoundError("offline")
        if name == "no/such":
            raise OSError("not\nfound")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert tokenizer.open_tokenizer("some/model", "v1").digest == small.digest
    assert asked == [("some/model", "v1", list(tokenizer.FILES))]
    for name, match in (
        ("no/net", "no such file or folder, and the hub cannot be reached"),
        ("no/such", "download failed: OSError: not found"),
    ):
        with pytest.raises(UserError, match=f"^{name}: {match}"):
            tokenizer.open_tokenizer(name)
    for name in ("/no/where", "./x", "a/b/c", ""):
        with pytest.raises(UserError, match=r"no such file or folder|no tokenizer given"):
            tokenizer.open_tokenizer(name)
    with pytest.raises(UserError, match="a file: the tokenizer is in a folder"):
        tokenizer.open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert len(asked) == 3
