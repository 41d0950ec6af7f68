"""Read from timm what a backbone supports, and build the configuration of a network around it."""

import contextlib
import math
from dataclasses import asdict, fields
from typing import get_type_hints

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config.fields import choices_of
from ..config.network import DEFAULT_SIZE, NetworkConfig
from ..messages import near_names
from .configuration_mscl import HEADS, MsclConfig
from .decoders_mscl import DECODERS
from .half_width import build_on_meta, half_width
from .modeling_mscl import MsclBackbone
from .timm_mscl import feature_levels, stage_names

ATTACHMENTS = choices_of(get_type_hints(NetworkConfig)["attach"])


def check_timm_name(name: str, option: str = "--backbone") -> None:
    """Raise ValueError, with near names, unless timm has a model of this name. option: that gave it."""
    if not timm.is_model(name):
        near = near_names(name.split(".")[0], timm.list_models()) or "Choose one of timm.list_models()."
        raise ValueError(f"{option} is {name!r}; expected a model of timm {timm.__version__}. {near}")
    architecture, _, tag = name.partition(".")
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{option} is {name!r}; expected one of the tags {', '.join(tags) or 'none'}. Correct the tag, or leave it out.")


def config_of(network: NetworkConfig, **fields) -> MsclConfig:
    """Return the configuration of the network that the options describe. fields: further fields of MsclConfig."""
    options = {key: value for key, value in asdict(network).items() if key not in ("pretrained", "backbone_weights")}
    options |= {"decoder_type": options.pop("decoder"), "bn_views": network.bn_views or "joint", "pixel_layers": network.pixel_layers or 3}
    options |= {"image_size": network.image_size or DEFAULT_SIZE}
    return build_config(**options | fields)


def build_config(
    backbone: str,
    *,
    image_size: int = 224,
    output_stride: int | None = None,
    two_towers: bool = False,
    decoder_type: str = "auto",
    backbone_kwargs: dict | None = None,
    out_indices: list[int] | None = None,
    **options,
) -> MsclConfig:
    """Return the configuration of a network around a timm model.

    backbone: timm name of a model with intermediate features. image_size: side of the training crop in px.
    output_stride: 8, 16 or 32, where the backbone supports it; None = 16 where supported, else the backbone's own.
    two_towers: use two backbones of half the width, see `towers_mscl`.
    decoder_type: "auto" = "mla" for features of constant stride, "deeplabv3" for pyramids. options: further fields of MsclConfig.
    Raises ValueError for an unknown name, an unsupported stride, or a model without intermediate features or half width.
    """
    check_timm_name(backbone)
    channels = options.get("num_channels", 3)
    _check_options(decoder_type, two_towers, channels, options)
    kwargs = dict(backbone_kwargs or {})
    if two_towers:
        kwargs |= half_width(backbone, kwargs)
        options = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} | options  # the towers convert RGB in [0, 1]
    kwargs |= _stride_kwargs(backbone, output_stride, kwargs)
    kwargs, size_rule = _size_rule(backbone, kwargs, image_size)
    model = _on_meta(backbone, kwargs)
    levels = feature_levels(model)
    depth, strides = len(levels), [level["reduction"] for level in levels]
    constant = len(set(strides)) == 1
    if out_indices is None:
        count = min(4, depth)
        evenly = [round((i + 1) * depth / count) - 1 for i in range(count)]  # of 12 blocks 2, 5, 8, 11
        out_indices = evenly if constant else list(range(depth))[-4 if decoder_type == "dpt" else -2 :]
    if decoder_type == "auto":
        decoder_type = "mla" if constant else "deeplabv3"
    for name in ("mean", "std"):
        options.setdefault(f"image_{name}", model.default_cfg.get(name) if channels == 3 else [0.5] * channels)
    if options.get("decoder_rates") is None:
        options["decoder_rates"] = _rates(image_size, strides[-1])
    return MsclConfig(
        backbone=backbone,
        backbone_kwargs=kwargs,
        two_towers=two_towers,
        out_indices=out_indices,
        stage_names=stage_names(levels),
        decoder_type=decoder_type,
        image_size=image_size,
        **size_rule,
        **options,
    )


def has_batch_norm(backbone: MsclBackbone) -> bool:
    """Return whether a backbone is normalized by batch statistics, as most CNNs are, and not ViT, Swin or ConvNeXt."""
    return any(isinstance(module, _BatchNorm) for module in backbone.timm_model.modules())


def _check_options(decoder_type: str, two_towers: bool, channels: int, options: dict) -> None:
    """Raise ValueError for a name or an option that does not exist, and for two towers of other than three channels."""
    known = {field.name.lstrip("_") for field in fields(MsclConfig)} | {"num_labels"}
    for name in (name for name in options if name not in known):
        raise ValueError(f"{name} is not a field of MsclConfig. {near_names(name, known) or 'Leave it out.'}")
    if decoder_type != "auto" and decoder_type not in DECODERS:
        raise ValueError(f"--decoder is {decoder_type!r}; expected auto, {', '.join(DECODERS)}. Choose one of them.")
    if options.get("attach", "ancestor") not in ATTACHMENTS:
        raise ValueError(f"--attach is {options['attach']!r}; expected {', '.join(ATTACHMENTS)}. Choose one of them.")
    if unknown := set(options.get("heads") or ()) - set(HEADS):
        raise ValueError(f"heads has {', '.join(sorted(unknown))}; expected some of {', '.join(HEADS)}. Choose from them.")
    if two_towers and channels != 3:
        raise ValueError(f"num_channels is {channels}; expected 3, as two towers convert RGB. Leave out --bands, or the towers.")


def _on_meta(name: str, kwargs: dict) -> nn.Module:
    """Build a model on the meta device, without memory for its weights."""
    model = build_on_meta(name, kwargs).eval()
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"--backbone is {name!r}, without intermediate features in timm {timm.__version__}. Choose another name.")
    return model


def _stride_kwargs(name: str, output_stride: int | None, kwargs: dict) -> dict:
    """Return the keyword arguments of timm that give the output stride, found by building the model."""
    if output_stride is not None and output_stride not in (8, 16, 32):
        raise ValueError(f"--output-stride is {output_stride}; expected 8, 16 or 32. Give one of them.")
    stride = output_stride or 16
    try:
        model = _on_meta(name, kwargs | {"output_stride": stride})
        if feature_levels(model)[-1]["reduction"] == stride:
            return {"output_stride": stride}
    except (TypeError, AssertionError, RuntimeError, NotImplementedError):
        pass  # the family has no such option
    default_stride = feature_levels(_on_meta(name, kwargs))[-1]["reduction"]
    if output_stride not in (None, default_stride):
        raise ValueError(f"--output-stride is {output_stride}; expected {default_stride} for {name!r}, its only stride. Leave it out.")
    return {}


def _size_rule(name: str, kwargs: dict, image_size: int) -> tuple[dict, dict]:
    """Find by trial the image sizes that a backbone accepts; return its kwargs, and the fields of MsclConfig that describe the sizes."""
    for norm in (True, False):  # a few families (Hiera) have no feature map after their final normalization
        result = _sizes(name, kwargs, image_size, norm)
        if result is not None:
            return result[0], result[1] | {"norm_features": norm}
    raise ValueError(f"--backbone is {name!r}, which gives no intermediate features at any image size. Choose another timm name.")


def _sizes(name: str, kwargs: dict, image_size: int, norm: bool) -> tuple[dict, dict] | None:
    """Find a side of which image sizes are multiples (preferred), or one fixed size; None where all trials fail."""
    flexible = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
    for extra in flexible:
        with contextlib.suppress(TypeError):
            model = _on_meta(name, kwargs | extra)
            deepest = int(feature_levels(model)[-1]["reduction"])
            for multiple in (1, deepest, 2 * deepest):
                up = math.ceil(image_size / multiple) * multiple
                odd = multiple * 3 if multiple > 1 else 27
                sizes = ((up, up), (up + multiple, up + odd), (2 * up + 5 * multiple, up + 3 * multiple))
                if all(_accepts(model, *size, norm) for size in sizes):
                    return kwargs | extra, {"size_multiple": multiple}
    native = _on_meta(name, kwargs).default_cfg.get("input_size", (3, 224, 224))[-1]
    rounded = [math.ceil(image_size / step) * step for step in (16, 32, 64, 128, 256)]
    for side in (*rounded, 224, 256, native):
        for extra in ({"img_size": side}, {}):
            with contextlib.suppress(TypeError, AssertionError):
                if _accepts(_on_meta(name, kwargs | extra), side, side, norm):
                    return kwargs | extra, {"fixed_size": side}
    return None


def _accepts(model: nn.Module, height: int, width: int, norm: bool) -> bool:
    channels = model.default_cfg.get("input_size", (3,))[0]
    try:
        with torch.no_grad():
            image = torch.empty(2, channels, height, width, device="meta")
            maps = model.forward_intermediates(image, norm=norm, output_fmt="NCHW", intermediates_only=True)
        # A wrong shape may still divide the tokens evenly, but changes the channels.
        return all(x.shape[1] == feature_levels(model)[index]["num_chs"] for index, x in enumerate(maps))
    except (AssertionError, RuntimeError, ValueError, IndexError, NotImplementedError):
        return False


def _rates(image_size: int, stride: int) -> list[int]:
    """Scale DeepLabV3's rates 6, 12, 18, which belong to maps of 33 positions (513 px at stride 16), to the size of the map."""
    scale = min(image_size / stride / 33, 16 / stride if stride < 16 else 1)
    return [max(1, round(rate * scale)) for rate in (6, 12, 18)]
