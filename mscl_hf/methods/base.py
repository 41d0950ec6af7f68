"""What the training loop knows of a method: a loss per batch, and a nudge after each optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config import ContrastConfig


class Method(nn.Module, ABC):
    """A way to train a network. Everything that needs a gradient happens inside `forward`, where DDP and autocast see it.

    network: the model that is saved and handed on; heads, a teacher, a queue or a bank belong beside it, as submodules or buffers.
    A constructor's keyword arguments are the method's options, with the paper's values as defaults; those whose good value depends on the
    size of the data or the length of the run are filled in by `sizing`.
    The class attributes are the method's row in `--list-methods`, and what the recipe must know before there is a network.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int | None]
    views: ClassVar[str]  # the kind of views a batch holds
    labels: ClassVar[str]  # does pre-training read masks? "yes", "no", or when
    transfers: ClassVar[str]
    state: ClassVar[str]
    geometry: ClassVar[str] = "shared"  # of pairs: one crop for both views, or "crops", one each
    preset: ClassVar[str | None] = None  # crops and colours of the views, a row of PRESETS
    heads: ClassVar[tuple[str, ...]] = ()  # those of the network's own contrastive heads that it trains
    pixel_layers: ClassVar[int] = 3  # of the network's pixel head
    bn_views: ClassVar[str | None] = None  # do the two views share batch statistics, "joint", or not, "separate"? None: they never meet
    head_statistics: ClassVar[bool] = False  # has it heads with BatchNorm over images, which needs two of them?
    two_towers: ClassVar[bool] = False
    trains: ClassVar[bool] = True  # False: the network is saved as it starts
    min_cells: ClassVar[int] = 1  # on a side of the map that it contrasts
    min_batch: int = 1  # images per forward pass over all processes, below which there is nothing to contrast
    first_stage: ClassVar["type[Method] | None"] = None  # a method that trains the network before, for half of the steps
    constant_lr: tuple[str, ...] = ()  # names of parameters, by their start, whose learning rate does not follow the schedule

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network
        self.progress = 0.0  # the share of training done before the present step, which the loop keeps up
        config = network.config
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def uses_unlabelled(cls, contrast: ContrastConfig) -> bool:
        """Whether images without masks take part."""
        return True

    @classmethod
    def uses_labels(cls, contrast: ContrastConfig) -> bool:
        """Whether pre-training with these options reads masks; where it does not, none is opened."""
        return cls.labels == "yes"

    def check_data(self, data: Any) -> None:
        """Raise ValueError where the method needs to know more of the images than `data` (a TrainingData) tells."""

    @abstractmethod
    def forward(self, **batch) -> dict[str, Tensor]:
        """The views of a batch by name -> {"loss": scalar with graph, and whatever else is worth logging, detached}.

        Named so that transformers' Trainer can train a method as it trains any model, with `MethodCallback` beside it.
        """

    def after_step(self, done: float) -> None:
        """Called after each optimizer step with the share of training done, in (0, 1]: the place to move an EMA encoder."""

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        """What a health check measures: vectors (B, ..., D) by space, of images (B, 3, H, W) in levels of 0 to 255."""
        return {"backbone": self.network.backbone(self.normalise(image)).feature_maps[-1].flatten(2).transpose(1, 2)}

    def normalise(self, image: Tensor) -> Tensor:
        """Levels of 0 to 255 (B, 3, H, W), uint8 or float32 -> float with the mean and deviation that the backbone expects."""
        return (image.float() / 255 - self.image_mean) / self.image_std

    def channels(self) -> int:
        """Of the map that `parts` give."""
        return self.network.config.decoder_channels if "decoder" in self.parts() else self.network.backbone.channels[-1]

    def parts(self) -> dict[str, nn.Module]:
        """Modules of the network that a head stands on: the backbone; with `--attach decoder` also the decoder, which it then trains."""
        behind_decoder = self.network.config.attach == "decoder"
        return {"backbone": self.network.backbone} | ({"decoder": self.network.decoder} if behind_decoder else {})

    def both(self, encode: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """encode(view) of two views (B, ...), with batch statistics that they share, or of its own for each (`--bn-views`)."""
        if self.network.config.bn_views == "joint":
            return encode(torch.cat([first, second])).chunk(2)
        return encode(first), encode(second)


def feature_map(parts: dict[str, nn.Module], image: Tensor) -> Tensor:
    """The map (B, C, h, w) of normalised images behind `Method.parts`, or behind a copy of them."""
    maps = parts["backbone"](image).feature_maps
    return parts["decoder"](list(maps)) if "decoder" in parts else maps[-1]
