"""Cosine similarity to a target without gradient: the loss of methods without negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import without_autocast


@without_autocast
def cosine_to_target(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return mean_i <u(p_i), u(z_i)> in [-1, 1], without gradient to the targets; predictions, targets (B, E) of any length.

    BYOL (Grill et al., NeurIPS 2020, arXiv:2006.07733) minimizes 2 - 2 cos, SimSiam (Chen & He, CVPR 2021, arXiv:2011.10566) -cos.
    """
    return torch.linalg.vecdot(F.normalize(predictions, dim=1), F.normalize(targets.detach(), dim=1)).mean()
