"""Finds out, by asking timm, which options build a network at half its width: what two towers are made of."""

import contextlib
from collections.abc import Iterator

import timm
import torch
from torch import nn

# What timm's constructors raise for an option they do not know, or a width that they cannot be built with.
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, IndexError, KeyError, AttributeError)


def half_width(name: str, kwargs: dict) -> dict:
    """Options for `timm.create_model`, on top of kwargs, that halve the channels of every feature level.

    A stem before the first stage keeps its width where timm has no option for it (plain ResNets: 64). Raises ValueError for a
    family without such options.
    """
    whole = _built(name, kwargs)
    ways = list(_ways(whole))
    for first in (0, 1):  # all levels; if that cannot be had, all but the stem
        for options in ways:
            with contextlib.suppress(*REFUSALS):
                towers = [_built(name, kwargs | options, in_chans) for in_chans in (1, 2)]
                if _is_half(towers, whole, first) and _runs(towers[0], kwargs.get("img_size")):
                    return options
    raise ValueError(
        f"backbone {name!r} has no option in timm {timm.__version__} that halves its width, which two towers need; choose a family "
        "that has one, such as a ResNet, ConvNeXt, ViT or Swin"
    )


def _ways(whole: nn.Module) -> Iterator[dict]:
    """Options under which timm's families take their widths; wrong guesses are sorted out by building them."""
    levels = [level["num_chs"] // 2 for level in whole.feature_info]
    stages = [width // _expansion(whole, level.get("module")) for width, level in zip(levels, whole.feature_info)][1:]
    yield {"channels": stages}  # ResNets: the plain stem, the deep stem, ResNetV2
    yield {"channels": stages, "stem_width": levels[0] // 2}
    yield {"channels": stages, "stem_chs": levels[0]}
    yield {"dims": levels}  # ConvNeXt, MambaOut, InceptionNeXt
    widths = {"embed_dims": levels}, {"embed_dim": levels[0]}  # PVT, DaViT, CoaT; ViTs, Swin
    yield from widths
    heads = {module.num_heads for module in whole.modules() if isinstance(getattr(module, "num_heads", None), int)}
    if len(heads) == 1:  # as many heads as before do not divide the width
        yield from ({**width, "num_heads": max(heads) // 2} for width in widths)


def _expansion(whole: nn.Module, stage: str | None) -> int:
    """How many times wider a ResNet block's output is than the width that its option names."""
    with contextlib.suppress(*REFUSALS):
        return int(whole.get_submodule(stage)[-1].expansion)
    return 1


def _built(name: str, kwargs: dict, in_chans: int = 3) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **kwargs)


def _runs(tower: nn.Module, side: int | None) -> bool:
    """Whether images pass through: some families notice only then that their heads do not divide the width."""
    size = [side] * 2 if isinstance(side, int) else side or tower.default_cfg.get("input_size", (3, 224, 224))[1:]
    with torch.no_grad():
        tower.eval().forward_intermediates(torch.empty(1, 1, *size, device="meta"), intermediates_only=True)
    return True


def _is_half(towers: list[nn.Module], whole: nn.Module, first: int) -> bool:
    """Whether the towers' maps from level `first` on have the whole's channels when put together, with fewer weights than it has."""
    wanted = [level["num_chs"] for level in whole.feature_info][first:]
    for tower in towers:
        found = [2 * level["num_chs"] for level in tower.feature_info][first:]
        if not wanted or found != wanted:
            return False
    count = [sum(p.numel() for p in model.parameters()) for model in (*towers, whole)]
    return count[0] + count[1] < count[2]
