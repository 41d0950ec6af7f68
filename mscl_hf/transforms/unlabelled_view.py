"""The views of semi-supervised fine-tuning: those of fine-tuning for labelled images, and weak and strong ones of unlabelled images."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Sample
from ..losses.labels import IGNORE_INDEX
from .color import Colors, draw_color, with_colors
from .crops import cut, random_crop
from .views import TrainView

STRONG = Colors(0.5, 0.5, 0.5, 0.25, blur=0.5)  # UniMatch's: jitter with probability 0.8, gray 0.2, blur 0.5


class SemiSupervisedView(TrainView):
    """A batch holds image (L, 3, H, W) and mask (L, H, W) of the L labelled samples, and of the U unlabelled ones one crop each:

    weak (U, 3, H, W), inside (U, H, W), false for padding; strong1, strong2, ... (U, 3, H, W), the same crop with distorted colors;
    boxes (U, V, 4), the rectangle of CutMix in px for each of the V strong views (top, left, bottom, right), all 0 without one; draws (U,),
    one seed for each image for other random choices, such as dropped channels.
    """

    name = "semi_supervised"

    def __init__(self, *size, strong_views: int, cutmix: float, **options):
        """size, options: the arguments of TrainView. cutmix: probability of a rectangle in a strong view."""
        super().__init__(*size, **options)
        self.strong_views, self.cutmix = strong_views, cutmix

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]:
        if sample.mask is not None:
            return super().__call__(sample, rng)
        crop = random_crop(sample.image.shape[1::-1], self.size, self.base, self.scales, rng, self.aspect)
        image, outside = cut(sample._replace(mask=np.zeros(sample.image.shape[:2], dtype=np.uint8)), crop, self.size)
        colors = {f"strong{number}_color": draw_color(STRONG, rng) for number in range(1, self.strong_views + 1)}
        boxes = [cutmix_box(*image.shape[1:], rng) if rng.random() < self.cutmix else (0, 0, 0, 0) for _ in range(self.strong_views)]
        draws = torch.tensor(int(rng.integers(2**62)))
        return {"weak": image, "inside": outside != IGNORE_INDEX, **colors, "boxes": torch.tensor(boxes), "draws": draws}

    def on_device(self, batch: dict) -> dict:
        """Return the batch with colors."""
        strong = {f"strong{number}": batch["weak"] for number in range(1, self.strong_views + 1) if "weak" in batch}
        return with_colors(strong | batch)


def cutmix_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a rectangle (top, left, bottom, right) in px: 0.02 to 0.4 of the area, aspect ratio 0.3 to 1/0.3, as in UniMatch."""
    while True:  # a new area as well, since a large one fits a narrow view with no such ratio
        area, ratio = height * width * rng.uniform(0.02, 0.4), rng.uniform(0.3, 1 / 0.3)
        high, wide = int(math.sqrt(area * ratio)), int(math.sqrt(area / ratio))
        if high <= height and wide <= width:
            top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
            return top, left, top + high, left + wide
