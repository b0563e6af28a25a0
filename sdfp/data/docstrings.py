"""Two small text sets that need no network: docstrings that every installation has.

Together they are a small-scale transfer, as `digits.py` is for images: pre-train on
`package_docstrings` (mathematics, statistics, arrays), then adapt to `docstrings` (which package of
the standard library is described?) with few labels.

Sources are parsed, never imported. They change from one release to the next: the notes name the
versions, and the fingerprint of the data set tells whether two runs read the same texts.
"""

import ast
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdfp.data import splits, texts
from sdfp.data.interface import Dataset
from sdfp.data.text_files import Document
from sdfp.settings import TextData
from sdfp.types import UserError

CLASSES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
"""The packages with 90 texts or more that no distributor leaves out, as Debian does tkinter and
idlelib. Not encodings: its docstrings are one sentence with gaps."""
PER_CLASS = 250
"""At most, so that no class has three times as many as another."""
TEST_FRACTION = 0.4
PACKAGES = {  # requirements.txt guarantees them
    "flax": "flax",
    "jax": "jax",
    "numpy": "numpy",
    "optax": "optax",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
}
"""Of the source domain: name to install -> name to import."""
PARAGRAPHS = 20_000
"""At most, of the source domain."""
LEAST_WORDS = {"docstring": 5, "paragraph": 8}
TESTS = {"test", "tests"}
"""Folders that are left out: some installations lack them, and they describe something else."""
_DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_HEADING = re.compile(r"^.+\n[-=~^]{3,}(\n|$)")


class _Read(NamedTuple):
    documents: tuple[Document, ...]
    source: str


class _Docstring(NamedTuple):
    id: str
    """"asyncio/base_events.py:123", the line where it begins."""
    prose: list[str]
    """Its paragraphs of prose, one line each."""


def load(settings: TextData) -> Dataset:
    """Docstrings of `CLASSES`, packages of the standard library, which are the classes.

    A document is the prose of one docstring. Texts that describe things in two packages are left
    out, repeated ones stand once. The stratified test split is the same for every seed.

    Raises:
        UserError: a package without source files, or a reason of `texts.assemble`.
    """
    documents, source = _read_target()
    labels = np.array([CLASSES.index(str(document.label)) for document in documents])
    order = splits.stratified_order(labels, seed=0, purpose=splits.TEST)
    keep = len(order) - round(len(order) * TEST_FRACTION)
    train, test = ([documents[i] for i in sorted(part)] for part in (order[:keep], order[keep:]))
    return texts.assemble(texts.Listing(train, source, test, corpus=_corpus(settings)), settings)


def load_source(settings: TextData) -> Dataset:
    """Paragraphs from the docstrings of `PACKAGES`, without labels.

    Raises:
        UserError: a package that is not installed, or a reason of `texts.assemble`.
    """
    documents, source = _read_source()
    listing = texts.Listing(list(documents), source, corpus=_corpus(settings))
    return texts.assemble(listing, settings)


def _corpus(settings: TextData) -> Sequence[str]:
    """What both learn their tokenizer from: the source domain alone, as with a published one."""
    if settings.tokenizer:  # then scikit-learn and its like need not be read for the target
        return ()
    return [document.text for document in _read_source().documents]


@functools.cache
def _read_target() -> _Read:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Document] = []
    skipped = 0
    for name in CLASSES:
        docstrings, faulty = _docstrings(root / name)
        skipped += faulty
        whole = (Document(each.id, " ".join(each.prose), name) for each in docstrings)
        found += _distinct(whole, LEAST_WORDS["docstring"])
    packages_of = Counter(document.text for document in found)
    documents: list[Document] = []
    for name in CLASSES:
        own = [each for each in found if each.label == name and packages_of[each.text] == 1]
        documents += _at_most(own, PER_CLASS)
    source = f"docstrings of the standard library of Python {platform.python_version()}"
    return _Read(tuple(documents), source + _told(skipped))


@functools.cache
def _read_source() -> _Read:
    found: list[Document] = []
    versions, skipped = [], 0
    for distribution, package in PACKAGES.items():
        folder, version = _installed(distribution, package)
        docstrings, faulty = _docstrings(folder)
        skipped += faulty
        versions.append(f"{distribution} {version}")
        found += [
            Document(f"{each.id}#{number}", paragraph, None)
            for each in docstrings
            for number, paragraph in enumerate(each.prose)
        ]
    documents = _at_most(_distinct(found, LEAST_WORDS["paragraph"]), PARAGRAPHS)
    return _Read(tuple(documents), f"docstrings of {', '.join(versions)}{_told(skipped)}")


def _installed(distribution: str, package: str) -> tuple[Path, str]:
    """Where a package is installed, and its version; finding them does not import it."""
    spec = importlib.util.find_spec(package)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        spec, version = None, ""
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{distribution}, whose docstrings are read, is not installed: `pip install -r "
            "requirements.txt`"
        )
    return Path(spec.submodule_search_locations[0]), version


def _docstrings(folder: Path) -> tuple[list[_Docstring], int]:
    """All docstrings below `folder` that hold prose, in the order of their files, and how many
    files cannot be read: some packages bring templates, or files for another Python."""
    found, faulty = [], 0
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}
    with _no_collection():
        for name in sorted(files):
            if TESTS & set(name.split("/")):
                continue
            try:
                tree = _parse(files[name])
            except (OSError, SyntaxError, ValueError, RecursionError):
                faulty += 1
                continue
            for line, docstring in sorted(_described(tree)):
                if prose := _prose(docstring):
                    found.append(_Docstring(f"{folder.name}/{name}:{line}", prose))
    if not found:
        raise UserError(
            f"no docstring below {folder}: the source files of {folder.name} are needed; use "
            "another installation of it"
        )
    return found, faulty


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Syntax trees are many objects and no cycles: to look for garbage takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(file: Path) -> ast.Module:
    with warnings.catch_warnings(), tokenize.open(file) as opened:
        # Of invalid escapes; where warnings are errors, the file could not be read.
        warnings.simplefilter("ignore")
        return ast.parse(opened.read())


def _described(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, docstring). Looks at statements only, which is faster than `ast.walk`."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, _DESCRIBED) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, docstring
        nodes += [each for each in ast.iter_child_nodes(node) if isinstance(each, _STATEMENTS)]


def _prose(docstring: str) -> list[str]:
    """The paragraphs without indented lines: those are lists of parameters, code and tables."""
    paragraphs = [_HEADING.sub("", each) for each in re.split(r"\n\s*\n", docstring)]
    lines = [" ".join(each.split()) for each in paragraphs if not re.search(r"^\s", each, re.M)]
    return [line for line in lines if _is_prose(line)]


def _is_prose(text: str) -> bool:
    """Mostly letters, no code or directive, and printable: no lone surrogate, no control
    character."""
    letters = sum(map(str.isalpha, text))
    return (
        letters > 0.75 * len(text.replace(" ", ""))
        and not text.startswith((".", "#", ">", "|"))
        and ">>>" not in text
        and text.isprintable()
    )


def _distinct(documents: Iterable[Document], least_words: int) -> list[Document]:
    """Those that are long enough, each text once."""
    first: dict[str, Document] = {}
    for document in documents:
        if len(document.text.split()) >= least_words:
            first.setdefault(document.text, document)
    return list(first.values())


def _at_most(documents: list[Document], most: int) -> list[Document]:
    """`most` of them, in their order. By hash, so that another release changes few of them."""
    digest = lambda document: hashlib.sha256(document.text.encode()).digest()
    chosen = set(sorted(documents, key=digest)[:most])
    return [document for document in documents if document in chosen]


def _told(skipped: int) -> str:
    return f" ({skipped} unreadable files left out)" if skipped else ""
