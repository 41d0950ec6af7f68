"""Fine-tuning: the supervised stage, in the same shape as a pre-training method."""

from torch import Tensor

from .base import Method


class SegmentationTraining(Method):
    """Cross-entropy on labelled pixels, plus the auxiliary head's: what `MsclForSemanticSegmentation` computes as its loss."""

    title = "cross-entropy"
    paper = "-"
    year = None
    views = "finetune"
    labels = "yes"
    transfers = "everything"
    state = "-"

    def forward(self, image: Tensor, mask: Tensor, **rest) -> dict[str, Tensor]:
        """image (B, 3, S, S) uint8, mask (B, S, S) with 255 = ignored."""
        return {"loss": self.network(self.normalise(image), labels=mask.long()).loss}
