"""Export of the backbone as a folder for `timm.create_model("local-dir:DIR")`, or, once it is pushed, `"hf-hub:ORG/NAME"`."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from timm.models._input import get_model_input_config
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..records.files import write_json
from .compare import random_images

# Fields of timm's configuration that describe the weights that timm offers for download, not these.
FIELDS_OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description")


def save_timm(network: PreTrainedModel, folder: Path) -> str:
    """Write config.json and model.safetensors; return a summary."""
    config, model = network.config, network.backbone.timm_model
    if config.two_towers:
        raise ValueError("--to is timm, which has no model of two towers. Give --to onnx or torch.")
    data = {"mean": config.image_mean, "std": config.image_std, "interpolation": "bilinear", "crop_pct": 1.0}
    if not get_model_input_config(model)["fixed_input_size"]:  # else timm knows the size
        crop = torch.empty(1, config.num_channels, config.image_size, config.image_width or config.image_size)
        data["input_size"] = tuple(network.backbone._fit_size(crop).shape[1:])
    save_config_for_hf(model, str(folder / "config.json"), data_config=data)
    written = json.loads((folder / "config.json").read_text())
    written["model_args"].pop("num_classes", None)  # transformers passes it as well, and would fail
    for key in FIELDS_OF_OTHER_WEIGHTS:
        written["pretrained_cfg"].pop(key, None)
    write_json(folder / "config.json", written)
    # Clones: some families share a weight under two names, which safetensors rejects.
    save_file({key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    check_folder(folder, model, random_images(config, 2, *written["pretrained_cfg"]["input_size"][1:]))
    return f"timm: {config.backbone}, equal features, bit for bit"


@torch.no_grad()
def check_folder(folder: Path, model: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless the model that timm opens computes equal features of the images, bit for bit."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for features in ("forward_features", "forward_intermediates"):
        output, expected = (_tensors(getattr(timm_model, features)(images)) for timm_model in (loaded, model))
        if len(output) != len(expected) or not all(map(torch.equal, output, expected)):
            architecture = model.pretrained_cfg["architecture"]
            raise ValueError(f"timm {timm.__version__} computes other features with the exported {architecture}. Nothing was written.")


def _tensors(output) -> list[Tensor]:
    """Return all tensors of an output; some families return nested ones."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in (output.values() if isinstance(output, dict) else output) for tensor in _tensors(part)]

