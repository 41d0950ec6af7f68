"""Arguments of losses: their precision, since logits reach 14 at a temperature of 0.07, where bfloat16 has steps of 0.06; and checks."""

import functools

import torch
from torch import Tensor


def without_autocast(loss):
    """Decorate a loss so that autocast does not lower its products, and float16 arguments become float32.

    Embeddings in bfloat16 are multiplied in bfloat16, see `streamed_sum`; the heads of mscl_hf's networks return float32.
    """

    def widened(x):
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x

    @functools.wraps(loss)
    def inner(*args, **options):
        device = next(x.device for x in (*args, *options.values()) if isinstance(x, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widened, args), **{name: widened(x) for name, x in options.items()})

    return inner


def at_least_float32(x: Tensor) -> Tensor:
    """Return bfloat16 and float16 as float32, and any other type as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}; expected one of {', '.join(choices)}.")


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless logits are (B, K, H, W) and labels (B, H, W)."""
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (B, K, H, W) and (B, H, W).")
