"""Logits of a large image in bands of rows, so that the memory does not grow with its height.

Letters: K classes, H W height and width of the result in pixels, h w of a view: the image at one scale, perhaps mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..config.inference import InferenceConfig
from .inference import is_one_view
from .windows import Crop, log_of, uses_windows, window_strips

BAND = 2**18  # pixels of a band


@dataclass(frozen=True)
class ScaledImage:
    """The image at one scale. size: (h, w). crop: a function from rows and columns to (1, 3, rows, columns), normalized."""

    size: tuple[int, int]
    crop: Crop


@torch.inference_mode()
def logit_bands(
    model: Callable, images: Sequence[ScaledImage], out_size: tuple[int, int], options: InferenceConfig, windows: int = 1
) -> Iterator[Tensor]:
    """Yield what `predict_logits` returns in bands (1, K, rows, W), up to rounding. images: one image at each scale of the options."""
    height, width = out_size
    mirrors = (False, True) if options.flip else (False,)
    views = [_View(model, image, mirrored, out_size, options, windows) for image in images for mirrored in mirrors]
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bands = (view.band(top, min(top + rows, height)) for view in views)
        if is_one_view(options):
            yield next(bands)
        else:
            yield log_of(sum(band.softmax(1) for band in bands) / len(views))


class _View:
    """The logits of one view: band by band, from the top to the bottom."""

    def __init__(
        self, model: Callable, image: ScaledImage, mirrored: bool, out_size: tuple[int, int], options: InferenceConfig, windows: int
    ):
        self.mirrored, self.out_size = mirrored, out_size
        self.strips = self._of_windows(model, image, options, windows) if uses_windows(image.size, options) else self._whole(model, image)
        self.parts: list[Tensor] = []  # (1, K, rows, w), the strips that the next band needs
        self.first = 0  # row of the view that is the first one of the parts

    def _crop(self, image: ScaledImage) -> Crop:
        """Return the crops of the image, mirrored if the view is."""
        width = image.size[1]
        if not self.mirrored:
            return image.crop
        return lambda rows, columns: image.crop(rows, slice(width - columns.stop, width - columns.start)).flip(-1)

    def _of_windows(self, model: Callable, image: ScaledImage, options: InferenceConfig, windows: int) -> Iterator[Tensor]:
        self.height = image.size[0]
        return window_strips(model, self._crop(image), image.size, options, windows)

    def _whole(self, model: Callable, image: ScaledImage) -> Iterator[Tensor]:
        height, width = image.size
        logits = model(pixel_values=self._crop(image)(slice(0, height), slice(0, width))).logits.float()
        self.height = logits.shape[2]
        return iter([logits])

    def band(self, top: int, bottom: int) -> Tensor:
        """Return the logits (1, K, bottom - top, W) of these rows of the result: bilinear, as `interpolate` without align_corners."""
        height, width = self.out_size
        if self.height == height:
            first, last, fraction = torch.arange(top, bottom), torch.arange(top, bottom), None
        else:
            position = ((torch.arange(top, bottom, dtype=torch.float64) + 0.5) * (self.height / height) - 0.5).clamp_min(0)
            first = position.long().clamp_max(self.height - 1)
            last, fraction = (first + 1).clamp_max(self.height - 1), (position - first).float()
        rows = self._rows(int(first[0]), int(last[-1]) + 1)
        if rows.shape[3] != width:
            rows = interpolate(rows, size=(rows.shape[2], width), mode="bilinear", align_corners=False)
        if fraction is None:
            return rows
        offset = int(first[0])
        above, below = (rows[:, :, (index - offset).to(rows.device)] for index in (first, last))
        return above.lerp(below, fraction.to(rows.device)[:, None])

    def _rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the view; earlier ones are dropped."""
        while self.parts and self.first + self.parts[0].shape[2] <= start:
            self.first += self.parts.pop(0).shape[2]
        while self.first + sum(part.shape[2] for part in self.parts) < stop:
            self.parts.append(next(self.strips))
        parts, first = [], self.first
        for part in self.parts:
            parts.append(part[:, :, max(0, start - first) : stop - first])
            first += part.shape[2]
        rows = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        return rows.flip(-1) if self.mirrored else rows
