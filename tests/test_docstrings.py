"""The docstrings of this very installation, and of packages written small."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from text_helpers import rows, settings, write

from sdfp.data import docstrings, tokenizer
from sdfp.data.docstrings import CLASSES, PACKAGES, PER_CLASS
from sdfp.data.registry import DATASETS
from sdfp.types import UserError

load, load_source = DATASETS["docstrings"].load, DATASETS["package_docstrings"].load
REAL = settings(vocab_size=1000, max_length=128)


@pytest.fixture(scope="module")
def target():
    return load(REAL)


@pytest.fixture(scope="module")
def source():
    return load_source(REAL)


@pytest.fixture
def fresh(monkeypatch):
    """What was read before is forgotten for the time of a test."""
    for name in ("_read_target", "_read_source"):
        read = getattr(docstrings, name).__wrapped__
        monkeypatch.setattr(docstrings, name, functools.cache(read))


# --- this installation


def test_the_target(target):
    assert target.class_names == CLASSES
    assert target.metric == "macro_f1"
    read = docstrings._read_target()
    per_class = [sum(each.label == name for each in read.documents) for name in CLASSES]
    assert max(per_class) == PER_CLASS <= 3 * min(per_class)
    texts = [each.text for each in read.documents]
    assert len(set(texts)) == len(texts)
    assert 15 < statistics.median(len(text.split()) for text in texts) < 30
    assert all(text == " ".join(text.split()) and len(text.split()) >= 5 for text in texts)
    assert target.notes["source"].endswith(
        f"standard library of Python {platform.python_version()}"
    )
    assert target.notes["own_splits"] == ["test"]
    assert target.notes["test_texts_in_train"] == 0


def test_the_test_split(target):
    """Two fifths of each class, whatever the seed and the budget."""
    counts = [np.bincount(part.arrays["label"]) for part in (target.train, target.test)]
    assert np.abs(counts[1] / (counts[0] + counts[1]) - 0.4).max() < 0.02
    few = load(dataclasses.replace(REAL, train_labels=90, split_seed=7))
    assert len(few.train) == 90
    assert few.notes["held_out"] == target.notes["held_out"]
    assert set(few.train.ids) < set(target.train.ids)
    assert len({*target.train.ids, *target.test.ids}) == len(docstrings._read_target().documents)


def test_the_source(target, source):
    assert not source.train.labelled
    assert 10_000 < len(source.train) <= docstrings.PARAGRAPHS
    assert len(set(source.train.ids)) == len(source.train)
    assert {name.split("/")[0] for name in source.train.ids} == set(PACKAGES.values())
    texts = {each.text for each in docstrings._read_source().documents}
    assert len(texts) == len(source.train)
    assert not texts & {each.text for each in docstrings._read_target().documents}
    versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    assert source.notes["source"] == f"docstrings of {', '.join(versions)}"
    assert source.notes["tokenizer"] == target.notes["tokenizer"]
    assert source.notes["tokenizer"]["from"] == f"learnt from {len(source.train)} texts"


def test_the_ids_name_the_line(target):
    label = target.train.arrays["label"].tolist()
    for name, number in list(zip(target.train.ids, label, strict=True))[::50]:
        file, _, line = name.rpartition(":")
        assert file.startswith(f"{CLASSES[number]}/")
        lines = Path(sysconfig.get_path("stdlib"), file).read_text("utf-8").split("\n")
        assert lines[int(line) - 1].strip().lstrip("rR")[0] in "\"'"


SHOW = """
import hashlib, sys
from sdfp.data import docstrings
docstrings.PACKAGES = {"optax": "optax"}
both = docstrings._read_target(), docstrings._read_source()
assert "optax" not in sys.modules
print(hashlib.sha256(ascii(both).encode()).hexdigest())
"""


def test_another_process_reads_the_same(fresh, monkeypatch, tmp_path):
    """Whatever its hashes, locale, folder and warnings."""
    monkeypatch.setattr(docstrings, "PACKAGES", {"optax": "optax"})
    both = docstrings._read_target(), docstrings._read_source()
    changed = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.getcwd()}
    told = subprocess.run(
        [sys.executable, "-OO", "-W", "error::SyntaxWarning", "-c", SHOW],
        cwd=tmp_path,
        env={**os.environ, **changed},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == hashlib.sha256(ascii(both).encode()).hexdigest()


# --- packages written small


@pytest.fixture
def small(fresh, tmp_path, monkeypatch):
    """A standard library of two packages, and one package, optax, for the source."""
    monkeypatch.setattr(docstrings, "CLASSES", ("xa", "xb"))
    monkeypatch.setattr(docstrings, "PACKAGES", {"optax": "optax"})
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("xa", "xb"):
        functions = (f'def f{n}():\n  """Function {n} of {name}, no more."""' for n in range(9))
        write(tmp_path / name / "__init__.py", "\n".join(functions) + "\nraise SystemExit")
    return tmp_path


def texts_of(label):
    return [each.text for each in docstrings._read_target().documents if each.label == label]


MODULE = r'''
"""The first line of all.

    An indented paragraph, which goes.

Another one that
is kept.
"""
if True:
    class A:
        "A class below an if, \d escaped."
        async def f():
            def g(): "A function, in three levels."
try: pass
except OSError:
    def h(): "Too short."
def i(): "Half a character, \ud800, goes."
def j(): f"No docstring, but a text {1}."
match 1:
    case 1:
        def k(): "Function 8 of xb, no more."
def l(): "Function 8 of xa, no more."
'''


def test_what_is_read(small):
    write(small / "xa" / "sub" / "a.py", MODULE)
    write(small / "xa" / "b.py", '# coding: latin-1\n"Déjà vu in old files."'.encode("latin-1"))
    write(small / "xa" / "tests" / "c.py", '"A test that is not read."')
    write(small / "xa" / "test" / "c.py", '"A test that is not read."')
    write(small / "xa" / "d.txt", '"A text that is not read."')
    assert texts_of("xa") == [
        *(f"Function {n} of xa, no more." for n in range(9)),
        "Déjà vu in old files.",
        "The first line of all. Another one that is kept.",
        r"A class below an if, \d escaped.",
        "A function, in three levels.",
    ]
    assert texts_of("xb") == [f"Function {n} of xb, no more." for n in range(8)]  # 8 is in both
    assert docstrings._read_target().documents[-1].id == "xb/__init__.py:16"
    data = load(settings())
    assert len(rows(data, data.test)) == round(0.4 * 21)
    assert "left out" not in data.notes["source"]


@pytest.mark.parametrize("content", [b"print 'two'", b"\xff", b"# coding: none", b"a\0"])
def test_files_that_are_no_python(small, content):
    write(small / "xb" / "template.py", content)
    (small / "xb" / "gone.py").symlink_to("nowhere.py")
    assert len(texts_of("xb")) == 9
    told = load(settings()).notes["source"]
    assert told.endswith(f"Python {platform.python_version()} (2 unreadable files left out)")


def test_the_caps(small, monkeypatch):
    monkeypatch.setattr(docstrings, "PER_CLASS", 4)
    monkeypatch.setattr(docstrings, "PARAGRAPHS", 5)
    few = texts_of("xa")
    assert len(few) == 4
    assert few == sorted(few) != [f"Function {n} of xa, no more." for n in range(4)]
    write(small / "xa" / "z.py", '"A text of another release."')
    docstrings._read_target.cache_clear()
    assert len(set(few) & set(texts_of("xa"))) >= 3
    assert len(load_source(settings()).train) == 5


def test_a_tokenizer_of_your_own(small, monkeypatch, tmp_path):
    """Then the source is not read for the target."""
    learnt = load(settings())
    folder = tmp_path / "own"
    folder.mkdir()
    tokenizer.train_tokenizer(["a few words"] * 2, 262).save(folder)
    monkeypatch.setattr(docstrings, "_read_source", None)
    given = load(settings(tokenizer=str(folder)))
    assert given.notes["tokenizer"]["digest"] != learnt.notes["tokenizer"]["digest"]


def test_what_is_missing(small, monkeypatch):
    monkeypatch.setattr(docstrings, "CLASSES", ("xa", "tkinter"))
    with pytest.raises(UserError, match=r"^no docstring below .*tkinter: the source files of tk"):
        load(settings())
    for missing in ({"no-such": "optax"}, {"optax": "no_such"}):
        monkeypatch.setattr(docstrings, "PACKAGES", missing)
        with pytest.raises(UserError, match=r"^(no-such|optax), .* not installed: `pip install"):
            load_source(settings())


@pytest.mark.parametrize(
    ("docstring", "prose"),
    [
        ("One line.", ["One line."]),
        ("Two\nlines.\n \nTwo   paragraphs.", ["Two lines.", "Two paragraphs."]),
        ("Notes\n-----\nThe text\nbelow.\n\nMore\n====", ["The text below."]),
        ("Parameters\n----------\nx : int\n    A number.", []),
        ("See this:\n\n>>> f(x)\nhello world", ["See this:"]),
        (".. [1] A book.\n\n# a comment\n\n| a table |", []),
        ("[[1., 2.], [3., 4.]]", []),
        ("A bell \a rings.", []),
    ],
)
def test_prose(docstring, prose):
    assert docstrings._prose(docstring) == prose
