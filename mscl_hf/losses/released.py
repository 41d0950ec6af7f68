"""Pixel contrast as Zhao et al. (ICCV 2021, arXiv:2012.06985) released it, which differs from what they printed: anchors, positives and
negatives come from one list of pixels, and a pixel is a positive of itself.

Letters: B lists, M pixels in a list, N of an image, E embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import IGNORE
from .multi_scale import MultiScaleLoss
from .pixel_contrast import against_negatives, anchor_weights
from .precision import full_precision, raised
from .streamed import NOTHING, differentiated, streamed_sum


@full_precision
def listed_pixel_contrast(
    pixels: Tensor,
    labels: Tensor,
    image_of: Tensor | None = None,
    *,
    temperature: float = 0.07,
    anchor_weight: str = "pixel",
    exclude_classes: tuple[int, ...] = (),
) -> Tensor:
    """mean over lists of mean_p mean_q log( 1 + sum_k exp(s_pk - s_pq) ), s = <z_p, z_k>/t: q the pixels of p's class, p among them.

    pixels (B, M, E), taken as they are; labels (B, M), 255 = ignored. k: pixels of other classes, only those of p's own image where
    image_of (M,) says which image of its list a pixel is of. A list without labelled pixels does not count.
    """
    labels, pixels = labels.long(), raised(pixels)
    counts = pixels.new_zeros(len(labels), 256).scatter_add_(1, labels, torch.ones_like(labels, dtype=pixels.dtype))
    positives = counts.gather(1, labels)
    weight = anchor_weights(labels, positives, exclude_classes, anchor_weight, shared=False)
    image_of = labels.new_zeros(labels.shape[1]) if image_of is None else image_of

    def same(rows: slice) -> Tensor:
        return labels[:, rows, None] == labels[:, None, :]

    def other(rows: slice) -> Tensor:
        return ~same(rows) & (image_of[rows, None] == image_of)

    term = differentiated(against_negatives(same, other, positives))
    return streamed_sum(term, pixels, pixels, temperature, weight, torch.where(labels == IGNORE, NOTHING, 0.0))


@dataclass(frozen=True)
class ReleasedPixelLoss(MultiScaleLoss):
    """`MultiScaleLoss` with the released pixel loss: within = that of the image plus that of its copy; cross = that of the image and
    another one's copy as one list."""

    def __post_init__(self):
        super().__post_init__()
        if self.pixel_scope == "batch":
            raise ValueError("the pixel loss over a whole batch was never released; take variant published")
        for name, fixed in (("pixel_reduction", "out"), ("symmetric", False)):
            if getattr(self, name) != fixed:
                given = f"{name}={getattr(self, name)}"
                raise ValueError(f"{given} is no option of the released pixel loss; leave it out, or take variant published")

    def _pixel_terms(self, a: Tensor, b: Tensor, labels: Tensor, enhanced_labels: Tensor | None) -> dict[str, Tensor]:
        enhanced_labels = labels if enhanced_labels is None else enhanced_labels
        options = {"temperature": self.pixel_temperature, "anchor_weight": self.anchor_weight, "exclude_classes": tuple(self.exclude_classes)}
        if self.pixel_scope == "within":
            loss = listed_pixel_contrast(a, labels, **options) + listed_pixel_contrast(b, enhanced_labels, **options)
        else:
            partner = torch.randperm(len(b), device=b.device)  # an image may be its own, as in the release
            image_of = (torch.arange(a.shape[1] + b.shape[1], device=a.device) >= a.shape[1]).long()
            lists, list_labels = torch.cat([a, b[partner]], 1), torch.cat([labels, enhanced_labels[partner]], 1)
            loss = listed_pixel_contrast(lists, list_labels, image_of, **options)
        # Only other classes stand in the denominator, so that nothing keeps the loss from zero.
        return {"loss_pixel": loss, "floor_pixel": torch.zeros_like(loss.detach()), "excess_pixel": loss.detach()}
