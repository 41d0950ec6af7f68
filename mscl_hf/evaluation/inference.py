"""Prediction of one image: whole or by windows, mirrored, at several scales.

Letters: B batch, K classes, H W pixels of the image, h w of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..config.inference import InferenceConfig

WHOLE = 2**25  # numbers of a map (K, H, W) up to which it is made at once, 128 MiB
PART = 16  # channels of a part of a larger map that lies in channels-last order: PyTorch then computes what it computes for the whole


@torch.inference_mode()
def predict_logits(
    model: nn.Module, image: Tensor, out_size: tuple[int, int], options: InferenceConfig | None = None
) -> Tensor:
    """Class logits (1, K, *out_size) of one image, float32.

    image: (1, 3, H, W), normalised, on the model's device; base_size None means as it is here.
    model(pixel_values=x).logits is (B, K, h, w).
    One view: its logits, up-sampled bilinearly. Several views (scales, mirror image, windows): the logarithm
    of their mean probabilities, so that the softmax of the answer gives the probabilities in both cases.
    """
    options = options or InferenceConfig()
    _check_image(image)
    mirrors = (False, True) if options.flip else (False,)
    total = None
    for view in _scaled(image, options):
        for mirror in mirrors:
            logits = _plane_logits(model, view.flip(-1) if mirror else view, options)
            logits = _resize(logits.flip(-1) if mirror else logits, out_size)
            if _is_one_view(options):
                return logits
            total = logits.softmax(1) if total is None else total.add_(logits.softmax(1))
    return _log(total / (len(mirrors) * len(options.scales)))


@torch.inference_mode()
def predict_ids(model: nn.Module, image: Tensor, out_size: tuple[int, int], options: InferenceConfig | None = None) -> Tensor:
    """Class ids out_size of one image, integers: the argmax of `predict_logits`, the first of equals, to the bit.

    A large map of logits is enlarged a few channels at a time, so that it never exists as a whole; that of several views does.
    """
    options = options or InferenceConfig()
    if not _is_one_view(options):
        return _argmax(predict_logits(model, image, out_size, options))
    _check_image(image)
    (view,) = _scaled(image, options)
    logits = _plane_logits(model, view, options)
    if logits.shape[1] < 4 or logits.shape[1] * math.prod(out_size) <= WHOLE:
        return _argmax(_resize(logits, out_size))
    best, ids = None, torch.zeros(out_size, dtype=torch.int16, device=logits.device)
    for number, channel in enumerate(_channels(logits, out_size)):
        if best is None:
            best = channel.clone()
            continue
        ids.masked_fill_(channel > best, number)
        torch.maximum(best, channel, out=best)
    return ids


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin so that they cover `length` pixels; the last is moved back to end at the border."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image has shape {tuple(image.shape)}, but one image (1, 3, H, W) is wanted.")


def _is_one_view(options: InferenceConfig) -> bool:
    return not options.flip and len(options.scales) == 1


def _argmax(logits: Tensor) -> Tensor:
    """(1, K, H, W) -> (H, W), the first of equals."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits[0].numpy().argmax(0))  # a third of the time of torch's, and half of an evaluation
    return logits[0].argmax(0)


def _channels(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """The channels (H, W) of the logits, enlarged as all of them at once would be.

    PyTorch rounds differently by memory order, and for fewer than 4 channels: parts keep the order, and have 4 channels or more.
    """
    last = logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous()
    order = torch.channels_last if last else torch.contiguous_format
    ends = tuple(range(PART, logits.shape[1] - 3, PART)) if last else logits.shape[1] // 4
    for part in logits.tensor_split(ends, 1):
        yield from _resize(part.contiguous(memory_format=order), size)[0]


def _scaled(image: Tensor, options: InferenceConfig) -> Iterator[Tensor]:
    """The image at each scale, (1, 3, H', W')."""
    size = image.shape[-2:]
    base = options.base_size / min(size) if options.base_size else 1.0
    for scale in options.scales:
        height, width = (max(1, round(side * base * scale)) for side in size)
        yield _resize(image, (height, width), antialias=True)


def _plane_logits(model: nn.Module, image: Tensor, options: InferenceConfig) -> Tensor:
    """Logits of one view: (1, K, h, w) of the whole, or (1, K, H, W) put together from windows."""
    height, width = image.shape[-2:]
    if options.mode == "whole" or max(height, width) <= options.window:
        return model(pixel_values=image).logits.float()
    stride = options.stride or max(1, round(options.window * 2 / 3))
    total, times = None, image.new_zeros(1, 1, height, width, dtype=torch.float32)
    for top in window_starts(height, options.window, stride):
        for left in window_starts(width, options.window, stride):
            place = (..., slice(top, top + options.window), slice(left, left + options.window))
            crop = image[place]
            chances = _resize(model(pixel_values=crop).logits.float(), crop.shape[-2:]).softmax(1)
            if total is None:
                total = chances.new_zeros(1, chances.shape[1], height, width)
            total[place] += chances
            times[place] += 1
    return _log(total / times)


def _resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def _log(chances: Tensor) -> Tensor:
    # A class with probability 0 in every view would be -inf, and -inf times a bilinear weight of 0 is NaN.
    return chances.clamp_min(torch.finfo(chances.dtype).tiny).log()
