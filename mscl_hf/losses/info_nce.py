"""Global and local contrast: pick the enhanced copy of the same image, or of the same block, among the others.

L_g and L_l of the 2025 paper are DenseCL's global and dense losses (Wang et al., CVPR 2021) with (I, enhanced I) for (query, key); both
are InfoNCE (van den Oord et al., 2018, arXiv:1807.03748). All embeddings are unit length; bfloat16 ones are multiplied as such.
Letters: B images in this process, N in all processes, S*S blocks, E embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .gather import gather_rows
from .precision import full_precision, raised
from .streamed import NOTHING, Block, Mask, Term, differentiated, logsumexp, streamed_sum

LOCAL_SCOPES = ("batch", "image", "others")
GLOBAL_NEGATIVES = ("others", "ntxent")
DENOMINATORS = ("all", "literal")


@full_precision
def global_contrast(
    a: Tensor,
    b: Tensor,
    temperature: float = 0.1,
    negatives: str = "others",
    denominator: str = "all",
    symmetric: bool = False,
    past: Tensor | None = None,
) -> Tensor:
    """L_g: mean_i [ log sum_j exp(<a_i, b_j>/t) - <a_i, b_i>/t ], the sum over the enhanced copies of all images.

    a, b: (B, E) of the images and of their enhanced copies. negatives: "others" (as printed) or "ntxent", the 2N - 2 vectors of both
    views (SimCLR, Chen et al., 2020). denominator="literal" leaves the temperature out of the positive's term, as the paper's print
    does: not a log-probability, offered to show that the print is a slip. symmetric: mean of both directions. past: (n, E) earlier
    copies as further negatives, without gradient.
    Raises ValueError for an unknown name, and for fewer than two images: there is nothing to contrast with.
    """
    _check("negatives", negatives, GLOBAL_NEGATIVES)
    _check("denominator", denominator, DENOMINATORS)
    all_b, first = gather_rows(b)
    if past is not None and len(past):
        all_b = torch.cat([all_b, past.to(all_b.dtype)])
    if len(all_b) < 2:
        raise ValueError("global contrast needs at least 2 images per batch, got 1: raise --batch-size or drop g from --losses")
    if negatives == "ntxent":
        return nt_xent(a, b, temperature)
    loss = _pick(a[None], all_b[None], first, temperature, denominator)
    if symmetric:
        all_a, _ = gather_rows(a)
        loss = (loss + _pick(b[None], all_a[None], first, temperature, denominator)) / 2
    return loss


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {option} {value!r}; choose one of {', '.join(known)}")


def _pick(a: Tensor, keys: Tensor, first: int, temperature: float, denominator: str, keep: Mask | None = None) -> Tensor:
    """Row i of a (G, n, E) must find row first + i of its bag of keys (G, M, E) among all of them, or among those that keep says."""
    own = torch.arange(a.shape[1], device=a.device) + first
    term: Term = logsumexp(keep)
    if denominator == "literal":
        term, a, keys = differentiated(_literal(own, temperature, keep)), raised(a), raised(keys)
    positive = (raised(a) * raised(keys[:, first : first + a.shape[1]])).sum(2) / temperature
    weights = torch.full_like(positive, 1 / max(1, positive.numel()), requires_grad=False)
    return streamed_sum(term, a, keys, temperature, weights) - (weights * positive).sum()


def _literal(own: Tensor, temperature: float, keep: Mask | None) -> Callable[[Tensor, slice], Tensor]:
    """logsumexp in which the positive's own term has lost its 1/t."""

    def function(scores: Tensor, rows: slice) -> Tensor:
        place = own[rows].expand(len(scores), -1)[..., None]
        scores = scores.scatter(2, place, scores.gather(2, place) * temperature)
        return (scores if keep is None else scores.masked_fill(~keep(rows), NOTHING)).logsumexp(2)

    return function


@full_precision
def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss (Chen et al., ICML 2020, arXiv:2002.05709): each of the 2N vectors of both views a, b (B, E) must find the other view
    of its image among the 2N - 1 that are not itself. The mean over all (the release adds the two views' means)."""
    both = torch.stack([a, b], dim=1).flatten(0, 1)  # (2B, E): a_0, b_0, a_1, b_1, ...
    keys, first = gather_rows(both)
    own = torch.arange(len(both), device=a.device) + first

    def but_itself(rows: slice) -> Tensor:
        return torch.arange(len(keys), device=a.device) != own[rows, None]

    positive = (raised(a) * raised(b)).sum(1).mean() / temperature
    weights = torch.full((1, len(both)), 1 / len(both), dtype=positive.dtype, device=a.device)
    return streamed_sum(logsumexp(but_itself), both[None], keys[None], temperature, weights) - positive


@full_precision
def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """mean_i [ log( exp s_i+ + sum_m exp s_im ) - s_i+ ] (van den Oord et al., 2018; MoCo, He et al., CVPR 2020), s = <., .>/t.

    anchors, positives: (n, E), row by row; negatives: (m, E), the same for all. Without negatives it is zero.
    """
    anchors, positives, negatives = (raised(x) for x in (anchors, positives, negatives))
    own = torch.linalg.vecdot(anchors, positives) / temperature
    share = torch.ones_like(own, requires_grad=False)  # of the positive in its anchor's softmax: the gradient of the log-sum by its score
    weights = torch.full_like(share, 1 / max(1, len(own)))
    total = own.detach().mean()
    if len(negatives):
        total = streamed_sum(_beside(own.detach(), share), anchors[None], negatives[None].to(anchors.dtype), temperature, weights[None])
    return total + (weights * share * (own - own.detach())).sum() - own.mean()


def _beside(own: Tensor, share: Tensor) -> Term:
    """logsumexp of all scores and of one more of each anchor, own (n,); share (n,) gets that one's part of the softmax."""

    def term(block: Block) -> tuple[Tensor, Tensor]:
        scores, mine = block.scores, own[None, block.rows, None]
        largest = torch.maximum(scores.amax(2, keepdim=True), mine)
        scores.sub_(largest).exp_()
        first = (mine - largest).exp()
        total = scores.sum(2, keepdim=True) + first
        share[block.rows] = (first / total)[0, :, 0]
        return (largest + total.log())[..., 0], block.weights[..., None] / total

    return term


@full_precision
def local_contrast(
    a: Tensor,
    b: Tensor,
    temperature: float = 0.2,
    scope: str = "batch",
    denominator: str = "all",
    symmetric: bool = False,
) -> Tensor:
    """L_l: block s of image i must find block s of its enhanced copy ("the matching mode is one to one").

    a, b: (B, S*S, E). scope says which blocks (j, t) stand in the denominator: "batch" all of all enhanced images, "image" those of the
    own enhanced copy (Chaitanya et al., 2020), "others" the positive and the blocks of other images (DenseCL's spirit).
    """
    _check("scope", scope, LOCAL_SCOPES)
    _check("denominator", denominator, DENOMINATORS)
    all_b, first = (b, 0) if scope == "image" else gather_rows(b)
    if scope == "others" and len(all_b) < 2:
        raise ValueError("local contrast with scope others needs at least 2 images per batch, got 1: raise --batch-size")
    loss = _pick_block(a, all_b, first, temperature, scope, denominator)
    if symmetric:
        all_a = a if scope == "image" else gather_rows(a)[0]
        loss = (loss + _pick_block(b, all_a, first, temperature, scope, denominator)) / 2
    return loss


def _pick_block(a: Tensor, keys: Tensor, first: int, temperature: float, scope: str, denominator: str) -> Tensor:
    """Block s of image i, a (B, S*S, E), must find block s of image first + i of keys (N, S*S, E)."""
    images, blocks = a.shape[:2]
    if scope == "image":
        return _pick(a, keys, 0, temperature, denominator)
    image_of_key = torch.arange(keys.shape[0] * blocks, device=a.device) // blocks
    own = torch.arange(images * blocks, device=a.device) + first * blocks

    def others(rows: slice) -> Tensor:  # and the positive
        return (image_of_key != image_of_key[own[rows], None]) | (torch.arange(len(image_of_key), device=a.device) == own[rows, None])

    keep = others if scope == "others" else None
    return _pick(a.flatten(0, 1)[None], keys.flatten(0, 1)[None], first * blocks, temperature, denominator, keep)
