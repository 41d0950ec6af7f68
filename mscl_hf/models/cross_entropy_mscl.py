"""Cross-entropy of logits that are resized to their labels, tile by tile: the resized logits are never all in memory.

Compiled code and logits that have the size of the labels already are the exceptions.
Letters: B images, K classes, h w the size of the logits, H W that of the labels; a tile has r rows and c columns of b images, for which
it reads s rows and t columns of the logits.
"""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        count, height, width = _tile_size(logits, labels)
        all_rows, all_columns = _parts(logits, labels, 2, height), _parts(logits, labels, 3, width)

        def of_images(images: slice) -> Tensor:
            total = logits.new_zeros(())
            for rows, columns in itertools.product(all_rows, all_columns):
                tile = images, rows.positions, columns.positions
                tile_labels, tile_weights = (x[tile].transpose(0, 1)[:, :, None] for x in (labels, weights))  # (r, b, 1, c)
                tile_labels = tile_labels.masked_fill(tile_weights == 0, 0)
                read = rows.read, images, slice(None), columns.read
                scores = _combined(rows.matrix, by_row[read]) @ columns.matrix.T  # (r, b, K, c)
                of_label, largest = scores.gather(2, tile_labels), scores.amax(2, keepdim=True)
                exponentials = scores.sub_(largest).exp2_()
                sums = exponentials.sum(2, keepdim=True)
                total += (tile_weights * (sums.log2() + largest - of_label)).sum()
                if gradient is not None:
                    difference = exponentials.mul_(tile_weights / sums).scatter_add_(2, tile_labels, -tile_weights)
                    gradient[read] += _combined(rows.matrix.T, _narrowed(difference, columns.matrix))
            return total

        totals = _for_images(of_images, [slice(first, first + count) for first in range(0, len(logits), count)], logits.device)
        ctx.save_for_backward(None if gradient is None else gradient.permute(1, 2, 0, 3))
        return torch.stack(totals).sum() * math.log(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.saved_tensors[0] * gradient, None, None, None


def _tile_size(logits: Tensor, labels: Tensor) -> tuple[int, int, int]:
    """Return the images, rows and columns of a tile: one image on a CPU, as many as fit on other devices."""
    height, width = labels.shape[-2], min(labels.shape[-1], COLUMNS)
    pixels = BYTES_AT_ONCE.get(logits.device.type, 1 << 26) // (logits.shape[1] * logits.element_size())
    images = 1 if logits.device.type == "cpu" else min(len(logits), max(1, pixels // (height * width)))
    return images, min(height, max(1, pixels // (images * width))), width


class _Part(NamedTuple):
    """Some rows or columns of the labels: their positions, those of the logits that they read, and the matrix of linear interpolation."""

    positions: slice
    read: slice
    matrix: Tensor


def _parts(logits: Tensor, labels: Tensor, dim: int, step: int) -> list[_Part]:
    """Divide the rows (dim 2) or columns (dim 3) of the labels into parts."""
    size = labels.shape[dim - 1]
    identity = torch.eye(logits.shape[dim], dtype=logits.dtype, device="cpu")  # its zeros are looked for below
    matrix = F.interpolate(identity[None], size=size, mode="linear")[0].T  # as without align_corners
    parts = []
    for first in range(0, size, step):
        part = matrix[first : first + step]
        used = part.any(0).nonzero()
        read = slice(int(used[0]), int(used[-1]) + 1)
        parts.append(_Part(slice(first, first + step), read, part[:, read].to(logits.device)))
    return parts


def _combined(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (s, b, K, t) combined by a matrix (r, s): (r, b, K, t)."""
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])


def _narrowed(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows (r, b, K, c) @ matrix (c, t), with zeros up to 16 columns: a CPU is slower with 5."""
    count = matrix.shape[1]
    return (rows @ F.pad(matrix, (0, -count % 16)))[..., :count]


def _for_images(function: Callable[[slice], Tensor], images: list[slice], device: torch.device) -> list[Tensor]:
    """Return the results of all images.

    A CPU computes each image with one thread, if there are enough images: a tile stays in the cache of its core, where several threads
    would exchange it after each operation.
    """
    threads = torch.get_num_threads()
    workers = min(len(images), threads)
    if device.type != "cpu" or workers < 2:
        return [function(some) for some in images]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(function, images))
    finally:
        torch.set_num_threads(threads)  # a thread sets its own number, and that of threads that start later
