"""Controls without pre-training: random weights, and timm's weights."""

from torch import Tensor

from .base import Method


class NoPreTraining(Method):
    """The network with its initial weights, saved like a pre-trained one."""

    title = "random initialization"
    paper = "-"
    views = "pair"
    trained_parts = "initial weights"
    trains = False

    def forward(self, **batch) -> dict[str, Tensor]:
        raise RuntimeError("a method that does not train has no loss")


class ImageNet(NoPreTraining):
    """The backbone with timm's pre-trained weights, from the Hub or from the file --backbone-weights."""

    title = "timm's pre-trained weights"
    paper = "Wightman, pytorch-image-models"
    year = 2019
    trained_parts = "backbone"
