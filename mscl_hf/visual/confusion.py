"""A picture of a confusion matrix: which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .figures import literal, new_figure, save

ALL, MOST = 40, 30  # up to ALL classes are drawn, and MOST of more
CELL, NUMBERED = 0.3, 0.01  # side of a cell [inch]; shares from this one on are written as numbers
LONGEST = 24  # letters of a name
OTHERS = "(others)"


def confusion_figure(counts: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the share of the pixels of each class (row) that are predicted as each class (column), in %.

    counts: (K, K) pixels by true and predicted class. Classes without a labelled pixel have no row. Of more than ALL classes, the MOST
    frequent ones are drawn, and a last column for all others. Raises ValueError without a labelled pixel.
    """
    counts = np.asarray(counts, dtype=np.float64)
    labelled = counts.sum(1)
    if not labelled.any():
        raise ValueError("counts are all 0; expected at least one labelled pixel.")
    used = np.flatnonzero(labelled + counts.sum(0))
    order = used[np.argsort(-labelled[used], kind="stable")]  # the most frequent class first
    drawn = order if len(order) <= ALL else order[:MOST]
    rows = drawn[labelled[drawn] > 0]
    shares = counts[np.ix_(rows, drawn)] / labelled[rows, None]
    names = [_shortened(classes[i]) for i in drawn]
    if len(drawn) < len(order):
        shares, names = np.hstack([shares, 1 - shares.sum(1, keepdims=True)]), [*names, OTHERS]
    _draw(shares, [_shortened(classes[i]) for i in rows], names, path)


def _draw(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], path: str | Path) -> None:
    margin = 0.5 + 0.075 * max(map(len, columns))  # inch
    figure = new_figure(margin + CELL * len(columns) + 0.4, margin + CELL * len(rows) + 0.4, layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(columns)), map(literal, columns), rotation=90, fontsize=7)
    axis.set_yticks(range(len(rows)), map(literal, rows), fontsize=7)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    for row, column in zip(*np.nonzero(shares >= NUMBERED)):
        share = shares[row, column]
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color="white" if share > 0.55 else "black")
    figure.suptitle("pixels of each class by prediction (%)", fontsize=9)
    save(figure, path)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
