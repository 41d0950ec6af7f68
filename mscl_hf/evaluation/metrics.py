"""Mean intersection over union (IoU), streamed: one (3, K) array of integers instead of all the maps.

The numbers are those of the metric `mean_iou` of the library `evaluate`, bit for bit, conventions included:
a class that occurs neither in predictions nor in labels is NaN and left out of the means; a class that is
predicted but never labelled has IoU 0 and counts; ids outside 0..K-1 belong to no class, yet the pixel still
counts for the other map's class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class MeanIoU:
    """Areas of intersection, prediction and label of every class, added up image by image.

    num_classes: K >= 1. ignore_index: label whose pixels are left out. reduce_labels: stored label 0 is "no
    class" and stored label i is class i - 1 (ADE20K); 0 and 255 become 255, as in `evaluate`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, reduce_labels: bool = False):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reduce_labels = reduce_labels
        self.total = np.zeros((3, num_classes), dtype=np.int64)

    def counts(self, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Pixels of one image, (3, K) int64: intersection, prediction area, label area; adds nothing.

        prediction, label: integer arrays of one shape, any integer type, any values.
        """
        prediction, label = _integers("prediction", prediction), _integers("label", label)
        if prediction.shape != label.shape:
            raise ValueError(
                f"the prediction is {prediction.shape} but the label is {label.shape}; "
                "bring the prediction to the label's size first."
            )
        if self.reduce_labels:
            label = reduced(label)
        kept = label != self.ignore_index
        prediction, label = prediction[kept], label[kept]
        # Compared as they are: clipping first would turn two different outsiders into a match.
        parts = (label[prediction == label], prediction, label)
        return np.stack([_histogram(part, self.num_classes) for part in parts])

    def add(self, counts: np.ndarray) -> None:
        """Add counts (3, K), of one image or summed over many; integers, so the order does not matter."""
        counts = np.asarray(counts)
        if counts.shape != self.total.shape or counts.dtype.kind not in "iu":
            raise ValueError(
                f"counts are {counts.dtype} of shape {counts.shape}, but integers of shape "
                f"{self.total.shape} are needed, as counts() returns them."
            )
        self.total += counts

    def compute(self, nan_to_num: float | None = None) -> dict:
        """mean_iou, mean_accuracy, overall_accuracy; per_category_iou, per_category_accuracy (K,); float64.

        nan_to_num: what to write for NaN, after the means were taken (absent classes never enter them).
        """
        intersection, predicted, labelled = self.total.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            overall = intersection.sum() / labelled.sum()
            iou = intersection / (predicted + labelled - intersection)
            accuracy = intersection / labelled
        result = {
            "mean_iou": mean_of_present(iou),
            "mean_accuracy": mean_of_present(accuracy),
            "overall_accuracy": overall,
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
        if nan_to_num is None:
            return result
        return {key: np.nan_to_num(value, nan=nan_to_num) for key, value in result.items()}


def mean_of_present(values: np.ndarray, classes: Sequence[int] | None = None) -> np.float64:
    """Mean of the values (K,) that are not NaN, over all classes or those listed; NaN when none is left."""
    chosen = values if classes is None else values[list(classes)]
    # np.nanmean warns on all-NaN input, but there the answer is known.
    return np.float64(np.nan) if np.isnan(chosen).all() else np.nanmean(chosen)


def reduced(label: np.ndarray) -> np.ndarray:
    """Labels one lower, 0 and 255 to 255 (`reduce_labels` of `evaluate`); int64, so nothing wraps around."""
    lower = label.astype(np.int64) - 1
    return np.where((lower == -1) | (lower == 254), 255, lower)


def _histogram(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each of 0..num_classes-1 occurs in ids (N,); other ids are left out."""
    # One comparison covers both ends: negative ids become huge when read as unsigned.
    inside = ids.astype(np.int64, copy=False).view(np.uint64) < num_classes
    return np.bincount(ids[inside].astype(np.int64, copy=False), minlength=num_classes)


def _integers(what: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise ValueError(f"the {what} is of type {array.dtype}, but ids are integers; take the argmax first.")
    return array
