"""Region mutual information: the labels of a small window, seen as one vector, are to be told by the predictions of that window.

Zhao, Wang, Yang & Cai, "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, arXiv:1910.12037.
Letters: B images, K classes, H W pixels, d = radius^2 pixels of a window, n windows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import IGNORE
from .precision import full_precision, raised

MOST_RETRIES = 12


class RegionMutualInformation(NamedTuple):
    """The loss, often below zero, and how often a factorisation had to be tried again with a larger alpha."""

    loss: Tensor
    retries: int


@full_precision
def region_mutual_information(
    probabilities: Tensor,
    labels: Tensor,
    radius: int = 3,
    alpha: float = 5e-4,
    pool: int = 4,
    stride: int | None = None,
    padding: int | None = None,
) -> RegionMutualInformation:
    """The sum over classes of a bound on the negative mutual information of label and prediction windows, averaged over images.

    For an image and a class, Y and P are the windows' labels and probabilities, d rows each of mean zero: the loss is half the
    log-determinant of M + alpha I, over d, M = Y Y' - Y P' (P P' + alpha I)^-1 P Y' being what of Y no linear map of P explains.

    probabilities (B, K, H, W), each class for itself (a sigmoid's), labels (B, H, W), 255 = ignored: both count as 0 there.
    radius: side of the windows. pool: maps are averaged over pool x pool pixels first, every `stride` (None: as pool), with `padding`
    zeros around (None: pool // 2). From then on in float64. Raises ValueError where shapes do not fit, and for a map smaller than a
    window.
    """
    _check(probabilities, labels)
    valid = (labels != IGNORE)[:, None]
    classes = torch.arange(probabilities.shape[1], device=labels.device)[:, None, None]
    probabilities = raised(probabilities)
    maps = ((labels[:, None] == classes) & valid).to(probabilities.dtype), probabilities.where(valid, 0)
    padding = pool // 2 if padding is None else padding
    pooled = (F.avg_pool2d(x, pool, stride or pool, padding) if pool > 1 else x for x in maps)
    y, p = (_windows(x.double(), radius) for x in pooled)
    y_p = y @ p.mT
    factor, first = _cholesky(p @ p.mT, alpha)
    unexplained = y @ y.mT - y_p @ torch.cholesky_solve(y_p.mT, factor)
    factor, second = _cholesky((unexplained + unexplained.mT) / 2, alpha)  # symmetric but for rounding
    each = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) / factor.shape[-1]
    return RegionMutualInformation(each.view(probabilities.shape[:2]).mean(0).sum(), first + second)


@full_precision
def one_versus_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every class against all others, summed over classes and labelled pixels, over their number + 1 (as released).

    logits (B, K, H, W), labels (B, H, W), 255 = ignored. Raises ValueError where shapes do not fit.
    """
    _check(logits, labels)
    valid = labels != IGNORE
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    wanted = (labels[:, None] == classes).to(raised(logits).dtype)
    each = F.binary_cross_entropy_with_logits(raised(logits), wanted, reduction="none").sum(1)
    return (each * valid).sum() / (valid.sum() + 1)


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.dim() != 4 or labels.shape != (scores.shape[0], *scores.shape[2:]):
        raise ValueError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)}; wanted (B, K, H, W) and (B, H, W)")


def _windows(maps: Tensor, radius: int) -> Tensor:
    """(B, K, h, w) -> (B * K, d, n): a row for each place in the window, minus its mean."""
    if min(maps.shape[-2:]) < radius:
        raise ValueError(
            f"windows of {radius} x {radius} do not fit into a map of {maps.shape[-2]} x {maps.shape[-1]} pooled pixels; lower the radius "
            "(--rmi-radius) or the pooling (--rmi-pool), or enlarge the crop"
        )
    rows = F.unfold(maps.flatten(0, 1)[:, None], radius)
    return rows - rows.mean(2, keepdim=True)


def _cholesky(matrix: Tensor, alpha: float) -> tuple[Tensor, int]:
    """Factors of matrix + alpha I (m, d, d), and how often alpha was raised tenfold for those that had none; NaN where nothing helped."""
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    added, retries = matrix.new_full((len(matrix), 1, 1), alpha), 0
    factor, failed = torch.linalg.cholesky_ex(matrix + added * unit)
    while failed.any() and retries < MOST_RETRIES:
        added, retries = torch.where(failed.bool()[:, None, None], 10 * added, added), retries + 1
        factor, failed = torch.linalg.cholesky_ex(matrix + added * unit)
    return factor.masked_fill(failed.bool()[:, None, None], torch.nan), retries
