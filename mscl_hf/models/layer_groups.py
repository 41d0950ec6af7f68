"""The groups of layers that timm lists for a backbone: to freeze the first of them, and to lower their learning rates."""

from collections.abc import Sequence
from typing import NamedTuple

from timm.models import group_parameters
from torch import nn

from .modeling_mscl import MsclBackbone


class Frozen(NamedTuple):
    """Frozen parameters, and the modules that hold no others and are to be kept in evaluation mode, by their names in the backbone."""

    parameters: Sequence[str] = ()
    modules: Sequence[str] = ()


def freeze(backbone: MsclBackbone, stages: str) -> Frozen:
    """Freeze the parameters of `stages`: they keep their weights, and no gradient is computed for them.

    stages: "none", "backbone" for all, or a number of the groups of layers that timm lists from the input on, the stem first: stages of
    a CNN, blocks of a ViT. Raises ValueError for a number that the backbone does not have.
    """
    if stages == "none":
        return Frozen()
    model = backbone.timm_model
    if stages == "backbone":
        names = [name for name, _ in model.named_parameters()]
    else:
        groups = layer_groups(backbone, coarse=True)
        if not 1 <= int(stages) <= len(groups):
            expected = f"expected none, backbone, or a number from 1 to {len(groups)}" if groups else "expected none or backbone"
            raise ValueError(f"--freeze is {stages}; {expected}, the groups of layers of {backbone.config.backbone}. Give one of them.")
        names = [name for group in groups[: int(stages)] for name in group]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    modules = [name for name, module in backbone.named_modules() if _is_frozen(module)]
    return Frozen([f"timm_model.{name}" for name in names], modules)


def layer_groups(backbone: MsclBackbone, coarse: bool) -> list[list[str]]:
    """Return the names of the parameters of timm's model by groups of layers, in the order of the forward pass; [] for two towers.

    coarse: stages of a CNN instead of blocks; the groups of a ViT are its blocks in both cases. The stem is the first group.
    """
    model = backbone.timm_model
    if not hasattr(model, "group_matcher"):
        return []
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    return [groups[key] for key in sorted(groups)]


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
