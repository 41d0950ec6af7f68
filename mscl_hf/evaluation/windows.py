"""Overlapping windows: their positions and weights, and their averaged probabilities, one strip of rows after another.

Letters: B images, K classes, H W height and width of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..config.inference import InferenceConfig
from ..data.tiles import window_starts

Crop = Callable[[slice, slice], Tensor]  # from rows and columns to (B, 3, h, w), normalized


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


def window_strips(model: Callable, crop: Crop, size: tuple[int, int], options: InferenceConfig, at_once: int = 1) -> Iterator[Tensor]:
    """Yield the averaged probabilities of all windows, as strips (B, K, rows, W) from the top of the images to their bottom.

    model: model(pixel_values=x).logits is (B, K, h, w). size: (H, W). Only the rows of one row of windows are in memory.
    at_once: number of windows of an image that the model is given at once.
    """
    height, width = size
    tops, lefts = (window_starts(length, options.window, options.stride) for length in size)
    spans = [slice(left, min(left + options.window, width)) for left in lefts]
    sums = None  # (B, K + 1, rows, W): weighted probabilities and, last, the weights
    first = 0  # row of the image that is the first one of the sums
    for top, next_top in zip(tops, [*tops[1:], height]):
        bottom = min(top + options.window, height)
        rows = slice(top - first, bottom - first)
        for columns, logits in _logits_of_windows(model, crop, slice(top, bottom), spans, at_once):
            left = columns.start
            probabilities = _enlarged(logits, (bottom - top, columns.stop - left)).softmax(1)
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


def _logits_of_windows(model: Callable, crop: Crop, rows: slice, spans: list[slice], at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the columns and the logits (B, K, h, w) of each window of a row of windows. spans: their columns."""
    for group in (spans[first : first + at_once] for first in range(0, len(spans), at_once)):
        logits = model(pixel_values=torch.cat([crop(rows, columns) for columns in group])).logits.float()
        logits = logits.contiguous()  # in channels-last format, a softmax over the classes would copy the enlarged logits
        yield from zip(group, logits.chunk(len(group)))


def _extended(sums: Tensor | None, probabilities: Tensor, rows: int, width: int) -> Tensor:
    """Return the sums with zeros below, in `rows` rows."""
    extended = probabilities.new_zeros(len(probabilities), probabilities.shape[1] + 1, rows, width)
    if sums is not None:
        extended[:, :, : sums.shape[2]] = sums
    return extended


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return logits if tuple(logits.shape[-2:]) == size else interpolate(logits, size=size, mode="bilinear", align_corners=False)
