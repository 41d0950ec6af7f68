"""Compare cells, each a pre-training, a fine-tuning and an evaluation with the flags of a YAML file, over several seeds.

python -m recipes.benchmarks compare --spec recipes/benchmarks/configs/compare_camvid.yaml --data-dir CamVid --jobs 2
"""

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mscl_hf.cli import parse_sections
from mscl_hf.config.fields import Section, option
from mscl_hf.training.log import read_log
from mscl_hf.visual.figures import literal, new_figure, save
from mscl_hf.visual.palette import class_palette

from .common import difference, markdown_table, mean_sd, read_yaml, write_csv
from .runner import COLUMNS, Cell, Outcome, check, row_of, run_cells
from .stages import Stage, step_seconds


@dataclass(frozen=True)
class CompareOptions(Section):
    """A grid of cells, and the folders of its parts."""

    spec: str = option(..., "YAML file: dataset, common, pretrain, finetune, evaluate, seeds, baseline, cells")
    data_dir: str | None = option(None, "folder of the data set (default: none, for synthetic scenes)")
    work_dir: str = option("runs/compare", "folder of the cells; several benchmarks may share it")
    results: str | None = option(
        None, "CSV file to write, with a .md and, of cells with eval-steps, a .png beside it (default: results/NAME_OF_SPEC.csv)"
    )
    jobs: int = option(1, "stages run side by side, one thread each", at_least=1)
    only: list[str] | None = option(None, "cells to run (default: all)")
    seeds: list[int] | None = option(None, "seeds to run (default: those of the spec)")
    finished_only: bool = option(False, "write the tables of the finished cells, and run nothing")


def main(argv: list[str]) -> None:
    (options,) = parse_sections([CompareOptions], __doc__.splitlines()[0], argv)
    spec = read_yaml(options.spec)
    cells = cells_of(spec, options)
    outcome = run(cells, options)
    rows = [row_of(cell) for cell in cells if cell.is_done()]
    target = Path(options.results or f"results/{Path(options.spec).stem}.csv")
    write_csv(target, COLUMNS, rows)
    target.with_suffix(".md").write_text(summary(spec, rows, options.spec))
    draw_curves({str(cell): curve_of(cell) for cell in cells if cell.is_done()}, target.with_suffix(".png"))
    print(target.with_suffix(".md").read_text())
    outcome.exit_if_stopped()
    outcome.exit_if_failed()


def cells_of(spec: dict, options: CompareOptions, keep_checkpoints: bool = False) -> list[Cell]:
    """The cells to run; those that start from a network of another cell come last."""
    names = options.only or list(spec["cells"])
    unknown = [name for name in names if name not in spec["cells"]]
    if unknown:
        raise ValueError(f"--only is {unknown[0]}; expected cells of {options.spec}: {', '.join(spec['cells'])}.")
    cells = itertools.product(options.seeds or spec["seeds"], names)
    cells = sorted(cells, key=lambda cell: not {"from", "after"}.isdisjoint(spec["cells"][cell[1]]))
    return [make_cell(spec, options, name, seed, keep_checkpoints) for seed, name in cells]


def make_cell(spec: dict, options: CompareOptions, name: str, seed: int, keep_checkpoints: bool) -> Cell:
    """A cell with its stages. from: a cell whose pre-trained network it fine-tunes; after: one whose fine-tuned network it fine-tunes."""
    folder, cell = Path(options.work_dir) / f"{name}-seed{seed}", spec["cells"][name]
    data = data_flags(spec, options) | {"seed": seed}
    common = data | spec.get("common", {})
    if other := cell.get("from") or cell.get("after"):
        before = make_cell(spec, options, other, seed, keep_checkpoints).stages[: 1 if "from" in cell else -1]
    else:
        flags = common | spec["pretrain"] | cell.get("pretrain", {})
        before = (Stage("pretrain", folder / "pretrain", flags, keep_checkpoints=keep_checkpoints),)
    flags = common | spec["finetune"] | cell.get("finetune", {}) | {"model": str(before[-1].folder)}
    finetune = Stage("finetune", folder / "finetune", flags, before[-1])
    evaluate = Stage("evaluate", folder / "evaluate", data | spec["evaluate"] | {"model": str(finetune.folder)}, finetune)
    return Cell(name, seed, (*before, finetune, evaluate))


def data_flags(spec: dict, options: CompareOptions) -> dict:
    return {"dataset": spec["dataset"]} | ({"data-dir": options.data_dir} if options.data_dir else {})


def run(cells: list[Cell], options: CompareOptions) -> Outcome:
    """Run the unfinished cells, each stage with one thread, and print the mean IoU of each."""
    check(cells)
    if options.finished_only:
        return Outcome()
    torch.set_num_threads(1)  # forked processes inherit it
    return run_cells(cells, options.jobs, lambda cell: tqdm.write(f"{cell}: mean IoU {cell.results()['mean_iou']:.4f}"))


def summary(spec: dict, rows: list[dict], source: str) -> str:
    """Mean and sample deviation over seeds of each cell, and the paired difference to the baseline with its 95 % t interval."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["cell"], {})[row["seed"]] = 100 * row["mean_iou"]
    data_dir = "" if spec["dataset"] == "synthetic" else " --data-dir DIR"
    lines = []
    for cell, by_seed in scores.items():
        row = next(row for row in rows if row["cell"] == cell)
        baseline = spec["cells"][cell].get("against", spec["baseline"])  # a control with the same fine-tuning steps
        pairs = [by_seed[seed] - scores[baseline][seed] for seed in by_seed if seed in scores.get(baseline, {})]
        compared = f"{difference(pairs)} against {baseline}" if cell != baseline else "-"
        lines.append((cell, row["pretrain_steps"], row["finetune_steps"], len(by_seed), mean_sd(list(by_seed.values())), compared))
    head = ("cell", "pre-training steps", "fine-tuning steps", "seeds", "mean IoU", "difference (95 % interval)")
    origin = f"Made by `python -m recipes.benchmarks compare --spec {source}{data_dir}`; mean IoU in %.\n"
    return "\n".join([origin, *markdown_table(head, lines)]) + "\n"


def curve_of(cell: Cell) -> list[tuple[float, float]]:
    """Minutes of training and held-out mean IoU in % of the published network, at each evaluation of the last fine-tuning."""
    stage = cell.stages[-2]
    (seconds,) = step_seconds(stage) or [[0.0]]
    minute = statistics.median(seconds) / 60  # without the evaluations
    rows = read_log(stage.folder / "log.jsonl")
    return [(row["step"] * minute, 100 * row["val_mean_iou"]) for row in rows if "val_mean_iou" in row]


def draw_curves(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw the curves by the names of their cells; nothing where all are empty."""
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return
    figure = new_figure(6, 3.5, layout="constrained")
    axis = figure.subplots()
    for (name, points), color in zip(curves.items(), class_palette(len(curves)) / 255):
        axis.plot(*zip(*points), color=color, marker="o", markersize=3, linewidth=1.3, label=literal(name))
    axis.set_xlabel("minutes of training")
    axis.set_ylabel("held-out mean IoU in %")
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.legend(fontsize=7)
    save(figure, path)
