"""Readers of text files: every line is the line it is, and every fault is told in one line."""

import json
import re

import numpy as np
import pytest

from sdfp.data import text_files
from sdfp.data.text_files import Document
from sdfp.types import UserError

ODD = ["a\u2028b", "c\x85d", "e\x0cf\x1cg", "h\ri", " kept "]
"""What `str.splitlines` would cut."""


def write(file, content):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_jsonl(tmp_path):
    lines = [json.dumps({"text": t, "label": "x", "metadata": {}}, ensure_ascii=False) for t in ODD]
    documents = text_files.read_jsonl(write(tmp_path / "train.txt", "\n".join(lines)))
    assert documents == [Document(f"train/{n}", text, "x") for n, text in enumerate(ODD)]


def test_blank_lines_of_jsonl(tmp_path):
    file = write(tmp_path / "a.jsonl", f"\n{GOOD}\r\n \n{GOOD}\n")
    assert text_files.read_jsonl(file) == [("a/0", "a", "x"), ("a/1", "a", "x")]


def test_jsonl_keys(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"body": "b", "class": 3, "text": 1}\n')
    assert text_files.read_jsonl(file, "body", "class") == [("a/0", "b", "3")]
    assert text_files.read_jsonl(file, "body", None) == [("a/0", "b", None)]


def test_lines(tmp_path):
    file = write(tmp_path / "raw.txt", "\n".join(ODD) + "\n")
    assert [document.text for document in text_files.read_lines(file)] == ODD
    windows = write(tmp_path / "win.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \n")
    assert text_files.read_lines(windows) == [("win/0", "one", None), ("win/1", "two", None)]


def write_parallel(folder, texts="one\ntwo\n", labels="1\n0\n", mapping="0\tanger\n1\tjoy"):
    contents = {"train_text.txt": texts, "train_labels.txt": labels, "mapping.txt": mapping}
    return [write(folder / name, content) for name, content in contents.items()]


def test_parallel(tmp_path):
    documents = text_files.read_parallel(*write_parallel(tmp_path, "one\u2028 \ntwo"))
    assert documents == [("train_text/0", "one\u2028 ", "joy"), ("train_text/1", "two", "anger")]


def test_tables(tmp_path):
    content = 'id,label,text\n1,x,"two, ""quoted""\nlines"\r\n2,y,a\u2028b\n'
    documents = text_files.read_table(write(tmp_path / "t.csv", content))
    assert documents == [("t/0", 'two, "quoted"\nlines', "x"), ("t/1", "a\u2028b", "y")]
    file = write(tmp_path / "t.TSV", 'body\tkind\n"never closed\tx\nnext, one\ty\n')
    expected = [("t/0", '"never closed', "x"), ("t/1", "next, one", "y")]
    assert text_files.read_table(file, "body", "kind") == expected
    assert text_files.read_table(file, "body", None)[1] == ("t/1", "next, one", None)


GOOD = '{"text": "a", "label": "x"}\n'
JSONL_FAULTS = [
    (GOOD + "{\n", r"line 2: not valid JSON"),
    (GOOD + "\n" + GOOD + "{", r"line 4: not valid JSON"),
    (GOOD + "[1]\n", r"line 2: not a JSON object"),
    ("[" * 100_000, r"line 1: not valid JSON"),
    (GOOD + '{"text": "a"}\n', r"line 2: no key 'label'; the keys are text"),
    (GOOD + '{"label": "a"}\n', r"line 2: no key 'text'"),
    (GOOD + '{"text": 1, "label": "a"}\n', r"line 2: 'text' must be a text, it is '1'"),
    (GOOD + '{"text": "a", "label": null}\n', r"line 2: 'label' must be .*number, it is 'None'"),
    (GOOD + '{"text": "a", "label": true}\n', r"line 2: 'label' must be"),
    (GOOD.encode() * 2 + b'{"text": "\xff"}\n', r"line 3: not UTF-8"),
    (b"\xef\xbb\xbf" + GOOD.encode() + b"\xff", r"line 2: not UTF-8"),
    (GOOD + '{"text": "\\ud800", "label": "a"}', r"line 2: half a character"),
    (GOOD + '{"text": " \\n", "label": "a"}\n' * 6, r"6 of 7 rows have an empty text: line 2, 3, "),
    (GOOD + '{"text": "a", "label": " "}\n', r"1 of 2 rows have an empty label: line 2"),
    ("", r"no text in it"),
]


@pytest.mark.parametrize(("content", "match"), JSONL_FAULTS)
def test_jsonl_faults(tmp_path, content, match):
    refused(text_files.read_jsonl, write(tmp_path / "f.jsonl", content), match=match)


def refused(read, file, *rest, match):
    with pytest.raises(UserError, match=match) as caught:
        read(file, *rest)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value) or any(str(other) in str(caught.value) for other in rest)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": "1\n"}, r"has 2 lines, .*train_labels\.txt has 1"),
        ({"texts": "one\n\n"}, r"train_text\.txt: 1 of 2 rows have an empty text: line 2"),
        ({"labels": "1\n7\n"}, r"labels\.txt, line 2: the label '7' is not in .*mapping\.txt"),
        ({"labels": "1\n\n"}, r"labels\.txt, line 2: the label ''"),
        ({"mapping": "0 anger"}, r"mapping\.txt, line 1: expected '<label><tab><name>'"),
        ({"mapping": "0\ta\n0\tb"}, r"mapping\.txt, line 2: 0 or b stands there twice"),
        ({"mapping": "0\ta\n1\ta"}, r"mapping\.txt, line 2: 1 or a stands there twice"),
        ({"texts": b"a\n\xe9\n"}, r"train_text\.txt, line 2: not UTF-8"),
        ({"texts": "", "labels": ""}, r"train_text\.txt: no text in it"),
    ],
)
def test_parallel_faults(tmp_path, change, match):
    refused(text_files.read_parallel, *write_parallel(tmp_path, **change), match=match)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.txt", "text,label\na,b\n", r"t\.txt: a table must be a \.csv or a \.tsv file"),
        ("t.csv", "text,class\na,b\n", r"line 1: no column 'label'; the columns are text, class"),
        ("t.csv", "text,text,label\na,b,c\n", r"line 1: 2 columns 'text'"),
        ("t.csv", "text;label\na;b\n", r"by ';': separate them by ','$"),
        ("t.csv", "text\tlabel\na\tb\n", r"by '\\t': separate them by ','$"),
        ("t.tsv", "text,label\na,b\n", r"by ',': separate them by '\\t'$"),
        ("t.csv", "", r"line 1: no column 'text' and 'label'; the columns are none"),
        ("t.csv", "text,label\n", r"no text in it"),
        ("t.csv", "text,label\na,b\na,b,c\n", r"line 3: 3 fields, the first line names 2"),
        ("t.tsv", "text\tlabel\na\n", r"line 2: 1 fields"),
        ("t.csv", 'text,label\nb,c\n"a,b\nc,d\n', r"line 3: unexpected end of data.* its quotes"),
        ("t.csv", 'text,label\n"a,b\n"c,d\n', r"line 2: ',' expected after '\"'"),
        ("t.csv", "text,label\na\rb,c\n", r"line 2: new-line character"),
        ("t.csv", "text,label\n,b\n", r"1 of 1 rows have an empty text: line 2; fill them in or"),
    ],
)
def test_table_faults(tmp_path, name, content, match):
    refused(text_files.read_table, write(tmp_path / name, content), match=match)


def test_blank_lines_of_a_table(tmp_path):
    """Skipped, unless they could be texts."""
    file = tmp_path / "t.csv"
    file.write_text("text,label\na,x\n\nb,y\n\n")
    assert [document.text for document in text_files.read_table(file)] == ["a", "b"]
    file.write_text("text\na\n\nb\n")
    with pytest.raises(UserError, match=r"1 of 3 rows .* empty text: line 3; .* remove them"):
        text_files.read_table(file, label=None)
    file.write_text("text\na\nb\n\n\n")
    assert [document.text for document in text_files.read_table(file, label=None)] == ["a", "b"]


def test_odd_tables(tmp_path):
    """As spreadsheets and people write them."""
    file = tmp_path / "t.csv"
    expected = [("t/0", "a\nb ", "x"), ("t/1", "c" * 200_000, "x")]
    for end in ("\n", "\r\n", "\r"):
        lines = ["text , label", '"a\nb ",x', f"{'c' * 200_000}, x ", ""]
        file.write_bytes(end.join(lines).encode())
        assert text_files.read_table(file) == expected


def test_unreadable(tmp_path):
    refused(text_files.read_lines, tmp_path / "none.txt", match=r"^cannot read .*No such file")
    refused(text_files.read_jsonl, tmp_path, match=r"^cannot read .*directory")


def of(*labels):
    return [Document(f"f/{n}", f"text {n}", label) for n, label in enumerate(labels)]


def test_labels():
    mapping = text_files.label_map(of("b", "a", "10", "2", "b"))
    assert mapping == {"10": 0, "2": 1, "a": 2, "b": 3}
    labels = text_files.encode_labels(of("b", "2"), mapping, "test")
    assert labels.tolist() == [3, 1]
    assert labels.dtype == np.int32
    assert text_files.encode_labels([], mapping, "test").shape == (0,)


@pytest.mark.parametrize(
    ("labels", "match"),
    [(("a", "a"), "have 1"), ((), "have 0"), (("a", None, "b"), "1 training texts .*: f/1")],
)
def test_no_label_map(labels, match):
    with pytest.raises(UserError, match=match):
        text_files.label_map(of(*labels))


def test_unseen_labels():
    mapping = text_files.label_map(of("a", "b"))
    message = "2 of 3 dev texts have a label that no training text has (None, z), first f/1"
    with pytest.raises(UserError, match=re.escape(message)):
        text_files.encode_labels(of("a", "z", None), mapping, "dev")


# --- the real files


def read_real(folder, name):
    parts = {}
    for part in ("train", "dev", "test"):
        if name == "tweeteval-emotion":
            prefix = "val" if part == "dev" else part
            files = (f"{prefix}_text.txt", f"{prefix}_labels.txt", "mapping.txt")
            parts[part] = text_files.read_parallel(*(folder / name / file for file in files))
        else:
            parts[part] = text_files.read_jsonl(folder / name / f"{part}.txt")
    return parts


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sizes", "classes", "shared"),
    [
        ("sciie-relation-extraction", (3219, 455, 974), 7, None),
        ("citation_intent", (1688, 114, 139), 6, 52),
        ("tweeteval-emotion", (3257, 374, 1421), 4, None),
    ],
)
def test_real_files(real_data, name, sizes, classes, shared):
    parts = read_real(real_data / "text", name)
    assert tuple(len(part) for part in parts.values()) == sizes
    mapping = text_files.label_map(parts["train"])
    assert len(mapping) == classes
    for split, part in parts.items():
        assert len(text_files.encode_labels(part, mapping, split)) == len(part)
        assert len({document.id for document in part}) == len(part)
    if shared is not None:
        train = {document.text for document in parts["train"]}
        assert sum(document.text in train for document in parts["test"]) == shared
