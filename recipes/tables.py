"""The paper's three tables: a grid of pre-training, fine-tuning loss, label count and seed; every cell is a chain of ordinary recipe runs.

python recipes/benchmark.py tables --table 1 --dataset camvid --data-dir CamVid --weights lite0.safetensors --jobs 2

Any number of these commands, on one machine or on several that share the work folder, share the cells out among themselves: a stage is
run by whoever locks it first. What is finished is skipped, what was killed goes on from its last checkpoint.
"""

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from multiprocessing import Process
from multiprocessing.connection import wait
from pathlib import Path

import yaml
from benchmark import COLUMNS, RECIPES, machine
from safetensors import safe_open
from stages import BUSY, Stage, finished, record, start
from tqdm import tqdm

from mscl_hf.methods import METHODS
from mscl_hf.options import parse
from mscl_hf.publish import commit

MORE = ("scale", "reading", "start", "share", "labels", "pretrain_passes", "finetune_passes", "parameters", "threads", "config",
        "torch", "timm", "transformers")  # fmt: skip
IDENTITY = ("scale", "dataset", "start", "reading", "cell", "share", "seed")
# Views of an image that a step of pre-training passes through the network: all methods get the same number of passes.
VIEWS_A_SAMPLE = {"pair": 2, "two_crop": 2, "copy_paste": 2, "single": 1, "slices": 3}
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PRINTED = RECIPES / "configs" / "mscl_printed.yaml"
SUBSETS = ("g", "l", "p", "g+l", "g+p", "l+p", "g+l+p")


@dataclass(frozen=True)
class Row:
    """A row of a table: how the network is pre-trained, and what follows."""

    method: str  # "start": the weights that pre-training starts from, without any
    options: dict = field(default_factory=dict)
    loss: str = "ce"
    long: bool = False  # the passes of a pre-training are spent on more fine-tuning instead
    all_images: bool = False  # pre-training sees every training image, else those whose masks may be used


# The methods of other papers that read no masks see all images: the number of masks does not bind them.
OTHERS = {name: Row(name, all_images=kind.labels != "yes") for name, kind in METHODS.items() if name not in ("none", "imagenet", "mscl")}
ROWS = {
    "none": Row("none"),
    "none_long": Row("none", long=True),
    "imagenet": Row("start"),
    "imagenet_long": Row("start", long=True),
    "mscl": Row("mscl"),
    "mscl_unlabelled": Row("mscl", {"unlabelled": "rest"}),
    **{losses: Row("mscl", {"losses": losses}) for losses in SUBSETS},
    "aaf": Row("start", loss="ce+aaf"),
    "rmi": Row("start", loss="bce+rmi"),
    **OTHERS,
}
OF_THE_PAPER = ("none", "mscl", "simclr", "aaf", "rmi")
TABLES = {  # the rows and the shares of the labels
    1: (("none", "mscl", "none_long", "imagenet", "imagenet_long", "mscl_unlabelled"), ("1/10", "1/5", "1/2", "all")),
    2: (("none", "imagenet", *SUBSETS), ("1/2",)),
    3: ((*OF_THE_PAPER, "imagenet", *(name for name in OTHERS if name not in OF_THE_PAPER)), ("1/5", "all")),
}


@dataclass(frozen=True)
class TablesOptions:
    """Which cells, and where they go."""

    dataset: str = field(metadata={"help": "camvid, voc2012 or cityscapes"})
    table: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "1 label counts, 2 losses, 3 methods"})
    scale: str = field(default="small", metadata={"help": "small: two CPU cores; full: GPUs (recipes/configs/tables_SCALE_DATASET.yaml)"})
    settings: str | None = field(default=None, metadata={"help": "YAML file; default: recipes/configs/tables_SCALE_DATASET.yaml"})
    data_dir: str | None = field(default=None, metadata={"help": "where the data set lies"})
    start: str = field(default="imagenet", metadata={"help": "weights that all but none and none_long start from: imagenet or random"})
    weights: str | None = field(default=None, metadata={"help": "timm weights for --start imagenet; default: timm's, from the Hub"})
    reading: str = field(default="best", metadata={"help": "of the method mscl: best (the defaults) or printed (as in the paper)"})
    rows: list[str] | None = field(default=None, metadata={"help": "rows to run; default: all of the table"})
    shares: list[str] | None = field(default=None, metadata={"help": "label shares to run, of 1/10, 1/5, 1/2, all; default: the table's"})
    seeds: list[int] | None = field(default=None, metadata={"help": "seeds to run; default: those of the configuration"})
    work_dir: str = field(default="runs/tables", metadata={"help": "folder of the cells; may be shared by several jobs"})
    results: str = field(default="results", metadata={"help": "folder of the tables; rows of other data sets and settings there are kept"})
    jobs: int = field(default=1, metadata={"help": "stages run side by side"})
    launcher: str | None = field(default=None, metadata={"help": "e.g. 'accelerate launch --config_file FILE'; default: this Python"})
    finished_only: bool = field(default=False, metadata={"help": "write the tables of what is finished, run nothing"})
    page: str | None = field(default=None, metadata={"help": "also write the report as an HTML page, with images of the data set in it"})

    def __post_init__(self):
        for name, known in (("scale", ("small", "full")), ("start", ("imagenet", "random")), ("reading", ("best", "printed"))):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for name, known in (("table", TABLES), ("rows", ROWS), ("shares", TABLES[1][1])):
            unknown = [str(value) for value in getattr(self, name) or () if value not in known]
            if unknown:
                raise ValueError(f"--{name} {unknown[0]} is unknown; choose of {', '.join(map(str, known))}")
        if self.jobs < 1:
            raise ValueError(f"--jobs is {self.jobs}; it must be at least 1")


@dataclass(frozen=True)
class Cell:
    """One number: a row at a share of the labels, with a seed."""

    name: str
    share: str
    seed: int
    stages: tuple[Stage, ...]  # pre-training, fine-tuning, evaluation

    def __str__(self):
        return f"{self.name}, {self.share} of the labels, seed {self.seed}"


def main(argv: list[str]) -> None:
    (options,) = parse((TablesOptions,), __doc__.splitlines()[0], argv)
    spec = read_spec(options)
    grid = {table: list(cells_of(table, spec, options)) for table in options.table}
    cells = list({cell.stages: cell for cells in grid.values() for cell in cells}.values())
    failed = [] if options.finished_only else run_cells(cells, options)
    for table, cells in grid.items():
        update_csv(Path(options.results) / f"table{table}.csv", [row_of(cell, options) for cell in cells if is_done(cell)])
    if failed:
        sys.exit("\n".join(f"failed: {stage.folder}, see {stage.log}" for stage in failed))


def read_spec(options: TablesOptions) -> dict:
    """The grid's settings: how many labels a share is, budgets, network, rates."""
    path = Path(options.settings or RECIPES / "configs" / f"tables_{options.scale}_{options.dataset}.yaml")
    if not path.is_file():
        known = sorted(p.stem.removeprefix("tables_") for p in (RECIPES / "configs").glob("tables_*_*.yaml"))
        raise ValueError(f"no file {path.name}; choose --scale and --dataset of {', '.join(known)}, or give --settings FILE")
    return yaml.safe_load(path.read_text())


def cells_of(table: int, spec: dict, options: TablesOptions) -> Iterator[Cell]:
    """In the order in which they are run: every row with one seed before the next seed."""
    rows, shares = TABLES[table]
    for seed in options.seeds or spec["seeds"]:
        for name, share in itertools.product(rows, shares):
            asked = (options.rows is None or name in options.rows) and (options.shares is None or share in options.shares)
            rest = share != "all" or name != "mscl_unlabelled"  # there are images without masks
            there = name not in spec.get("leave_out", ()) and (options.start == "imagenet" or "imagenet" not in name)
            often = name in (*OF_THE_PAPER, "imagenet") or table != 3 or options.seeds or seed in spec["seeds_of_others"]
            if asked and rest and there and often:
                yield make_cell(name, share, seed, spec, options)


def make_cell(name: str, share: str, seed: int, spec: dict, options: TablesOptions) -> Cell:
    """The three runs behind a number. Cells that need the same run name the same folder."""
    row, work = ROWS[name], Path(options.work_dir) / f"{options.scale}_{options.dataset}"
    data = {"dataset": options.dataset} | ({"data-dir": options.data_dir} if options.data_dir else {})
    count = spec["shares"][share]
    subset = {} if count is None else {"train-count": count}
    flags = pretraining(row, spec, options)
    if METHODS[flags["method"]].trains and not row.all_images:
        flags |= subset
    start = "random" if "backbone-weights" not in flags and "pretrained" not in flags else "imagenet"
    words = [flags["method"], flags.get("losses"), flags.get("unlabelled"), options.reading if row.method == "mscl" else None, start]
    known = "-".join(str(word) for word in (*words, flags.get("train-count", "all")) if word)
    place = f"{known}-seed{seed}"
    steps = spec["finetune"]["max-steps"] + row.long * spec["passes"] // spec["finetune"]["batch-size"]
    tuned = f"{place}-{row.loss.replace('+', '_')}-{count or 'all'}-{steps}"
    common = data | spec["common"] | {"seed": seed}
    first = Stage("pretrain", work / "pretrain" / place, common | spec["network"] | flags)
    tuning = spec["finetune"] | (spec["finetune_random"] if start == "random" else {})
    flags = common | tuning | subset | {"loss": row.loss, "max-steps": steps, "model": str(first.folder)}
    second = Stage("finetune", work / "finetune" / tuned, flags, first)
    flags = data | spec["evaluate"] | {"seed": seed, "model": str(second.folder)}
    return Cell(name, share, seed, (first, second, Stage("evaluate", work / "evaluate" / tuned, flags, second)))


def pretraining(row: Row, spec: dict, options: TablesOptions) -> dict:
    """Flags of a row's pre-training, its data set apart. Every method passes the same number of views through the network."""
    method = {"start": "none" if options.start == "random" else "imagenet"}.get(row.method, row.method)
    weights = {"backbone-weights": options.weights} if options.weights else {"pretrained": True}
    kind = METHODS[method]
    if options.start == "random" or method == "none" or kind.two_towers:
        weights = {}
    if not kind.trains:
        return {"method": method, "val-split": "none"} | weights
    flags = {"method": method} | spec["pretrain"] | weights
    if method == "mscl":
        flags |= {"config": str(PRINTED)} if options.reading == "printed" else {}
        flags |= {"losses": "g+l+p"} | row.options
    flags |= spec.get("methods", {}).get(method, {})
    return flags | {"max-steps": spec["passes"] // (flags["batch-size"] * VIEWS_A_SAMPLE[kind.views])}


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
        "image_size": pretrain["image_size"],
        "commit": results["commit"] or commit() or "-",
        "cell": cell.name,
        "split": results["split"],
        "num_images": results["num_images"],
        "overall_accuracy": round(results["overall_accuracy"], 5),
        "hours": round(sum(entry["seconds"] for entry in records) / 3600, 4),
        "machine": machine(),
        "scale": options.scale,
        "reading": options.reading,
        "start": options.start,
        "share": cell.share,
        "labels": ("yes" if kind.uses_labels(pretrain) else "no") if kind.trains else "-",
        "pretrain_passes": passes,
        "finetune_passes": finetune["max_steps"] * finetune["batch_size"],
        "parameters": parameters(cell.stages[1].folder),
        "threads": records[0]["threads"],
        "config": blake2b(json.dumps([entry["flags"] for entry in records], sort_keys=True).encode(), digest_size=4).hexdigest(),
        **{name: version(name) for name in ("torch", "timm", "transformers")},
    }


def parameters(model: Path) -> int:
    """How many weights the deployed network has."""
    with safe_open(model / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BATCH_STATISTICS))


def update_csv(path: Path, rows: list[dict]) -> None:
    """Put the rows into a table; those of other blocks and cells stay as they are."""
    old = list(csv.DictReader(path.open())) if path.is_file() else []
    merged = {tuple(str(row[name]) for name in IDENTITY): row for row in [*old, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *MORE), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(merged.values(), key=place_of))


def place_of(row: dict) -> tuple:
    cell, share = list(ROWS).index(row["cell"]), TABLES[1][1].index(row["share"])
    return (*(row[name] for name in IDENTITY[:4]), cell, share, int(row["seed"]))
