"""Pictures of predictions and feature maps.

Letters: N images, H W height and width in pixels, D channels, h w height and width of a feature map.
The drawing functions import matplotlib, so that importing this file stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .palette import class_colors, overlay, pca_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

WRONG, IGNORED = (228, 26, 28), (0, 0, 0)
DPI = 120
WIDTH, GAP, LEFT, TOP, LINE = 2.4, 0.04, 0.22, 0.28, 0.2  # of tables of pictures [inch]


def prediction_sheet(rows: Sequence[tuple], classes: Sequence[str], path: str | Path) -> None:
    """Draw rows of (image, truth, prediction, name) as image | truth | prediction | errors, with a legend.

    image: (H, W, 3) uint8. truth (or None) and prediction: (H, W) class ids; 255 is ignored.
    """
    if not rows:
        raise ValueError("rows is empty; expected at least one (image, truth, prediction, name).")
    colors = present(classes, [mask for row in rows for mask in row[1:3]])
    table = []
    for image, truth, prediction, _ in rows:
        of_truth = (None, None) if truth is None else (overlay(image, truth, classes), _errors(image, truth, prediction, len(classes)))
        table.append([image, of_truth[0], overlay(image, prediction, classes), of_truth[1]])
    legend = colors | {"wrong": WRONG, "ignored": IGNORED}
    draw_table(table, ("image", "truth", "prediction", "errors"), legend, path, [row[3] for row in rows])


def comparison_strip(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    path: str | Path,
) -> None:
    """Draw rows of images with their masks, one column for each title (truth, none, ours), and a legend of the classes that occur.

    images: (H, W, 3) uint8 each. columns: {title: (H, W) class ids for every image}; 255 is ignored.
    """
    if not len(images) or {len(masks) for masks in columns.values()} != {len(images)}:
        counts = ", ".join(f"{len(masks)} for {title}" for title, masks in columns.items())
        raise ValueError(f"Got {len(images)} images and these masks: {counts or 'none'}; expected as many of each, and at least one.")
    legend = present(classes, [mask for masks in columns.values() for mask in masks])
    table = [[image, *(overlay(image, masks[row], classes) for masks in columns.values())] for row, image in enumerate(images)]
    draw_table(table, ("image", *columns), legend, path)


def feature_maps_sheet(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None],
    features: Tensor,
    path: str | Path,
    classes: Sequence[str] = (),
) -> None:
    """Draw rows of image | mask | features; red, green and blue are the first three principal components of the features of all images.

    images: (H, W, 3) uint8 each. masks: (H, W) class ids each, or None. features: (N, D, h, w).
    classes: names for the legend; without names no legend is drawn.
    """
    if not len(images) == len(masks) == len(features) > 0:
        sizes = f"{len(images)} images, {len(masks)} masks and {len(features)} feature maps"
        raise ValueError(f"Got {sizes}; expected as many of each, and at least one.")
    present_masks = [mask for mask in masks if mask is not None]
    highest = max((int(mask[mask < 255].max(initial=0)) for mask in present_masks), default=0)
    names = list(classes) or [str(i) for i in range(highest + 1)]
    titles = ("image", "mask", "features (PCA)") if present_masks else ("image", "features (PCA)")
    drawn_masks = [None if mask is None else overlay(image, mask, names) for image, mask in zip(images, masks)]
    columns = (images, drawn_masks, pca_colors(features)) if present_masks else (images, pca_colors(features))
    draw_table(list(zip(*columns)), titles, present(names, present_masks) if classes else {}, path)


def literal(text: str) -> str:
    """Return the text as matplotlib draws it literally: $ would start mathematics, and file names can hold invalid characters."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def draw_table(
    rows: Sequence[Sequence[np.ndarray | None]], titles: Sequence[str], legend: dict[str, tuple], path: str | Path,
    names: Sequence[str] = (),
) -> None:
    """Draw a table of pictures with column titles and a legend {name: color} below. Sizes and positions are in inches.

    rows: pictures (H, W, ...), None = an empty cell; all are scaled to the size of the first one of their row. names: of the rows.
    """
    heights = [WIDTH * row[0].shape[0] / row[0].shape[1] for row in rows]
    width = LEFT + len(titles) * (WIDTH + GAP)
    per_line = max(1, int(width / (0.45 + 0.085 * max(map(len, legend), default=1))))
    top, legend_height = TOP, LINE * math.ceil(len(legend) / per_line) + 0.1 if legend else 0
    height = TOP + sum(h + GAP for h in heights) + legend_height
    figure = new_figure(width, height)
    for number, (row, row_height) in enumerate(zip(rows, heights)):
        full_height, full_width = row[0].shape[:2]
        for column, picture in enumerate(row):
            if picture is None:
                continue
            inches = np.array([LEFT + column * (WIDTH + GAP), height - top - row_height, WIDTH, row_height])
            axis = figure.add_axes(inches / [width, height, width, height])
            axis.set_axis_off()
            interpolation = "antialiased" if picture.shape[:2] == (full_height, full_width) else "bilinear"
            axis.imshow(picture, extent=(0, full_width, full_height, 0), interpolation=interpolation, aspect="auto")
            if number == 0:
                axis.set_title(literal(titles[column]), fontsize=10, pad=4)
            if names and column == 0:
                max_letters, name = int(row_height / 0.062), names[number]  # width of a letter [inch]
                shortened = name if len(name) <= max_letters else "…" + name[-max(max_letters - 1, 1) :]
                axis.text(-0.02, 0.5, literal(shortened), fontsize=7, transform=axis.transAxes, rotation=90, ha="right", va="center")
        top += row_height + GAP
    if legend:
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=np.array(color) / 255, label=literal(name)) for name, color in legend.items()]
        figure.legend(
            handles=handles, loc="lower center", ncols=per_line, fontsize=8, frameon=False, borderaxespad=0.1,
            handlelength=1.2, handleheight=1.0, columnspacing=1.2, labelspacing=0.3,
        )  # fmt: skip
    save(figure, path)


def new_figure(width: float, height: float, layout: str | None = None) -> Figure:
    # Without pyplot, which needs a display and keeps figures open.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def present(classes: Sequence[str], masks: Sequence[np.ndarray | None]) -> dict[str, tuple]:
    """Return {name: color} of the classes that occur in any of the masks."""
    ids = set().union(*(np.unique(mask).tolist() for mask in masks if mask is not None))
    colors = class_colors(classes)
    return {name: tuple(colors[i]) for i, name in enumerate(classes) if i in ids}


def _errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, count: int) -> np.ndarray:
    """Return the image in pale gray with wrong pixels red and ignored pixels black, (H, W, 3) uint8."""
    gray = image.mean(-1, keepdims=True).repeat(3, -1) * 0.4 + 150
    wrong, ignored = (truth != prediction)[..., None], (truth >= count)[..., None]
    picture = np.where(wrong, 0.25 * gray + 0.75 * np.array(WRONG), gray)
    return np.where(ignored, np.array(IGNORED), picture).round().astype(np.uint8)
