"""Health checks of pre-training: a linear probe on held-out masks, effective rank and spread of the embeddings, a picture of features."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.dataset import SegmentationData
from ..data.pixels import displayed
from ..losses import labels_at
from ..methods.base import Method
from ..transforms.crops import central_crop, cut
from ..visual.figures import feature_maps_sheet
from .probe import ridge_probe

MIN_VECTORS = 8


@dataclass
class HealthCheck:
    """Return values for the log by `HealthCheck(...)(method, step)`, and warn where they indicate collapse.

    train, held_out: labelled images on which the probe is fitted and scored; no probe where one of them is None.
    images: those whose embeddings are measured; spaces with fewer than MIN_VECTORS vectors are left out.
    """

    train: SegmentationData | None
    held_out: SegmentationData | None
    images: SegmentationData
    image_size: int
    base_size: int
    warn: Callable[[str], None] = print
    max_images: int = 32

    best_probe: float = 0.0
    crops: dict[int, tuple] = field(default_factory=dict)  # all checks use the same images

    def __call__(self, method: Method, step: int, logged: dict[str, float] | None = None) -> dict[str, float]:
        """Return the measured values. logged: the values that the step itself logs, such as its gradient norm."""
        pixels = self._load(self.images)[0]
        row = {}
        for space, vectors in embedding_spaces(method, pixels).items():
            if len(vectors) < MIN_VECTORS:
                continue
            row[f"effective_rank_{space}"] = effective_rank(vectors)
            row[f"spread_{space}"] = spread(vectors)
        if self.train is not None and self.held_out is not None:
            probe = self._probe(method)
            if probe is not None:
                row["probe_mean_iou"] = probe
        if step == 0:  # nothing is trained: random features are neither collapsed nor worse than before
            return row
        for sentence in warnings_of(row | (logged or {}), self.best_probe):
            self.warn(f"step {step}: {sentence}")
        self.best_probe = max(self.best_probe, row.get("probe_mean_iou", 0.0))
        return row

    def _load(self, data: SegmentationData) -> tuple[Tensor, Tensor | None]:
        if id(data) not in self.crops:
            self.crops[id(data)] = central_crops(data, self.image_size, self.base_size, self.max_images)
        return self.crops[id(data)]

    def _probe(self, method: Method) -> float | None:
        parts = [self._load(data) for data in (self.train, self.held_out)]
        maps = [features(method, pixels) for pixels, _ in parts]
        labels = [labels_at(mask, maps[i].shape[-2:]) for i, (_, mask) in enumerate(parts)]
        x = [m.flatten(2).transpose(1, 2) for m in maps]  # (N, h*w, D)
        return ridge_probe(x[0], labels[0], x[1], labels[1], self.train.num_classes)


def central_crops(data: SegmentationData, size: int, base: int, limit: int) -> tuple[Tensor, Tensor | None]:
    """Return center crops (N, 3, size, size) and masks (N, size, size) or None of up to `limit` images, evenly spaced over the data."""
    indices = sorted({round(i) for i in np.linspace(0, len(data) - 1, min(limit, len(data)))})
    cuts = [cut(s, central_crop(s.image.shape[1::-1], size, base), size) for s in map(data.read, indices)]
    masks = None if cuts[0][1] is None else torch.stack([mask for _, mask in cuts])
    return torch.stack([image for image, _ in cuts]), masks


@torch.no_grad()
def draw_features(method: Method, data: SegmentationData, out: Path, count: int = 6) -> None:
    """Draw features.png: central squares of images at the base size, masks, and the last feature map that is trained, as colors (PCA)."""
    method.eval()
    network = method.network
    pixels, masks = central_crops(data, network.config.base_size or network.config.image_size, network.config.base_size, count)
    images = [displayed(image.permute(1, 2, 0).numpy()) for image in pixels]
    masks = [None] * len(images) if masks is None else list(masks.numpy())
    decodes = method.trains and next(network.decoder.parameters()).requires_grad  # without a gradient it was frozen
    maps = features(method, pixels, network.decoder if decodes else None)
    feature_maps_sheet(images, masks, maps, out / "features.png", data.classes)


def features(method: Method, pixels: Tensor, decoder: nn.Module | None = None) -> Tensor:
    """Return the last feature map (N, D, h, w) of the backbone, or of a decoder behind it, on the CPU.

    pixels: images (N, 3, H, W) with values in [0, 255].
    """
    device, maps = method.image_mean.device, []
    for chunk in pixels.split(8):
        stages = method.network.backbone(method.normalize(chunk.to(device))).feature_maps
        maps.append((stages[-1] if decoder is None else decoder(list(stages))).float().cpu())
    return torch.cat(maps)


def embedding_spaces(method: Method, pixels: Tensor) -> dict[str, Tensor]:
    """Return unit vectors (N, D) of images (N, 3, H, W) with values in [0, 255], for each embedding space of the method."""
    device = method.image_mean.device
    spaces: dict[str, list[Tensor]] = {}
    for chunk in pixels.split(8):
        for name, vectors in method.embeddings(chunk.to(device)).items():
            spaces.setdefault(name, []).append(F.normalize(vectors.float().flatten(0, -2), dim=-1).cpu())
    return {name: torch.cat(parts) for name, parts in spaces.items()}


def effective_rank(vectors: Tensor) -> float:
    """Return exp of the entropy of the normalized singular values (Roy & Vetterli, 2007): 1 = a line, D = all directions equal."""
    vectors = vectors[:: max(1, len(vectors) // 2048)]
    values = torch.linalg.svdvals(vectors - vectors.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def spread(vectors: Tensor) -> float:
    """Return the mean standard deviation of a dimension of unit vectors, times sqrt(D): 0 = all equal, 1 = uniform on the sphere."""
    return float(vectors.std(0).mean() * vectors.shape[1] ** 0.5)


def warnings_of(row: dict[str, float], best_probe: float = 0.0) -> list[str]:
    """Return warnings about collapse and stalled training. best_probe: the highest linear-probe mean IoU of earlier checks."""
    warnings = []
    probe, norm = row.get("probe_mean_iou", best_probe), row.get("grad_norm", 1.0)
    if probe < 0.8 * best_probe and best_probe - probe > 0.02:
        warnings.append(
            f"the linear probe fell to {probe:.3f} from {best_probe:.3f}: the features get worse for segmentation. "
            "Use an earlier checkpoint, or change the weights of the losses."
        )
    if norm < 1e-6:
        warnings.append(f"the gradient norm is {norm:.1e}: training has stalled. Raise the temperature, or check that the labels vary.")
    elif norm > 1e3:
        warnings.append(f"the gradient norm is {norm:.1e}: training diverges. Lower the learning rate.")
    for key, value in row.items():
        space = key.rsplit("_", 1)[-1]
        if key.startswith("effective_rank_") and value < 2:
            warnings.append(
                f"the {space} embeddings have effective rank {value:.1f}: they collapse to a line. "
                "Lower the learning rate, raise the batch size, or use another loss."
            )
        elif key.startswith("spread_") and value < 0.05:
            warnings.append(
                f"the {space} embeddings are nearly equal (spread {value:.3f} of 1): they collapse to a point. "
                "Check that the images differ and that the loss has negatives."
            )
    return warnings
