"""Checks of the arguments of losses."""

from torch import Tensor


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}; expected one of {', '.join(choices)}.")


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless logits are (B, K, H, W) and labels (B, H, W)."""
    if logits.dim() != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (B, K, H, W) and (B, H, W).")
