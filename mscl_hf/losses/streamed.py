"""log sum exp of scaled similarities over any number of keys: exact, with exact gradients, in memory linear in anchors + keys.

The sum in the denominator of every contrastive loss is the normaliser of an attention with the anchors as queries and the keys as both keys
and values. So a fused attention kernel computes it tile by tile: its log-sum-exp is the value, its output over the temperature is the
anchors' gradient. The keys' gradient is one more forward with the roles swapped. No N x M matrix exists at any time. On the CPU the kernel
is PyTorch's own; elsewhere the same is computed by blocks of rows.
Letters: G bags, N anchors and M keys in a bag, D embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# The bias of a key that does not count. Finite, so that an anchor without any key has a finite value; its gradient must then be zero.
NOTHING = -1e30
# Similarities that may be held at once where no fused kernel serves; above, rows are computed block by block, again in the backward.
CELLS_AT_ONCE = 1 << 24


def similarity_logsumexp(anchors: Tensor, keys: Tensor, temperature: Tensor | float, key_bias: Tensor | None = None) -> Tensor:
    """lse_p = log sum_k exp(<q_p, k_k> / t + bias_k), float32 (float64 for float64).

    anchors (G, N, D), keys (G, M, D), of one dtype; products of bfloat16 are accumulated in float32. temperature: a number, or a tensor
    of one element that gets its gradient. key_bias (G, M), no gradient: 0 for keys that count, NOTHING for the others.
    An anchor whose keys are all NOTHING gives a value near NOTHING and no gradient.
    Raises ValueError where shapes or dtypes do not fit.
    """
    if anchors.dim() != 3 or keys.dim() != 3 or anchors.shape[::2] != keys.shape[::2] or anchors.dtype != keys.dtype:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} {anchors.dtype} and keys {tuple(keys.shape)} {keys.dtype}; wanted (G, N, D) and (G, M, D) of "
            "one dtype"
        )
    return _SimilarityLogSumExp.apply(anchors, keys, temperature, key_bias)


class _SimilarityLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors: Tensor, keys: Tensor, temperature: Tensor | float, key_bias: Tensor | None) -> Tensor:
        ctx.scale = 1 / float(temperature)
        mean_key, lse = attend(anchors, keys, keys, ctx.scale, key_bias)
        ctx.like = temperature
        ctx.save_for_backward(anchors, keys, key_bias, mean_key, lse)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        anchors, keys, key_bias, mean_key, lse = ctx.saved_tensors
        scale = ctx.scale
        alone = lse <= NOTHING / 2  # an anchor without keys
        gradient = torch.where(alone, 0, gradient)[..., None]
        of_anchors = of_keys = of_temperature = None
        if ctx.needs_input_grad[0]:
            of_anchors = (gradient * mean_key.to(gradient.dtype) * scale).to(anchors.dtype)
        if ctx.needs_input_grad[1]:
            # sum_p g_p exp(s_pk + bias_k - lse_p) q_p / t: an attention of keys over anchors with bias -lse, unnormalised again.
            values = (gradient * anchors.to(gradient.dtype) * scale).to(anchors.dtype)
            mean, total = attend(keys, anchors, values, scale, torch.where(alone, NOTHING, -lse))
            share = (total if key_bias is None else total + key_bias).exp()
            of_keys = (mean.to(share.dtype) * share[..., None]).to(keys.dtype)
        if ctx.needs_input_grad[2]:
            similarity = (anchors.to(gradient.dtype) * mean_key.to(gradient.dtype)).sum(-1, keepdim=True)
            of_temperature = -(gradient * similarity).sum().mul(scale**2).to(ctx.like.dtype).reshape(ctx.like.shape)
        return of_anchors, of_keys, of_temperature, None


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, key_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v (G, N, D) and the log of its normaliser (G, N), by the fastest kernel that serves."""
    if queries.device.type == "cpu" and queries.numel() and keys.numel() and queries.shape[-1] == values.shape[-1]:
        return _attend_fused(queries, keys, values, scale, key_bias)
    return _attend_in_blocks(queries, keys, values, scale, key_bias)


def _attend_fused(queries, keys, values, scale, key_bias):
    # The kernel takes the last stride for 1 and reads elsewhere when it is not.
    heads = [x.contiguous()[:, None] for x in (queries, keys, values)]
    mask = None
    if key_bias is not None:
        dtype = queries.dtype if queries.dtype == torch.float64 else torch.float32
        mask = key_bias.to(dtype).contiguous()[:, None, None, :].expand(-1, 1, queries.shape[1], -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, attn_mask=mask, scale=scale)
    return out[:, 0], lse[:, 0]


def _attend_in_blocks(queries, keys, values, scale, key_bias):
    """The same with plain products, some rows at a time."""
    accumulate = torch.float64 if queries.dtype == torch.float64 else torch.float32
    step = max(1, CELLS_AT_ONCE // max(1, len(queries) * keys.shape[1]))
    keys, values = keys.to(accumulate), values.to(accumulate)
    out, lse = [], []
    for rows in queries.split(step, dim=1):
        scores = rows.to(accumulate) @ keys.transpose(1, 2) * scale
        if key_bias is not None:
            scores = scores + key_bias[:, None, :]
        lse.append(scores.logsumexp(2))
        out.append((scores.softmax(2) @ values).to(queries.dtype))
    return torch.cat(out, dim=1), torch.cat(lse, dim=1)


def in_blocks(
    block: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], columns: int, dim: int = 0
) -> tuple[Tensor, ...]:
    """block(*rows) -> tensors of one entry a row, without more than CELLS_AT_ONCE similarities at once: some rows at a time.

    rows: tensors that are cut along `dim`; columns: how many similarities a row costs. A block's matrices are dropped after use and
    recomputed in the backward.
    """
    step = max(1, CELLS_AT_ONCE // max(1, columns))
    if step >= rows[0].shape[dim] or not rows[0].shape[dim]:
        return block(*rows)
    parts = zip(*(x.split(step, dim) for x in rows))
    if torch.is_grad_enabled():
        done = [checkpoint(block, *part, use_reentrant=False) for part in parts]
    else:
        done = [block(*part) for part in parts]
    return tuple(torch.cat(pieces, dim) for pieces in zip(*done))
