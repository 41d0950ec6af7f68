"""The text of load.py, which builds a model of segmentation_models_pytorch or torchvision and loads model.safetensors.

The text is executed. An untrusted configuration can only contribute names that are identifiers, and the repr of values.
"""

from transformers import PreTrainedConfig, PreTrainedModel

from ..models.timm_mscl import feature_levels

WEIGHTS = "\n# weights\n"
LOAD = WEIGHTS + 'weights = load_file(Path(__file__).with_name("model.safetensors"))\n'
SHOW = '\nmodel.eval()\n\nif __name__ == "__main__":\n    print(model)\n'


def check_names(config: PreTrainedConfig) -> None:
    """Raise ValueError where the name of the backbone, or of one of its options, is not an identifier."""
    for name in (config.backbone.partition(".")[0], *config.backbone_kwargs):
        if not name.isidentifier():
            raise ValueError(f"config.json has {name!r}; expected the name of a timm model or of one of its options.")


def constant_stride(network: PreTrainedModel) -> bool:
    """Return whether all maps of the backbone have one size, as those of a plain vision transformer."""
    return len({level["reduction"] for level in feature_levels(network.backbone.timm_model)}) == 1


def smp(architecture: str, network: PreTrainedModel, whole: bool) -> str:
    """Return code for DeepLabV3, or for the encoder alone, with timm's model, which SMP names tu-NAME."""
    config = network.config
    options = "".join(f", {key}={value!r}" for key, value in config.backbone_kwargs.items() if key != "output_stride")
    stride = config.backbone_kwargs.get("output_stride", 32)
    imports = "import segmentation_models_pytorch as smp\n" if whole else "from segmentation_models_pytorch.encoders import {}\n"
    head = f'"""{architecture} in segmentation_models_pytorch; images: see model.json."""\n\nfrom pathlib import Path\n\n'
    if whole:
        return head + imports + (
            "import torch\nfrom safetensors.torch import load_file\n\n"
            f"model = smp.DeepLabV3(\n    {'tu-' + architecture!r}, encoder_weights=None, encoder_output_stride={stride!r}, "
            f"in_channels={config.num_channels!r}, classes={config.num_labels!r},\n    decoder_channels={config.decoder_channels!r}, "
            f"decoder_atrous_rates={tuple(config.decoder_rates)!r}, upsampling=1{options}\n)\n"
            "# SMP upsamples with align_corners=True, unlike the training.\n"
            f'model.segmentation_head[1] = torch.nn.Upsample(scale_factor={stride!r}, mode="bilinear", align_corners=False)\n'
            f"{LOAD}model.load_state_dict(weights)" + SHOW
        )  # fmt: skip
    if constant_stride(network):
        builder, taps = "TimmViTEncoder", network.backbone.taps
        build = f"TimmViTEncoder({architecture!r}, pretrained=False, in_channels={config.num_channels!r}"
        build += f", depth={len(taps)!r}, output_indices={taps!r}, num_classes=0"
    else:
        builder = "get_encoder"
        build = f"get_encoder({'tu-' + architecture!r}, in_channels={config.num_channels!r}, weights=None, output_stride={stride!r}"
    load = 'model.load_state_dict({key.removeprefix("encoder."): value for key, value in weights.items()})'
    return f"{head}{imports.format(builder)}from safetensors.torch import load_file\n\nmodel = {build}{options})\n{LOAD}{load}{SHOW}"


def torchvision(architecture: str, network: PreTrainedModel, whole: bool) -> str:
    """Return code for DeepLabV3, or for the ResNet alone, with its last stages dilated for the output stride."""
    config = network.config
    stride, stages = config.backbone_kwargs.get("output_stride", 32), network.backbone.timm_model
    dilated = [False, stride <= 8, stride <= 16]
    has_basic_blocks = type(stages.layer1[0]).__name__ == "BasicBlock"
    head = f'"""{architecture} in torchvision; images: see model.json."""\n\nfrom pathlib import Path\n\n'
    imports = [f"from torchvision.models import {architecture}"]
    build = f"backbone = {architecture}(weights=None{'' if has_basic_blocks else f', replace_stride_with_dilation={dilated!r}'})\n"
    if has_basic_blocks and any(dilated):
        rates = [(f"layer{number}", rate) for number, rate in (((3, 2), (4, 4)) if stride == 8 else ((4, 2),))]
        build += (
            f"for layer, rate in {rates!r}:  # torchvision dilates bottleneck blocks only\n"
            "    for name, module in getattr(backbone, layer).named_modules():\n"
            "        if isinstance(module, torch.nn.Conv2d):\n"
            "            module.stride = (1, 1)\n"
            "            if module.kernel_size == (3, 3):\n"
            '                module.padding = module.dilation = (rate // 2 if name == "0.conv1" else rate,) * 2\n'
        )
    if not whole:
        build += "model = backbone\nmodel.fc = torch.nn.Identity()\n"
    else:
        build += _deeplabv3(network)
        imports += ["from torchvision.models._utils import IntermediateLayerGetter",
                    "from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3",
                    "from torchvision.models.segmentation.fcn import FCNHead"]  # fmt: skip
    lines = "\n".join(["import torch", "from safetensors.torch import load_file", *imports])
    return f"{head}{lines}\n\n{build}{LOAD}model.load_state_dict(weights){SHOW}"


def _deeplabv3(network: PreTrainedModel) -> str:
    config, taps, channels = network.config, network.backbone.taps, network.backbone.channels
    layers, width = {f"layer{taps[-1]}": "out"}, config.decoder_channels
    auxiliary = network.auxiliary_head is not None and taps[-2] > 0
    if auxiliary:
        layers[f"layer{taps[-2]}"] = "aux"
    return (
        f"backbone = IntermediateLayerGetter(backbone, return_layers={layers!r})\n"
        f"classifier = torch.nn.Sequential(  # torchvision's DeepLabHead has a fixed width of 256\n"
        f"    ASPP({channels[-1]!r}, {config.decoder_rates!r}, {width!r}),\n"
        f"    torch.nn.Conv2d({width!r}, {width!r}, 3, padding=1, bias=False),\n"
        f"    torch.nn.BatchNorm2d({width!r}), torch.nn.ReLU(), torch.nn.Conv2d({width!r}, {config.num_labels!r}, 1),\n)\n"
        f"model = DeepLabV3(backbone, classifier, {f'FCNHead({channels[-2]!r}, {config.num_labels!r})' if auxiliary else None})\n"
    )
