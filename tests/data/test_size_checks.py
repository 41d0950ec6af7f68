"""Warnings about crops that do not fit the images, classes smaller than a feature position, and classes that are not held out."""

import numpy as np
import pytest
from PIL import Image

from mscl_hf.config import DataConfig
from mscl_hf.data import label_warnings, load_data, open_held_out, size_warnings
from mscl_hf.data.cache import with_cache
from mscl_hf.data.size_checks import median_short_side
from mscl_hf.data.splits import open_split, usable


def write(root, split: str, masks: list[np.ndarray]) -> None:
    """images/SPLIT/*.png and masks/SPLIT/*.png; the images are gray."""
    for part in ("images", "masks"):
        (root / part / split).mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        Image.new("RGB", mask.shape[::-1], (number, 90, 90)).save(root / "images" / split / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")


def mask_of(height: int, width: int, small: int = 0) -> np.ndarray:
    """Class 0 on the left, class 1 on the right, and class 2 as a square of `small` px."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 1
    mask[:small, :small] = 2
    return mask


def opened(root, split: str = "train", short_side: int = 0):
    options = DataConfig("folder", str(root), classes=["road", "car", "pole"])
    return usable(with_cache(open_split(options, split), short_side, 0.0), options, lambda text: None)


def silent(text: str) -> None:
    """Log nothing."""


@pytest.mark.parametrize(
    "image_size, base_size, words",
    [(96, 96, "550 px on the short side (median) and are reduced to 96 px, which removes small objects; --image-size 288 keeps more"),
     (96, 0, "scaled to 550 px, of which crops show 17%; --image-size 288 or a smaller --base-size shows more"),
     (160, 400, "scaled to 400 px, of which crops show 40%; --image-size 288"),
     (2000, 2000, "are enlarged to 2000 px, which adds no detail; --image-size 576 is faster"),
     (184, 184, None), (512, 512, None), (512, 0, None), (1600, 1600, None)],
)  # fmt: skip
def test_crops_that_do_not_fit(tmp_path, image_size, base_size, words):
    """More than three times smaller or larger than the short side: one line, which names both and a size that fits better."""
    write(tmp_path, "train", [mask_of(550, 825) for _ in range(3)])
    warnings = size_warnings([opened(tmp_path), None], image_size, base_size, 16)
    assert [words in warning for warning in warnings] == [True] * (words is not None)


@pytest.mark.parametrize("short_side", [0, 60])
def test_classes_smaller_than_a_position(tmp_path, short_side):
    """A square of 20 px in images of 120 px is one of 10 px at 60 px, also where the masks are counted at the size of the cache."""
    write(tmp_path, "train", [mask_of(120, 160, small=20), mask_of(120, 160, small=20), mask_of(120, 160)])
    data = opened(tmp_path, short_side=short_side)
    assert size_warnings([data], 60, 60, 8) == []
    (warning,) = size_warnings([data], 60, 60, 16)
    assert warning == (
        f"1 of 3 classes of {data.name}/train are smaller than a position of the feature map (16 px): pole (10 px); "
        "a larger --base-size and --image-size enlarge them"
    )
    assert size_warnings([data], 120, 0, 16) == []


def test_what_has_no_size(tmp_path):
    """Drawn images and missing parts give no warning; the median is of the short sides, in either orientation."""
    assert median_short_side(load_data("synthetic", "train", scenes=4)) is None
    assert size_warnings([load_data("synthetic", "train", scenes=4), None], 16, 16, 32) == []
    write(tmp_path, "train", [mask_of(30, 50), mask_of(50, 40), mask_of(90, 90)])
    assert median_short_side(opened(tmp_path)) == 40


def test_classes_that_are_not_held_out(tmp_path):
    """A class of the training masks that no held-out mask holds is named; without training masks there is no such warning."""
    write(tmp_path, "train", [mask_of(40, 50, small=10)])
    write(tmp_path, "val", [mask_of(40, 52)])
    options = DataConfig("folder", str(tmp_path), classes=["road", "car", "pole"])
    training, held_out = opened(tmp_path), open_held_out(options, silent)
    (warning,) = label_warnings([training], held_out, options)
    assert warning == f"1 of 3 classes are in training masks and in none of the 1 masks of {held_out.name}/val: pole"
    assert label_warnings([], held_out, options) == []
    assert label_warnings([held_out], training, options) == [f"1 of 3 classes occur in none of the 1 masks of {held_out.name}/val: pole"]
