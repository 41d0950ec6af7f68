"""A picture of the labels that a teacher gives to unlabelled images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .figures import draw_table, present
from .palette import overlay


def pseudo_label_sheet(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], confidence: Sequence[np.ndarray], classes: Sequence[str], path: str | Path
) -> None:
    """Draw rows of image | labels | confidence, white = certain, with a legend of the classes that occur.

    images: (H, W, 3) uint8 each. labels: (H, W) class ids each, 255 = not confident. confidence: (H, W) in [0, 1] each.
    """
    gray = [np.repeat(np.round(255 * values)[..., None], 3, axis=2).astype(np.uint8) for values in confidence]
    table = [[image, overlay(image, ids, classes), values] for image, ids, values in zip(images, labels, gray)]
    draw_table(table, ("image", "teacher's labels", "confidence"), present(classes, labels), path)
