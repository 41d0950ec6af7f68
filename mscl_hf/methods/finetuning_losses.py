"""The fine-tuning losses by name. To add one: a function that returns its terms, a row in FINETUNING_LOSSES, and its name in
`FinetuningLossConfig.loss`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import losses
from ..config import FinetuningLossConfig
from ..messages import flag

CLASSES_AT_ONCE = 16  # whose maps at the size of the labels are in memory
BYTES_AT_ONCE = 1 << 26  # of the logits of several images at the size of the labels; a single image may have more


@dataclass(frozen=True)
class Predicted:
    """The input of a loss: logits (B, K, h, w) of the network, labels (B, H, W) with 255 = ignored, fraction_done: of training,
    size_logits (2, K, S): learned weights of the window sizes."""

    logits: Tensor
    labels: Tensor
    fraction_done: float
    size_logits: Tensor | None

    def resized(self, logits: Tensor) -> Tensor:
        """Return logits of some or all classes at the size (H, W) of the labels."""
        return F.interpolate(logits, size=self.labels.shape[-2:], mode="bilinear", align_corners=False)

    def in_parts(self, function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Return function(logits (b, K, H, W), labels (b, H, W)) of some images at a time.

        Only their logits are in memory, instead of those of all images: they are computed again in the backward pass.
        """

        def of_part(logits: Tensor, labels: Tensor) -> Tensor:
            return function(self.resized(logits), labels)

        image_bytes = self.logits.shape[1] * self.labels[0].numel() * self.logits.element_size()
        count = max(1, BYTES_AT_ONCE // image_bytes)
        parts = zip(self.logits.split(count), self.labels.split(count))
        return [checkpoint(of_part, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]


# Terms of a loss by name, each a weight and a value; the loss is their weighted sum.
Terms = dict[str, tuple[float, Tensor]]


class FinetuningLoss(NamedTuple):
    """A row of `--list-losses`. terms(predicted, **options) -> Terms and further values to log; options: names of its options."""

    title: str
    paper: str
    year: int | None
    adds: str  # learned state beside the network
    terms: Callable[..., tuple[Terms, dict[str, Tensor]]] | None  # None: cross-entropy alone, computed by the network
    options: tuple[str, ...] = ()
    cross_entropy: bool = True  # whether plain cross-entropy is one of its terms
    sigmoid: bool = False  # whether the loss uses one sigmoid per class instead of a softmax
    learns_sizes: bool = False  # whether it learns weights of window sizes


def _affinity(x: Predicted, edge: float = 1.0, same: float = 1.0, margin: float = 3.0, ignore: str = "pair") -> tuple[Terms, dict]:
    labels = losses.labels_at(x.labels, x.logits.shape[-2:]).view(len(x.labels), *x.logits.shape[-2:])
    if x.size_logits is None:
        name, means = "loss_affinity", losses.affinity(x.logits, labels, margin=margin, ignore_mode=ignore)
    else:
        name, means = "loss_aaf", losses.adaptive_affinity(x.logits, labels, x.size_logits, margin=margin, ignore_mode=ignore)
    return {name: (losses.affinity_decay(x.fraction_done), edge * means.edge + same * means.same)}, {}


def _dice(x: Predicted, weight: float = 1.0) -> tuple[Terms, dict]:
    return {"loss_dice": (weight, losses.dice_of_sums(sum(x.in_parts(losses.dice_sums))))}, {}


def _mutual_information(x: Predicted, lam: float = 0.5, radius: int = 3, pool: int = 4) -> tuple[Terms, dict]:
    def of_classes(first: int) -> Tensor:
        """Return both terms and the number of retries for some classes, whose maps are computed again in the backward pass."""
        full = x.resized(x.logits[:, first : first + CLASSES_AT_ONCE])
        rmi, retries = losses.region_mutual_information(full.sigmoid(), x.labels, radius, pool=pool, first_class=first)
        return torch.stack([losses.one_versus_rest(full, x.labels, first).to(rmi.dtype), rmi, rmi.new_tensor(retries)])

    groups = range(0, x.logits.shape[1], CLASSES_AT_ONCE)
    bce, rmi, retries = sum(checkpoint(of_classes, first, use_reentrant=False, preserve_rng_state=False) for first in groups)
    return {"loss_bce": (lam, bce), "loss_rmi": (1 - lam, rmi)}, {"rmi_retries": retries.detach()}


def _hard_pixels(x: Predicted, probability: float = 0.7, share: float = 1 / 16) -> tuple[Terms, dict]:
    cross_entropy = torch.cat(x.in_parts(losses.pixel_cross_entropy))
    return {"loss_ohem": (1.0, losses.mean_of_hard_pixels(cross_entropy, x.labels, probability, share))}, {}


AFFINITY_OPTIONS = ("affinity_edge", "affinity_same", "affinity_margin", "affinity_ignore")
AFFINITY_PAPER = "Ke et al., ECCV, arXiv:1803.10335"
FINETUNING_LOSSES: dict[str, FinetuningLoss] = {
    "ce": FinetuningLoss("cross-entropy", "-", None, "-", None),
    "ce+affinity": FinetuningLoss("cross-entropy and affinity of 3x3 neighbors", AFFINITY_PAPER, 2018, "-", _affinity, AFFINITY_OPTIONS),
    "ce+aaf": FinetuningLoss(
        "cross-entropy and adaptive affinity fields", AFFINITY_PAPER, 2018, "weights of 3 window sizes per class",
        _affinity, AFFINITY_OPTIONS, learns_sizes=True,
    ),
    "bce+rmi": FinetuningLoss(
        "one-versus-rest cross-entropy and region mutual information", "Zhao et al., NeurIPS, arXiv:1910.12037", 2019, "-",
        _mutual_information, ("rmi_lam", "rmi_radius", "rmi_pool"), cross_entropy=False, sigmoid=True,
    ),
    "ce+dice": FinetuningLoss("cross-entropy and Dice", "Milletari et al., 3DV, arXiv:1606.04797", 2016, "-", _dice, ("dice_weight",)),
    "ohem": FinetuningLoss(
        "cross-entropy of the hard pixels", "Shrivastava et al., CVPR, arXiv:1604.03540", 2016, "-", _hard_pixels,
        ("ohem_probability", "ohem_share"), cross_entropy=False,
    ),
}  # fmt: skip


def loss_table() -> list[tuple[str, ...]]:
    """Return the rows of `--list-losses`, first the header."""
    rows = [("name", "loss", "paper", "year", "adds", "options")]
    for name, row in FINETUNING_LOSSES.items():
        rows.append((name, row.title, row.paper, str(row.year or "-"), row.adds, " ".join(map(flag, row.options)) or "-"))
    return rows


def check_options(loss: FinetuningLossConfig, class_weights: bool = False) -> None:
    """Raise ValueError for an explicit option that the loss does not read. class_weights: whether the classes have weights."""
    if class_weights and not FINETUNING_LOSSES[loss.loss].cross_entropy:
        use = " or ".join(name for name, row in FINETUNING_LOSSES.items() if row.cross_entropy)
        raise ValueError(f"--class-weights is given, and --loss {loss.loss} does not read it. Leave it out, or use --loss {use}.")
    for name, value in loss.changed().items():
        if name not in ("loss", *FINETUNING_LOSSES[loss.loss].options):
            use = " or ".join(other for other, row in FINETUNING_LOSSES.items() if name in row.options)
            raise ValueError(f"{flag(name)} is {value}, and --loss {loss.loss} does not read it. Leave it out, or use --loss {use}.")


def loss_terms(loss: FinetuningLossConfig, predicted: Predicted) -> tuple[Terms, dict[str, Tensor]]:
    """Return the terms of a loss beside cross-entropy, and further values to log."""
    if FINETUNING_LOSSES[loss.loss].terms is None:
        return {}, {}
    options = {name.split("_", 1)[1]: value for name, value in loss.changed().items() if name != "loss"}
    return FINETUNING_LOSSES[loss.loss].terms(predicted, **options)
