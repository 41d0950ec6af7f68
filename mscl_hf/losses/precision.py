"""Full precision for losses: at a temperature of 0.07 logits reach 14, where bfloat16 has steps of 0.06."""

import functools

import torch
from torch import Tensor


def full_precision(loss):
    """Decorate a loss so that autocast does not lower its products, and float16 arguments become float32.

    Embeddings in bfloat16 are multiplied in bfloat16, see `streamed_sum`; the heads of mscl_hf's networks return float32.
    """

    @functools.wraps(loss)
    def inner(*tensors, **options):
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x for x in tensors), **options)

    return inner


def at_least_float32(x: Tensor) -> Tensor:
    """Return bfloat16 as float32, and any other type as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x
