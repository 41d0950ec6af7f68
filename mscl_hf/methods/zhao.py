"""Contrast of labelled pixels within an image, across two, or over the batch: what L_p of the 2025 paper comes from."""

from typing import ClassVar

from ..losses import MultiScaleLoss, ReleasedPixelLoss
from ..models.modeling_mscl import MsclForPreTraining
from .mscl import MSCL

VARIANTS = {"published": MultiScaleLoss, "released": ReleasedPixelLoss}


class _Zhao(MSCL):
    """The network's pixel head and `MultiScaleLoss` with its pixel options (temperature: tau_p); only `losses` and the scope are fixed.

    Within images, pixels of different images are never compared: the paper fine-tunes the whole network afterwards, and so must you.
    """

    paper = "Zhao et al., ICCV, arXiv:2012.06985"
    year = 2021
    labels = "yes"
    state = "-"
    heads = ("p",)
    geometry = "shared"
    pixel_layers = 3
    scope: ClassVar[str]

    @classmethod
    def uses_unlabelled(cls, options: dict) -> bool:
        return False

    @classmethod
    def uses_labels(cls, options: dict) -> bool:
        return True

    def __init__(self, network: MsclForPreTraining, variant: str = "published"):
        """variant: "published" or "released", two different losses, see `losses.pixel_contrast` and `losses.released`."""
        name = f"--method zhao_{self.scope}"
        variants = tuple(VARIANTS) if self.scope != "batch" else ("published",)
        if variant not in variants:
            raise ValueError(f"--variant is {variant!r}; {name} has {' and '.join(variants)}: take one of them, or leave it out")
        fixed, given, defaults = {"losses": "p", "pixel_scope": self.scope}, network.config.contrast, vars(MultiScaleLoss())
        for option, value in fixed.items():
            if given.get(option, value) not in (defaults[option], value):
                flag = f"--{option.replace('_', '-')}"
                raise ValueError(f"{flag} is {given[option]}, and {name} stands for {flag} {value}; leave it out, or take --method mscl")
        super().__init__(network, VARIANTS[variant].from_options({**given, **fixed}))


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
