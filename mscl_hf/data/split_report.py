"""What was found in one split of a data set, and its lines of text."""

from collections import Counter
from dataclasses import dataclass, field

import datasets
import numpy as np

from ..losses.labels import IGNORE_INDEX
from .dataset import SegmentationData
from .val_fraction import is_list

MOST_SIZES = 5  # listed


@dataclass
class SplitReport:
    """What was found in a split. sizes: images by (width, height). pixels: (N, 256) of each train id in each examined mask, by row.

    data: the split, with counts of its labels; None if it cannot be opened. faults: a message for each unusable sample.
    assumed: whether the split could only be opened in another way than the options say, so that its classes are not known.
    """

    split: str
    data: SegmentationData | None = None
    sizes: Counter = field(default_factory=Counter)
    pixels: dict[int, np.ndarray] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    assumed: bool = False

    @property
    def is_labelled(self) -> bool:
        """Whether the masks and their classes are known."""
        return self.data is not None and self.data.labelled and not self.assumed

    @property
    def shares(self) -> np.ndarray:
        """(K,) the share of each class of the labelled pixels."""
        return self.data.labels.pixels / max(1, self.data.labels.pixels.sum())

    def example(self, class_id: int) -> str:
        """Return the file or name of the sample that holds most pixels of a class; "" if none does."""
        row = max(self.pixels, key=lambda index: self.pixels[index][class_id], default=None)
        if row is None or not self.pixels[row][class_id]:
            return ""
        mask = self.data.stored(row).get("mask") or {} if isinstance(self.data.rows, datasets.Dataset) else {}
        return mask.get("path") or self.data.names[row]

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        name = "val" if is_list(self.split) else self.split
        if self.data is None:
            return [f"{name}: cannot be opened"]
        lines = [f"{name}: {self.data.note or f'{len(self.data)} images'}"]
        common = ", ".join(f"{width}x{height} ({count})" for (width, height), count in self.sizes.most_common(MOST_SIZES))
        lines.append(f"  sizes: {common or 'none could be read'}{' and others' if len(self.sizes) > MOST_SIZES else ''}")
        if not self.data.labelled:
            return lines
        labels, width = self.data.labels, max(map(len, ("ignored (255)", *self.data.classes)))
        lines.append(f"  {'class'.ljust(width)}    pixels    masks  example")
        for number, name in enumerate(self.data.classes):
            if self.assumed and not labels.pixels[number]:
                continue
            share, masks = self.shares[number], int(labels.images[number])
            lines.append(f"  {name.ljust(width)}  {share:>8.2%}  {masks:>7}  {self.example(number)}".rstrip())
        total = labels.ignored + labels.pixels.sum()
        masks = sum(int(histogram[IGNORE_INDEX] > 0) for histogram in self.pixels.values())
        lines.append(f"  {'ignored (255)'.ljust(width)}  {labels.ignored / max(1, total):>8.2%}  {masks:>7}  (of all pixels)")
        return lines
