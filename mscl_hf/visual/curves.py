"""Curves of a training run: all values of its log, and the held-out IoU of each class.

The drawing functions import matplotlib, so that importing this file stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .figures import literal, new_figure, save
from .palette import class_palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels of the training figure: the title, and a function that selects the keys of the log.
PANELS = {
    "loss": lambda key: key == "loss" or key.startswith(("loss_", "floor_")),
    "excess (loss above its floor)": lambda key: key.startswith("excess_"),
    "held-out mean IoU": lambda key: key.startswith("val_mean_iou"),
    "share of confident unlabelled pixels": lambda key: key in ("kept_share", "pseudo_label_share"),
    "classes with confident unlabelled pixels": lambda key: key == "pseudo_label_classes",
    "linear probe mean IoU": lambda key: key.endswith("mean_iou"),
    "learning rate": lambda key: key == "lr" or key.startswith("lr_"),
    "gradient norm": lambda key: key.startswith("grad_norm"),
    "images per second": lambda key: key == "images_per_second",
    "share of time waiting for data": lambda key: key == "data_wait",
    "share with a match": lambda key: key.startswith("matched_"),
    "effective rank": lambda key: key.startswith("effective_rank"),
    "spread per dimension": lambda key: key.startswith("spread"),
}
REPEATED = ("effective_rank_", "spread_", "matched_", "val_mean_iou_", "val_class_iou_")  # prefixes of keys that repeat the panel's title
NAMES = {  # of keys in legends
    "val_mean_iou": "published", "val_class_iou": "published", "kept_share": "in training", "pseudo_label_share": "of the checked images",
}  # fmt: skip
LOGARITHMIC = ("gradient norm",)
# These axes start at 0: a collapse is then seen as a fall to 0, and a small share looks small.
FROM_ZERO = (
    "images per second", "share of time waiting for data", "share with a match", "effective rank", "spread per dimension",
    "held-out mean IoU", "linear probe mean IoU", "share of confident unlabelled pixels", "classes with confident unlabelled pixels",
)  # fmt: skip


def training_figure(log: Sequence[dict], path: str | Path, title: str = "") -> None:
    """Draw all curves of a log, related ones in one panel.

    log: one dict for each logged step, with `step` and numbers by name; names may be missing in some of them.
    """
    panels = _panels(log)
    if not panels:
        raise ValueError("The log holds no number beside the step; expected at least one logged step. Train for more steps.")
    _draw_panels(panels, path, title)


def class_figure(log: Sequence[dict], path: str | Path, title: str = "") -> None:
    """Draw the held-out IoU of each class over the steps, one panel for each class; nothing where the log has none."""
    panels: dict[str, dict[str, list]] = {}
    for row in log:
        for key in (key for key in row if key.startswith("val_class_iou")):
            for name, value in row[key].items():
                if value is not None:
                    panels.setdefault(name, {}).setdefault(key, []).append((row["step"], value))
    if panels:
        arrays = {name: {key: np.array(points, dtype=float) for key, points in curves.items()} for name, curves in panels.items()}
        _draw_panels(arrays, path, f"held-out IoU of each class{f': {title}' if title else ''}", from_zero=tuple(arrays))


def _draw_panels(panels: dict[str, dict[str, np.ndarray]], path: str | Path, title: str, from_zero: Sequence[str] = FROM_ZERO) -> None:
    """Draw {title: {key: points (steps, 2)}}, three panels a row. from_zero: titles of panels whose axis starts at 0."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.5 * columns, 2.3 * rows + (0.4 if title else 0.1), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, curves) in zip(axes, panels.items()):
        _draw_panel(axis, name, curves, name in from_zero)
    for axis in axes[len(panels) :]:
        axis.remove()
    if title:
        figure.suptitle(literal(title), fontsize=11)
    save(figure, path)


def _panels(log: Sequence[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Return {title: {key: (steps, 2) of step and value}}; a key that PANELS does not select gets its own panel."""
    curves: dict[str, list] = {}
    for position, row in enumerate(log):
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                curves.setdefault(key, []).append((row.get("step", position), value))
    panels: dict[str, dict] = {}
    for title, selects in PANELS.items():
        selected = {key: np.array(curves.pop(key), dtype=float) for key in list(curves) if selects(key)}
        panels |= {title: selected} if selected else {}
    return panels | {_words(key): {key: np.array(points, dtype=float)} for key, points in curves.items()}


def _draw_panel(axis: Axes, name: str, curves: dict[str, np.ndarray], from_zero: bool) -> None:
    for (key, points), color in zip(curves.items(), class_palette(len(curves)) / 255):
        style = {"color": color, "linewidth": 1.3, "label": literal(_words(key))}
        is_floor = key.startswith("floor_")
        style |= {"linestyle": "--", "linewidth": 1.0} if is_floor else {}
        if len(points) <= 40:
            style |= {"marker": "_" if is_floor else "o", "markersize": 7 if is_floor else 2.5}
        elif len(points) >= 120 and not is_floor:
            axis.plot(*points.T, color=color, alpha=0.25, linewidth=0.6)
            points = _smoothed(points, len(points) // 40)
        axis.plot(*points.T, **style)
    values = np.concatenate([points[:, 1] for points in curves.values()])
    values = values[np.isfinite(values)]
    if name in LOGARITHMIC and values.size and values.min() > 0 and values.max() > 30 * values.min():
        axis.set_yscale("log")
    if from_zero:
        axis.set_ylim(0, 1.08 * values.max() if values.size and values.max() > 0 else 1)
    axis.set_title(literal(name), fontsize=9)
    axis.set_xlabel("step", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    steps = {step for points in curves.values() for step in points[:, 0]}
    if len(steps) == 1:
        axis.set_xlim(min(steps) - 1, min(steps) + 1)  # otherwise no whole number but the step is in view
    axis.yaxis.get_offset_text().set_fontsize(7)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        bottom, top = axis.get_ylim()
        rows = -(-len(curves) // 3)
        axis.set_ylim(bottom, top + 0.12 * rows * (top - bottom))  # space for the legend above the curves
        axis.legend(fontsize=6.5, framealpha=0.75, edgecolor="none", loc="upper right", ncols=3)


def _words(key: str) -> str:
    if key in NAMES:
        return NAMES[key]
    for prefix in REPEATED:
        key = key.removeprefix(prefix)
    return key.replace("_", " ")


def _smoothed(points: np.ndarray, width: int) -> np.ndarray:
    """Return the running mean of points (steps, 2) over `width` steps; steps are averaged too, so that the ends stay on the curve."""
    return np.lib.stride_tricks.sliding_window_view(points, width, axis=0).mean(-1)
