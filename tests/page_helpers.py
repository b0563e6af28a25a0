"""What the tests of report.html share: a page as a browser reads it, and made-up stages."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from sdfp import report
from sdfp.data.interface import Split
from sdfp.page.__main__ import main
from sdfp.train import mistakes

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a browser would have of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.refs, self.text = [], [], [], [], []
        self.tables, self.sections = [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def _note(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        assert not [name for name in found if name.startswith("on")]
        if "id" in found:
            self.ids.append(found["id"])
        named = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.refs += [found[name] for name in named if name in found]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "section":
            self.sections[found["id"]] = len(self.text)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th", "span") and "table" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def shown(self):
        return " ".join(" ".join(self.text).split())

    def images(self):
        return [found for tag, found in self.tags if tag == "img"]

    def count(self, tag):
        return sum(tag == other for other, _ in self.tags)


def made(workdir):
    """The page of a work directory, made by the command, and checked for what holds of any."""
    assert main(["--workdir", str(workdir)]) == 0
    data = (workdir / "report.html").read_bytes()
    assert not list(workdir.glob("*.tmp"))
    text = data.decode("utf-8")
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "url(http" not in text
    assert "@import" not in text
    for ref in found.refs:  # nothing leaves the file
        assert ref.startswith(("#", "data:image/"))
    assert len(found.ids) == len(set(found.ids))
    assert {ref[1:] for ref in found.refs if ref[0] == "#"} <= set(found.ids)
    assert all(image["alt"] for image in found.images())
    return found


def curves(found):
    """The names of the curves, as a screen reader tells them."""
    names = [attrs["aria-label"] for tag, attrs in found.tags if attrs.get("role") == "img"]
    return [name for name in names if "against steps" in name]


def decoded(image):
    return Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))


def metrics(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def falling(count, term="masked", every=10):
    losses = [(every * (i + 1), 5.0 / (i + 1)) for i in range(count)]
    return [{"step": s, "loss": x, term: x, "grad_norm": 1.0, "examples": 8} for s, x in losses]


def record(name, steps=100, **more):
    told = {"name": name, "steps": steps, "seconds": 61.0, "examples_per_second": 1234.5}
    return told | {"digest": "d" * 64, "init_digest": "e" * 64, "teacher_digest": None} | more


def _photographs(rng, count, size):
    """uint8 [count, size, size, 3]: crops of a real one, which compress as such."""
    photo = load_sample_image("china.jpg")
    corners = [rng.integers((photo.shape[0] - size, photo.shape[1] - size)) for _ in range(count)]
    return np.stack([photo[y : y + size, x : x + size] for y, x in corners])


def measured(folder, names, *, count=3, seed=0, size=None):
    """What evaluation leaves: of `count` examples per class, some are wrong."""
    rng = np.random.default_rng(seed)
    label = np.arange(len(names)).repeat(count)
    probability = rng.dirichlet(np.ones(len(names)) / 5, len(label))
    ids = tuple(f"{names[i]}/{n}" for n, i in enumerate(label))
    pixels = _photographs(rng, len(label), size or 1)
    split = Split({"label": label, "image": pixels}, ids)
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (label, probability.argmax(axis=1)), 1)
    folder.mkdir(parents=True, exist_ok=True)
    report.save_predictions(folder / "predictions.csv", ids, label, probability, names)
    report.save_confusion(folder / "confusion.csv", matrix, names)
    picture = lambda place: Image.fromarray(pixels[place])
    show = lambda split, places: [picture(i) if size else split.ids[i] for i in places]
    mistakes.save(folder, split, probability, names, show)
    return matrix
