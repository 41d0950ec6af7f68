"""The figures of `benchmark.py speed` as a page and as a picture."""

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

PHASES = ("decode", "views", "forward", "losses", "backward", "optimizer", "rest")
ROUTES = {"plain": "plain autograd, fp32", "fp32": "streamed, fp32", "bf16": "streamed, bf16 products"}


def gather(rows: list[dict], *keys: str, value: Callable[[dict], float]) -> dict[tuple, list[float]]:
    """Values by the keys, in the order of the rows."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(value(row))
    return dict(found)


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and the range where there are several."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """b of seconds ~ size^b, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def report(found: dict, picture: str = "speed.png") -> str:
    """Markdown: a table for each part that was measured."""
    made = "Made by `python recipes/benchmark.py speed`; medians, with the range over the rounds.\n"
    parts = {"loss": _loss, "step": _step, "peers": _peers, "metric": _metric, "growth": _growth}
    lines = [made, f"![the same as a picture]({picture})\n"]
    for name, part in parts.items():
        if name in found:
            where = found[name]["machine"]
            machine = f"{where['machine']}, {where['threads']} threads, torch {where['torch']}, commit {where['commit']}"
            lines += [*part(found[name]["rows"]), f"\n{machine}\n"]
    return "\n".join(lines)


def table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ("---",) * len(head), *rows)]


def _loss(rows: list[dict]) -> list[str]:
    seconds = gather(rows, "n", "route", value=lambda row: row["seconds"])
    memory = gather(rows, "n", "route", value=lambda row: row["added_mb"])
    lines = []
    for (n, route), values in seconds.items():
        plain, many = seconds.get((n, "plain")), memory.get((n, "plain"))
        times = f"{statistics.median(plain) / statistics.median(values):.1f}x" if plain else "-"
        share = f"1/{statistics.median(many) / max(1, statistics.median(memory[n, route])):.0f}" if many else "-"
        lines.append((f"{n:,}", ROUTES[route], spread(values, 3), times, spread(memory[n, route], 0), share))
    head = ("anchors = keys", "route", "seconds", "faster", "added peak, MB", "of plain's")
    return ["## Loss, forward and backward, 128 dimensions\n", *table(head, lines)]


def _step(rows: list[dict]) -> list[str]:
    lines = []
    for (name,), of_name in gather(rows, "name", value=lambda row: row).items():
        whole, bare = ([row["milliseconds"][key] for row in of_name] for key in ("step", "bare"))
        phases = [spread([row["milliseconds"].get(phase, 0) for row in of_name]).split(" ")[0] for phase in PHASES]
        over = spread([100 * row["overhead"] for row in of_name])
        lines.append((name, spread([row["images_per_second"] for row in of_name]), spread(whole, 0), spread(bare, 0), over, *phases))
    head = ("precision", "images/s", "step, ms", "bare network, ms", "overhead, %", *PHASES)
    title = "## A step of the three losses beside the bare network (backbone and decoder on ready tensors), step for step\n"
    return [title, *table(head, lines)]


def _peers(rows: list[dict]) -> list[str]:
    speeds = gather(rows, "precision", "peer", value=lambda row: row["images_per_second"])
    versions = {row["peer"]: row.get("version", "") for row in rows}
    lines = []
    for (precision, peer), values in speeds.items():
        ours = statistics.median(speeds[precision, "mscl_hf"])
        lines.append((precision, f"{peer} {versions[peer]}".strip(), spread(values), f"{ours / statistics.median(values):.2f}"))
    head = ("precision", "library", "images/s", "ours / theirs")
    return ["## Images per second beside other libraries: SimCLR, in turns\n", *table(head, lines)]


def _metric(rows: list[dict]) -> list[str]:
    milliseconds = gather(rows, "route", value=lambda row: row["ms"])
    memory = gather(rows, "route", value=lambda row: row["added_mb"])
    lines = [(route, spread(values, 2), spread(memory[route,], 0)) for (route,), values in milliseconds.items()]
    return ["## Mean IoU of 40 pairs of 512 x 1024 px, 19 classes\n", *table(("", "ms a pair", "added peak, MB"), lines)]


def _growth(rows: list[dict]) -> list[str]:
    lines = []
    for (what,), of_what in gather(rows, "grows", value=lambda row: row).items():
        key = "losses" if what == "classes" else "step"
        sizes, times = [row["size"] for row in of_what], [row["milliseconds"][key] for row in of_what]
        pixels = [size**2 if what == "image size" else size for size in sizes]
        each = ", ".join(f"{size:,}: {time:,.0f}" for size, time in zip(sizes, times))
        lines.append((what, each, f"{exponent(pixels, times):.2f}"))
        if what == "pixels":
            alone = [row["milliseconds"]["losses"] for row in of_what]
            each = ", ".join(f"{size:,}: {time:,.0f}" for size, time in zip(sizes, alone))
            lines.append(("pixels, the losses alone", each, f"{exponent(sizes, alone):.2f}"))
    head = ("what grows", "milliseconds", "exponent (of the area for the image size)")
    return ["## How a step grows\n", *table(head, lines)]


def draw(found: dict, path: Path) -> None:
    """Four panels: the loss's time and memory, a step's phases, the peers; those that were not measured stay empty."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    panels = {"loss": lambda rows: (_curves(axes[0, 0], rows, "seconds"), _curves(axes[0, 1], rows, "added_mb")),
              "step": lambda rows: _bars(axes[1, 0], rows), "peers": lambda rows: _pairs(axes[1, 1], rows)}  # fmt: skip
    for part, panel in panels.items():
        if part in found:
            panel(found[part]["rows"])
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
    """A step's phases, one behind the other, and the bare network's step as a line."""
    of_names = gather(rows, "name", value=lambda row: row["milliseconds"])
    names, left = [name for (name,) in of_names], np.zeros(len(of_names))
    for phase in PHASES:
        width = np.array([statistics.median(ms.get(phase, 0) for ms in steps) for steps in of_names.values()])
        axis.barh(names, width, left=left, label=phase)
        left += width
    for place, steps in enumerate(of_names.values()):
        bare = statistics.median(ms["bare"] for ms in steps)
        axis.plot([bare, bare], [place - 0.45, place + 0.45], "k--", label=None if place else "bare network")
    axis.set(xlabel="milliseconds of a step")
    axis.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


def _pairs(axis, rows: list[dict]) -> None:
    """Images per second of each library in both precisions, with the range over the rounds."""
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
