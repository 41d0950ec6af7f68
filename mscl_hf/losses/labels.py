"""Labels for dense losses: at the resolution of a feature map, and a sample of its pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_choice
from .gather import largest

IGNORE_INDEX = 255
LABEL_DOWNSAMPLING = ("center", "majority", "pure")
PIXEL_SAMPLES = ("all", "random", "class")


def labels_at(labels: Tensor, size: tuple[int, int], how: str = "center") -> Tensor:
    """Return labels (B, H, W) at the resolution of a feature map (h, w), flattened: (B, h*w) int64.

    how: "center" = the label at the center of each position, row floor((i + 0.5) H / h); nearest interpolation would take the corner and
    shift labels by half a stride. "majority" = the most frequent label under the position, the smaller id of equals, without ignored
    pixels. "pure" = that label where it covers at least 3/4, else ignored.
    """
    check_choice("--label-downsampling", how, LABEL_DOWNSAMPLING)
    rows, columns = (
        ((torch.arange(n, device=labels.device) + 0.5) * full / n).long() for n, full in zip(size, labels.shape[-2:])
    )
    if how == "center":
        return labels[:, rows][:, :, columns].flatten(1).long()
    votes = _votes(labels.long(), size)  # (B, h*w, 256)
    counted = votes[..., :IGNORE_INDEX]
    best = counted.argmax(2)  # the first of equals: the smaller id
    most = counted.gather(2, best[..., None])[..., 0]
    enough = (most > 0) & (most >= (0.75 if how == "pure" else 0) * votes.sum(2))
    return torch.where(enough, best, IGNORE_INDEX)


def _votes(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the number of pixels of each of the 256 ids under each position: (B, h*w, 256)."""
    (h, w), (full_h, full_w) = size, labels.shape[-2:]
    rows = torch.arange(full_h, device=labels.device) * h // full_h
    columns = torch.arange(full_w, device=labels.device) * w // full_w
    position = (rows[:, None] * w + columns[None, :]).expand_as(labels)
    flat = (position * 256 + labels).flatten(1)
    votes = torch.zeros(len(labels), h * w * 256, device=labels.device)
    votes.scatter_add_(1, flat, torch.ones_like(flat, dtype=votes.dtype))
    return votes.view(len(labels), h * w, 256)


def sample_pixels(labels: Tensor, how: str, count: int) -> tuple[Tensor, Tensor]:
    """Return the positions (B, n) and labels (B, n) of a random sample of pixels, from labels (B, N).

    how: "random" = `count` pixels of each image, labelled ones first. "class" = up to `count` pixels of each class of each image, filled
    up with ignored pixels to the same n in all images and processes.
    """
    check_choice("--pixel-sample", how, PIXEL_SAMPLES[1:])  # "all" draws nothing
    priority = torch.rand(labels.shape, device=labels.device) + (labels == IGNORE_INDEX)
    order = priority.argsort(dim=1)  # random, ignored pixels last
    if how == "random":
        return order[:, :count], labels.gather(1, order[:, :count])
    shuffled = labels.gather(1, order)
    by_class = shuffled.argsort(dim=1, stable=True)  # one class after another, in random order within a class
    order, grouped = order.gather(1, by_class), shuffled.gather(1, by_class)
    index = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    is_first = F.pad(grouped[:, 1:] != grouped[:, :-1], (1, 0), value=True)
    rank = index - torch.where(is_first, index, 0).cummax(dim=1).values  # within the class
    kept = (rank < count) & (grouped != IGNORE_INDEX)
    most = max(1, int(largest(kept.sum(1).max())))
    front = (~kept).long().argsort(dim=1, stable=True)[:, :most]
    return order.gather(1, front), torch.where(kept, grouped, IGNORE_INDEX).gather(1, front)
