"""Colors of classes, of masks over images, and of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND = (150, 150, 150)

# The first seven are those of Okabe & Ito, "Color Universal Design" (2008). Each of the others is the color of a 12 x 12 x 12 grid that
# is farthest (CIELAB) from all before it, and from black and white, for the type of sight (usual, red-blind, green-blind) that sees
# the smallest difference. A test measures the distances.
PALETTE = (
    "0072b2", "e69f00", "009e73", "cc79a7", "56b4e9", "d55e00", "f0e442", "0000ff", "5d2e00", "2e17a2", "e8e8a2", "5d74ff", "5d175d",
    "742e46", "00b95d", "e8b9b9", "2e46e8", "5de8ff", "8b5d2e", "2ea2ff", "e8e874", "177474", "1746a2", "745d46", "5d0074", "e87446",
    "5db9d1", "0074d1", "5d5d8b", "5d1717", "ffd1b9", "1700d1", "d1b98b", "5d1746", "ffa246", "005dd1", "d1d174", "a24600", "d18b8b",
    "8be8e8", "008bb9", "ffb900", "5d468b", "0017b9", "8b2e2e", "2e8bd1", "5d2eff", "a2745d", "5d5dff", "d18ba2", "2e178b", "74d1ff",
    "8b8b17", "74002e", "74e8d1", "b95d8b", "8b465d", "744617", "e8e85d", "2e46d1", "2ed1d1", "74ffd1", "a27446", "742e5d", "b92e46",
    "468bff", "5dd146", "a2742e", "46a2e8", "d100a2", "e8a2b9", "465d74", "d1d18b", "e8e88b", "464674", "d1a28b", "d1d15d", "0046b9",
    "8b5d5d", "e8742e", "008b8b", "e8b9a2", "175d2e", "e85d74", "b9b974", "a2ff00", "e8d1a2", "005db9", "178be8", "e88b5d", "00a2d1",
    "462e8b", "5da2b9", "74a246", "1774a2", "d1a2a2", "172e74", "172ed1", "46b9ff", "172eb9", "2e2ea2", "5dd1e8", "4674e8", "462e2e",
    "1717e8", "5dffe8", "46ffff", "d10074", "5d5de8", "ff8b2e", "468b5d", "a20017", "e8d146", "8b5d74", "8bd1a2", "e800a2", "d146b9",
    "ff74b9", "741717", "ffe800", "8ba28b", "a28bd1", "46e874", "d1b9e8", "ff74e8", "b9a274", "a2e8b9", "5dff8b", "d1b9d1", "8b17a2",
    "e8d12e", "465d5d", "8b5da2", "8b00e8", "7446b9", "d14600", "8b8b8b", "74ff74", "5d46ff", "7446d1", "17742e", "74175d", "e8e8e8",
    "a28b5d", "2e4646", "b9a2ff", "ff17ff", "8b5dd1", "74008b", "d146e8", "46e85d", "b98b2e", "e85db9", "b9b95d", "e80046", "a2b92e",
    "a274ff", "5d4600", "e8e8d1", "8b5d8b", "a28b74", "5d7446", "a21700", "e85dd1", "8be846", "74ff5d", "5de88b", "a24617", "ff5d00",
    "a22e2e", "2ed174", "4617ff", "ff2e5d", "d18b17", "008b74", "e8d1d1", "8be8a2", "74b9e8", "b98b46", "742e74", "b9d1e8", "b92e2e",
    "d1178b", "74d18b", "2e4617", "741746", "5db974", "e8e8b9", "a2a2b9", "7474a2", "2e00a2", "ff8bd1", "7446e8", "5d00d1", "74745d",
    "a2b9ff", "74ffa2", "5d2e74", "b9a25d", "8bff46", "8bb98b", "d1d1ff", "5d2eb9", "2e7400", "2eb9a2", "2e465d", "d10000", "b9462e",
    "8b172e", "46d1b9", "5de800", "178b2e", "8b2e8b", "5d005d", "ff2e46", "d1b946", "a2d12e", "5d5db9", "e8b95d", "0000b9", "a200d1",
    "d1b9ff", "5d17e8", "b9b9a2", "d1b917", "2e8b46", "462e00", "74b9b9", "b974a2", "46d15d", "2ea22e", "74a200", "e85de8", "a2d1b9",
    "ff46d1", "8ba2ff", "46ffb9", "744646", "b9a2d1", "ffd18b", "b94617", "004674", "8b1746", "e874e8", "46a274", "8b8bb9", "8bb9a2",
    "e8d1e8", "e85da2", "ff4674", "d117e8", "ff1717", "748bd1", "d1e8ff", "ff468b",
)  # fmt: skip
_COLORS = np.array([list(bytes.fromhex(color)) for color in PALETTE], dtype=np.uint8)
_COLORS.flags.writeable = False


def class_palette(count: int) -> np.ndarray:
    """Return (count, 3) uint8 colors, which red-blind and green-blind people can distinguish too; after 255 colors they repeat."""
    return _COLORS[:count] if count <= len(_COLORS) else _COLORS[np.arange(count) % len(_COLORS)]


def class_colors(classes: Sequence[str]) -> np.ndarray:
    """Return the colors of the classes, (K, 3) uint8: the palette, but gray for a class named background."""
    is_background = np.array([name.lower() in ("background", "_background_") for name in classes], dtype=bool)
    colors = np.empty((len(classes), 3), dtype=np.uint8)
    colors[is_background] = BACKGROUND
    colors[~is_background] = class_palette(len(classes) - int(is_background.sum()))
    return colors


def overlay(image: np.ndarray, mask: np.ndarray, classes: Sequence[str], opacity: float = 0.7) -> np.ndarray:
    """Return the image (H, W, 3) uint8 with the colors of the mask (H, W) over it; pixels of no class are unchanged.

    Under a color the contrast of the image is halved, so that the color of a class depends little on the brightness of the image.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"The mask is {mask.shape}; expected {image.shape[:2]}, the size of the image. Scale one of them.")
    colors = np.zeros((256, 3))
    colors[: len(classes)] = class_colors(classes)
    weight = np.where(mask < len(classes), opacity, 0.0)[..., None]
    mixed = (image * 0.5 + 64) * (1 - weight) + colors[np.clip(mask, 0, 255)] * weight
    return np.where(weight > 0, mixed, image).round().astype(np.uint8)


def pca_colors(features: Tensor) -> np.ndarray:
    """Return (N, h, w, 3) uint8: the first three principal components of feature maps (N, D, h, w), computed over all maps together.

    Each component is scaled to 0..255 between its 1st and 99th percentile, so that outliers do not hide the rest. The sign of a
    component is that of its largest weight, so that equal features give equal colors.
    """
    values = np.moveaxis(features.detach().float().cpu().numpy(), 1, -1).astype(np.float64)  # (N, h, w, D)
    pixels = values.reshape(-1, values.shape[-1])
    if not np.isfinite(pixels).all():
        raise ValueError("The feature maps hold NaN or infinity; expected finite numbers. Use an earlier checkpoint.")
    pixels = pixels - pixels.mean(0)
    _, axes = np.linalg.eigh(pixels.T @ pixels)  # ascending
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    components = np.zeros((len(pixels), 3))
    components[:, : axes.shape[1]] = pixels @ axes
    low, high = np.percentile(components, [1, 99], axis=0)
    is_constant = high - low <= 1e-9 * max(1.0, float(np.abs(values).max()))
    scaled = np.where(is_constant, 0.5, (components - low) / np.where(is_constant, 1, high - low))
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8).reshape(*values.shape[:-1], 3)
