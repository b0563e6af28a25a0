"""The text data sets: their layouts written small, their faults, and the real files."""

import hashlib
import itertools
import shutil

import numpy as np
import pytest
from text_helpers import BYTES_ONLY, backend, rows, settings, write, write_jsonl

from sdfp.data import fetch, texts, tokenizer
from sdfp.data.registry import DATASETS
from sdfp.data.text_files import Document
from sdfp.types import UserError

INSIDE = {
    "acl_arc": "citation_intent",
    "chemprot": "chemprot",
    "scierc": "sciie-relation-extraction",
    "twitter_emotion": "emotion",
}
"""Data set -> the folder that its repository has."""
PUBLISHED = {
    "acl_arc": (1688, 139),
    "chemprot": (4169, 3469),
    "scierc": (3219, 974),
    "twitter_emotion": (3257, 1421),
}
CONTENT = {
    "train": [("[[ one ]] of << two >>", "USED-FOR"), ("β two ", "PART-OF"), ("three", "USED-FOR")],
    "dev": [("four", "USED-FOR")],
    "test": [("three", "PART-OF"), ("five\u2028", "PART-OF")],
}
"""Neither dev nor test has all classes, like ChemProt's; one test text is in train."""


def write_set(name, folder, suffix=".txt"):
    root = folder / INSIDE[name]
    if name != "twitter_emotion":
        for part, content in CONTENT.items():
            write_jsonl(root / f"{part}{suffix}", content, metadata=[1])
        return root
    write(root / "mapping.txt", "0\tPART-OF\n1\tUSED-FOR")
    for part, content in CONTENT.items():
        stem = "val" if part == "dev" else part
        write(root / f"{stem}_text.txt", "".join(f"{text}\n" for text, _ in content))
        numbers = (int(label == "USED-FOR") for _, label in content)
        write(root / f"{stem}_labels.txt", "".join(f"{number}\n" for number in numbers))
    return root


def expected(name, part):
    stem = part
    if name == "twitter_emotion":
        stem = {"dev": "val"}.get(part, part) + "_text"
    return [(f"{stem}/{n}", text, label) for n, (text, label) in enumerate(CONTENT[part])]


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("given", ["root", "parent"])
def test_public_layout(tmp_path, name, given):
    root = write_set(name, tmp_path)
    data = DATASETS[name].load(settings(root if given == "root" else tmp_path))
    assert data.class_names == ("PART-OF", "USED-FOR")
    for split, part in ((data.train, "train"), (data.validation, "dev"), (data.test, "test")):
        assert rows(data, split) == expected(name, part)
        assert {array.dtype for array in split.arrays.values()} == {np.dtype(np.int32)}
        assert split.arrays["tokens"].shape == (len(split), split.arrays["length"].max())
    assert data.unlabelled is data.train
    assert data.metric == ("micro_f1" if name == "chemprot" else "macro_f1")
    assert data.notes["published"] == PUBLISHED[name]
    assert data.notes["found"] == (3, 2)
    assert str(root) in data.notes["source"]
    assert data.notes["test_texts_in_train"] == 1
    assert [remark.split(":")[0] for remark in data.remarks] == [
        "not the whole published set",
        "1 test texts are in train too, character for character",
        "the test split has no example of 1 of the 2 classes",
    ]
    assert data.facts["remarks"] == data.remarks


@pytest.mark.parametrize("name", sorted(set(INSIDE) - {"twitter_emotion"}))
def test_the_release_of_tapt(tmp_path, name):
    plain = DATASETS[name].load(settings(write_set(name, tmp_path / "a")))
    data = DATASETS[name].load(settings(write_set(name, tmp_path / "b", ".jsonl")))
    assert data.fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", INSIDE)
def test_not_found(tmp_path, name):
    for folder in ("", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=r"^no .*data\.dir.*http") as caught:
            DATASETS[name].load(settings(folder))
        assert "\n" not in str(caught.value)
        assert (f"data.fetch {name} " in str(caught.value)) == bool(DATASETS[name].downloads)


@pytest.mark.parametrize("name", INSIDE)
def test_a_part_is_missing(tmp_path, name):
    root = write_set(name, tmp_path)
    next(root.glob("test*")).unlink()
    with pytest.raises(UserError, match=r"^cannot read .*test.*\.txt: No such file"):
        DATASETS[name].load(settings(root))


# --- your own texts


TEN = [(f"text {n} of ten", "even" if n % 2 == 0 else "odd") for n in range(10)]
load = DATASETS["text_file"].load


def csv(rows, header="text,label", comma=","):
    return header + "\n" + "".join(f"{text}{comma}{label}\n" for text, label in rows)


def test_each_format_reads_the_same(tmp_path):
    write(tmp_path / "a/train.csv", csv(TEN))
    write(tmp_path / "b/train.TSV", csv(TEN, "text\tlabel", "\t"))
    write(tmp_path / "d/train.tsv", csv(TEN, "id\tbody\tkind", "\t").replace("text", "9\ttext"))
    write_jsonl(tmp_path / "c/train.jsonl", TEN, more=None)
    read = [load(settings(tmp_path / folder, test_fraction=0.2)) for folder in "abc"]
    columns = {"text_column": "body", "label_column": "kind"}
    read.append(load(settings(tmp_path / "d", test_fraction=0.2, **columns)))
    read.append(load(settings(tmp_path / "a/train.csv", test_fraction=0.2)))
    assert len({data.fingerprint for data in read}) == 1
    assert len({data.notes["held_out"]["test"] for data in read}) == 1
    assert sorted(rows(read[0], read[0].train) + rows(read[0], read[0].test)) == [
        (f"train/{n}", text, label) for n, (text, label) in enumerate(TEN)
    ]


@pytest.mark.parametrize("name", ["dev", "validation", "val"])
def test_splits_of_a_folder(tmp_path, name):
    write(tmp_path / "train.csv", csv(TEN))
    write_jsonl(tmp_path / f"{name}.jsonl", TEN[:3])
    write(tmp_path / "test.tsv", csv(TEN[3:5], "text\tlabel", "\t"))
    write(tmp_path / "unlabelled.csv", "other,text\n1,more words\n")
    write(tmp_path / "notes.txt", "")
    write(tmp_path / "train.bak", "")
    data = load(settings(tmp_path, train_labels=4))
    assert data.notes["counts"] == {"train": 4, "unlabelled": 1, "validation": 3, "test": 2}
    assert rows(data, data.unlabelled) == [("unlabelled/0", "more words", "")]
    assert data.validation.ids == (f"{name}/0", f"{name}/1", f"{name}/2")
    assert data.notes["own_splits"] == ["test", "validation"]


@pytest.mark.parametrize("given", ["folder", "file", "table"])
def test_without_labels(tmp_path, given):
    if given == "table":
        write(tmp_path / "train.csv", csv(TEN))
    else:
        write(tmp_path / "train.txt", "".join(f"{text}\n" for text, _ in TEN))
    data = load(
        settings(
            tmp_path / "train.txt" if given == "file" else tmp_path,
            label_column="" if given == "table" else "label",
        )
    )
    assert data.class_names == ()
    assert set(data.unlabelled.arrays) == {"tokens", "length"}
    assert data.unlabelled is data.train
    assert data.test is None
    assert rows(data, data.train)[1] == ("train/1", "text 1 of ten", "")


def refused(match, *changed, **changes):
    with pytest.raises(UserError, match=match) as caught:
        load(settings(*changed, **changes))
    assert "\n" not in str(caught.value)


FAULTS = [
    ({"train.csv": csv(TEN, "body,label")}, r"train\.csv, line 1: no column 'text'; .* body, lab"),
    ({"train.csv": csv(TEN, "text,kind")}, r"train\.csv, line 1: no column 'label'"),
    ({"train.jsonl": '{"body": "a", "label": "b"}'}, r"train\.jsonl, line 1: no key 'text'"),
    ({"train.csv": b"text,label\n\xff,a\n"}, r"train\.csv, line 2: not UTF-8"),
    ({"train.txt": "a\n\n \nb\n"}, r"2 of 4 rows have an empty text: line 2, 3"),
    ({"train.csv": csv([("a", "x"), ("b", "x")])}, "at least two classes, .* have 1"),
    ({"train.csv": csv(TEN), "train.tsv": ""}, r"both .*train\.csv and .*train\.tsv .* as train"),
    ({"train.csv": csv(TEN), "dev.csv": "", "val.txt": ""}, r"both .*dev\.csv and .*val\.txt"),
    ({"train.csv": csv(TEN), "test.txt": "a\n"}, r"test\.txt: plain lines have no labels, train.c"),
    ({"train.csv": csv(TEN), "test.csv": csv([("a", "new")])}, r"1 of 1 test texts .* \(new\), fi"),
    (
        {"train.csv": csv(TEN), "dev.csv": csv([("a", "z")])},
        r"validation texts .* \(z\), first dev",
    ),
    ({"train.csv": csv(TEN)}, "no test split"),
    ({"test.csv": csv(TEN)}, r"no train\.csv, \.tsv, .* in "),
    ({}, r"no train\.csv.*config\.data\.dir"),
]


@pytest.mark.parametrize(("files", "match"), FAULTS)
def test_faults_are_one_line(tmp_path, files, match):
    for name, content in files.items():
        write(tmp_path / name, content)
    refused(match, tmp_path)


def test_faulty_settings(tmp_path):
    file = write(tmp_path / "train.csv", csv(TEN))
    refused(r"no train\.csv.*no folder given")
    refused(r"no train\.csv.*nowhere", tmp_path / "nowhere")
    refused(r"a\.pdf: a file of texts is one of \.csv", write(tmp_path / "a.pdf", "x"))
    refused(r"vocab_size=260: .*at least 261.*data\.tokenizer", file, vocab_size=260)
    refused(r"only \d+ entries, not 5000", file, vocab_size=5000, test_fraction=0.2)
    refused(r"none: no such", file, tokenizer=str(tmp_path / "none"))
    refused(r"train_labels=1 must be at least the 2", file, test_fraction=0.2, train_labels=1)
    write(tmp_path / "test.csv", csv(TEN))
    refused(r"test_fraction: the data set has its own test", tmp_path, test_fraction=0.2)


def test_nothing_to_train_on():
    with pytest.raises(UserError, match="no text to train on in here"):
        texts.assemble(texts.Listing([], "here", corpus=["a"]), settings())


# --- what all of them share


def test_cuts(tmp_path):
    file = write(tmp_path / "train.csv", csv(TEN))
    cuts = {"test_fraction": 0.2, "validation_fraction": 0.25}
    whole, some = (load(settings(file, **cuts, train_labels=budget)) for budget in (0, 4))
    assert whole.notes["counts"] == {"train": 6, "unlabelled": 6, "validation": 2, "test": 2}
    assert some.notes["counts"] == {"train": 4, "unlabelled": 4, "validation": 2, "test": 2}
    assert set(some.train.ids) < set(whole.train.ids)
    for data, part in itertools.product((whole, some), ("train", "validation", "test")):
        split = getattr(data, part)
        assert np.bincount(split.arrays["label"]).tolist() == [len(split) // 2] * 2
    assert whole.notes["tokenizer"] == some.notes["tokenizer"]
    assert whole.prepare is some.prepare  # what is compiled is shared
    assert whole.prepare({"tokens": 1}, None, True) == {"tokens": 1}


def test_shared_texts_are_counted_after_the_cuts(tmp_path):
    file = write(tmp_path / "train.csv", csv(TEN + TEN))
    data = load(settings(file, test_fraction=0.5))
    told = {part: {row[1] for row in rows(data, getattr(data, part))} for part in ("train", "test")}
    shared = [row for row in rows(data, data.test) if row[1] in told["train"]]
    assert data.notes["test_texts_in_train"] == len(shared) > 0


def test_test_texts_among_the_unlabelled_are_told(tmp_path):
    write(tmp_path / "train.csv", csv(TEN))
    write(tmp_path / "test.csv", csv(TEN[:3]))
    write(tmp_path / "unlabelled.txt", "\n".join(text for text, _ in TEN[:2]) + "\n")
    data = load(settings(tmp_path))
    assert data.notes["test_texts_in_train"] == 3
    assert data.notes["test_texts_in_unlabelled"] == 2
    write(tmp_path / "train.csv", csv([(f"other {text}", label) for text, label in TEN]))
    data = load(settings(tmp_path))
    assert data.notes["test_texts_in_train"] == 0
    assert data.remarks == (
        "2 test texts are among the unlabelled ones, character for character: the masked stages "
        "see them",
    )


def test_no_tokenizer_is_learnt_from_held_out_texts(tmp_path):
    """One corpus for all budgets, without what is cut for test and validation."""
    file = write(tmp_path / "train.csv", csv([(f"{text} {text}", kind) for text, kind in TEN]))
    cuts = {"test_fraction": 0.2, "validation_fraction": 0.25, "vocab_size": BYTES_ONLY + 5}
    whole, some = (load(settings(file, **cuts, train_labels=budget)) for budget in (0, 4))
    assert whole.notes["tokenizer"] == some.notes["tokenizer"]
    assert whole.notes["tokenizer"]["from"] == "learnt from 6 texts"
    texts_of = {row[0]: row[1] for row in rows(whole, whole.train)}
    again = tokenizer.train_tokenizer([texts_of[name] for name in whole.train.ids], BYTES_ONLY + 5)
    assert whole.notes["tokenizer"]["digest"] == again.digest


def test_the_fingerprint(tmp_path):
    def fingerprint(name, rows=TEN, test=TEN[:2], **changes):
        write_jsonl(tmp_path / name / "train.jsonl", rows)
        write_jsonl(tmp_path / name / "test.jsonl", test)
        return load(settings(tmp_path / name, **changes)).fingerprint

    first = fingerprint("a")
    same = [
        fingerprint("a"),
        fingerprint("b"),
        fingerprint("c", test=TEN[:3]),
        fingerprint("d", split_seed=5),
        fingerprint("j", max_length=63),  # nothing is that long
    ]
    others = [
        fingerprint("e", [("text 0 of tEn", "even"), *TEN[1:]]),
        fingerprint("f", [(TEN[0][0], "odd"), *TEN[1:]]),
        fingerprint("g", TEN[::-1]),
        fingerprint("h", TEN[:-1]),
        fingerprint("i", vocab_size=BYTES_ONLY + 1),
        fingerprint("l", max_length=8),
        fingerprint("k", train_labels=8),
    ]
    assert set(same) == {first}
    assert len({first, *others}) == len(others) + 1


def test_the_fingerprint_knows_the_tokenizer_itself(tmp_path):
    """One with an entry that no text uses gives the same ids, but another <mask>."""
    write(tmp_path / "train.txt", "abc\n")
    read = []
    for size in (BYTES_ONLY, BYTES_ONLY + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        tokenizer.train_tokenizer(["zzzz"], size).save(folder)
        read.append(load(settings(tmp_path, tokenizer=str(folder))))
    assert (read[0].train.arrays["tokens"] == read[1].train.arrays["tokens"]).all()
    assert read[0].fingerprint != read[1].fingerprint


def test_truncated(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [("123456", "a"), ("1234567", "b"), ("é" * 3 + "1", "b")])
    write_jsonl(tmp_path / "test.jsonl", [("1", "a")])
    write(tmp_path / "unlabelled.txt", "12345678\n")
    data = load(settings(tmp_path, max_length=8))
    assert data.train.arrays["length"].tolist() == [8, 8, 8]
    assert rows(data, data.train)[1][1] == "123456"
    assert (data.train.arrays["tokens"][:, -1] == data.input["special"]["eos"]).all()
    assert data.notes["truncated"] == {"train": 2, "test": 0, "unlabelled": 1}
    assert data.notes["tokens"]["test"] == {"mean": 3.0, "longest": 3}
    end = "are longer than max_length=8 tokens and lose their end"
    assert data.remarks[1:] == (f"2 of 3 train texts {end}", f"1 of 1 unlabelled texts {end}")


def test_spelt_special_tokens(tmp_path):
    content = [("a <mask> b", "x"), ("plain <b>", "y"), ("two </s><s>", "y"), ("<pad>", "x")]
    write_jsonl(tmp_path / "train.jsonl", content)
    write_jsonl(tmp_path / "test.jsonl", [("123456789 <unk>", "x")])
    message = "{} texts spell out a special token like <mask> or </s>, and it is read as that token"
    whole, short = (load(settings(tmp_path, max_length=length)) for length in (64, 8))
    names = "train/0, train/2, train/3, test/0"
    assert whole.remarks[1:] == (f"{message.format(4)}: {names}",)
    assert f"{message.format(3)}: train/0, train/2, train/3" in short.remarks  # test/0's is cut off


def test_padding_and_input(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [("abc", "x"), ("a", "y")])
    write_jsonl(tmp_path / "test.jsonl", [("ab", "x")])
    data = load(settings(tmp_path))
    special = data.input["special"]
    assert special == {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": BYTES_ONLY - 1}
    assert data.train.arrays["tokens"][1].tolist() == [0, *backend(data).encode("a").ids[1:], 1, 1]
    facts = {name: data.input[name] for name in ("kind", "max_length", "vocab_size")}
    assert facts == {"kind": "text", "max_length": 64, "vocab_size": BYTES_ONLY}
    assert backend(data).get_vocab_size() == BYTES_ONLY


def test_the_tokenizer(tmp_path):
    write(tmp_path / "train.csv", csv(TEN))
    digest = lambda **changes: load(settings(tmp_path, vocab_size=268, **changes)).notes[
        "tokenizer"
    ]
    write(tmp_path / "test.csv", csv([("test test test test", "odd")]))
    learnt = digest()
    assert learnt["from"] == "learnt from 10 texts"
    write(tmp_path / "test.csv", csv([("zest zest zest zest", "odd")]))
    assert digest() == learnt  # the test texts are not for learning
    write(tmp_path / "unlabelled.txt", "quite other words\n" * 20)
    more = digest()
    assert more["from"] == "learnt from 30 texts"
    assert more["digest"] != learnt["digest"]
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.train_tokenizer([text for text, _ in TEN], 268).save(folder)
    assert digest(tokenizer=str(folder)) == {"from": str(folder), "digest": learnt["digest"]}


def test_a_corpus_of_its_own():
    train = [Document("train/0", "abab", None)]
    listing = texts.Listing(train, "here", corpus=["abab abab", "cdcd cdcd"])
    data = texts.assemble(listing, settings(vocab_size=263))
    assert data.notes["tokenizer"]["from"] == "learnt from 2 texts"


@pytest.mark.parametrize("seed", range(5))
def test_odd_texts_come_back(tmp_path, seed):
    rng = np.random.default_rng(seed)
    ranges = [(0, 256), (0x2000, 0x2100), (0xE000, 0x10000), (0x1F300, 0x1F700)]
    content = []
    for number in range(40):
        low, high = ranges[rng.integers(len(ranges))]
        points = rng.integers(low, high, rng.integers(1, 30))
        content.append((f"{number}{''.join(map(chr, points))}", "xy"[number % 2]))
    write_jsonl(tmp_path / "train.jsonl", content)
    write_jsonl(tmp_path / "test.jsonl", content[:5])
    data = load(settings(tmp_path, max_length=512))
    assert [row[1:] for row in rows(data, data.train)] == content
    assert data.notes["test_texts_in_train"] == 5
    assert data.notes["truncated"] == {"train": 0, "test": 0}


# --- the real files


REAL = {"acl_arc": 6, "scierc": 7, "twitter_emotion": 4}
SIZES = {
    "acl_arc": (1688, 114, 139),
    "scierc": (3219, 455, 974),
    "twitter_emotion": (3257, 374, 1421),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_the_real_files_are_those_that_are_fetched(real_data, tmp_path, name):
    """`fetch` verifies files that are already there; `load` finds them where it put them."""
    inside = INSIDE[name]
    local = real_data / "text" / ("tweeteval-emotion" if inside == "emotion" else inside)
    for download in DATASETS[name].downloads:
        assert download.into == inside
        content = (local / download.name).read_bytes()
        assert download.size == len(content)
        assert download.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert download.url.endswith(f"/{inside}/{download.name}")
        (tmp_path / inside).mkdir(exist_ok=True)
        shutil.copy(local / download.name, tmp_path / inside)
    fetch.fetch(DATASETS[name].downloads, tmp_path)
    chosen = settings(tmp_path, max_length=512, tokenizer=str(real_data / "tokenizer/roberta-base"))
    data = DATASETS[name].load(chosen)
    counts = data.notes["counts"]
    assert (counts["train"], counts["validation"], counts["test"]) == SIZES[name]
    assert data.notes["found"] == data.notes["published"] == PUBLISHED[name]
    assert len(data.class_names) == REAL[name]
    assert not any(data.notes["truncated"].values())
    assert data.notes["test_texts_in_train"] == (52 if name == "acl_arc" else 0)
    assert len(data.remarks) == (name == "acl_arc")
    assert data.input["vocab_size"] == 50265
    ids = (*data.train.ids, *data.validation.ids, *data.test.ids)
    assert len(set(ids)) == len(ids)
    if name == "twitter_emotion":
        assert data.class_names == ("anger", "joy", "optimism", "sadness")


@pytest.mark.real_data
def test_a_budget_of_real_texts(real_data):
    """With a tokenizer learnt from them, and texts cut."""
    folder = real_data / "text/sciie-relation-extraction"
    chosen = settings(folder, vocab_size=1000, max_length=48, train_labels=70)
    data = DATASETS["scierc"].load(chosen)
    assert data.notes["counts"]["train"] == 70
    assert len(set(data.train.arrays["label"].tolist())) == 7
    assert 35 < data.notes["truncated"]["train"] < 70
    assert "train texts are longer than max_length=48 tokens" in data.remarks[0]
    assert data.train.arrays["tokens"].shape == (70, 48)
