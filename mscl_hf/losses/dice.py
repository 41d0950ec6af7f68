"""Dice loss: the overlap of each class with its prediction, whatever the class's size."""

import torch
from torch import Tensor

from .labels import IGNORE
from .precision import full_precision, raised


@full_precision
def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean over the classes c in the labels of 2 sum(p_c y_c) / (sum(p_c^2) + sum(y_c^2)), sums over labelled pixels of all images
    (V-Net: Milletari, Navab & Ahmadi, 3DV 2016, arXiv:1606.04797, for several classes by their softmax).

    logits (B, K, H, W), labels (B, H, W), 255 = ignored. A class without a pixel has no overlap to gain and does not count; 0, with a
    graph, where nothing is labelled. Raises ValueError where shapes do not fit.
    """
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; wanted (B, K, H, W) and (B, H, W)")
    valid = (labels != IGNORE)[:, None]
    p = raised(logits).softmax(1) * valid
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    y = ((labels[:, None] == classes) & valid).to(p.dtype)
    pixels = y.sum((0, 2, 3))  # (K,), the sum of the squares too
    overlap = 2 * (p * y).sum((0, 2, 3)) / (p.square().sum((0, 2, 3)) + pixels).clamp(min=1)
    return ((1 - overlap) * (pixels > 0)).sum() / (pixels > 0).sum().clamp(min=1)
