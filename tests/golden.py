"""Inputs of the losses: those of the golden values, which any program can compute, and random ones."""

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


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random vectors of unit length along the last axis."""
    return u(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def labels_of(*shape: int, classes: int = 3, ignored: float = 0.2, seed: int = 0) -> Tensor:
    """Return random labels, a share of which is 255."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)
