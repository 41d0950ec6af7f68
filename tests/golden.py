"""Inputs of the golden values, which any program can compute."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def fill(shape: tuple[int, ...], a: float = 0.37, b: float = 0.11) -> Tensor:
    """Return sin(a k + b k^2 / n + 0.5) for k = 0 .. n - 1, float64, in row-major order."""
    count = math.prod(shape)
    k = torch.arange(count, dtype=torch.float64)
    return torch.sin(a * k + b * k * k / count + 0.5).view(shape)


def u(x: Tensor) -> Tensor:
    """Return vectors of unit length along the last axis."""
    return F.normalize(x, dim=-1)
