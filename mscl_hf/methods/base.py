"""The interface between the training loop and a method: a loss per batch, and an update after each optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config import ContrastConfig
from ..models.heads_mscl import unit
from ..models.normalization import image_statistics, normalize


class Method(nn.Module, ABC):
    """A way to train a network. Everything that needs a gradient happens inside `forward`, where DDP and autocast apply.

    network: the model that is saved; heads, an EMA teacher, a queue or a memory bank are submodules beside it. The keyword arguments of a
    constructor are the method's options, with the paper's values as defaults; `create_method` scales some of them to the data set.
    The class attributes are the method's row in `--list-methods`, and what the recipe needs before it has a network.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int | None] = None
    views: ClassVar[str] = "two_crop"  # a name of `transforms.views.VIEWS`
    reads_masks: ClassVar[str] = "no"  # whether pre-training does: "yes", "no", or a condition to show; `uses_labels` decides
    trained_parts: ClassVar[str] = "backbone"  # of the network, as shown
    state: ClassVar[str] = "-"  # what it keeps beside the weights from step to step, as shown
    geometry: ClassVar[str] = "shared"  # of pairs: one crop for both views, or "crops", one each
    preset: ClassVar[str | None] = None  # crops and colors of the views, a name of PRESETS
    heads: ClassVar[tuple[str, ...]] = ()  # the network's own contrastive heads that it trains
    pixel_layers: ClassVar[int] = 3  # of the network's pixel head
    bn_views: ClassVar[str | None] = None  # whether two views share batch statistics: "joint" or "separate"; None: not applicable
    head_statistics: ClassVar[bool] = False  # whether its heads have BatchNorm over images, which needs two images
    two_towers: ClassVar[bool] = False
    trains_decoder: ClassVar[bool] = False  # whether its heads are always behind the decoder
    trains: ClassVar[bool] = True  # whether there is any training; False: the network is saved with its initial weights
    min_positions: ClassVar[int] = 1  # least side of the feature map that it contrasts
    min_batch: int = 1  # least number of images per forward pass over all processes
    first_stage: ClassVar["type[Method] | None"] = None  # a method that trains the network first, for half of the steps
    constant_lr: tuple[str, ...] = ()  # prefixes of parameter names whose learning rate is constant
    hidden_modules: Sequence[nn.Module] = ()  # networks that are neither saved nor trained
    local_options: ClassVar[tuple[str, ...]] = ()  # options that name files, which are not published

    def __init__(self, network: PreTrainedModel):
        super().__init__()
        self.network = network
        self.fraction_done = 0.0  # the fraction of training before the current step, set by the training loop
        for name, values in zip(("image_mean", "image_std"), image_statistics(network.config)):
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def uses_unlabelled(cls, contrast: ContrastConfig) -> bool:
        """Return whether the method trains on images without masks."""
        return True

    @classmethod
    def uses_labels(cls, contrast: ContrastConfig) -> bool:
        """Return whether pre-training with these options reads masks; if not, no mask is opened."""
        return cls.reads_masks == "yes"

    @classmethod
    def check_given(cls, options: dict[str, Any]) -> None:
        """Raise ValueError where the options that are set lack what the method needs, before images or a network are opened."""

    def facts(self) -> dict[str, str]:
        """Return further rows for the model card, by their titles."""
        return {}

    def check_data(self, data: Any) -> None:
        """Raise ValueError where `data` (a TrainingData) lacks what the method needs."""

    @abstractmethod
    def forward(self, **batch) -> dict[str, Tensor]:
        """Return {"loss": scalar with graph} and detached values to log, for the views of a batch by name.

        Views are keyword arguments, so that transformers' Trainer can train a method like a model, with `MethodCallback`.
        """

    def unfreeze(self) -> None:
        """Make parameters trainable that are frozen for a part of training, before the loop searches for those without a gradient."""

    def before_step(self) -> None:
        """Set the training mode before an optimizer step; `fraction_done` is that of the step."""
        self.train()

    def after_step(self, fraction_done: float) -> None:
        """Update the method, such as its EMA teacher, after an optimizer step; fraction_done: of training, in (0, 1]."""

    def embeddings(self, image: Tensor) -> dict[str, Tensor]:
        """Return vectors (B, ..., D) by space, for health checks, of images (B, 3, H, W) with values in [0, 255]."""
        return {"backbone": self.network.backbone(self.normalize(image)).feature_maps[-1].flatten(2).transpose(1, 2)}

    def normalize(self, image: Tensor) -> Tensor:
        """Return images (B, 3, H, W), uint8 or float32 in [0, 255], with the mean and deviation that the backbone expects."""
        return normalize(image, self.image_mean, self.image_std)

    def features(self, image: Tensor) -> Tensor:
        """Return the feature map (B, C, h, w) after `parts` of images (B, 3, H, W) with values in [0, 255]."""
        return feature_map(self.parts(), self.normalize(image))

    def embed(self, image: Tensor) -> Tensor:
        """Return vectors of unit length by the method's own `head`, (B, E), or (B, E, h, w) of a head on maps."""
        return unit(self.head(self.features(image)))

    def channels(self) -> int:
        """Return the channels of the feature map of `parts`."""
        return self.network.config.decoder_channels if "decoder" in self.parts() else self.network.backbone.channels[-1]

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules before the heads, which are trained: the backbone, and the decoder with `--attach decoder` or where the
        method always trains it."""
        behind_decoder = self.trains_decoder or self.network.config.attach == "decoder"
        return {"backbone": self.network.backbone} | ({"decoder": self.network.decoder} if behind_decoder else {})

    def encode_views(self, encode: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return encode(view) of two views (B, ...), with joint or separate batch statistics (`--bn-views`)."""
        if self.network.config.bn_views == "joint":
            return encode(torch.cat([first, second])).chunk(2)
        return encode(first), encode(second)


def feature_map(parts: dict[str, nn.Module], image: Tensor) -> Tensor:
    """Return the feature map (B, C, h, w) of normalized images after `Method.parts`, or after a copy of them."""
    maps = parts["backbone"](image).feature_maps
    return parts["decoder"](list(maps)) if "decoder" in parts else maps[-1]
