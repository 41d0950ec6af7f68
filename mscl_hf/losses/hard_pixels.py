"""Cross-entropy of hard pixels: online hard example mining."""

import math

import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .labels import IGNORE_INDEX


def hard_pixel_cross_entropy(logits: Tensor, labels: Tensor, probability: float = 0.7, share: float = 1 / 16) -> Tensor:
    """Return the mean cross-entropy of labelled pixels with at most `probability` for their class, but at least the hardest `share`.

    Online hard example mining (Shrivastava, Gupta & Girshick, CVPR 2016, arXiv:1604.03540) of pixels, with the threshold of "online
    bootstrapping" (Wu, Shen & van den Hengel, 2016, arXiv:1605.06885). Equally hard pixels are kept or dropped together.

    logits (B, K, H, W), labels (B, H, W), 255 = ignored. 0, with a graph, where nothing is labelled.
    """
    return mean_of_hard_pixels(pixel_cross_entropy(logits, labels), labels, probability, share)


@without_autocast
def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (B, H, W) of each pixel, 0 where it is ignored."""
    return F.cross_entropy(at_least_float32(logits), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")


def mean_of_hard_pixels(cross_entropy: Tensor, labels: Tensor, probability: float, share: float) -> Tensor:
    """Return the mean of the cross-entropy (B, H, W) of the pixels that `hard_pixel_cross_entropy` keeps."""
    if not (0 < probability <= 1 and 0 < share <= 1):
        raise ValueError(f"probability is {probability} and share {share}; expected numbers in (0, 1].")
    each = cross_entropy[labels != IGNORE_INDEX]
    if not len(each):
        return cross_entropy.sum()
    hardest = each.detach().topk(math.ceil(share * len(each))).values[-1]
    return each[each >= hardest.clamp(max=-math.log(probability))].mean()
