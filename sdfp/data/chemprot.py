"""ChemProt (Kringelum et al., 2016): 4,169 training, 2,427 development and 3,469 test sentences;
the class is one of 13 relations between the marked chemical and protein. The development and the
test part lack one class each.

The files are not fetched: neither their sizes nor their digests are known here, so that a download
could not be verified.
"""

from sdfp.data import scibert, texts
from sdfp.data.interface import Dataset
from sdfp.settings import TextData

PUBLISHED = (4169, 3469)
FOLDER = "chemprot"
ABOUT = (
    f"ChemProt is a folder {FOLDER} with train.txt, dev.txt and test.txt; download these three "
    f"from {scibert.PAGE}/{FOLDER}"
)


def load(settings: TextData) -> Dataset:
    """The data set in `settings.dir`: the folder chemprot or the one that holds it.

    Raises:
        UserError: nothing there, a faulty file, or a reason of `texts.assemble`.
    """
    listing = scibert.from_files(settings.dir, FOLDER, ABOUT, PUBLISHED, metric="micro_f1")
    return texts.assemble(listing, settings)
