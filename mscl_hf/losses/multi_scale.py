"""L = w_g L_g + w_l L_l + w_p L_p (Eq. 1 of the paper): the three scales together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.contrast import ContrastConfig
from .info_nce import global_contrast, local_contrast
from .pixel_contrast import pixel_contrast


@dataclass(frozen=True)
class MultiScaleLoss(ContrastConfig):
    """The paper's loss as a function of embeddings; its fields are its options."""

    @property
    def min_batch(self) -> int:
        """Images per batch, over all processes, below which a term has no negatives."""
        others = self.local_scope == "others" and "local" in self.heads or self.pixel_scope == "cross" and "pixel" in self.heads
        return 2 if others or "global" in self.heads else 1

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
        labels: (B', N) of the image's pixels; enhanced_labels: of the copy's, None where they are the same.
        past: (n, E), global embeddings of earlier batches.
        """
        if self.loss_precision == "bf16":
            image, enhanced = ({head: x.bfloat16() for head, x in view.items()} for view in (image, enhanced))
        terms: dict[str, Tensor] = {}
        if "global" in self.heads:
            terms["loss_global"] = global_contrast(
                image["global"], enhanced["global"], self.global_temperature, self.negatives, self.denominator, self.symmetric, past
            )
        if "local" in self.heads:
            terms["loss_local"] = local_contrast(
                image["local"], enhanced["local"], self.local_temperature, self.local_scope, self.denominator, self.symmetric
            )
        if "pixel" in self.heads:
            if labels is None:
                raise ValueError("the pixel loss needs labels: give masks, or choose --losses global, local or global+local")
            terms |= self._pixel_terms(image["pixel"], enhanced["pixel"], labels, enhanced_labels)
        total = sum(getattr(self, f"{head}_weight") * terms[f"loss_{head}"] for head in self.heads)
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def _pixel_terms(self, a: Tensor, b: Tensor, labels: Tensor, enhanced_labels: Tensor | None) -> dict[str, Tensor]:
        options = {
            "temperature": self.pixel_temperature,
            "scope": self.pixel_scope or "batch",
            "denominator": self.pixel_denominator,
            "reduce": self.pixel_reduction,
            "anchor_weight": self.anchor_weight,
            "exclude_classes": tuple(self.exclude_classes),
        }
        if self.pixel_scope == "cross":
            if len(a) == 1:
                raise ValueError("the pixel loss with scope cross needs 2 labelled images per process, got 1: raise --batch-size")
            options["partner"] = _partners(len(a), a.device)
        enhanced_labels = labels if enhanced_labels is None else enhanced_labels
        result = pixel_contrast(a, b, labels, enhanced_labels, **options)
        loss, floor = result
        if self.symmetric:
            back = pixel_contrast(b, a, enhanced_labels, labels, **options)
            loss, floor = (loss + back.loss) / 2, (floor + back.floor) / 2
        return {"loss_pixel": loss, "floor_pixel": floor, "excess_pixel": (loss - floor).detach()}


def _partners(count: int, device: torch.device) -> Tensor:
    """A random permutation (count,) in one cycle, so that no image is its own partner."""
    order = torch.randperm(count, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))
