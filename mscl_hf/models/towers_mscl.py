"""Two towers: one network for the lightness of an image, one for its color (CMC: Tian et al., ECCV 2020, arXiv:1906.05849).

`TwoTowers` replaces a single timm model: it converts RGB to Lab, runs each tower on its channels, and concatenates their maps.
Self-contained (torch, timm), so that a checkpoint can carry this file as remote code.
"""

import timm
import torch
from torch import Tensor, nn

from .blocks_mscl import accept_indices

# Linear sRGB (D65) to XYZ, IEC 61966-2-1. Each row is divided by its sum, the white point: gray then has x = y = z, and a = b = 0.
_XYZ = ((0.4123908, 0.3575843, 0.1804808), (0.2126390, 0.7151687, 0.0721923), (0.0193308, 0.1191948, 0.9505322))
_TO_XYZ = tuple(tuple(weight / sum(row) for weight in row) for row in _XYZ)
# Center and half of the range of sRGB colors, which scale L, a and b to about [-1, 1].
_CENTER, _HALF_RANGE = (50.0, 6.025, -6.69), (50.0, 92.2, 101.2)


def rgb_to_lab(image: Tensor) -> Tensor:
    """Convert sRGB (B, 3, H, W) in [0, 1] to CIE Lab (B, 3, H, W) in float32, L in [0, 100]; other values are clipped."""
    image = image.float().clamp(0, 1)
    # Both branches of `where` are differentiated: the bound excludes the point where the slope of the power is infinite.
    power = ((image.clamp(min=0.04) + 0.055) / 1.055) ** 2.4
    linear = torch.where(image <= 0.04045, image / 12.92, power)
    # Weighted sums: autocast would compute a matrix product in bfloat16.
    x, y, z = (_cube_root(sum(w * linear[:, c] for c, w in enumerate(row))) for row in _TO_XYZ)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _cube_root(t: Tensor) -> Tensor:
    """Return CIE's f, the cube root with a linear part near black."""
    knee = (6 / 29) ** 3
    return torch.where(t > knee, t.clamp(min=knee) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29)


def lab_views(image: Tensor) -> tuple[Tensor, Tensor]:
    """Convert sRGB (B, 3, H, W) in [0, 1] to L (B, 1, H, W) and ab (B, 2, H, W) in about [-1, 1], in the image's dtype."""
    lab = rgb_to_lab(image)
    channels = [(lab[:, i : i + 1] - _CENTER[i]) / _HALF_RANGE[i] for i in range(3)]
    return channels[0].to(image.dtype), torch.cat(channels[1:], dim=1).to(image.dtype)


class TwoTowers(nn.Module):
    """Two timm models of one name, `lum` for L and `chroma` for ab, with timm's interface of a backbone.

    options: of `timm.create_model`; where they halve the width, the concatenated maps have the channels of a single network.
    """

    def __init__(self, name: str, **options):
        super().__init__()
        self.lum, self.chroma = (
            accept_indices(timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options))
            for channels in (1, 2)
        )

    @property
    def feature_info(self) -> list[dict]:
        """Return timm's description of the maps, with the channels of both towers."""
        return [{**level, "num_chs": 2 * level["num_chs"]} for level in self.lum.feature_info]

    @property
    def default_cfg(self) -> dict:
        config = dict(self.lum.default_cfg)
        size = tuple(config.get("input_size", (3, 224, 224)))[1:]
        return {**config, "input_size": (3, *size), "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward_intermediates(self, image: Tensor, **options) -> list[Tensor]:
        """Return maps (B, C_i, h_i, w_i), the channels of L first, of RGB (B, 3, H, W) in [0, 1]. options: of timm."""
        options |= {"intermediates_only": True, "output_fmt": "NCHW"}
        lum, chroma = lab_views(image)
        pairs = zip(self.lum(lum, **options), self.chroma(chroma, **options))
        return [torch.cat(pair, dim=1) for pair in pairs]

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Split a map (B, C, h, w) into the parts of L and ab, (B, C / 2, h, w) each."""
        lum, chroma = features.chunk(2, dim=1)
        return lum, chroma

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for tower in (self.lum, self.chroma):
            tower.set_grad_checkpointing(enable)
