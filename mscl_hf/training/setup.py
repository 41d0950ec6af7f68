"""Prepare a method for the training loop: optimizer, memory format, device, and wrapping for several processes."""

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from timm.layers import convert_sync_batchnorm
from timm.optim import Lars
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainingConfig
from ..config.launcher import lacks_processes
from ..data.training_data import TrainingData
from ..methods.base import Method
from ..methods.memory import Memory
from ..models.decoders_mscl import DECODERS
from ..models.layer_groups import layer_groups
from ..models.modeling_mscl import MsclBackbone
from .loss_scaling import support_fp16_on_cpu
from .sharding import sharded_copy, take_back


class Prepared(NamedTuple):
    """method: on its device, with --shard a sharded copy. wrapped: the same for several processes, called instead. optimizer: of both."""

    method: Method
    wrapped: nn.Module
    optimizer: AcceleratedOptimizer


def prepare(method: Method, data: TrainingData, options: TrainingConfig, accelerator: Accelerator) -> Prepared:
    """Put a method on its device, freeze what its loss does not reach, and wrap it for several processes."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.gradient_checkpointing:
        method.network.activation_checkpointing_enable()
    method.to(accelerator.device)
    method.unfreeze()
    freeze_unreached(method, next(data.batches(0, 1, rank, world, device=accelerator.device)), accelerator)
    if accelerator.device.type == "cuda" and world > 1:
        method = convert_sync_batchnorm(method)  # timm's, which keeps the activations inside timm's norms; torch's does not
    if options.torch_compile:
        compilers = [os.environ.get("CXX", "g++"), "clang++"]
        if accelerator.device.type == "cpu" and not any(map(shutil.which, compilers)):
            expected = f"needs a C++ compiler, one of {', '.join(compilers)} on the PATH"
            raise ValueError(f"--torch-compile {expected}. Install one, or leave it out.")
        for part in _compiled_parts(method):
            part.compile()
    if options.shard:
        method = sharded_copy(method, accelerator)
        wrapped = accelerator.prepare_model(method, evaluation_mode=True)  # mixed precision without DistributedDataParallel
        return Prepared(method, wrapped, accelerator.prepare_optimizer(build_optimizer(method, options)))
    exclude_memories_from_broadcast(method)
    return Prepared(method, *accelerator.prepare(method, build_optimizer(method, options)))


def unwrap(method: Method, prepared: Prepared, options: TrainingConfig, accelerator: Accelerator) -> None:
    """Undo compilation and sharding. method, prepared: the argument of `prepare` and its result."""
    for part in _compiled_parts(method) if options.torch_compile else ():
        part._compiled_call_impl = None  # evaluation has other image sizes, each of which would be compiled
    if options.shard:
        take_back(method, prepared.method, accelerator.device)


def check_batch(method: Method, data: TrainingData, options: TrainingConfig, world: int) -> None:
    """Raise ValueError where a batch cannot be divided evenly over the processes, or is too small for the method."""
    batch_size = options.batch_size
    if batch_size % world:
        raise ValueError(f"--batch-size is {batch_size}; expected a multiple of {world}, the number of processes.")
    if options.shard and world == 1:
        raise ValueError("--shard divides a network over processes, and there is one. Launch several, or leave it out.")
    data.check_world(world)
    if batch_size < method.min_batch:
        raise ValueError(f"--batch-size is {batch_size}; expected at least {method.min_batch}, since images of a batch are contrasted.")
    least = 2 if torch.cuda.is_available() else 2 * world  # on GPUs batch statistics are computed over all processes
    if method.head_statistics and batch_size < least:
        raise ValueError(
            f"--batch-size is {batch_size}; expected at least {least}, since BatchNorm in this method's heads needs two images per process."
        )


@contextmanager
def memory_of_a_step(method: Method, data: TrainingData, options: TrainingConfig, world: int) -> Iterator[None]:
    """Raise ValueError, with options that need less memory, where a GPU has too little for a step."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, smaller = method.network.config.image_size, smaller_batch(method, data, options, world)
        remedies = ["--gradient-checkpointing", "a smaller --image-size"]
        if smaller is not None:
            words = f"--batch-size {smaller.batch_size} --gradient-accumulation-steps {smaller.gradient_accumulation_steps}"
            remedies.insert(0, f"{words} --image-size {size}")  # a size that is derived would grow as the batch shrinks
        raise ValueError(
            f"--batch-size is {options.batch_size} and --image-size {size}; expected a step that fits into the memory of the GPU. Give "
            f"{', '.join(remedies[:-1])}, or {remedies[-1]}."
        ) from error


def smaller_batch(method: Method, data: TrainingData, options: TrainingConfig, world: int) -> TrainingConfig | None:
    """Return the options with the next smaller batch that divides the present one, and as many images in a step; None without one."""
    for parts in range(2, options.batch_size + 1):
        if options.batch_size % parts == 0:
            steps = options.gradient_accumulation_steps * parts
            with suppress(ValueError):
                smaller = replace(options, batch_size=options.batch_size // parts, gradient_accumulation_steps=steps)
                check_batch(method, data, smaller, world)
                return smaller
    return None


def fork_rng(device: torch.device) -> AbstractContextManager:
    """Restore the random state of the CPU and of one device afterwards; torch warns where it should restore those of several GPUs."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def freeze_unreached(method: Method, batch: dict, accelerator: Accelerator) -> list[str]:
    """Freeze the parameters that the loss does not depend on, and return their names; found by one backward pass.

    DDP waits for a gradient of each parameter, and weight decay would shrink weights without a gradient: unused heads, a decoder
    without a loss, the layers of a timm model after the last feature map that is used.
    """
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    with fork_rng(accelerator.device), accelerator.autocast():
        method(**batch)["loss"].backward()
    unreached = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    for name in unreached:
        method.get_parameter(name).requires_grad_(False)
    method.zero_grad()
    method.load_state_dict(before)  # the forward pass changed batch statistics and queues
    return unreached


def build_optimizer(method: Method, options: TrainingConfig) -> torch.optim.Optimizer:
    """Return SGD, AdamW or LARS over the trainable parameters; biases and norms have no weight decay and no LARS adaptation."""
    groups: dict[tuple[bool, float, bool, bool], list[nn.Parameter]] = {}
    scales = backbone_scales(method.network.backbone, options)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            body = name.startswith(("network.backbone.", "network.decoder."))
            scale = scales.get(name, 1.0) if body else options.head_lr_scale
            groups.setdefault((body, scale, parameter.dim() > 1, name.startswith(method.constant_lr)), []).append(parameter)
    parameters = [
        {
            "params": members,
            "weight_decay": options.weight_decay if decays else 0.0,
            "lr_scale": scale,
            "constant": constant,
            "always_adapt": decays,  # LARS adapts also without weight decay
        }
        for (_, scale, decays, constant), members in groups.items()
    ]
    if options.optim == "adamw":
        return torch.optim.AdamW(parameters, lr=options.learning_rate, fused=True)
    if options.optim == "lars":
        return Lars(parameters, lr=options.learning_rate, momentum=0.9, trust_coeff=0.001)
    on_gpu = any(p.device.type == "cuda" for p in method.parameters())
    return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=0.9, fused=on_gpu)  # on CPUs the fused version is slower


def backbone_scales(backbone: MsclBackbone, options: TrainingConfig) -> dict[str, float]:
    """Return the factors on the learning rates of a backbone's parameters, by their names in a method; {} where all are 1.

    The factor of layer i of n is --backbone-lr-scale times --layer-decay to the power n - i (BEiT, Bao et al., ICLR 2022).
    """
    decay, scale = options.layer_decay, options.backbone_lr_scale
    groups = layer_groups(backbone, coarse=False) if decay < 1 else [[name for name, _ in backbone.timm_model.named_parameters()]]
    if not groups:
        raise ValueError(f"--layer-decay is {decay}, and timm lists no layers of {backbone.config.backbone}. Leave it out.")
    values = [scale * decay ** (len(groups) - number) for number in range(1, len(groups) + 1)]
    return {f"network.backbone.timm_model.{name}": value for names, value in zip(groups, values) for name in names if value != 1}


def lr_at(step: int, options: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then to zero by half a cosine (Loshchilov & Hutter, 2017) or (1 - x)^0.9."""
    warmup = min(options.warmup_steps, options.max_steps // 2)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    x = (step - warmup) / (options.max_steps - warmup)
    return options.learning_rate * (0.5 * (1 + math.cos(math.pi * x)) if options.lr_scheduler_type == "cosine" else (1 - x) ** 0.9)


def exclude_memories_from_broadcast(method: Method) -> None:
    """Exclude queues and memory banks, which are equal on all processes, from DDP's broadcast of buffers in each step."""
    names = [f"{name}.{key}" for name, part in method.named_modules() if isinstance(part, Memory) for key in part._buffers]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, names)


def _compiled_parts(method: Method) -> list[nn.Module]:
    """The backbones and decoders of the network and its teachers."""
    compiled = (MsclBackbone, *DECODERS.values())
    return [part for part in (*method.modules(), *method.hidden_modules) if isinstance(part, compiled)]


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step or image; do nothing with other C libraries.

    By default glibc returns large blocks to the system at once, which costs a step of a ResNet-18 17,000 page faults, a tenth of its time;
    prediction takes a tenth less time as well.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


class Buffers:
    """A copy of the batch statistics and memories, which a forward pass changes, to undo a step with a non-finite loss."""

    def __init__(self, module: nn.Module):
        self.memories = [part for part in module.modules() if isinstance(part, Memory)]
        large = {id(memory.rows) for memory in self.memories}  # a memory copies only the rows that it overwrites
        self.current = [value for value in module.buffers() if id(value) not in large]
        self.kept = [value.clone() for value in self.current]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the current values."""
        torch._foreach_copy_(self.kept, self.current)
        for memory in self.memories:
            memory.keep()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the values of the last `keep`."""
        torch._foreach_copy_(self.current, self.kept)
        for memory in self.memories:
            memory.restore()


def make_accelerator(
    precision: str, trackers: Sequence[str] = (), folder: str | None = None, changes_parameters: bool = False
) -> Accelerator:  # fmt: skip
    """Return the Accelerator of a run. precision: no, bf16 or fp16; trackers: their names; folder: where they write.

    changes_parameters: whether frozen parameters are trained later in the run.
    """
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ValueError(f"Accelerate uses {engine}. To shard a network, unset that, launch several processes, and give --shard.")
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision; the processes stay joined
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    accelerator = Accelerator(
        # Without a GPU and without cpu=True, Accelerate does not join processes: each would train alone, in the same folder.
        cpu=several and not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if changes_parameters else None,
    )
    support_fp16_on_cpu(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if lacks_processes(accelerator.num_processes):
        accelerator.print(
            "warning: accelerate launch started one process instead of several, as it does without a GPU; "
            "on CPUs, start several with `torchrun --nproc_per_node N recipes/...`"
        )
    return accelerator
