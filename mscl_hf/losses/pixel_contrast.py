"""Pixel contrast with labels: a pixel is pulled to the pixels of its class and pushed from the others.

L_p of the 2025 paper is the within-image loss of Zhao et al., ICCV 2021.
Letters: G bags of pixels, N anchors and M keys in a bag, E embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import gather_rows, mean_count, share_of_mean
from .labels import IGNORE
from .precision import full_precision, raised
from .streamed import NOTHING, Mask, Term, differentiated, logsumexp, streamed_sum

SCOPES = ("within", "cross", "batch")
DENOMINATORS = ("all", "neg")
REDUCTIONS = ("out", "in")
ANCHOR_WEIGHTS = ("pixel", "class")


class PixelContrast(NamedTuple):
    """loss: scalar with graph. floor: scalar, which the loss cannot go below: the same mean of the log of the number of positives with
    denominator "all" and reduce "out", else zero. loss - floor is what can be learnt."""

    loss: Tensor
    floor: Tensor


@full_precision
def pixel_contrast(
    anchors: Tensor,
    keys: Tensor,
    labels: Tensor,
    key_labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    scope: str = "within",
    denominator: str = "all",
    reduce: str = "out",
    anchor_weight: str = "pixel",
    exclude_classes: tuple[int, ...] = (),
    partner: Tensor | None = None,
) -> PixelContrast:
    """L_p = mean over images of mean_p [ log sum_k exp(s_pk) - (1/n_p) sum_{q in P(p)} s_pq ],  s = <z_p, z_k>/t.

    anchors (B, N, E) of the images, keys (B, M, E) of the enhanced copies, unit length; labels (B, N) and key_labels (B, M; the same
    if None) with 255 = ignored: such pixels are no anchors, no positives and no part of the denominator.
    scope: "within" the own copy; "cross" adds the same-class pixels of another image's copy (partner (B,), a permutation; default: the
    next image); "batch" all copies of the batch, over all processes, are one bag.
    denominator: "all" keys as printed, or "neg": each positive against the keys of other classes (as Zhao et al. released).
    reduce: "out" averages the log over positives, "in" takes the log of the sum over positives (SupCon's two forms).
    anchor_weight: "pixel" = mean over anchors, "class" = mean over classes of the mean over their anchors.
    """
    _check(scope, denominator, reduce, anchor_weight)
    labels = labels.long()
    key_labels = labels if key_labels is None else key_labels.long()
    own = keys.shape[1] if scope == "cross" else None  # keys of the own copy come first; in "cross" those of the partner follow
    anchors, keys, labels, key_labels = _bags(anchors, keys, labels, key_labels, scope, partner)
    means, counts = _class_means(raised(keys), key_labels)
    positives = counts.gather(1, labels)
    weight = anchor_weights(labels, positives, exclude_classes, anchor_weight, scope == "batch")

    def total(term: Term) -> Tensor:
        return streamed_sum(term, anchors, keys, temperature, weight, torch.where(key_labels == IGNORE, NOTHING, 0.0))

    def same(rows: slice) -> Tensor:
        return labels[:, rows, None] == key_labels[:, None, :]

    def other(rows: slice) -> Tensor:  # negatives from the second image hurt (Zhao et al.): of it only the positives stay
        return ~same(rows) & (torch.arange(keys.shape[1], device=keys.device) < (own or keys.shape[1]))

    if denominator == "neg":  # no bare log-sum-exp, and so no product in bfloat16
        anchors, keys = raised(anchors), raised(keys)
        loss = total(differentiated(against_negatives(same, other, positives)))
        return PixelContrast(loss, torch.zeros_like(loss.detach()))
    everything = total(logsumexp((lambda rows: same(rows) | other(rows)) if own else None))
    if reduce == "in":
        loss = everything - total(logsumexp(same))
        return PixelContrast(loss, torch.zeros_like(loss.detach()))
    # The mean similarity to the positives is that to the mean of the class: no matrix is needed.
    to_mean = (raised(anchors) * means.gather(1, labels[..., None].expand_as(anchors))).sum(2) / temperature
    # Every positive stands in the denominator beside the one that it is compared with: the loss cannot go below the log of their number.
    return PixelContrast(everything - (weight * to_mean).sum(), (weight * positives.clamp(min=1).log()).sum())


def _bags(anchors, keys, labels, key_labels, scope: str, partner: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is contrasted with what: the images' bags, their keys longer by a partner's, or one bag of all keys of all processes."""
    if scope == "cross":
        partner = torch.arange(len(keys), device=keys.device).roll(1) if partner is None else partner
        keys, key_labels = torch.cat([keys, keys[partner]], 1), torch.cat([key_labels, key_labels[partner]], 1)
    elif scope == "batch":
        keys, key_labels = (gather_rows(x)[0].flatten(0, 1)[None] for x in (keys, key_labels))
        anchors, labels = anchors.flatten(0, 1)[None], labels.flatten(0, 1)[None]
    return anchors, keys, labels, key_labels


def anchor_weights(labels: Tensor, positives: Tensor, excluded: tuple[int, ...], anchor_weight: str, shared: bool) -> Tensor:
    """Each anchor's weight (G, N) in the loss; zero for ignored and excluded pixels."""
    # An anchor without positive can only occur when the two views have label maps of their own.
    counts = (labels != IGNORE) & (positives > 0)
    for label in excluded:
        counts = counts & (labels != label)
    weight = counts.to(positives.dtype)
    if anchor_weight == "class":
        weight = weight * _one_over_class_size(labels, weight, shared)
    return share_of_mean(weight, shared)


def _check(scope: str, denominator: str, reduce: str, anchor_weight: str) -> None:
    for what, value, known in (
        ("scope", scope, SCOPES),
        ("denominator", denominator, DENOMINATORS),
        ("reduce", reduce, REDUCTIONS),
        ("anchor_weight", anchor_weight, ANCHOR_WEIGHTS),
    ):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r} of the pixel loss; choose one of {', '.join(known)}")


def _class_means(keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean key (G, 256, D) and number of keys (G, 256) of each class of a bag; both zero for the ignored label."""
    places = key_labels[..., None].expand_as(keys)
    sums = keys.new_zeros(len(keys), 256, keys.shape[2]).scatter_add(1, places, keys)
    counts = keys.new_zeros(len(keys), 256).scatter_add_(1, key_labels, torch.ones_like(key_labels, dtype=keys.dtype))
    counts[:, IGNORE] = 0
    return sums / counts.clamp(min=1)[..., None] * (counts > 0)[..., None], counts


def against_negatives(same: Mask, other: Mask, positives: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """mean over positives q of log(1 + sum over negatives k of exp(s_pk - s_pq)), for the rows of a block."""

    def function(scores: Tensor, rows: slice) -> Tensor:
        negatives = torch.where(other(rows), scores, NOTHING).logsumexp(2, keepdim=True)
        each = F.softplus(negatives - scores).masked_fill(~same(rows), 0)
        return each.sum(2) / positives[:, rows].clamp(min=1)

    return function


def _one_over_class_size(labels: Tensor, weight: Tensor, shared: bool) -> Tensor:
    """1 / number of anchors of the same class in the bag, up to a factor, per anchor (G, N)."""
    sizes = weight.new_zeros(len(labels), 256).scatter_add_(1, labels.long(), weight)
    sizes = mean_count(sizes) if shared else sizes
    return 1 / torch.where(sizes > 0, sizes, 1).gather(1, labels.long())
