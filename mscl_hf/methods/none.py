"""No pre-training here: the controls of every comparison."""

from torch import Tensor

from .base import Method


class NoPreTraining(Method):
    """The network as it was initialised, saved by the same code as a pre-trained one."""

    title = "random initialisation"
    paper = "-"
    year = None
    views = "pair"
    labels = "no"
    transfers = "initial weights"
    state = "-"
    trains = False

    def forward(self, **batch) -> dict[str, Tensor]:
        raise RuntimeError("this method has no loss: it is saved after zero steps")


class ImageNet(NoPreTraining):
    """The backbone as timm has it pre-trained: from the Hub, or from the file that --backbone-weights names."""

    title = "timm's pre-trained weights"
    paper = "Wightman, pytorch-image-models"
    year = 2019
    transfers = "backbone"
