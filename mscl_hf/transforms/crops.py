"""Crops: rectangles of an image, drawn at random or in its middle, and what is cut out of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import IGNORE_INDEX as IGNORE
from ..data.dataset import Sample

OUTSIDE = (124, 116, 104)  # RGB levels of what a crop shows outside its image


@dataclass(frozen=True)
class Crop:
    """A rectangle of the source image in px (it may stick out of the image), side high and aspect times as wide; is it mirrored?"""

    x: float
    y: float
    side: float
    flip: bool
    aspect: float = 1.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1"""
        return self.x, self.y, self.x + self.side * self.aspect, self.y + self.side

    def in_view(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        """A box in source px -> in 0..1 of this crop; mirrored crops give x0 > x1."""
        width = self.side * self.aspect
        box = [(x0 - self.x) / width, (y0 - self.y) / self.side, (x1 - self.x) / width, (y1 - self.y) / self.side]
        return [1 - box[0], box[1], 1 - box[2], box[3]] if self.flip else box


def random_crop(
    size: tuple[int, int], crop_px: int, base_px: int, scales: tuple[float, float], rng: np.random.Generator, aspect: float = 1.0
) -> Crop:
    """A crop crop_px high out of an image (width, height) brought to a short side of base_px (0 = native) times a random scale."""
    width, height = size
    zoom = (base_px / min(size) if base_px else 1) * rng.uniform(*scales)
    side = crop_px / zoom
    # Where the window is larger than the image it slides the other way, so that the whole image stays inside.
    x, y = (rng.uniform(min(0, room), max(0, room)) for room in (width - side * aspect, height - side))
    return Crop(x, y, side, bool(rng.random() < 0.5), aspect)


def largest_side(base_px: int, max_scale: float) -> int:
    """The short side in px that crops at the largest scale show of an image; 0 where images are taken at their own size."""
    return math.ceil(base_px * max(1, max_scale))


def central_crop(size: tuple[int, int], crop_px: int, base_px: int, aspect: float = 1.0) -> Crop:
    """The same without chance: the middle of the image at the base size."""
    side = crop_px / (base_px / min(size) if base_px else 1)
    return Crop((size[0] - side * aspect) / 2, (size[1] - side) / 2, side, False, aspect)


def random_resized_crop(size: tuple[int, int], area: float, aspect: float, rng: np.random.Generator) -> Crop:
    """A crop of at least `area` of an image (width, height) and an aspect ratio within 3/4 .. 4/3 of `aspect` (Szegedy et al., 2015)."""
    width, height = size
    for _ in range(10):
        pixels = width * height * rng.uniform(area, 1)
        ratio = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        side = math.sqrt(pixels / ratio)
        if side <= height and side * ratio <= width:
            break
    else:  # the image is much longer than it is wide, or wider: its largest part of the wanted aspect
        ratio, side = aspect, min(height, width / aspect)
    x, y = rng.uniform(0, width - side * ratio), rng.uniform(0, height - side)
    return Crop(x, y, side, bool(rng.random() < 0.5), ratio)


def cut_image(sample: Sample, crop: Crop, size: int, width: int | None = None) -> Tensor:
    """The crop at size x width px (as wide as its aspect makes it, if None): (3, size, width), uint8 or float32 as the image; outside of
    it: gray."""
    if sample.image.dtype == np.uint8:
        pixels = _cut(sample.image, crop, size, width, Image.Resampling.BILINEAR, OUTSIDE)
    else:  # Pillow has no colors of more than 8 bits a band
        bands = zip(np.moveaxis(sample.image, 2, 0), OUTSIDE)
        pixels = np.stack([_cut(band, crop, size, width, Image.Resampling.BILINEAR, level) for band, level in bands], axis=2)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def cut(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Tensor | None]:
    """The same with the mask (size, width), ignored outside the image."""
    mask = None if sample.mask is None else torch.from_numpy(_cut(sample.mask, crop, size, None, Image.Resampling.NEAREST, IGNORE))
    return cut_image(sample, crop, size), mask


def _cut(pixels: np.ndarray, crop: Crop, size: int, width: int | None, resample: Image.Resampling, fill) -> np.ndarray:
    width = round(size * crop.aspect) if width is None else width
    zoom, across = size / crop.side, width / (crop.side * crop.aspect)
    x0, x1 = np.clip(crop.box[::2], 0, pixels.shape[1]).tolist()
    y0, y1 = np.clip(crop.box[1::2], 0, pixels.shape[0]).tolist()
    left, top = round((x0 - crop.x) * across), round((y0 - crop.y) * zoom)
    right, bottom = max(left + 1, round((x1 - crop.x) * across)), max(top + 1, round((y1 - crop.y) * zoom))
    # Of a large image, or one that lies on disk, only what the filter reaches is touched.
    reach = math.ceil(max(1, (x1 - x0) / (right - left), (y1 - y0) / (bottom - top))) + 1
    column, row = max(0, math.floor(x0) - reach), max(0, math.floor(y0) - reach)
    part = Image.fromarray(np.ascontiguousarray(pixels[row : math.ceil(y1) + reach, column : math.ceil(x1) + reach]))
    part = part.resize((right - left, bottom - top), resample, box=(x0 - column, y0 - row, x1 - column, y1 - row))
    if part.size != (width, size):
        canvas = Image.new(part.mode, (width, size), fill)
        canvas.paste(part, (left, top))
        part = canvas
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)
