"""Parts of one optimizer step: random state, learning rate, averages of the logged terms, norm of the gradient."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import TrainingConfig
from ..methods.base import Method


def set_step(step: int, method: Method, optimizer: torch.optim.Optimizer, options: TrainingConfig, accelerator: Accelerator) -> None:
    """Set the random state, the learning rates, the training mode and `method.progress` of a step."""
    # Dropout and sampling are functions of the step, so that no random state has to be saved.
    torch.manual_seed(options.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = (options.learning_rate if group["constant"] else lr_at(step, options)) * group["lr_scale"]
    method.train()
    method.progress = step / options.max_steps


def lr_at(step: int, options: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then to zero by half a cosine (Loshchilov & Hutter, 2017) or (1 - x)^0.9."""
    warmup = min(options.warmup_steps, options.max_steps // 2)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    done = (step - warmup) / (options.max_steps - warmup)
    return options.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if options.lr_scheduler_type == "cosine" else (1 - done) ** 0.9)


def sync_gradients(accelerator: Accelerator, model: nn.Module, sync: bool) -> AbstractContextManager:
    """Return the context of a backward pass, with or without averaging gradients over processes."""
    return nullcontext() if sync else accelerator.no_sync(model)


def average_terms(terms: Sequence[dict[str, Tensor]], accelerator: Accelerator) -> tuple[dict[str, float], float]:
    """Return the mean of each logged term over batches and processes, and the loss of this process."""
    sums: dict[str, Tensor] = {}
    for batch_terms in terms:
        for name, value in batch_terms.items():
            sums[name] = sums.get(name, 0) + value.float() / len(terms)
    means = accelerator.reduce(torch.stack(list(sums.values())), "mean").tolist()
    return dict(zip(sums, means)), float(sums["loss"])


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Return the norm of the gradient; a gradient with a larger norm than `max_norm` (0 = no limit) is scaled down to it."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(norm, DTensor):  # sharded gradients: the partial norms are not combined yet
        norm = norm.full_tensor()
    if 0 < max_norm < float(norm):  # most steps are not clipped, which saves one pass over all gradients
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
