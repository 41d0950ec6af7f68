"""Figures of a training run: its curves, and the features of its network."""

from pathlib import Path

import torch

from ..data.dataset import SegmentationData
from ..data.pixels import displayed
from ..methods.base import Method
from ..transforms.crops import central_crop, cut
from ..visual.figures import feature_maps_sheet, training_figure
from .health import features
from .log import read_log


def draw_training(out: Path, title: str) -> None:
    """Draw training.png from log.jsonl, if it has lines."""
    rows = read_log(out / "log.jsonl")
    if rows:
        training_figure(rows, out / "training.png", title)


@torch.no_grad()
def draw_features(method: Method, data: SegmentationData, out: Path, count: int = 6) -> None:
    """Draw features.png: images, masks, and the last feature map of the backbone as colors (PCA)."""
    method.eval()
    size, base = method.network.config.image_size, method.network.config.base_size
    step = max(1, len(data) // count)
    samples = [data.read(i) for i in range(0, len(data), step)][:count]
    cuts = [cut(s, central_crop(s.image.shape[1::-1], size, base), size) for s in samples]
    maps = features(method, torch.stack([image for image, _ in cuts]))
    images = [displayed(image.permute(1, 2, 0).numpy()) for image, _ in cuts]
    masks = [None if mask is None else mask.numpy() for _, mask in cuts]
    feature_maps_sheet(images, masks, maps, out / "features.png", data.classes)
