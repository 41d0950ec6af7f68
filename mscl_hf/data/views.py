"""Views of a sample: crops that take the mask along, and colour distortion that moves no pixel.

A view is a function (Sample, rng) -> dict of uint8 tensors; `VIEWS` names those of pre-training. Everything random comes from `rng`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

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
    """A square of the source image in px (it may stick out of the image), and whether it is mirrored."""

    x: float
    y: float
    side: float
    flip: bool

    def in_view(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        """A box in source px -> in 0..1 of this crop; mirrored crops give x0 > x1."""
        box = [(x0 - self.x) / self.side, (y0 - self.y) / self.side, (x1 - self.x) / self.side, (y1 - self.y) / self.side]
        return [1 - box[0], box[1], 1 - box[2], box[3]] if self.flip else box


def random_crop(size: tuple[int, int], crop_px: int, base_px: int, scales: tuple[float, float], rng) -> Crop:
    """A crop of crop_px out of an image (width, height) brought to a short side of base_px (0 = native) times a random scale."""
    width, height = size
    zoom = (base_px / min(size) if base_px else 1) * rng.uniform(*scales)
    side = crop_px / zoom
    # Where the window is larger than the image it slides the other way, so that the whole image stays inside.
    x, y = rng.uniform(min(0, width - side), max(0, width - side)), rng.uniform(min(0, height - side), max(0, height - side))
    return Crop(x, y, side, bool(rng.random() < 0.5))


def central_crop(size: tuple[int, int], crop_px: int, base_px: int) -> Crop:
    """The same without chance: the middle of the image at the base size."""
    side = crop_px / (base_px / min(size) if base_px else 1)
    return Crop((size[0] - side) / 2, (size[1] - side) / 2, side, False)


def cut(sample: Sample, crop: Crop, size: int) -> tuple[Tensor, Tensor | None]:
    """The crop at size x size: image (3, size, size) and mask (size, size) uint8; outside the image: grey, and ignored."""
    image = _cut(Image.fromarray(sample.image), crop, size, Image.Resampling.BILINEAR, (124, 116, 104))
    image = torch.from_numpy(image).permute(2, 0, 1)
    if sample.mask is None:
        return image.contiguous(), None
    mask = _cut(Image.fromarray(sample.mask), crop, size, Image.Resampling.NEAREST, IGNORE)
    return image.contiguous(), torch.from_numpy(mask)


def _cut(picture: Image.Image, crop: Crop, size: int, resample: Image.Resampling, fill) -> np.ndarray:
    zoom = size / crop.side
    x0, x1 = (np.clip([crop.x, crop.x + crop.side], 0, picture.width)).tolist()
    y0, y1 = (np.clip([crop.y, crop.y + crop.side], 0, picture.height)).tolist()
    left, top = round((x0 - crop.x) * zoom), round((y0 - crop.y) * zoom)
    right, bottom = max(left + 1, round((x1 - crop.x) * zoom)), max(top + 1, round((y1 - crop.y) * zoom))
    part = picture.resize((right - left, bottom - top), resample, box=(x0, y0, x1, y1))
    if part.size != (size, size):
        canvas = Image.new(picture.mode, (size, size), fill)
        canvas.paste(part, (left, top))
        part = canvas
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)


def distort_colour(image: Tensor, strength: float, blur: float, rng) -> Tensor:
    """SimCLR's colour distortion (Chen et al., 2020) of a uint8 image (3, H, W); no pixel moves."""
    x = image.float() / 255
    s = strength
    if s > 0 and rng.random() < 0.8:
        factors = rng.uniform(max(0, 1 - 0.8 * s), 1 + 0.8 * s, 3)
        shift = float(np.clip(rng.uniform(-0.2 * s, 0.2 * s), -0.5, 0.5))
        jitters = (
            lambda y: F.adjust_brightness(y, float(factors[0])),
            lambda y: F.adjust_contrast(y, float(factors[1])),
            lambda y: F.adjust_saturation(y, float(factors[2])),
            lambda y: F.adjust_hue(y, shift),
        )
        for i in rng.permutation(4):
            x = jitters[i](x)
    if s > 0 and rng.random() < 0.2:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if rng.random() < blur:
        kernel = max(3, round(0.1 * min(x.shape[-2:])) // 2 * 2 + 1)
        x = F.gaussian_blur(x, [kernel, kernel], [float(rng.uniform(0.1, 2.0))] * 2)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


class PairView:
    """The paper's pair: a crop and its colour-enhanced copy.

    Gives image, enhanced (3, S, S), mask, enhanced_mask (S, S) with 255 everywhere when there is no label, and boxes (2, 4): the part
    that the two crops share, in 0..1 of each of them.
    """

    name = "pair"

    def __init__(self, image_size: int, base_size: int, options: ViewOptions):
        self.size, self.base, self.options = image_size, base_size, options

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        first, second = self._crops(sample.image.shape[1::-1], rng)
        image, mask = cut(sample, first, self.size)
        enhanced, enhanced_mask = (image, mask) if second == first else cut(sample, second, self.size)
        options = self.options
        enhanced = distort_colour(enhanced, options.colour, options.blur, rng)
        if options.augment_both:
            image = distort_colour(image, options.colour, options.blur, rng)
        nothing = torch.full((self.size, self.size), IGNORE, dtype=torch.uint8)
        return {
            "image": image,
            "enhanced": enhanced,
            "mask": nothing if mask is None else mask,
            "enhanced_mask": nothing if enhanced_mask is None else enhanced_mask,
            "boxes": torch.tensor(_shared_part(first, second, sample.image.shape[1::-1])),
        }

    def _crops(self, size: tuple[int, int], rng) -> tuple[Crop, Crop]:
        options = self.options
        if options.geometry == "none":
            crop = central_crop(size, self.size, self.base)
            return crop, crop
        scales = (options.min_scale, options.max_scale)
        first = random_crop(size, self.size, self.base, scales, rng)
        if options.geometry == "crops":
            for _ in range(20):  # enough for any overlap below 0.6; then the pair falls back to one crop, flips included
                second = random_crop(size, self.size, self.base, scales, rng)
                if _overlap(first, second) >= options.min_overlap:
                    return first, second
        return first, first


def _intersection(a: Crop, b: Crop) -> tuple[float, float, float, float]:
    return max(a.x, b.x), max(a.y, b.y), min(a.x + a.side, b.x + b.side), min(a.y + a.side, b.y + b.side)


def _overlap(a: Crop, b: Crop) -> float:
    """The smaller of the shares of a and of b that the other covers."""
    x0, y0, x1, y1 = _intersection(a, b)
    return max(0.0, x1 - x0) * max(0.0, y1 - y0) / max(a.side, b.side) ** 2


def _shared_part(a: Crop, b: Crop, size: tuple[int, int]) -> list[list[float]]:
    """The part of an image (width, height) that both crops show, in 0..1 of each: nothing of what they show beside it."""
    if a == b:  # both walk the crop from left to right, whether it is mirrored or not
        return [[0.0, 0.0, 1.0, 1.0]] * 2
    x0, y0, x1, y1 = _intersection(a, b)
    box = max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)
    return [a.in_view(*box), b.in_view(*box)]


VIEWS = {"pair": PairView}  # of pre-training, by the name that a method asks for: VIEWS[name](image_size, base_size, ViewOptions)


class TrainView:
    """Fine-tuning: scale, crop, flip, light colour. Gives image (3, S, S) and mask (S, S)."""

    name = "finetune"

    def __init__(self, image_size: int, base_size: int, scales: tuple[float, float] = (0.5, 2.0), colour: float = 0.3):
        self.size, self.base, self.scales, self.colour = image_size, base_size, scales, colour

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        crop = random_crop(sample.image.shape[1::-1], self.size, self.base, self.scales, rng)
        image, mask = cut(sample, crop, self.size)
        return {"image": distort_colour(image, self.colour, 0.0, rng), "mask": mask}
