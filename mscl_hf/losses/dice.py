"""Dice loss: the overlap of each class with its prediction, independent of the size of the class."""

import torch
from torch import Tensor

from .arguments import at_least_float32, check_shapes, without_autocast
from .labels import IGNORE_INDEX


@without_autocast
def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - mean over the classes c in the labels of 2 sum(p_c y_c) / (sum(p_c^2) + sum(y_c^2)), p the softmax.

    V-Net (Milletari, Navab & Ahmadi, 3DV 2016, arXiv:1606.04797) for several classes; sums over the labelled pixels of all images.
    logits (B, K, H, W), labels (B, H, W), 255 = ignored. 0, with a graph, where nothing is labelled.
    """
    check_shapes(logits, labels)
    valid = (labels != IGNORE_INDEX)[:, None]
    p = at_least_float32(logits).softmax(1) * valid
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    y = ((labels[:, None] == classes) & valid).to(p.dtype)
    pixels = y.sum((0, 2, 3))  # (K,), the sum of the squares too
    overlap = 2 * (p * y).sum((0, 2, 3)) / (p.square().sum((0, 2, 3)) + pixels).clamp(min=1)
    return ((1 - overlap) * (pixels > 0)).sum() / (pixels > 0).sum().clamp(min=1)
