"""The fine-tuning loss and its options."""

from dataclasses import dataclass
from typing import Literal

from .fields import Section, option

SHARE = {"above": 0, "at_most": 1}


@dataclass(frozen=True)
class FinetuningLossConfig(Section):
    """The loss, and the options of some losses."""

    loss: Literal["ce", "ce+affinity", "ce+aaf", "bce+rmi", "ce+dice", "ohem"] = option("ce", "loss to minimize; see --list-losses")
    affinity_edge: float | None = option(None, "affinity: weight of pairs across an edge (default: 1)", at_least=0)
    affinity_same: float | None = option(None, "affinity: weight of pairs within a class (default: 1)", at_least=0)
    affinity_margin: float | None = option(None, "affinity: divergence above which pairs across an edge have no loss (default: 3)", above=0)
    affinity_ignore: Literal["pair", "released"] | None = option(
        None, "affinity: pairs to leave out: with an ignored pixel (pair), or also without an opposite pixel, "
        "as in the authors' code (released) (default: pair)"
    )
    rmi_lam: float | None = option(
        None, "rmi: weight of the binary cross-entropy, 1 minus that of the mutual information (default: 0.5)", at_least=0, at_most=1
    )
    rmi_radius: int | None = option(None, "rmi: side of the windows in pooled pixels (default: 3)", at_least=1)
    rmi_pool: int | None = option(None, "rmi: side of the pooling in px (default: 4)", at_least=1)
    dice_weight: float | None = option(None, "dice: weight beside cross-entropy (default: 1)", at_least=0)
    ohem_probability: float | None = option(None, "ohem: pixels are hard up to this probability of their class (default: 0.7)", **SHARE)
    ohem_share: float | None = option(None, "ohem: least share of the labelled pixels in the loss (default: 1/16)", **SHARE)
