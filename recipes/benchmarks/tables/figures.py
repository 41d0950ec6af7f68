"""Pictures of the paper's three tables: means of the runs with their deviation."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

from .rows import Block, blocks, fraction

MARKERS = {"": "o", "unlabelled": "s", "semi": "^"}  # by what follows the name of a method
COLORS = {"none": "#555555", "imagenet": "#0072B2", "mscl": "#D55E00", "other": "#009E73",
           "1/5": "#E69F00", "1/2": "#0072B2", "all": "#0072B2"}  # fmt: skip
HOLLOW = {"marker": "o", "markersize": 5, "linestyle": "none", "markerfacecolor": "white", "zorder": 4}


def draw(number: int, rows: list[dict], target: Path | BinaryIO) -> None:
    """Draw a row of panels for each setting, one panel a data set: table 1 over the shares of the masks, tables 2 and 3 over the cells."""
    from matplotlib.figure import Figure

    panel_rows = defaultdict(list)
    panels = [(setting, tables[number]) for setting, tables in blocks({number: rows}).items()]
    for setting, block in [(setting, block) for setting, block in panels if len(block.cells) > 1] or panels:  # one cell compares nothing
        panel_rows[setting._replace(dataset="")].append((setting, block))
    with_masks = {row["cell"] for row in rows if row["labels"] == "yes"}
    cells = {cell: cell.replace("_", " ") + " *" * (cell in with_masks) for cell in Block(number, rows).cells}
    columns = max(map(len, panel_rows.values()))
    height = len(panel_rows) * (3.6 if number == 1 else 0.9 + 0.27 * len(cells)) + 0.7
    figure = Figure(figsize=(max(7.5, 4.5 * columns), height), layout="constrained", facecolor="white")
    axes = figure.subplots(len(panel_rows), columns, squeeze=False, sharey="row" if number > 1 else "none")
    for axis in axes.flat:
        axis.set_visible(False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    for row_of_axes, row_of_panels in zip(axes, panel_rows.values()):
        for axis, (setting, block) in zip(row_of_axes, row_of_panels):
            axis.set_visible(True)
            axis.set_title("{}\n{}, {}, {}".format(*setting.words()), fontsize=9.5)
            if number > 1:
                _dots(axis, block, cells)
            else:
                _curves(axis, block) if len(block.run_shares) > 1 else _column(axis, block, block.run_shares[0])
    _legend(figure, has_dots=number > 1)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    figure.savefig(target, dpi=150)


def _legend(figure, has_dots: bool) -> None:
    """Draw one legend for all panels; the mark for single seeds comes last."""
    from matplotlib.lines import Line2D

    handles = {name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels())}
    if has_dots:
        handles["none"] = Line2D([], [], color="black", linewidth=1, linestyle=":")
    if handles.pop("one seed", None):
        handles["one seed"] = Line2D([], [], color="black", **HOLLOW)
    title = "* reads masks in pre-training" if has_dots else None
    figure.legend(handles.values(), handles.keys(), title=title, loc="outside lower center", ncols=4, frameon=False)


def _curves(axis, block: Block) -> None:
    """Draw mean IoU over the share of the masks. Cells are shifted a little, so that no bar hides another."""
    for index, cell in enumerate(block.cells):
        samples = {share: scores for share in block.shares if (scores := block.scores(cell, share))}
        positions = [float(fraction(share)) * 1.035 ** (index - (len(block.cells) - 1) / 2) for share in samples]
        _points(axis, positions, list(samples.values()), **_style(cell))
    axis.set_xscale("log")
    axis.set_xticks([float(fraction(share)) for share in block.shares], [block.headline(share, "\n") for share in block.shares])
    axis.minorticks_off()
    axis.set(xlabel="share of the masks", ylabel="mean IoU, %")


def _column(axis, block: Block, share: str) -> None:
    """Draw the cells of the only share that was run, from top to bottom."""
    for index, cell in enumerate(block.cells):
        _points(axis, [index], [block.scores(cell, share)], is_horizontal=True, **_style(cell))
    axis.set_yticks(range(len(block.cells)), [cell.replace("_", " ") for cell in block.cells])
    axis.set(xlabel=f"mean IoU, %, {block.headline(share)} of the masks", ylim=(len(block.cells) - 0.5, -0.5))


def _style(cell: str) -> dict:
    base, _, variant = cell.partition("_")
    return {"color": COLORS.get(base, COLORS["other"]), "linestyle": "--" if variant else "-", "label": cell.replace("_", " "),
            "marker": MARKERS.get(variant, "D")}  # fmt: skip


def _dots(axis, block: Block, cells: dict[str, str]) -> None:
    """Draw a line for each of the cells {name: label} in a color for each share, and the mean of `none` as a vertical line."""
    lines = {cell: line for line, cell in enumerate(cells)}
    for index, share in enumerate(block.shares):
        samples = {cell: scores for cell in cells if (scores := block.scores(cell, share))}
        shift = 0.24 * (index - (len(block.shares) - 1) / 2)
        style = {"color": COLORS[share], "linestyle": "none", "label": "all masks" if share == "all" else f"{share} of the masks"}
        _points(axis, [lines[cell] + shift for cell in samples], list(samples.values()), is_horizontal=True, **style)
        if "none" in samples:
            axis.axvline(statistics.mean(samples["none"]), color=COLORS[share], linestyle=":", linewidth=1, zorder=0)
    axis.set_yticks(range(len(cells)), list(cells.values()))
    for label, cell in zip(axis.get_yticklabels(), cells):
        label.set_fontweight("bold" if cell in ("mscl", "g+l+p") else "normal")
    axis.set(xlabel="mean IoU, %", ylim=(len(cells) - 0.5, -0.5))


def _points(axis, positions: list[float], samples: list[list[float]], is_horizontal: bool = False, **style) -> None:
    """Draw means with their sample deviation; hollow where there is one seed. is_horizontal: the means are on the x axis."""
    means = [statistics.mean(sample) for sample in samples]
    spread = [statistics.stdev(sample) if len(sample) > 1 else 0 for sample in samples]
    x, y, error = (means, positions, "xerr") if is_horizontal else (positions, means, "yerr")
    axis.errorbar(x, y, **{error: spread}, **({"marker": "o"} | style), markersize=5, linewidth=1.5, elinewidth=1, capsize=2)
    single = [i for i, sample in enumerate(samples) if len(sample) == 1]
    if single:
        axis.plot([x[i] for i in single], [y[i] for i in single], color=style["color"], label="one seed", **HOLLOW)
