"""The image range: the values that are black and white (levels 0 and 255) in images of more than 8 bits.

It is derived from the training images or given as an option, saved in the model's `config.image_range`, and used by every prediction.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import datasets
import numpy as np

from .checks import run_once, with_progress
from .dataset import SegmentationData
from .image_io import DECODE_ERRORS, decode, read_header
from .pixels import BadSample, stored_pixels

DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras and scanners
OUTLIERS = 0.001  # share of values that may lie above a derived range: a few hot pixels would make all others dark
READ_AT_MOST = 4000  # images of a data set, evenly spaced


@dataclass(frozen=True)
class StoredValues:
    """Counts over the images that were read.

    images: their number. deep: those of more than 8 bits, and of these: low, high: the lowest and highest value. values: number of values.
    above: values above the image range. too_deep: values that do not fit into each of DEPTHS. floats: images of floating-point values.
    """

    images: int = 0
    deep: int = 0
    low: int = 0
    high: int = 0
    values: int = 0
    above: int = 0
    too_deep: tuple[int, ...] = (0,) * len(DEPTHS)
    floats: int = 0

    def __add__(self, other: "StoredValues") -> "StoredValues":
        with_values = [part for part in (self, other) if part.deep]
        low, high = (choose((getattr(part, name) for part in with_values), default=0) for choose, name in ((min, "low"), (max, "high")))
        counts = {name: getattr(self, name) + getattr(other, name) for name in ("images", "deep", "values", "above", "floats")}
        too_deep = tuple(map(sum, zip(self.too_deep, other.too_deep)))
        return StoredValues(low=low, high=high, too_deep=too_deep, **counts)


def stored_values(data: SegmentationData, workers: int = 4) -> StoredValues:
    """Read at most READ_AT_MOST images, those of 8 bits by their headers alone. The main process reads; unreadable files are left out."""
    if not isinstance(data.rows, datasets.Dataset):  # drawn, with 8 bits
        return StoredValues()
    indices = range(0, len(data), max(1, -(-len(data) // READ_AT_MOST)))

    def read() -> StoredValues:
        with ThreadPoolExecutor(workers) as pool:
            parts = pool.map(lambda index: _of_row(data, index), indices)
            return sum(with_progress(parts, len(indices), f"reading values of {data.name}/{data.split}"), StoredValues())

    return run_once(read)


def _of_row(data: SegmentationData, index: int) -> StoredValues:
    stored = data.stored(index)["image"] or {}
    file = stored.get("path"), stored.get("bytes"), data.bands is not None
    with suppress(BadSample, *DECODE_ERRORS):
        if not read_header(*file).deep:
            return StoredValues(1)
        pixels = stored_pixels(decode(*file), str, data.bands)
        if is_float := pixels.dtype.kind == "f":
            pixels = pixels[np.isfinite(pixels)]
        above = 0 if data.image_range is None else np.count_nonzero(pixels > data.image_range[1])
        too_deep = tuple(int(np.count_nonzero(pixels >= 2**bits)) for bits in DEPTHS)
        low, high = math.floor(pixels.min()), math.ceil(pixels.max())
        return StoredValues(1, 1, low, high, pixels.size, above, too_deep, int(is_float))
    return StoredValues()


def find_image_range(parts: Sequence[SegmentationData], log: Callable[[str], None] = print) -> tuple[int, int] | None:
    """Derive the range from all parts of the training data and log it; None if no image has more than 8 bits.

    It is 0 to 2^b - 1, b the smallest of DEPTHS that holds all values but a share of at most OUTLIERS. Raises ValueError for values that no
    depth holds.
    """
    total = sum(map(stored_values, parts), StoredValues())
    if not total.deep:
        return None
    if total.low < 0 or total.high >= 2 ** DEPTHS[-1] or total.floats:
        values = "floating-point values" if total.floats else "values"
        raise ValueError(
            f"the images of {parts[0].name} hold {values} of {total.low} to {total.high}; expected 0 to 65535 for an automatic image "
            "range. Give the values of black and white by --image-range LOW HIGH."
        )
    bits, above = next((bits, count) for bits, count in zip(DEPTHS, total.too_deep) if count <= OUTLIERS * total.values)
    clipped = f" ({above / total.values:.2g} of them are above the range and become white)" if above else ""
    log(
        f"image range 0 to {2**bits - 1}: {total.deep} of {total.images} images of {parts[0].name} hold more than 8 bits, with values of "
        f"{total.low} to {total.high}{clipped}; --image-range LOW HIGH sets another"
    )
    return 0, 2**bits - 1


def check_values(data: SegmentationData, log: Callable[[str], None] = print) -> bool:
    """Compare images of more than 8 bits with the data's image range and log it; return False if there are no such images.

    Raises ValueError if the data has no range, or if most values lie above it or all below: such images are not stored like those of
    training.
    """
    total = stored_values(data)
    images = f"{total.deep} of {total.images} images of {data.name}/{data.split} hold more than 8 bits"
    if not total.deep:
        return False
    if data.image_range is None:
        raise ValueError(
            f"{images}; expected images of 8 bits, as in training. Store them with 8 bits, or give the values of black and white by "
            "--image-range LOW HIGH."
        )
    low, high = data.image_range
    if 2 * total.above > total.values or total.high <= low:
        share, side = ("all", "below") if total.high <= low else (f"{total.above / total.values:.0%}", "above")
        raise ValueError(
            f"{images}, and {share} of their values, {total.low} to {total.high}, lie {side} the image range {low} to {high}; expected "
            "images stored like those of training. Store them so, or train with another --image-range."
        )
    clipped = f"; {total.above / total.values:.2%} of the values are above it and become white" if total.above else ""
    is_dark = 4 * (total.high - low) < high - low
    dark = "; they use less than a quarter of the range: check that they are stored like the training images" * is_dark
    log(f"image range {low} to {high}: {images}, with values of {total.low} to {total.high}{clipped}{dark}")
    return True
