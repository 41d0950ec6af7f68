"""Affinity fields: neighbours of one class are to be predicted alike, neighbours of two classes apart by a margin.

Ke, Hwang, Liu & Yu, "Adaptive Affinity Fields for Semantic Segmentation", ECCV 2018, arXiv:1803.10335.
Letters: B images, K classes, h w the network's grid, S window sizes, i a pixel, j its neighbour.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .labels import IGNORE
from .precision import full_precision, raised

SIZES = (1, 2, 3)  # half sides of the windows: 3x3, 5x5, 7x7
IGNORE_MODES = ("pair", "released")
LEAST = 1e-4  # probabilities are clipped to it from below


class Affinity(NamedTuple):
    """Means over what has an edge between i and j, and over what has none; 0 (with a graph) where there is nothing to average."""

    edge: Tensor
    same: Tensor


@full_precision
def affinity(
    logits: Tensor,
    labels: Tensor,
    size: int = 1,
    margin: float = 3.0,
    ignore_mode: str = "pair",
    edge_weight: Tensor | None = None,
    same_weight: Tensor | None = None,
) -> Affinity:
    """Plain affinity of every pixel i with its 8 neighbours j at distance `size`, class by class.

    kl = p_j log(p_j / p_i) + (1 - p_j) log((1 - p_j) / (1 - p_i)) for each class. A class has an edge where exactly one of i and j belongs
    to it: there max(0, margin - kl) counts, elsewhere kl, for the other classes of two different pixels too. Gradients reach p_i and p_j.

    logits (B, K, h, w), labels (B, h, w) at the same resolution, 255 = ignored. edge_weight, same_weight (K,): factors by the class of i.
    ignore_mode: "pair" drops a pair where i or j is ignored or outside; "released" also where the pixel opposite to j is, as the authors'
    code does, which loses a band of `size` pixels along every border. Raises ValueError where shapes do not fit or a name is unknown.
    """
    _check(logits, labels, size, ignore_mode)
    p = raised(logits).softmax(1)
    p, rest = p.clamp(LEAST, 1), (1 - p).clamp(LEAST, 1)
    log_p, log_rest = p.log(), rest.log()
    valid = labels != IGNORE
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    is_class = labels[:, None] == classes  # (B, K, h, w)
    weights = [_per_pixel(weight, labels.where(valid, 0)) for weight in (edge_weight, same_weight)]
    sums, counts = [p.new_zeros(()), p.new_zeros(())], [p.new_zeros(()), p.new_zeros(())]
    for down, right in product((-size, 0, size), repeat=2):
        if (down, right) == (0, 0):
            continue
        i, j = _overlap(labels.shape[-2:], down, right)
        pair = (valid[i] & valid[j] & (ignore_mode == "pair" or _opposite(valid, down, right)[i]))[:, None]
        kl = p[j] * (log_p[j] - log_p[i]) + rest[j] * (log_rest[j] - log_rest[i])
        edge = is_class[i] != is_class[j]
        for part, (value, counted) in enumerate((((margin - kl).relu(), pair & edge), (kl, pair & ~edge))):
            sums[part] = sums[part] + (value * weights[part][i] * counted).sum()
            counts[part] = counts[part] + counted.sum()
    return Affinity(*(total / count.clamp(min=1) for total, count in zip(sums, counts)))


def adaptive_affinity(
    logits: Tensor,
    labels: Tensor,
    size_logits: Tensor,
    sizes: tuple[int, ...] = SIZES,
    margin: float = 3.0,
    ignore_mode: str = "pair",
) -> Affinity:
    """Affinity at several sizes, summed, each class weighting the sizes by a softmax that is learnt against the network.

    size_logits (2, K, S): for edges and for the rest; they receive the negated gradient, so that a descending optimizer moves weight to
    the sizes that are worst predicted. Other arguments as in `affinity`.
    """
    if size_logits.shape != (2, logits.shape[1], len(sizes)):
        raise ValueError(f"size_logits {tuple(size_logits.shape)}; wanted (2, {logits.shape[1]}, {len(sizes)}): one a class and size")
    weights = negated_gradient(size_logits).softmax(2)
    parts = [affinity(logits, labels, size, margin, ignore_mode, *weights[:, :, s]) for s, size in enumerate(sizes)]
    return Affinity(sum(part.edge for part in parts), sum(part.same for part in parts))


def affinity_decay(progress: float) -> float:
    """10^-t for the share t of training done, by which the term is multiplied: 1 at first, a tenth at the end."""
    return 10**-progress


def negated_gradient(x: Tensor) -> Tensor:
    """x itself (2x - x is exact), with a gradient of the opposite sign: descent on what follows is ascent in x."""
    return 2 * x.detach() - x


def _check(logits: Tensor, labels: Tensor, size: int, ignore_mode: str) -> None:
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; wanted (B, K, h, w) and (B, h, w)")
    if size < 1:
        raise ValueError(f"affinity at a distance of {size} px; give at least 1")
    if ignore_mode not in IGNORE_MODES:
        raise ValueError(f"unknown ignore_mode {ignore_mode!r} of the affinity loss; choose one of {', '.join(IGNORE_MODES)}")


def _per_pixel(weight: Tensor | None, labels: Tensor) -> Tensor:
    """Weights (K,) of the classes -> (B, 1, h, w) of the pixels."""
    if weight is None:
        return torch.ones_like(labels)[:, None]
    return weight[labels.long()][:, None]


def _overlap(shape: tuple[int, int], down: int, right: int) -> tuple[tuple, tuple]:
    """Where pixels have a neighbour so far down and right inside the map, and where these neighbours are."""
    here, there = [...], [...]
    for length, shift in zip(shape, (down, right)):
        near, far = slice(0, max(0, length - abs(shift))), slice(abs(shift), length)
        here.append(near if shift > 0 else far)
        there.append(far if shift > 0 else near)
    return tuple(here), tuple(there)


def _opposite(valid: Tensor, down: int, right: int) -> Tensor:
    """Whether the pixel as far on the other side lies inside the map and is valid."""
    here, there = _overlap(valid.shape[-2:], -down, -right)
    found = torch.zeros_like(valid)
    found[here] = valid[there]
    return found
