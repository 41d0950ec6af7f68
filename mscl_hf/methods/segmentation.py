"""Fine-tuning on labelled images, with the interface of a pre-training method."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import FinetuningLossConfig
from ..losses import HARD_BELOW, class_probabilities, labels_at, pixel_contrast, regional_contrast, sample_pixels
from ..losses.affinity import SIZES
from ..losses.gather import mean_count, world_size
from ..losses.labels import IGNORE_INDEX
from ..models.heads_mscl import PixelHead
from ..models.layer_groups import Frozen, freeze
from ..models.modeling_mscl import MsclForSemanticSegmentation
from .base import Method
from .finetuning_losses import FINETUNING_LOSSES, Predicted, check_options, loss_terms
from .heads import flatten_positions

MOST_POSITIONS = 256  # of an image, that are contrasted
TEMPERATURES = {"all": 0.07, "reco": 0.5}  # of the contrast of pixels


class Decoded(NamedTuple):
    """features (B, C, h, w): the map of the decoder; logits (B, K, h, w); auxiliary: those of the auxiliary head, or None."""

    features: Tensor
    logits: Tensor
    auxiliary: Tensor | None


class Contrasted(NamedTuple):
    """What the contrast of pixels reads: features (B, C, h, w), logits (B, K, h, w), labels (B, H, W) with 255 = ignored."""

    features: Tensor
    logits: Tensor
    labels: Tensor


def decoded(
    network: MsclForSemanticSegmentation, pixels: Tensor, factors: Sequence[Tensor] | None = None, auxiliary: bool = True
) -> Decoded:
    """Return the output of a network in training for normalized images. factors: (B, C_i) for the channels of each tapped map.

    auxiliary: whether the auxiliary head is used, if there is one.
    """
    maps = network.backbone(pixels, return_dict=True).feature_maps
    if factors is not None:
        maps = tuple(feature_map * of_map[:, :, None, None].to(feature_map.dtype) for feature_map, of_map in zip(maps, factors))
    features = network.decoder(list(maps))
    logits = network.classifier(network.dropout(features)).float()
    is_used = auxiliary and network.auxiliary_head is not None
    return Decoded(features, logits, network.auxiliary_head(maps[-2]).float() if is_used else None)


def share_of_labels(labels: Tensor) -> Tensor | float:
    """Return the labelled pixels of this process over their mean over the processes: times a mean over the pixels of a process, averaged
    by DDP, it is the mean over those of all processes."""
    if world_size() == 1:
        return 1.0
    count = (labels != IGNORE_INDEX).sum().float()
    return count / mean_count(count).clamp(min=1e-12)


class PixelContrast(nn.Module):
    """The contrast of pixels beside fine-tuning, with the labelled pixels of the whole batch, of maps (B, C, h, w).

    sampling: "all" is L_p of mscl, each pixel against all others; "reco" is the regional contrast of hard pixels. temperature: None is that
    of the sampling. Of larger maps, MOST_POSITIONS random positions of each image are used, labelled ones first.
    """

    def __init__(self, channels: int, weight: float, sampling: str, temperature: float | None, dim: int = 128):
        super().__init__()
        self.weight, self.sampling, self.temperature = weight, sampling, temperature or TEMPERATURES[sampling]
        with torch.random.fork_rng(devices=[]):  # nothing else that is random depends on the head
            self.head = PixelHead(channels, dim, layers=2, batch_norm=True)

    def forward(self, features: Tensor, probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms for the log, first the loss. probabilities (B, K, h, w): predicted; labels (B, H, W) with 255 = ignored."""
        embeddings, labels = flatten_positions(self.head(features)), labels_at(labels, features.shape[-2:])
        of_label = probabilities.detach().flatten(2).gather(1, labels[:, None].clamp(max=probabilities.shape[1] - 1))[:, 0]
        if labels.shape[1] > MOST_POSITIONS:
            positions, labels = sample_pixels(labels, "random", MOST_POSITIONS)
            embeddings = embeddings.gather(1, positions[:, :, None].expand(-1, -1, embeddings.shape[2]))
            of_label = of_label.gather(1, positions)
        if self.sampling == "reco":
            return {"loss_pixel": regional_contrast(embeddings, labels, of_label < HARD_BELOW, self.temperature)}
        value = pixel_contrast(embeddings, embeddings, labels, scope="batch", temperature=self.temperature, exclude_self=True)
        return {"loss_pixel": value.loss, "floor_pixel": value.floor}


class SegmentationTraining(Method):
    """A loss of the labelled pixels plus the cross-entropy of the auxiliary head; "ce" is the loss of `MsclForSemanticSegmentation`.

    class_weights: of the cross-entropy, also of the auxiliary head; None = all 1. pixel_contrast: weight of a contrast of the labelled
    pixels, 0 = none; contrast_sampling, contrast_temperature: see `PixelContrast`.
    """

    title = "fine-tuning"
    paper = "-"
    views = "finetune"
    reads_masks = "yes"
    trained_parts = "everything"

    def __init__(
        self, network: MsclForSemanticSegmentation, loss: FinetuningLossConfig | None = None, class_weights: Sequence[float] | None = None,
        pixel_contrast: float = 0.0, contrast_sampling: str = "all", contrast_temperature: float | None = None,
    ):  # fmt: skip
        super().__init__(network)
        self.loss_config = loss or FinetuningLossConfig()
        check_options(self.loss_config, class_weights is not None)
        self.row = FINETUNING_LOSSES[self.loss_config.loss]
        # One dimension, since weight decay applies to parameters with more; zeros give equal weights.
        count = 2 * network.config.num_labels * len(SIZES)
        self.size_logits = nn.Parameter(torch.zeros(count)) if self.row.learns_sizes else None
        of_contrast = network.config.decoder_channels, pixel_contrast, contrast_sampling, contrast_temperature
        self.contrast = PixelContrast(*of_contrast) if pixel_contrast else None

        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.frozen, self.frozen_until, self.frozen_for, self.frozen_parts = "none", 1.0, "", Frozen()

    def freeze(self, stages: str, steps: int = 0, total: int = 1) -> None:
        """Freeze the first stages of the backbone, see `models.freeze`; for `steps` of `total` steps, 0 = for all. Raises ValueError."""
        self.frozen, self.frozen_parts = stages, freeze(self.network.backbone, stages)
        self.frozen_until, self.frozen_for = (steps / total, f", for the first {steps:,} of {total:,} steps") if steps else (1.0, "")

    @property
    def is_frozen(self) -> bool:
        """Whether parts are frozen now."""
        return self.fraction_done < self.frozen_until

    def unfreeze(self) -> None:
        if self.frozen_until < 1:
            self._set_trainable(True)

    def before_step(self) -> None:
        if self.frozen_until < 1:
            self._set_trainable(not self.is_frozen)
        self.train()

    def _set_trainable(self, trainable: bool) -> None:
        for name in self.frozen_parts.parameters:
            self.network.backbone.get_parameter(name).requires_grad_(trainable)

    def train(self, mode: bool = True) -> "SegmentationTraining":
        """Set the training mode; frozen parts stay in evaluation mode, with the batch statistics that they have."""
        super().train(mode)
        for name in self.frozen_parts.modules if self.is_frozen else ():
            self.network.backbone.get_submodule(name).eval()
        return self

    def forward(self, image: Tensor, mask: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, S, S) in [0, 255], mask (B, S, S) with 255 = ignored."""
        terms, output = self.supervised(image, mask)
        return terms if self.contrast is None else self.with_contrast(terms, Contrasted(output.features, output.logits, mask))

    def restart_teacher(self) -> None:
        """Reset the teacher, if there is one, to a copy of the network after its classifier was fitted."""

    def finish(self) -> None:
        """Load the weights to publish into the network, after training."""

    def facts(self) -> dict[str, str]:
        """Return what the model card has on the method beside its loss."""
        facts, contrast = {}, self.contrast
        if self.frozen != "none":
            facts["not trained"] = "backbone" if self.frozen == "backbone" else f"the first {self.frozen} groups of layers of the backbone"
            facts["not trained"] += self.frozen_for
        if contrast:
            options = f"weight {contrast.weight:g}, sampling {contrast.sampling}, temperature {contrast.temperature:g}"
            facts["pixel contrast"] = options
        return facts

    def supervised(self, image: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Decoded | None]:
        """Return the loss of labelled images, and the output of the network; without contrast the output may be None."""
        network, pixels, labels = self.network, self.normalize(image), mask.long()
        is_plain = self.loss_config.loss == "ce" and self.class_weights is None
        if is_plain and self.contrast is None:
            return {"loss": network(pixels, labels=labels).loss * share_of_labels(labels)}, None
        output = decoded(network, pixels)
        logits, auxiliary = output.logits, output.auxiliary
        sizes = None if self.size_logits is None else self.size_logits.view(2, -1, len(SIZES))
        terms, logged = loss_terms(self.loss_config, Predicted(logits, labels, self.fraction_done, sizes))
        if self.row.cross_entropy:
            terms["loss_ce"] = 1.0, self.cross_entropy(logits, labels)
        if auxiliary is not None:
            terms["loss_auxiliary"] = network.config.auxiliary_loss_weight, self.cross_entropy(auxiliary, labels)
        total = sum(weight * value for weight, value in terms.values())
        return {"loss": total} | {name: value.detach() for name, (_, value) in terms.items()} | logged, output

    def with_contrast(self, terms: dict[str, Tensor], pixels: Contrasted) -> dict[str, Tensor]:
        """Return the terms with the contrast of pixels added to the loss."""
        logged = self.contrast(pixels.features, class_probabilities(pixels.logits, self.row.sigmoid), pixels.labels)
        loss = terms["loss"] + self.contrast.weight * logged["loss_pixel"]
        return terms | {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, with the weights of the classes if there are any, of logits (B, K, h, w) resized to the labels."""
        value = self.network.cross_entropy(logits, labels, self.class_weights)
        return value * share_of_labels(labels) if self.class_weights is None else value
