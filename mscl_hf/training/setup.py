"""From a method to what the training loop turns: its optimizer, memory format, device, and the wrapping for many processes."""

import ctypes
import os
import shutil
import sys
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.optim import Lars
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainingConfig
from ..config.launcher import lacks_processes
from ..data.training_data import TrainingData
from ..methods.base import Method
from ..methods.memory import Memory
from .sharding import sharded_copy


def prepare(method: Method, data: TrainingData, options: TrainingConfig, accelerator: Accelerator) -> tuple:
    """On its device, in its memory format, wrapped for many processes: (method, wrapped method, optimizer)."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.gradient_checkpointing:
        method.network.activation_checkpointing_enable()
    method.to(accelerator.device)
    freeze_unreached(method, next(data.batches(0, 1, rank, world, device=accelerator.device)), accelerator)
    if accelerator.device.type == "cuda" and world > 1:
        method = convert_sync_batchnorm(method)  # timm's: torch's own would lose the activation that many of timm's norms carry
    if options.torch_compile:
        _check_compiler(accelerator.device)
        for part in compiled_parts(method):
            part.compile()
    if options.shard:
        method = sharded_copy(method, accelerator)
        model = accelerator.prepare_model(method, evaluation_mode=True)  # mixed precision, and no DistributedDataParallel around it
        return method, model, accelerator.prepare_optimizer(build_optimizer(method, options))
    keep_memories_at_home(method)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, options))
    return method, model, optimizer


def check_batch(method: Method, data: TrainingData, options: TrainingConfig, world: int) -> None:
    """ValueError where a batch cannot be divided over the processes, or is too small for the method."""
    if options.batch_size % world:
        raise ValueError(f"--batch-size {options.batch_size} cannot be split evenly over {world} processes; make it a multiple of {world}")
    if options.shard and world == 1:
        raise ValueError("--shard divides a network over processes and there is one; launch several, or leave it out")
    data.check_world(world)
    if options.batch_size < method.min_batch:
        raise ValueError(f"--batch-size is {options.batch_size} and images of a batch are contrasted; give at least {method.min_batch}")
    apart = world if not torch.cuda.is_available() else 1  # on GPUs batch statistics are those of all processes
    if method.head_statistics and options.batch_size < 2 * apart:
        raise ValueError(
            f"--batch-size {options.batch_size} leaves one image to a process, and BatchNorm in this method's heads takes statistics over "
            f"images; give at least {2 * apart}"
        )


def freeze_unreached(method: Method, batch: dict, accelerator: Accelerator) -> list[str]:
    """Take parameters that the loss does not reach out of training; returns their names.

    DDP waits for a gradient of each parameter, and weight decay would shrink weights that nothing trains: a head that is switched off,
    the decoder where no loss sits behind it, the tail of a timm model behind its last tap. One backward on one batch tells.
    """
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    with torch.random.fork_rng(), accelerator.autocast():
        method(**batch)["loss"].backward()
    unreached = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    for name in unreached:
        method.get_parameter(name).requires_grad_(False)
    method.zero_grad()
    method.load_state_dict(before)  # batch statistics, queues: as if nothing had happened
    return unreached


def build_optimizer(method: Method, options: TrainingConfig) -> torch.optim.Optimizer:
    """SGD, AdamW or LARS over the parameters that train; biases and norms do not decay, and LARS does not adapt their rates."""
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            body = name.startswith(("network.backbone.", "network.decoder."))
            groups.setdefault((body, parameter.dim() > 1, name.startswith(method.constant_lr)), []).append(parameter)
    parameters = [
        {
            "params": members,
            "weight_decay": options.weight_decay if decays else 0.0,
            "lr_scale": 1.0 if body else options.head_lr_scale,
            "constant": constant,
            "always_adapt": decays,  # LARS: a decay of zero is no reason not to adapt
        }
        for (body, decays, constant), members in groups.items()
    ]
    if options.optim == "adamw":
        return torch.optim.AdamW(parameters, lr=options.learning_rate, fused=True)
    if options.optim == "lars":
        return Lars(parameters, lr=options.learning_rate, momentum=0.9, trust_coeff=0.001)
    on_gpu = any(p.device.type == "cuda" for p in method.parameters())
    return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=0.9, fused=on_gpu)  # on a CPU, torch's fused SGD is the slower one


def keep_memories_at_home(method: Method) -> None:
    """Queues and banks are written alike on all processes: DDP need not send them around in each step."""
    alike = [f"{name}.{key}" for name, part in method.named_modules() if isinstance(part, Memory) for key in part._buffers]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, alike)


def compiled_parts(method: Method) -> tuple[nn.Module, nn.Module]:
    return method.network.backbone, method.network.decoder


def _check_compiler(device: torch.device) -> None:
    names = [os.environ.get("CXX", "g++"), "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise ValueError(f"--torch-compile needs a C++ compiler and none of {', '.join(names)} is on the PATH; install one, or leave it out")


def keep_freed_memory() -> None:
    """Keep what is freed for the next step. glibc gives large blocks back to the system at once, and a step of a ResNet-18 then pays for
    17,000 page faults, a tenth of its time. Elsewhere than with glibc nothing is done."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


class Buffers:
    """Batch statistics and memories, which a forward pass changes: kept before a step, so that a bad one can be undone."""

    def __init__(self, module: nn.Module):
        self.memories = [part for part in module.modules() if isinstance(part, Memory)]
        large = {id(memory.rows) for memory in self.memories}  # a memory copies only the rows that it overwrites
        self.current = [value for value in module.buffers() if id(value) not in large]
        self.kept = [value.clone() for value in self.current]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present values."""
        torch._foreach_copy_(self.kept, self.current)
        for memory in self.memories:
            memory.keep()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the values of the last `keep`."""
        torch._foreach_copy_(self.current, self.kept)
        for memory in self.memories:
            memory.restore()


def make_accelerator(precision: str, trackers: Sequence[str] = (), folder: str | None = None) -> Accelerator:
    """precision: fp32 or bf16; trackers write below folder."""
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ValueError(f"Accelerate is set to use {engine}; to shard a network, launch it as on several GPUs, and give --shard")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    accelerator = Accelerator(
        # Without a GPU, Accelerate joins processes only when told to use the CPU; each would train for itself, in one folder.
        cpu=several and not torch.accelerator.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_dir=folder,
    )
    if lacks_processes(accelerator.num_processes):
        accelerator.print(
            "warning: accelerate launch was told to start several processes and started one, as it does without a GPU; "
            "on CPUs, `torchrun --nproc_per_node N recipes/...` starts several"
        )
    return accelerator
