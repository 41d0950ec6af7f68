"""The legend of overlays: a picture with the color and the name of each class."""

import math
from collections.abc import Sequence
from pathlib import Path

from .palette import class_colors

LINE, LETTER = 0.22, 0.085  # height of a line and width of a letter [inch]
LINES = 40  # of a column


def draw_legend(classes: Sequence[str], path: Path) -> None:
    """Write a PNG with the color, id and name of each class."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = math.ceil(len(classes) / LINES)
    labels = [f"{i}  {name}" for i, name in enumerate(classes)]
    width = columns * (0.7 + LETTER * max(map(len, labels)))
    figure = Figure(figsize=(width, 0.2 + LINE * math.ceil(len(classes) / columns)), facecolor="white")
    handles = [
        Patch(facecolor=color / 255, label=label.encode("utf-8", "replace").decode().replace("$", r"\$"))
        for color, label in zip(class_colors(classes), labels)
    ]
    figure.legend(handles=handles, loc="center", ncols=columns, fontsize=9, frameon=False, handlelength=1.4, handleheight=1.1)
    figure.savefig(path, dpi=120, format="png")
