"""Crops: rectangles of an image, random or central, and cutting them out."""

import math
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import Sample
from ..data.pixels import is_rgb_or_one_band
from ..losses.labels import IGNORE_INDEX

OUTSIDE = (124, 116, 104)  # RGB levels of a crop outside of its image; other bands have the mean of the part inside


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image in px, which may extend beyond the image. side: height. aspect: width / height. flip: mirrored."""

    x: float
    y: float
    side: float
    flip: bool
    aspect: float = 1.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in px of the image."""
        return self.x, self.y, self.x + self.side * self.aspect, self.y + self.side

    def in_view(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        """Convert a box from px of the image to [0, 1] of this crop; mirrored crops give x0 > x1."""
        width = self.side * self.aspect
        box = [(x0 - self.x) / width, (y0 - self.y) / self.side, (x1 - self.x) / width, (y1 - self.y) / self.side]
        return [1 - box[0], box[1], 1 - box[2], box[3]] if self.flip else box


def random_crop(
    size: tuple[int, int], crop_px: int, base_px: int, scales: tuple[float, float], rng: np.random.Generator, aspect: float = 1.0
) -> Crop:
    """Draw a crop crop_px high from an image (width, height) scaled to a short side of base_px (0 = unscaled) times a random scale."""
    width, height = size
    zoom = (base_px / min(size) if base_px else 1) * rng.uniform(*scales)
    side = crop_px / zoom
    # A crop that is larger than the image contains the whole image.
    x, y = (rng.uniform(min(0, room), max(0, room)) for room in (width - side * aspect, height - side))
    return Crop(x, y, side, bool(rng.random() < 0.5), aspect)


def largest_side(base_px: int, max_scale: float) -> int:
    """Return the short side in px of the largest scaled image; 0 for unscaled images."""
    return math.ceil(base_px * max(1, max_scale))


def central_crop(size: tuple[int, int], crop_px: int, base_px: int, aspect: float = 1.0) -> Crop:
    """Return the central crop at the base size."""
    side = crop_px / (base_px / min(size) if base_px else 1)
    return Crop((size[0] - side * aspect) / 2, (size[1] - side) / 2, side, False, aspect)


def random_resized_crop(size: tuple[int, int], area: float, aspect: float, rng: np.random.Generator) -> Crop:
    """Draw a crop of at least `area` of an image (width, height), with 3/4 to 4/3 of the aspect ratio `aspect` (Szegedy et al., 2015)."""
    width, height = size
    for _ in range(10):
        pixels = width * height * rng.uniform(area, 1)
        ratio = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        side = math.sqrt(pixels / ratio)
        if side <= height and side * ratio <= width:
            break
    else:  # a very narrow or flat image: its largest part of this aspect
        ratio, side = aspect, min(height, width / aspect)
    x, y = rng.uniform(0, width - side * ratio), rng.uniform(0, height - side)
    return Crop(x, y, side, bool(rng.random() < 0.5), ratio)


def cut_image(sample: Sample, crop: Crop, size: int, width: int | None = None) -> Tensor:
    """Cut out a crop and resize it to (C, size, width), uint8 or float32 like the image, gray outside of it. width None: by its aspect."""
    if is_rgb_or_one_band(sample.image):
        pixels = _cut(sample.image, crop, size, width, Image.Resampling.BILINEAR, OUTSIDE)
    else:
        bands = zip(np.moveaxis(sample.image, 2, 0), OUTSIDE if sample.image.shape[2] == 3 else repeat(None))
        pixels = np.stack([_cut(band, crop, size, width, Image.Resampling.BILINEAR, level) for band, level in bands], axis=2)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def cut(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Tensor | None]:
    """Cut out image and mask (size, width); the mask has the ignored label outside of the image."""
    mask = None if sample.mask is None else torch.from_numpy(_cut(sample.mask, crop, size, None, Image.Resampling.NEAREST, IGNORE_INDEX))
    return cut_image(sample, crop, size), mask


def _cut(pixels: np.ndarray, crop: Crop, size: int, width: int | None, resample: Image.Resampling, fill) -> np.ndarray:
    """Cut a crop out of (H, W) or (H, W, 3) and resize it. fill: level or levels outside of the image; None = the mean of the part."""
    width = round(size * crop.aspect) if width is None else width
    zoom, across = size / crop.side, width / (crop.side * crop.aspect)
    x0, x1 = np.clip(crop.box[::2], 0, pixels.shape[1]).tolist()
    y0, y1 = np.clip(crop.box[1::2], 0, pixels.shape[0]).tolist()
    left, top = round((x0 - crop.x) * across), round((y0 - crop.y) * zoom)
    right, bottom = max(left + 1, round((x1 - crop.x) * across)), max(top + 1, round((y1 - crop.y) * zoom))
    # Of a large or memory-mapped image, only the pixels that the filter needs are read.
    reach = math.ceil(max(1, (x1 - x0) / (right - left), (y1 - y0) / (bottom - top))) + 1
    column, row = max(0, math.floor(x0) - reach), max(0, math.floor(y0) - reach)
    part = Image.fromarray(np.ascontiguousarray(pixels[row : math.ceil(y1) + reach, column : math.ceil(x1) + reach]))
    part = part.resize((right - left, bottom - top), resample, box=(x0 - column, y0 - row, x1 - column, y1 - row))
    if part.size != (width, size):
        canvas = Image.new(part.mode, (width, size), _mean_level(part) if fill is None else fill)
        canvas.paste(part, (left, top))
        part = canvas
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)


def _mean_level(part: Image.Image) -> float | int:
    mean = float(np.asarray(part).mean())
    return mean if part.mode == "F" else round(mean)
