"""The learning rate at each step."""

import math

from ..config import TrainingConfig


def lr_at(step: int, options: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then to zero by half a cosine (Loshchilov & Hutter, 2017) or (1 - x)^0.9."""
    warmup = min(options.warmup_steps, options.max_steps // 2)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    done = (step - warmup) / (options.max_steps - warmup)
    return options.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if options.lr_scheduler_type == "cosine" else (1 - done) ** 0.9)
