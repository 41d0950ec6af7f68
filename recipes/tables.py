"""The paper's three tables: a grid of pre-training, fine-tuning loss, label count and seed; every cell is a chain of ordinary recipe runs.

python recipes/benchmark.py tables --table 1 --dataset camvid --data-dir CamVid --weights lite0.safetensors --jobs 2

Any number of these commands, on one machine or on several that share the work folder, share the cells out among themselves: a stage is
run by whoever locks it first. What is finished is skipped, what was killed goes on from its last checkpoint.
"""

import csv
import json
import math
import sys
from hashlib import blake2b
from importlib.metadata import version
from multiprocessing import Process
from multiprocessing.connection import wait
from pathlib import Path

from benchmark import COLUMNS
from safetensors import safe_open
from stages import BUSY, Stage, finished, locked, machine, record, start
from tables_cost import cost
from tables_data import SHARES
from tables_grid import ROWS, VIEWS_A_SAMPLE, Cell, TablesOptions, cells_of, make_cell, read_spec
from tables_report import page, write_tables
from tables_strips import draw_strip
from tqdm import tqdm

from mscl_hf.methods import METHODS
from mscl_hf.options import parse
from mscl_hf.publish import commit

MORE = ("scale", "reading", "start", "share", "labels", "subset_seed", "pretrain_passes", "finetune_passes", "parameters", "threads",
        "config", "per_class_iou", "torch", "timm", "transformers")  # fmt: skip
IDENTITY = ("scale", "dataset", "start", "reading", "cell", "share", "subset_seed", "seed")
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def main(argv: list[str]) -> None:
    (options,) = parse((TablesOptions,), __doc__.splitlines()[0], argv)
    spec = read_spec(options)
    if options.weights and not Path(options.weights).is_file():
        raise ValueError(f"--weights {options.weights} is no file; give a file of timm weights, or leave it out to get them from the Hub")
    grid = {table: list(cells_of(table, spec, options)) for table in options.table}
    if not any(grid.values()):
        raise ValueError("no cell of these tables has such rows, shares and start; docs/tables.md says which there are")
    if options.estimate is not None:
        print(cost(grid, options.estimate, options.launcher))
        return
    cells = list({cell.stages: cell for cells in grid.values() for cell in cells}.values())
    failed = [] if options.finished_only else run_cells(cells, options)
    for table, cells in grid.items():
        update_csv(Path(options.results) / f"table{table}.csv", [row_of(cell, options) for cell in cells if is_done(cell)])
    write_tables(Path(options.results), "python recipes/benchmark.py tables")
    if options.page:
        draw_strips(spec, options)
        page(Path(options.results), sorted(Path(options.work_dir).glob("*.png")), Path(options.page))
    if failed:
        sys.exit("\n".join(f"failed: {stage.folder}, see {stage.log}" for stage in failed))


def run_cells(cells: list[Cell], options: TablesOptions) -> list[Stage]:
    """Run what is not finished, `jobs` stages at a time; returns the stages that failed."""
    failed: list[Stage] = []
    running: dict[Process, tuple[Cell, Stage]] = {}
    tqdm.monitor_interval = 0  # no thread beside this one, which forks
    with tqdm(total=len(cells), unit="cell", smoothing=0) as bar:
        bar.initial = bar.n = sum(map(is_done, cells))
        while True:
            others = fill(running, cells, failed, options)
            if not running and not others:
                return failed
            wait([process.sentinel for process in running], timeout=5)
            for process in [process for process in running if not process.is_alive()]:
                cell, stage = running.pop(process)
                if process.exitcode not in (0, BUSY):
                    failed.append(stage)
                    bar.write(f"failed: {cell}: {stage.recipe}, see {stage.log}")
                elif is_done(cell):
                    bar.write(f"{cell}: mean IoU {100 * results_of(cell)['mean_iou']:.1f}")
            bar.update(sum(map(is_done, cells)) - bar.n)


def fill(running: dict, cells: list[Cell], failed: list[Stage], options: TablesOptions) -> bool:
    """Start the first stages that can be run, up to `jobs`; returns whether another process is at some of what is left."""
    others, mine = False, [stage for _, stage in running.values()]
    for cell in cells:
        if len(running) == options.jobs:
            break
        stage = next((stage for stage in cell.stages if not finished(stage)), None)
        if stage is None or stage in failed or stage in mine:
            continue
        process = start(stage, options.launcher)
        others = others or process is None
        if process is not None:
            running[process] = cell, stage
            mine.append(stage)
    return others


def is_done(cell: Cell) -> bool:
    return all(map(finished, cell.stages))


def results_of(cell: Cell) -> dict:
    return json.loads((cell.stages[-1].folder / "results.json").read_text())


def row_of(cell: Cell, options: TablesOptions) -> dict:
    """A finished cell as a row of its table."""
    results, runs = results_of(cell), [json.loads((stage.folder / "run.json").read_text()) for stage in cell.stages[:2]]
    records = [record(stage) for stage in cell.stages]
    kind, (pretrain, finetune) = METHODS[runs[0]["method"]], runs
    passes = pretrain["max_steps"] * pretrain["batch_size"] * VIEWS_A_SAMPLE[kind.views] if kind.trains else 0
    return {
        "dataset": options.dataset,
        "method": pretrain["method"],
        "losses": pretrain["losses"] if pretrain["method"] == "mscl" else "-",
        "loss": finetune["loss"],
        "train_count": finetune["train_count"] or "all",
        "seed": cell.seed,
        "mean_iou": round(results["mean_iou"], 5),
        "pretrain_steps": pretrain["max_steps"] if kind.trains else 0,
        "finetune_steps": finetune["max_steps"],
        "image_size": finetune["image_size"],
        "commit": results["commit"] or commit() or "-",
        "cell": cell.name,
        "split": results["split"],
        "num_images": results["num_images"],
        "overall_accuracy": round(results["overall_accuracy"], 5),
        "hours": round(sum(entry["seconds"] for entry in records) / 3600, 4),
        "machine": records[0].get("machine") or machine(),
        "scale": options.scale,
        "reading": options.reading,
        "start": options.start,
        "share": cell.share,
        "labels": ("yes" if kind.uses_labels(pretrain) else "no") if kind.trains else "-",
        "subset_seed": options.subset_seed,
        "pretrain_passes": passes,
        "finetune_passes": finetune["max_steps"] * finetune["batch_size"],
        "parameters": parameters(cell.stages[1].folder),
        "threads": records[0]["threads"],
        "config": blake2b(json.dumps([entry["flags"] for entry in records], sort_keys=True).encode(), digest_size=4).hexdigest(),
        "per_class_iou": ";".join(f"{name}={iou:.4f}" for name, iou in results["per_class_iou"].items() if iou is not None),
        **{name: version(name) for name in ("torch", "timm", "transformers")},
    }


def draw_strips(spec: dict, options: TablesOptions) -> None:
    """A picture, in the work folder, of what networks see that were fine-tuned on a tenth of the labels; none of what was not run."""
    names = {"none": "none"} | ({"ImageNet": "imagenet"} if options.start == "imagenet" else {}) | {"ours": "mscl"}
    cells = {title: make_cell(name, "1/10", spec["seeds"][0], spec, options) for title, name in names.items()}
    there = {title: cell.stages for title, cell in cells.items() if is_done(cell)}
    if there:
        title = f"{options.dataset}, from {options.start} weights, {options.reading} reading"
        evaluation = next(iter(there.values()))[2].flags
        draw_strip({title: stages[1].folder for title, stages in there.items()}, evaluation, Path(options.work_dir) / f"{title}.png")


def parameters(model: Path) -> int:
    """How many weights the deployed network has."""
    with safe_open(model / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BATCH_STATISTICS))


def update_csv(path: Path, rows: list[dict]) -> None:
    """Put the rows into a table; those of other blocks and cells stay as they are, also when several processes do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with locked(path.parent):
        old = list(csv.DictReader(path.open())) if path.is_file() else []
        merged = {tuple(str(row[name]) for name in IDENTITY): row for row in [*old, *rows]}
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, *MORE), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(merged.values(), key=place_of))
        temporary.replace(path)


def place_of(row: dict) -> tuple:
    cell, share = list(ROWS).index(row["cell"]), SHARES[1].index(row["share"])
    return (*(row[name] for name in IDENTITY[:4]), cell, share, int(row["subset_seed"]), int(row["seed"]))
