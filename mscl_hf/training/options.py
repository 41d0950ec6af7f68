"""The options of a training run, and the learning rate that follows from them at each step."""

import importlib.util
import math
from dataclasses import dataclass, field

from .launcher import check_accumulation, check_precision, launched_accumulation, launched_precision


@dataclass(frozen=True)
class TrainOptions:
    """Budget, optimizer, precision, checkpoints, logs."""

    max_steps: int = field(default=300, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=16, metadata={"help": "images per forward pass, over all processes"})
    gradient_accumulation_steps: int = field(
        default_factory=launched_accumulation, metadata={"help": "forward passes per optimizer step; default: the launcher's, else 1"}
    )
    optimizer: str = field(default="sgd", metadata={"help": "sgd (momentum 0.9), adamw, or lars, for batches of a thousand images"})
    lr: float = field(default=0.05, metadata={"help": "peak learning rate"})
    weight_decay: float = field(default=1e-4, metadata={"help": "on all weights with more than one dimension"})
    schedule: str = field(default="cosine", metadata={"help": "cosine or poly (power 0.9), to zero"})
    warmup_steps: int = field(default=20, metadata={"help": "linear warm-up"})
    clip_norm: float = field(default=5.0, metadata={"help": "largest gradient norm; 0 = no clipping"})
    head_lr_scale: float = field(default=1.0, metadata={"help": "factor on the learning rate of everything but backbone and decoder"})
    precision: str = field(
        default_factory=launched_precision, metadata={"help": "fp32 or bf16; default: the launcher's --mixed_precision, else fp32"}
    )
    channels_last: bool = field(default=True, metadata={"help": "memory format of the convolutions"})
    compile: bool = field(default=False, metadata={"help": "torch.compile backbone and decoder: minutes first, then faster steps"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute the backbone's activations"})
    shard: bool = field(
        default=False,
        metadata={"help": "divide weights, gradients and optimizer state over the processes (FSDP2); weights are not channels-last then"},
    )
    num_workers: int = field(default=2, metadata={"help": "processes that decode and augment, per training process"})
    save_every_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints; 0 = only at the end"})
    keep_checkpoints: int = field(default=2, metadata={"help": "how many checkpoints to keep, at least 2: one may be damaged"})
    log_every_steps: int = field(default=10, metadata={"help": "optimizer steps between lines of log.jsonl"})
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackers: tensorboard, trackio, wandb"})
    seed: int = field(default=0, metadata={"help": "drives weights, order and augmentation"})
    resume: bool = field(default=False, metadata={"help": "continue what the output folder holds, or start"})

    def __post_init__(self):
        check_precision(self.precision)
        check_accumulation(self.gradient_accumulation_steps)
        for name, known in (
            ("optimizer", ("sgd", "adamw", "lars")),
            ("schedule", ("cosine", "poly")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_steps", "save_every_steps", "num_workers", "weight_decay", "clip_norm", "head_lr_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")
        if self.shard and self.compile:
            raise ValueError("--shard gathers weights in the middle of what --compile would compile; leave out one of them")
        if self.keep_checkpoints < 2:
            raise ValueError(f"--keep-checkpoints is {self.keep_checkpoints}; give at least 2, since one may turn out to be damaged")
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


def lr_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter, 2017) or a polynomial of power 0.9, to zero."""
    warmup = min(options.warmup_steps, options.max_steps // 2)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    done = (step - warmup) / (options.max_steps - warmup)
    return options.lr * (0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else (1 - done) ** 0.9)
