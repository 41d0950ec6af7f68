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


class LinearDecoder(nn.Module):
    """BatchNorm and a 1x1 convolution of the last map, as in DINOv2's linear evaluation (Oquab et al., 2023, arXiv:2304.07193)."""

    def __init__(self, channels: list[int], strides: list[int], config):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1])
        self.project = nn.Conv2d(channels[-1], config.decoder_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.project(self.norm(features[-1]))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DPTDecoder(nn.Module):
    """Reassemble the maps to a pyramid and fuse them from deep to shallow (Ranftl et al., ICCV 2021, arXiv:2103.13413).

    Maps of a constant stride s become maps of s/4, s/2, s and 2 s; the maps of a pyramid keep their sizes. The result has the size of the
    first one, without the paper's last upsampling by 2, after which all that follows would need four times the memory.
    """

    def __init__(self, channels: list[int], strides: list[int], config):
        super().__init__()
        width, factors = config.decoder_channels, (4, 2, 1, 0.5)
        factors = (1,) * len(channels) if len(set(strides)) > 1 else (4,) * (len(channels) - 4) + factors[max(0, 4 - len(channels)) :]
        self.reassemble = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), resampling(width, factor), nn.Conv2d(width, width, 3, padding=1, bias=False))
            for c, factor in zip(channels, factors)
        )
        self.units = nn.ModuleList(ResidualUnit(width) for _ in channels[:-1])  # of the maps that are added to a deeper one
        self.fuse = nn.ModuleList(nn.Sequential(ResidualUnit(width), nn.Conv2d(width, width, 1)) for _ in channels)
        self.output = conv_bn_relu(width, width, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [part(feature) for part, feature in zip(self.reassemble, features)]
        fused = self.fuse[-1](maps[-1])
        for unit, fuse, feature in zip(self.units[::-1], self.fuse[:-1][::-1], maps[:-1][::-1]):
            fused = F.interpolate(fused, size=feature.shape[-2:], mode="bilinear", align_corners=False)
            fused = fuse(unit(feature) + fused)
        return self.output(fused)


def resampling(width: int, factor: float) -> nn.Module:
    """Return a layer that changes the size of a map by 4, 2, 1 or 1/2."""
    if factor == 1:
        return nn.Identity()
    if factor < 1:
        return nn.Conv2d(width, width, 3, stride=2, padding=1)
    return nn.ConvTranspose2d(width, width, int(factor), stride=int(factor))


DECODERS = {"deeplabv3": DeepLabV3Decoder, "fcn": FCNDecoder, "mla": MLADecoder, "dpt": DPTDecoder, "linear": LinearDecoder}
