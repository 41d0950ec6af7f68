"""Is pre-training going well? A linear probe on held-out masks, and how many dimensions the embeddings really use."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import SegmentationData
from ..losses import labels_at
from ..methods.base import Method
from ..transforms.crops import central_crop, cut
from .probe import ridge_probe

FEW = 8


@dataclass
class HealthCheck:
    """`HealthCheck(...)(method, step)` -> numbers for the log; a warning in words when they look like collapse.

    train: labelled images on which the probe is fitted; held_out: those on which it is scored (either may be None: no probe).
    images: those whose embeddings are measured; fewer than `FEW` vectors of a space say nothing and are left out.
    """

    train: SegmentationData | None
    held_out: SegmentationData | None
    images: SegmentationData
    image_size: int
    base_size: int
    warn: callable = print
    max_images: int = 32

    best_probe: float = 0.0
    crops: dict[int, tuple] = field(default_factory=dict)  # what was read once: the same images serve all checks

    def __call__(self, method: Method, step: int, trained: dict[str, float] | None = None) -> dict[str, float]:
        """trained: what the step itself logged, its gradient norm among it."""
        pixels = self._load(self.images)[0]
        row = {}
        for space, vectors in embedding_spaces(method, pixels).items():
            if len(vectors) < FEW:
                continue
            row[f"effective_rank_{space}"] = effective_rank(vectors)
            row[f"spread_{space}"] = spread(vectors)
        if self.train is not None and self.held_out is not None:
            probe = self._probe(method)
            if probe is not None:
                row["probe_mean_iou"] = probe
        for sentence in complaints(row | (trained or {}), self.best_probe):
            self.warn(f"step {step}: {sentence}")
        self.best_probe = max(self.best_probe, row.get("probe_mean_iou", 0.0))
        return row

    def _load(self, data: SegmentationData) -> tuple[Tensor, Tensor | None]:
        if id(data) not in self.crops:
            self.crops[id(data)] = _load(data, self.image_size, self.base_size, self.max_images)
        return self.crops[id(data)]

    def _probe(self, method: Method) -> float | None:
        parts = [self._load(data) for data in (self.train, self.held_out)]
        maps = [features(method, pixels) for pixels, _ in parts]
        labels = [labels_at(mask, maps[i].shape[-2:]) for i, (_, mask) in enumerate(parts)]
        x = [m.flatten(2).transpose(1, 2) for m in maps]  # (N, h*w, D)
        return ridge_probe(x[0], labels[0], x[1], labels[1], self.train.num_classes)


def _load(data: SegmentationData, size: int, base: int, limit: int) -> tuple[Tensor, Tensor | None]:
    """Up to `limit` images, evenly spaced over the data: centre crops (n, 3, size, size), masks (n, size, size) or None."""
    places = sorted({round(i) for i in np.linspace(0, len(data) - 1, min(limit, len(data)))})
    samples = [data.read(i) for i in places]
    cuts = [cut(s, central_crop(s.image.shape[1::-1], size, base), size) for s in samples]
    masks = None if cuts[0][1] is None else torch.stack([mask for _, mask in cuts])
    return torch.stack([image for image, _ in cuts]), masks


def features(method: Method, pixels: Tensor) -> Tensor:
    """Last backbone map (n, D, h, w) of images in levels of 0 to 255, on the CPU, in chunks of 8."""
    device = method.image_mean.device
    maps = [method.network.backbone(method.normalize(chunk.to(device))).feature_maps[-1] for chunk in pixels.split(8)]
    return torch.cat(maps).float().cpu()


def embedding_spaces(method: Method, pixels: Tensor) -> dict[str, Tensor]:
    """Unit vectors (n, D) by space, those that the method names."""
    device = method.image_mean.device
    spaces: dict[str, list[Tensor]] = {}
    for chunk in pixels.split(8):
        for name, vectors in method.embeddings(chunk.to(device)).items():
            spaces.setdefault(name, []).append(F.normalize(vectors.float().flatten(0, -2), dim=-1).cpu())
    return {name: torch.cat(parts) for name, parts in spaces.items()}


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli, 2007): 1 = a line, D = all directions alike."""
    values = torch.linalg.svdvals(_some(vectors) - _some(vectors).mean(0))
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def spread(vectors: Tensor) -> float:
    """Mean standard deviation of a dimension of unit vectors, times sqrt(D): 0 = all alike, 1 = all over the sphere."""
    return float(vectors.std(0).mean() * vectors.shape[1] ** 0.5)


def _some(vectors: Tensor, limit: int = 2048) -> Tensor:
    return vectors[:: max(1, len(vectors) // limit)]


def complaints(row: dict[str, float], best_probe: float = 0.0) -> list[str]:
    """What looks like collapse or stalling, in words. best_probe: the highest linear-probe mean IoU of earlier checks."""
    found = []
    probe, norm = row.get("probe_mean_iou", best_probe), row.get("grad_norm", 1.0)
    if probe < 0.8 * best_probe and best_probe - probe > 0.02:
        found.append(
            f"the linear probe fell to {probe:.3f} from {best_probe:.3f}: the features get worse for segmentation while the loss falls; "
            "stop at an earlier checkpoint, or change the losses' weights"
        )
    if norm < 1e-6:
        found.append(f"the gradient norm is {norm:.1e}: nothing is learnt any more; raise the temperature, or check that the labels vary")
    elif norm > 1e3:
        found.append(f"the gradient norm is {norm:.1e}: training is about to diverge; lower the learning rate")
    for key, value in row.items():
        space = key.rsplit("_", 1)[-1]
        if key.startswith("effective_rank_") and value < 2:
            found.append(
                f"the {space} embeddings use {value:.1f} dimensions: they collapse onto a line; "
                "lower the learning rate, raise the batch size, or take another loss"
            )
        elif key.startswith("spread_") and value < 0.05:
            found.append(
                f"the {space} embeddings are nearly all alike (spread {value:.3f} of 1): collapse; "
                "check that the images differ and that the loss has negatives"
            )
    return found
