"""Global and local contrast: pick the enhanced copy of the same image, or of the same block, among the others.

L_g and L_l of the 2025 paper are DenseCL's global and dense losses (Wang et al., CVPR 2021) with (I, enhanced I) for (query, key); both
are InfoNCE (van den Oord et al., 2018, arXiv:1807.03748). All embeddings are unit length; everything is computed in float32.
Letters: B images in this process, N in all processes, S*S blocks, E embedding.
"""

import torch
from torch import Tensor

from .gather import gather_rows
from .precision import full_precision
from .streamed import in_blocks, similarity_logsumexp

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
        return _ntxent(a, b, temperature)
    loss = _pick(a, all_b, first, temperature, denominator)
    if symmetric:
        all_a, _ = gather_rows(a)
        loss = (loss + _pick(b, all_a, first, temperature, denominator)) / 2
    return loss


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {option} {value!r}; choose one of {', '.join(known)}")


def _pick(a: Tensor, keys: Tensor, first: int, temperature: float, denominator: str) -> Tensor:
    """Row i of a (n, E) must find row first + i of keys (M, E) among all of them."""
    positive = (a * keys[first : first + len(a)]).sum(1) / temperature
    if denominator == "all":
        return (similarity_logsumexp(a[None], keys[None], temperature)[0] - positive).mean()

    def block(rows: Tensor, own: Tensor) -> tuple[Tensor]:
        s = rows @ keys.T / temperature
        # The positive's own term loses its 1/t.
        return (s.scatter(1, own[:, None], s.gather(1, own[:, None]) * temperature).logsumexp(1),)

    own = torch.arange(len(a), device=a.device) + first
    return (in_blocks(block, (a, own), len(keys))[0] - positive).mean()


def _ntxent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    both = torch.stack([a, b], dim=1).flatten(0, 1)  # (2B, E): a_0, b_0, a_1, b_1, ...
    keys, first = gather_rows(both)

    def block(rows: Tensor, own: Tensor) -> tuple[Tensor]:  # all keys but the vector itself
        return ((rows @ keys.T / temperature).scatter(1, own[:, None], float("-inf")).logsumexp(1),)

    own = torch.arange(len(both), device=a.device) + first
    positive = (a * b).sum(1).repeat_interleave(2) / temperature
    return (in_blocks(block, (both, own), len(keys))[0] - positive).mean()


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
    if scope == "image":
        loss = _pick_block_of_image(a, b, temperature, denominator)
        return (loss + _pick_block_of_image(b, a, temperature, denominator)) / 2 if symmetric else loss
    all_b, first = gather_rows(b)
    if scope == "others" and len(all_b) < 2:
        raise ValueError("local contrast with scope others needs at least 2 images per batch, got 1: raise --batch-size")
    loss = _pick_block(a, all_b, first, temperature, scope, denominator)
    if symmetric:
        all_a, _ = gather_rows(a)
        loss = (loss + _pick_block(b, all_a, first, temperature, scope, denominator)) / 2
    return loss


def _pick_block_of_image(a: Tensor, b: Tensor, temperature: float, denominator: str) -> Tensor:
    positive = (a * b).sum(2) / temperature  # (B, S*S)
    if denominator == "all":
        return (similarity_logsumexp(a, b, temperature) - positive).mean()

    def block(rows: Tensor, keys: Tensor) -> tuple[Tensor]:
        s = rows @ keys.transpose(1, 2) / temperature
        diagonal = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
        return (torch.where(diagonal, s * temperature, s).logsumexp(2),)

    return (in_blocks(block, (a, b), a.shape[1] ** 2)[0] - positive).mean()


def _pick_block(a: Tensor, keys: Tensor, first: int, temperature: float, scope: str, denominator: str) -> Tensor:
    images, blocks = a.shape[:2]
    rows, columns = a.flatten(0, 1), keys.flatten(0, 1)  # (B*S*S, E), (N*S*S, E)
    if scope == "batch":
        return _pick(rows, columns, first * blocks, temperature, denominator)
    image_of_key = torch.arange(len(columns), device=a.device) // blocks

    def block(rows: Tensor, own: Tensor) -> tuple[Tensor]:
        s = rows @ columns.T / temperature
        same_image = image_of_key[None, :] == (own // blocks)[:, None]
        same_image = same_image.scatter(1, own[:, None], False)  # the positive stays
        s = s.masked_fill(same_image, float("-inf"))
        if denominator == "literal":
            s = s.scatter(1, own[:, None], s.gather(1, own[:, None]) * temperature)
        return (s.logsumexp(1),)

    own = torch.arange(images * blocks, device=a.device) + first * blocks
    positive = (rows * columns[own]).sum(1) / temperature
    return (in_blocks(block, (rows, own), len(columns))[0] - positive).mean()
