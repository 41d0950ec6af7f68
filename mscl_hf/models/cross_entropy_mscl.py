"""Cross-entropy of logits that are resized to their labels, a band of rows after another: the resized logits are never all in memory.

Compiled code and logits that have the size of the labels already are the exceptions.
Letters: B images, K classes, h w the size of the logits, H W that of the labels, b images and r rows of a band,
s rows of the logits that a band reads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of the logits of a band at the size of the labels: a CPU's caches are small, a GPU is faster with long kernels.
BYTES_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 28}


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
        if torch.compiler.is_compiling() or logits.shape[-2:] == labels.shape[-2:]:  # a compiler fuses these, and would unroll the bands
            full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            return (F.cross_entropy(full, labels.masked_fill(weights == 0, 0), reduction="none") * weights).sum()
        return _SummedCrossEntropy.apply(logits, labels, weights, torch.is_grad_enabled())


class _SummedCrossEntropy(torch.autograd.Function):
    """`summed_cross_entropy`, band by band; forward also computes the gradient, which backward multiplies by that of the sum.

    With V (H, h) and U (W, w) the matrices of linear interpolation, the logits of a class are X = V L U', and the gradient of L is
    V' (p - y) U, where p is the softmax of X and y is 1 at the label. These products are faster than the backward pass of F.interpolate,
    and need no atomic additions on a GPU.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor, differentiate: bool) -> Tensor:
        height, width = labels.shape[-2:]
        vertical, horizontal = (_interpolation(*sides, logits.dtype) for sides in zip(logits.shape[-2:], (height, width)))
        horizontal = horizontal.to(logits.device)
        by_row = logits.transpose(1, 2).contiguous()  # (B, h, K, w), so that the matrix products of a band are few and large
        gradient = torch.zeros_like(by_row) if differentiate and ctx.needs_input_grad[0] else None
        total = logits.new_zeros(())
        for images, rows in _bands(logits, labels):
            sources = _used_sources(vertical[rows])
            of_rows = vertical[rows, sources].to(logits.device)
            band_labels, band_weights = labels[images, rows, None], weights[images, rows, None]  # (b, r, 1, W)
            band_labels = band_labels.masked_fill(band_weights == 0, 0)
            scores = _widened(_product(of_rows, by_row[images, sources]), width)  # (b, r, K, W)
            of_label, largest = scores.gather(2, band_labels), scores.amax(2, keepdim=True)
            exponentials = scores.sub_(largest).exp_()
            sums = exponentials.sum(2, keepdim=True)
            total += (band_weights * (sums.log() + largest - of_label)).sum()
            if gradient is not None:
                difference = exponentials.mul_(band_weights / sums)
                difference.scatter_(2, band_labels, difference.gather(2, band_labels) - band_weights)
                gradient[images, sources] += _product(of_rows.T, difference @ horizontal)
        gradient = None if gradient is None else gradient.transpose(1, 2)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.saved_tensors[0] * gradient, None, None, None


def _interpolation(source: int, target: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (target, source) of linear interpolation, as F.interpolate without align_corners; on the CPU, where it is read."""
    return F.interpolate(torch.eye(source, dtype=dtype, device="cpu")[None], size=target, mode="linear")[0].T


def _used_sources(matrix: Tensor) -> slice:
    """Return the rows of the logits that these rows of an interpolation matrix read."""
    sources = matrix.any(0).nonzero()
    return slice(int(sources[0]), int(sources[-1]) + 1)


def _product(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (b, s, K, w) combined by a matrix (r, s): (b, r, K, w)."""
    return (matrix @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def _widened(rows: Tensor, width: int) -> Tensor:
    """Return rows (b, r, K, w) resized to the width: (b, r, K, W)."""
    flat = rows.flatten(1, 2)
    if rows.is_cuda:  # the linear kernel uses one thread for each column only, the bilinear one for each position of an image
        wide = F.interpolate(flat[:, None], size=(flat.shape[1], width), mode="bilinear")[:, 0]
    else:
        wide = F.interpolate(flat, size=width, mode="linear")
    return wide.unflatten(1, rows.shape[1:3])


def _bands(logits: Tensor, labels: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the images and rows of each band: some images at once, or some rows of one image."""
    row_bytes = logits.shape[1] * labels.shape[-1] * logits.element_size()
    height, count = labels.shape[-2], BYTES_AT_ONCE.get(logits.device.type, 1 << 26) // max(1, row_bytes)
    images, rows = max(1, count // height), max(1, min(height, count))
    for first in range(0, len(logits), images):
        for top in range(0, height, rows):
            yield slice(first, first + images), slice(top, min(top + rows, height))
