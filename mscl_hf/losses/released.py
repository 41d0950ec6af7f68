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
from .pixel_contrast import PixelContrast, against_negatives, anchor_weights
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
    counts = pixels.new_zeros(len(labels), 256).scatter_add_(1, labels, torch.ones_like(labels, dtype=pixels.dtype))
    positives = counts.gather(1, labels)
    weight = anchor_weights(labels, positives, exclude_classes, anchor_weight, shared=False)
    image_of = labels.new_zeros(labels.shape[1]) if image_of is None else image_of

    def same(rows: slice) -> Tensor:
        return labels[:, rows, None] == labels[:, None, :]

    def other(rows: slice) -> Tensor:
        return ~same(rows) & (image_of[rows, None] == image_of)

    term = with_autograd(against_negatives(same, other, positives))
    return streamed_sum(term, pixels, pixels, temperature, weight, torch.where(labels == IGNORE_INDEX, MASKED_SCORE, 0.0))


def released_pixel_contrast(
    a: Tensor, b: Tensor, labels: Tensor, b_labels: Tensor | None = None, *, scope: str = "within",
    temperature: float = 0.07, anchor_weight: str = "pixel", exclude_classes: tuple[int, ...] = (), partner: Tensor | None = None, **fixed,
) -> PixelContrast:  # fmt: skip
    """The released loss of images a (B, N, E) and copies b (B, M, E), with the arguments of `pixel_contrast`.

    scope: "within" = the loss of the image plus that of its copy; "cross" = the loss of the image and the copy of its
    partner as one list.
    fixed: options that it does not have; `ReleasedPixelLoss` checks them.
    """
    b_labels = labels if b_labels is None else b_labels
    options = {"temperature": temperature, "anchor_weight": anchor_weight, "exclude_classes": exclude_classes}
    if scope == "within":
        loss = listed_pixel_contrast(a, labels, **options) + listed_pixel_contrast(b, b_labels, **options)
    else:
        image_of = (torch.arange(a.shape[1] + b.shape[1], device=a.device) >= a.shape[1]).long()
        lists, list_labels = torch.cat([a, b[partner]], 1), torch.cat([labels, b_labels[partner]], 1)
        loss = listed_pixel_contrast(lists, list_labels, image_of, **options)
    return PixelContrast(loss, torch.zeros_like(loss.detach()))  # only other classes are in the denominator: no floor above zero


@dataclass(frozen=True)
class ReleasedPixelLoss(MultiScaleLoss):
    """`MultiScaleLoss` with the released pixel loss."""

    pixel_loss = staticmethod(released_pixel_contrast)
    draw_partners = staticmethod(torch.randperm)  # an image may be its own partner, as in the release

    def __post_init__(self):
        super().__post_init__()
        if self.pixel_scope not in ("within", "cross"):
            raise ValueError(f"--pixel-scope is {self.pixel_scope}; expected within or cross with --variant released.")
        for option, value in (("pixel-reduction", "out"), ("symmetric", False)):
            current = getattr(self, option.replace("-", "_"))
            if current != value:
                raise ValueError(f"--{option} is {current}; expected {value} with --variant released. Leave it out.")
