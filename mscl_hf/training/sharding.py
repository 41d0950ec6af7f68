"""Sharding of weights, gradients and optimizer state over processes (PyTorch's FSDP2), for networks too large for one device.

Losses, schedules, sample order and checkpoints are those of replicated training.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

BLOCK = 1_000_000  # parameters from which a block is gathered separately, while it computes


def is_sharded(module: nn.Module) -> bool:
    """Return whether the parameters of a module are sharded."""
    return isinstance(module, FSDPModule)


def sharded_copy(method: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a copy of the method with parameters sharded over all processes; the method itself moves to the CPU.

    Large members of nn.Sequential and nn.ModuleList, such as the blocks of a transformer, are gathered one after another, all other
    parameters for the whole step.
    """
    copied = copy.deepcopy(method).to(memory_format=torch.contiguous_format)  # FSDP shards by position in memory
    method.to("cpu")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(copied):
        fully_shard(block, mesh=mesh)
    return fully_shard(copied, mesh=mesh)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the outermost members of nn.Sequential and nn.ModuleList with at least BLOCK parameters.

    These are called as modules, which FSDP's hooks need.
    """
    selected = []
    for child in module.children():
        for member in child if isinstance(child, (nn.Sequential, nn.ModuleList)) else ():
            if sum(p.numel() for p in member.parameters()) >= BLOCK:
                selected.append(member)
            else:
                selected += blocks(member)
        if not isinstance(child, (nn.Sequential, nn.ModuleList)):
            selected += blocks(child)
    return selected


@torch.no_grad()
def take_back(method: nn.Module, sharded: nn.Module, device: torch.device) -> None:
    """Copy all weights and buffers of the sharded copy into the method, and move it to the device; called on all processes.

    Buffers are the main process's, as with DistributedDataParallel.
    """
    state = method.state_dict()
    for name, value in sharded.state_dict().items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
        else:
            value = value.contiguous()
            torch.distributed.broadcast(value, 0)
        state[name].copy_(value)
    method.to(device)


@contextmanager
def gathered(method: nn.Module) -> Iterator[None]:
    """Gather the parameters of a sharded method, so that its parts can be called separately; called on all processes."""
    if is_sharded(method):
        method.unshard()
    yield
    if is_sharded(method):
        method.reshard()
