"""The multi-scale loss L = w_g L_g + w_l L_l + w_p L_p: which terms, their weights and their variants."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from .fields import Section, option

TERMS = ("global", "local", "pixel")
# The terms that read an option whose name does not begin with its only term.
READERS = {
    "negatives": ("global",), "queue_size": ("global",), "denominator": ("global", "local"), "label_downsampling": ("pixel",),
    "anchor_weight": ("pixel",), "exclude_classes": ("pixel",), "losses": TERMS, "symmetric": TERMS, "loss_precision": TERMS,
}  # fmt: skip
SUBSETS = tuple("+".join(subset) for count in (1, 2, 3) for subset in combinations(TERMS, count))


def parse_losses(text: str) -> tuple[str, ...]:
    """Return ("global", "pixel") for "global+pixel", or "g+p" for short, in the order of TERMS. Raises ValueError for other names."""
    names = [next((term for term in TERMS if part in (term, term[0])), "") for part in text.split("+")]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"--losses is {text!r}; expected one of {', '.join(SUBSETS)}, or g, l, p for short.")
    return tuple(term for term in TERMS if term in names)


@dataclass(frozen=True)
class ContrastConfig(Section):
    """The loss of mscl; zhao reads its pixel options. It contrasts an image with its copy, the second view, whose colors are distorted (the
    paper's "color-enhanced copy"). Sources of the defaults: docs/method.md."""

    losses: str = option("global+local+pixel", "terms of the loss: a sum of global, local and pixel, or g, l, p for short")
    global_weight: float | None = option(None, "weight of the global loss (default: 0.1 beside the pixel loss, else 1)", at_least=0)
    local_weight: float | None = option(None, "weight of the local loss (default: 0.1 beside the pixel loss, else 1)", at_least=0)
    pixel_weight: float = option(1.0, "weight of the pixel loss", at_least=0)
    global_temperature: float = option(0.1, "temperature of the global loss", above=0)
    local_temperature: float = option(0.2, "temperature of the local loss", above=0)
    pixel_temperature: float = option(0.07, "temperature of the pixel loss", above=0)
    negatives: Literal["others", "ntxent"] = option(
        "others", "negatives of the global loss: color-enhanced copies of the other images, or both views as in NT-Xent"
    )
    queue_size: int = option(
        0, "embeddings of earlier batches as further negatives; 0 = none, but in moco, densecl and cp2 scaled to the data set", at_least=0
    )
    local_scope: Literal["batch", "image", "others"] = option(
        "batch", "negatives of the local loss: blocks of the batch, of the same image, or of the other images"
    )
    pixel_scope: Literal["within", "cross", "batch"] | None = option(
        None, "set of keys of the pixel loss: pixels of the same image, of two images, or of the batch "
        "(default: batch; zhao: fixed by its name)"
    )
    pixel_denominator: Literal["all", "neg"] = option("all", "denominator of the pixel loss: all labelled pixels, or other classes only")
    pixel_sample: Literal["all", "random", "class"] = option(
        "all", "pixels to contrast: all, or a random sample of each image (random) or of each class of an image (class)"
    )
    pixel_count: int = option(1024, "pixels of an image (random), or of each class of an image (class)", at_least=1)
    label_downsampling: Literal["center", "majority", "pure"] = option("center", "how masks are reduced to the size of the features")
    pixel_reduction: Literal["out", "in"] = option("out", "pixel loss: mean of the log over positives (out), or log of their sum (in)")
    anchor_weight: Literal["pixel", "class"] = option("pixel", "pixel loss: whether all pixels or all classes have the same weight")
    exclude_classes: list[int] = option([], "class ids without anchors in the pixel loss (default: none)")
    denominator: Literal["all", "literal"] = option(
        "all", "mscl, global and local loss: denominator; literal = without the temperature on the positive, as in the paper"
    )
    symmetric: bool = option(False, "average the loss over both directions")
    loss_precision: Literal["fp32", "bf16"] = option("fp32", "precision of the products of embeddings; bf16 is faster and less exact")

    def __post_init__(self):
        super().__post_init__()
        terms = parse_losses(self.losses)
        object.__setattr__(self, "losses", "+".join(terms))
        for name in ("global_weight", "local_weight"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, 0.1 if "pixel" in terms else 1.0)
        if (self.pixel_denominator, self.pixel_reduction) == ("neg", "in"):
            raise ValueError("--pixel-reduction is in; expected out with --pixel-denominator neg. Leave one of them out.")
        if self.pixel_sample == "all" and self.pixel_count != type(self).pixel_count:
            raise ValueError(f"--pixel-count is {self.pixel_count}; expected --pixel-sample random or class with it. Give one.")
        if self.queue_size and "global" not in terms:
            raise ValueError(f"--queue-size is {self.queue_size}, and --losses {self.losses} has no global loss. Leave one of them out.")
        if (self.negatives, self.denominator) == ("ntxent", "literal"):
            raise ValueError("--negatives is ntxent; expected others with --denominator literal. Leave one of them out.")
        if self.queue_size and (self.negatives, self.denominator, self.symmetric) != ("others", "all", False):
            raise ValueError(f"--queue-size is {self.queue_size}; leave out --negatives, --denominator and --symmetric.")

    def unread(self, terms: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the options that were set and that none of these terms reads, with the terms that do."""
        default = ContrastConfig(losses=self.losses)
        readers = {name: READERS.get(name, (name.split("_")[0],)) for name in vars(self) if getattr(self, name) != getattr(default, name)}
        return {name: others for name, others in readers.items() if not {*others} & {*terms}}

    @property
    def terms(self) -> tuple[str, ...]:
        """Return the terms of the loss, in the order of TERMS."""
        return parse_losses(self.losses)
