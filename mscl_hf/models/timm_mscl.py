"""Building of timm models from a configuration that may be untrusted, and timm's description of their stages.

Self-contained (torch, timm and sibling files *_mscl), so that a checkpoint can carry this file as remote code.
"""

import contextlib
import re
import threading

import timm
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .configuration_mscl import MsclConfig
from .towers_mscl import TwoTowers

MOST_MODULES = 8000  # of a backbone; the deepest of timm has a third of them


def build_timm_model(config: MsclConfig) -> nn.Module:
    """Return the backbone with random weights. Raises ValueError where it has more than MOST_MODULES modules."""
    with _limit_modules(config):
        if config.two_towers:
            return TwoTowers(config.backbone, **config.backbone_kwargs)
        return timm.create_model(
            config.backbone, pretrained=False, num_classes=0, in_chans=config.num_channels, **config.backbone_kwargs
        )


def check_architecture(config: MsclConfig) -> None:
    """Raise ValueError for a configuration that would make timm open files or download models."""
    reserved = ("checkpoint_path", "cache_dir", "num_classes", "in_chans")
    wrong = [key for key in config.backbone_kwargs if key in reserved or key.startswith("pretrained")]
    if wrong or not re.fullmatch(r"[A-Za-z0-9_.]+", config.backbone or ""):
        field = f"backbone_kwargs {', '.join(wrong)}" if wrong else f"backbone {config.backbone!r}"
        raise ValueError(f"the configuration has {field}. Give a plain timm name and options of its architecture.")


@contextlib.contextmanager
def _limit_modules(config: MsclConfig):
    """Stop the construction of a backbone of excessive depth: families name their depth differently, but each block is a module."""
    thread, count = threading.get_ident(), 0

    def count_module(*_) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MOST_MODULES:
            raise ValueError(
                f"the configuration describes more than {MOST_MODULES:,} modules of {config.backbone}. Give less depth in backbone_kwargs, "
                "or a config.json as it was saved."
            )

    hook = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        hook.remove()


def shared_weights(module: nn.Module, prefix: str) -> dict[str, str]:
    """Return the names of weights that a module holds twice (CoaT does), with the name under which each is saved."""
    first: dict[int, str] = {}
    names = [(id(p), prefix + name) for name, p in module.named_parameters(remove_duplicate=False)]
    return {name: first[key] for key, name in names if first.setdefault(key, name) != name}


def feature_levels(timm_model: nn.Module) -> list[dict]:
    """Return timm's description of a model's stages: num_chs, reduction and module of each."""
    info = timm_model.feature_info
    return list(info.info if hasattr(info, "info") else info)


def stage_names(levels: list[dict]) -> list[str]:
    """Return timm's module names, numbered where a family (CrossViT) uses one twice."""
    names = [level["module"] for level in levels]
    return [name if names.count(name) == 1 else f"{name}.{index}" for index, name in enumerate(names)]
