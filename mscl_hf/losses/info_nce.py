"""InfoNCE (van den Oord et al., 2018, arXiv:1807.03748) of images and of blocks: L_g, L_l, NT-Xent, MoCo.

L_g and L_l of the 2025 paper are DenseCL's global and dense losses (Wang et al., CVPR 2021) with (image, enhanced copy) for (query, key).
Embeddings have unit length; bfloat16 ones are multiplied in bfloat16.
Letters: B images in this process, N in all processes, S*S blocks, E embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import at_least_float32, check_choice, without_autocast
from .gather import gather_rows
from .streamed import MASKED_SCORE, Block, Mask, Term, TermResult, logsumexp, streamed_sum, with_autograd

LOCAL_SCOPES = ("batch", "image", "others")
GLOBAL_NEGATIVES = ("others", "ntxent")
DENOMINATORS = ("all", "literal")


@without_autocast
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

    a, b (B, E): of the images and of their enhanced copies. negatives: "others" (as printed) or "ntxent", the 2N - 2 vectors of both
    views (SimCLR, Chen et al., 2020). denominator: "literal" leaves the temperature out of the positive's term, as printed in the paper;
    the loss is then no log-probability. symmetric: average over both directions, as "ntxent" always does. past (n, E): further negatives,
    without gradient.
    Raises ValueError for fewer than two images.
    """
    check_choice("--negatives", negatives, GLOBAL_NEGATIVES)
    check_choice("--denominator", denominator, DENOMINATORS)
    all_b, first = gather_rows(b)
    if past is not None and len(past):
        all_b = torch.cat([all_b, past.to(all_b.dtype)])
    if len(all_b) < 2:
        raise ValueError("--batch-size is 1; expected at least 2 images for the global loss.")
    if negatives == "ntxent":
        if denominator != "all" or past is not None:
            raise ValueError("--negatives is ntxent; expected others with --denominator literal or a queue. Leave one of them out.")
        return nt_xent(a, b, temperature)
    loss = _matched_nce(a[None], all_b[None], first, temperature, denominator)
    if symmetric:
        all_a, _ = gather_rows(a)
        loss = (loss + _matched_nce(b[None], all_a[None], first, temperature, denominator)) / 2
    return loss


def _matched_nce(a: Tensor, keys: Tensor, first: int, temperature: float, denominator: str, keep: Mask | None = None) -> Tensor:
    """Return InfoNCE of row i of a (G, n, E) and its positive, row first + i of keys (G, M, E), among all keys or those of `keep`."""
    positive_index = torch.arange(a.shape[1], device=a.device) + first
    term: Term = logsumexp(keep)
    if denominator == "literal":
        term, a, keys = with_autograd(_literal(positive_index, temperature, keep)), at_least_float32(a), at_least_float32(keys)
    positive = (at_least_float32(a) * at_least_float32(keys[:, first : first + a.shape[1]])).sum(2) / temperature
    weights = torch.full_like(positive, 1 / max(1, positive.numel()), requires_grad=False)
    return streamed_sum(term, a, keys, temperature, weights) - (weights * positive).sum()


def _literal(positive_index: Tensor, temperature: float, keep: Mask | None) -> Callable[[Tensor, slice], Tensor]:
    """Return the log-sum-exp with the positive's score not divided by the temperature."""

    def function(scores: Tensor, rows: slice) -> Tensor:
        column = positive_index[rows].expand(len(scores), -1)[..., None]
        scores = scores.scatter(2, column, scores.gather(2, column) * temperature)
        return (scores if keep is None else scores.masked_fill(~keep(rows), MASKED_SCORE)).logsumexp(2)

    return function


@without_autocast
def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Return SimCLR's loss (Chen et al., ICML 2020, arXiv:2002.05709) of both views a, b (B, E).

    The positive of each of the 2N vectors is the other view of its image, the denominator has the 2N - 1 other vectors. The mean over all
    vectors (the release adds the means of the two views).
    """
    both = torch.stack([a, b], dim=1).flatten(0, 1)  # (2B, E): a_0, b_0, a_1, b_1, ...
    keys, first = gather_rows(both)
    index = torch.arange(len(both), device=a.device) + first

    def not_itself(rows: slice) -> Tensor:
        return torch.arange(len(keys), device=a.device) != index[rows, None]

    positive = (at_least_float32(a) * at_least_float32(b)).sum(1).mean() / temperature
    weights = torch.full((1, len(both)), 1 / len(both), dtype=positive.dtype, device=a.device)
    return streamed_sum(logsumexp(not_itself), both[None], keys[None], temperature, weights) - positive


@without_autocast
def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """mean_i [ log( exp s_i+ + sum_m exp s_im ) - s_i+ ] (van den Oord et al., 2018; MoCo, He et al., CVPR 2020), s = <., .>/t.

    anchors, positives (n, E), row by row; negatives (m, E), shared by all anchors. Zero without negatives.
    """
    anchors, positives, negatives = (at_least_float32(x) for x in (anchors, positives, negatives))
    positive = torch.linalg.vecdot(anchors, positives) / temperature
    # The positive's share of its anchor's softmax: d log-sum-exp / d positive.
    share = torch.ones_like(positive, requires_grad=False)
    weights = torch.full_like(share, 1 / max(1, len(positive)))
    total = positive.detach().mean()
    if len(negatives):
        term, keys = _with_positive(positive.detach(), share), negatives[None].to(anchors.dtype)
        total = streamed_sum(term, anchors[None], keys, temperature, weights[None])
    return total + (weights * share * (positive - positive.detach())).sum() - positive.mean()


def _with_positive(positive_scores: Tensor, share: Tensor) -> Term:
    """Return the log-sum-exp of all scores and positive_scores (n,); share (n,) receives the positive's share of the softmax."""

    def term(block: Block) -> TermResult:
        scores, positive = block.scores, positive_scores[None, block.rows, None]
        largest = torch.maximum(scores.amax(2, keepdim=True), positive)
        scores.sub_(largest).exp_()
        first = (positive - largest).exp()
        total = scores.sum(2, keepdim=True) + first
        share[block.rows] = (first / total)[0, :, 0]
        return TermResult((largest + total.log())[..., 0], block.weights[..., None] / total)

    return term


@without_autocast
def local_contrast(
    a: Tensor,
    b: Tensor,
    temperature: float = 0.2,
    scope: str = "batch",
    denominator: str = "all",
    symmetric: bool = False,
) -> Tensor:
    """L_l: InfoNCE of block s of image i and block s of its enhanced copy ("the matching mode is one to one"); a, b (B, S*S, E).

    scope: blocks of the denominator: "batch" = those of all enhanced copies, "image" = of the own copy (Chaitanya et al., 2020),
    "others" = the positive and the blocks of other images (similar to DenseCL). Other arguments as in `global_contrast`.
    """
    check_choice("--local-scope", scope, LOCAL_SCOPES)
    check_choice("--denominator", denominator, DENOMINATORS)
    all_b, first = (b, 0) if scope == "image" else gather_rows(b)
    if scope == "others" and len(all_b) < 2:
        raise ValueError("--batch-size is 1; expected at least 2 images with --local-scope others.")
    loss = _block_nce(a, all_b, first, temperature, scope, denominator)
    if symmetric:
        all_a = a if scope == "image" else gather_rows(a)[0]
        loss = (loss + _block_nce(b, all_a, first, temperature, scope, denominator)) / 2
    return loss


def _block_nce(a: Tensor, keys: Tensor, first: int, temperature: float, scope: str, denominator: str) -> Tensor:
    """Return InfoNCE of block s of image i, a (B, S*S, E), and block s of image first + i, keys (N, S*S, E)."""
    images, blocks = a.shape[:2]
    if scope == "image":
        return _matched_nce(a, keys, 0, temperature, denominator)
    image_of_key = torch.arange(keys.shape[0] * blocks, device=a.device) // blocks
    positive_index = torch.arange(images * blocks, device=a.device) + first * blocks

    def others(rows: slice) -> Tensor:  # includes the positive
        is_positive = torch.arange(len(image_of_key), device=a.device) == positive_index[rows, None]
        return (image_of_key != image_of_key[positive_index[rows], None]) | is_positive

    keep = others if scope == "others" else None
    return _matched_nce(a.flatten(0, 1)[None], keys.flatten(0, 1)[None], first * blocks, temperature, denominator, keep)
