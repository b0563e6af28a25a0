"""Twitter-Emotion (Mohammad et al., 2018) as in TweetEval: 3,257 training, 374 validation and 1,421
test tweets of 4 emotions."""

from sdfp.data import layout, text_files, texts
from sdfp.data.interface import Dataset, Download
from sdfp.settings import TextData

PUBLISHED = (3257, 1421)
FOLDER = "emotion"
_COMMIT = "4fbd22cd78421f05b1ecdb4fc5725bc7a7bd8f66"
_PATH = f"{_COMMIT}/datasets/{FOLDER}"
ABOUT = (
    "Twitter-Emotion is TweetEval's folder emotion with mapping.txt and {train,val,test}_text.txt "
    "and _labels.txt; get it with `python -m sdfp.data.fetch twitter_emotion --dir DIR` or from "
    f"https://github.com/cardiffnlp/tweeteval/tree/{_PATH}"
)
DOWNLOADS = tuple(
    Download(
        f"https://raw.githubusercontent.com/cardiffnlp/tweeteval/{_PATH}/{name}.txt",
        size,
        f"sha256:{digest}",
        f"{name}.txt",
        FOLDER,
    )
    for name, size, digest in (
        ("mapping", 34, "656dea85d149716af96206ca19bec0d94e9dc6de3f5079f5c7c2a241ec76cadb"),
        ("train_text", 306_630, "2c62f67aeb3eac1aea0e5a9c3d0f4bc337992581f3f858061786a1fb4d79d95e"),
        ("train_labels", 6_514, "987e767d8679e18abdf7de37a6d2bcd0a40a296ddd704e8d515cf0e3033c8d9c"),
        ("val_text", 34_556, "e2e30c86b8cbb97944d6543aedc06eace3bb275cb2f381aba787b838b4f23ca5"),
        ("val_labels", 748, "313730630160b7e0a6b4235b800c76683f4aeeb72d094eb69646630cd5cfe338"),
        ("test_text", 132_523, "7e1070f5d3e3fcece5bc73680bff9981e90d8f7b2f1009bfe7a01d059d1c6091"),
        ("test_labels", 2_842, "245072348c711961785be6d395997f97cf7fcda3effeae7805664171dc75f913"),
    )
)


def load(settings: TextData) -> Dataset:
    """The data set in `settings.dir`: the folder emotion or the one that holds it.

    Raises:
        UserError: nothing there, a faulty file, or a reason of `texts.assemble`.
    """
    root = layout.find(settings.dir, FOLDER, "train_text.txt", ABOUT)
    train, validation, test = (
        text_files.read_parallel(
            root / f"{part}_text.txt", root / f"{part}_labels.txt", root / "mapping.txt"
        )
        for part in ("train", "val", "test")
    )
    listing = texts.Listing(
        train=train,
        validation=validation,
        test=test,
        source=f"TweetEval files in {root}",
        published=PUBLISHED,
    )
    return texts.assemble(listing, settings)
