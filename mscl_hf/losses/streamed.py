"""Sums of contrastive terms over any number of anchors and keys: exact, with exact gradients, in memory linear in both.

The N x M matrix of similarities exists only in blocks of rows. The forward pass also computes the gradient of each block, since the
weights of the anchors are known: only the gradients of anchors and keys are kept for the backward pass, with three products of N x M x D
(autograd computes as many and stores several matrices).
Letters: G sets of keys, N anchors and M keys of a set, n anchors of a block, D embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The score of a masked key. Finite, so that an anchor without any key has a finite value; its gradient must then be zero.
MASKED_SCORE = -1e30
# Bytes of similarities in a block: a CPU's caches are small, a GPU is faster with long kernels. A block of fewer than FEW_ROWS within this
# budget gets MANY_ROWS instead, over the budget: the gradient of the keys is read and written once per block, which then dominates.
BYTES_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 29}
FEW_ROWS, MANY_ROWS = 256, 512
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Block(NamedTuple):
    """Some anchors and all keys. scores (G, n, M): similarities over the temperature plus bias, which a term may overwrite;
    rows: the anchors; weights (G, n): of their terms; differentiate: whether a gradient is needed."""

    scores: Tensor
    rows: slice
    weights: Tensor
    differentiate: bool


class TermResult(NamedTuple):
    """values (G, n): the terms of a block's anchors. grad_scale (G, n, 1): the term overwrites block.scores in place so that
    grad_scale * block.scores == d(sum(block.weights * values)) / d scores, if block.differentiate."""

    values: Tensor
    grad_scale: Tensor


Term = Callable[[Block], TermResult]
Mask = Callable[[slice], Tensor]


def logsumexp(keep: Mask | None = None) -> Term:
    """Return the term log sum_k exp(score_pk), over all keys or over those where keep(rows) (G, n, M) is true.

    An anchor without any key has a value near MASKED_SCORE and no gradient.
    """

    def term(block: Block) -> TermResult:
        scores = block.scores if keep is None else block.scores.masked_fill_(~keep(block.rows), MASKED_SCORE)
        largest = scores.amax(2, keepdim=True)
        scores.sub_(largest).exp_()
        total = _row_sums(scores, block.weights.dtype)
        largest = largest.to(total.dtype)
        value = (largest + total.log())[..., 0]
        return TermResult(value, torch.where(largest > MASKED_SCORE / 2, block.weights[..., None] / total, 0))

    return term


def _row_sums(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums (G, n, 1) of scores (G, n, M), accumulated in dtype; in parts where torch would convert all scores first."""
    if scores.dtype == dtype or scores.is_cuda:
        return scores.sum(2, keepdim=True, dtype=dtype)
    width = max(1, (1 << 20) // max(1, scores.shape[0] * scores.shape[1]))
    return torch.stack([part.sum(2, keepdim=True, dtype=dtype) for part in scores.split(width, dim=2)]).sum(0)


def with_autograd(function: Callable[[Tensor, slice], Tensor]) -> Term:
    """Return the term function(scores (G, n, M), rows) -> (G, n), differentiated by autograd block by block."""

    def term(block: Block) -> TermResult:
        with torch.set_grad_enabled(block.differentiate):
            scores = block.scores.detach().requires_grad_(block.differentiate)
            value = function(scores, block.rows)
        if block.differentiate:
            (gradient,) = torch.autograd.grad(value, scores, block.weights)
            block.scores.copy_(gradient)
        return TermResult(value.detach(), torch.ones_like(block.weights)[..., None])

    return term


def streamed_sum(
    term: Term, anchors: Tensor, keys: Tensor, temperature: Tensor | float, weights: Tensor, key_bias: Tensor | None = None
) -> Tensor:
    """Return sum_p w_p term_p of the scores <q_p, k_k> / t + bias_k: a scalar, float32 (float64 for float64).

    anchors (G, N, D), keys (G, M, D), of one dtype; products of bfloat16 are accumulated in float32 and the scores stored in bfloat16 as
    differences from the largest possible score, which keeps the large ones precise; only `logsumexp` can use them.
    temperature: a number, or a tensor of one element, which gets its gradient. weights (G, N), no gradient. key_bias (G, M), no gradient:
    0, or MASKED_SCORE for masked keys. Raises ValueError for wrong shapes or dtypes.
    """
    if anchors.dim() != 3 or keys.dim() != 3 or anchors.shape[::2] != keys.shape[::2] or anchors.dtype != keys.dtype:
        raise ValueError(
            f"anchors are {tuple(anchors.shape)} {anchors.dtype} and keys {tuple(keys.shape)} {keys.dtype}; expected (G, N, D) and "
            "(G, M, D) of one dtype."
        )
    if keys.dtype not in (torch.float64, torch.float32, torch.bfloat16) or (anchors.numel() and not keys.numel()):
        raise ValueError(f"keys are {tuple(keys.shape)} {keys.dtype}; expected at least one key, of float64, float32 or bfloat16.")
    with torch.autocast(keys.device.type, enabled=False):
        return _StreamedSum.apply(anchors, keys, temperature, weights, key_bias, term, torch.is_grad_enabled())


class _StreamedSum(torch.autograd.Function):
    """`streamed_sum`, block by block; forward also computes the gradients, which backward multiplies by that of the sum.

    With c = term's grad_scale / t and S the overwritten scores, a block adds c S K to the gradient of its anchors Q and (c Q)' S to the
    transposed gradient of the keys K.
    """

    @staticmethod
    def forward(ctx, anchors, keys, temperature, weights, key_bias, term: Term, differentiate: bool) -> Tensor:
        for_anchors, for_keys, for_temperature = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        differentiate = for_anchors or for_keys or for_temperature
        accumulate = torch.float64 if anchors.dtype == torch.float64 else torch.float32
        scale, weights, columns = 1 / float(temperature), weights.to(accumulate), keys.transpose(1, 2)
        bias, shift = _bias(anchors, keys, scale, key_bias)
        total = weights.sum() * shift
        anchors_grad = torch.empty_like(anchors, dtype=accumulate) if for_anchors or for_temperature else None
        columns_grad = torch.zeros_like(columns, dtype=accumulate) if for_keys else None
        row_bytes = len(keys) * keys.shape[1] * keys.element_size()
        block_rows = BYTES_AT_ONCE.get(keys.device.type, 1 << 26) // max(1, row_bytes)
        block_rows = block_rows if block_rows >= FEW_ROWS else MANY_ROWS
        scores = block_grad = None  # memory of the previous block, to write into
        for start in range(0, anchors.shape[1], block_rows):
            rows = slice(start, start + block_rows)
            scores = _product(anchors[:, rows], columns, scale, bias, out=scores)
            result = term(Block(scores, rows, weights[:, rows], differentiate))
            total += (result.values * weights[:, rows]).sum()
            factor = result.grad_scale * scale
            if anchors_grad is not None:
                anchors_grad[:, rows] = _product(scores, keys) * factor
            if for_keys:
                block_grad = _product((anchors[:, rows] * factor).to(keys.dtype).transpose(1, 2), scores, out=block_grad)
                columns_grad += block_grad
        ctx.temperature, ctx.dtype = temperature, keys.dtype
        ctx.save_for_backward(anchors, anchors_grad, columns_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        anchors, anchors_grad, columns_grad = ctx.saved_tensors
        for_anchors, for_keys, for_temperature = ctx.needs_input_grad[:3]
        temperature_grad = None
        if for_temperature:
            temperature_grad = -(anchors_grad * anchors).sum() / ctx.temperature * gradient
            temperature_grad = temperature_grad.to(ctx.temperature.dtype).reshape(ctx.temperature.shape)
        anchors_grad = (anchors_grad * gradient).to(ctx.dtype) if for_anchors else None
        keys_grad = (columns_grad.transpose(1, 2) * gradient).to(ctx.dtype) if for_keys else None
        return anchors_grad, keys_grad, temperature_grad, None, None, None, None


def _bias(anchors: Tensor, keys: Tensor, scale: float, key_bias: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
    """Return the bias of the scores, broadcastable to (G, 1, M), and the shift that a log-sum-exp needs in return."""
    bias = None if key_bias is None else key_bias.to(keys.dtype)[:, None, :]
    if keys.dtype != torch.bfloat16 or not keys.numel():
        return bias, 0.0
    largest = (anchors.float().norm(dim=2).amax() * keys.float().norm(dim=2).amax() * scale).to(keys.dtype)
    return -largest.view(1, 1, 1) if bias is None else bias - largest, largest.float()


def _product(a: Tensor, b: Tensor, scale: float = 1, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return scale * a (G, n, m) @ b (G, m, k) + bias (G, 1, k), in the memory of `out` if its shape fits."""
    if len(a) == 1 and a.device.type == "cpu" and a.dtype == torch.float32 and ONEDNN:
        # oneDNN, since MKL uses only half of an AMD processor.
        row = None if bias is None else bias.expand(1, 1, b.shape[2])[0, 0].contiguous()
        return torch.ops.mkldnn._linear_pointwise(a[0] * scale if scale != 1 else a[0], b[0].T, row, "none", [], "")[None]
    if out is not None and out.shape != (*a.shape[:2], b.shape[2]):
        out = None
    if bias is None and scale == 1:
        return torch.bmm(a, b, out=out)
    beta = 0 if bias is None else 1
    return torch.baddbmm(a.new_zeros(1, 1, 1) if bias is None else bias, a, b, alpha=scale, beta=beta, out=out)
