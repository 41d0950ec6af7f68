"""Weights for segmentation_models_pytorch and torchvision, with load.py, a few lines that build the model and load them.

load.py is run and compared before anything gets its place: what was checked is what is handed out.
"""

import re
import runpy
from math import lcm
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..records.files import write_json
from . import load_scripts
from .compare import check_same, description, full_logits, random_images

BOUND = 1e-5  # of the outputs' size: float32 rounds in another order
EPS = 1e-5  # of BatchNorm2d, here, in SMP and in torchvision
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
               "wide_resnet50_2", "wide_resnet101_2")  # timm gives them the same names and weights # fmt: skip


def save_state_dict(network: PreTrainedModel, folder: Path, library: str, backbone_only: bool) -> str:
    """Write model.safetensors, load.py and model.json; the encoder alone, saying so, where the library has no such decoder."""
    config = network.config
    if config.two_towers:
        raise ValueError(f"{library} has no encoder of two towers; carry the model by --to onnx or torch")
    load_scripts.check_names(config)
    architecture = config.backbone.partition(".")[0]
    why = "as asked" if backbone_only else _no_decoder(network, library)
    if library == "torchvision":
        _check_torchvision(architecture, config)
        script = load_scripts.torchvision(architecture, network, whole=why is None)
    else:
        script = load_scripts.smp(architecture, network, whole=why is None)
    target = _built(script, library, config.backbone)
    weights = _backbone_weights(network, library, target) if why else _weights(network, library, target)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "model.json", description(config, labels=why is None))
    (folder / "load.py").write_text(script)
    model = runpy.run_path(str(folder / "load.py"))["model"]
    distance = (_compare_backbone if why else _compare)(network, model, library)
    part = f"the backbone alone ({why})" if why else "the whole network"
    return f"{library}: {config.backbone}, {part}; outputs differ by {distance:.1e} of their size"


def _no_decoder(network: PreTrainedModel, library: str) -> str | None:
    """Why the library's DeepLabV3 cannot be this network; None where it can."""
    config = network.config
    if not hasattr(network, "classifier"):
        return "the model is pre-trained and has no classifier"
    if config.decoder_type != "deeplabv3":
        return f"no decoder of {library} is this project's {config.decoder_type}"
    if library == "smp" and len(config.decoder_rates) != 3:
        return f"SMP's DeepLabV3 has three atrous rates, not {len(config.decoder_rates)}"
    if library == "smp" and config.backbone_kwargs.get("output_stride") not in (8, 16):
        return "SMP's DeepLabV3 has an output stride of 8 or 16"
    if network.backbone.taps[-1] != len(network.backbone.timm_model.feature_info) - 1:
        return f"the decoder of {library} reads the last stage"
    return None


def _check_torchvision(architecture: str, config: PreTrainedConfig) -> None:
    more = sorted(set(config.backbone_kwargs) - {"output_stride"})
    if architecture not in TORCHVISION or more or config.num_channels != 3:
        what = f"{config.backbone} with {', '.join(more)}" if more else f"{config.backbone} for {config.num_channels} channels"
        raise ValueError(f"torchvision has no {what}: its encoders here are {', '.join(TORCHVISION)}; use --to timm, smp or onnx")


def _built(script: str, library: str, backbone: str) -> nn.Module:
    """The model of a load.py, before its weights."""
    place: dict = {}
    try:
        exec(script.partition(load_scripts.WEIGHTS)[0], place)
    except (SyntaxError, ValueError, TypeError, RuntimeError, KeyError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{library} cannot build an encoder from timm's {backbone} ({reason}); use --to timm or onnx") from error
    return place["model"]


def _weights(network: PreTrainedModel, library: str, target: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    width = network.config.decoder_channels
    pyramid, after = _pyramid(network), {"conv.weight": _delta(width), **_with_prefix("bn.", _identity(width))}
    classifier = _part(state, "classifier.")
    if library == "smp":
        encoder = _encoder_weights(network, [key.removeprefix("encoder.") for key in target.state_dict() if key.startswith("encoder.")])
        parts = {"encoder.": encoder, "decoder.aspp.": pyramid, "decoder.": after, "segmentation_head.0.": classifier}
    else:
        last = {"1.weight": after.pop("conv.weight"), **{key.replace("bn.", "2."): value for key, value in after.items()}}
        parts = {"backbone.": _stages(network, target.backbone), "classifier.0.": pyramid, "classifier.": last, "classifier.4.": classifier}
        if target.aux_classifier is not None:
            auxiliary = {**_part(state, "auxiliary_head.0."), **_with_prefix("4.", _part(state, "auxiliary_head.1."))}
            parts["aux_classifier."] = auxiliary
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def _pyramid(network: PreTrainedModel) -> dict[str, Tensor]:
    """Our decoder by the names that SMP and torchvision share. Their pooled branch normalises where ours adds a bias."""
    state, count = _part(network.state_dict(), "decoder."), len(network.decoder.branches)
    found = {key.replace("branches.", "convs."): value for key, value in state.items() if key.startswith("branches.")}
    found |= {key.replace("fuse.", "project."): value for key, value in state.items() if key.startswith("fuse.")}
    found[f"convs.{count}.1.weight"] = state["image_pool.1.weight"]
    bias = state["image_pool.1.bias"]
    return found | _with_prefix(f"convs.{count}.2.", _identity(len(bias), bias))


def _identity(channels: int, bias: Tensor | None = None) -> dict[str, Tensor]:
    """A BatchNorm that, in evaluation, changes nothing but for the bias that it adds."""
    zeros = torch.zeros(channels)
    return {"weight": torch.ones(channels), "bias": zeros if bias is None else bias, "running_mean": zeros,
            "running_var": torch.full((channels,), 1 - EPS), "num_batches_tracked": torch.tensor(0)}  # fmt: skip


def _delta(channels: int) -> Tensor:
    """A 3x3 convolution that changes nothing; the ReLU behind it neither, since what comes is a ReLU's output."""
    return nn.init.dirac_(torch.empty(channels, channels, 3, 3))


def _backbone_weights(network: PreTrainedModel, library: str, target: nn.Module) -> dict[str, Tensor]:
    if library == "torchvision":
        return _stages(network, target)
    return _with_prefix("encoder.", _encoder_weights(network, list(target.state_dict())))


def _encoder_weights(network: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Under SMP's names: timm's features_only models flatten sequences, stages.0 is stages_0 there."""
    state, found = network.backbone.timm_model.state_dict(), {}
    for name in names:
        plain = re.sub(r"^(model\.)+", "", name)
        split = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", plain)
        source = next((key for key in (plain, split) if key in state), None)
        if source is None:
            raise ValueError(f"SMP's encoder of {network.config.backbone} has a weight {plain} that timm's has not; use --to timm or onnx")
        found[name] = state[source]
    return found


def _stages(network: PreTrainedModel, target: nn.Module) -> dict[str, Tensor]:
    """The weights that torchvision's module has too; it ends at the stage that is read."""
    names = target.state_dict()
    return {key: value for key, value in network.backbone.timm_model.state_dict().items() if key in names}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _images(network: PreTrainedModel) -> Tensor:
    """Of a size that no library has to change: neither here, for the backbone's family, nor there, for the stride."""
    config = network.config
    if config.fixed_size:
        return random_images(config, 2, config.fixed_size, config.fixed_size)
    step = lcm(32, config.size_multiple)
    side = -(-config.image_size // step) * step
    return random_images(config, 2, side, side + step)


@torch.no_grad()
def _compare(network: PreTrainedModel, model: nn.Module, library: str) -> float:
    images = _images(network)
    found, wanted = model(images), full_logits(network, images)
    if library == "smp":
        return check_same("the model of SMP", found, wanted, BOUND)
    worst = check_same("the model of torchvision", found["out"], wanted, BOUND)
    if "aux" in found:
        auxiliary = F.interpolate(network.both_logits(images)[1], size=images.shape[-2:], mode="bilinear", align_corners=False)
        worst = max(worst, check_same("the auxiliary head of torchvision", found["aux"], auxiliary, BOUND))
    return worst


@torch.no_grad()
def _compare_backbone(network: PreTrainedModel, model: nn.Module, library: str) -> float:
    """All maps of the deepest stages that both have."""
    images = _images(network)
    timm_model = network.backbone.timm_model
    wanted = timm_model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    if library == "torchvision":
        found = load_scripts.torchvision_maps(model, images)
    elif load_scripts.constant_stride(network):
        found, wanted = model(images)[0], [wanted[index] for index in network.backbone.taps]
    else:
        found = model(images)
        found = found[-min(len(found) - 1, len(wanted)) :]  # the first is the image
    pairs = list(zip(reversed(list(found)), reversed(wanted)))
    return max(check_same(f"the encoder of {library}", a, b, BOUND) for a, b in pairs if a.shape[1])
