"""An encoder that follows another one as its exponential moving average (MoCo, He et al., CVPR 2020; Mean Teacher before it)."""

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Method, feature_map


class Teacher(nn.Module):
    """A copy of a student's parts by name: those of `Method.parts`, and its heads. No gradient, batch statistics of its own.

    Only parameters are averaged (BatchNorm's running statistics are each network's own). It moves after the optimizer step; MoCo's
    release moves it before the keys are made, which from equal weights is the same sequence of teachers.
    """

    def __init__(self, student: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(copy.deepcopy(student)).requires_grad_(False)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """The map (B, C, h, w) of normalised images."""
        return feature_map(self.parts, image)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """What the part "head" makes of that map."""
        return self.parts["head"](self.features(image))

    @torch.no_grad()
    def follow(self, student: dict[str, nn.Module], momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student"""
        own, other = list(self.parts.parameters()), list(nn.ModuleDict(student).parameters())
        torch._foreach_mul_(own, momentum)
        torch._foreach_add_(own, other, alpha=1 - momentum)


def cosine_momentum(start: float, done: float) -> float:
    """From start to 1 along half a cosine (BYOL, Grill et al., NeurIPS 2020)."""
    return 1 - (1 - start) * (math.cos(math.pi * done) + 1) / 2


class TaughtMethod(Method):
    """A method with a `teacher` of its `student()`, which follows after every optimizer step by `ema_momentum`."""

    momentum_rises: ClassVar[bool] = False  # to 1 at the end of training, from ema_momentum
    head: nn.Module
    teacher: Teacher
    ema_momentum: float

    def student(self) -> dict[str, nn.Module]:
        """What the teacher follows."""
        return {**self.parts(), "head": self.head}

    def after_step(self, done: float) -> None:
        self.teacher.follow(self.student(), cosine_momentum(self.ema_momentum, done) if self.momentum_rises else self.ema_momentum)
