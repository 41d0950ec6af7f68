"""Every image a class of its own, against a bank that remembers an embedding of each (InstDisc, Wu et al., CVPR 2018, arXiv:1805.01978).

Letters: B images in this process, N in the bank, E embedding, m draws.
"""

import torch
from torch import Tensor

from .gather import mean_count
from .precision import full_precision, raised
from .streamed import logsumexp, streamed_sum

EPSILON = 1e-7


@full_precision
def instance_softmax(vectors: Tensor, index: Tensor, bank: Tensor, temperature: float = 0.07) -> Tensor:
    """mean_b [ log sum_i exp(<v_b, m_i>/t) - <v_b, m_index>/t ], over the whole bank; vectors (B, E), index (B,), bank (N, E)."""
    bank = bank.to(vectors.dtype)
    own = torch.linalg.vecdot(raised(vectors), raised(bank[index])).mean() / temperature
    weights = torch.full((1, len(vectors)), 1 / len(vectors), dtype=own.dtype, device=own.device)
    return streamed_sum(logsumexp(), vectors[None], bank[None], temperature, weights) - own


@full_precision
def instance_nce(vectors: Tensor, index: Tensor, bank: Tensor, draws: Tensor, normaliser: Tensor, temperature: float = 0.07) -> Tensor:
    """Noise-contrastive estimation: each vector's own row is data, the rows drawn uniformly, draws (B, m), are noise.

    With P(i|v) = exp(<m_i, v>/t) / Z and h(i) = P / (P + m/N): mean_b of -[ log h(own) + sum over draws of log(1 - h) ].
    normaliser: Z, which `nce_normaliser` estimates once.
    """
    noise = draws.shape[1] / len(bank)
    scores = _scores(vectors, torch.cat([index[:, None], draws], 1), bank, temperature)
    probability = scores.exp() / normaliser
    total = probability + noise + EPSILON
    return -((probability[:, 0] / total[:, 0]).log() + (noise / total[:, 1:]).log().sum(1)).mean()


@full_precision
@torch.no_grad()
def nce_normaliser(vectors: Tensor, index: Tensor, bank: Tensor, draws: Tensor, temperature: float = 0.07) -> Tensor:
    """Z: N times the mean of exp(score) over own rows and draws, over all processes; the release takes it of the first batch, for good."""
    scores = _scores(vectors, torch.cat([index[:, None], draws], 1), bank, temperature)
    return len(bank) * mean_count(scores.exp().mean())


def _scores(vectors: Tensor, rows: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """(B, n) similarities over the temperature of vectors (B, E) to bank rows (B, n)."""
    return torch.einsum("be,bne->bn", vectors, bank.to(vectors.dtype)[rows]) / temperature
