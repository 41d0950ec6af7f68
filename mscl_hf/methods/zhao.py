"""Contrast of labelled pixels within an image, across two, or over the batch: what L_p of the 2025 paper comes from."""

from dataclasses import asdict
from typing import ClassVar

from ..config import ContrastConfig
from ..losses import MultiScaleLoss, ReleasedPixelLoss
from ..messages import flag
from ..models.modeling_mscl import MsclForPreTraining
from .mscl import MSCL

VARIANTS = {"published": MultiScaleLoss, "released": ReleasedPixelLoss}


class _Zhao(MSCL):
    """The network's pixel head and `MultiScaleLoss` with its pixel options (temperature: pixel_temperature); only `losses` and the scope are fixed.

    Within images, pixels of different images are never compared: the paper fine-tunes the whole network afterwards, and so must you.
    """

    paper = "Zhao et al., ICCV, arXiv:2012.06985"
    year = 2021
    labels = "yes"
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

    def __init__(self, network: MsclForPreTraining, loss: MultiScaleLoss | None = None, variant: str = "published"):
        """loss: with the options of the pixel loss. variant: "published" or "released", see `losses.pixel_contrast`, `losses.released`."""
        name, default, loss = f"--method zhao_{self.scope}", MultiScaleLoss(), loss or MultiScaleLoss()
        variants = tuple(VARIANTS) if self.scope != "batch" else ("published",)
        if variant not in variants:
            raise ValueError(f"--variant is {variant!r}; expected {' or '.join(variants)} for {name}.")
        fixed = {"losses": "pixel", "pixel_scope": self.scope}
        for option, value in fixed.items():
            if getattr(loss, option) not in (getattr(default, option), value):
                raise ValueError(f"{flag(option)} is {getattr(loss, option)}; expected {value} for {name}. Leave it out, or use --method mscl.")
        super().__init__(network, VARIANTS[variant](**asdict(loss) | fixed))


class ZhaoWithin(_Zhao):
    """A pixel must find the pixels of its class in the enhanced copy of its own image."""

    title = "Zhao et al., within an image"
    scope = "within"


class ZhaoCross(_Zhao):
    """And those of another image's copy, of which nothing else is read."""

    title = "Zhao et al., across two images"
    scope = "cross"


class ZhaoBatch(_Zhao):
    """All copies of the batch are one bag; Zhao et al. report it as worse than the other two."""

    title = "Zhao et al., over the batch"
    scope = "batch"
