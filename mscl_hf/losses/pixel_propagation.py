"""PixPro and PixContrast: cells of two crops belong together where they show the same place of the image.

Letters: B images, h x w cells of a view, N = h*w, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import mean_count, share_of_mean
from .precision import full_precision, raised
from .streamed import logsumexp, streamed_sum

EMPTY = ("skip", "zero")


def match_cells(boxes: Tensor, size: tuple[int, int], radius: float = 0.7) -> Tensor:
    """Which cells of the first view belong to which of the second: (B, N, N) bool.

    boxes (B, 2, 4): where the views lie in the image, x0, y0, x1, y1 in px, mirrored ones with x0 > x1; size: (h, w) of both maps.
    Cells belong together where their centres are nearer than `radius` times the longer of the two views' cell diagonals (Xie et al., CVPR
    2021, arXiv:2011.10043). The release measures in parts of the image's width and height; px, as the paper has it, keep circles round.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]  # (B, 2, 2): by view, x and y
        cell = extent / extent.new_tensor(size[::-1])
        rows, columns = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5 for side in size)
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)  # (N, 2), row after row
        centres = corner[:, :, None] + places * cell[:, :, None]  # (B, 2, N, 2)
        # Not by cdist, whose products of many points round: neighbours lie at 0.7071 of a diagonal, close to the radius.
        distance = (centres[:, 0, :, None] - centres[:, 1, None]).square().sum(3).sqrt()
        return distance < radius * cell.square().sum(2).sqrt().amax(1)[:, None, None]


@full_precision
def propagate(x: Tensor, values: Tensor, gamma: float = 2.0) -> Tensor:
    """PixPro's pixel propagation: y_i = u( sum_j max(<x_i, x_j>, 0)^gamma values_j ), (B, N, E); x, values (B, N, E) of unit length."""
    x, values = raised(x), raised(values)
    affinity = (x @ x.transpose(1, 2)).clamp(min=0) ** gamma  # (B, N, N)
    return F.normalize(affinity @ values, dim=2)


@full_precision
def pixel_consistency(predictions: Tensor, targets: Tensor, match: Tensor, empty: str = "skip") -> Tensor:
    """PixPro's loss in one direction: - mean over images of mean_{(i, j) matched} <y_i, x_j>, no gradient to the targets.

    predictions, targets (B, N, E) of unit length, match (B, N, N) of `match_cells`. empty: pairs of crops that share no cell are left out
    of the mean ("skip"), or count as "zero", as in the release (which also doubles the loss).
    Raises ValueError for an unknown name.
    """
    predictions, targets = raised(predictions), raised(targets.detach())
    weight = _of_match(match.flatten(1), predictions, empty).view(match.shape)
    return -(weight * (predictions @ targets.transpose(1, 2))).sum()


@full_precision
def matched_contrast(anchors: Tensor, keys: Tensor, match: Tensor, temperature: float = 0.3, empty: str = "skip") -> Tensor:
    """PixContrast's loss in one direction: mean over images of mean_i [ log sum_j exp s_ij - log sum_{j matched} exp s_ij ], s = <., .>/t.

    j runs over the cells of the same image's other view, i over the cells that have a match. anchors, keys (B, N, E) of unit length;
    match and empty as in `pixel_consistency`.
    """
    weight = _of_match(match.any(2), anchors, empty)
    everything = streamed_sum(logsumexp(), anchors, keys, temperature, weight)
    return everything - streamed_sum(logsumexp(lambda rows: match[:, rows]), anchors, keys, temperature, weight)


def _of_match(counts: Tensor, like: Tensor, empty: str) -> Tensor:
    """Weights (B, n) of the terms that count (B, n) in the mean over images of the mean in each, over all processes."""
    if empty not in EMPTY:
        raise ValueError(f"unknown match_empty {empty!r}; choose one of {', '.join(EMPTY)}")
    weight = share_of_mean(counts.to(raised(like).dtype))
    if empty == "zero":
        weight = weight * (mean_count(counts.any(1).sum().to(weight.dtype)) / len(counts))
    return weight
