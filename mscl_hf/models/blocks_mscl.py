"""The forward pass of a timm model: forward_intermediates, and running statistics that gradient checkpointing updates once.

Self-contained (torch), so that a checkpoint can carry this file as remote code.
"""

from functools import partial

import torch
from torch import nn


def accept_indices(timm_model: nn.Module) -> nn.Module:
    """Make a call of the model with `indices` run forward_intermediates, and return the model; other calls are timm's.

    The hooks of FSDP and Accelerate gather sharded and offloaded weights when a module is called, not when another method is.
    """
    timm_model.forward = partial(_forward, timm_model)  # a partial, since pickle would restore a method by its name, as timm's
    return timm_model


def _forward(timm_model: nn.Module, x: torch.Tensor, *args, **options):
    if "indices" in options:
        return timm_model.forward_intermediates(x, *args, **options)
    return type(timm_model).forward(timm_model, x, *args, **options)


def update_statistics_once(timm_model: nn.Module) -> None:
    """Make modules with running statistics (BatchNorm, SyncBatchNorm, ...) ignore the recomputation in the backward pass.

    It is called before each training step, because convert_sync_batchnorm replaces modules and drops their hooks. A compiled forward pass
    needs no hooks: torch.compile applies the updates once.
    """
    modules = list(timm_model.modules())
    if not any(vars(module).get(flag) for module in modules for flag in ("grad_checkpointing", "memory_efficient")):  # DenseNet's own
        return
    for module in modules:
        if "running_var" in module._buffers and _use_copies not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_use_copies)
            module.register_forward_hook(_restore_buffers, always_call=True)  # recomputation ends early, by an exception


def _use_copies(module: nn.Module, args: tuple) -> None:
    """In a backward pass, make the module write to copies of its buffers."""
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    module._kept_buffers = dict(module._buffers)
    module._buffers.update({name: value.clone() for name, value in module._buffers.items() if value is not None})


def _restore_buffers(module: nn.Module, args: tuple, output) -> None:
    if not torch.compiler.is_compiling():
        module._buffers.update(module.__dict__.pop("_kept_buffers", {}))
