"""Zhao et al.: contrast of labelled pixels within an image, across two, or over the batch; the origin of L_p of the 2025 paper."""

from dataclasses import asdict
from typing import ClassVar

from ..config import ContrastConfig
from ..losses import MultiScaleLoss, ReleasedPixelLoss
from ..messages import flag
from ..models.modeling_mscl import MsclForPreTraining
from .mscl import MSCL

VARIANTS = {"published": MultiScaleLoss, "released": ReleasedPixelLoss}


class _Zhao(MSCL):
    """MSCL with the pixel loss only, in a fixed scope; its options are the pixel options of `MultiScaleLoss`.

    With scope "within", pixels of different images are never compared: fine-tune the whole network afterwards, as in the paper.
    """

    paper = "Zhao et al., ICCV, arXiv:2012.06985"
    year = 2021
    reads_masks = "yes"
    state = "-"
    heads = ("pixel",)
    geometry = "shared"
    pixel_layers = 3
    scope: ClassVar[str]

    @classmethod
    def uses_unlabelled(cls, contrast: ContrastConfig) -> bool:
        return False

    @classmethod
    def uses_labels(cls, contrast: ContrastConfig) -> bool:
        return True

    @classmethod
    def loss_of(cls, contrast: ContrastConfig) -> MultiScaleLoss:
        fixed, default = {"losses": "pixel", "pixel_scope": cls.scope}, MultiScaleLoss()
        for option, value in fixed.items():
            current = getattr(contrast, option)
            if current not in (getattr(default, option), value):
                advice = f"{value} with --method zhao_{cls.scope}. Leave it out, or use --method mscl."
                raise ValueError(f"{flag(option)} is {current}; expected {advice}")
        return MultiScaleLoss(**asdict(contrast) | fixed)

    def __init__(self, network: MsclForPreTraining, loss: MultiScaleLoss | None = None, variant: str = "published"):
        """loss: the options of the pixel loss. variant: "published" (`losses.pixel_contrast`) or "released" (`losses.released`)."""
        variants = tuple(VARIANTS) if self.scope != "batch" else ("published",)
        if variant not in variants:
            raise ValueError(f"--variant is {variant}; expected {' or '.join(variants)} with --method zhao_{self.scope}.")
        super().__init__(network, VARIANTS[variant](**asdict(self.loss_of(loss or MultiScaleLoss()))))


class ZhaoWithin(_Zhao):
    """Positives of a pixel are the pixels of its class in the enhanced copy of its image."""

    title = "Zhao et al., within an image"
    scope = "within"


class ZhaoCross(_Zhao):
    """Positives are also the pixels of its class in the copy of another image, of which no negatives are used."""

    title = "Zhao et al., across two images"
    scope = "cross"


class ZhaoBatch(_Zhao):
    """The keys are the pixels of all copies of the batch; Zhao et al. report it as worse than the other two."""

    title = "Zhao et al., over the batch"
    scope = "batch"
