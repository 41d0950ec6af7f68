"""Pixel contrast with labels: pull a pixel to the pixels of its class and push it from the others.

L_p of the 2025 paper is the within-image loss of Zhao et al., ICCV 2021, arXiv:2012.06985.
Letters: B images, G sets of keys, N anchors and M keys of a set, E embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, check_choice, without_autocast
from .gather import gather_rows, mean_count, own_rank, weights_of_mean
from .labels import IGNORE_INDEX
from .streamed import MASKED_SCORE, Mask, Term, logsumexp, streamed_sum, with_autograd

SCOPES = ("within", "cross", "batch")
DENOMINATORS = ("all", "neg")
REDUCTIONS = ("out", "in")
ANCHOR_WEIGHTS = ("pixel", "class")


class PixelLossValue(NamedTuple):
    """loss: scalar with graph. floor: its lower bound, a scalar; loss - floor is what can be learned.

    The floor is the mean log number of positives with denominator "all" and reduction "out", else zero.
    """

    loss: Tensor
    floor: Tensor


@without_autocast
def pixel_contrast(
    anchors: Tensor,
    keys: Tensor,
    labels: Tensor,
    key_labels: Tensor | None = None,
    *,
    scope: str,
    temperature: float = 0.07,
    denominator: str = "all",
    reduction: str = "out",
    anchor_weight: str = "pixel",
    exclude_classes: tuple[int, ...] = (),
    symmetric: bool = False,
    partner: Tensor | None = None,
    exclude_self: bool = False,
) -> PixelLossValue:
    """L_p = mean_p [ log sum_k exp(s_pk) - (1/n_p) sum_{q in P(p)} s_pq ] of each set of keys,  s = <z_p, z_k>/t.

    With scope "within" and "cross" an image is a set, and the loss is the mean over images; with "batch" all keys are one set, and all
    anchors weigh the same.

    anchors (B, N, E): unit vectors of the images; keys (B, M, E): of the enhanced images; labels (B, N), key_labels (B, M; default:
    labels) with 255 = ignored: such pixels are not anchors, not positives and not part of the denominator.
    scope: keys "within" the own enhanced image, as printed; "cross" adds the same-class pixels of another enhanced image (partner (B,),
    a permutation; default: the previous one); "batch" has those of all enhanced images of the batch, over all processes.
    denominator: "all" keys as printed, or "neg": each positive against the keys of other classes (as Zhao et al. released).
    reduction: "out" averages the log over positives, "in" takes the log of their sum (SupCon's two forms).
    anchor_weight: "pixel" = mean over anchors, "class" = mean over classes of the mean over their anchors.
    exclude_classes: class ids that are not anchors. symmetric: average over both directions.
    exclude_self: the keys are the anchors, and no pixel is its own key; for scope "within" and "batch", and the defaults of the loss.
    Raises ValueError for unknown choices, and for denominator "neg" with reduction "in", which the release does not define.
    """
    check_choice("--pixel-scope", scope, SCOPES)
    check_choice("--pixel-denominator", denominator, DENOMINATORS)
    check_choice("--pixel-reduction", reduction, REDUCTIONS)
    check_choice("--anchor-weight", anchor_weight, ANCHOR_WEIGHTS)
    if (denominator, reduction) == ("neg", "in"):
        raise ValueError("--pixel-reduction is in; expected out with --pixel-denominator neg. Leave one of them out.")
    if exclude_self and (scope == "cross" or (denominator, reduction) != ("all", "out")):
        raise ValueError("exclude_self is True; expected scope within or batch, denominator all and reduction out.")
    labels = labels.long()
    key_labels = labels if key_labels is None else key_labels.long()
    options = {"scope": scope, "temperature": temperature, "denominator": denominator, "reduction": reduction, "partner": partner}
    options |= {"anchor_weight": anchor_weight, "exclude_classes": exclude_classes, "exclude_self": exclude_self}
    forth = _one_direction(anchors, keys, labels, key_labels, **options)
    if not symmetric:
        return forth
    back = _one_direction(keys, anchors, key_labels, labels, **options)
    return PixelLossValue((forth.loss + back.loss) / 2, (forth.floor + back.floor) / 2)


def _one_direction(
    anchors: Tensor, keys: Tensor, labels: Tensor, key_labels: Tensor, *, scope: str, temperature: float, denominator: str, reduction: str,
    anchor_weight: str, exclude_classes: tuple[int, ...], partner: Tensor | None, exclude_self: bool,
) -> PixelLossValue:  # fmt: skip
    """Return the loss of the anchors against the keys; the arguments are those of `pixel_contrast`."""
    own_keys = keys.shape[1] if scope == "cross" else None  # those of the own enhanced image come first, those of the partner follow
    anchors, keys, labels, key_labels = _sets_of_keys(anchors, keys, labels, key_labels, scope, partner)
    means, class_sizes = class_means(at_least_float32(keys), key_labels)
    num_positives = (class_sizes.gather(1, labels) - int(exclude_self)).clamp(min=0)
    weight = anchor_weights(labels, num_positives, exclude_classes, anchor_weight, one_set=scope == "batch")

    def total(term: Term) -> Tensor:
        return streamed_sum(term, anchors, keys, temperature, weight, torch.where(key_labels == IGNORE_INDEX, MASKED_SCORE, 0.0))

    def same(rows: slice) -> Tensor:
        return labels[:, rows, None] == key_labels[:, None, :]

    def other(rows: slice) -> Tensor:  # of the partner only positives count: its negatives hurt (Zhao et al.)
        return ~same(rows) & (torch.arange(keys.shape[1], device=keys.device) < (own_keys or keys.shape[1]))

    def not_self(rows: slice) -> Tensor:
        own = torch.arange(labels.shape[1], device=keys.device) + (own_rank() * labels.shape[1] if scope == "batch" else 0)
        return own[rows, None] != torch.arange(keys.shape[1], device=keys.device)

    if denominator == "neg":  # not a plain log-sum-exp, so products in bfloat16 are not possible
        anchors, keys = at_least_float32(anchors), at_least_float32(keys)
        loss = total(with_autograd(against_negatives(same, other, num_positives)))
        return PixelLossValue(loss, torch.zeros_like(loss.detach()))
    keep = (lambda rows: same(rows) | other(rows)) if own_keys else not_self if exclude_self else None
    all_keys = total(logsumexp(keep))
    if reduction == "in":
        loss = all_keys - total(logsumexp(same))
        return PixelLossValue(loss, torch.zeros_like(loss.detach()))
    # The mean similarity to the positives is the similarity to their mean: no matrix is needed.
    to_mean = (at_least_float32(anchors) * means.gather(1, labels[..., None].expand_as(anchors))).sum(2) / temperature
    if exclude_self:
        to_self = at_least_float32(anchors).square().sum(2) / temperature
        to_mean = to_mean + (to_mean - to_self) / num_positives.clamp(min=1)  # (n m - s) / (n - 1), where m is the mean of n with itself
    # All positives are in the denominator of each of them: the loss cannot go below the log of their number.
    return PixelLossValue(all_keys - (weight * to_mean).sum(), (weight * num_positives.clamp(min=1).log()).sum())


def random_partners(count: int, device: torch.device) -> Tensor:
    """Return a random permutation (count,) of one cycle, so that no image is its own partner. Raises ValueError for one image."""
    if count == 1:
        raise ValueError("--pixel-scope is cross and a process has 1 labelled image; expected at least 2. Raise --batch-size.")
    order = torch.randperm(count, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _sets_of_keys(anchors, keys, labels, key_labels, scope: str, partner: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments with the keys of the scope: the partner's appended, or those of all processes in one set."""
    if scope == "cross":
        partner = torch.arange(len(keys), device=keys.device).roll(1) if partner is None else partner
        keys, key_labels = torch.cat([keys, keys[partner]], 1), torch.cat([key_labels, key_labels[partner]], 1)
    elif scope == "batch":
        keys, key_labels = (gather_rows(x)[0].flatten(0, 1)[None] for x in (keys, key_labels))
        anchors, labels = anchors.flatten(0, 1)[None], labels.flatten(0, 1)[None]
    return anchors, keys, labels, key_labels


def anchor_weights(labels: Tensor, num_positives: Tensor, excluded: tuple[int, ...], anchor_weight: str, one_set: bool) -> Tensor:
    """Return the weight (G, N) of each anchor in the loss; zero for ignored and excluded pixels. one_set: see `weights_of_mean`."""
    # An anchor without positive can only occur when the two views have label maps of their own.
    is_anchor = (labels != IGNORE_INDEX) & (num_positives > 0)
    for label in excluded:
        is_anchor = is_anchor & (labels != label)
    weight = is_anchor.to(num_positives.dtype)
    if anchor_weight == "class":
        sizes = weight.new_zeros(len(labels), 256).scatter_add_(1, labels.long(), weight)
        sizes = mean_count(sizes) if one_set else sizes
        weight = weight * (1 / torch.where(sizes > 0, sizes, 1).gather(1, labels.long()))
    return weights_of_mean(weight, one_set)


def class_means(keys: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean key (G, 256, E) and the number of keys (G, 256) of each class; both zero for the ignored label."""
    index = key_labels[..., None].expand_as(keys)
    sums = keys.new_zeros(len(keys), 256, keys.shape[2]).scatter_add(1, index, keys)
    class_sizes = keys.new_zeros(len(keys), 256).scatter_add_(1, key_labels, torch.ones_like(key_labels, dtype=keys.dtype))
    class_sizes[:, IGNORE_INDEX] = 0
    return sums / class_sizes.clamp(min=1)[..., None] * (class_sizes > 0)[..., None], class_sizes


def against_negatives(is_positive: Mask, is_negative: Mask, num_positives: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """Return the term mean over positives q of log(1 + sum over negatives k of exp(s_pk - s_pq)), for the rows of a block."""

    def function(scores: Tensor, rows: slice) -> Tensor:
        negatives = torch.where(is_negative(rows), scores, MASKED_SCORE).logsumexp(2, keepdim=True)
        each = F.softplus(negatives - scores).masked_fill(~is_positive(rows), 0)
        return each.sum(2) / num_positives[:, rows].clamp(min=1)

    return function
