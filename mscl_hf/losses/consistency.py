"""Consistency with a teacher's predictions on unlabelled pixels, as cross-entropy or as a squared difference of probabilities.

Letters: B images of H x W px, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .gather import mean_count


@without_autocast
def pseudo_label_loss(logits: Tensor, labels: Tensor, kept: Tensor, valid: Tensor, sigmoid: bool = False) -> Tensor:
    """Return sum over kept pixels of the cross-entropy / number of valid pixels (FixMatch, Sohn et al., NeurIPS 2020, arXiv:2001.07685).

    logits (B, K, H, W), labels (B, H, W): classes that the teacher predicts; kept (B, H, W): confident pixels, a part of the valid ones;
    valid (B, H, W): pixels inside of the image. The divisor counts all valid pixels of all processes, so that the loss grows with the
    share of confident ones. sigmoid: the sum of the binary cross-entropies of the classes instead.
    """
    logits, labels = at_least_float32(logits), labels.long()
    if sigmoid:
        targets = F.one_hot(labels, logits.shape[1]).movedim(3, 1).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    else:
        each = F.cross_entropy(logits, labels, reduction="none")
    return _mean_of_valid(each, kept, valid)


@without_autocast
def probability_loss(logits: Tensor, probabilities: Tensor, kept: Tensor, valid: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the squared difference of probabilities, summed over classes and kept pixels, / number of valid pixels.

    probabilities (B, K, H, W): of the teacher; the other arguments are those of `pseudo_label_loss`. It is the consistency of Mean Teacher
    (Tarvainen & Valpola, NeurIPS 2017, arXiv:1703.01780) for pixels (French et al., BMVC 2020, arXiv:1906.01916).
    """
    each = (class_probabilities(logits, sigmoid) - probabilities).square().sum(1)
    return _mean_of_valid(each, kept, valid)


def class_probabilities(logits: Tensor, sigmoid: bool = False) -> Tensor:
    """Return the probabilities of logits (B, K, H, W), in float32 or float64: of a softmax, or of one sigmoid per class."""
    logits = at_least_float32(logits)
    return logits.sigmoid() if sigmoid else logits.softmax(1)


def _mean_of_valid(each: Tensor, kept: Tensor, valid: Tensor) -> Tensor:
    return torch.where(kept & valid, each, 0).sum() / mean_count(valid.sum().to(each.dtype)).clamp(min=1e-12)
