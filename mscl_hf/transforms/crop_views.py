"""Views by random resized crops: two crops of an image, one crop, and two crops that are pasted onto other images.

They have the constructor of all `VIEWS`; area and colors come from the preset. Letters: a batch holds B images, a view has H x W px.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Sample
from .color import draw_color, with_colors
from .crops import Crop, cut_image, random_resized_crop
from .presets import Preset


class CropView:
    """Base class: crops of at least `preset.area`, and the colors of the first and second view."""

    others = 0  # how many other samples a view uses

    def __init__(self, image_size: int, base_size: int, options, image_width: int | None, preset: Preset):
        self.size, self.width = image_size, image_width or image_size
        self.area, self.colors = (options.min_area or preset.area), preset.colors
        # The smallest crop, at the flattest aspect, is as high as this share of the image's short side.
        self.short_side = math.ceil(image_size / math.sqrt(self.area * 3 / 4))

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Crop:
        return random_resized_crop(sample.image.shape[1::-1], self.area, self.width / self.size, rng)

    def _view(self, name: str, which: int, sample: Sample, crop: Crop, rng: np.random.Generator) -> dict[str, Tensor]:
        colors = self.colors[which]
        drawn = {} if colors is None else {f"{name}_color": draw_color(colors, rng)}
        return {name: cut_image(sample, crop, self.size, self.width), **drawn}

    on_device = staticmethod(with_colors)


class TwoCropView(CropView):
    """Two independent crops of an image. A batch holds view1, view2 (B, 3, H, W) and boxes (B, 2, 4): x0, y0, x1, y1 of the crops in px of
    the image, with x0 > x1 for a mirrored crop."""

    name = "two_crop"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        crops = [self._crop(sample, rng) for _ in range(2)]
        views: dict[str, Tensor] = {}
        for which, crop in enumerate(crops):
            views |= self._view(f"view{which + 1}", which, sample, crop, rng)
        boxes = [(x1, y0, x0, y1) if crop.flip else (x0, y0, x1, y1) for crop in crops for x0, y0, x1, y1 in [crop.box]]
        return views | {"boxes": torch.tensor(boxes)}


class SliceView(TwoCropView):
    """Two independent crops, and the undistorted center of the image, as large as possible: image (B, 3, H, W)."""

    name = "slices"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        width, height = sample.image.shape[1::-1]
        aspect = self.width / self.size
        side = min(height, width / aspect)
        center = Crop((width - side * aspect) / 2, (height - side) / 2, side, False, aspect)
        return super().__call__(sample, rng) | {"image": cut_image(sample, center, self.size, self.width)}


class SingleView(CropView):
    """One crop. A batch holds image (B, 3, H, W); index holds the number of the image, as in every batch."""

    name = "single"

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        return self._view("image", 0, sample, self._crop(sample, rng), rng)


class CopyPasteView(CropView):
    """Two crops of an image, a rectangle of each pasted onto a crop of another image at the same position (CP2, Wang et al., ECCV 2022).

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
        """Return the batch with colors, and with the rectangles pasted."""
        batch = with_colors(batch)
        for which in ("1", "2"):
            height, width = batch[f"view{which}"].shape[-2:]
            top, left, bottom, right = batch[f"pasted{which}"].T[:, :, None, None]
            rows, columns = (torch.arange(side, device=top.device) for side in (height, width))
            inside = ((rows[:, None] >= top) & (rows[:, None] < bottom)) & ((columns >= left) & (columns < right))
            batch[f"view{which}"] = torch.where(inside[:, None], batch[f"view{which}"], batch.pop(f"other{which}"))
            batch[f"pasted{which}"] = inside
        return batch


def random_rectangle(height: int, width: int, rng: np.random.Generator) -> Tensor:
    """Draw a rectangle: top, left, bottom, right (4,) in px. Its area is 0.5 to 0.8 of the view's; its aspect ratio, before rounding to
    whole px, 0.8 to 1.25 times the view's."""
    for _ in range(100):  # rounding rarely leaves the range of areas; a view of 1 or 2 px may have no rectangle in it
        area, aspect = rng.uniform(0.5, 0.8), math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
        high, wide = round(height * math.sqrt(area / aspect)), round(width * math.sqrt(area * aspect))
        if 0.5 <= high * wide / (height * width) <= 0.8:
            break
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    return torch.tensor([top, left, top + high, left + wide])
