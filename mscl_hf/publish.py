"""The end of a run: a folder that the Hugging Face ecosystem opens - weights, configuration, processor, card, pictures."""

import re
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, SegformerImageProcessor

from .data.segmentation_data import SegmentationData
from .data.views import central_crop, cut
from .figures import feature_maps_sheet, training_figure
from .health import features
from .log import read_log
from .methods.base import Method


def open_model(kind: type[PreTrainedModel], name: str, **options) -> PreTrainedModel:
    """`kind.from_pretrained`; ValueError in one sentence when there is no model at `name`, a folder or a Hub name."""
    if not Path(name).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):  # nor can it be a Hub name
        raise ValueError(f"there is no model folder {name}; give the output folder of a finished run, or a name on the Hub")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"the folder {name} holds no model (no config.json); give one in which a run has ended")
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, SafetensorError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"cannot open a model at {name!r} ({first}); give a folder of a finished run, or a name on the Hub") from error


def publish(network: PreTrainedModel, out: Path, card: str) -> None:
    """Write config.json, model.safetensors (float32), preprocessor_config.json and README.md into `out`."""
    network.float().save_pretrained(out)
    config = network.config
    side = {"height": config.image_size, "width": config.image_size}
    SegformerImageProcessor(size=side, image_mean=config.image_mean, image_std=config.image_std).save_pretrained(out)
    (out / "README.md").write_text(card)


def model_card(title: str, description: str, command: str, config, figures: dict[str, float] | None = None) -> str:
    """A short card: what it is, how it was made, how to load it."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in (figures or {}).items())
    table = f"\n| measure | value |\n|---|---|\n{rows}" if rows else ""
    kind = config.architectures[0] if config.architectures else "MsclForPreTraining"
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-segmentation\ntags: [mscl_hf, timm, semantic-segmentation]\n---\n\n"
        f"# {title}\n\n{description}\n\nBackbone: `{config.backbone}` (timm); decoder: {config.decoder}.\n{table}\n"
        f"```python\nfrom mscl_hf import {kind}\n\nmodel = {kind}.from_pretrained(\"PATH_OR_HUB_NAME\")\n```\n\n"
        f"Made by mscl_hf with\n\n```\n{command}\n```\n"
    )


def draw_training(out: Path, title: str) -> None:
    """training.png from log.jsonl, if anything was logged."""
    rows = read_log(out / "log.jsonl")
    if rows:
        training_figure(rows, out / "training.png", title)


@torch.no_grad()
def draw_features(method: Method, data: SegmentationData, out: Path, count: int = 6) -> None:
    """features.png: image, mask and the last backbone map as colours (PCA)."""
    method.eval()
    size, base = method.network.config.image_size, method.network.config.base_size
    step = max(1, len(data) // count)
    samples = [data.read(i) for i in range(0, len(data), step)][:count]
    cuts = [cut(s, central_crop(s.image.shape[1::-1], size, base), size) for s in samples]
    maps = features(method, torch.stack([image for image, _ in cuts]))
    images = [image.permute(1, 2, 0).numpy() for image, _ in cuts]
    masks = [None if mask is None else mask.numpy() for _, mask in cuts]
    feature_maps_sheet(images, masks, maps, out / "features.png", data.classes)


def commit() -> str | None:
    """The commit of the source tree that runs, or None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
