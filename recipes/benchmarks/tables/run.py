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
from multiprocessing import Process
from multiprocessing.connection import wait
from pathlib import Path

from benchmark import COLUMNS
from safetensors import safe_open
from stages import BUSY, LIBRARIES, Stage, finished, lasting, locked, record, settings, start
from tables_cost import cost
from tables_data import SHARES
from tables_grid import ROWS, VIEWS_A_SAMPLE, Cell, TablesOptions, cells_of, make_cell, read_spec
from tables_report import page, write_tables
from tables_strips import draw_strip
from tqdm import tqdm

from mscl_hf.cli import parse
from mscl_hf.methods import METHODS
from mscl_hf.training.signals import STOPPED_BY_SIGNAL, stop_signal

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
    results = Path(options.results)
    check(grid, options)
    failed, stopped = ([], False) if options.finished_only else run_cells(grid, options)
    note(grid, options)
    results.mkdir(parents=True, exist_ok=True)
    with locked(results):
        write_tables(results, "python recipes/benchmark.py tables")
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(STOPPED_BY_SIGNAL)
    if options.page:
        draw_strips(spec, options)
        page(results, sorted(Path(options.work_dir).glob("*.png")), Path(options.page))
    if failed:
        sys.exit("\n".join(f"failed: {stage.folder}, see {stage.log}" for stage in failed))


def check(grid: dict[int, list[Cell]], options: TablesOptions) -> None:
    """Refuse, before anything runs, what a recipe would refuse, and runs and rows that were made with other settings."""
    for stage in {stage: None for cells in grid.values() for cell in cells for stage in cell.stages}:
        settings(stage)
        finished(stage)
    for table, cells in grid.items() if not options.replace else ():
        there = {key_of(row): row["config"] for row in rows_in(path_of(table, options))}
        for cell in cells:
            if there.get(key_of(identity_of(cell, options)), config_of(cell)) != config_of(cell):
                raise ValueError(
                    f"{path_of(table, options)} has a row with other settings for {cell}; give another --results, or --replace true to "
                    "write over such rows"
                )


def run_cells(grid: dict[int, list[Cell]], options: TablesOptions) -> tuple[list[Stage], bool]:
    """Run what is not finished, `jobs` stages at a time, and write down each cell as soon as it is done; returns the stages that failed,
    and whether it was told to stop: then the stages save their checkpoints first."""
    failed: list[Stage] = []
    running: dict[Process, tuple[Cell, Stage]] = {}
    cells = list({cell.stages: cell for cells in grid.values() for cell in cells}.values())
    tqdm.monitor_interval = 0  # no thread beside this one, which forks
    with stop_signal() as stop, tqdm(total=len(cells), unit="cell", smoothing=0) as bar:
        bar.initial = bar.n = sum(map(is_done, cells))
        while not stop.requested:
            others = fill(running, cells, failed, options)
            if not running and not others:
                return failed, False
            wait([process.sentinel for process in running], timeout=2)
            for process in [process for process in running if not process.is_alive()]:
                cell, stage = running.pop(process)
                if process.exitcode not in (0, BUSY) and not stop.requested:
                    failed.append(stage)
                    bar.write(f"failed: {cell}: {stage.recipe}, see {stage.log}")
                elif is_done(cell):
                    note({table: [one for one in cells if one.stages == cell.stages] for table, cells in grid.items()}, options)
                    bar.write(f"{cell}: mean IoU {100 * results_of(cell)['mean_iou']:.1f}")
            bar.update(sum(map(is_done, cells)) - bar.n)
        for process in running:
            process.terminate()
        for process in running:
            process.join()
    return failed, True


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


def note(grid: dict[int, list[Cell]], options: TablesOptions) -> None:
    """Put the cells that are done into the CSV files of their tables."""
    for table, cells in grid.items():
        rows = [row_of(cell, options) for cell in cells if is_done(cell)]
        if rows:
            update_csv(path_of(table, options), rows)


def path_of(table: int, options: TablesOptions) -> Path:
    return Path(options.results) / f"table{table}.csv"


def identity_of(cell: Cell, options: TablesOptions) -> dict:
    setting = {name: getattr(options, name) for name in ("scale", "dataset", "start", "reading", "subset_seed")}
    return setting | {"cell": cell.name, "share": cell.share, "seed": cell.seed}


def key_of(row: dict) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in IDENTITY)


def config_of(cell: Cell) -> str:
    """A digest of the flags of all three runs."""
    flags = [lasting(stage.flags) for stage in cell.stages]
    return blake2b(json.dumps(flags, sort_keys=True).encode(), digest_size=4).hexdigest()


def row_of(cell: Cell, options: TablesOptions) -> dict:
    """A finished cell as a row of its table."""
    results, runs = results_of(cell), [json.loads((stage.folder / "run.json").read_text()) for stage in cell.stages[:2]]
    records = [record(stage) for stage in cell.stages]
    kind, (pretrain, finetune) = METHODS[runs[0]["method"]], runs
    passes = pretrain["max_steps"] * pretrain["batch_size"] * VIEWS_A_SAMPLE[kind.views] if kind.trains else 0
    return identity_of(cell, options) | {
        "method": pretrain["method"],
        "losses": pretrain["losses"] if pretrain["method"] == "mscl" else "-",
        "loss": finetune["loss"],
        "train_count": finetune["train_count"] or "all",
        "mean_iou": round(results["mean_iou"], 5),
        "pretrain_steps": pretrain["max_steps"] if kind.trains else 0,
        "finetune_steps": finetune["max_steps"],
        "image_size": finetune["image_size"],
        "split": results["split"],
        "num_images": results["num_images"],
        "overall_accuracy": round(results["overall_accuracy"], 5),
        "hours": round(sum(entry["seconds"] for entry in records) / 3600, 4),
        **{name: " ".join(dict.fromkeys(word for entry in records for word in entry[name].split())) for name in ("commit", *LIBRARIES)},
        "machine": "; ".join(dict.fromkeys(entry["machine"] for entry in records)),
        "labels": ("yes" if kind.uses_labels(pretrain) else "no") if kind.trains else "-",
        "pretrain_passes": passes,
        "finetune_passes": finetune["max_steps"] * finetune["batch_size"],
        "parameters": parameters(cell.stages[1].folder),
        "threads": records[0]["threads"],
        "config": config_of(cell),
        "per_class_iou": ";".join(f"{name}={iou:.4f}" for name, iou in results["per_class_iou"].items() if iou is not None),
    }


def draw_strips(spec: dict, options: TablesOptions) -> None:
    """A picture, in the work folder, of what networks see that were fine-tuned on a tenth of the labels; none of what was not run."""
    names = {"none": "none"} | ({"ImageNet": "imagenet"} if options.start == "imagenet" else {}) | {"ours": "mscl"}
    cells = {title: make_cell(name, "1/10", spec["seeds"][0], spec, options) for title, name in names.items()}
    there = {title: cell.stages for title, cell in cells.items() if is_done(cell)}
    if there:
        title = f"{options.dataset}, {options.scale} scale, from {options.start} weights, {options.reading} reading"
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
        merged = {key_of(row): row for row in [*rows_in(path), *rows]}
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, *MORE), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(merged.values(), key=place_of))
        temporary.replace(path)


def rows_in(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def place_of(row: dict) -> tuple:
    cell, share = list(ROWS).index(row["cell"]), SHARES[1].index(row["share"])
    return (*(row[name] for name in IDENTITY[:4]), cell, share, int(row["subset_seed"]), int(row["seed"]))
