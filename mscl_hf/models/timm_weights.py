"""timm's pre-trained weights, from a local safetensors file or from the Hub: for the backbone, and for the teacher of a distillation."""

import textwrap
from pathlib import Path

import timm
import torch
from huggingface_hub.constants import is_offline_mode
from safetensors import SafetensorError
from torch import Tensor

from ..config.network import NetworkConfig
from .backbones import build_config
from .configuration_mscl import MsclConfig
from .loading import pinned
from .modeling_mscl import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation


def load_timm_weights(
    model: MsclForPreTraining | MsclForSemanticSegmentation, pretrained: bool = True, file: str | None = None
) -> None:
    """Load timm's pre-trained weights into the backbone, see `timm_weights`; without `pretrained` and file, do nothing."""
    if file is not None or pretrained:
        model.backbone.timm_model.load_state_dict(timm_weights(model.config, file))


def open_teacher(name: str, file: str | None, image_size: int, num_channels: int = 3) -> MsclBackbone:
    """Return a frozen backbone with timm's weights that returns several maps. image_size: side of the training crop in px.

    file: of its weights; None = from the Hub. Raises ValueError as `build_config` and `timm_weights`.
    """
    config = build_config(name, image_size=image_size, num_channels=num_channels)
    backbone = MsclBackbone(config)
    backbone.timm_model.load_state_dict(timm_weights(config, file, "teacher"))
    return backbone.requires_grad_(False).eval()


def timm_weights(config: MsclConfig, file: str | None = None, role: str = "backbone") -> dict[str, Tensor]:
    """Return timm's pre-trained weights of config.backbone, from a local safetensors file, or without one from the Hub.

    From the Hub, timm reads safetensors where a repository has them, else a pickle with weights_only=True. timm adapts position embeddings
    and the input channels of the stem. role: "backbone" or "teacher", for messages. Raises ValueError where there are no weights, or where
    they do not fit the backbone.
    """
    name, option = config.backbone, f"--{role}-weights"
    if config.two_towers:
        raise ValueError(f"timm has no weights for two towers of {name}. Leave out --pretrained and {option}, or --two-towers.")
    if file is not None and not str(file).endswith(".safetensors"):
        raise ValueError(f"{option} is {file}; expected a .safetensors file. Convert it as in docs/backbones.md.")
    if file is not None and not Path(file).is_file():
        raise ValueError(f"{option} is {file}, which does not exist; expected a .safetensors file. Correct the path.")
    try:
        overlay = None if file is None else {"state_dict": _without_classifier(name, file), "num_classes": 0}
        channels = config.num_channels
        source = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, in_chans=channels, **config.backbone_kwargs
        )
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        problem = f"timm's pre-trained {name} cannot be downloaded" if file is None else f"{file} holds no weights that fit timm's {name}"
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        if file is None and is_offline_mode():
            reason = "HF_HUB_OFFLINE is set, and the cache does not hold them"
        starts_anyway = file is None and role == "backbone"
        remedy = ", or leave out --pretrained to start from random weights" if starts_anyway else ""
        raise ValueError(f"{problem} ({reason}). Give {option} a .safetensors file saved from that model{remedy}.") from error
    return source.state_dict()


def _without_classifier(name: str, file: str) -> dict[str, Tensor]:
    """Return the weights in a file without those of the classifier: with num_classes=0, timm then checks that no other is missing."""
    with torch.device("meta"):
        heads = timm.create_model(name, num_classes=0).default_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    weights = timm.models.load_state_dict(str(file))
    return {key: value for key, value in weights.items() if not key.startswith(heads)}


def weights_name(network: NetworkConfig, pretrained: bool = False) -> str | None:
    """Return the source of a backbone's initial weights: a file, a Hub name with its commit, or None for random weights."""
    if network.backbone_weights or not (network.pretrained or pretrained):
        return network.backbone_weights
    return hub_weights(network.backbone)


def hub_weights(name: str) -> str:
    """Return the Hub name of timm's weights with the commit that is in the cache."""
    return pinned(timm.get_pretrained_cfg(name).hf_hub_id)
