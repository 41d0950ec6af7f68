"""SimCLR's colour distortion (Chen et al., 2020), drawn per sample and computed for a whole batch on its device; no pixel moves.

Brightness, contrast, saturation and grey are one formula, x -> clamp(f x + a grey(x) + b mean(grey(x))), so that every order of them around
the one turn of the hue is a row of coefficients: there is no branch on a sample, and nothing waits for the device.
Each operation is torchvision's of the same name. Letters: B images of H x W px.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 7  # three before the hue, three behind it, and grey
GREY = (0.2989, 0.587, 0.114)
SIZE = 3 * SLOTS + 2  # of the parameters of an image: the slots' (f, a, b), the turn of the hue, the blur's sigma in px


def draw_colour(strength: float, blur: float, rng: np.random.Generator) -> Tensor:
    """The parameters (SIZE,) of one image: jitter with probability 0.8, grey 0.2, a Gaussian blur with probability `blur`."""
    slots = np.tile([1.0, 0.0, 0.0], (SLOTS, 1))
    hue = sigma = 0.0
    if strength > 0 and rng.random() < 0.8:
        factors = rng.uniform(max(0, 1 - 0.8 * strength), 1 + 0.8 * strength, 3)
        hue = float(np.clip(rng.uniform(-0.2 * strength, 0.2 * strength), -0.5, 0.5))
        rows = [[f, (1 - f) * saturation, (1 - f) * contrast] for f, saturation, contrast in zip(factors, (0, 0, 1), (0, 1, 0))]
        order = rng.permutation(4).tolist()  # 3 is the hue
        for place, which in enumerate(order):
            if which != 3:
                slots[place if place < order.index(3) else place + 2] = rows[which]
    if strength > 0 and rng.random() < 0.2:
        slots[-1] = [0, 1, 0]
    if rng.random() < blur:
        sigma = float(rng.uniform(0.1, 2.0))
    return torch.tensor([*slots.flatten(), hue, sigma], dtype=torch.float32)


def distort_colour(images: Tensor, parameters: Tensor) -> Tensor:
    """images (B, 3, H, W) uint8, parameters (B, SIZE) of `draw_colour` -> uint8."""
    slots, hue, sigma = parameters[:, :-2].view(-1, SLOTS, 3), parameters[:, -2], parameters[:, -1]
    x = images.float() / 255
    for slot in range(3):
        x = _blend(x, slots[:, slot])
    x = _turn_hue(x, hue)
    for slot in range(3, SLOTS):
        x = _blend(x, slots[:, slot])
    return _blur(x, sigma).mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _blend(x: Tensor, coefficients: Tensor) -> Tensor:
    f, a, b = coefficients[:, :, None, None, None].unbind(1)
    grey = sum(share * channel for share, channel in zip(GREY, x.unbind(1)))[:, None]
    return (x * f + (grey * a + grey.mean((2, 3), keepdim=True) * b)).clamp_(0, 1)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """RGB -> HSV, hue + turn (B,), -> RGB: with V = max and chroma C = max - min, channel n is V - C clamp(min(k, 4 - k), 0, 1),
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
    """A Gaussian of sigma (B,) px over a window of a tenth of the side, as in SimCLR; sigma 0 leaves an image as it is."""
    batch, _, height, width = x.shape
    reach = max(1, round(0.1 * min(height, width)) // 2)
    distance = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # (3B, 1, window)
    x = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(F.conv2d(x, weights[:, :, None], groups=3 * batch), weights[..., None], groups=3 * batch)
    return x.view(batch, 3, height, width)
