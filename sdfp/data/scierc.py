"""SciERC (Luan et al., 2018): 3,219 training, 455 development and 974 test sentences; the class is
one of 7 relations between the two marked entities."""

from sdfp.data import scibert, texts
from sdfp.data.interface import Dataset
from sdfp.settings import TextData

PUBLISHED = (3219, 974)
FOLDER = "sciie-relation-extraction"
ABOUT = (
    f"SciERC is a folder {FOLDER} with train.txt, dev.txt and test.txt; get it with `python -m "
    f"sdfp.data.fetch scierc --dir DIR` or from {scibert.PAGE}/{FOLDER}"
)
DOWNLOADS = scibert.downloads(
    FOLDER,
    train=(823_836, "83d395d97de2c02dcb4898af3c6e34b5f5aa19771298fbc9f69ae435fa1258fb"),
    dev=(118_354, "9500a8e561f1ce50d972b8473525fe24ebae732bde653c381a4c65945965567a"),
    test=(249_465, "be4c06d2b8903783818a5e4cba08c71b954a86f00021907706f66ac3e26c58bd"),
)


def load(settings: TextData) -> Dataset:
    """The data set in `settings.dir`: the folder sciie-relation-extraction or the one that holds
    it.

    Raises:
        UserError: nothing there, a faulty file, or a reason of `texts.assemble`.
    """
    return texts.assemble(scibert.from_files(settings.dir, FOLDER, ABOUT, PUBLISHED), settings)
