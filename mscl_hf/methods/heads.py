"""Projection and prediction heads, as the papers print them."""

from torch import Tensor, nn


def mlp(*widths: int, norm: bool = False, last_norm: str | None = None, dense: bool = False) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, or 1x1 convolutions (dense); vectors (B, C), maps (B, C, h, w).

    norm: BatchNorm before each ReLU. last_norm: behind the last layer, BatchNorm "scale" (SimCLR: no shift) or "plain" (SimSiam: neither
    shift nor scale).
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip(widths, widths[1:]), 1):
        last = number == len(widths) - 1
        normed = last_norm is not None if last else norm
        layers.append(nn.Conv2d(before, after, 1, bias=not normed) if dense else nn.Linear(before, after, bias=not normed))
        if normed:
            layers.append((nn.BatchNorm2d if dense else nn.BatchNorm1d)(after, affine=not (last and last_norm == "plain")))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    if last_norm == "scale":
        layers[-1].bias.requires_grad_(False)
    return nn.Sequential(*layers)


def pooled(head: nn.Module) -> nn.Sequential:
    """The head behind a global average pooling: (B, C, h, w) -> (B, E)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def cells(maps: Tensor) -> Tensor:
    """The vectors of a map, row after row: (B, C, h, w) -> (B, h*w, C)."""
    return maps.flatten(2).transpose(1, 2)
