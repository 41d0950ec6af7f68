"""Contrast of the slices of volumes, and of regions of a slice (Chaitanya et al., NeurIPS 2020, arXiv:2006.10511).

Slices at about the same position of different volumes are similar: each volume is cut into partitions along its slices.
Letters: B slices in this process, N in all processes, V versions of a slice, R regions, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .gather import gather_rows, mean_count
from .pixel_contrast import against_negatives
from .streamed import MASKED_SCORE, streamed_sum, with_autograd

# 13 regions of a map, (row, column) in quarters of its sides: corners, middles of edges and center, then the middles of the quarters.
REGIONS = (*((row, column) for row in (0, 2, 4) for column in (0, 2, 4)), (1, 1), (1, 3), (3, 1), (3, 3))
REGION_SIDE = 3  # positions
NEAR = 5  # nearest regions that are negatives of a region


@without_autocast
def slice_contrast(
    versions: Tensor, partition: Tensor, volume: Tensor, temperature: float = 0.1, across_volumes: bool = False
) -> Tensor:
    """G^D- and, across_volumes, G^D: mean over ordered pairs (a, b) of log( 1 + sum_n exp(s_an - s_ab) ), s = <., .>/t.

    versions (B, V, E): unit vectors of slices and of their augmented copies; partition, volume (B,): numbers of each slice's.
    b: the other versions of the same slice; across_volumes: also the same version of slices of the same partition in other volumes.
    n: all versions of the slices of other partitions, over all processes. Slices of the same partition are never negatives.
    """
    count, number = versions.shape[:2]
    versions = at_least_float32(versions)
    keys, first = gather_rows(versions)
    anchors, keys = versions.flatten(0, 1)[None], keys.flatten(0, 1)[None]
    anchor_index = torch.arange(count * number, device=versions.device) + first * number
    index = torch.arange(keys.shape[1], device=versions.device)
    slice_of, version = index // number, index % number
    partition, volume = (gather_rows(numbers)[0][slice_of] for numbers in (partition, volume))

    def positive(rows: slice) -> Tensor:
        a = anchor_index[rows, None]
        matches = (slice_of[a] == slice_of) & (a != index)
        if across_volumes:
            matches |= (partition[a] == partition) & (volume[a] != volume) & (version[a] == version)
        return matches

    def negative(rows: slice) -> Tensor:
        return partition[anchor_index[rows], None] != partition

    pairs = positive(slice(None)).sum(1).to(keys.dtype)[None]
    weight = pairs / mean_count(pairs.sum()).clamp(min=1)
    term = with_autograd(against_negatives(positive, negative, pairs))
    return streamed_sum(term, anchors, keys, temperature, weight)


def near_regions() -> Tensor:
    """Return which regions are near which, (R, R) bool: the `NEAR` nearest others, the first of equally near ones."""

    def distance(a: int, b: int) -> int:
        return sum((x - y) ** 2 for x, y in zip(REGIONS[a], REGIONS[b]))

    near = torch.zeros(len(REGIONS), len(REGIONS), dtype=torch.bool)
    for region in range(len(REGIONS)):
        others = [n for n in range(len(REGIONS)) if n != region]
        near[region, sorted(others, key=lambda n: distance(region, n))[:NEAR]] = True
    return near


_NEAR = near_regions()


def region_patches(features: Tensor) -> Tensor:
    """Return the regions of maps (B, C, h, w), flattened: (B, R, C * 9). They are all different from maps of 7 x 7 positions on."""
    tops, lefts = ([(quarters * (side - REGION_SIDE) + 2) // 4 for quarters in range(5)] for side in features.shape[-2:])  # rounded
    patches = [
        features[:, :, tops[row] : tops[row] + REGION_SIDE, lefts[column] : lefts[column] + REGION_SIDE].flatten(1)
        for row, column in REGIONS
    ]
    return torch.stack(patches, 1)


@without_autocast
def region_contrast(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Return InfoNCE of each region r and the same region of the other view: mean over views, images and regions of

    log( 1 + sum over the regions n near r of [ exp(<a_r, a_n>/t - s_r) + exp(<a_r, b_n>/t - s_r) ] ),  s_r = <a_r, b_r>/t.
    a, b: (B, R, E) unit vectors of the regions of two views whose positions correspond.
    """
    both, near = at_least_float32(torch.cat([a, b], 1)), _NEAR.to(a.device).repeat(2, 2)  # (B, 2R, E), (2R, 2R)
    scores = both @ both.transpose(1, 2) / temperature
    positive = scores.diagonal(len(REGIONS), 1, 2).repeat(1, 2)  # (B, 2R)
    negatives = torch.where(near, scores, MASKED_SCORE).logsumexp(2)
    return F.softplus(negatives - positive).mean()
