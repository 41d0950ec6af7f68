"""Cross-entropy of logits that are resized to their labels, tile by tile: the resized logits are never all in memory.

Compiled code and logits that have the size of the labels already are the exceptions.
Letters: B images, K classes, h w the size of the logits, H W that of the labels; a tile has r rows and c columns of b images, for which
it reads s rows and t columns of the logits.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of the logits of a tile at the size of the labels (a CPU's caches are small, a GPU is faster with long kernels), and its columns.
BYTES_AT_ONCE, COLUMNS = {"cpu": 1 << 22, "cuda": 1 << 28}, 64


def mean_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """Return the mean cross-entropy of the labelled pixels, each with the weight of its class: sum(w_y l) / sum(w_y).

    logits (B, K, h, w), labels (B, H, W), class_weights (K,), None = all 1. 0, with a graph, where no pixel with a weight is labelled.
    """
    weights = labels != ignore_index
    if class_weights is not None:
        weights = class_weights.float()[labels.long() * weights] * weights
    return summed_cross_entropy(logits, labels, weights) / weights.sum().clamp(min=1e-6)


def summed_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over all pixels of the cross-entropy of logits that are resized bilinearly, as without align_corners.

    Equals F.interpolate and F.cross_entropy up to rounding, in float32 (float64 for float64) in spite of autocast; on a GPU with TF32
    allowed, the resizing has its precision.
    logits (B, K, h, w); labels (B, H, W): class ids, any number where the weight is 0; weights (B, H, W): not negative, no gradient.
    """
    logits, labels = logits if logits.dtype == torch.float64 else logits.float(), labels.long()
    weights = weights.to(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        if torch.compiler.is_compiling() or logits.shape[-2:] == labels.shape[-2:]:  # a compiler fuses these, and would unroll the tiles
            full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            return (F.cross_entropy(full, labels.masked_fill(weights == 0, 0), reduction="none") * weights).sum()
        return _SummedCrossEntropy.apply(logits, labels, weights, torch.is_grad_enabled())


class _SummedCrossEntropy(torch.autograd.Function):
    """`summed_cross_entropy`, tile by tile; forward also computes the gradient, which backward multiplies by that of the sum.

    With V (H, h) and U (W, w) the matrices of linear interpolation, the logits of a class are X = V L U', and the gradient of L is
    V' (p - y) U, where p is the softmax of X and y is 1 at the label. A tile needs a small part of V and U. These products are faster than
    the backward pass of F.interpolate, and need no atomic additions on a GPU. Scores are in units of log 2: exp2 is faster than exp.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor, differentiate: bool) -> Tensor:
        by_row = logits.permute(2, 0, 1, 3) / math.log(2)  # (h, B, K, w)
        gradient = torch.zeros_like(by_row) if differentiate and ctx.needs_input_grad[0] else None
        total = logits.new_zeros(())
        for tile in _tiles(logits, labels, weights):
            scores = _combined(tile.vertical, by_row[tile.read]) @ tile.horizontal.T  # (r, b, K, c)
            of_label, largest = scores.gather(2, tile.labels), scores.amax(2, keepdim=True)
            exponentials = scores.sub_(largest).exp2_()
            sums = exponentials.sum(2, keepdim=True)
            total += (tile.weights * (sums.log2() + largest - of_label)).sum()
            if gradient is not None:
                difference = exponentials.mul_(tile.weights / sums).scatter_add_(2, tile.labels, -tile.weights)
                count = tile.horizontal.shape[1]
                padded = F.pad(tile.horizontal, (0, -count % 16))  # a CPU is slower with 5 columns than with 16
                gradient[tile.read] += _combined(tile.vertical.T, difference @ padded)[..., :count]
        gradient = None if gradient is None else gradient.permute(1, 2, 0, 3)
        ctx.save_for_backward(gradient)
        return total * math.log(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.saved_tensors[0] * gradient, None, None, None


def _combined(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (s, b, K, t) combined by a matrix (r, s): (r, b, K, t)."""
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])


class _Tile(NamedTuple):
    """read: index of the logits (h, B, K, w) that the tile reads; vertical (r, s), horizontal (c, t): its interpolation;
    labels, weights: (r, b, 1, c)."""

    read: tuple[slice, slice, slice, slice]
    vertical: Tensor
    horizontal: Tensor
    labels: Tensor
    weights: Tensor


def _tiles(logits: Tensor, labels: Tensor, weights: Tensor) -> Iterator[_Tile]:
    """Yield the tiles: some rows of an image, or all rows of some images, in some columns."""
    height, width = labels.shape[-2:]
    row_bytes = logits.shape[1] * logits.element_size() * min(width, COLUMNS)
    count = max(1, BYTES_AT_ONCE.get(logits.device.type, 1 << 26) // row_bytes)
    images, across = max(1, count // height), list(_interpolations(logits, 3, width, COLUMNS))
    for rows, read_rows, vertical in _interpolations(logits, 2, height, count):
        for columns, read_columns, horizontal in across:
            for first in range(0, len(logits), images):
                some = slice(first, first + images)
                tile_labels, tile_weights = (x[some, rows, columns].transpose(0, 1)[:, :, None] for x in (labels, weights))
                tile_labels = tile_labels.masked_fill(tile_weights == 0, 0)
                yield _Tile((read_rows, some, slice(None), read_columns), vertical, horizontal, tile_labels, tile_weights)


def _interpolations(logits: Tensor, dim: int, size: int, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the positions of each part of `dim` at the given size, the positions of the logits that it reads, and the matrix from these."""
    identity = torch.eye(logits.shape[dim], dtype=logits.dtype, device="cpu")  # its zeros are looked for below
    matrix = F.interpolate(identity[None], size=size, mode="linear")[0].T  # as without align_corners
    for first in range(0, size, step):
        part = matrix[first : first + step]
        used = part.any(0).nonzero()
        read = slice(int(used[0]), int(used[-1]) + 1)
        yield slice(first, first + step), read, part[:, read].to(logits.device)
