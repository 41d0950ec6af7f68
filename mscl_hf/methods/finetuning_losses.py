"""The fine-tuning losses by name. To add one: a function that gives its terms, and a line in FINETUNING_LOSSES."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..config import FinetuningLossConfig
from ..losses import (
    adaptive_affinity,
    affinity,
    affinity_decay,
    dice_loss,
    hard_pixel_cross_entropy,
    labels_at,
    one_versus_rest,
    region_mutual_information,
)
from ..messages import flag


class Predicted(NamedTuple):
    """What a loss sees of a batch: logits (B, K, h, w) of the network, the same at the labels' size (B, K, H, W), labels (B, H, W) with
    255 = ignored, the share of training done, and the learnt logits (2, K, S) of the window sizes."""

    logits: Tensor
    full: Tensor
    labels: Tensor
    progress: float
    size_logits: Tensor | None


# The terms of a loss by name, each a weight and a value; the loss is their sum.
Terms = dict[str, tuple[float, Tensor]]


class FinetuningLoss(NamedTuple):
    """A row of `--list-losses`. terms(predicted, **options) -> Terms and what else is worth logging; options: the flags that it reads."""

    title: str
    paper: str
    year: int | None
    adds: str  # to the state of a run
    terms: Callable[..., tuple[Terms, dict[str, Tensor]]]
    options: tuple[str, ...] = ()
    cross_entropy: bool = True  # is plain cross-entropy one of its terms?
    sigmoid: bool = False  # is each class told from all others for itself?
    learns_sizes: bool = False


def _nothing(x: Predicted) -> tuple[Terms, dict]:
    return {}, {}


def _affinity(x: Predicted, edge: float = 1.0, same: float = 1.0, margin: float = 3.0, ignore: str = "pair") -> tuple[Terms, dict]:
    labels = labels_at(x.labels, x.logits.shape[-2:]).view(len(x.labels), *x.logits.shape[-2:])
    if x.size_logits is None:
        name, found = "loss_affinity", affinity(x.logits, labels, margin=margin, ignore_mode=ignore)
    else:
        name, found = "loss_aaf", adaptive_affinity(x.logits, labels, x.size_logits, margin=margin, ignore_mode=ignore)
    return {name: (affinity_decay(x.progress), edge * found.edge + same * found.same)}, {}


def _dice(x: Predicted, weight: float = 1.0) -> tuple[Terms, dict]:
    return {"loss_dice": (weight, dice_loss(x.full, x.labels))}, {}


def _mutual_information(x: Predicted, lam: float = 0.5, radius: int = 3, pool: int = 4) -> tuple[Terms, dict]:
    found = region_mutual_information(x.full.sigmoid(), x.labels, radius, pool=pool)
    terms = {"loss_bce": (lam, one_versus_rest(x.full, x.labels)), "loss_rmi": (1 - lam, found.loss)}
    return terms, {"rmi_retries": found.loss.new_tensor(found.retries)}


def _hard_pixels(x: Predicted, probability: float = 0.7, share: float = 1 / 16) -> tuple[Terms, dict]:
    return {"loss_ohem": (1.0, hard_pixel_cross_entropy(x.full, x.labels, probability, share))}, {}


AFFINITY_OPTIONS = ("affinity_edge", "affinity_same", "affinity_margin", "affinity_ignore")
AFFINITY_PAPER = "Ke et al., ECCV, arXiv:1803.10335"
FINETUNING_LOSSES: dict[str, FinetuningLoss] = {
    "ce": FinetuningLoss("cross-entropy", "-", None, "-", _nothing),
    "ce+affinity": FinetuningLoss("and affinity of 3x3 neighbours", AFFINITY_PAPER, 2018, "-", _affinity, AFFINITY_OPTIONS),
    "ce+aaf": FinetuningLoss(
        "and adaptive affinity fields", AFFINITY_PAPER, 2018, "weights of 3 sizes a class", _affinity, AFFINITY_OPTIONS, learns_sizes=True
    ),
    "bce+rmi": FinetuningLoss(
        "one class against the rest, and region mutual information", "Zhao et al., NeurIPS, arXiv:1910.12037", 2019, "-",
        _mutual_information, ("rmi_lam", "rmi_radius", "rmi_pool"), cross_entropy=False, sigmoid=True,
    ),
    "ce+dice": FinetuningLoss("and Dice", "Milletari et al., 3DV, arXiv:1606.04797", 2016, "-", _dice, ("dice_weight",)),
    "ohem": FinetuningLoss(
        "cross-entropy of the hard pixels", "Shrivastava et al., CVPR, arXiv:1604.03540", 2016, "-", _hard_pixels,
        ("ohem_probability", "ohem_share"), cross_entropy=False,
    ),
}  # fmt: skip


def check_options(loss: FinetuningLossConfig) -> None:
    """Raise ValueError for an option that the loss does not read."""
    for name in loss.given:
        if name not in FINETUNING_LOSSES[loss.loss].options:
            readers = [other for other, row in FINETUNING_LOSSES.items() if name in row.options]
            raise ValueError(
                f"{flag(name)} is given and --loss is {loss.loss}, which does not read it. Leave it out, or give --loss {' or '.join(readers)}."
            )


def loss_terms(loss: FinetuningLossConfig, predicted: Predicted) -> tuple[Terms, dict[str, Tensor]]:
    """The terms of a loss beside cross-entropy, and what else is worth logging."""
    options = {name.split("_", 1)[1]: value for name, value in loss.given.items()}
    return FINETUNING_LOSSES[loss.loss].terms(predicted, **options)
