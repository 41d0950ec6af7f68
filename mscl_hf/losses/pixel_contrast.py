"""Pixel contrast with labels: a pixel is pulled to the pixels of its class and pushed from the others.

L_p of the 2025 paper is the within-image loss of Zhao et al., ICCV 2021.
Letters: G bags of pixels, N anchors and M keys in a bag, E embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import gather_rows, mean_count
from .labels import IGNORE
from .precision import full_precision
from .streamed import NOTHING, in_blocks, similarity_logsumexp

SCOPES = ("within", "cross", "batch")
DENOMINATORS = ("all", "neg")
REDUCTIONS = ("out", "in")
ANCHOR_WEIGHTS = ("pixel", "class")


class PixelContrast(NamedTuple):
    """loss: scalar with graph. floor: scalar, which the loss cannot go below: the same mean of the log of the number of positives with
    denominator "all" and reduce "out", else zero. loss - floor is what can be learnt."""

    loss: Tensor
    floor: Tensor


class Rule(NamedTuple):
    temperature: float
    denominator: str
    reduce: str
    cross: bool


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
    key_labels = labels if key_labels is None else key_labels
    cross = scope == "cross"
    own = keys.shape[1]  # keys of the own copy come first; in "cross" those of the partner follow
    if cross:
        partner = torch.arange(len(keys), device=keys.device).roll(1) if partner is None else partner
        keys, key_labels = torch.cat([keys, keys[partner]], 1), torch.cat([key_labels, key_labels[partner]], 1)
    elif scope == "batch":
        keys, key_labels = (gather_rows(x)[0].flatten(0, 1)[None] for x in (keys, key_labels))
        anchors, labels = anchors.flatten(0, 1)[None], labels.flatten(0, 1)[None]
    is_anchor = labels != IGNORE
    for excluded in exclude_classes:
        is_anchor = is_anchor & (labels != excluded)
    rule = Rule(temperature, denominator, reduce, cross)
    per_anchor, positives = _rows(anchors, keys, labels, key_labels, own, rule)
    # An anchor without positive can only occur when the two views have label maps of their own.
    weight = (is_anchor & (positives > 0)).to(per_anchor.dtype)  # (G, N)
    shared = scope == "batch"
    if anchor_weight == "class":
        weight = weight * _one_over_class_size(labels, weight, shared)
    # Only there does every positive stand in the denominator beside the one that it is compared with.
    floor = positives.clamp(min=1).log() if denominator == "all" and reduce == "out" else torch.zeros_like(positives)
    return PixelContrast(_mean_over_bags(per_anchor, weight, shared), _mean_over_bags(floor, weight, shared))


def _check(scope: str, denominator: str, reduce: str, anchor_weight: str) -> None:
    for what, value, known in (
        ("scope", scope, SCOPES),
        ("denominator", denominator, DENOMINATORS),
        ("reduce", reduce, REDUCTIONS),
        ("anchor_weight", anchor_weight, ANCHOR_WEIGHTS),
    ):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r} of the pixel loss; choose one of {', '.join(known)}")


def _rows(anchors, keys, labels, key_labels, own: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Loss of each anchor and its number of positives, both (G, N), without a matrix of all similarities."""
    if (rule.denominator, rule.reduce, rule.cross) == ("all", "out", False):
        return _streamed_rows(anchors, keys, labels, key_labels, rule.temperature)
    columns = len(anchors) * keys.shape[1]
    return in_blocks(lambda q, y: _block(q, keys, y, key_labels, own, rule), (anchors, labels), columns, 1)


def _streamed_rows(anchors, keys, labels, key_labels, temperature: float) -> tuple[Tensor, Tensor]:
    """The printed loss without its matrix: the mean similarity to the positives is that to the mean of the class."""
    means, counts = _class_means(keys, key_labels)
    everything = similarity_logsumexp(anchors, keys, temperature, torch.where(key_labels == IGNORE, NOTHING, 0.0))
    own = means.gather(1, labels[..., None].expand(-1, -1, means.shape[2]))
    return everything - (anchors * own).sum(2) / temperature, counts.gather(1, labels)


def _class_means(keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean key (G, 256, D) and number of keys (G, 256) of each class of a bag; both zero for the ignored label."""
    places = key_labels[..., None].expand_as(keys)
    sums = keys.new_zeros(len(keys), 256, keys.shape[2]).scatter_add(1, places, keys)
    counts = keys.new_zeros(len(keys), 256).scatter_add_(1, key_labels, torch.ones_like(key_labels, dtype=keys.dtype))
    counts[:, IGNORE] = 0
    return sums / counts.clamp(min=1)[..., None] * (counts > 0)[..., None], counts


def _block(anchors, keys, labels, key_labels, own: int, rule: Rule) -> tuple[Tensor, Tensor]:
    s = anchors @ keys.transpose(1, 2) / rule.temperature  # (G, n, M)
    valid = (key_labels != IGNORE)[:, None, :]
    same = (labels[:, :, None] == key_labels[:, None, :]) & valid
    allowed = valid.expand_as(same)
    if rule.cross:  # negatives from the second image hurt (Zhao et al.): of it only the positives stay
        allowed = allowed & (same | (torch.arange(s.shape[2], device=s.device) < own))
    count = same.sum(2).to(s.dtype)
    share = same.to(s.dtype) / count.clamp(min=1)[:, :, None]  # 1/n_p on the positives
    if rule.denominator == "neg":
        negatives = torch.where(allowed & ~same, s, NOTHING).logsumexp(2, keepdim=True)
        return (share * F.softplus(negatives - s)).sum(2), count
    everything = torch.where(allowed, s, NOTHING).logsumexp(2)
    if rule.reduce == "in":
        return everything - torch.where(same, s, NOTHING).logsumexp(2), count
    return everything - (share * s).sum(2), count


def _one_over_class_size(labels: Tensor, weight: Tensor, shared: bool) -> Tensor:
    """1 / number of anchors of the same class in the bag, up to a factor, per anchor (G, N)."""
    sizes = weight.new_zeros(len(labels), 256).scatter_add_(1, labels.long(), weight)
    sizes = mean_count(sizes) if shared else sizes
    return 1 / torch.where(sizes > 0, sizes, 1).gather(1, labels.long())


def _mean_over_bags(per_anchor: Tensor, weight: Tensor, shared: bool) -> Tensor:
    """Weighted mean in each bag, then the mean over the bags that have an anchor, over all processes.

    shared: the bag is one over all processes, each of which holds the rows of its own anchors.
    """
    total = mean_count(weight.sum(1)) if shared else weight.sum(1)
    used = (total > 0).to(total.dtype)
    means = torch.where(weight > 0, per_anchor * weight, 0).sum(1) / total.clamp(min=1e-12)
    return (means * used).sum() / mean_count(used.sum()).clamp(min=1e-12)
