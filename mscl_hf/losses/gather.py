"""What the other processes hold: keys with their gradient, and sums for exact means. No-ops in a single process.

A loss that averages over this process's own anchors against the keys of all processes has, after DDP's averaging, the
gradient of one process with the whole batch: `all_gather`'s backward adds what the other processes' anchors send back.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """x (n, ...), the same n in each process -> rows of all processes (world * n, ...) and the position of this one's first."""
    if world_size() == 1:
        return x, 0
    if x.requires_grad:
        rows = torch.cat(all_gather(x.contiguous()))
        # torch's backward receives into buffers laid out like the gradient; of a transposed one it would scramble the rows.
        rows.register_hook(torch.Tensor.contiguous)
    else:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        rows = torch.cat(parts)
    return rows, dist.get_rank() * len(x)


def largest(count: Tensor) -> Tensor:
    """The maximum of a number over the processes."""
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return count


def mean_count(count: Tensor) -> Tensor:
    """The mean of a count over the processes: local_sum / mean_count, averaged by DDP, is the exact global mean."""
    count = count.detach()
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world_size()
    return count


def share_of_mean(weight: Tensor, shared: bool = False) -> Tensor:
    """Weights (G, N) whose sum with the anchors' terms is the weighted mean in each bag, then the mean over the bags that have an anchor,
    over all processes.

    shared: the bag is one over all processes, each of which holds the rows of its own anchors.
    """
    total = mean_count(weight.sum(1)) if shared else weight.sum(1)
    used = (total > 0).to(total.dtype)
    return weight * (used / total.clamp(min=1e-12) / mean_count(used.sum()).clamp(min=1e-12))[:, None]
