"""The fine-tuning losses by name. To add one: a function that gives its terms, and a line in FINETUNING_LOSSES."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from torch import Tensor

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
from ..losses.affinity import IGNORE_MODES


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


def finetuning_loss(name: str) -> FinetuningLoss:
    """The row of a name; ValueError with the near names for an unknown one."""
    if name not in FINETUNING_LOSSES:
        near = difflib.get_close_matches(name, FINETUNING_LOSSES, n=3, cutoff=0.4)
        raise ValueError(f"unknown --loss {name!r}; near: {', '.join(near) or 'none'}; all: {', '.join(FINETUNING_LOSSES)}")
    return FINETUNING_LOSSES[name]


def _option(text: str):
    return field(default=None, metadata={"help": text})


@dataclass(frozen=True)
class LossOptions:
    """The fine-tuning loss, and the options of some; None stands for the loss's own default."""

    loss: str = field(default="ce", metadata={"help": "what to minimise; see --list-losses"})
    affinity_edge: float | None = _option("affinity: weight of the pairs with an edge, default 1")
    affinity_same: float | None = _option("affinity: weight of the pairs without one, default 1")
    affinity_margin: float | None = _option("affinity: divergence beyond which two classes are far enough apart, default 3")
    affinity_ignore: str | None = _option("affinity: pair (default) or released, which also drops pairs whose opposite pixel is missing")
    rmi_lam: float | None = _option("rmi: share of the binary cross-entropy, the rest is mutual information's; default 0.5")
    rmi_radius: int | None = _option("rmi: side of the windows in pooled pixels, default 3")
    rmi_pool: int | None = _option("rmi: side of the pooling in px, default 4")
    dice_weight: float | None = _option("dice: weight beside cross-entropy, default 1")
    ohem_probability: float | None = _option("ohem: pixels with at most this probability of their class are hard, default 0.7")
    ohem_share: float | None = _option("ohem: share of the labelled pixels that counts at least, default 1/16")

    def __post_init__(self):
        reads = finetuning_loss(self.loss).options
        for name in self.given:
            if name not in reads:
                readers = [other for other, row in FINETUNING_LOSSES.items() if name in row.options]
                raise ValueError(f"--loss {self.loss} does not read {_flag(name)}; leave it out, or choose --loss {' or '.join(readers)}")
        self._check(("affinity_edge", "affinity_same", "dice_weight"), lambda x: 0 <= x < float("inf"), "at least 0 and finite")
        self._check(("affinity_margin",), lambda x: 0 < x < float("inf"), "above 0 and finite")
        self._check(("affinity_ignore",), lambda x: x in IGNORE_MODES, f"one of {', '.join(IGNORE_MODES)}")
        self._check(("rmi_lam",), lambda x: 0 <= x <= 1, "in 0..1")
        self._check(("rmi_radius", "rmi_pool"), lambda x: x >= 1, "at least 1")
        self._check(("ohem_probability", "ohem_share"), lambda x: 0 < x <= 1, "above 0 and at most 1")

    def _check(self, names: tuple[str, ...], good: Callable[[object], bool], wanted: str) -> None:
        for name in names:
            if name in self.given and not good(self.given[name]):
                raise ValueError(f"{_flag(name)} is {self.given[name]}; it must be {wanted}")

    @property
    def given(self) -> dict:
        """The options that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:] if getattr(self, f.name) is not None}

    def terms(self, predicted: Predicted) -> tuple[Terms, dict[str, Tensor]]:
        """The terms beside cross-entropy, and what else is worth logging."""
        given = {name.split("_", 1)[1]: value for name, value in self.given.items()}
        return finetuning_loss(self.loss).terms(predicted, **given)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
