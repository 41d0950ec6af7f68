"""No pre-training: the control of every comparison."""

from torch import Tensor

from .base import Method


class NoPreTraining(Method):
    """The network as it was initialised, saved by the same code as a pre-trained one."""

    title = "no pre-training"
    paper = "-"
    year = None
    views = "pair"
    labels = "no"
    transfers = "initial weights"
    state = "-"
    trains = False

    def forward(self, **batch) -> dict[str, Tensor]:
        raise RuntimeError("method none has no loss: it is saved after zero steps")
