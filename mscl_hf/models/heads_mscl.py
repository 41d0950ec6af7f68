"""The contrastive heads: from feature maps to embeddings of unit length of images, blocks and pixels.

Self-contained (torch), so that a checkpoint can carry this file as remote code. Letters: B batch, C channels, h w feature map,
S blocks of a side, E embedding size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoders_mscl import conv_bn_relu


class GlobalHead(nn.Module):
    """Global average pooling and two fully connected layers; (B, C, h, w) -> (B, E)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, dim))

    def forward(self, features: Tensor) -> Tensor:
        return unit(self.layers(features.mean(dim=(2, 3))))


class LocalHead(nn.Module):
    """S x S blocks and 1x1 convolutions; (B, C, h, w) -> (B, S*S, E).

    Without boxes, a block is the average over its part of the map (as in the paper). With boxes (B, 4) = x0, y0, x1, y1 in [0, 1] of the
    map's sides, features are sampled at the centers of S x S parts of the box; x0 > x1 samples from right to left (a flip).
    S is reduced to the side of a smaller map.
    """

    def __init__(self, channels: int, dim: int, grid: int, layers: int):
        super().__init__()
        self.grid = grid
        hidden = [layer for _ in range(layers - 1) for layer in (nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(*hidden, nn.Conv2d(channels, dim, 1))

    def forward(self, features: Tensor, boxes: Tensor | None = None) -> Tensor:
        if boxes is None:
            sides = [min(self.grid, side) for side in features.shape[-2:]]
            blocks = F.adaptive_avg_pool2d(features, sides)
        else:
            blocks = self._sample(features, boxes, min(self.grid, *features.shape[-2:]))
        return unit(self.layers(blocks).flatten(2).transpose(1, 2))

    def _sample(self, features: Tensor, boxes: Tensor, grid: int) -> Tensor:
        centers = (torch.arange(grid, device=boxes.device, dtype=boxes.dtype) + 0.5) / grid  # (S,)
        x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * centers  # (B, S)
        y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * centers
        x, y = x[:, None, :].expand(-1, grid, -1), y[:, :, None].expand(-1, -1, grid)
        positions = torch.stack([x, y], dim=-1) * 2 - 1
        return F.grid_sample(features, positions.to(features.dtype), align_corners=False, padding_mode="border")


class PixelHead(nn.Module):
    """1x1 convolutions with BatchNorm and ReLU between them (Zhao et al., ICCV 2021); (B, C, h, w) -> (B, E, h, w)."""

    def __init__(self, channels: int, dim: int, layers: int, batch_norm: bool, hidden: int = 256):
        super().__init__()
        stack, width = [], channels
        for _ in range(layers - 1):
            stack.append(
                conv_bn_relu(width, hidden)
                if batch_norm
                else nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True))
            )
            width = hidden
        self.layers = nn.Sequential(*stack, nn.Conv2d(width, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        return unit(self.layers(features))


def unit(x: Tensor) -> Tensor:
    """Normalize to unit length, in float32 or float64: maps (B, C, h, w) over C, other tensors over the last axis."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1 if x.dim() == 4 else -1, eps=1e-12)
