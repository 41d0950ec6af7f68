"""PixPro and PixContrast: positions of two crops are positives where they show the same part of the image.

Letters: B images, (h, w) the size of the feature maps, N = h*w positions of a view, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, check_choice, without_autocast
from .gather import mean_count, weights_of_mean
from .streamed import logsumexp, streamed_sum

EMPTY = ("skip", "zero")


def match_positions(boxes: Tensor, size: tuple[int, int], radius: float = 0.7) -> Tensor:
    """Return which positions of the first view match which of the second: (B, N, N) bool.

    boxes (B, 2, 4): x0, y0, x1, y1 of both views in the image [px], x0 > x1 where mirrored; size: (h, w) of both maps. Positions match
    where their centers are nearer than `radius` times the longer of the two views' position diagonals (Xie et al., CVPR 2021,
    arXiv:2011.10043). Distances are in px, as in the paper; the release takes them relative to the image's width and height.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]  # (B, 2, 2): by view, x and y
        step = extent / extent.new_tensor(size[::-1])
        rows, columns = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5 for side in size)
        positions = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)  # (N, 2), row after row
        centers = corner[:, :, None] + positions * step[:, :, None]  # (B, 2, N, 2)
        # cdist rounds for many points, and neighbors are 0.7071 diagonals apart, close to the radius.
        distance = (centers[:, 0, :, None] - centers[:, 1, None]).square().sum(3).sqrt()
        return distance < radius * step.square().sum(2).sqrt().amax(1)[:, None, None]


@without_autocast
def propagate(x: Tensor, values: Tensor, gamma: float = 2.0) -> Tensor:
    """Return PixPro's pixel propagation y_i = u( sum_j max(<x_i, x_j>, 0)^gamma values_j ); x, values, y (B, N, E) of unit length."""
    x, values = at_least_float32(x), at_least_float32(values)
    affinity = (x @ x.transpose(1, 2)).clamp(min=0) ** gamma  # (B, N, N)
    return F.normalize(affinity @ values, dim=2)


@without_autocast
def pixel_consistency(predictions: Tensor, targets: Tensor, match: Tensor, empty: str = "skip") -> Tensor:
    """Return PixPro's loss in one direction: - mean over images of mean_{(i, j) matched} <y_i, x_j>, without gradient to the targets.

    predictions, targets (B, N, E) of unit length, match (B, N, N) from `match_positions`. empty: pairs of crops without a match are left
    out of the mean ("skip"), or count as "zero", as in the release (which also doubles the loss).
    """
    predictions, targets = at_least_float32(predictions), at_least_float32(targets.detach())
    weight = _match_weights(match.flatten(1), predictions, empty).view(match.shape)
    return -(weight * (predictions @ targets.transpose(1, 2))).sum()


@without_autocast
def matched_contrast(anchors: Tensor, keys: Tensor, match: Tensor, temperature: float = 0.3, empty: str = "skip") -> Tensor:
    """Return PixContrast's loss in one direction.

    mean over images of mean_i [ log sum_j exp s_ij - log sum_{j matched} exp s_ij ], s = <., .>/t: j runs over the positions of the other
    view of the image, i over the positions with a match. anchors, keys (B, N, E) of unit length;
    match and empty as in `pixel_consistency`.
    """
    weight = _match_weights(match.any(2), anchors, empty)
    all_keys = streamed_sum(logsumexp(), anchors, keys, temperature, weight)
    return all_keys - streamed_sum(logsumexp(lambda rows: match[:, rows]), anchors, keys, temperature, weight)


def _match_weights(is_term: Tensor, like: Tensor, empty: str) -> Tensor:
    """Return weights (B, n) of the terms is_term (B, n) bool: the mean over images of the mean in each, over all processes."""
    check_choice("--match-empty", empty, EMPTY)
    weight = weights_of_mean(is_term.to(at_least_float32(like).dtype))
    if empty == "zero":
        weight = weight * (mean_count(is_term.any(1).sum().to(weight.dtype)) / len(is_term))
    return weight
