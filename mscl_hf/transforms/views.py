"""Views of a sample: crops that take the mask along, and colour distortion that moves no pixel.

A view is a function (Sample, rng) -> dict of tensors, which decoding workers call, and `on_device`, which completes a batch of them where
it is used: workers cut crops in levels of 0 to 255 (uint8, or float32 for images of more bits), colours are computed for the whole batch.
`VIEWS` names those of pre-training. Everything random comes from `rng`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import ViewConfig
from ..data.dataset import Sample
from .color import Colours, coloured, draw_colour
from .crop_views import CopyPasteView, SingleView, SliceView, TwoCropView
from .crops import IGNORE, Crop, central_crop, cut, largest_side, random_crop
from .presets import PRESETS, Preset


class PairView:
    """The paper's pair: a crop and its colour-enhanced copy.

    A batch of it holds image, enhanced (B, 3, H, W), mask, enhanced_mask (B, H, W) with 255 everywhere when there is no label; and with
    geometry "crops" also boxes (B, 2, 4), the part that the two crops share, in 0..1 of each of them.
    """

    name = "pair"
    others = 0

    def __init__(
        self, image_size: int, base_size: int, options: ViewConfig, image_width: int | None = None, preset: Preset | None = None
    ):
        """preset: whose colours both views get, instead of SimCLR's for the enhanced one."""
        options = options if options.geometry else replace(options, geometry="shared")
        self.size, self.base, self.options = image_size, base_size, options
        if preset is None:
            enhanced = Colours.simclr(options.color_strength, options.blur)
            self.colours = {"enhanced": enhanced} | ({"image": enhanced} if options.augment_both else {})
        else:
            self.colours = {name: colours for name, colours in zip(("enhanced", "image"), preset.colours) if colours}
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, options.max_scale if options.geometry != "none" else 1)

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        first, second = self._crops(sample.image.shape[1::-1], rng)
        views = dict(zip(("image", "mask"), self._cut(sample, first)))
        if self.options.geometry == "crops":
            views |= dict(zip(("enhanced", "enhanced_mask"), self._cut(sample, second)))
            views["boxes"] = torch.tensor(_shared_part(first, second, sample.image.shape[1::-1]))
        return views | {f"{name}_colour": draw_colour(colours, rng) for name, colours in self.colours.items()}

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


# Of pre-training, by the name that a method asks for: VIEWS[name](image_size, base_size, ViewConfig, image_width, Preset).
VIEWS = {"pair": PairView, "two_crop": TwoCropView, "slices": SliceView, "single": SingleView, "copy_paste": CopyPasteView}


def make_view(kind: str, preset: str | None, image_size: int, base_size: int, options: ViewConfig, image_width: int | None = None):
    """The views of a kind, with the preset that the options or the method name."""
    name = options.preset or preset
    return VIEWS[kind](image_size, base_size, options, image_width, None if name is None else PRESETS[name])


def check_view_options(kinds: Sequence[tuple[str, str | None]], options: ViewConfig) -> None:
    """ValueError for an option that none of the views, (kind, preset) each, reads."""
    read: set[str] = set()
    for kind, preset in kinds:
        of_crops = {"preset", "min_area"}
        if VIEWS[kind] is not PairView:
            read |= of_crops
        else:  # a preset brings its colours
            read |= vars(options).keys() - of_crops - ({"color_strength", "blur", "augment_both"} if preset else set())
            read |= {"preset"} if preset else set()
    for name, default in vars(ViewConfig()).items():
        if getattr(options, name) != default and name not in read:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in vars(options) if option in read)
            raise ValueError(f"--{name.replace('_', '-')} is no option of the views of this --method, which has {flags}; leave it out")


class TrainView:
    """Fine-tuning: scale, crop, flip, light colour. A batch of it holds image (B, 3, H, W) and mask (B, H, W)."""

    name = "finetune"
    others = 0

    def __init__(
        self,
        image_size: int,
        base_size: int,
        scales: tuple[float, float] = (0.5, 2.0),
        colour: float = 0.3,
        image_width: int | None = None,
    ):
        self.size, self.base, self.scales = image_size, base_size, scales
        self.colours = Colours.simclr(colour, blur=0.0)
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, scales[1])

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        crop = random_crop(sample.image.shape[1::-1], self.size, self.base, self.scales, rng, self.aspect)
        image, mask = cut(sample, crop, self.size)
        return {"image": image, "image_colour": draw_colour(self.colours, rng), "mask": mask}

    on_device = staticmethod(coloured)
