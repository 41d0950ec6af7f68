"""DenseCL: each position of a view has the most similar position of the other view as its positive.

Letters: B images, N and M positions of the first and second view, C channels, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .info_nce import info_nce


@torch.no_grad()
@without_autocast
def nearest_positions(first: Tensor, second: Tensor) -> Tensor:
    """Return for each position of the first view (B, N, C) the index in the second (B, M, C) with the largest cosine: (B, N) int64."""
    return (F.normalize(at_least_float32(first), dim=2) @ F.normalize(at_least_float32(second), dim=2).transpose(1, 2)).argmax(2)


@without_autocast
def dense_contrast(anchors: Tensor, keys: Tensor, match: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    """Return DenseCL's dense loss (Wang et al., CVPR 2021, arXiv:2011.09157): InfoNCE of each position, its match and the negatives.

    anchors (B, N, E), keys (B, M, E), negatives (m, E), unit length; match (B, N): `nearest_positions` of the backbone's features.
    Zero without negatives.
    """
    positives = keys.gather(1, match[..., None].expand(-1, -1, keys.shape[2]))
    return info_nce(anchors.flatten(0, 1), positives.flatten(0, 1), negatives, temperature)
