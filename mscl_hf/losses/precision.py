"""Contrast in full precision: at a temperature of 0.07 logits reach 14, where bfloat16 has steps of 0.06."""

import functools

import torch
from torch import Tensor


def full_precision(loss):
    """Decorator: autocast cannot lower a loss's products. Embeddings that come in bfloat16 come so on purpose, see `streamed_sum`."""

    @functools.wraps(loss)
    def inner(first: Tensor, *rest, **options):
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *rest, **options)

    return inner


def raised(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
