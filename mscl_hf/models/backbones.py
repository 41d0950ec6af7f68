"""Asks timm what a backbone supports, and writes the answer into a MsclConfig."""

import contextlib
import difflib
import math
from dataclasses import asdict
from typing import get_type_hints

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from ..config.fields import choices_of
from ..config.network import NetworkConfig
from .configuration_mscl import HEADS, MsclConfig
from .decoders_mscl import DECODERS
from .half_width import half_width
from .loading import pinned
from .modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation, feature_levels, stage_names

ATTACHMENTS = choices_of(get_type_hints(NetworkConfig)["attach"])


def check_timm_name(name: str) -> None:
    """Raise ValueError with the near names when timm has no such model."""
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.split(".")[0], known, n=5, cutoff=0.5)
        raise ValueError(
            f"unknown backbone {name!r}: timm {timm.__version__} has {len(known)} models, "
            f"the nearest are {', '.join(near) or 'none'}; choose one of timm.list_models()"
        )
    architecture, _, tag = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise ValueError(f"unknown pre-training tag {name!r}; choose one of {', '.join(known) or 'none'}, or leave the tag out")


def config_of(network: NetworkConfig, **fields) -> MsclConfig:
    """The configuration of the network that the options describe. fields: of MsclConfig, from elsewhere."""
    options = {key: value for key, value in asdict(network).items() if key not in ("pretrained", "backbone_weights")}
    options |= {"decoder_type": options.pop("decoder"), "bn_views": network.bn_views or "joint", "pixel_layers": network.pixel_layers or 3}
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
    """The configuration of a network around a timm model.

    backbone: any timm name that has intermediate features. image_size: side of the training crop in px.
    output_stride: 8, 16 or 32 for families that support it; None = 16 where supported, else the family's own.
    two_towers: two such models of half the width, see `towers_mscl`.
    decoder_type: "auto" = "mla" for constant-stride features, "deeplabv3" for pyramids. options: further MsclConfig fields.
    Raises ValueError for an unknown name, an unsupported stride, a model without intermediate features, or without a half width.
    """
    check_timm_name(backbone)
    if decoder_type != "auto" and decoder_type not in DECODERS:
        raise ValueError(f"unknown decoder {decoder_type!r}: choose auto, {', '.join(DECODERS)}")
    if options.get("attach", "ancestor") not in ATTACHMENTS:
        raise ValueError(f"unknown attach {options['attach']!r}: choose one of {', '.join(ATTACHMENTS)}")
    if unknown := set(options.get("heads") or ()) - set(HEADS):
        raise ValueError(f"unknown heads {', '.join(sorted(unknown))}: choose from {', '.join(HEADS)}")
    kwargs = dict(backbone_kwargs or {})
    if two_towers:
        if options.get("num_channels", 3) != 3:
            raise ValueError(f"two towers split RGB into lightness and colour, num_channels is {options['num_channels']}; leave out either")
        kwargs |= half_width(backbone, kwargs)
        options = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} | options  # the towers convert RGB in 0..1 themselves
    kwargs |= _stride_kwargs(backbone, output_stride, kwargs)
    kwargs, size_rule = _size_rule(backbone, kwargs, image_size)
    model = _on_meta(backbone, kwargs)
    levels = feature_levels(model)
    depth, strides = len(levels), [level["reduction"] for level in levels]
    constant = len(set(strides)) == 1
    if out_indices is None:
        out_indices = _spread(depth, 4) if constant else [depth - 2, depth - 1][-depth:]
    if decoder_type == "auto":
        decoder_type = "mla" if constant else "deeplabv3"
    options.setdefault("image_mean", model.default_cfg.get("mean"))
    options.setdefault("image_std", model.default_cfg.get("std"))
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


def load_timm_weights(
    model: MsclForPreTraining | MsclForSemanticSegmentation, pretrained: bool = True, file: str | None = None
) -> None:
    """Put timm's pre-trained weights into the backbone: from a local file of safetensors, or from the Hub (needs a network).

    From the Hub timm reads safetensors where a repository has them, else tensors alone of what it has (weights_only).
    Position embeddings and the stem's input channels are adapted by timm. Raises ValueError when there are no weights, or when they do
    not fit the backbone.
    """
    name = model.config.backbone
    if file is None and not pretrained:
        return
    if model.config.two_towers:
        raise ValueError(f"timm has no weights for two towers of {name}; leave out --pretrained and --backbone-weights, or --two-towers")
    if file is not None and not str(file).endswith(".safetensors"):
        raise ValueError(f"--backbone-weights is {file}, and only .safetensors is read; convert it as docs/backbones.md says")
    try:
        overlay = None if file is None else {"state_dict": _without_classifier(name, file), "num_classes": 0}
        source = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            in_chans=model.config.num_channels,
            **model.config.backbone_kwargs,
        )
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"timm's pre-trained {name} cannot be fetched" if file is None else f"{file} holds no weights that fit timm's {name}"
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{what} ({reason}); give --backbone-weights a .safetensors file saved from that model") from error
    model.backbone.timm_model.load_state_dict(source.state_dict())


def _without_classifier(name: str, file: str) -> dict[str, torch.Tensor]:
    """The weights in a file, but for the classifier's: for num_classes=0 timm then insists on every one of them."""
    with torch.device("meta"):
        heads = timm.create_model(name, num_classes=0).default_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    weights = timm.models.load_state_dict(str(file))
    return {key: value for key, value in weights.items() if not key.startswith(heads)}


def _on_meta(name: str, kwargs: dict) -> nn.Module:
    """The model's shape without its weights: cheap even for giants."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **kwargs).eval()
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"backbone {name!r} has no intermediate features in timm {timm.__version__}; choose another timm name")
    return model


def _stride_kwargs(name: str, output_stride: int | None, kwargs: dict) -> dict:
    if output_stride is not None and output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}; give 8, 16 or 32")
    wanted = output_stride or 16
    try:
        model = _on_meta(name, kwargs | {"output_stride": wanted})
        if feature_levels(model)[-1]["reduction"] == wanted:
            return {"output_stride": wanted}
    except (TypeError, AssertionError, RuntimeError, NotImplementedError):
        pass  # the family builds with its own strides only
    own = feature_levels(_on_meta(name, kwargs))[-1]["reduction"]
    if output_stride not in (None, own):
        raise ValueError(f"backbone {name!r} does not support output_stride={output_stride}; leave it out to use its own, {own}")
    return {}


def _size_rule(name: str, kwargs: dict, image_size: int) -> tuple[dict, dict]:
    """Find by trial what forward pass a family takes: its kwargs, and the fields of MsclConfig that describe it."""
    for norm in (True, False):  # a few families (Hiera) offer no map behind their final normalisation
        found = _sizes(name, kwargs, image_size, norm)
        if found is not None:
            return found[0], found[1] | {"norm_features": norm}
    raise ValueError(f"backbone {name!r} gave no intermediate features at any image size tried; choose another timm name")


def _sizes(name: str, kwargs: dict, image_size: int, norm: bool) -> tuple[dict, dict] | None:
    """Images of any multiple of something (best), or of one fixed size; None when all trials fail."""
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
        # A wrong grid may still divide the tokens evenly, and then shows in the channels.
        return all(x.shape[1] == feature_levels(model)[index]["num_chs"] for index, x in enumerate(maps))
    except (AssertionError, RuntimeError, ValueError, IndexError, NotImplementedError):
        return False


def _spread(depth: int, count: int) -> list[int]:
    """`count` block indices, evenly spaced, the last one included: depth 12 -> [2, 5, 8, 11]."""
    count = min(count, depth)
    return [round((i + 1) * depth / count) - 1 for i in range(count)]


def _rates(image_size: int, stride: int) -> list[int]:
    """DeepLabV3's rates 6, 12, 18 belong to maps of 33 cells (513 px at stride 16); smaller maps get smaller rates."""
    scale = min(image_size / stride / 33, 16 / stride if stride < 16 else 1)
    return [max(1, round(rate * scale)) for rate in (6, 12, 18)]


def weights_name(network: NetworkConfig, pretrained: bool = False) -> str | None:
    """Where a backbone's first weights are from: a file, a Hub name at its commit, or None for random ones."""
    if network.backbone_weights or not (network.pretrained or pretrained):
        return network.backbone_weights
    return pinned(timm.get_pretrained_cfg(network.backbone).hf_hub_id)
