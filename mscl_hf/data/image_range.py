"""The image range: which stored values of images of more than 8 bits are black and white (levels 0 and 255) to a network.

It is found over the training images, or given; the model keeps it in `config.image_range`, and whoever predicts takes it from there.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import datasets
import numpy as np

from .dataset import SegmentationData, with_progress
from .image_io import DECODE_ERRORS, decode, stores_more_than_8_bits
from .pixels import BadSample, stored_pixels

DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras and scanners
OUTLIERS = 0.001  # share of values that may lie above a detected range: a few hot pixels would make all others dark
READ_AT_MOST = 4000  # images of a data set, evenly spaced


@dataclass(frozen=True)
class StoredValues:
    """Of the images that were read: how many, how many of them have more than 8 bits, and of these the lowest and highest value, the number
    of values, how many of them lie above the range, and how many do not fit into each of DEPTHS."""

    images: int = 0
    deep: int = 0
    low: int = 0
    high: int = 0
    values: int = 0
    above: int = 0
    too_deep: tuple[int, ...] = (0,) * len(DEPTHS)

    def __add__(self, other: "StoredValues") -> "StoredValues":
        with_values = [part for part in (self, other) if part.deep]
        low, high = (choose((getattr(part, name) for part in with_values), default=0) for choose, name in ((min, "low"), (max, "high")))
        counts = {name: getattr(self, name) + getattr(other, name) for name in ("images", "deep", "values", "above")}
        too_deep = tuple(map(sum, zip(self.too_deep, other.too_deep)))
        return StoredValues(low=low, high=high, too_deep=too_deep, **counts)


def stored_values(data: SegmentationData, workers: int = 4) -> StoredValues:
    """Read at most READ_AT_MOST images, those of 8 bits by their headers alone; what cannot be read is left to the check of the data."""
    if not isinstance(data.rows, datasets.Dataset):  # drawn, with 8 bits
        return StoredValues()
    indices = range(0, len(data), max(1, -(-len(data) // READ_AT_MOST)))
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda index: _of_row(data, index), indices)
        return sum(with_progress(parts, len(indices), f"reading values of {data.name}/{data.split}"), StoredValues())


def _of_row(data: SegmentationData, index: int) -> StoredValues:
    stored = data.stored(index)["image"] or {}
    with suppress(BadSample, *DECODE_ERRORS):
        if not stores_more_than_8_bits(stored.get("path"), stored.get("bytes")):
            return StoredValues(1)
        pixels = stored_pixels(decode(stored.get("path"), stored.get("bytes")), str)
        above = 0 if data.image_range is None else np.count_nonzero(pixels > data.image_range[1])
        too_deep = tuple(int(np.count_nonzero(pixels >= 2**bits)) for bits in DEPTHS)
        return StoredValues(1, 1, int(pixels.min()), int(pixels.max()), pixels.size, above, too_deep)
    return StoredValues()


def find_image_range(parts: Sequence[SegmentationData], log: Callable[[str], None] = print) -> tuple[int, int] | None:
    """The range of all parts of the training data, which is logged; None where no image has more than 8 bits.

    It is 0 to 2^b - 1, b the smallest of DEPTHS that holds all values but a share of OUTLIERS at most. Raises ValueError for values that
    no depth holds.
    """
    total = sum(map(stored_values, parts), StoredValues())
    if not total.deep:
        return None
    if total.low < 0 or total.high >= 2 ** DEPTHS[-1]:
        raise ValueError(
            f"the images of {parts[0].name} hold values of {total.low} to {total.high}; expected 0 to 65535 for an automatic image range. "
            "Give the values that are black and white by --image-range LOW HIGH"
        )
    bits, above = next((bits, count) for bits, count in zip(DEPTHS, total.too_deep) if count <= OUTLIERS * total.values)
    clipped = f", of which {above / total.values:.2g} of all lie above the range and become white" if above else ""
    log(
        f"image range 0 to {2**bits - 1}: {total.deep} of {total.images} images of {parts[0].name} hold more than 8 bits, with values of "
        f"{total.low} to {total.high}{clipped}; --image-range LOW HIGH sets another"
    )
    return 0, 2**bits - 1


def check_values(data: SegmentationData, log: Callable[[str], None] = print) -> bool:
    """Compare images of more than 8 bits with the data's image range, which is logged; False where there are none.

    Raises ValueError where there is none, and where more than half of all values lie above it, or all below: the images are not stored as
    those of training were.
    """
    total = stored_values(data)
    where = f"{total.deep} of {total.images} images of {data.name}/{data.split} hold more than 8 bits"
    if not total.deep:
        return False
    if data.image_range is None:
        raise ValueError(
            f"{where}; expected images of 8 bits, as in training. Store them with 8 bits, or give the values that are black and white by "
            "--image-range LOW HIGH"
        )
    low, high = data.image_range
    if 2 * total.above > total.values or total.high <= low:
        outside = "all of their values" if total.high <= low else f"{total.above / total.values:.0%} of their values"
        side = "below" if total.high <= low else "above"
        raise ValueError(
            f"{where}, and {outside}, {total.low} to {total.high}, lie {side} the image range {low} to {high}; expected images stored as "
            "those of training. Store them so, or train with another --image-range"
        )
    clipped = f"; {total.above / total.values:.2%} of the values lie above it and become white" if total.above else ""
    is_dark = 4 * (total.high - low) < high - low
    dark = "; they use less than a quarter of the range: check that they are stored like the training images" * is_dark
    log(f"image range {low} to {high}: {where}, with values of {total.low} to {total.high}{clipped}{dark}")
    return True
