"""Color distortion: drawn per sample (as SimCLR, Chen et al., 2020, and its successors do), computed for a batch on its device.

Brightness, contrast, saturation and gray are one formula, x -> clamp(f x + a gray(x) + b mean(gray(x))), so any order of them around the
one rotation of the hue is a row of coefficients, without a branch on a sample and without waiting for the device.
Each operation is torchvision's of the same name. Images of other than three channels have no hue, saturation and gray: these operations
are left out, and contrast is about the mean of each channel. Letters: B images of C channels of H x W px.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 7  # three operations before the hue, three after it, and gray
GRAY = (0.2989, 0.587, 0.114)
SIZE = 3 * SLOTS + 3  # parameters of an image: (f, a, b) of each slot, rotation of the hue, sigma of the blur in px, solarized or not


@dataclass(frozen=True)
class Colors:
    """Ranges of brightness, contrast, saturation and hue, and the probability of each operation, in the order in which they act.

    Factors are uniform in [1 - x, 1 + x]; the hue rotates by at most `hue` of the circle. gray_first: before the jitter, not after it.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    gray: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0
    gray_first: bool = False

    @classmethod
    def simclr(cls, strength: float, blur: float) -> "Colors":
        """Return SimCLR's colors at strength s; 0 = no color changes."""
        if strength == 0:
            return cls(jitter=0, gray=0, blur=blur)
        return cls(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, blur=blur)


def draw_color(colors: Colors, rng: np.random.Generator) -> Tensor:
    """Draw the parameters (SIZE,) of one image."""
    slots = np.tile([1.0, 0.0, 0.0], (SLOTS, 1))
    hue = sigma = 0.0
    gray = colors.gray_first and rng.random() < colors.gray
    if colors.jitter and rng.random() < colors.jitter:
        spans = np.array([colors.brightness, colors.contrast, colors.saturation])
        factors = rng.uniform(np.maximum(0, 1 - spans), 1 + spans)
        hue = float(np.clip(rng.uniform(-colors.hue, colors.hue), -0.5, 0.5))
        rows = [[f, (1 - f) * saturation, (1 - f) * contrast] for f, saturation, contrast in zip(factors, (0, 0, 1), (0, 1, 0))]
        order = rng.permutation(4).tolist()  # 3 is the hue
        for position, which in enumerate(order):
            if which != 3:
                slots[position if position < order.index(3) else position + 2] = rows[which]
        if gray:  # a gray image has no saturation and no hue: brightness and contrast follow gray in the first slots
            slots[:] = [1.0, 0.0, 0.0]
            slots[1:3] = [rows[which] for which in order if which < 2]
            hue = 0.0
    if gray:
        slots[0] = [0, 1, 0]
    if not colors.gray_first and colors.gray and rng.random() < colors.gray:
        slots[-1] = [0, 1, 0]
    if rng.random() < colors.blur:
        sigma = float(rng.uniform(0.1, 2.0))
    solarized = bool(colors.solarize) and rng.random() < colors.solarize
    return torch.tensor([*slots.flatten(), hue, sigma, solarized], dtype=torch.float32)


def distort_color(images: Tensor, parameters: Tensor) -> Tensor:
    """Distort images (B, C, H, W) of levels in [0, 255], uint8 or float32, by parameters (B, SIZE) of `draw_color`."""
    slots, (hue, sigma, solarized) = parameters[:, :-3].view(-1, SLOTS, 3), parameters[:, -3:].unbind(1)
    x = images.float() / 255
    for slot in range(3):
        x = _blend(x, slots[:, slot])
    x = _turn_hue(x, hue) if x.shape[1] == 3 else x
    for slot in range(3, SLOTS):
        x = _blend(x, slots[:, slot])
    x = _blur(x, sigma)
    x = torch.where((solarized[:, None, None, None] > 0) & (x >= 0.5), 1 - x, x)
    if images.dtype != torch.uint8:
        return x.mul(255).clamp_(0, 255)
    return x.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def left_out(channels: int) -> list[str]:
    """Return a sentence about the operations that images of this number of channels do not have; none for three."""
    if channels == 3:
        return []
    return [f"{channels} channels: views are distorted in brightness, contrast and sharpness; hue, saturation and gray need 3 channels"]


def with_colors(batch: dict) -> dict:
    """Return a batch with its color distortions applied: NAME_color is applied to NAME, and removed."""
    drawn = [name for name in batch if name.endswith("_color")]
    distorted = {name.removesuffix("_color"): distort_color(batch[name.removesuffix("_color")], batch[name]) for name in drawn}
    return {name: value for name, value in (batch | distorted).items() if name not in drawn}


def _blend(x: Tensor, coefficients: Tensor) -> Tensor:
    f, a, b = coefficients[:, :, None, None, None].unbind(1)
    if x.shape[1] != 3:
        is_of_gray = a != 0  # saturation or gray
        f, b = f.masked_fill(is_of_gray, 1), b.masked_fill(is_of_gray, 0)
        return (x * f + x.mean((2, 3), keepdim=True) * b).clamp_(0, 1)
    gray = sum(share * channel for share, channel in zip(GRAY, x.unbind(1)))[:, None]
    return (x * f + (gray * a + gray.mean((2, 3), keepdim=True) * b)).clamp_(0, 1)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue by turn (B,), RGB -> HSV -> RGB: with V = max and chroma C = max - min, channel n is V - C clamp(min(k, 4 - k), 0, 1),
    k = (n + 6 hue) mod 6 for n = 5, 3, 1."""
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    over = 1 / chroma.clamp(min=1e-12)
    sixths = torch.where(value == green, 2 + (blue - red) * over, 4 + (red - green) * over)
    sixths = torch.where(value == red, (green - blue) * over, sixths) + 6 * turn[:, None, None]
    out = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = sixths + n
        k -= 6 * torch.floor(k / 6)
        out[:, channel] = value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of sigma (B,) px over a window of a tenth of the side, as in SimCLR; sigma 0 = unchanged."""
    batch, channels, height, width = x.shape
    reach = max(1, round(0.1 * min(height, width)) // 2)
    distance = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (C B, 1, window)
    x = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(F.conv2d(x, weights[:, :, None], groups=channels * batch), weights[..., None], groups=channels * batch)
    return x.view(batch, channels, height, width)
