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


def axis_weights(start: int, length: int, options: InferenceConfig) -> Tensor:
    """Return the weights in [0, 1] of the pixels of a window along one axis of an image of `length` pixels, float32.

    "uniform": 1. "distance": by the distance to the next border of the window that is not one of the image. With an overlap of o pixels,
    the outer o / 4 have the weight 0, since the network lacks their surroundings; then the weight increases linearly to 1 within o / 2
    pixels. The weights of two windows that overlap by o pixels add up to 1, so that no seam arises.
    """
    size = min(options.window, length)
    weights = torch.ones(size)
    if options.window_weights == "uniform":
        return weights
    overlap = options.window - options.stride
    margin = overlap // 4
    slope = 1 / max(1, overlap - 2 * margin)
    distance = torch.arange(size) + 0.5 - margin
    if start > 0:
        weights = weights.minimum(distance * slope).clamp_min(0)
    if start + size < length:
        weights = weights.minimum(distance.flip(0) * slope).clamp_min(0)
    return weights


def uses_windows(size: tuple[int, int], options: InferenceConfig) -> bool:
    """Return whether an image of this size (H, W) is divided; one inside of a window is predicted whole."""
    return options.mode == "slide" and max(size) > options.window


def window_strips(model: Callable, crop: Crop, size: tuple[int, int], options: InferenceConfig, at_once: int = 1) -> Iterator[Tensor]:
    """Yield the logarithm of the averaged probabilities of all windows, as strips (B, K, rows, W) from the top of the images to the bottom.

    model: model(pixel_values=x).logits is (B, K, h, w). size: (H, W). Only the rows of one row of windows are in memory.
    at_once: number of windows of an image that the model is given at once.
    """
    height, width = size
    tops, lefts = (window_starts(length, options.window, options.stride) for length in size)
    spans = [slice(left, min(left + options.window, width)) for left in lefts]
    horizontal, vertical = _normalized_weights(lefts, width, options), _normalized_weights(tops, height, options)
    carried = None  # (B, K, rows, W): the sums of the rows that the next row of windows shares
    for top, next_top, row_weights in zip(tops, [*tops[1:], height], vertical):
        bottom, sums = min(top + options.window, height), None  # (B, K, bottom - top, W): weighted probabilities
        logits_of_windows = _logits_of_windows(model, crop, slice(top, bottom), spans, at_once)
        for columns, column_weights, logits in zip(spans, horizontal, logits_of_windows):
            probabilities = _enlarged(logits, (bottom - top, columns.stop - columns.start)).softmax(1)
            if sums is None:
                sums = _extended(carried, probabilities, width)
            # Copies as small as these do not wait for a GPU.
            of_rows, of_columns = (weights.to(sums.device, non_blocking=True) for weights in (row_weights, column_weights))
            sums[..., columns].addcmul_(probabilities, of_rows[:, None] * of_columns)
        strip, carried = log_of(sums[:, :, : next_top - top]), sums[:, :, next_top - top :].clone()
        del sums, probabilities, logits  # several views of a large image wait here, each with its own
        yield strip


def _extended(carried: Tensor | None, probabilities: Tensor, width: int) -> Tensor:
    """Return the carried sums and zeros below, as many rows as the probabilities have."""
    sums, rows = probabilities.new_empty(*probabilities.shape[:3], width), 0
    if carried is not None:
        rows = carried.shape[2]
        sums[:, :, :rows] = carried
    sums[:, :, rows:].zero_()
    return sums


def log_of(probabilities: Tensor) -> Tensor:
    """Return the logarithm, finite also for 0."""
    # A probability of 0 would become -inf, and -inf times a bilinear weight of 0 is NaN.
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log_()


def _normalized_weights(starts: list[int], length: int, options: InferenceConfig) -> list[Tensor]:
    """Return the weights of each window along an axis, divided by their sum at each pixel: the products of both axes then add up to 1."""
    weights, total = [axis_weights(start, length, options) for start in starts], torch.zeros(length)
    for start, window_weights in zip(starts, weights):
        total[start : start + len(window_weights)] += window_weights
    return [window_weights / total[start : start + len(window_weights)] for start, window_weights in zip(starts, weights)]


def _logits_of_windows(model: Callable, crop: Crop, rows: slice, spans: list[slice], at_once: int) -> Iterator[Tensor]:
    """Yield the logits (B, K, h, w) of each window of a row of windows. spans: their columns."""
    for group in (spans[first : first + at_once] for first in range(0, len(spans), at_once)):
        logits = model(pixel_values=torch.cat([crop(rows, columns) for columns in group])).logits.float()
        logits = logits.contiguous()  # in channels-last format, a softmax over the classes would copy the enlarged logits
        yield from logits.chunk(len(group))


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return logits if tuple(logits.shape[-2:]) == size else interpolate(logits, size=size, mode="bilinear", align_corners=False)
