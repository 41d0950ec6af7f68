"""Decoders: from tapped feature maps to one map for a 1x1 classifier or a pixel head.

A decoder is built as `Decoder(channels, strides, config)` with channels and strides of the tapped maps, shallow to deep; it maps a list of
(B, C_i, h_i, w_i) to (B, decoder_channels, h, w). Self-contained (torch), so that a checkpoint can carry this file as remote code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size of the map, BatchNorm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DeepLabV3Decoder(nn.Module):
    """Atrous spatial pyramid pooling on the last map (Chen et al., 2017, arXiv:1706.05587)."""

    def __init__(self, channels: list[int], strides: list[int], config):
        super().__init__()
        width = config.decoder_channels
        self.branches = nn.ModuleList([conv_bn_relu(channels[-1], width)])
        self.branches.extend(conv_bn_relu(channels[-1], width, 3, rate) for rate in config.decoder_rates)
        # No BatchNorm on the pooled branch: its map is 1 x 1, and a batch of one image has no statistics.
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1), nn.ReLU(inplace=True))
        self.fuse = conv_bn_relu(width * (len(self.branches) + 1), width)

    def forward(self, features: list[Tensor]) -> Tensor:
        last = features[-1]
        pooled = self.image_pool(last).expand(-1, -1, *last.shape[-2:])
        return self.fuse(torch.cat([*(branch(last) for branch in self.branches), pooled], dim=1))


class FCNDecoder(nn.Module):
    """Two 3x3 convolutions on the last map (after Long et al., CVPR 2015)."""

    def __init__(self, channels: list[int], strides: list[int], config):
        super().__init__()
        width = config.decoder_channels
        self.layers = nn.Sequential(conv_bn_relu(channels[-1], width, 3), conv_bn_relu(width, width, 3))

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.layers(features[-1])


class MLADecoder(nn.Module):
    """Multi-level aggregation for constant-stride features (SETR-MLA, Zheng et al., CVPR 2021, arXiv:2012.15840).

    The map of each tapped block is reduced, summed from deep to shallow, smoothed, upsampled by 2 and concatenated.
    """

    def __init__(self, channels: list[int], strides: list[int], config):
        super().__init__()
        width = config.decoder_channels
        level = max(width // len(channels), 1)
        self.reduce = nn.ModuleList(conv_bn_relu(c, level) for c in channels)
        self.smooth = nn.ModuleList(conv_bn_relu(level, level, 3) for _ in channels)
        self.fuse = conv_bn_relu(level * len(channels), width, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        fused, above = [], 0
        for reduce, smooth, feature in zip(self.reduce[::-1], self.smooth[::-1], features[::-1]):
            above = above + F.interpolate(reduce(feature), size=size, mode="bilinear", align_corners=False)
            fused.append(F.interpolate(smooth(above), scale_factor=2, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(fused, dim=1))


DECODERS = {"deeplabv3": DeepLabV3Decoder, "fcn": FCNDecoder, "mla": MLADecoder}
