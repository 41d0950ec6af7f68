"""Export of weights to segmentation_models_pytorch (SMP) and torchvision, with load.py, which builds the model and loads them.

load.py itself is run, and its model is compared with this project's.
"""

import re
import runpy
from math import lcm
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from transformers import PreTrainedConfig, PreTrainedModel

from ..records.files import write_json
from . import load_scripts
from .compare import check_same, description, full_logits, random_images

BOUND = 1e-5  # relative difference; float32 operations are rounded in another order
EPS = 1e-5  # of BatchNorm2d in this project, in SMP and in torchvision
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
               "wide_resnet50_2", "wide_resnet101_2")  # timm has them with the same names of weights # fmt: skip


def save_state_dict(network: PreTrainedModel, folder: Path, library: str, backbone_only: bool) -> str:
    """Write model.safetensors, load.py and model.json; return a summary. Without such a decoder in the library, only the encoder."""
    config = network.config
    if config.two_towers:
        raise ValueError(f"--to is {library}, which has no encoder of two towers. Give --to onnx or torch.")
    load_scripts.check_names(config)
    architecture = config.backbone.partition(".")[0]
    reason = "--backbone-only" if backbone_only else _reason_for_encoder(network, library)
    if library == "torchvision":
        _check_torchvision(architecture, config)
        script = load_scripts.torchvision(architecture, network, whole=reason is None)
    else:
        script = load_scripts.smp(architecture, network, whole=reason is None)
    target = _build_model(script, library, config.backbone)
    if reason is None:
        weights = _weights(network, library, target)
    elif library == "torchvision":
        weights = _stages(network, target)
    else:
        weights = _with_prefix("encoder.", _encoder_weights(network, list(target.state_dict())))
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "model.json", description(config, labels=reason is None))
    (folder / "load.py").write_text(script)
    model = runpy.run_path(str(folder / "load.py"))["model"]
    relative = (_compare_backbone if reason else _compare)(network, model, library)
    part = f"only the backbone ({reason})" if reason else "the whole network"
    return f"{library}: {config.backbone}, {part}; relative difference of the outputs {relative:.1e}"


def _reason_for_encoder(network: PreTrainedModel, library: str) -> str | None:
    """Return why DeepLabV3 of the library cannot represent this network; None where it can."""
    config = network.config
    if not hasattr(network, "classifier"):
        return "the model is pre-trained and has no classifier"
    if config.decoder_type != "deeplabv3":
        return f"{library} has no decoder that equals {config.decoder_type}"
    if library == "smp" and len(config.decoder_rates) != 3:
        return f"DeepLabV3 of SMP has 3 atrous rates, this one {len(config.decoder_rates)}"
    if library == "smp" and config.backbone_kwargs.get("output_stride") not in (8, 16):
        return "DeepLabV3 of SMP has an output stride of 8 or 16"
    if network.backbone.taps[-1] != len(network.backbone.timm_model.feature_info) - 1:
        return f"the decoder of {library} reads the last stage"
    return None


def _check_torchvision(architecture: str, config: PreTrainedConfig) -> None:
    options = sorted(set(config.backbone_kwargs) - {"output_stride"})
    if architecture not in TORCHVISION or options or config.num_channels != 3:
        details = f"with {', '.join(options)}" if options else f"for {config.num_channels} channels"
        raise ValueError(
            f"--to is torchvision, which has no {config.backbone} {details}; expected one of {', '.join(TORCHVISION)}. "
            "Give --to timm, smp or onnx."
        )


def _build_model(script: str, library: str, backbone: str) -> nn.Module:
    """Return the model of a load.py, before its weights are loaded."""
    namespace: dict = {}
    try:
        exec(script.partition(load_scripts.WEIGHTS)[0], namespace)
    except (SyntaxError, ValueError, TypeError, RuntimeError, KeyError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{library} cannot build an encoder from timm's {backbone} ({reason}). Give --to timm or onnx.") from error
    return namespace["model"]


def _weights(network: PreTrainedModel, library: str, target: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    width = network.config.decoder_channels
    # A 3x3 convolution that changes nothing. The ReLU after it has no effect either: its inputs are outputs of a ReLU.
    identity = nn.init.dirac_(torch.empty(width, width, 3, 3))
    pyramid, conv_and_norm = _pyramid(network), {"conv.weight": identity, **_with_prefix("bn.", _identity_norm(width))}
    classifier = _part(state, "classifier.")
    if library == "smp":
        encoder = _encoder_weights(network, [key.removeprefix("encoder.") for key in target.state_dict() if key.startswith("encoder.")])
        parts = {"encoder.": encoder, "decoder.aspp.": pyramid, "decoder.": conv_and_norm, "segmentation_head.0.": classifier}
    else:
        conv_and_norm = {key.replace("conv.", "1.").replace("bn.", "2."): value for key, value in conv_and_norm.items()}
        parts = {"backbone.": _stages(network, target.backbone), "classifier.0.": pyramid, "classifier.": conv_and_norm,
                 "classifier.4.": classifier}  # fmt: skip
        if target.aux_classifier is not None:
            auxiliary = {**_part(state, "auxiliary_head.0."), **_with_prefix("4.", _part(state, "auxiliary_head.1."))}
            parts["aux_classifier."] = auxiliary
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def _pyramid(network: PreTrainedModel) -> dict[str, Tensor]:
    """Return the decoder under the names of SMP and torchvision. Their pooled branch has a BatchNorm where this one has a bias."""
    state, count = _part(network.state_dict(), "decoder."), len(network.decoder.branches)
    weights = {key.replace("branches.", "convs."): value for key, value in state.items() if key.startswith("branches.")}
    weights |= {key.replace("fuse.", "project."): value for key, value in state.items() if key.startswith("fuse.")}
    weights[f"convs.{count}.1.weight"] = state["image_pool.1.weight"]
    bias = state["image_pool.1.bias"]
    return weights | _with_prefix(f"convs.{count}.2.", _identity_norm(len(bias), bias))


def _identity_norm(channels: int, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Return weights of a BatchNorm that only adds the bias in evaluation mode."""
    zeros = torch.zeros(channels)
    return {"weight": torch.ones(channels), "bias": zeros if bias is None else bias, "running_mean": zeros,
            "running_var": torch.full((channels,), 1 - EPS), "num_batches_tracked": torch.tensor(0)}  # fmt: skip


def _encoder_weights(network: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Return the encoder's weights under SMP's names, where stages.0 is stages_0, as in timm's features_only models."""
    state, weights = network.backbone.timm_model.state_dict(), {}
    for name in names:
        plain = re.sub(r"^(model\.)+", "", name)
        split = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", plain)
        source = next((key for key in (plain, split) if key in state), None)
        if source is None:
            backbone = network.config.backbone
            raise ValueError(f"SMP's encoder of {backbone} has a weight {plain}, which timm's model lacks. Give --to timm or onnx.")
        weights[name] = state[source]
    return weights


def _stages(network: PreTrainedModel, target: nn.Module) -> dict[str, Tensor]:
    """Return the weights that torchvision's module has too; it ends at the last stage that the decoder reads."""
    names = target.state_dict()
    return {key: value for key, value in network.backbone.timm_model.state_dict().items() if key in names}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _images(network: PreTrainedModel) -> Tensor:
    """Return random images of a size that neither library resizes or pads."""
    config = network.config
    if config.fixed_size:
        return random_images(config, 2, config.fixed_size, config.fixed_size)
    step = lcm(32, config.size_multiple)
    side = -(-config.image_size // step) * step
    return random_images(config, 2, side, side + step)


@torch.no_grad()
def _compare(network: PreTrainedModel, model: nn.Module, library: str) -> float:
    images = _images(network)
    output, expected = model(images), full_logits(network, images)
    if library == "smp":
        return check_same("the model of SMP", output, expected, BOUND)
    worst = check_same("the model of torchvision", output["out"], expected, BOUND)
    if "aux" in output:
        auxiliary = F.interpolate(network.both_logits(images)[1], size=images.shape[-2:], mode="bilinear", align_corners=False)
        worst = max(worst, check_same("the auxiliary head of torchvision", output["aux"], auxiliary, BOUND))
    return worst


@torch.no_grad()
def _compare_backbone(network: PreTrainedModel, model: nn.Module, library: str) -> float:
    """Compare the maps of all stages that both have, from the last one."""
    images = _images(network)
    timm_model = network.backbone.timm_model
    expected = timm_model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    if library == "torchvision":
        maps = list(IntermediateLayerGetter(model, {f"layer{i}": str(i) for i in range(1, 5)})(images).values())
    elif load_scripts.constant_stride(network):
        maps, expected = model(images)[0], [expected[index] for index in network.backbone.taps]
    else:
        maps = model(images)
        maps = maps[-min(len(maps) - 1, len(expected)) :]  # the first is the image
    pairs = zip(reversed(list(maps)), reversed(expected))
    return max(check_same(f"the encoder of {library}", a, b, BOUND) for a, b in pairs if a.shape[1])
