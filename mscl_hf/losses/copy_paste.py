"""CP2: match the foreground pixels of an image pasted onto two backgrounds.

Letters: B images, N and M positions of the first and second view, E embedding.
"""

import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, check_choice, without_autocast
from .gather import weights_of_mean
from .streamed import logsumexp, streamed_sum

AXES = ("key", "query")


@without_autocast
def foreground_mean(x: Tensor, foreground: Tensor) -> Tensor:
    """Return the unit vectors (B, E) of the sum of x (B, N, E) over the foreground (B, N) bool; zero without foreground."""
    return F.normalize((at_least_float32(x) * foreground[..., None]).sum(1), dim=1)


@without_autocast
def foreground_contrast(
    queries: Tensor, keys: Tensor, query_mask: Tensor, key_mask: Tensor, temperature: float = 1.0, axis: str = "key"
) -> Tensor:
    """Return CP2's dense loss (Wang et al., ECCV 2022, arXiv:2203.11709).

    mean over images of mean_{x, y in the foreground} [ log sum_{y'} exp s_xy' - s_xy ],  s = <q_x, k_y>/t, y' over all key positions.

    queries (B, N, E), keys (B, M, E), unit length; query_mask (B, N), key_mask (B, M) bool. axis: "key" as printed, or "query" as
    released: y' over all query positions instead. Images without foreground in a view do not count.
    """
    check_choice("--dense-axis", axis, AXES)
    if axis == "query":  # s is symmetric: exchange the views
        queries, keys, query_mask, key_mask = keys, queries, key_mask, query_mask
    both = (query_mask.any(1) & key_mask.any(1))[:, None]
    weight = weights_of_mean((query_mask & both).to(at_least_float32(queries).dtype))
    all_keys = streamed_sum(logsumexp(), queries, keys, temperature, weight)
    # The mean over all pairs is the product of the means: no matrix is needed.
    mean_key = (at_least_float32(keys) * key_mask[..., None]).sum(1) / key_mask.sum(1, keepdim=True).clamp(min=1)
    mean_query = (at_least_float32(queries) * weight[..., None]).sum(1)
    return all_keys - (mean_query * mean_key).sum() / temperature
