"""How many pixels of each class the masks hold, counted mask by mask."""

import numpy as np

IGNORE_INDEX = 255


class LabelCounts:
    """Labelled pixels, added up mask by mask.

    pixels, images: (K,) int64, the pixels of each class and the masks that hold it. ignored: pixels with the ignored label.
    read: masks counted. total: masks of the data set, of which `read` may be a part; None for a stream that was not read to its end.
    vanished: classes that the stored masks hold, and none of the counted ones, which are smaller.
    """

    def __init__(self, num_classes: int, total: int | None):
        self.pixels = np.zeros(num_classes, dtype=np.int64)
        self.images = np.zeros(num_classes, dtype=np.int64)
        self.ignored, self.read, self.total = 0, 0, total
        self.vanished: list[int] = []

    def add(self, histogram: np.ndarray) -> None:
        """Add one mask. histogram: (256,) pixels of each train id, as `histogram_of` returns it."""
        classes = histogram[: len(self.pixels)]
        self.pixels += classes
        self.images += classes > 0
        self.ignored += int(histogram[IGNORE_INDEX])
        self.read += 1

    @property
    def present(self) -> list[int]:
        """The classes that at least one mask holds."""
        return np.flatnonzero(self.pixels).tolist()

    @property
    def stored(self) -> list[int]:
        """The classes that at least one mask holds at its stored size."""
        return sorted({*self.present, *self.vanished})


def histogram_of(mask: np.ndarray) -> np.ndarray:
    """(256,) int64, the pixels of each train id of a mask (H, W) uint8."""
    return np.bincount(mask.ravel(), minlength=256)
