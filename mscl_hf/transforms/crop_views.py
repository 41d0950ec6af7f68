"""Views cut out by random resized crops: two of an image, a single one, and two that are pasted onto other images.

Each is built as the others in `VIEWS`; area and colours come from the preset. H x W px is the size of a view, B images are in a batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Sample
from .color import coloured, draw_colour
from .crops import Crop, cut_image, random_resized_crop
from .presets import Preset


class CropView:
    """What they have in common: crops of `preset.area` at least, and the colours of the first and second view."""

    others = 0  # how many further samples a view is made of

    def __init__(self, image_size: int, base_size: int, options, image_width: int | None, preset: Preset):
        self.size, self.width = image_size, image_width or image_size
        self.area, self.colours = (options.min_area or preset.area), preset.colours
        # The smallest crop, at the flattest aspect, is as high as this share of the image's short side.
        self.short_side = math.ceil(image_size / math.sqrt(self.area * 3 / 4))

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Crop:
        return random_resized_crop(sample.image.shape[1::-1], self.area, self.width / self.size, rng)

    def _view(self, name: str, which: int, sample: Sample, crop: Crop, rng: np.random.Generator) -> dict[str, Tensor]:
        colours = self.colours[which]
        drawn = {} if colours is None else {f"{name}_colour": draw_colour(colours, rng)}
        return {name: cut_image(sample, crop, self.size, self.width), **drawn}

    on_device = staticmethod(coloured)


class TwoCropView(CropView):
    """Two crops of an image, each on its own. A batch holds view1, view2 (B, 3, H, W) and boxes (B, 2, 4): where they lie in the image,
    x0, y0, x1, y1 in px, a mirrored one with x0 > x1."""

    name = "two_crop"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        crops = [self._crop(sample, rng) for _ in range(2)]
        views: dict[str, Tensor] = {}
        for which, crop in enumerate(crops):
            views |= self._view(f"view{which + 1}", which, sample, crop, rng)
        return views | {"boxes": torch.tensor([_walked(crop) for crop in crops])}


def _walked(crop: Crop) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = crop.box
    return (x1, y0, x0, y1) if crop.flip else (x0, y0, x1, y1)


class SliceView(TwoCropView):
    """The same, and beside it the undistorted middle of the image, as large as fits: image (B, 3, H, W)."""

    name = "slices"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        width, height = sample.image.shape[1::-1]
        aspect = self.width / self.size
        side = min(height, width / aspect)
        middle = Crop((width - side * aspect) / 2, (height - side) / 2, side, False, aspect)
        return super().__call__(sample, rng) | {"image": cut_image(sample, middle, self.size, self.width)}


class SingleView(CropView):
    """One crop. A batch holds image (B, 3, H, W); which image it is of stands in index, as in every batch."""

    name = "single"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        return self._view("image", 0, sample, self._crop(sample, rng), rng)


class CopyPasteView(CropView):
    """Two crops of an image, each pasted onto a crop of another image (CP2, Wang et al., ECCV 2022): it shows in a rectangle, in place.

    A batch holds view1, view2 (B, 3, H, W) and pasted1, pasted2 (B, H, W), true where the view shows the image and not the other one.
    """

    name = "copy_paste"
    others = 2

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for which, other in enumerate(others):
            for name, source in (("view", sample), ("other", other)):
                views |= self._view(f"{name}{which + 1}", which, source, self._crop(source, rng), rng)
            views[f"pasted{which + 1}"] = random_rectangle(self.size, self.width, rng)
        return views

    @staticmethod
    def on_device(batch: dict) -> dict:
        batch = coloured(batch)
        for which in ("1", "2"):
            height, width = batch[f"view{which}"].shape[-2:]
            top, left, bottom, right = batch[f"pasted{which}"].T[:, :, None, None]
            rows, columns = (torch.arange(side, device=top.device) for side in (height, width))
            inside = ((rows[:, None] >= top) & (rows[:, None] < bottom)) & ((columns >= left) & (columns < right))
            batch[f"view{which}"] = torch.where(inside[:, None], batch[f"view{which}"], batch.pop(f"other{which}"))
            batch[f"pasted{which}"] = inside
        return batch


def random_rectangle(height: int, width: int, rng: np.random.Generator) -> Tensor:
    """top, left, bottom, right (4,) in px of a rectangle of 0.5 to 0.8 of the area, of an aspect ratio of 0.8 to 1.25 times the view's
    before it is rounded to whole px."""
    for _ in range(100):  # few are rounded out of the range of areas; only a view of a px or two may have none inside
        area, aspect = rng.uniform(0.5, 0.8), math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
        high, wide = round(height * math.sqrt(area / aspect)), round(width * math.sqrt(area * aspect))
        if 0.5 <= high * wide / (height * width) <= 0.8:
            break
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    return torch.tensor([top, left, top + high, left + wide])
