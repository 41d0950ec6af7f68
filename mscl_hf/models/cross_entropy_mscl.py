"""Cross-entropy of logits that are resized to their labels, tile by tile: the resized logits are never all in memory.

Compiled code and logits that have the size of the labels already are the exceptions.
Letters: B images, K classes, h w the size of the logits, H W that of the labels; a tile has r rows and c columns of b images, for which
it reads s rows and t columns of the logits.
"""

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Largest tile in bytes, at the size of the labels: small enough for the caches of a CPU, large on a GPU for long kernels.
BYTES_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 28}
COLUMNS = 64  # of a tile on a CPU; on other devices a tile is as wide as the labels


def mean_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """Return the mean cross-entropy of the labelled pixels, each with the weight of its class: sum(w_y l) / sum(w_y).

    logits (B, K, h, w), labels (B, H, W), class_weights (K,), None = all 1.
    Returns 0, still differentiable, if no pixel has a positive weight.
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
    weights = weights.detach().to(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        if torch.compiler.is_compiling() or logits.shape[-2:] == labels.shape[-2:]:  # a compiler fuses these, and would unroll the tiles
            full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            return (F.cross_entropy(full, labels.masked_fill(weights == 0, 0), reduction="none") * weights).sum()
        return _SummedCrossEntropy.apply(logits, labels, weights, torch.is_grad_enabled())


class _SummedCrossEntropy(torch.autograd.Function):
    """`summed_cross_entropy`, tile by tile; forward also computes the gradient, which backward multiplies by that of the sum.

    With V (H, h) and U (W, w) the matrices of linear interpolation, the logits of a class are X = V L U', and the gradient of L is
    V' (p - y) U, where p is the softmax of X and y is 1 at the label. A tile needs a small part of V and U. These products are faster than
    the backward pass of F.interpolate, and need no atomic additions on a GPU. Logits are divided by log 2, so that the softmax can
    use exp2, which is faster than exp.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor, differentiate: bool) -> Tensor:
        by_row = logits.permute(2, 0, 1, 3) / math.log(2)  # (h, B, K, w)
        gradient = torch.zeros_like(by_row) if differentiate and ctx.needs_input_grad[0] else None
        sizes = zip(logits.shape[-2:], labels.shape[-2:], _tile_size(logits, labels))
        all_rows, all_columns = (_parts(*size, logits.dtype, logits.device) for size in sizes)

        @torch.no_grad()  # set again, since each thread has its own mode
        def of_images(images: slice) -> Tensor:
            total = logits.new_zeros(())
            for rows, columns in itertools.product(all_rows, all_columns):
                tile = images, rows.positions, columns.positions
                tile_labels, tile_weights = (x[tile].transpose(0, 1)[:, :, None] for x in (labels, weights))  # (r, b, 1, c)
                tile_labels = tile_labels.masked_fill(tile_weights == 0, 0)
                source = rows.source, images, slice(None), columns.source
                scores = _combine_rows(rows.matrix, by_row[source]) @ columns.matrix.T  # (r, b, K, c)
                of_label, largest = scores.gather(2, tile_labels), scores.amax(2, keepdim=True)
                exponentials = scores.sub_(largest).exp2_()
                sums = exponentials.sum(2, keepdim=True)
                total += (tile_weights * (sums.log2() + largest - of_label)).sum()
                if gradient is not None:
                    difference = exponentials.mul_(tile_weights / sums)
                    difference.scatter_(2, tile_labels, difference.gather(2, tile_labels) - tile_weights)
                    narrow = (difference @ columns.padded)[..., : columns.matrix.shape[1]]
                    gradient[source] += _combine_rows(rows.matrix.T, narrow)
            return total

        totals = _for_all_images(of_images, logits, labels)
        ctx.save_for_backward(None if gradient is None else gradient.permute(1, 2, 0, 3))
        return sum(totals, logits.new_zeros(())) * math.log(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.saved_tensors[0] * gradient, None, None, None


def _pixels_at_once(logits: Tensor) -> int:
    return BYTES_AT_ONCE.get(logits.device.type, 1 << 26) // (logits.shape[1] * logits.element_size())


def _images_at_once(logits: Tensor, labels: Tensor) -> int:
    """Return the images of a tile: one on a CPU, as many as fit on other devices."""
    return 1 if logits.device.type == "cpu" else max(1, min(len(logits), _pixels_at_once(logits) // labels.shape[1:].numel()))


def _tile_size(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a tile."""
    height, width = labels.shape[-2:]
    width = min(width, COLUMNS) if logits.device.type == "cpu" else width
    return min(height, max(1, _pixels_at_once(logits) // (_images_at_once(logits, labels) * width))), width


class _Part(NamedTuple):
    """Some rows or columns of the labels: their positions, the source, which are those of the logits that they read, and the matrix
    (positions, source) of linear interpolation; padded: the matrix with further columns of zeros."""

    positions: slice
    source: slice
    matrix: Tensor
    padded: Tensor


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _parts(source_size: int, size: int, step: int, dtype: torch.dtype, device: torch.device) -> tuple[_Part, ...]:
    """Divide the rows or columns of the labels into parts of `step`."""
    identity = torch.eye(source_size, dtype=dtype, device="cpu")  # on the CPU, because the loop below reads which entries are zero
    matrix = F.interpolate(identity[None], size=size, mode="linear")[0].T  # as without align_corners
    parts = []
    for first in range(0, size, step):
        part = matrix[first : first + step]
        used = part.any(0).nonzero()
        source = slice(int(used[0]), int(used[-1]) + 1)
        part = part[:, source].to(device)
        padded = F.pad(part, (0, -part.shape[1] % 16)) if device.type == "cpu" else part  # a narrow product is slow on a CPU
        parts.append(_Part(slice(first, first + step), source, part, padded))
    return tuple(parts)


def _combine_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (s, b, K, t) combined by a matrix (r, s): (r, b, K, t)."""
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])


def _for_all_images(function: Callable[[slice], Tensor], logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Return function(images) for all images, those of a tile at a time.

    On a CPU, images are computed in parallel, with threads // workers threads each, so that a tile stays in the cache of one core. A
    single image uses all threads.
    """
    count, threads = _images_at_once(logits, labels), torch.get_num_threads()
    slices = [slice(first, first + count) for first in range(0, len(logits), count)]
    workers = min(len(slices), threads)
    if logits.device.type != "cpu" or workers < 2:
        return [function(images) for images in slices]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(function, slices))
    finally:
        torch.set_num_threads(threads)  # the initializer also changed the default of threads that start later
