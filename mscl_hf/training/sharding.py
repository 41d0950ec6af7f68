"""Weights, gradients and optimizer state divided over the processes (PyTorch's FSDP2), for networks that one device cannot train.

Losses, schedules, order and checkpoints are those of replicated training: only where the numbers lie is different.
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

BLOCK = 1_000_000  # parameters from which a member of a chain is gathered by itself, only while it computes


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def sharded_copy(method: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A copy of the method whose parameters are sharded over all processes; the method itself moves to the CPU, to take them back.

    The large members of nn.Sequential and nn.ModuleList, such as the blocks of a transformer, are gathered one after another, the rest
    for the whole step.
    """
    copied = copy.deepcopy(method).to(memory_format=torch.contiguous_format)  # FSDP cuts weights as they lie in memory
    method.to("cpu")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(copied):
        fully_shard(block, mesh=mesh)
    return fully_shard(copied, mesh=mesh)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost members of chains with at least BLOCK parameters; a chain calls its members, so that FSDP's hooks see each use."""
    found = []
    for child in module.children():
        for member in child if isinstance(child, (nn.Sequential, nn.ModuleList)) else ():
            if sum(p.numel() for p in member.parameters()) >= BLOCK:
                found.append(member)
            else:
                found += blocks(member)
        if not isinstance(child, (nn.Sequential, nn.ModuleList)):
            found += blocks(child)
    return found


@torch.no_grad()
def take_back(method: nn.Module, sharded: nn.Module, device: torch.device) -> None:
    """Copy all weights and buffers of the sharded copy into the method, one at a time, and move it to the device. Called by all processes.

    Buffers are the main process's, as with DistributedDataParallel.
    """
    own = method.state_dict()
    for name, value in sharded.state_dict().items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
        else:
            value = value.contiguous()
            torch.distributed.broadcast(value, 0)
        own[name].copy_(value)
    method.to(device)


@contextmanager
def gathered(method: nn.Module) -> Iterator[None]:
    """The method's parts can be called by themselves, as a health check does. A call of all processes; nothing to do where it is whole."""
    if is_sharded(method):
        method.unshard()
    yield
    if is_sharded(method):
        method.reshard()
