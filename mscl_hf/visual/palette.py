"""Colours: of classes, of masks over images, of features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Okabe & Ito, "Color Universal Design" (2008): apart for all common kinds of colour blindness.
OKABE_ITO = ("0072B2", "E69F00", "009E73", "CC79A7", "56B4E9", "D55E00", "F0E442")
BACKGROUND = (150, 150, 150)

# Machado, Oliveira & Fernandes (IEEE TVCG 2009), severity 1, on linear RGB: protanopia, deuteranopia.
COLOUR_BLIND = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@lru_cache
def class_palette(count: int) -> np.ndarray:
    """(count, 3) uint8 colours, the first the same for every count, also apart for red- and green-blind eyes.

    Seven of Okabe and Ito, then always the colour of a grid that is farthest from all before it, in the
    CIELAB distance of whichever of three kinds of sight sees the least difference.
    """
    colours = np.array([list(bytes.fromhex(c)) for c in OKABE_ITO], dtype=np.uint8)
    levels = np.linspace(0, 255, 12).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    seen = _as_seen(grid)  # (3 kinds of sight, N, 3)
    grid, seen = (a[..., (seen[0, :, 0] > 20) & (seen[0, :, 0] < 92), :] for a in (grid, seen))
    # Black and white are the picture's ignored pixels and paper, so no class may come near them.
    taken = _as_seen(np.concatenate([colours, np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8)]))
    nearest = np.linalg.norm(seen[:, :, None] - taken[:, None], axis=-1).min(axis=(0, 2))  # (N,)
    while len(colours) < count:
        best = int(nearest.argmax())
        colours = np.concatenate([colours, grid[best : best + 1]])
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, best : best + 1], axis=-1).min(axis=0))
    colours = colours[:count]
    colours.flags.writeable = False  # it is cached
    return colours


def class_colours(classes: Sequence[str]) -> np.ndarray:
    """(K, 3) uint8: the palette, but grey for a class named background, so that objects stand out."""
    plain = [name.lower() in ("background", "_background_") for name in classes]
    colours = np.empty((len(classes), 3), dtype=np.uint8)
    colours[plain] = BACKGROUND
    colours[~np.array(plain, dtype=bool)] = class_palette(len(classes) - sum(plain))
    return colours


def overlay(image: np.ndarray, mask: np.ndarray, classes: Sequence[str], opacity: float = 0.7) -> np.ndarray:
    """The image (H, W, 3) uint8 under the colours of the mask (H, W); pixels of no class stay as they are.

    Under a colour the image loses half its contrast: the colour of a class must not depend on the light.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"image {image.shape[:2]} and mask {mask.shape} differ; bring them to one size.")
    table = np.zeros((256, 3))
    table[: len(classes)] = class_colours(classes)
    share = np.where(mask < len(classes), opacity, 0.0)[..., None]
    coloured = (image * 0.5 + 64) * (1 - share) + table[np.clip(mask, 0, 255)] * share
    return np.where(share > 0, coloured, image).round().astype(np.uint8)


def pca_colours(features: Tensor) -> np.ndarray:
    """(N, h, w, 3) uint8: three principal components of the pixels of all maps (N, D, h, w) together.

    Each component is spread over 0..255 between its 1st and 99th percentile, so that a few odd pixels do not
    grey out the rest. The sign of a component is fixed by its largest weight: one input, one picture.
    """
    values = np.moveaxis(features.detach().float().cpu().numpy(), 1, -1).astype(np.float64)  # (N, h, w, D)
    pixels = values.reshape(-1, values.shape[-1])
    if not np.isfinite(pixels).all():
        raise ValueError("the feature maps hold NaN or infinity; look for the step at which that began.")
    pixels = pixels - pixels.mean(0)
    _, axes = np.linalg.eigh(pixels.T @ pixels)  # ascending
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    parts = np.zeros((len(pixels), 3))
    parts[:, : axes.shape[1]] = pixels @ axes
    low, high = np.percentile(parts, [1, 99], axis=0)
    flat = high - low <= 1e-9 * max(1.0, float(np.abs(values).max()))
    scaled = np.where(flat, 0.5, (parts - low) / np.where(flat, 1, high - low))
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8).reshape(*values.shape[:-1], 3)


def _as_seen(colours: np.ndarray) -> np.ndarray:
    """(3, N, 3) CIELAB of sRGB colours (N, 3) uint8, as seen with usual, red-blind and green-blind eyes."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    sights = np.concatenate([np.eye(3)[None], COLOUR_BLIND])
    xyz = (linear @ sights.transpose(0, 2, 1)).clip(0, 1) @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(1)
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
