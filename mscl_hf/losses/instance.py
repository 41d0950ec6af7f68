"""Instance discrimination against a memory bank (InstDisc, Wu et al., CVPR 2018, arXiv:1805.01978).

Letters: B images in this process, N rows of the bank, one per training image, E embedding, m draws.
"""

import torch
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .gather import mean_count
from .streamed import logsumexp, streamed_sum

EPSILON = 1e-7


@without_autocast
def instance_softmax(vectors: Tensor, index: Tensor, bank: Tensor, temperature: float = 0.07) -> Tensor:
    """mean_b [ log sum_i exp(<v_b, m_i>/t) - <v_b, m_index>/t ], over the whole bank; vectors (B, E), index (B,), bank (N, E)."""
    bank = bank.to(vectors.dtype)
    positive = torch.linalg.vecdot(at_least_float32(vectors), at_least_float32(bank[index])).mean() / temperature
    weights = torch.full((1, len(vectors)), 1 / len(vectors), dtype=positive.dtype, device=positive.device)
    return streamed_sum(logsumexp(), vectors[None], bank[None], temperature, weights) - positive


@without_autocast
def instance_nce(vectors: Tensor, index: Tensor, bank: Tensor, draws: Tensor, normalizer: Tensor, temperature: float = 0.07) -> Tensor:
    """Return noise-contrastive estimation: the row of each vector's image is data, rows drawn uniformly, draws (B, m), are noise.

    With P(i|v) = exp(<m_i, v>/t) / Z and h(i) = P / (P + m/N): mean_b of -[ log h(own) + sum over draws of log(1 - h) ].
    normalizer: Z from `nce_normalizer`.
    """
    noise = draws.shape[1] / len(bank)
    scores = _scores(vectors, torch.cat([index[:, None], draws], 1), bank, temperature)
    probability = scores.exp() / normalizer
    total = probability + noise + EPSILON
    return -((probability[:, 0] / total[:, 0]).log() + (noise / total[:, 1:]).log().sum(1)).mean()


@without_autocast
@torch.no_grad()
def nce_normalizer(vectors: Tensor, index: Tensor, bank: Tensor, draws: Tensor, temperature: float = 0.07) -> Tensor:
    """Return Z: N times the mean of exp(score) over rows and draws of all processes; the release computes it once, on the first batch."""
    scores = _scores(vectors, torch.cat([index[:, None], draws], 1), bank, temperature)
    return len(bank) * mean_count(scores.exp().mean())


def _scores(vectors: Tensor, rows: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Return similarities (B, n) over the temperature of vectors (B, E) to the bank rows with indices rows (B, n)."""
    return torch.einsum("be,bne->bn", vectors, bank.to(vectors.dtype)[rows]) / temperature
