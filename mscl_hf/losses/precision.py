"""Contrast in full precision: at a temperature of 0.07 logits reach 14, where bfloat16 has steps of 0.06."""

import functools

import torch
from torch import Tensor


def full_precision(loss):
    """Decorator: autocast cannot lower a loss's products, and float16, which has no room for them, is raised.

    Embeddings that come in bfloat16 are multiplied as such, see `streamed_sum`; the heads of mscl_hf's networks give float32.
    """

    @functools.wraps(loss)
    def inner(*given, **options):
        with torch.autocast(given[0].device.type, enabled=False):
            return loss(*(x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x for x in given), **options)

    return inner


def raised(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype == torch.bfloat16 else x
