"""Logits and class ids of images of one size: whole or by windows, mirrored, at several scales. `prediction.py` also predicts larger ones.

Letters: B images, K classes, H W height and width of the image in pixels, h w of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..config.inference import InferenceConfig
from .windows import log_of, uses_windows, window_strips

MAX_NUMBERS = 2**25  # of a map (K, H, W) that is scaled at once: 128 MiB
PART = 16  # channels per part of a larger map in channels-last order; the values then equal those of the whole map


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: Tensor, out_size: tuple[int, int], options: InferenceConfig | None = None, windows: int = 1
) -> Tensor:
    """Return the class logits (B, K, *out_size) of images, float32.

    model: model(pixel_values=x).logits is (B, K, h, w).
    images: (B, 3, H, W), normalized, on the model's device. They are not scaled where base_size of the options is None.
    windows: number of windows of an image that the model is given at once.
    One view: its logits, upsampled bilinearly. Several views (scales, mirror image, windows): the logarithm of their mean probabilities,
    so that the softmax of the result gives the probabilities in both cases.
    """
    options = options or InferenceConfig()
    mirrors = (False, True) if options.flip else (False,)
    total = None
    for view in _scaled(images, options):
        for mirror in mirrors:
            logits = _view_logits(model, view.flip(-1) if mirror else view, options, windows)
            logits = resize(logits.flip(-1) if mirror else logits, out_size)
            if is_one_view(options):
                return logits
            total = logits.softmax(1) if total is None else total.add_(logits.softmax(1))
    return log_of(total / (len(mirrors) * len(options.scales)))


@torch.inference_mode()
def predict_ids(
    model: nn.Module, images: Tensor, out_size: tuple[int, int], options: InferenceConfig | None = None, windows: int = 1
) -> list[Tensor]:
    """Return the class ids of each image, integers of shape out_size: the argmax of `predict_logits`, the lowest id among equal logits.

    With one view, the logits are upsampled image by image, and large maps a few channels at a time, to save memory.
    """
    options = options or InferenceConfig()
    if not is_one_view(options):
        return [argmax(logits) for logits in predict_logits(model, images, out_size, options, windows).split(1)]
    (view,) = _scaled(images, options)
    return [_resized_argmax(logits, out_size) for logits in _view_logits(model, view, options, windows).split(1)]


def _resized_argmax(logits: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Return the argmax (*out_size) of logits (1, K, h, w) at another size."""
    if logits.shape[1] < 4 or logits.shape[1] * math.prod(out_size) <= MAX_NUMBERS:
        return argmax(resize(logits, out_size))
    best, ids = None, torch.zeros(out_size, dtype=torch.int16, device=logits.device)
    for class_id, channel in enumerate(_channels(logits, out_size)):
        if best is None:
            best = channel.clone()
            continue
        ids.masked_fill_(channel > best, class_id)
        torch.maximum(best, channel, out=best)
    return ids


def is_one_view(options: InferenceConfig) -> bool:
    """Return whether the network sees an image once: at one scale and not mirrored."""
    return not options.flip and len(options.scales) == 1


def argmax(logits: Tensor) -> Tensor:
    """Return the argmax (H, W) of logits (1, K, H, W), the lowest id among equal logits."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits[0].numpy().argmax(0))  # takes a third of the time of torch's argmax
    return logits[0].argmax(0)


def _channels(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the channels (H, W) of the logits, upsampled, with the values that upsampling all of them at once gives.

    PyTorch rounds differently by memory order and for fewer than 4 channels, so parts keep the order and have at least 4 channels.
    """
    is_channels_last = logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous()
    order = torch.channels_last if is_channels_last else torch.contiguous_format
    ends = tuple(range(PART, logits.shape[1] - 3, PART)) if is_channels_last else logits.shape[1] // 4
    for part in logits.tensor_split(ends, 1):
        yield from resize(part.contiguous(memory_format=order), size)[0]


def view_size(size: tuple[int, int], scale: float, options: InferenceConfig) -> tuple[int, int]:
    """Return the size (height, width) of an image of this size at one of the scales."""
    base = options.base_size / min(size) if options.base_size else 1.0
    height, width = (max(1, round(side * base * scale)) for side in size)
    return height, width


def _scaled(images: Tensor, options: InferenceConfig) -> Iterator[Tensor]:
    """Yield the images at each scale."""
    size = tuple(images.shape[-2:])
    for scale in options.scales:
        yield resize(images, view_size(size, scale, options), antialias=True)


def _view_logits(model: nn.Module, images: Tensor, options: InferenceConfig, windows: int) -> Tensor:
    """Return the logits of one view: (B, K, h, w) of whole images, or (B, K, H, W) averaged over windows."""
    height, width = images.shape[-2:]
    if not uses_windows((height, width), options):
        return model(pixel_values=images).logits.float()
    logits, first = None, 0
    for strip in window_strips(model, lambda rows, columns: images[..., rows, columns], (height, width), options, windows):
        if logits is None:
            logits = strip.new_empty(*strip.shape[:2], height, width)
        logits[:, :, first : first + strip.shape[2]] = strip
        first += strip.shape[2]
    return logits


def resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Scale maps (B, C, h, w) bilinearly."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
