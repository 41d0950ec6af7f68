"""What the training loop knows of a method: a loss per batch, and a nudge after each optimizer step."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Method(nn.Module, ABC):
    """A way to train a network. Everything that needs a gradient happens inside `forward`, where DDP and autocast see it.

    network: the model that is saved and handed on; a teacher, a queue or a bank belongs beside it, as a submodule or buffer.
    The class attributes are the method's row in `--list-methods`.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int | None]
    views: ClassVar[str]  # the kind of views a batch holds
    labels: ClassVar[str]  # does pre-training read masks? "yes", "no", or when
    transfers: ClassVar[str]
    state: ClassVar[str]
    trains: ClassVar[bool] = True  # False: the network is saved as it starts
    min_batch: int = 1  # images per forward pass over all processes, below which there is nothing to contrast

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network
        config = network.config
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def uses_labels(cls, options: dict) -> bool:
        """Whether pre-training with these options reads masks; where it does not, none is opened."""
        return cls.labels == "yes"

    @abstractmethod
    def forward(self, **batch) -> dict[str, Tensor]:
        """The views of a batch by name -> {"loss": scalar with graph, and whatever else is worth logging, detached}.

        Named so that transformers' Trainer can train a method as it trains any model.
        """

    def after_step(self, done: float) -> None:
        """Called after each optimizer step with the share of training done, in (0, 1]: the place to move an EMA encoder."""

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float with the mean and deviation that the backbone expects."""
        return (image.float() / 255 - self.image_mean) / self.image_std
