"""Overlapping windows: their positions and weights, and their averaged probabilities, one strip of rows after another.

Letters: K classes, H W height and width of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..config.inference import InferenceConfig
from ..data.tiles import window_starts

Crop = Callable[[slice, slice], Tensor]  # from rows and columns to (1, 3, h, w), normalized


def axis_weights(start: int, length: int, options: InferenceConfig, device: torch.device | str | None = None) -> Tensor:
    """Return the weights in [0, 1] of the pixels of a window along one axis of an image of `length` pixels, float32.

    "uniform": 1. "distance": by the distance to the next border of the window that is not one of the image. With an overlap of o pixels,
    the outer o / 4 have the weight 0, since the network lacks their surroundings; then the weight increases linearly to 1 within o / 2
    pixels. The weights of two windows that overlap by o pixels add up to 1, so that no seam arises.
    """
    size = min(options.window, length)
    weights = torch.ones(size, device=device)
    if options.window_weights == "uniform":
        return weights
    overlap = options.window - options.stride
    margin = overlap // 4
    slope = 1 / max(1, overlap - 2 * margin)
    distance = torch.arange(size, device=device) + 0.5 - margin
    if start > 0:
        weights = weights.minimum(distance * slope).clamp_min(0)
    if start + size < length:
        weights = weights.minimum(distance.flip(0) * slope).clamp_min(0)
    return weights


def uses_windows(size: tuple[int, int], options: InferenceConfig) -> bool:
    """Return whether an image of this size (H, W) is divided; one inside of a window is predicted whole."""
    return options.mode == "slide" and max(size) > options.window


def window_strips(model: Callable, crop: Crop, size: tuple[int, int], options: InferenceConfig) -> Iterator[Tensor]:
    """Yield the averaged probabilities of all windows, as strips (1, K, rows, W) from the top of the image to its bottom.

    model: model(pixel_values=x).logits is (B, K, h, w). size: (H, W). Only the rows of one row of windows are in memory.
    """
    height, width = size
    tops, lefts = (window_starts(length, options.window, options.stride) for length in size)
    sums = None  # (1, K + 1, rows, W): weighted probabilities and, last, the weights
    first = 0  # row of the image that is the first one of the sums
    for top, next_top in zip(tops, [*tops[1:], height]):
        bottom = min(top + options.window, height)
        rows = slice(top - first, bottom - first)
        for left in lefts:
            columns = slice(left, min(left + options.window, width))
            pixels = crop(slice(top, bottom), columns)
            probabilities = _enlarged(model(pixel_values=pixels).logits.float(), pixels.shape[-2:]).softmax(1)
            if left == 0:
                sums = _extended(sums, probabilities, rows.stop, width)
            axes = ((top, height), (left, width))
            vertical, horizontal = (axis_weights(start, length, options, probabilities.device) for start, length in axes)
            weights = vertical[:, None] * horizontal
            sums[:, :-1, rows, columns] += probabilities.mul_(weights)
            sums[:, -1, rows, columns] += weights
        finished = next_top - first
        strip = sums[:, :-1, :finished] / sums[:, -1:, :finished]
        sums, first = sums[:, :, finished:].clone(), next_top  # a view would keep the memory of the finished rows
        yield strip


def _extended(sums: Tensor | None, probabilities: Tensor, rows: int, width: int) -> Tensor:
    """Return the sums with zeros below, in `rows` rows."""
    extended = probabilities.new_zeros(1, probabilities.shape[1] + 1, rows, width)
    if sums is not None:
        extended[:, :, : sums.shape[2]] = sums
    return extended


def _enlarged(logits: Tensor, size: torch.Size) -> Tensor:
    return logits if logits.shape[-2:] == size else interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
