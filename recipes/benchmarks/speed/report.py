"""The figures of the speed benchmark as a Markdown page and as a picture."""

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..common import markdown_table
from .memory import BUDGETS, CLASSES, largest_batches

PHASES = ("decode", "views", "forward", "losses", "backward", "optimizer", "rest")
FACTS = {"peak_mb": "peak MB", "their_peak_mb": "beside it", "scandir": "scandir, seconds:"}
ROUTES = {"plain": "plain autograd, fp32", "fp32": "streamed, fp32", "bf16": "streamed, bf16 products"}


def gather(rows: list[dict], *keys: str, value: Callable[[dict], float]) -> dict[tuple, list[float]]:
    """Values of rows by the contents of some of their columns."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(value(row))
    return dict(groups)


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and the range of several values."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """b of seconds ~ size^b, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def report(measured: dict, picture: str = "speed.png") -> str:
    """Markdown with a table for each part that was measured."""
    made = "Made by `python -m recipes.benchmarks speed`; medians, with the range over the rounds.\n"
    parts = {"loss": _loss, "step": _step, "peers": _peers, "finetune_peers": _finetune_peers, "metric": _metric, "growth": _growth,
             "memory": _memory, "waits": _waits}  # fmt: skip
    lines = [made, f"![the figures as a picture]({picture})\n"]
    for name, part in parts.items():
        if name in measured:
            facts = measured[name]["machine"]
            machine = f"{facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}"
            lines += [*part(measured[name]["rows"]), f"\n{machine}\n"]
    return "\n".join(lines)


def _loss(rows: list[dict]) -> list[str]:
    seconds = gather(rows, "n", "route", value=lambda row: row["seconds"])
    memory = gather(rows, "n", "route", value=lambda row: row["added_mb"])
    lines = []
    for (n, route), values in seconds.items():
        plain, plain_mb = seconds.get((n, "plain")), memory.get((n, "plain"))
        times = f"{statistics.median(plain) / statistics.median(values):.1f}x" if plain else "-"
        share = f"1/{statistics.median(plain_mb) / max(1, statistics.median(memory[n, route])):.0f}" if plain_mb else "-"
        lines.append((f"{n:,}", ROUTES[route], spread(values, 3), times, spread(memory[n, route], 0), share))
    head = ("anchors = keys", "route", "seconds", "faster", "added peak, MB", "share of plain")
    return ["## Loss, forward and backward, 128 dimensions\n", *markdown_table(head, lines)]


def _step(rows: list[dict]) -> list[str]:
    lines = []
    for (name,), group in gather(rows, "name", value=lambda row: row).items():
        whole, bare = ([row["milliseconds"][key] for row in group] for key in ("step", "bare"))
        phases = [spread([row["milliseconds"].get(phase, 0) for row in group]).split(" ")[0] for phase in PHASES]
        over = spread([100 * row["overhead"] for row in group])
        lines.append((name, spread([row["images_per_second"] for row in group]), spread(whole, 0), spread(bare, 0), over, *phases))
    head = ("precision", "images/s", "step, ms", "bare network, ms", "overhead, %", *PHASES)
    title = "## A step of the three losses, and after each step one of the bare network (backbone and decoder on tensors in memory)\n"
    return [title, *markdown_table(head, lines)]


def _peers(rows: list[dict]) -> list[str]:
    speeds = gather(rows, "precision", "peer", value=lambda row: row["images_per_second"])
    versions = {row["peer"]: row.get("version", "") for row in rows}
    lines = []
    for (precision, peer), values in speeds.items():
        ours = statistics.median(speeds[precision, "mscl_hf"])
        lines.append((precision, f"{peer} {versions[peer]}".strip(), spread(values), f"{ours / statistics.median(values):.2f}"))
    head = ("precision", "library", "images/s", "ours / theirs")
    return ["## Images per second beside other libraries: SimCLR, in turns\n", *markdown_table(head, lines)]


def _finetune_peers(rows: list[dict]) -> list[str]:
    speeds = gather(rows, "backbone", "precision", "library", value=lambda row: row["images_per_second"])
    facts = {(row["backbone"], row["library"]): (row["version"], f"{row['parameters'] / 1e6:.1f}") for row in rows}
    lines = []
    for (backbone, precision, library), values in speeds.items():
        version, weights = facts[backbone, library]
        name = library if library.startswith("mscl_hf") else f"{library} {version}".strip()
        ratio = statistics.median(speeds[backbone, precision, "mscl_hf"]) / statistics.median(values)
        lines.append((backbone, precision, name, weights, spread(values), f"{ratio:.2f}"))
    head = ("backbone", "precision", "library", "weights, million", "images/s", "ours / theirs")
    sizes = "crops of {image_size} px, batches of {batch_size}, {workers} loader processes".format(**rows[0])
    return [f"## Images per second beside other libraries: fine-tuning on masks of CamVid, {sizes}\n", *markdown_table(head, lines)]


def _metric(rows: list[dict]) -> list[str]:
    milliseconds = gather(rows, "route", value=lambda row: row["ms"])
    memory = gather(rows, "route", value=lambda row: row["added_mb"])
    lines = [(route, spread(values, 2), spread(memory[route,], 0)) for (route,), values in milliseconds.items()]
    return ["## Mean IoU of 40 pairs of 512 x 1024 px, 19 classes\n", *markdown_table(("", "ms a pair", "added peak, MB"), lines)]


def _growth(rows: list[dict]) -> list[str]:
    lines = []
    for (name,), group in gather(rows, "grows", value=lambda row: row).items():
        phases = {name: "losses" if name == "classes" else "step"} | ({"pixels, the losses alone": "losses"} if name == "pixels" else {})
        sizes = [row["size"] for row in group]
        for title, phase in phases.items():
            times = [row["milliseconds"][phase] for row in group]
            points = ", ".join(f"{size:,}: {time:,.0f}" for size, time in zip(sizes, times))
            lines.append((title, points, f"{exponent([size**2 if name == 'image size' else size for size in sizes], times):.2f}"))
    head = ("what grows", "milliseconds", "exponent (of the area for the image size)")
    return ["## How a step grows\n", *markdown_table(head, lines)]


def _memory(rows: list[dict]) -> list[str]:
    lines = []
    for (backbone, size, mode), group in gather(rows, "backbone", "size", "mode", value=lambda row: row).items():
        fixed, each, largest = largest_batches([row["batch"] for row in group], [row["peak_mb"] for row in group])
        largest = largest if group[0]["device"] == "cuda" else ["-"] * len(BUDGETS)  # memory of a process on a CPU says nothing about a GPU
        lines.append((backbone, size, mode, f"{fixed:,.0f}", f"{each:,.0f}", *largest))
    head = ("backbone", "px", "mode", "fixed MB", "MB per image", *(f"largest batch, {budget} GB" for budget in BUDGETS))
    return [f"## Memory of a fine-tuning step in bf16, AdamW, {CLASSES} classes\n", *markdown_table(head, lines)]


def _waits(rows: list[dict]) -> list[str]:
    lines = []
    for (name, beside), group in gather(rows, "wait", "beside", value=lambda row: row).items():
        ours, theirs = ([row[key] for row in group] for key in ("ours", "theirs"))
        ratio = spread([row["ours"] / row["theirs"] for row in group], 2)
        keys = [key for key in FACTS if key in group[0]]
        facts = "; ".join(f"{FACTS[key]} {spread([row[key] for row in group], 2 if key == 'scandir' else 0)}" for key in keys)
        lines.append((name, spread(ours, 2), beside, spread(theirs, 2), ratio, facts))
    head = ("wait", "seconds", "beside", "seconds", "ratio", "further figures")
    return ["## What a user waits for, and what it is compared with\n", *markdown_table(head, lines)]


def draw(measured: dict, path: Path) -> None:
    """Draw four panels: time and memory of the loss, phases of a step, other libraries; parts that were not measured have none."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    panels = {"loss": lambda rows: (_curves(axes[0, 0], rows, "seconds"), _curves(axes[0, 1], rows, "added_mb")),
              "step": lambda rows: _bars(axes[1, 0], rows), "peers": lambda rows: _pairs(axes[1, 1], rows)}  # fmt: skip
    for part, panel in panels.items():
        if part in measured:
            panel(measured[part]["rows"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_visible(axis.has_data())
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axis, rows: list[dict], key: str) -> None:
    values = gather(rows, "route", "n", value=lambda row: row[key])
    for route, name in ROUTES.items():
        points = [(n, statistics.median(v)) for (r, n), v in values.items() if r == route]
        if points:
            axis.loglog(*zip(*points), "o-", label=name)
    axis.set(xlabel="anchors = keys", ylabel={"seconds": "seconds, forward and backward", "added_mb": "added peak memory, MB"}[key])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _bars(axis, rows: list[dict]) -> None:
    """Draw the phases of a step as a stacked bar, and the step of the bare network as a line."""
    by_name = gather(rows, "name", value=lambda row: row["milliseconds"])
    names, left = [name for (name,) in by_name], np.zeros(len(by_name))
    for phase in PHASES:
        width = np.array([statistics.median(ms.get(phase, 0) for ms in steps) for steps in by_name.values()])
        axis.barh(names, width, left=left, label=phase)
        left += width
    for position, steps in enumerate(by_name.values()):
        bare = statistics.median(ms["bare"] for ms in steps)
        axis.plot([bare, bare], [position - 0.45, position + 0.45], "k--", label=None if position else "bare network")
    axis.set(xlabel="milliseconds of a step")
    axis.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


def _pairs(axis, rows: list[dict]) -> None:
    """Draw images per second of each library in both precisions, with the range over the rounds."""
    speeds = gather(rows, "peer", "precision", value=lambda row: row["images_per_second"])
    names = list(dict.fromkeys(peer for peer, _ in speeds))
    for shift, precision in ((-0.2, "fp32"), (0.2, "bf16")):
        values = [speeds.get((name, precision), [0]) for name in names]
        middle = [statistics.median(v) for v in values]
        error = [[m - min(v) for m, v in zip(middle, values)], [max(v) - m for m, v in zip(middle, values)]]
        axis.bar(np.arange(len(names)) + shift, middle, 0.4, yerr=error, label=precision)
    axis.set_xticks(range(len(names)), [textwrap.fill(name.replace("_t", " t").replace("_p", " p"), 12) for name in names], fontsize=8)
    axis.set(ylabel="images per second, SimCLR")
    axis.legend(frameon=False)
