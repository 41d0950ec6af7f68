"""Warnings about sizes: crops that do not fit the images, and classes that are smaller than a position of the feature map."""

import math
from collections.abc import Sequence
from contextlib import suppress
from statistics import median_low

import datasets

from ..messages import first_three
from .checks import examined_rows
from .dataset import SegmentationData
from .image_io import DECODE_ERRORS, read_header
from .stream import SegmentationStream

MOST_APART = 3  # times that the short side of the images may differ from the crop
EXAMINED = 32  # images whose size is read
MULTIPLE = 32  # of the sizes that are suggested


def median_short_side(data: SegmentationData, count: int = EXAMINED) -> int | None:
    """Return the median short side in px of all tiles, or of `count` stored images, from their headers.

    None for drawn images and unreadable files.
    """
    if not isinstance(data.rows, datasets.Dataset):
        return None
    if boxes := [box for box in getattr(data, "boxes", None) or () if box]:
        return median_low(min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes)
    sides = []
    for index in examined_rows(len(data), count):
        image = data.stored(index).get("image") or {}
        with suppress(*DECODE_ERRORS):
            sides.append(min(read_header(image.get("path"), image.get("bytes"), all_bands=True)[:2]))
    return median_low(sides) if sides else None


def size_warnings(
    training: Sequence[SegmentationData | SegmentationStream | None], image_size: int, base_size: int | None, stride: int
) -> list[str]:
    """Return warnings about crops and classes whose size does not fit the images.

    image_size: of the crop; base_size: short side that images are scaled to, 0 = as they are; stride: of the last feature map, all in px.
    """
    warnings = []
    for data in training:
        side = median_short_side(data) if isinstance(data, SegmentationData) and len(data) else None
        if side is not None:
            warnings += _crop_warning(data, side, image_size, base_size or side)
            warnings += _small_classes(data, side, (base_size or side) / side, stride)
    return warnings


def _crop_warning(data: SegmentationData, side: int, image_size: int, scaled: int) -> list[str]:
    """Return a warning where the crop and the short side of the images are more than MOST_APART times apart."""
    images = f"the images of {data.name}/{data.split} have {side} px on the short side (median)"
    better = MULTIPLE * max(1, round(side / 2 / MULTIPLE))
    if MOST_APART * image_size < side:
        if MOST_APART * scaled < side:
            return [f"{images} and are reduced to {scaled} px, which removes small objects; --image-size {better} keeps more of them"]
        shown = f"scaled to {scaled} px, of which crops show {image_size / scaled:.0%}"
        or_smaller = "" if getattr(data, "boxes", None) else " or a smaller --base-size"  # tiles are not scaled
        return [f"{images}, {shown}; --image-size {better}{or_smaller} shows more"]
    if image_size > MOST_APART * side:
        return [f"{images} and are enlarged to {image_size} px, which adds no detail; --image-size {better * 2} is faster"]
    return []


def _small_classes(data: SegmentationData, side: int, zoom: float, stride: int) -> list[str]:
    """Return a warning about classes whose area in a mask that holds them is on average smaller than a feature-map position.

    zoom: from the stored images to those of the network.
    """
    if data.labels is None:
        return []
    stored_side = getattr(data, "short_side", 0) or side  # masks are counted at the size of the image cache
    zoom *= side / min(side, stored_side)
    areas = zip(data.classes, data.labels.pixels.tolist(), data.labels.images.tolist())
    extents = {name: zoom * math.sqrt(pixels / images) for name, pixels, images in areas if images}
    small = [f"{name} ({extent:.0f} px)" for name, extent in sorted(extents.items(), key=lambda item: item[1]) if extent < stride]
    if not small:
        return []
    return [
        f"{len(small)} of {data.num_classes} classes of {data.name}/{data.split} are smaller than a position of the feature map "
        f"({stride} px): {first_three(small)}; a larger --base-size and --image-size enlarge them"
    ]
