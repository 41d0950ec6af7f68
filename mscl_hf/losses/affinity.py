"""Affinity fields: predict neighbors of one class alike, and neighbors of two classes apart by a margin.

Ke, Hwang, Liu & Yu, "Adaptive Affinity Fields for Semantic Segmentation", ECCV 2018, arXiv:1803.10335.
Letters: B images, K classes, (h, w) the size of the logits, S window sizes, i a pixel, j its neighbor.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .arguments import at_least_float32, check_choice, check_shapes, without_autocast
from .labels import IGNORE_INDEX

SIZES = (1, 2, 3)  # half sides of the windows: 3x3, 5x5, 7x7
IGNORE_MODES = ("pair", "released")
MIN_PROBABILITY = 1e-4  # probabilities are at least this


class Affinity(NamedTuple):
    """edge: mean over pairs (i, j) and classes with an edge between i and j; same: mean over the others. 0, with a graph, without pairs."""

    edge: Tensor
    same: Tensor


@without_autocast
def affinity(
    logits: Tensor,
    labels: Tensor,
    size: int = 1,
    margin: float = 3.0,
    ignore_mode: str = "pair",
    edge_weight: Tensor | None = None,
    same_weight: Tensor | None = None,
) -> Affinity:
    """Return the affinity of every pixel i with its 8 neighbors j at distance `size` [px], class by class.

    kl = p_j log(p_j / p_i) + (1 - p_j) log((1 - p_j) / (1 - p_i)) for each class. A class has an edge where exactly one of i and j belongs
    to it: there the term is max(0, margin - kl), elsewhere kl. Gradients reach p_i and p_j.

    logits (B, K, h, w), labels (B, h, w) at the same resolution, 255 = ignored. edge_weight, same_weight (K,): factors by the class of i.
    ignore_mode: "pair" drops a pair where i or j is ignored or outside the map; "released" also where the pixel opposite to j is, as the
    authors' code does, which drops a band of `size` pixels along every border.
    """
    check_shapes(logits, labels)
    check_choice("--affinity-ignore", ignore_mode, IGNORE_MODES)
    if size < 1:
        raise ValueError(f"size is {size} px; expected at least 1.")
    p = at_least_float32(logits).softmax(1)
    p, q = p.clamp(MIN_PROBABILITY, 1), (1 - p).clamp(MIN_PROBABILITY, 1)
    log_p, log_q = p.log(), q.log()
    valid = labels != IGNORE_INDEX
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    is_class = labels[:, None] == classes  # (B, K, h, w)
    ones, class_ids = p.new_ones(logits.shape[1]), labels.where(valid, 0).long()
    weights = [(ones if weight is None else weight)[class_ids][:, None] for weight in (edge_weight, same_weight)]

    def of_neighbor(down: int, right: int, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums (2) and the numbers (2) of the terms with and without an edge, for the neighbor at this offset [px]."""
        i, j = _overlap(labels.shape[-2:], down, right)
        pair = (valid[i] & valid[j] & (ignore_mode == "pair" or _opposite(valid, down, right)[i]))[:, None]
        kl = p[j] * (log_p[j] - log_p[i]) + q[j] * (log_q[j] - log_q[i])
        edge = is_class[i] != is_class[j]
        terms = ((margin - kl).relu(), pair & edge), (kl, pair & ~edge)
        sums = [(value * weight[i] * counted).sum() for (value, counted), weight in zip(terms, weights)]
        return torch.stack(sums), torch.stack([counted.sum() for _, counted in terms])

    # The maps (B, K, h, w) of one neighbor are computed again in the backward pass: those of all neighbors need 24 times the memory.
    offsets = (offset for offset in product((-size, 0, size), repeat=2) if offset != (0, 0))
    parts = [checkpoint(of_neighbor, *offset, p, q, log_p, log_q, use_reentrant=False, preserve_rng_state=False) for offset in offsets]
    sums, counts = (sum(column) for column in zip(*parts))
    return Affinity(*(sums / counts.clamp(min=1)))


def adaptive_affinity(
    logits: Tensor,
    labels: Tensor,
    size_logits: Tensor,
    sizes: tuple[int, ...] = SIZES,
    margin: float = 3.0,
    ignore_mode: str = "pair",
) -> Affinity:
    """Return the sum of affinities at several sizes, weighted per class by a softmax that is learned against the network.

    size_logits (2, K, S): for pairs with and without an edge; they receive the negated gradient, so that gradient descent moves weight
    to the sizes with the largest loss. Other arguments as in `affinity`.
    """
    if size_logits.shape != (2, logits.shape[1], len(sizes)):
        raise ValueError(f"size_logits are {tuple(size_logits.shape)}; expected (2, {logits.shape[1]}, {len(sizes)}).")
    weights = (2 * size_logits.detach() - size_logits).softmax(2)  # 2x - x = x exactly, with the opposite gradient
    parts = [affinity(logits, labels, size, margin, ignore_mode, *weights[:, :, s]) for s, size in enumerate(sizes)]
    return Affinity(sum(part.edge for part in parts), sum(part.same for part in parts))


def affinity_decay(fraction_done: float) -> float:
    """Return the factor 10^-t of the affinity terms, t the fraction of training done: from 1 to 0.1."""
    return 10**-fraction_done


def _overlap(shape: tuple[int, int], down: int, right: int) -> tuple[tuple, tuple]:
    """Return the indices of pixels whose neighbor at this offset [px] is inside the map, and the indices of these neighbors."""
    pixels, neighbors = [...], [...]
    for length, shift in zip(shape, (down, right)):
        near, far = slice(0, max(0, length - abs(shift))), slice(abs(shift), length)
        pixels.append(near if shift > 0 else far)
        neighbors.append(far if shift > 0 else near)
    return tuple(pixels), tuple(neighbors)


def _opposite(valid: Tensor, down: int, right: int) -> Tensor:
    """Return whether the pixel at the negated offset is inside the map and valid."""
    pixels, neighbors = _overlap(valid.shape[-2:], -down, -right)
    opposite = torch.zeros_like(valid)
    opposite[pixels] = valid[neighbors]
    return opposite
