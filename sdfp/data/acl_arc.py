"""ACL-ARC (Jurgens et al., 2018): 1,688 training, 114 development and 139 test sentences; the class
is one of 6 intents of a citation. 52 of the test sentences are in train too."""

from sdfp.data import scibert, texts
from sdfp.data.interface import Dataset
from sdfp.settings import TextData

PUBLISHED = (1688, 139)
FOLDER = "citation_intent"
ABOUT = (
    f"ACL-ARC is a folder {FOLDER} with train.txt, dev.txt and test.txt; get it with `python -m "
    f"sdfp.data.fetch acl_arc --dir DIR` or from {scibert.PAGE}/{FOLDER}"
)
DOWNLOADS = scibert.downloads(
    FOLDER,
    train=(465_895, "58eef60d2bbfdabefc3de25191714f769db03134523ef67e87d864112c67908c"),
    dev=(30_138, "bc456ac8caf40829dc2d3a44801a385ad8463c80682cbf002c19329b35812b5f"),
    test=(38_637, "749d083cc3141d54a2bf1475c02a5a1c020c664601d55fe2829bdf85f06db4bb"),
)


def load(settings: TextData) -> Dataset:
    """The data set in `settings.dir`: the folder citation_intent or the one that holds it.

    Raises:
        UserError: nothing there, a faulty file, or a reason of `texts.assemble`.
    """
    return texts.assemble(scibert.from_files(settings.dir, FOLDER, ABOUT, PUBLISHED), settings)
