"""The backbone as a model of timm: a folder that `timm.create_model("local-dir:DIR")` and, pushed, `"hf-hub:ORG/NAME"` open."""

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

# What timm's configuration says of the weights that it would have downloaded.
OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description")


def save_timm(network: PreTrainedModel, folder: Path) -> str:
    """Write config.json and model.safetensors."""
    config, model = network.config, network.backbone.timm_model
    if config.two_towers:
        raise ValueError(f"timm has no model of two towers of {config.backbone}; it can be carried by --to onnx or torch only")
    data = {"mean": config.image_mean, "std": config.image_std, "interpolation": "bilinear", "crop_pct": 1.0}
    if not get_model_input_config(model)["fixed_input_size"]:  # else the size is the one that the model was built for
        crop = torch.empty(1, config.num_channels, config.image_size, config.image_width or config.image_size)
        data["input_size"] = tuple(network.backbone._fit_size(crop).shape[1:])
    save_config_for_hf(model, str(folder / "config.json"), data_config=data)
    written = json.loads((folder / "config.json").read_text())
    written["model_args"].pop("num_classes", None)  # transformers passes it too, and would fail on the second
    for key in OF_OTHER_WEIGHTS:
        written["pretrained_cfg"].pop(key, None)
    write_json(folder / "config.json", written)
    # Clones: some families hold a weight under two names, which a file of tensors does not take.
    save_file({key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    check_folder(folder, model, random_images(config, 2, *written["pretrained_cfg"]["input_size"][1:]))
    return f"timm: {config.backbone}, the same features bit for bit"


@torch.no_grad()
def check_folder(folder: Path, model: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless what timm opens computes the same of the images, to the last bit."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for features in ("forward_features", "forward_intermediates"):
        found, wanted = (_tensors(getattr(one, features)(images)) for one in (loaded, model))
        if len(found) != len(wanted) or not all(map(torch.equal, found, wanted)):
            raise ValueError(f"timm {timm.__version__} opens the written {model.pretrained_cfg['architecture']} with other features; "
                             "nothing was written")  # fmt: skip


def _tensors(output) -> list[Tensor]:
    """All of an output, which some families nest."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in (output.values() if isinstance(output, dict) else output) for tensor in _tensors(part)]

