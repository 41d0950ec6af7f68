"""The training loop, the same for pre-training and fine-tuning: it knows the `Method` interface and no method by name."""

import ctypes
import importlib.util
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint
from .data.loading import TrainingData
from .log import Log
from .methods.base import Method

STOPPED_BY_SIGNAL = 75  # exit status: not done, but resumable


@dataclass(frozen=True)
class TrainOptions:
    """Budget, optimizer, precision, checkpoints, logs."""

    max_steps: int = field(default=300, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=16, metadata={"help": "images per forward pass, over all processes"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimizer step"})
    optimizer: str = field(default="sgd", metadata={"help": "sgd (momentum 0.9), adamw, or lars, for batches of a thousand images"})
    lr: float = field(default=0.05, metadata={"help": "peak learning rate"})
    weight_decay: float = field(default=1e-4, metadata={"help": "on all weights with more than one dimension"})
    schedule: str = field(default="cosine", metadata={"help": "cosine or poly (power 0.9), to zero"})
    warmup_steps: int = field(default=20, metadata={"help": "linear warm-up"})
    clip_norm: float = field(default=5.0, metadata={"help": "largest gradient norm; 0 = no clipping"})
    head_lr_scale: float = field(default=1.0, metadata={"help": "factor on the learning rate of everything but backbone and decoder"})
    precision: str = field(default="fp32", metadata={"help": "fp32 or bf16"})
    channels_last: bool = field(default=True, metadata={"help": "memory format of the convolutions"})
    compile: bool = field(default=False, metadata={"help": "torch.compile backbone and decoder: minutes first, then faster steps"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute the backbone's activations"})
    num_workers: int = field(default=2, metadata={"help": "processes that decode and augment, per training process"})
    save_every_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints; 0 = only at the end"})
    keep_checkpoints: int = field(default=2, metadata={"help": "how many checkpoints to keep"})
    log_every_steps: int = field(default=10, metadata={"help": "optimizer steps between lines of log.jsonl"})
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackers: tensorboard, trackio, wandb"})
    seed: int = field(default=0, metadata={"help": "drives weights, order and augmentation"})
    resume: bool = field(default=False, metadata={"help": "continue what the output folder holds, or start"})

    def __post_init__(self):
        for name, known in (
            ("precision", ("fp32", "bf16")),
            ("optimizer", ("sgd", "adamw", "lars")),
            ("schedule", ("cosine", "poly")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_steps", "save_every_steps", "num_workers", "weight_decay", "clip_norm", "head_lr_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr is {self.lr}; it must be positive and finite")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}; it must lie in 0..{2**32 - 1}")
        unknown = set(self.report_to) - {"tensorboard", "trackio", "wandb"}
        if unknown:
            raise ValueError(f"--report-to {', '.join(sorted(unknown))} is unknown; choose tensorboard, trackio, wandb")
        for tracker in self.report_to:
            if importlib.util.find_spec(tracker) is None:
                raise ValueError(f"--report-to {tracker} needs a package that is not installed; pip install {tracker}")


class NonFinite(ValueError):
    """The loss or its gradient is NaN or infinite; raised before the weights move."""


def lr_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter, 2017) or a polynomial of power 0.9, to zero."""
    warmup = min(options.warmup_steps, options.max_steps // 2)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    done = (step - warmup) / (options.max_steps - warmup)
    return options.lr * (0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else (1 - done) ** 0.9)


def build_optimizer(method: Method, options: TrainOptions) -> torch.optim.Optimizer:
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
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=options.lr, fused=True)
    if options.optimizer == "lars":
        return Lars(parameters, lr=options.lr, momentum=0.9, trust_coeff=0.001)
    on_gpu = any(p.device.type == "cuda" for p in method.parameters())
    return torch.optim.SGD(parameters, lr=options.lr, momentum=0.9, fused=on_gpu)  # on a CPU, torch's fused SGD is the slower one


def fit(
    method: Method,
    data: TrainingData,
    options: TrainOptions,
    out: Path,
    accelerator: Accelerator,
    watch: Callable[[Method, int, dict], dict] | None = None,
    watch_every_steps: int = 0,
    max_bad_images: int = 0,
    steps_before: int = 0,
) -> Method:
    """Train `method` for options.max_steps, resuming from `out` if it holds a checkpoint; returns it unwrapped.

    watch(method, step, the step's row of the log) -> more numbers for the log, called on every process every `watch_every_steps`
    (0 = never) and at the end. steps_before: those of an earlier stage, which trackers count on from.
    Raises NonFinite before the weights move; SystemExit(75) after a SIGTERM, with a checkpoint saved.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    _check_batch(method, data, options, world)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    method, model, optimizer = _prepare(method, data, options, accelerator)
    found = checkpoint.complete(out)
    first, pending = checkpoint.load(found[-1], method, optimizer.optimizer) if found else (0, [])
    if found:
        accelerator.print(f"resuming from step {first} ({found[-1]})")
    accumulate = options.gradient_accumulation_steps
    coming = data.batches(first * accumulate, options.max_steps * accumulate, rank, world, options.num_workers, accelerator.device)
    log = Log(out, first, options, accelerator, pending, steps_before)
    buffers = Buffers(method)
    skipped: set[str] = set()
    done = first
    with stop_signal() as stop:
        for step in range(first, options.max_steps):
            started = time.perf_counter()
            batches = [next(coming) for _ in range(accumulate)]
            waited = time.perf_counter() - started
            skipped.update(message for batch in batches for message in batch["bad"])
            buffers.keep()
            try:
                row = _step(step, method, model, optimizer, batches, options, accelerator)
            except NonFinite:
                buffers.restore()
                if done > first:
                    _save(accelerator, out, done, method, optimizer, options, log.rows)
                raise
            done = step + 1
            log.add(done, row, time.perf_counter() - started, waited)
            if watch and _is_due(done, watch_every_steps, options.max_steps):
                log.write(done, _in_eval(watch, method, done, row))
            stopping = any_process(accelerator, stop.requested or len(skipped) > max_bad_images)
            if stopping or _is_due(done, options.save_every_steps, options.max_steps):
                _save(accelerator, out, done, method, optimizer, options, log.rows)
            if stopping:
                break
    log.close()
    for part in compiled_parts(method) if options.compile else ():
        part._compiled_call_impl = None  # evaluation sees other sizes, and each would be compiled
    _end_early(done, skipped, max_bad_images, options, accelerator)
    return method


def _end_early(done: int, skipped: set[str], max_bad_images: int, options: TrainOptions, accelerator: Accelerator) -> None:
    """Say why a run ends before its time, if it does; its checkpoint is saved."""
    if len(skipped) > max_bad_images:
        raise ValueError(
            f"{len(skipped)} bad image(s), more than --max-bad-images {max_bad_images}; the last: {sorted(skipped)[-1]}; a checkpoint of "
            f"step {done} is saved: mend them, or raise the limit, and go on with --resume"
        )
    if done < options.max_steps:
        accelerator.print(f"stopped after step {done}, checkpoint saved; the same command with --resume continues")
        accelerator.end_training()
        sys.exit(STOPPED_BY_SIGNAL)


def keep_freed_memory() -> None:
    """Keep what is freed for the next step. glibc gives large blocks back to the system at once, and a step of a ResNet-18 then pays for
    17,000 page faults, a tenth of its time. Elsewhere than with glibc nothing is done."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def _prepare(method: Method, data: TrainingData, options: TrainOptions, accelerator: Accelerator) -> tuple:
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
    if options.compile:
        _check_compiler(accelerator.device)
        for part in compiled_parts(method):
            part.compile()
    keep_memories_at_home(method)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, options))
    return method, model, optimizer


def keep_memories_at_home(method: Method) -> None:
    """Queues and banks are written alike on all processes: DDP need not send them around in each step."""
    alike = [f"{name}.{key}" for name, part in method.named_modules() if getattr(part, "same_everywhere", False) for key in part._buffers]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, alike)


def compiled_parts(method: Method) -> tuple[nn.Module, nn.Module]:
    return method.network.backbone, method.network.decoder


def _check_compiler(device: torch.device) -> None:
    names = [os.environ.get("CXX", "g++"), "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise ValueError(f"--compile needs a C++ compiler and none of {', '.join(names)} is on the PATH; install one, or leave it out")


def _step(step: int, method: Method, model: nn.Module, optimizer, batches: list[dict], options: TrainOptions, accelerator) -> dict:
    """One optimizer step; returns its row of the log. Raises NonFinite while the weights are still those of the step before."""
    # Dropout and sampling are functions of the step: nothing to save, nothing to restore.
    torch.manual_seed(options.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = (options.lr if group["constant"] else lr_at(step, options)) * group["lr_scale"]
    method.progress = step / options.max_steps
    terms = _accumulated_step(model, batches, accelerator)
    norm = _clip(accelerator, model, options.clip_norm)
    _stop_unless_finite(accelerator, step, terms, norm, batches)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step((step + 1) / options.max_steps)
    return terms | {"grad_norm": norm, "lr": lr_at(step, options)}


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _check_batch(method: Method, data: TrainingData, options: TrainOptions, world: int) -> None:
    if options.batch_size % world:
        raise ValueError(f"--batch-size {options.batch_size} cannot be split evenly over {world} processes; make it a multiple of {world}")
    if data.order is not None:
        data.order.check_world(world)
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


def _accumulated_step(model: nn.Module, batches: list[dict], accelerator: Accelerator) -> dict[str, float]:
    """Forward and backward over the batches of one optimizer step; returns the mean of every logged term."""
    model.train()
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        with _sync_gradients(accelerator, model, last):
            terms = model(**batch)
            (terms["loss"] / len(batches)).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
    names = list(sums)
    values = accelerator.reduce(torch.stack([sums[name] for name in names]), "mean").tolist()
    return dict(zip(names, values))


@contextmanager
def _sync_gradients(accelerator: Accelerator, model: nn.Module, sync: bool) -> Iterator[None]:
    if sync:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def _clip(accelerator: Accelerator, model: nn.Module, limit: float) -> float:
    """The gradient's norm; where it is above the limit (0 = none), the gradient is scaled down to it."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if 0 < limit < float(norm):  # most steps are not clipped, and need not touch every gradient again
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _stop_unless_finite(accelerator: Accelerator, step: int, terms: dict, norm: float, batches: list[dict]) -> None:
    # The mean loss and DDP's averaged gradient carry one process's NaN to all of them: all stop, none hangs.
    if math.isfinite(terms["loss"]) and math.isfinite(norm):
        return
    names = [name for batch in batches for name in batch["name"]]
    raise NonFinite(
        f"step {step + 1} gave loss {terms['loss']} and gradient norm {norm} on process {accelerator.process_index} with samples "
        f"{', '.join(names)}; the weights are those of step {step}: lower --lr or raise the temperatures, and go on with --resume or anew"
    )


def _in_eval(watch: Callable[[Method, int, dict], dict], method: Method, step: int, trained: dict) -> dict:
    """Health checks must leave no trace: no dropout, no batch statistics, no random numbers taken."""
    method.eval()
    with torch.random.fork_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        row = watch(method, step, trained)
    method.train()
    return row


def _save(accelerator: Accelerator, out: Path, step: int, method: Method, optimizer, options: TrainOptions, pending: list[dict]) -> None:
    if accelerator.is_main_process:
        checkpoint.save(out, step, method, optimizer.optimizer, options.keep_checkpoints, pending)
    accelerator.wait_for_everyone()


class Buffers:
    """Batch statistics and queues, which a forward pass changes: kept before a step, so that a bad one can be undone."""

    def __init__(self, module: nn.Module):
        self.live = list(module.buffers())
        self.kept = [value.clone() for value in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        torch._foreach_copy_(self.kept, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.live, self.kept)


class StopSignal:
    requested = False


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """SIGTERM and SIGINT set a flag, which the loop reads between steps; the old handlers come back at the end."""
    stop = StopSignal()

    def ask(*_):
        stop.requested = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True on all processes if it is on one."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum"))
