"""Cross-entropy of the hard pixels: what is predicted well already does not outvote the rest."""

import math

import torch.nn.functional as F
from torch import Tensor

from .labels import IGNORE
from .precision import full_precision, raised


@full_precision
def hard_pixel_cross_entropy(logits: Tensor, labels: Tensor, probability: float = 0.7, share: float = 1 / 16) -> Tensor:
    """Mean cross-entropy of the labelled pixels whose own class gets at most `probability`, and of at least the hardest `share` of them.

    Online hard example mining (Shrivastava, Gupta & Girshick, CVPR 2016, arXiv:1604.03540) of pixels, with the threshold of "online
    bootstrapping" (Wu, Shen & van den Hengel, 2016, arXiv:1605.06885). Equally hard pixels are kept or left together.

    logits (B, K, H, W), labels (B, H, W), 255 = ignored. 0, with a graph, where nothing is labelled. Raises ValueError for a probability or
    a share outside (0, 1].
    """
    if not (0 < probability <= 1 and 0 < share <= 1):
        raise ValueError(f"probability {probability} and share {share} of the hard pixels; both must lie in (0, 1]")
    valid = labels != IGNORE
    count = int(valid.sum())
    if not count:
        return logits.sum() * 0
    each = F.cross_entropy(raised(logits), labels.long(), ignore_index=IGNORE, reduction="none")[valid]
    hardest = each.detach().topk(math.ceil(share * count)).values[-1]
    kept = each[each >= hardest.clamp(max=-math.log(probability))]
    return kept.mean()
