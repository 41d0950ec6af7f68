"""Checks of semi-supervised fine-tuning: the teacher's labels of unlabelled images, in numbers, warnings and a picture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..data.dataset import SegmentationData
from ..data.pixels import displayed
from ..data.splits import first_images
from ..data.training_data import TrainingData
from ..messages import first_three
from ..methods import SemiSupervisedTraining
from ..methods.semi_supervised import Targets
from ..visual.pseudo_labels import pseudo_label_sheet
from .health import central_crops

HARDLY_ANY, NEARLY_ALL = 0.01, 0.999  # shares of the pixels that are kept
NOT_RARE = 0.001  # smallest share of a class in the masks for which its absence is reported
ABSENT = 3  # checks in a row without a confident pixel of a class, after which it is reported
WITHOUT_RISE = 3  # evaluations
CHECKED_IMAGES = 32


@dataclass
class PseudoLabelCheck:
    """Return values for the log by `PseudoLabelCheck(...)(method, step, row)`, and warn of labels that cannot help, once each.

    images: unlabelled ones, of which CHECKED_IMAGES are predicted. shares: of the classes in the masks, by name.
    """

    images: SegmentationData
    shares: dict[str, float]
    image_size: int
    base_size: int
    warn: Callable[[str], None] = print

    pixels: Tensor | None = None  # all checks use the same images
    scores: list[float] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)  # by class: checks in a row without a confident pixel
    reported: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: TrainingData, network: PreTrainedConfig, warn: Callable[[str], None]) -> "PseudoLabelCheck":
        """Return the check of the unlabelled images of a run. network: its configuration."""
        labelled = data.labelled
        shares = labelled.labels.pixels / max(1, labelled.labels.pixels.sum())
        images = first_images(data.unlabelled, CHECKED_IMAGES)
        return cls(images, dict(zip(labelled.classes, shares.tolist())), network.image_size, network.base_size, warn)

    def __call__(self, method: SemiSupervisedTraining, step: int, row: dict) -> dict[str, float]:
        if self.pixels is None:
            self.pixels = central_crops(self.images, self.image_size, self.base_size, CHECKED_IMAGES)[0]
        targets = predicted(method, self.pixels)
        kept = method.is_kept(targets)
        counts, share = np.bincount(targets.labels[kept].numpy(), minlength=len(self.shares)), float(kept.float().mean())
        for sentence in self._warnings(share, counts, method.method.confidence_threshold):
            self.warn(f"step {step}: {sentence}")
        return {"pseudo_label_share": share, "pseudo_label_classes": int((counts > 0).sum())}

    def _warnings(self, share: float, counts: np.ndarray, threshold: float) -> list[str]:
        """Return new warnings. share: of confident pixels; counts (K,): confident pixels of each class."""
        reach = f"{share:.1%} of the unlabelled pixels reach --confidence-threshold {threshold:g}"
        if share < HARDLY_ANY:
            advice = "Lower it, or start from a model that was fine-tuned for longer."
            return self._new("few", f"{reach}, so these images hardly affect training. {advice}")
        excludes = f"{reach}: the threshold excludes hardly a pixel. Raise it, or give 0."
        sentences = self._new("all", excludes) if share > NEARLY_ALL and threshold > 0 else []
        self.absent = {name: 0 if count else self.absent.get(name, 0) + 1 for name, count in zip(self.shares, counts)}
        missing = [name for name, times in self.absent.items() if times >= ABSENT and self.shares[name] > NOT_RARE]
        if missing := [name for name in missing if f"class {name}" not in self.reported]:
            self.reported |= {f"class {name}" for name in missing}
            which = f"{len(missing)} of {len(self.shares)} classes ({first_three(missing)})"
            advice = "Training on the others may lower their scores. Lower --confidence-threshold, or give more masks of these classes."
            sentences.append(f"in {ABSENT} checks in a row, the teacher labelled no pixel confidently as one of {which}. {advice}")
        return sentences

    def _new(self, state: str, sentence: str) -> list[str]:
        """Return the sentence as a list, which is empty if this state was reported before."""
        if state in self.reported:
            return []
        self.reported.add(state)
        return [sentence]

    def add_score(self, mean_iou: float) -> None:
        """Add the teacher's mean IoU on held-out masks; warn where it does not rise any more."""
        self.scores.append(mean_iou)
        earlier = self.scores[:-WITHOUT_RISE]
        if earlier and max(self.scores[-WITHOUT_RISE:]) <= max(earlier) == earlier[-1]:  # once for each highest value
            self.warn(
                f"the teacher's mean IoU on the held-out masks has not risen for {WITHOUT_RISE} evaluations (highest: {max(earlier):.4f}). "
                "Compare with a run of as many steps without --semi-supervised."
            )


@torch.no_grad()
def predicted(method: SemiSupervisedTraining, pixels: Tensor) -> Targets:
    """Return what the teacher predicts for images (N, 3, H, W) with values in [0, 255], on the CPU and without probabilities."""
    device, parts = method.image_mean.device, []
    for chunk in pixels.split(8):
        chunk = chunk.to(device)
        parts.append(method.targets(chunk, torch.ones_like(chunk[:, 0], dtype=torch.bool))[:3])
    return Targets(*(torch.cat(values).cpu() for values in zip(*parts)))


def draw_pseudo_labels(
    method: SemiSupervisedTraining, images: SegmentationData, classes: tuple[str, ...], out: Path, count: int = 8
) -> None:
    """Draw pseudo_labels.png: central squares of unlabelled images, the labels of the teacher where it is confident, and its confidence."""
    config = method.network.config
    pixels = central_crops(images, config.base_size or config.image_size, config.base_size, count)[0]
    targets = predicted(method, pixels)
    labels = torch.where(method.is_kept(targets), targets.labels, 255)
    shown = [displayed(image.permute(1, 2, 0).numpy()) for image in pixels]
    pseudo_label_sheet(shown, labels.numpy(), targets.confidence.numpy(), classes, out / "pseudo_labels.png")
