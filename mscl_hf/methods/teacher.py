"""EMA teacher: an exponential moving average of an encoder (MoCo, He et al., CVPR 2020; Mean Teacher before it)."""

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Method, feature_map


class EMATeacher(nn.Module):
    """A copy of a student's parts by name: those of `Method.parts`, and its heads. It has no gradient and its own batch statistics.

    Only parameters are averaged, not BatchNorm's running statistics. The update follows the optimizer step; MoCo's release updates before
    it computes the keys, which from equal weights is the same sequence of teachers.
    """

    def __init__(self, student: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(copy.deepcopy(student)).requires_grad_(False)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Return the feature map (B, C, h, w) of normalized images."""
        return feature_map(self.parts, image)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the output of the part "head" for normalized images."""
        return self.parts["head"](self.features(image))

    @torch.no_grad()
    def update(self, student: dict[str, nn.Module], momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student"""
        averages, parameters = list(self.parts.parameters()), list(nn.ModuleDict(student).parameters())
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, parameters, alpha=1 - momentum)


class EMANetwork(EMATeacher):
    """A copy of a segmentation network, always in evaluation mode, whose batch statistics are averaged like its parameters."""

    def __init__(self, network: nn.Module):
        super().__init__({"network": network})
        self.train()

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self.parts["network"]

    def train(self, mode: bool = True) -> "EMANetwork":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, h, w) of normalized images."""
        return self.network(image, return_dict=True).logits

    @torch.no_grad()
    def update(self, student: dict[str, nn.Module], momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, also for statistics; counts are copied.

        Equal values stay as they are, bit for bit, so that frozen layers of the teacher do not change.
        """
        network = nn.ModuleDict(student)
        pairs = [*zip(self.parts.parameters(), network.parameters()), *zip(self.parts.buffers(), network.buffers())]
        averages, values = zip(*[pair for pair in pairs if pair[0].is_floating_point()])
        torch._foreach_lerp_(averages, values, 1 - momentum)
        for count, value in (pair for pair in pairs if not pair[0].is_floating_point()):
            count.copy_(value)


def rising_momentum(limit: float, steps_done: int) -> float:
    """Return min(1 - 1/n, limit) after n steps: the mean of the first weights, then their average over 1 / (1 - limit) steps."""
    return min(1 - 1 / max(1, steps_done), limit)


def cosine_momentum(start: float, fraction_done: float) -> float:
    """Return the momentum from `start` to 1 along half a cosine, at this fraction of training (BYOL, Grill et al., NeurIPS 2020)."""
    return 1 - (1 - start) * (math.cos(math.pi * fraction_done) + 1) / 2


class EMATeacherMethod(Method):
    """A method with an EMA `teacher` of its `student()`, updated after every optimizer step with momentum `ema_momentum`."""

    state = "EMA encoder"
    momentum_rises: ClassVar[bool] = False  # from ema_momentum to 1 at the end of training
    head: nn.Module
    teacher: EMATeacher
    ema_momentum: float

    def student(self) -> dict[str, nn.Module]:
        """Return the modules that the teacher averages."""
        return {**self.parts(), "head": self.head}

    def after_step(self, fraction_done: float) -> None:
        momentum = cosine_momentum(self.ema_momentum, fraction_done) if self.momentum_rises else self.ema_momentum
        self.teacher.update(self.student(), momentum)
