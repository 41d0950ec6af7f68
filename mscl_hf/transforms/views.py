"""Views of a sample: crops of image and mask, and color distortion.

A view is a function (Sample, rng) -> dict of tensors, called in workers, and `on_device`, which completes a batch of such dicts on its
device: workers cut crops of levels in [0, 255] (uint8, or float32 for images of more bits), colors are computed for the whole batch.
`VIEWS` names the views of pre-training. All randomness comes from `rng`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import ViewConfig
from ..data.dataset import Sample
from ..losses.labels import IGNORE_INDEX
from ..messages import flag
from .color import Colors, draw_color, with_colors
from .crop_views import CopyPasteView, SingleView, SliceView, TwoCropView
from .crops import Crop, central_crop, cut, largest_side, random_crop
from .presets import PRESETS, Preset


class PairView:
    """The paper's pair: a crop and its copy with distorted colors.

    A batch holds image, enhanced (B, 3, H, W) and mask, enhanced_mask (B, H, W), 255 everywhere for unlabelled images; with geometry
    "crops" also boxes (B, 2, 4), the part that both crops show, in [0, 1] of each.
    """

    name = "pair"
    others = 0

    def __init__(self, image_size: int, base_size: int, options: ViewConfig, image_width: int | None = None, preset: Preset | None = None):
        """preset: colors of both views; None = SimCLR's colors, for the enhanced view."""
        options = options if options.geometry else replace(options, geometry="shared")
        self.size, self.base, self.options = image_size, base_size, options
        if preset is None:
            enhanced = Colors.simclr(options.color_strength, options.blur)
            self.colors = {"enhanced": enhanced} | ({"image": enhanced} if options.augment_both else {})
        else:
            self.colors = {name: colors for name, colors in zip(("enhanced", "image"), preset.colors) if colors}
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, options.max_scale if options.geometry != "none" else 1)

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        first, second = self._crops(sample.image.shape[1::-1], rng)
        views = dict(zip(("image", "mask"), self._cut(sample, first)))
        if self.options.geometry == "crops":
            views |= dict(zip(("enhanced", "enhanced_mask"), self._cut(sample, second)))
            views["boxes"] = torch.tensor(_shared_part(first, second, sample.image.shape[1::-1]))
        return views | {f"{name}_color": draw_color(colors, rng) for name, colors in self.colors.items()}

    @staticmethod
    def on_device(batch: dict) -> dict:
        """Return the batch with colors. A crop that both views share is in the batch once, as image."""
        return with_colors({"enhanced": batch["image"], "enhanced_mask": batch["mask"]} | batch)

    def _cut(self, sample: Sample, crop: Crop) -> tuple[Tensor, Tensor]:
        image, mask = cut(sample, crop, self.size)
        return image, torch.full(image.shape[1:], IGNORE_INDEX, dtype=torch.uint8) if mask is None else mask

    def _crops(self, size: tuple[int, int], rng) -> tuple[Crop, Crop]:
        options = self.options
        if options.geometry == "none":
            crop = central_crop(size, self.size, self.base, self.aspect)
            return crop, crop
        scales = (options.min_scale, options.max_scale)
        first = random_crop(size, self.size, self.base, scales, rng, self.aspect)
        if options.geometry == "crops":
            for _ in range(20):  # enough for any overlap below 0.6; otherwise both views show one crop, flip included
                second = random_crop(size, self.size, self.base, scales, rng, self.aspect)
                if _overlap(first, second) >= options.min_overlap:
                    return first, second
        return first, first


def _intersection(a: Crop, b: Crop) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of the part that both crops show."""
    return tuple(pick(pair) for pick, pair in zip((max, max, min, min), zip(a.box, b.box)))


def _overlap(a: Crop, b: Crop) -> float:
    """Return the smaller of the shares of a and of b that the other covers."""
    x0, y0, x1, y1 = _intersection(a, b)
    return max(0.0, x1 - x0) * max(0.0, y1 - y0) / (max(a.side, b.side) ** 2 * a.aspect)


def _shared_part(a: Crop, b: Crop, size: tuple[int, int]) -> list[list[float]]:
    """Return the part of an image (width, height) that both crops show, in [0, 1] of each crop."""
    if a == b:  # the same direction in both, mirrored or not
        return [[0.0, 0.0, 1.0, 1.0]] * 2
    x0, y0, x1, y1 = _intersection(a, b)
    box = max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)
    return [a.in_view(*box), b.in_view(*box)]


# The views of pre-training by name: VIEWS[name](image_size, base_size, ViewConfig, image_width, Preset).
VIEWS = {"pair": PairView, "two_crop": TwoCropView, "slices": SliceView, "single": SingleView, "copy_paste": CopyPasteView}


def make_view(name: str, preset: str | None, image_size: int, base_size: int, options: ViewConfig, image_width: int | None = None):
    """Return the view of this name with the preset of the options, or else with that of the method."""
    preset = options.preset or preset
    return VIEWS[name](image_size, base_size, options, image_width, None if preset is None else PRESETS[preset])


def check_view_options(views: Sequence[tuple[str, str | None]], options: ViewConfig) -> None:
    """Raise ValueError for an option that no view reads. views: (name, preset) of each stage of a method."""
    read: set[str] = set()
    for name, preset in views:
        crop_options = {"preset", "min_area"}
        if VIEWS[name] is not PairView:
            read |= crop_options
        else:  # a preset brings its colors
            read |= vars(options).keys() - crop_options - ({"color_strength", "blur", "augment_both"} if preset else set())
            read |= {"preset"} if preset else set()
    for name, default in vars(ViewConfig()).items():
        value = getattr(options, name)
        if value != default and name not in read:
            flags = ", ".join(flag(option) for option in vars(options) if option in read)
            raise ValueError(f"{flag(name)} is {value}, and the views of this --method do not read it; they read {flags}. Leave it out.")


class TrainView:
    """Training crops of fine-tuning, scaled, flipped and with distorted colors. A batch holds image (B, 3, H, W) and mask (B, H, W)."""

    name = "finetune"
    others = 0

    def __init__(
        self,
        image_size: int,
        base_size: int,
        scales: tuple[float, float] = (0.5, 2.0),
        color_strength: float = 0.3,
        image_width: int | None = None,
    ):
        self.size, self.base, self.scales = image_size, base_size, scales
        self.colors = Colors.simclr(color_strength, blur=0.0)
        self.aspect = (image_width or image_size) / image_size
        self.short_side = largest_side(base_size, scales[1])

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        crop = random_crop(sample.image.shape[1::-1], self.size, self.base, self.scales, rng, self.aspect)
        image, mask = cut(sample, crop, self.size)
        return {"image": image, "image_color": draw_color(self.colors, rng), "mask": mask}

    on_device = staticmethod(with_colors)
