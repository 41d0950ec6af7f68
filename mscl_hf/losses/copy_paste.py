"""CP2: the pixels of a foreground find each other again on another background.

Letters: B images, N and M positions of the first and second view, E embedding.
"""

import torch.nn.functional as F
from torch import Tensor

from .gather import share_of_mean
from .precision import full_precision, raised
from .streamed import logsumexp, streamed_sum

AXES = ("key", "query")


@full_precision
def foreground_mean(x: Tensor, foreground: Tensor) -> Tensor:
    """u( sum over the foreground of x ): (B, E), of x (B, N, E) and foreground (B, N) bool; zero where there is none."""
    return F.normalize((raised(x) * foreground[..., None]).sum(1), dim=1)


@full_precision
def foreground_contrast(
    queries: Tensor, keys: Tensor, query_mask: Tensor, key_mask: Tensor, temperature: float = 1.0, axis: str = "key"
) -> Tensor:
    """CP2's dense loss (Wang et al., ECCV 2022, arXiv:2203.11709): mean over images of
    mean_{x, y in the foreground} [ log sum_{y'} exp s_xy' - s_xy ],  s = <q_x, k_y>/t, y' over all positions of the key, background too.

    queries (B, N, E), keys (B, M, E), unit length; query_mask (B, N), key_mask (B, M) bool. axis: "key" as printed, or "query": the sum
    runs over all positions of the query instead, as in the release. Images without foreground in either view do not count.
    Raises ValueError for an unknown name.
    """
    if axis not in AXES:
        raise ValueError(f"unknown dense_axis {axis!r}; choose one of {', '.join(AXES)}")
    if axis == "query":  # s is symmetric: the same with the parts exchanged
        queries, keys, query_mask, key_mask = keys, queries, key_mask, query_mask
    both = (query_mask.any(1) & key_mask.any(1))[:, None]
    weight = share_of_mean((query_mask & both).to(raised(queries).dtype))
    everything = streamed_sum(logsumexp(), queries, keys, temperature, weight)
    # The mean over all pairs is the product of the means: no matrix is needed.
    mean_key = (raised(keys) * key_mask[..., None]).sum(1) / key_mask.sum(1, keepdim=True).clamp(min=1)
    mean_query = (raised(queries) * weight[..., None]).sum(1)
    return everything - (mean_query * mean_key).sum() / temperature
