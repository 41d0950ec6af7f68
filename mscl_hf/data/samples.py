"""A picture of some images of a split with their masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..visual.figures import comparison_strip
from .pixels import BadSample, displayed, resized
from .split_report import SplitReport

SAMPLES = 6  # images in the picture
SHOWN = 480  # px, the longer side of an image in the picture


def draw_samples(split: SplitReport, path: Path) -> Path:
    """Draw images with their masks, chosen so that they show as many classes as possible."""
    samples = split.data if split.pixels else replace(split.data, classes=())
    images, masks = [], []
    for index in chosen_rows(split):
        image, mask, _ = samples.read(index)
        scale = min(1.0, SHOWN / max(image.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        images.append(resized(displayed(image), size, Image.Resampling.BILINEAR))
        masks.append(np.full(size[::-1], 255, np.uint8) if mask is None else resized(mask, size, Image.Resampling.NEAREST))
    comparison_strip(images, {"mask" if split.pixels else "no masks": masks}, samples.classes, path)
    return path


def chosen_rows(split: SplitReport) -> list[int]:
    """Return rows that can be read: first those that show most classes not seen before, then any."""
    if not split.pixels:
        readable = (index for index in range(len(split.data)) if _is_readable(split, index))
        return [index for index, _ in zip(readable, range(SAMPLES))]
    seen, rows = np.zeros(256, bool), []
    while len(rows) < min(SAMPLES, len(split.pixels)):
        left = [index for index in split.pixels if index not in rows]
        best = max(left, key=lambda index: int(((split.pixels[index] > 0) & ~seen)[:255].sum()))
        rows.append(best)
        seen |= split.pixels[best] > 0
    return sorted(rows)


def _is_readable(split: SplitReport, index: int) -> bool:
    try:
        replace(split.data, classes=()).read(index)
    except BadSample:
        return False
    return True
