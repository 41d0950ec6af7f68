"""The scores of `evaluate_model` by class: a table, and a picture of the confusion matrix."""

from pathlib import Path

import numpy as np

from ..visual.confusion import confusion_figure

ABSENT = "absent"


def class_table(results: dict) -> list[tuple[str, ...]]:
    """Return rows of class, share of the labelled pixels, IoU and accuracy in %, below a header; the most frequent class comes first."""
    pixels = results["per_class_pixels"]
    total = max(1, sum(pixels.values()))
    rows = [("class", "pixels", "IoU", "accuracy")]
    for name in sorted(pixels, key=lambda name: -pixels[name]):
        values = [results[key][name] for key in ("per_class_iou", "per_class_accuracy")]
        shown = (ABSENT if values[0] is None else f"{100 * values[0]:.1f}", "-" if values[1] is None else f"{100 * values[1]:.1f}")
        rows.append((name, f"{100 * pixels[name] / total:.2f}", *shown))
    return rows


def draw_confusion(results: dict, folder: Path) -> None:
    """Draw confusion.png; nothing where no pixel is labelled."""
    classes = list(results["per_class_iou"])
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for true, predictions in results["confusion"].items():
        for predicted, pixels in predictions.items():
            counts[classes.index(true), classes.index(predicted)] = pixels
    if counts.any():
        confusion_figure(counts, classes, folder / "confusion.png")
