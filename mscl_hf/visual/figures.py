"""Every picture the project draws: predictions, training curves, feature maps.

matplotlib is imported by the functions that draw, so that importing this file costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .palette import class_colours, class_palette, overlay, pca_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["class_palette", "comparison_strip", "feature_maps_sheet", "overlay", "prediction_sheet", "training_figure"]

WRONG, IGNORED = (228, 26, 28), (0, 0, 0)
DPI = 120

# The panels of the training figure: a title, and which keys of the log belong there.
FAMILIES = {
    "loss": lambda key: key == "loss" or key.startswith(("loss_", "floor_")),
    "loss above its floor": lambda key: key.startswith("excess_"),
    "mean IoU": lambda key: key.endswith("mean_iou"),
    "learning rate": lambda key: key == "lr" or key.startswith("lr_"),
    "gradient norm": lambda key: key.startswith("grad_norm"),
    "images per second": lambda key: key == "images_per_second",
    "share of time waiting for data": lambda key: key == "data_wait",
    "share with a match": lambda key: key.startswith("matched_"),
    "effective rank": lambda key: key.startswith("effective_rank"),
    "spread per dimension": lambda key: key.startswith("spread"),
}
SHORTER = ("effective_rank_", "spread_", "matched_")  # the panel's title says it already
LOGARITHMIC = ("gradient norm",)
# Collapse is a fall to zero, and a small share looks large on an axis of its own: these start at 0.
FROM_ZERO = ("images per second", "share of time waiting for data", "share with a match", "effective rank", "spread per dimension")


def prediction_sheet(rows: Sequence[tuple], classes: Sequence[str], path: str | Path) -> None:
    """Rows of (image, truth, prediction, name) as image | truth | prediction | errors, with a legend.

    image: (H, W, 3) uint8. truth (None = not known) and prediction: (H, W) class ids; 255 is ignored.
    """
    if not rows:
        raise ValueError("there is no row to draw; give at least one (image, truth, prediction, name).")
    seen = _present(classes, [mask for row in rows for mask in row[1:3]])
    swatches = seen | {"wrong": WRONG, "ignored": IGNORED}
    sheet = _Sheet([row[0].shape for row in rows], ("image", "truth", "prediction", "errors"), swatches)
    for line, (image, truth, prediction, name) in enumerate(rows):
        sheet.show(line, 0, image, name)
        sheet.show(line, 2, overlay(image, prediction, classes))
        if truth is not None:
            sheet.show(line, 1, overlay(image, truth, classes))
            sheet.show(line, 3, _errors(image, truth, prediction, len(classes)))
    _save(sheet.figure, path)


def comparison_strip(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    path: str | Path,
) -> None:
    """Rows of images beside masks of theirs, a column a title (truth, none, ours), with a legend of the classes that occur.

    images: (H, W, 3) uint8 each. columns: {title: (H, W) class ids for every image}; 255 is ignored.
    """
    if not len(images) or {len(masks) for masks in columns.values()} != {len(images)}:
        counts = ", ".join(f"{len(masks)} for {title}" for title, masks in columns.items())
        raise ValueError(f"got {len(images)} images and these masks: {counts or 'none'}; give as many of each, and at least one.")
    seen = _present(classes, [mask for masks in columns.values() for mask in masks])
    sheet = _Sheet([image.shape for image in images], ("image", *columns), seen)
    for line, image in enumerate(images):
        sheet.show(line, 0, image)
        for place, masks in enumerate(columns.values(), 1):
            sheet.show(line, place, overlay(image, masks[line], classes))
    _save(sheet.figure, path)


def feature_maps_sheet(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None],
    features: Tensor,
    path: str | Path,
    classes: Sequence[str] = (),
) -> None:
    """image | mask | features, whose three main directions over all images are shown as red, green and blue.

    images: (H, W, 3) uint8 each. masks: (H, W) class ids each, or None. features: (N, D, h, w).
    classes: their names, for the legend; without names there is none.
    """
    if not len(images) == len(masks) == len(features) > 0:
        sizes = f"{len(images)} images, {len(masks)} masks and {len(features)} feature maps"
        raise ValueError(f"got {sizes}; give as many of each, and at least one.")
    known = [mask for mask in masks if mask is not None]
    highest = max((int(mask[mask < 255].max(initial=0)) for mask in known), default=0)
    names = list(classes) or [str(i) for i in range(highest + 1)]
    titles = ("image", "mask", "features (PCA)") if known else ("image", "features (PCA)")
    sheet = _Sheet([image.shape for image in images], titles, _present(names, known) if classes else {})
    for line, (image, mask, colours) in enumerate(zip(images, masks, pca_colours(features))):
        sheet.show(line, 0, image)
        if mask is not None:
            sheet.show(line, 1, overlay(image, mask, names))
        sheet.show(line, len(titles) - 1, colours)
    _save(sheet.figure, path)


def training_figure(log: Sequence[dict], path: str | Path, title: str = "") -> None:
    """All curves of a log, a panel for each family of quantities that occurs in it.

    log: one dict a logged step, with `step` and numbers by name; any row may lack any of them.
    """
    panels = _panels(log)
    if not panels:
        raise ValueError("the log holds no number beside the step; train for at least one logged step first.")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = _figure(3.5 * columns, 2.3 * lines + (0.4 if title else 0.1), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (name, curves) in zip(axes, panels.items()):
        _draw_panel(axis, name, curves)
    for axis in axes[len(panels) :]:
        axis.remove()
    if title:
        figure.suptitle(_literal(title), fontsize=11)
    _save(figure, path)


def _panels(log: Sequence[dict]) -> dict[str, dict[str, np.ndarray]]:
    """{panel: {key: (points, 2) of step and value}}; a number of no known family gets a panel of its own."""
    curves: dict[str, list] = {}
    for position, row in enumerate(log):
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                curves.setdefault(key, []).append((row.get("step", position), value))
    panels: dict[str, dict] = {}
    for family, takes in FAMILIES.items():
        own = {key: np.array(curves.pop(key), dtype=float) for key in list(curves) if takes(key)}
        panels |= {family: own} if own else {}
    return panels | {_words(key): {key: np.array(points, dtype=float)} for key, points in curves.items()}


def _draw_panel(axis: Axes, name: str, curves: dict[str, np.ndarray]) -> None:
    for (key, points), colour in zip(curves.items(), class_palette(len(curves)) / 255):
        style = {"color": colour, "linewidth": 1.3, "label": _literal(_words(key))}
        if key.startswith("floor_"):
            style |= {"linestyle": "--", "linewidth": 1.0}
        elif len(points) <= 40:
            style |= {"marker": "o", "markersize": 2.5}
        elif len(points) >= 120:
            axis.plot(*points.T, color=colour, alpha=0.25, linewidth=0.6)
            points = _smoothed(points, len(points) // 40)
        axis.plot(*points.T, **style)
    values = np.concatenate([points[:, 1] for points in curves.values()])
    values = values[np.isfinite(values)]
    if name in LOGARITHMIC and values.size and values.min() > 0 and values.max() > 30 * values.min():
        axis.set_yscale("log")
    if name in FROM_ZERO:
        axis.set_ylim(0, 1.08 * values.max() if values.size and values.max() > 0 else 1)
    axis.set_title(_literal(name), fontsize=9)
    axis.set_xlabel("step", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.get_offset_text().set_fontsize(7)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        bottom, top = axis.get_ylim()
        rows = -(-len(curves) // 3)
        axis.set_ylim(bottom, top + 0.12 * rows * (top - bottom))  # room for the names, above all curves
        axis.legend(fontsize=6.5, framealpha=0.75, edgecolor="none", loc="upper right", ncols=3)


def _words(key: str) -> str:
    for prefix in SHORTER:
        key = key.removeprefix(prefix)
    return key.replace("_", " ")


def _literal(text: str) -> str:
    """For matplotlib, which would set what stands between two $ as mathematics; halves of characters, of file names, have no letter."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def _smoothed(points: np.ndarray, width: int) -> np.ndarray:
    """Running mean over `width` points, of steps and values alike, so that no end is bent."""
    return np.lib.stride_tricks.sliding_window_view(points, width, axis=0).mean(-1)


class _Sheet:
    """A table of pictures, placed by the inch: rows of pictures (H, W), a title a column, swatches below."""

    WIDTH, GAP, LEFT, TOP, LINE = 2.4, 0.04, 0.22, 0.28, 0.2

    def __init__(self, shapes: Sequence[tuple], titles: Sequence[str], swatches: dict[str, tuple]):
        self.titles, self.shapes = titles, shapes
        self.heights = [self.WIDTH * shape[0] / shape[1] for shape in shapes]
        self.width = self.LEFT + len(titles) * (self.WIDTH + self.GAP)
        per_line = max(1, int(self.width / (0.45 + 0.085 * max(map(len, swatches), default=1))))
        below = self.LINE * math.ceil(len(swatches) / per_line) + 0.1 if swatches else 0
        self.height = self.TOP + sum(h + self.GAP for h in self.heights) + below
        self.figure = _figure(self.width, self.height)
        if swatches:
            self._legend(swatches, per_line)

    def show(self, line: int, column: int, picture: np.ndarray, name: str = "") -> None:
        """Draw one picture; a smaller one is stretched to its row's size."""
        left = self.LEFT + column * (self.WIDTH + self.GAP)
        top = self.TOP + sum(h + self.GAP for h in self.heights[:line])
        bottom = self.height - top - self.heights[line]
        inches = np.array([left, bottom, self.WIDTH, self.heights[line]])
        axis = self.figure.add_axes(inches / [self.width, self.height, self.width, self.height])
        axis.set_axis_off()
        height, width = self.shapes[line][:2]
        smooth = "antialiased" if picture.shape[:2] == (height, width) else "bilinear"
        axis.imshow(picture, extent=(0, width, height, 0), interpolation=smooth, aspect="auto")
        if line == 0:
            axis.set_title(_literal(self.titles[column]), fontsize=10, pad=4)
        if name:
            fits = int(self.heights[line] / 0.062)  # inches a letter, at this size
            shown = name if len(name) <= fits else "…" + name[-max(fits - 1, 1) :]
            place = {"transform": axis.transAxes, "rotation": 90, "ha": "right", "va": "center"}
            axis.text(-0.02, 0.5, _literal(shown), fontsize=7, **place)

    def _legend(self, swatches: dict[str, tuple], per_line: int) -> None:
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=np.array(c) / 255, label=_literal(name)) for name, c in swatches.items()]
        self.figure.legend(
            handles=handles, loc="lower center", ncols=per_line, fontsize=8, frameon=False, borderaxespad=0.1,
            handlelength=1.2, handleheight=1.0, columnspacing=1.2, labelspacing=0.3,
        )  # fmt: skip


def _figure(width: float, height: float, layout: str | None = None) -> Figure:
    # Without pyplot: no display is looked for, nothing global changes, nothing needs closing.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _present(classes: Sequence[str], masks: Sequence[np.ndarray | None]) -> dict[str, tuple]:
    """{name: colour} of the classes that occur in any of the masks."""
    seen = set().union(*(np.unique(mask).tolist() for mask in masks if mask is not None))
    colours = class_colours(classes)
    return {name: tuple(colours[i]) for i, name in enumerate(classes) if i in seen}


def _errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, count: int) -> np.ndarray:
    """The image in pale grey, wrong pixels in colour, ignored ones black, (H, W, 3) uint8."""
    grey = image.mean(-1, keepdims=True).repeat(3, -1) * 0.4 + 150
    wrong, ignored = (truth != prediction)[..., None], (truth >= count)[..., None]
    picture = np.where(wrong, 0.25 * grey + 0.75 * np.array(WRONG), grey)
    return np.where(ignored, np.array(IGNORED), picture).round().astype(np.uint8)
