"""Projection and prediction heads as in the papers."""

from torch import Tensor, nn


def mlp(*widths: int, norm: bool = False, last_norm: str | None = None, dense: bool = False) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them on vectors (B, C), or 1x1 convolutions on maps (B, C, h, w) (dense).

    norm: BatchNorm before each ReLU. last_norm: BatchNorm after the last layer, "scale" (SimCLR: without shift) or "plain" (SimSiam:
    without shift and scale).
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
    """Return the head after global average pooling: (B, C, h, w) -> (B, E)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def flatten_positions(maps: Tensor) -> Tensor:
    """Return the vectors of a map row by row: (B, C, h, w) -> (B, h*w, C)."""
    return maps.flatten(2).transpose(1, 2)
