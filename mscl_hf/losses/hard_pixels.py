"""Cross-entropy of hard pixels: online hard example mining."""

import math

import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .labels import IGNORE_INDEX


@without_autocast
def hard_pixel_cross_entropy(logits: Tensor, labels: Tensor, probability: float = 0.7, share: float = 1 / 16) -> Tensor:
    """Return the mean cross-entropy of labelled pixels with at most `probability` for their class, but at least the hardest `share`.

    Online hard example mining (Shrivastava, Gupta & Girshick, CVPR 2016, arXiv:1604.03540) of pixels, with the threshold of "online
    bootstrapping" (Wu, Shen & van den Hengel, 2016, arXiv:1605.06885). Equally hard pixels are kept or dropped together.

    logits (B, K, H, W), labels (B, H, W), 255 = ignored. 0, with a graph, where nothing is labelled.
    """
    if not (0 < probability <= 1 and 0 < share <= 1):
        raise ValueError(f"probability is {probability} and share {share}; expected numbers in (0, 1].")
    valid = labels != IGNORE_INDEX
    count = int(valid.sum())
    if not count:
        return logits.sum() * 0
    each = F.cross_entropy(at_least_float32(logits), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")[valid]
    hardest = each.detach().topk(math.ceil(share * count)).values[-1]
    kept = each[each >= hardest.clamp(max=-math.log(probability))]
    return kept.mean()
