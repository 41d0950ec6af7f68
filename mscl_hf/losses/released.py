"""Pixel contrast as Zhao et al. (ICCV 2021, arXiv:2012.06985) released it, which differs from the printed loss.

Anchors, positives and negatives come from one list of pixels, and a pixel is a positive of itself.
Letters: B lists, M pixels in a list, N pixels of an image, E embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .labels import IGNORE_INDEX
from .multi_scale import MultiScaleLoss
from .pixel_contrast import PixelLossValue, against_negatives, anchor_weights
from .streamed import MASKED_SCORE, streamed_sum, with_autograd


@without_autocast
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

    pixels (B, M, E), of any length; labels (B, M), 255 = ignored. k: pixels of other classes, with image_of (M,), the image in its list
    of each pixel, only those of p's own image. A list without labelled pixels does not count.
    """
    labels, pixels = labels.long(), at_least_float32(pixels)
    class_sizes = pixels.new_zeros(len(labels), 256).scatter_add_(1, labels, torch.ones_like(labels, dtype=pixels.dtype))
    num_positives = class_sizes.gather(1, labels)
    weight = anchor_weights(labels, num_positives, exclude_classes, anchor_weight, one_set=False)
    image_of = labels.new_zeros(labels.shape[1]) if image_of is None else image_of

    def same(rows: slice) -> Tensor:
        return labels[:, rows, None] == labels[:, None, :]

    def other(rows: slice) -> Tensor:
        return ~same(rows) & (image_of[rows, None] == image_of)

    term = with_autograd(against_negatives(same, other, num_positives))
    return streamed_sum(term, pixels, pixels, temperature, weight, torch.where(labels == IGNORE_INDEX, MASKED_SCORE, 0.0))


def released_pixel_contrast(
    image: Tensor, enhanced: Tensor, labels: Tensor, enhanced_labels: Tensor | None = None, *, scope: str, temperature: float = 0.07,
    anchor_weight: str = "pixel", exclude_classes: tuple[int, ...] = (), partner: Tensor | None = None,
) -> PixelLossValue:  # fmt: skip
    """The released loss of image (B, N, E) and enhanced (B, M, E), with the options of `pixel_contrast` that it has.

    scope: "within" = the loss of the image plus that of the enhanced image; "cross" = the loss of the image and its partner's enhanced
    image as one list.
    """
    enhanced_labels = labels if enhanced_labels is None else enhanced_labels
    options = {"temperature": temperature, "anchor_weight": anchor_weight, "exclude_classes": exclude_classes}
    if scope == "within":
        loss = listed_pixel_contrast(image, labels, **options) + listed_pixel_contrast(enhanced, enhanced_labels, **options)
    else:
        image_of = (torch.arange(image.shape[1] + enhanced.shape[1], device=image.device) >= image.shape[1]).long()
        lists, list_labels = torch.cat([image, enhanced[partner]], 1), torch.cat([labels, enhanced_labels[partner]], 1)
        loss = listed_pixel_contrast(lists, list_labels, image_of, **options)
    return PixelLossValue(loss, torch.zeros_like(loss.detach()))  # only other classes are in the denominator: no floor above zero


@dataclass(frozen=True)
class ReleasedPixelLoss(MultiScaleLoss):
    """`MultiScaleLoss` with the released pixel loss, whose denominator is always "neg"."""

    def __post_init__(self):
        object.__setattr__(self, "pixel_denominator", "neg")
        super().__post_init__()
        if self.pixel_scope not in ("within", "cross"):
            raise ValueError(f"--pixel-scope is {self.pixel_scope}; expected within or cross with --variant released.")
        for option, value in (("pixel-reduction", "out"), ("symmetric", False)):
            current = getattr(self, option.replace("-", "_"))
            if current != value:
                raise ValueError(f"--{option} is {current}; expected {value} with --variant released. Leave it out.")

    def draw_partners(self, count: int, device: torch.device) -> Tensor:
        """Return a random permutation (count,); an image may be its own partner, as in the release."""
        return torch.randperm(count, device=device)

    def pixel_loss(self, image: Tensor, enhanced: Tensor, labels: Tensor, enhanced_labels: Tensor | None, partner: Tensor | None):
        return released_pixel_contrast(
            image, enhanced, labels, enhanced_labels, scope=self.pixel_scope, temperature=self.pixel_temperature,
            anchor_weight=self.anchor_weight, exclude_classes=tuple(self.exclude_classes), partner=partner,
        )  # fmt: skip
