"""Fine-tuning on labelled images, with the interface of a pre-training method."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FinetuningLossConfig
from ..losses.affinity import SIZES
from ..losses.weighted import weighted_cross_entropy
from ..models.modeling_mscl import MsclForSemanticSegmentation
from .base import Method
from .finetuning_losses import FINETUNING_LOSSES, Predicted, check_options, loss_terms


class SegmentationTraining(Method):
    """A loss of the labelled pixels plus the cross-entropy of the auxiliary head; "ce" is the loss of `MsclForSemanticSegmentation`.

    class_weights: of the cross-entropy, also of the auxiliary head; None = all 1.
    """

    title = "fine-tuning"
    paper = "-"
    views = "finetune"
    reads_masks = "yes"
    trained_parts = "everything"

    def __init__(
        self, network: MsclForSemanticSegmentation, loss: FinetuningLossConfig | None = None, class_weights: Sequence[float] | None = None
    ):
        super().__init__(network)
        self.loss_config = loss or FinetuningLossConfig()
        check_options(self.loss_config, class_weights is not None)
        self.row = FINETUNING_LOSSES[self.loss_config.loss]
        # One dimension, since weight decay applies to parameters with more; zeros give equal weights.
        count = 2 * network.config.num_labels * len(SIZES)
        self.size_logits = nn.Parameter(torch.zeros(count)) if self.row.learns_sizes else None

        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, image: Tensor, mask: Tensor, **_) -> dict[str, Tensor]:
        """image (B, 3, S, S) in [0, 255], mask (B, S, S) with 255 = ignored."""
        network, pixels, labels = self.network, self.normalize(image), mask.long()
        if self.loss_config.loss == "ce" and self.class_weights is None:
            return {"loss": network(pixels, labels=labels).loss}
        logits, auxiliary = network.both_logits(pixels)
        full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        sizes = None if self.size_logits is None else self.size_logits.view(2, -1, len(SIZES))
        terms, logged = loss_terms(self.loss_config, Predicted(logits, full, labels, self.fraction_done, sizes))
        if self.row.cross_entropy:
            terms["loss_ce"] = 1.0, self.cross_entropy(full, labels)
        if auxiliary is not None:
            terms["loss_auxiliary"] = network.config.auxiliary_loss_weight, self.cross_entropy(auxiliary, labels)
        total = sum(weight * value for weight, value in terms.values())
        return {"loss": total} | {name: value.detach() for name, (_, value) in terms.items()} | logged

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, with the weights of the classes if there are any, of logits (B, K, h, w) resized to the labels."""
        if self.class_weights is None:
            return self.network.cross_entropy(logits, labels)
        full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return weighted_cross_entropy(full, labels, self.class_weights)
