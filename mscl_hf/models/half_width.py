"""Find the options of a timm model that halve its width, for two towers."""

import contextlib
from collections.abc import Iterator

import timm
import torch
from torch import nn

# Errors of timm's constructors for unknown options and impossible widths.
BUILD_ERRORS = (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, IndexError, KeyError, AttributeError)


def half_width(name: str, kwargs: dict) -> dict:
    """Return options for `timm.create_model`, to be added to kwargs, that halve the channels of every feature level.

    A stem keeps its width where timm has no option for it (plain ResNets: 64). Raises ValueError for a family without such options.
    """
    whole = build_on_meta(name, kwargs)
    candidates = list(_candidates(whole))
    for first in (0, 1):  # all levels, or all but the stem
        for options in candidates:
            with contextlib.suppress(*BUILD_ERRORS):
                towers = [build_on_meta(name, kwargs | options, in_chans) for in_chans in (1, 2)]
                if _is_half(towers, whole, first) and _runs(towers[0], kwargs.get("img_size")):
                    return options
    raise ValueError(
        f"--backbone is {name!r}, which has no option in timm {timm.__version__} that halves its width for --two-towers. Choose a family "
        "that has one, such as a ResNet, ConvNeXt, ViT or Swin."
    )


def _candidates(whole: nn.Module) -> Iterator[dict]:
    """Yield the options by which timm's families set their widths; those that do not apply fail to build."""
    levels = [level["num_chs"] // 2 for level in whole.feature_info]
    stages = [width // _expansion(whole, level.get("module")) for width, level in zip(levels, whole.feature_info)][1:]
    yield {"channels": stages}  # ResNets: the plain stem, the deep stem, ResNetV2
    yield {"channels": stages, "stem_width": levels[0] // 2}
    yield {"channels": stages, "stem_chs": levels[0]}
    yield {"dims": levels}  # ConvNeXt, MambaOut, InceptionNeXt
    widths = {"embed_dims": levels}, {"embed_dim": levels[0]}  # PVT, DaViT, CoaT; ViTs, Swin
    yield from widths
    heads = {module.num_heads for module in whole.modules() if isinstance(getattr(module, "num_heads", None), int)}
    if len(heads) == 1:  # where the number of heads does not divide half the width
        yield from ({**width, "num_heads": max(heads) // 2} for width in widths)


def _expansion(whole: nn.Module, stage: str | None) -> int:
    """Return the ratio of a ResNet block's output channels to the width in its option."""
    with contextlib.suppress(*BUILD_ERRORS):
        return int(whole.get_submodule(stage)[-1].expansion)
    return 1


def build_on_meta(name: str, kwargs: dict, in_chans: int = 3) -> nn.Module:
    """Build a model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **kwargs)


def _runs(tower: nn.Module, side: int | None) -> bool:
    """Run a forward pass: some families fail only then where the number of heads does not divide the width."""
    size = [side] * 2 if isinstance(side, int) else side or tower.default_cfg.get("input_size", (3, 224, 224))[1:]
    with torch.no_grad():
        tower.eval().forward_intermediates(torch.empty(1, 1, *size, device="meta"), intermediates_only=True)
    return True


def _is_half(towers: list[nn.Module], whole: nn.Module, first: int) -> bool:
    """Whether two towers have, from level `first` on, the channels of the whole network together, and fewer weights than it."""
    channels = [level["num_chs"] for level in whole.feature_info][first:]
    if not channels or any([2 * level["num_chs"] for level in tower.feature_info][first:] != channels for tower in towers):
        return False
    counts = [sum(p.numel() for p in model.parameters()) for model in (*towers, whole)]
    return counts[0] + counts[1] < counts[2]
