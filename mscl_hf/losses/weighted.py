"""Cross-entropy with a weight for each class."""

import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .labels import IGNORE_INDEX


@without_autocast
def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross-entropy of labelled pixels, each with the weight of its class: sum(w_y l) / sum(w_y).

    logits (B, K, H, W), labels (B, H, W), 255 = ignored, weights (K,). 0, with a graph, where no pixel with a weight is labelled.
    """
    logits, labels = at_least_float32(logits), labels.long()
    weights = weights.to(logits.dtype)
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_INDEX, reduction="sum")
    weight = weights[labels[labels != IGNORE_INDEX]].sum()
    return total / weight.clamp(min=1e-6)
