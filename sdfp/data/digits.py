"""Two small sets that need no network: scikit-learn's digits and crops of its two photos.

Together they are a small-scale transfer: pre-train on `sklearn_photos` (edges and strokes of
the real world), then adapt to `digits` (8 x 8 handwriting) with few labels.
"""

import numpy as np
from PIL import Image

from sdfp.data import decode, images, splits
from sdfp.data.interface import Dataset, Split
from sdfp.settings import Data

TEST_EXAMPLES = 797
"""Of 1,797 digits; the other 1,000 are the training pool that `train_labels` cuts."""
CROPS = 20_000
CROP_SIZES = (16, 200)
"""Side of a crop in pixels, drawn log-uniformly. The photos are 640 x 427."""
MIN_CONTRAST = 48
"""Range of grey values (of 255) below which a crop is blank sky: it is drawn again."""


def load(settings: Data) -> Dataset:
    """scikit-learn's `load_digits`: 1,797 grey images of 8 x 8 (UCI optdigits, test part).

    The grey values 0..16 become 0..255; other sizes are made by PIL's bilinear resize, like
    those of any image. The stratified test split of 797 is the same for every seed.
    """
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    resized = np.stack([_fit(Image.fromarray(image), settings) for image in pixels])
    every = Split(
        {"image": resized, "label": labels.astype(np.int32)},
        tuple(str(number) for number in range(len(pixels))),
    )
    train, test = splits.cut(every, len(every) - TEST_EXAMPLES, seed=0, purpose=splits.TEST)
    return images.assemble_arrays(
        train,
        test=test,
        settings=settings,
        class_names=tuple("0123456789"),
        notes={"source": "sklearn.datasets.load_digits", "broken": {}},
    )


def load_photos(settings: Data) -> Dataset:
    """20,000 random square crops of china.jpg and flower.jpg, without labels.

    Drawn from `settings.split_seed`. A crop is half the time mirrored, shrunk with averaging
    (PIL bilinear) and stretched to the full range 0..255, one range for all channels: digits
    are strokes at full contrast, and a faint texture would look unlike any of them.
    """
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    if settings.channels == 1:
        photos = [photo.convert("L") for photo in photos]  # once, not in every crop
    rng = np.random.default_rng(settings.split_seed)
    crops = []
    while len(crops) < CROPS:
        crop = _crop(photos[rng.integers(len(photos))], rng, settings)
        low, high = int(crop.min()), int(crop.max())
        if high - low >= MIN_CONTRAST:
            crops.append(np.rint((crop - float(low)) * (255 / (high - low))).astype(np.uint8))
    train = Split({"image": np.stack(crops)}, tuple(str(number) for number in range(CROPS)))
    return images.assemble_arrays(
        train,
        settings=settings,
        class_names=(),
        notes={"source": "crops of sklearn.datasets.load_sample_image", "broken": {}},
    )


def _crop(photo: Image.Image, rng: np.random.Generator, settings: Data) -> np.ndarray:
    side = int(np.exp(rng.uniform(*np.log(CROP_SIZES))))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = _fit(photo.crop((left, top, left + side, top + side)), settings)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _fit(image: Image.Image, settings: Data) -> np.ndarray:
    return decode.to_array(image, settings.image_size, settings.channels)
