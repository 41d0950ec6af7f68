"""Consistency with a teacher's predictions on unlabelled pixels: sums over confident pixels, and their mean over all valid ones.

Letters: B images of H x W px, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .gather import mean_count


@without_autocast
def summed_binary_cross_entropy(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Return the sum over kept pixels (B, H, W) of the binary cross-entropies of all classes. logits (B, K, H, W), labels (B, H, W)."""
    targets = F.one_hot(labels.long(), logits.shape[1]).movedim(3, 1).to(at_least_float32(logits).dtype)
    each = F.binary_cross_entropy_with_logits(at_least_float32(logits), targets, reduction="none").sum(1)
    return torch.where(kept, each, 0).sum()


@without_autocast
def summed_squared_difference(logits: Tensor, probabilities: Tensor, kept: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the squared difference of probabilities, summed over classes and kept pixels (B, H, W).

    logits (B, K, H, W); probabilities (B, K, H, W): of the teacher. It is the consistency of Mean Teacher (Tarvainen & Valpola, NeurIPS
    2017, arXiv:1703.01780) for pixels (French et al., BMVC 2020, arXiv:1906.01916). sigmoid: see `class_probabilities`.
    """
    each = (class_probabilities(logits, sigmoid) - probabilities).square().sum(1)
    return torch.where(kept, each, 0).sum()


def mean_over_valid(total: Tensor, valid: Tensor) -> Tensor:
    """Return a sum over confident pixels divided by the number of valid ones (B, H, W), those inside of the image.

    The divisor counts all valid pixels of all processes, so that the loss grows with the share of confident ones (FixMatch, Sohn et al.,
    NeurIPS 2020, arXiv:2001.07685).
    """
    return total / mean_count(valid.sum().to(total.dtype)).clamp(min=1e-12)


def class_probabilities(logits: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the probabilities of logits (B, K, H, W), in float32 or float64: of a softmax, or of one sigmoid per class."""
    logits = at_least_float32(logits)
    return logits.sigmoid() if sigmoid else logits.softmax(1)
