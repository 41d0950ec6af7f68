"""Colour distortion (SimCLR's, Chen et al., 2020, and its kin), drawn per sample, computed for a batch on its device; no pixel moves.

Brightness, contrast, saturation and grey are one formula, x -> clamp(f x + a grey(x) + b mean(grey(x))), so that every order of them around
the one turn of the hue is a row of coefficients: there is no branch on a sample, and nothing waits for the device.
Each operation is torchvision's of the same name. Letters: B images of H x W px.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 7  # three before the hue, three behind it, and grey
GREY = (0.2989, 0.587, 0.114)
SIZE = 3 * SLOTS + 3  # of the parameters of an image: the slots' (f, a, b), the turn of the hue, the blur's sigma in px, solarised or not


@dataclass(frozen=True)
class Colours:
    """How far brightness, contrast, saturation and hue may go, and the probability of each operation, in the order in which they act.

    Factors are uniform in 1 - x .. 1 + x, the hue turns by at most `hue` of the circle. grey_first: before the jitter instead of behind it.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0
    grey_first: bool = False

    @classmethod
    def simclr(cls, strength: float, blur: float) -> "Colours":
        """SimCLR's at strength s; 0 = no colour changes."""
        if strength == 0:
            return cls(jitter=0, grey=0, blur=blur)
        return cls(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, blur=blur)


def draw_colour(colours: Colours, rng: np.random.Generator) -> Tensor:
    """The parameters (SIZE,) of one image."""
    slots = np.tile([1.0, 0.0, 0.0], (SLOTS, 1))
    hue = sigma = 0.0
    grey = colours.grey_first and rng.random() < colours.grey
    if colours.jitter and rng.random() < colours.jitter:
        spans = np.array([colours.brightness, colours.contrast, colours.saturation])
        factors = rng.uniform(np.maximum(0, 1 - spans), 1 + spans)
        hue = float(np.clip(rng.uniform(-colours.hue, colours.hue), -0.5, 0.5))
        rows = [[f, (1 - f) * saturation, (1 - f) * contrast] for f, saturation, contrast in zip(factors, (0, 0, 1), (0, 1, 0))]
        order = rng.permutation(4).tolist()  # 3 is the hue
        for place, which in enumerate(order):
            if which != 3:
                slots[place if place < order.index(3) else place + 2] = rows[which]
        if grey:  # what is grey has no saturation and no hue: its two operations follow the grey in the first slots
            slots[:] = [1.0, 0.0, 0.0]
            slots[1:3] = [rows[which] for which in order if which < 2]
            hue = 0.0
    if grey:
        slots[0] = [0, 1, 0]
    if not colours.grey_first and colours.grey and rng.random() < colours.grey:
        slots[-1] = [0, 1, 0]
    if rng.random() < colours.blur:
        sigma = float(rng.uniform(0.1, 2.0))
    solarised = bool(colours.solarise) and rng.random() < colours.solarise
    return torch.tensor([*slots.flatten(), hue, sigma, solarised], dtype=torch.float32)


def distort_colour(images: Tensor, parameters: Tensor) -> Tensor:
    """images (B, 3, H, W) in levels of 0 to 255, uint8 or float32, parameters (B, SIZE) of `draw_colour` -> the same type."""
    slots, (hue, sigma, solarised) = parameters[:, :-3].view(-1, SLOTS, 3), parameters[:, -3:].unbind(1)
    x = images.float() / 255
    for slot in range(3):
        x = _blend(x, slots[:, slot])
    x = _turn_hue(x, hue)
    for slot in range(3, SLOTS):
        x = _blend(x, slots[:, slot])
    x = _blur(x, sigma)
    x = torch.where((solarised[:, None, None, None] > 0) & (x >= 0.5), 1 - x, x)
    if images.dtype != torch.uint8:
        return x.mul(255).clamp_(0, 255)
    return x.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def coloured(batch: dict) -> dict:
    """A batch on its device with the colours that were drawn for its images: NAME_colour is applied to NAME, and gone."""
    drawn = [name for name in batch if name.endswith("_colour")]
    done = {name.removesuffix("_colour"): distort_colour(batch[name.removesuffix("_colour")], batch[name]) for name in drawn}
    return {name: value for name, value in (batch | done).items() if name not in drawn}


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
