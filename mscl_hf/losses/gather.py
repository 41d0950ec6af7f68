"""Keys of all processes with their gradient, and sums for exact means. No-ops in a single process.

A loss that averages over the anchors of this process against the keys of all processes has, after DDP's averaging, the gradient of one
process with the whole batch: the backward of `gather_rows` adds the gradients from the anchors of the other processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Return x (n, ...) of all processes as (world * n, ...), and the index of the first row of this process; n is the same in each."""
    if world_size() == 1:
        return x, 0
    return _GatherRows.apply(x), own_rank() * len(x)


class _GatherRows(torch.autograd.Function):
    """all_gather of rows; in the backward pass each process gets the sum of the gradients that all processes have of its rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        if dist.get_backend() == "nccl":  # half the traffic; not every backend has it
            own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
            dist.reduce_scatter_tensor(own, gradient.contiguous())
            return own
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[dist.get_rank()]


def largest(count: Tensor) -> Tensor:
    """Return the maximum of a number over the processes."""
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return count


def mean_count(count: Tensor) -> Tensor:
    """Return the mean of a count over the processes: local_sum / mean_count, averaged by DDP, is the exact global mean."""
    count = count.detach()
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world_size()
    return count


def weights_of_mean(weight: Tensor, one_set: bool = False) -> Tensor:
    """Return weights (G, N) that make the sum of the anchors' terms, averaged by DDP, a mean over the sets of keys of all processes.

    A set counts with the mean of its terms weighted by weight (G, N), or not at all where these are zero.
    one_set: all processes have one set of keys together, and each holds the rows of its own anchors.
    """
    total = mean_count(weight.sum(1)) if one_set else weight.sum(1)
    used = (total > 0).to(total.dtype)
    return weight * (used / total.clamp(min=1e-12) / mean_count(used.sum()).clamp(min=1e-12))[:, None]
