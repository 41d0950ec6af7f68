"""Dice loss: the overlap of each class with its prediction, independent of the size of the class."""

import torch
from torch import Tensor

from .arguments import at_least_float32, check_shapes, without_autocast
from .labels import IGNORE_INDEX


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - mean over the classes c in the labels of 2 sum(p_c y_c) / (sum(p_c^2) + sum(y_c^2)), p the softmax.

    V-Net (Milletari, Navab & Ahmadi, 3DV 2016, arXiv:1606.04797) for several classes; sums over the labelled pixels of all images.
    logits (B, K, H, W), labels (B, H, W), 255 = ignored. 0, with a graph, where nothing is labelled.
    """
    return dice_of_sums(dice_sums(logits, labels))


@without_autocast
def dice_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (3, K): sum(p_c y_c), sum(p_c^2) and sum(y_c^2) of each class. The sums of several batches add up to those of all."""
    check_shapes(logits, labels)
    valid = (labels != IGNORE_INDEX)[:, None]
    p = at_least_float32(logits).softmax(1) * valid
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    y = ((labels[:, None] == classes) & valid).to(p.dtype)
    return torch.stack([x.sum((0, 2, 3)) for x in (p * y, p.square(), y)])


def dice_of_sums(sums: Tensor) -> Tensor:
    """Return the Dice loss of the sums (3, K) of `dice_sums`."""
    overlap, squares, pixels = sums
    each = 1 - 2 * overlap / (squares + pixels).clamp(min=1)
    return (each * (pixels > 0)).sum() / (pixels > 0).sum().clamp(min=1)
