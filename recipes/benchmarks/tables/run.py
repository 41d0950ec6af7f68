"""Make the paper's three tables: a grid of pre-training, fine-tuning loss, label count and seed.

python -m recipes.benchmarks tables --table 1 --dataset camvid --data-dir CamVid --weights lite0.safetensors --jobs 2

Any number of these commands, on one machine or on several that share the work folder, share the stages out among themselves. Finished
stages are skipped, interrupted ones continue from their last checkpoint.
"""

import json
import math
from hashlib import blake2b
from pathlib import Path

from safetensors import safe_open
from tqdm import tqdm

from mscl_hf.cli import parse_sections
from mscl_hf.config import ContrastConfig
from mscl_hf.methods import METHODS

from ..common import read_csv, write_csv
from ..runner import COLUMNS, Cell, Outcome, check, row_of, run_cells
from ..stages import LIBRARIES, locked, record, run_of, without_paths
from .cost import cost
from .grid import ROWS, VIEWS_PER_SAMPLE, TablesOptions, cells_of, make_cell, read_spec
from .report import write_page, write_tables
from .rows import SHARES
from .strips import draw_strip

MORE_COLUMNS = ("scale", "reading", "start", "share", "labels", "subset_seed", "pretrain_passes", "finetune_passes", "parameters",
                "threads", "config", "per_class_iou", *LIBRARIES)  # fmt: skip
IDENTITY = ("scale", "dataset", "start", "reading", "cell", "share", "subset_seed", "seed")
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def main(argv: list[str]) -> None:
    (options,) = parse_sections([TablesOptions], __doc__.splitlines()[0], argv)
    spec = read_spec(options)
    if options.weights and not Path(options.weights).is_file():
        raise ValueError(f"--weights is {options.weights}; expected a file of timm weights. Leave it out to load them from the Hub.")
    grid = {table: list(cells_of(table, spec, options)) for table in options.table}
    if not any(grid.values()):
        raise ValueError("no cell of these tables has such rows, shares and start. docs/tables.md lists them.")
    if options.estimate is not None:
        print(cost(grid, options.estimate, options.launcher))
        return
    results = Path(options.results)
    check([cell for cells in grid.values() for cell in cells])
    check_rows(grid, options)
    outcome = Outcome() if options.finished_only else run(grid, options)
    write_rows(grid, options)
    results.mkdir(parents=True, exist_ok=True)
    with locked(results):
        write_tables(results, "python -m recipes.benchmarks tables")
    outcome.exit_if_stopped()
    if options.page:
        draw_strips(spec, options)
        write_page(results, sorted(Path(options.work_dir).glob("*.png")), Path(options.page))
    outcome.exit_if_failed()


def check_rows(grid: dict[int, list[Cell]], options: TablesOptions) -> None:
    """Raise ValueError for a row of the results that was measured with other settings."""
    for table, cells in grid.items() if not options.replace else ():
        path = path_of(table, options)
        old = {key_of(row): row["config"] for row in read_csv(path)}
        for cell in cells:
            if old.get(key_of(identity_of(cell, options)), config_of(cell)) != config_of(cell):
                raise ValueError(f"{path} has a row with other settings for {cell}. Give another --results, or --replace.")


def run(grid: dict[int, list[Cell]], options: TablesOptions) -> Outcome:
    """Run the unfinished cells; each is written into its tables as soon as it is done."""

    def on_done(done: Cell) -> None:
        write_rows({table: [cell for cell in cells if cell.stages == done.stages] for table, cells in grid.items()}, options)
        tqdm.write(f"{done}: mean IoU {100 * done.results()['mean_iou']:.1f}")

    cells = list({cell.stages: cell for cells in grid.values() for cell in cells}.values())
    return run_cells(cells, options.jobs, on_done, options.launcher)


def write_rows(grid: dict[int, list[Cell]], options: TablesOptions) -> None:
    """Write the finished cells into the CSV files of their tables."""
    for table, cells in grid.items():
        rows = [table_row(cell, options) for cell in cells if cell.is_done()]
        if rows:
            update_csv(path_of(table, options), rows)


def path_of(table: int, options: TablesOptions) -> Path:
    return Path(options.results) / f"table{table}.csv"


def identity_of(cell: Cell, options: TablesOptions) -> dict:
    """The columns that name a cell."""
    setting = {name: getattr(options, name) for name in ("scale", "dataset", "start", "reading", "subset_seed")}
    return setting | {"cell": cell.name, "share": cell.share, "seed": cell.seed}


def key_of(row: dict) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in IDENTITY)


def config_of(cell: Cell) -> str:
    """A digest of the flags of all three runs."""
    flags = [without_paths(stage.flags) for stage in cell.stages]
    return blake2b(json.dumps(flags, sort_keys=True).encode(), digest_size=4).hexdigest()


def table_row(cell: Cell, options: TablesOptions) -> dict:
    """A finished cell as a row of its table."""
    pretrain, finetune = map(run_of, cell.stages[:2])
    method_cls = METHODS[pretrain["method"]]
    passes = pretrain["max_steps"] * pretrain["batch_size"] * VIEWS_PER_SAMPLE[method_cls.views] if method_cls.trains else 0
    reads_labels = method_cls.uses_labels(ContrastConfig(losses=pretrain["losses"]))
    per_class_iou = cell.results()["per_class_iou"]
    return row_of(cell) | identity_of(cell, options) | {
        "labels": ("yes" if reads_labels else "no") if method_cls.trains else "-",
        "pretrain_passes": passes,
        "finetune_passes": finetune["max_steps"] * finetune["batch_size"] * (2 if ROWS[cell.name].semi else 1),
        "parameters": parameters(cell.stages[1].folder),
        "threads": record(cell.stages[0])["threads"],
        "config": config_of(cell),
        "per_class_iou": ";".join(f"{name}={iou:.4f}" for name, iou in per_class_iou.items() if iou is not None),
    }  # fmt: skip


def draw_strips(spec: dict, options: TablesOptions) -> None:
    """Draw predictions of networks that were fine-tuned on a tenth of the labels into the work folder, where these are finished."""
    names = {"none": "none"} | ({"ImageNet": "imagenet"} if options.start == "imagenet" else {}) | {"ours": "mscl"}
    cells = {title: make_cell(name, "1/10", spec["seeds"][0], spec, options) for title, name in names.items()}
    stages = {title: cell.stages for title, cell in cells.items() if cell.is_done()}
    if stages:
        title = f"{options.dataset}, {options.scale} scale, from {options.start} weights, {options.reading} reading"
        flags = next(iter(stages.values()))[2].flags
        draw_strip({title: finetune.folder for title, (_, finetune, _) in stages.items()}, flags, Path(options.work_dir) / f"{title}.png")


def parameters(model: Path) -> int:
    """The number of weights of the fine-tuned network."""
    with safe_open(model / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BATCH_STATISTICS))


def update_csv(path: Path, rows: list[dict]) -> None:
    """Write rows into a table and keep its other rows, also when several processes do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        merged = {key_of(row): row for row in [*read_csv(path), *rows]}
        write_csv(path, (*COLUMNS, *MORE_COLUMNS), sorted(merged.values(), key=position_of))


def position_of(row: dict) -> tuple:
    """Sort key of a row in its table."""
    cell, share = list(ROWS).index(row["cell"]), SHARES[1].index(row["share"])
    return (*(row[name] for name in IDENTITY[:4]), cell, share, int(row["subset_seed"]), int(row["seed"]))
