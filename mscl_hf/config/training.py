"""Options of the training loop."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

from ..messages import flag
from .fields import Section, option
from .launcher import check_launched, launched_accumulation, launched_precision

DEFAULT_STEPS = 300
PUBLISHED_RATE, PUBLISHED_SCALE = 2e-4, 0.025  # of UniMatch V2 (arXiv:2410.10777): 5e-6 for DINOv2, 40 times that for the head
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Budget, optimizer, precision, checkpoints, logs."""

    RATES = {"sgd": 0.05, "adamw": 5e-4, "lars": 0.05}  # default learning rates

    max_steps: int | None = option(None, "optimizer steps (default: 300)", at_least=1)
    epochs: float | None = option(None, "passes over the training images, instead of --max-steps (default: none)", above=0)
    batch_size: int = option(16, "images per forward pass, over all processes", at_least=1)
    gradient_accumulation_steps: int = option(
        launched_accumulation, "forward passes per optimizer step (default: that of `accelerate launch`, else 1)", at_least=1
    )
    optim: Literal["sgd", "adamw", "lars"] | None = option(
        None, "optimizer: sgd (momentum 0.9), adamw, or lars for batches of 1,000 images (default: sgd; adamw for a backbone without "
        "BatchNorm, such as a ViT)",
    )  # fmt: skip
    learning_rate: float | None = option(
        None, "peak learning rate (default: sgd 0.05; adamw 0.0005, or 0.0002 for a backbone without BatchNorm that has timm's weights)",
        above=0,
    )  # fmt: skip
    weight_decay: float = option(1e-4, "weight decay of all weights with more than one dimension", at_least=0)
    lr_scheduler_type: Literal["cosine", "polynomial"] = option(
        "cosine", "decay of the learning rate to zero; polynomial has the power 0.9"
    )
    warmup_steps: int = option(20, "steps of linear warm-up, at most half of --max-steps", at_least=0)
    max_grad_norm: float = option(5.0, "largest norm of the gradient; 0 = no clipping", at_least=0)
    head_lr_scale: float = option(1.0, "factor on the learning rate of all parameters outside backbone and decoder", at_least=0)
    backbone_lr_scale: float | None = option(
        None, "factor on the learning rate of the backbone (default: 1; adamw: 0.025 for one without BatchNorm that has timm's weights)",
        above=0,
    )  # fmt: skip
    layer_decay: float = option(
        1.0, "factor between the learning rates of a layer of the backbone and the next one; 1 = the same rate for all", above=0, at_most=1
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        launched_precision, "no = fp32; fp16, with loss scaling, is for GPUs without bf16 (default: that of `accelerate launch`, else no)"
    )
    channels_last: bool = option(True, "keep the weights of convolutions in the channels-last memory format")
    torch_compile: bool = option(False, "compile backbone and decoder, which takes minutes at the start and makes steps faster")
    gradient_checkpointing: bool = option(False, "recompute the activations of the backbone to save memory")
    shard: bool = option(False, "divide weights, gradients and optimizer state over the processes (FSDP2), without --channels-last")
    dataloader_num_workers: int = option(2, "data workers per training process, which decode and augment images", at_least=0)
    save_steps: int = option(500, "optimizer steps between checkpoints; 0 = only at the end", at_least=0)
    save_total_limit: int = option(2, "newest checkpoints to keep; at least 2, since one may be damaged", at_least=2)
    logging_steps: int = option(10, "optimizer steps between lines of log.jsonl", at_least=1)
    report_to: list[str] = option([], f"trackers to report to: {', '.join(TRACKERS)} (default: none)")
    seed: int = option(0, "seed of weights, sampling and augmentation", at_least=0, at_most=2**32 - 1)
    resume: bool = option(False, "continue the run in the output folder, or start one if it is empty")

    @property
    def scales_backbone(self) -> bool:
        """Whether a backbone with timm's weights may get a lower rate by default: not where another option decides its rates."""
        return self.layer_decay == 1

    def for_backbone(self, has_batch_norm: bool, has_weights: bool, log: Callable[[str], None]) -> Self:
        """Return the options with optimizer and rates where none are given.

        What is chosen for a backbone without BatchNorm (ViT, Swin, ConvNeXt) is logged. has_weights: whether it started from timm's.
        """
        optim = self.optim or ("sgd" if has_batch_norm else "adamw")
        is_tuned = has_weights and not has_batch_norm and optim == "adamw"
        values = {
            "optim": optim,
            "learning_rate": PUBLISHED_RATE if is_tuned else self.RATES[optim],
            "backbone_lr_scale": PUBLISHED_SCALE if is_tuned and self.scales_backbone else 1.0,
        }
        chosen = {name: value for name, value in values.items() if getattr(self, name) is None}
        if chosen and not has_batch_norm:
            words = ", ".join(f"{flag(name)} {value}" for name, value in chosen.items())
            log(f"chosen for a backbone without BatchNorm, {'with' if has_weights else 'without'} timm's weights: {words}")
        return replace(self, **chosen)

    def with_steps(self, images: int | None, log: Callable[[str], None]) -> Self:
        """Return the options with the steps of --epochs as --max-steps. images: number of training images, None for a stream."""
        if self.epochs is None:
            return self
        if images is None:
            raise ValueError(f"--epochs is {self.epochs:g}, and the number of images in a stream is unknown. Give --max-steps instead.")
        batch = self.batch_size * self.gradient_accumulation_steps
        steps = math.ceil(round(self.epochs * images / batch, 6))
        log(f"{self.epochs:g} epochs of {images} images, {batch} a step: {steps} steps")
        return replace(self, max_steps=steps, epochs=None)

    def with_used_warmup(self, log: Callable[[str], None]) -> Self:
        """Return the options with the steps of warm-up that are used, at most half of --max-steps. A shorter warm-up is logged."""
        steps = min(self.warmup_steps, self.max_steps // 2)
        if steps == self.warmup_steps:
            return self
        log(f"warm-up shortened to {steps} steps, half of --max-steps {self.max_steps}")
        return replace(self, warmup_steps=steps)

    def __post_init__(self):
        check_launched("mixed_precision", self.mixed_precision, launched_precision())
        check_launched("gradient_accumulation_steps", self.gradient_accumulation_steps, launched_accumulation())
        super().__post_init__()
        if self.epochs is None:
            object.__setattr__(self, "max_steps", self.max_steps or DEFAULT_STEPS)
        elif self.max_steps is not None:
            raise ValueError(f"--epochs is {self.epochs:g} and --max-steps is {self.max_steps}; expected one of them. Leave out the other.")
        if self.shard and self.torch_compile:
            raise ValueError("--shard and --torch-compile are both given; expected one of them. Leave out the other.")
        if self.shard and self.mixed_precision == "fp16":
            raise ValueError("--mixed-precision is fp16 with --shard; expected bf16 or no. Give one of them, or leave out --shard.")
        for tracker in self.report_to:
            if tracker not in TRACKERS:
                raise ValueError(f"--report-to is {tracker!r}; expected one of {', '.join(TRACKERS)}.")
            if importlib.util.find_spec(tracker) is None:
                raise ValueError(f"--report-to is {tracker}, which is not installed; run `pip install {tracker}`.")


@dataclass(frozen=True)
class FinetuneTrainingConfig(TrainingConfig):
    """Options of the training loop with the defaults of fine-tuning."""

    RATES = {"sgd": 0.1, "adamw": 1e-3, "lars": 0.1}

    learning_rate: float | None = option(
        None, "peak learning rate (default: sgd 0.1; adamw 0.001, or 0.0002 for a backbone without BatchNorm that has timm's weights)",
        above=0,
    )  # fmt: skip
    eval_steps: int = option(
        0, "steps between evaluations on the held-out split, of which the best step is published; 0 = none, the last step is published",
        at_least=0,
    )  # fmt: skip
    publish_step: Literal["best", "last"] = option(
        "best", "with --eval-steps: publish the weights of the best step, or those of the last one, which no evaluation chose"
    )
    early_stopping: int = option(0, "evaluations without a higher mean IoU after which training stops; 0 = never", at_least=0)
    freeze: str = option(
        "none", "part of the backbone that is not trained: none, backbone, or a number of its first stages, of a ViT blocks, stem included"
    )
    freeze_steps: int = option(0, "train the layers of --freeze from this step on; 0 = never", at_least=0)
    lora_rank: int = option(
        0, "rank of matrices that are trained beside the frozen linear layers of a ViT, and merged at the end; 0 = none", at_least=0
    )
    lr_scheduler_type: Literal["cosine", "polynomial"] = option(
        "polynomial", "decay of the learning rate to zero; polynomial has the power 0.9"
    )

    @property
    def scales_backbone(self) -> bool:
        return super().scales_backbone and not self.lora_rank

    def __post_init__(self):
        super().__post_init__()
        if self.freeze not in ("none", "backbone") and not self.freeze.isdecimal():
            raise ValueError(f"--freeze is {self.freeze!r}; expected none, backbone, or a number of stages such as 3. Give one of them.")
        if self.freeze_steps and self.freeze == "none":
            raise ValueError(f"--freeze-steps is {self.freeze_steps} without --freeze. Give --freeze backbone as well, or leave it out.")
        if self.freeze_steps and self.freeze_steps >= (self.max_steps or math.inf):
            expected = f"expected fewer than the {self.max_steps} steps of the run"
            raise ValueError(f"--freeze-steps is {self.freeze_steps}; {expected}. Lower it, or leave it out to freeze for the whole run.")
        if self.freeze_steps and self.shard:
            raise ValueError(f"--freeze-steps is {self.freeze_steps} with --shard; expected one of them. Leave out the other.")
        if self.lora_rank and self.freeze != "none":
            raise ValueError(f"--freeze is {self.freeze} with --lora-rank, which freezes the whole backbone. Leave out one of them.")
        if self.lora_rank and self.shard:
            raise ValueError(f"--lora-rank is {self.lora_rank} with --shard; expected one of them. Leave out the other.")
        if self.publish_step == "last" and not self.eval_steps:
            raise ValueError("--publish-step is last without --eval-steps, where the last step is always published. Leave it out.")
        if self.early_stopping and not self.eval_steps:
            raise ValueError(f"--early-stopping is {self.early_stopping} without --eval-steps. Give --eval-steps as well.")
        if self.eval_steps and self.shard:
            raise ValueError(f"--eval-steps is {self.eval_steps} with --shard; expected one of them. Leave out the other.")
