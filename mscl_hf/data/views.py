"""Views of a sample: crops that take the mask along, and colour distortion that moves no pixel.

A view is a function (Sample, rng) -> dict of tensors, which decoding workers call, and `on_device`, which completes a batch of them where
it is used: workers cut crops as uint8, colours are computed for the whole batch. `VIEWS` names those of pre-training. Everything random
comes from `rng`.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .colour import distort_colour, draw_colour
from .segmentation_data import Sample

IGNORE = 255
GEOMETRIES = ("shared", "crops", "none")


@dataclass(frozen=True)
class ViewOptions:
    """Geometry and colour of the pre-training views."""

    geometry: str = field(
        default="shared",
        metadata={
            "help": "shared: one random scale, crop and flip for both views; crops: each view its own, overlapping; "
            "none: no random geometry, colour only"
        },
    )
    min_scale: float = field(default=0.5, metadata={"help": "smallest random scale, as a factor of the base size"})
    max_scale: float = field(default=2.0, metadata={"help": "largest random scale, as a factor of the base size"})
    min_overlap: float = field(default=0.3, metadata={"help": "geometry crops: least share of a crop that the other one covers"})
    colour: float = field(default=1.0, metadata={"help": "strength s of the colour distortion (SimCLR's; 0 = none)"})
    blur: float = field(default=0.5, metadata={"help": "probability of a Gaussian blur"})
    augment_both: bool = field(default=False, metadata={"help": "distort both views, not only the enhanced one"})

    def __post_init__(self):
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"geometry is {self.geometry!r}; choose one of {', '.join(GEOMETRIES)}")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"scales {self.min_scale} to {self.max_scale} are no range; give 0 < --min-scale <= --max-scale")
        if not (self.colour >= 0 and 0 <= self.blur <= 1):
            raise ValueError(f"colour is {self.colour} and blur {self.blur}; give a strength of at least 0, and a probability")
        if not 0 < self.min_overlap <= 1:
            raise ValueError(f"min_overlap is {self.min_overlap}; give a share above 0 and at most 1: crops must share something")


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


def cut(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Tensor | None]:
    """The crop at a height of size: image (3, size, width) and mask (size, width) uint8; outside the image: grey, and ignored."""
    image = torch.from_numpy(_cut(sample.image, crop, size, Image.Resampling.BILINEAR, (124, 116, 104))).permute(2, 0, 1).contiguous()
    mask = None if sample.mask is None else torch.from_numpy(_cut(sample.mask, crop, size, Image.Resampling.NEAREST, IGNORE))
    return image, mask


def _cut(pixels: np.ndarray, crop: Crop, size: int, resample: Image.Resampling, fill) -> np.ndarray:
    zoom = size / crop.side
    x0, x1 = np.clip(crop.box[::2], 0, pixels.shape[1]).tolist()
    y0, y1 = np.clip(crop.box[1::2], 0, pixels.shape[0]).tolist()
    left, top = round((x0 - crop.x) * zoom), round((y0 - crop.y) * zoom)
    right, bottom = max(left + 1, round((x1 - crop.x) * zoom)), max(top + 1, round((y1 - crop.y) * zoom))
    # Of a large image, or one that lies on disk, only what the filter reaches is touched.
    reach = math.ceil(max(1, (x1 - x0) / (right - left), (y1 - y0) / (bottom - top))) + 1
    column, row = max(0, math.floor(x0) - reach), max(0, math.floor(y0) - reach)
    part = Image.fromarray(np.ascontiguousarray(pixels[row : math.ceil(y1) + reach, column : math.ceil(x1) + reach]))
    part = part.resize((right - left, bottom - top), resample, box=(x0 - column, y0 - row, x1 - column, y1 - row))
    wanted = (round(size * crop.aspect), size)
    if part.size != wanted:
        canvas = Image.new(part.mode, wanted, fill)
        canvas.paste(part, (left, top))
        part = canvas
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)


def coloured(batch: dict) -> dict:
    """A batch on its device with the colours that were drawn for its images: NAME_colour is applied to NAME, and gone."""
    drawn = [name for name in batch if name.endswith("_colour")]
    done = {name.removesuffix("_colour"): distort_colour(batch[name.removesuffix("_colour")], batch[name]) for name in drawn}
    return {name: value for name, value in (batch | done).items() if name not in drawn}


class PairView:
    """The paper's pair: a crop and its colour-enhanced copy.

    A batch of it holds image, enhanced (B, 3, H, W), mask, enhanced_mask (B, H, W) with 255 everywhere when there is no label; and with
    geometry "crops" also boxes (B, 2, 4), the part that the two crops share, in 0..1 of each of them.
    """

    name = "pair"

    def __init__(self, image_size: int, base_size: int, options: ViewOptions, image_width: int | None = None):
        self.size, self.base, self.options = image_size, base_size, options
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, options.max_scale if options.geometry != "none" else 1)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        first, second = self._crops(sample.image.shape[1::-1], rng)
        views = dict(zip(("image", "mask"), self._cut(sample, first)))
        if self.options.geometry == "crops":
            views |= dict(zip(("enhanced", "enhanced_mask"), self._cut(sample, second)))
            views["boxes"] = torch.tensor(_shared_part(first, second, sample.image.shape[1::-1]))
        for name in ("enhanced", "image") if self.options.augment_both else ("enhanced",):
            views[f"{name}_colour"] = draw_colour(self.options.colour, self.options.blur, rng)
        return views

    @staticmethod
    def on_device(batch: dict) -> dict:
        """The batch with its colours; where both views show one crop, it came once."""
        return coloured({"enhanced": batch["image"], "enhanced_mask": batch["mask"]} | batch)

    def _cut(self, sample: Sample, crop: Crop) -> tuple[Tensor, Tensor]:
        image, mask = cut(sample, crop, self.size)
        return image, torch.full(image.shape[1:], IGNORE, dtype=torch.uint8) if mask is None else mask

    def _crops(self, size: tuple[int, int], rng) -> tuple[Crop, Crop]:
        options = self.options
        if options.geometry == "none":
            crop = central_crop(size, self.size, self.base, self.aspect)
            return crop, crop
        scales = (options.min_scale, options.max_scale)
        first = random_crop(size, self.size, self.base, scales, rng, self.aspect)
        if options.geometry == "crops":
            for _ in range(20):  # enough for any overlap below 0.6; then the pair falls back to one crop, flips included
                second = random_crop(size, self.size, self.base, scales, rng, self.aspect)
                if _overlap(first, second) >= options.min_overlap:
                    return first, second
        return first, first


def _intersection(a: Crop, b: Crop) -> tuple[float, float, float, float]:
    return tuple(pick(pair) for pick, pair in zip((max, max, min, min), zip(a.box, b.box)))


def _overlap(a: Crop, b: Crop) -> float:
    """The smaller of the shares of a and of b that the other covers."""
    x0, y0, x1, y1 = _intersection(a, b)
    return max(0.0, x1 - x0) * max(0.0, y1 - y0) / (max(a.side, b.side) ** 2 * a.aspect)


def _shared_part(a: Crop, b: Crop, size: tuple[int, int]) -> list[list[float]]:
    """The part of an image (width, height) that both crops show, in 0..1 of each: nothing of what they show beside it."""
    if a == b:  # both walk the crop from left to right, whether it is mirrored or not
        return [[0.0, 0.0, 1.0, 1.0]] * 2
    x0, y0, x1, y1 = _intersection(a, b)
    box = max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)
    return [a.in_view(*box), b.in_view(*box)]


# Of pre-training, by the name that a method asks for: VIEWS[name](image_size, base_size, ViewOptions, image_width).
VIEWS = {"pair": PairView}


class TrainView:
    """Fine-tuning: scale, crop, flip, light colour. A batch of it holds image (B, 3, H, W) and mask (B, H, W)."""

    name = "finetune"

    def __init__(
        self,
        image_size: int,
        base_size: int,
        scales: tuple[float, float] = (0.5, 2.0),
        colour: float = 0.3,
        image_width: int | None = None,
    ):
        self.size, self.base, self.scales, self.colour = image_size, base_size, scales, colour
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, scales[1])

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        crop = random_crop(sample.image.shape[1::-1], self.size, self.base, self.scales, rng, self.aspect)
        image, mask = cut(sample, crop, self.size)
        return {"image": image, "image_colour": draw_colour(self.colour, 0.0, rng), "mask": mask}

    on_device = staticmethod(coloured)
