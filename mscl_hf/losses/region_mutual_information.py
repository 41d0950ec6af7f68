"""Region mutual information: maximize the mutual information of the labels and the predictions of a small window.

Zhao, Wang, Yang & Cai, "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, arXiv:1910.12037.
Letters: B images, K classes, H W pixels, d = radius^2 pixels of a window, n windows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, check_shapes, without_autocast
from .labels import IGNORE_INDEX

MAX_RETRIES = 12


class RegionMutualInformation(NamedTuple):
    """loss: often below zero. retries: number of factorizations that were repeated with a larger alpha."""

    loss: Tensor
    retries: int


@without_autocast
def region_mutual_information(
    probabilities: Tensor,
    labels: Tensor,
    radius: int = 3,
    alpha: float = 5e-4,
    pool: int = 4,
    stride: int | None = None,
    padding: int | None = None,
    first_class: int = 0,
) -> RegionMutualInformation:
    """Return the sum over classes of a bound on the negative mutual information of label and prediction windows, averaged over images.

    For an image and a class, Y and P are the windows' labels and probabilities, d rows each of mean zero: the loss is half the
    log-determinant of M + alpha I, over d, where M = Y Y' - Y P' (P P' + alpha I)^-1 P Y' is the part of Y not linear in P.

    probabilities (B, K, H, W), sigmoids; labels (B, H, W), 255 = ignored: both are 0 there. radius: side of the windows. pool: maps are
    averaged over pool x pool pixels first, every `stride` pixels (default: pool), with `padding` zeros around (default: pool // 2).
    first_class: the label of the first of the K classes, where these are a part of all.
    Computed in float64. Raises ValueError for a map smaller than a window.
    """
    check_shapes(probabilities, labels)
    valid = (labels != IGNORE_INDEX)[:, None]
    classes = torch.arange(first_class, first_class + probabilities.shape[1], device=labels.device)[:, None, None]
    probabilities = at_least_float32(probabilities)
    maps = ((labels[:, None] == classes) & valid).to(probabilities.dtype), probabilities.where(valid, 0)
    padding = pool // 2 if padding is None else padding
    pooled = (F.avg_pool2d(x, pool, stride or pool, padding) if pool > 1 else x for x in maps)
    y, p = (_windows(x.double(), radius) for x in pooled)
    y_p = y @ p.mT
    factor, first = _cholesky(p @ p.mT, alpha)
    unexplained = y @ y.mT - y_p @ torch.cholesky_solve(y_p.mT, factor)
    factor, second = _cholesky((unexplained + unexplained.mT) / 2, alpha)  # exactly symmetric
    each = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) / factor.shape[-1]
    return RegionMutualInformation(each.view(probabilities.shape[:2]).mean(0).sum(), first + second)


@without_autocast
def one_versus_rest(logits: Tensor, labels: Tensor, first_class: int = 0) -> Tensor:
    """Return the binary cross-entropy of every class against all others, summed over classes and labelled pixels.

    It is divided by the number of labelled pixels + 1, as released. logits (B, K, H, W), labels (B, H, W), 255 = ignored. first_class: see
    `region_mutual_information`.
    """
    check_shapes(logits, labels)
    valid = labels != IGNORE_INDEX
    classes = torch.arange(first_class, first_class + logits.shape[1], device=labels.device)[:, None, None]
    targets = (labels[:, None] == classes).to(at_least_float32(logits).dtype)
    each = F.binary_cross_entropy_with_logits(at_least_float32(logits), targets, reduction="none").sum(1)
    return (each * valid).sum() / (valid.sum() + 1)


def _windows(maps: Tensor, radius: int) -> Tensor:
    """Return the windows of maps (B, K, h, w) as (B * K, d, n): a row for each pixel of the window, minus its mean."""
    if min(maps.shape[-2:]) < radius:
        height, width = maps.shape[-2:]
        raise ValueError(
            f"--rmi-radius is {radius}; expected at most {min(height, width)}, the maps have {height} x {width} pooled pixels. "
            "Lower it or --rmi-pool, or enlarge the crop."
        )
    rows = F.unfold(maps.flatten(0, 1)[:, None], radius)
    return rows - rows.mean(2, keepdim=True)


def _cholesky(matrix: Tensor, alpha: float) -> tuple[Tensor, int]:
    """Return the factors of matrix + alpha I (m, d, d) and the number of tenfold increases of alpha after failures; NaN if all failed."""
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    added, retries = matrix.new_full((len(matrix), 1, 1), alpha), 0
    factor, failed = torch.linalg.cholesky_ex(matrix + added * unit)
    while failed.any() and retries < MAX_RETRIES:
        added, retries = torch.where(failed.bool()[:, None, None], 10 * added, added), retries + 1
        factor, failed = torch.linalg.cholesky_ex(matrix + added * unit)
    return factor.masked_fill(failed.bool()[:, None, None], torch.nan), retries
