"""L = lambda_g L_g + lambda_l L_l + lambda_p L_p: the three scales together, and their options."""

from dataclasses import dataclass, field, fields
from itertools import combinations

import torch
from torch import Tensor

from .info_nce import DENOMINATORS as PICK_DENOMINATORS
from .info_nce import GLOBAL_NEGATIVES, LOCAL_SCOPES, global_contrast, local_contrast
from .labels import LABEL_DOWN, PIXEL_SAMPLES
from .pixel_contrast import ANCHOR_WEIGHTS, DENOMINATORS, REDUCTIONS, SCOPES, pixel_contrast


def _option(default, text: str):
    return field(default=default, metadata={"help": text})


LOSS_SUBSETS = tuple("+".join(c) for n in (1, 2, 3) for c in combinations("glp", n))


def parse_losses(text: str) -> tuple[str, ...]:
    """ "g+l+p" -> ("g", "l", "p"), in this order whatever the order given; ValueError for anything else."""
    parts = tuple(part for part in "glp" if part in text.split("+"))
    if not parts or "+".join(sorted(text.split("+"))) != "+".join(parts):
        raise ValueError(f"unknown losses {text!r}; choose one of {', '.join(LOSS_SUBSETS)}")
    return parts


@dataclass(frozen=True)
class MultiScaleLoss:
    """The paper's loss as a function of embeddings; fields are its options (defaults and sources: docs/method.md)."""

    losses: str = _option("g+l+p", "which losses: a sum of g, l and p")
    lambda_g: float | None = _option(None, "weight of the global loss; default: 0.1 beside the pixel loss, else 1")
    lambda_l: float | None = _option(None, "weight of the local loss; default: 0.1 beside the pixel loss, else 1")
    lambda_p: float = _option(1.0, "weight of the pixel loss")
    tau_g: float = _option(0.1, "temperature of the global loss")
    tau_l: float = _option(0.2, "temperature of the local loss")
    tau_p: float = _option(0.07, "temperature of the pixel loss")
    negatives: str = _option("others", "of the global loss: others (enhanced copies of other images) or ntxent (both views)")
    queue: int = _option(0, "embeddings of earlier batches as further negatives; 0 = none, and in moco, densecl, cp2 what fits the data")
    local_scope: str = _option("batch", "negatives of the local loss: batch, image or others")
    pixel_scope: str | None = _option(None, "bag of the pixel loss: within, cross or batch; default: batch, or what the method stands for")
    pixel_denominator: str = _option("all", "of the pixel loss: all labelled pixels, or neg = other classes only")
    pixel_sample: str = _option("all", "pixels to contrast: all, random, or class = so many of each")
    pixel_count: int = _option(1024, "how many pixels random (an image) or class (an image and class) takes")
    label_down: str = _option("centre", "labels at feature resolution: centre, majority or pure")
    reduce: str = _option("out", "pixel loss: out = mean of the log over positives, in = log of their sum")
    anchor_weight: str = _option("pixel", "pixel loss: every pixel or every class counts alike")
    exclude_classes: list[int] = field(default_factory=list, metadata={"help": "class ids that are no anchors of the pixel loss"})
    denominator: str = _option("all", "of global and local loss: all, or literal = as misprinted, without the temperature on the positive")
    symmetric: bool = _option(False, "mean of both directions")
    loss_precision: str = _option("fp32", "of the products of embeddings: fp32, or bf16 (faster, noisy near convergence)")

    def __post_init__(self):
        heads = parse_losses(self.losses)
        for name in ("lambda_g", "lambda_l"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, 0.1 if "p" in heads else 1.0)
        for name in ("lambda_g", "lambda_l", "lambda_p"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: a weight must be at least 0")
        for name, known in (
            ("negatives", GLOBAL_NEGATIVES),
            ("local_scope", LOCAL_SCOPES),
            ("pixel_scope", (None, *SCOPES)),
            ("pixel_denominator", DENOMINATORS),
            ("reduce", REDUCTIONS),
            ("anchor_weight", ANCHOR_WEIGHTS),
            ("denominator", PICK_DENOMINATORS),
            ("pixel_sample", PIXEL_SAMPLES),
            ("label_down", LABEL_DOWN),
            ("loss_precision", ("fp32", "bf16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(filter(None, known))}")
        if self.queue < 0 or self.pixel_count < 1:
            raise ValueError(f"queue={self.queue} and pixel_count={self.pixel_count}; wanted at least 0 and 1")
        if self.queue and "g" not in self.heads:
            raise ValueError(f"queue={self.queue} holds embeddings of the global loss, and losses={self.losses} has none; leave one out")
        if self.queue and (self.negatives, self.denominator, self.symmetric) != ("others", "all", False):
            raise ValueError("a queue holds enhanced copies only; leave negatives, denominator and symmetric at their defaults with it")
        for name in ("tau_g", "tau_l", "tau_p"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: a temperature must be positive")

    @classmethod
    def from_options(cls, options: dict) -> "MultiScaleLoss":
        """From a dict that may hold other things too (a config file's, say)."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    @property
    def heads(self) -> tuple[str, ...]:
        return parse_losses(self.losses)

    @property
    def min_batch(self) -> int:
        """Images per batch, over all processes, below which a term has no negatives."""
        heads = self.heads
        needs_others = "g" in heads or ("l" in heads and self.local_scope == "others") or ("p" in heads and self.pixel_scope == "cross")
        return 2 if needs_others else 1

    def __call__(
        self,
        image: dict[str, Tensor],
        enhanced: dict[str, Tensor],
        labels: Tensor | None,
        enhanced_labels: Tensor | None = None,
        past: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """image, enhanced: embeddings by head: g (B, E), l (B, S*S, E), p (B', N, E); labels (B', N) of the image's pixels,
        enhanced_labels of the copy's (the same if None). past (n, E_g): the queue.
        Returns loss, loss_g, loss_l, loss_p, floor_p, excess_p as far as asked for.
        """
        if self.loss_precision == "bf16":
            image, enhanced = ({head: x.bfloat16() for head, x in view.items()} for view in (image, enhanced))
        terms: dict[str, Tensor] = {}
        if "g" in self.heads:
            terms["loss_g"] = global_contrast(
                image["g"], enhanced["g"], self.tau_g, self.negatives, self.denominator, self.symmetric, past
            )
        if "l" in self.heads:
            terms["loss_l"] = local_contrast(
                image["l"], enhanced["l"], self.tau_l, self.local_scope, self.denominator, self.symmetric
            )
        if "p" in self.heads:
            if labels is None:
                raise ValueError("the pixel loss needs labels: give masks, or choose --losses g, l or g+l")
            terms |= self._pixel_terms(image["p"], enhanced["p"], labels, enhanced_labels)
        total = sum(getattr(self, f"lambda_{head}") * terms[f"loss_{head}"] for head in self.heads)
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def _pixel_terms(self, a: Tensor, b: Tensor, labels: Tensor, enhanced_labels: Tensor | None) -> dict[str, Tensor]:
        options = {
            "temperature": self.tau_p,
            "scope": self.pixel_scope or "batch",
            "denominator": self.pixel_denominator,
            "reduce": self.reduce,
            "anchor_weight": self.anchor_weight,
            "exclude_classes": tuple(self.exclude_classes),
        }
        if self.pixel_scope == "cross":
            if len(a) == 1:
                raise ValueError("the pixel loss with scope cross needs 2 labelled images per process, got 1: raise --batch-size")
            options["partner"] = _partners(len(a), a.device)
        enhanced_labels = labels if enhanced_labels is None else enhanced_labels
        result = pixel_contrast(a, b, labels, enhanced_labels, **options)
        loss, floor = result
        if self.symmetric:
            back = pixel_contrast(b, a, enhanced_labels, labels, **options)
            loss, floor = (loss + back.loss) / 2, (floor + back.floor) / 2
        return {"loss_p": loss, "floor_p": floor, "excess_p": (loss - floor).detach()}


def _partners(count: int, device: torch.device) -> Tensor:
    """A random permutation (count,) in one cycle, so that no image is its own partner."""
    order = torch.randperm(count, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))
