"""What the program never does with what comes from outside: it runs no code of it."""

import ast
from pathlib import Path

import pytest

from sdfp.data.registry import DATASETS

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for path in sorted((ROOT / "sdfp").rglob("*.py"))
}
CALLS = [
    (file, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords})
    for file, tree in SOURCES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
]


def calls(*names) -> list[tuple[str, dict[str, str]]]:
    """Where functions are called, and with which keywords."""
    return [(file, keywords) for file, name, keywords in CALLS if name in names]


def importers(module: str) -> set[str]:
    return {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and module in {a.name for a in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module == module)
    }


def test_pickles_are_read_in_one_place():
    """With an unpickler that knows no function but its own; convert_pth names an exception."""
    assert importers("pickle") == {"sdfp/data/cifar100.py", "sdfp/convert_pth.py"}
    assert not calls("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler")
    for module in ("dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "msgpack"):
        assert not importers(module)


def test_arrays_and_tensors_are_read_without_pickles():
    assert {keywords.get("allow_pickle") for _, keywords in calls("np.load")} == {"False"}
    ((file, keywords),) = calls("torch.load")
    assert (file, keywords["weights_only"]) == ("sdfp/convert_pth.py", "True")


def test_no_text_is_run():
    """A config file is a program of the user's, and the only one."""
    assert not calls("eval", "exec", "compile", "os.system", "os.popen", "importlib.import_module")
    assert importers("subprocess") == {"sdfp/report.py"}  # git is asked for the commit
    assert {file for file, _ in calls("runpy.run_path")} == {"sdfp/config.py"}


def test_no_code_of_a_model_is_fetched():
    assert not importers("transformers")
    assert not [call for call in CALLS if "trust_remote_code" in call[2]]


def test_archives_are_extracted_by_members_that_were_looked_at():
    found = calls("opened.extractall")
    assert [file for file, _ in found] == ["sdfp/data/unpack.py"] * 2
    assert "'data'" in {keywords.get("filter") for _, keywords in found}
    assert not calls("shutil.unpack_archive")


DOWNLOADS = [(name, each) for name, entry in DATASETS.items() for each in entry.downloads]


@pytest.mark.parametrize(("name", "download"), DOWNLOADS)
def test_downloads_are_pinned(name, download):
    kind, _, digest = download.digest.partition(":")
    assert download.size > 0
    if (
        name == "chest_xray"
    ):  # no digest is published: what is left are HTTPS, size and the zip's own
        assert download.url.startswith("https://")
        assert download.name.endswith(".zip")
    else:
        assert len(digest) == {"sha256": 64, "md5": 32}[kind]
        assert set(digest) <= set("0123456789abcdef")
