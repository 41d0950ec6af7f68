"""The multi-scale loss L = w_g L_g + w_l L_l + w_p L_p (Eq. 1 of the paper).

The options come from `mscl_hf.config.contrast`, which imports no torch; every other loss imports torch only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.contrast import ContrastConfig
from .info_nce import global_contrast, local_contrast
from .pixel_contrast import PixelLossValue, pixel_contrast, random_partners


@dataclass(frozen=True)
class MultiScaleLoss(ContrastConfig):
    """The weighted sum of the global, the local and the pixel loss, a function of embeddings; the fields are its options."""

    @property
    def min_batch(self) -> int:
        """Images per batch, over all processes, below which a term has no negatives."""
        others = self.local_scope == "others" and "local" in self.terms or self.pixel_scope == "cross" and "pixel" in self.terms
        return 2 if others or "global" in self.terms else 1

    def __call__(
        self,
        image: dict[str, Tensor],
        enhanced: dict[str, Tensor],
        labels: Tensor | None,
        enhanced_labels: Tensor | None = None,
        past: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss, and detached each of its terms: loss_global, loss_local, loss_pixel, floor_pixel, excess_pixel.

        image, enhanced: embeddings of both views by head: global (B, E), local (B, S*S, E), pixel (B', N, E).
        labels (B', N): labels of the image's pixels; enhanced_labels: those of the enhanced image (default: the same).
        past (n, E): global embeddings of earlier batches, further negatives.
        """
        if self.loss_precision == "bf16":
            image, enhanced = ({head: x.bfloat16() for head, x in view.items()} for view in (image, enhanced))
        values: dict[str, Tensor] = {}
        if "global" in self.terms:
            values["loss_global"] = global_contrast(
                image["global"], enhanced["global"], self.global_temperature, self.negatives, self.denominator, self.symmetric, past
            )
        if "local" in self.terms:
            values["loss_local"] = local_contrast(
                image["local"], enhanced["local"], self.local_temperature, self.local_scope, self.denominator, self.symmetric
            )
        if "pixel" in self.terms:
            if labels is None:
                raise ValueError(f"--losses is {self.losses} and the batch has no masks. Give masks, or leave out the pixel loss.")
            partner = self.draw_partners(len(labels), labels.device) if self.pixel_scope == "cross" else None
            loss, floor = self.pixel_loss(image["pixel"], enhanced["pixel"], labels, enhanced_labels, partner)
            values |= {"loss_pixel": loss, "floor_pixel": floor, "excess_pixel": loss - floor}
        total = sum(getattr(self, f"{term}_weight") * values[f"loss_{term}"] for term in self.terms)
        return {"loss": total, **{name: value.detach() for name, value in values.items()}}

    def draw_partners(self, count: int, device: torch.device) -> Tensor:
        """Return for each of `count` images the index of another one."""
        return random_partners(count, device)

    def pixel_loss(
        self, image: Tensor, enhanced: Tensor, labels: Tensor, enhanced_labels: Tensor | None, partner: Tensor | None
    ) -> PixelLossValue:
        """Return L_p of image, enhanced (B', N, E) with these labels (B', N); partner (B',): from `draw_partners` with scope "cross"."""
        return pixel_contrast(
            image, enhanced, labels, enhanced_labels, scope=self.pixel_scope or "batch", temperature=self.pixel_temperature,
            denominator=self.pixel_denominator, reduction=self.pixel_reduction, anchor_weight=self.anchor_weight,
            exclude_classes=tuple(self.exclude_classes), symmetric=self.symmetric, partner=partner,
        )  # fmt: skip
