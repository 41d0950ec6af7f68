"""Sums of contrastive terms over any number of anchors and keys: exact, with exact gradients, in memory linear in both.

The N x M matrix of similarities exists some rows at a time. While a block of rows is at hand its gradient is taken as well: the
weights of the anchors are known beforehand, so that nothing is kept for the backward but the gradients of anchors and keys, and three
products of N x M x D do it all (autograd needs as many, and several matrices beside them).
Letters: G bags, N anchors and M keys in a bag, n anchors of a block, D embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The score of a key that does not count. Finite, so that an anchor without any key has a finite value; its gradient must then be zero.
NOTHING = -1e30
# Of similarities held at once: a CPU's caches are small, a GPU wants long kernels. Where so many keys leave few rows to a block, it is
# better large: the keys' gradient is read and written once a block.
BYTES_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 29}
FEW_ROWS, MANY_ROWS = 256, 512
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Block(NamedTuple):
    """Some anchors beside all keys. scores (G, n, M): similarities over the temperature plus bias, free to be overwritten;
    rows: which anchors; weights (G, n): of their terms; differentiate: is a gradient wanted?"""

    scores: Tensor
    rows: slice
    weights: Tensor
    differentiate: bool


# A block -> the terms of its anchors (G, n), and a factor (G, n, 1): factor * scores, as they were left, is the gradient of the sum of
# weights * terms with regard to the scores.
Term = Callable[[Block], tuple[Tensor, Tensor]]
Mask = Callable[[slice], Tensor]


def logsumexp(keep: Mask | None = None) -> Term:
    """The term log sum_k exp(score_pk), over all keys or over those that keep(rows) (G, n, M) says.

    An anchor without any key has a value near NOTHING and no gradient.
    """

    def term(block: Block) -> tuple[Tensor, Tensor]:
        scores = block.scores if keep is None else block.scores.masked_fill_(~keep(block.rows), NOTHING)
        largest = scores.amax(2, keepdim=True)
        scores.sub_(largest).exp_()
        total = _row_sums(scores, block.weights.dtype)
        largest = largest.to(total.dtype)
        value = (largest + total.log())[..., 0]
        return value, torch.where(largest > NOTHING / 2, block.weights[..., None] / total, 0)

    return term


def _row_sums(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """(G, n, M) -> (G, n, 1), accumulated in dtype; piece by piece where torch would raise all of it to dtype first."""
    if scores.dtype == dtype or scores.is_cuda:
        return scores.sum(2, keepdim=True, dtype=dtype)
    width = max(1, (1 << 20) // max(1, scores.shape[0] * scores.shape[1]))
    return torch.stack([part.sum(2, keepdim=True, dtype=dtype) for part in scores.split(width, dim=2)]).sum(0)


def differentiated(function: Callable[[Tensor, slice], Tensor]) -> Term:
    """The term function(scores (G, n, M), rows) -> (G, n), whose gradient is left to autograd, block by block."""

    def term(block: Block) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(block.differentiate):
            scores = block.scores.detach().requires_grad_(block.differentiate)
            value = function(scores, block.rows)
        if block.differentiate:
            (gradient,) = torch.autograd.grad(value, scores, block.weights)
            block.scores.copy_(gradient)
        return value.detach(), torch.ones_like(block.weights)[..., None]

    return term


def streamed_sum(
    term: Term, anchors: Tensor, keys: Tensor, temperature: Tensor | float, weights: Tensor, key_bias: Tensor | None = None
) -> Tensor:
    """sum_p w_p term_p of the scores <q_p, k_k> / t + bias_k: a scalar, float32 (float64 for float64).

    anchors (G, N, D), keys (G, M, D), of one dtype; products of bfloat16 are accumulated in float32, the scores stored in bfloat16 as
    distances to the largest that is possible: those that matter keep their precision. They serve `logsumexp` only.
    temperature: a number, or a tensor of one element that gets its gradient. weights (G, N), no gradient. key_bias (G, M), no gradient:
    0 for keys that count, NOTHING for the others. Raises ValueError where shapes or dtypes do not fit.
    """
    if anchors.dim() != 3 or keys.dim() != 3 or anchors.shape[::2] != keys.shape[::2] or anchors.dtype != keys.dtype:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} {anchors.dtype} and keys {tuple(keys.shape)} {keys.dtype}; wanted (G, N, D) and (G, M, D) of "
            "one dtype"
        )
    if keys.dtype not in (torch.float64, torch.float32, torch.bfloat16) or (anchors.numel() and not keys.numel()):
        raise ValueError(f"keys {tuple(keys.shape)} {keys.dtype}; wanted at least one key, of float64, float32 or bfloat16")
    with torch.autocast(keys.device.type, enabled=False):
        return _StreamedSum.apply(anchors, keys, temperature, weights, key_bias, term, torch.is_grad_enabled())


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, keys, temperature, weights, key_bias, term: Term, differentiate: bool) -> Tensor:
        for_anchors, for_keys, for_temperature = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        differentiate = for_anchors or for_keys or for_temperature
        accumulate = torch.float64 if anchors.dtype == torch.float64 else torch.float32
        scale, weights, columns = 1 / float(temperature), weights.to(accumulate), keys.transpose(1, 2)
        bias, shift = _bias(anchors, keys, scale, key_bias)
        total = weights.sum() * shift
        of_anchors = torch.empty_like(anchors, dtype=accumulate) if for_anchors or for_temperature else None
        of_columns = torch.zeros_like(columns, dtype=accumulate) if for_keys else None
        of_a_row = len(keys) * keys.shape[1] * keys.element_size()
        step = BYTES_AT_ONCE.get(keys.device.type, 1 << 26) // max(1, of_a_row)
        step = step if step >= FEW_ROWS else MANY_ROWS
        scores = share = None  # of the block before: memory to write into
        for start in range(0, anchors.shape[1], step):
            rows = slice(start, start + step)
            scores = _product(anchors[:, rows], columns, scale, bias, out=scores)
            value, factor = term(Block(scores, rows, weights[:, rows], differentiate))
            total += (value * weights[:, rows]).sum()
            factor = factor * scale
            if of_anchors is not None:
                of_anchors[:, rows] = _product(scores, keys) * factor
            if for_keys:
                share = _product((anchors[:, rows] * factor).to(keys.dtype).transpose(1, 2), scores, out=share)
                of_columns += share
        ctx.temperature, ctx.dtype = temperature, keys.dtype
        ctx.save_for_backward(anchors, of_anchors, of_columns)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        anchors, of_anchors, of_columns = ctx.saved_tensors
        for_anchors, for_keys, for_temperature = ctx.needs_input_grad[:3]
        of_temperature = None
        if for_temperature:
            of_temperature = -(of_anchors * anchors).sum() / ctx.temperature * gradient
            of_temperature = of_temperature.to(ctx.temperature.dtype).reshape(ctx.temperature.shape)
        of_anchors = (of_anchors * gradient).to(ctx.dtype) if for_anchors else None
        of_keys = (of_columns.transpose(1, 2) * gradient).to(ctx.dtype) if for_keys else None
        return of_anchors, of_keys, of_temperature, None, None, None, None


def _bias(anchors: Tensor, keys: Tensor, scale: float, key_bias: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
    """What is added to the scores of a key, (G, 1, M) or fit for it, and what must be added to a logsumexp for it."""
    bias = None if key_bias is None else key_bias.to(keys.dtype)[:, None, :]
    if keys.dtype != torch.bfloat16 or not keys.numel():
        return bias, 0.0
    largest = (anchors.float().norm(dim=2).amax() * keys.float().norm(dim=2).amax() * scale).to(keys.dtype)
    return -largest.view(1, 1, 1) if bias is None else bias - largest, largest.float()


def _product(a: Tensor, b: Tensor, scale: float = 1, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """scale * a (G, n, m) @ b (G, m, k) + bias (G, 1, k); in the memory of out, where it fits."""
    if len(a) == 1 and a.device.type == "cpu" and a.dtype == torch.float32 and ONEDNN:
        # oneDNN, since MKL leaves half of an AMD processor unused.
        row = None if bias is None else bias.expand(1, 1, b.shape[2])[0, 0].contiguous()
        return torch.ops.mkldnn._linear_pointwise(a[0] * scale if scale != 1 else a[0], b[0].T, row, "none", [], "")[None]
    if out is not None and out.shape != (*a.shape[:2], b.shape[2]):
        out = None
    if bias is None and scale == 1:
        return torch.bmm(a, b, out=out)
    beta = 0 if bias is None else 1
    return torch.baddbmm(a.new_zeros(1, 1, 1) if bias is None else bias, a, b, alpha=scale, beta=beta, out=out)
