"""DenseCL: the places of two views that look most alike are positives of each other, wherever they lie.

Letters: B images, N and M places of the first and second view, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .info_nce import info_nce
from .precision import full_precision, raised


@torch.no_grad()
@full_precision
def most_alike(first: Tensor, second: Tensor) -> Tensor:
    """For each place of the first view the place of the second with the largest cosine: (B, N) int64; (B, N, C) and (B, M, C) features."""
    return (F.normalize(raised(first), dim=2) @ F.normalize(raised(second), dim=2).transpose(1, 2)).argmax(2)


@full_precision
def dense_contrast(anchors: Tensor, keys: Tensor, match: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    """DenseCL's dense loss (Wang et al., CVPR 2021, arXiv:2011.09157): place s of an image must find place match_s of its other view among
    it and the negatives.

    anchors (B, N, E), keys (B, M, E), negatives (m, E), unit length; match (B, N), of `most_alike` on the backbone's features.
    Without negatives it is zero.
    """
    positives = keys.gather(1, match[..., None].expand(-1, -1, keys.shape[2]))
    return info_nce(anchors.flatten(0, 1), positives.flatten(0, 1), negatives, temperature)
