"""The plan of the paper's three tables: which runs stand behind each number, and which of them are the same."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from stages import RECIPES, Stage
from tables_data import CELLS, OF_THE_PAPER, SCALES, SHARES

from mscl_hf.methods import METHODS

# Views of an image that a step of pre-training passes through the network: all methods get the same number of passes.
VIEWS_A_SAMPLE = {"pair": 2, "two_crop": 2, "copy_paste": 2, "single": 1, "slices": 2}  # slices: variants GR and GD
PRINTED = RECIPES / "configs" / "mscl_printed.yaml"


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
    **{losses: Row("mscl", {"losses": losses}) for losses in OF_THE_PAPER[2][1:]},
    "aaf": Row("start", loss="ce+aaf"),
    "rmi": Row("start", loss="bce+rmi"),
    **OTHERS,
}
MORE_METHODS = tuple(name for name in OTHERS if name not in OF_THE_PAPER[3])
TABLES = CELLS | {3: (*CELLS[3], *MORE_METHODS)}


@dataclass(frozen=True)
class TablesOptions:
    """Which cells, and where they go."""

    dataset: str = field(metadata={"help": "camvid, voc2012 or cityscapes"})
    table: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "1 label counts, 2 losses, 3 methods"})
    scale: str = field(default="small", metadata={"help": "small: two CPU cores; medium: one GPU, minutes a cell; full: GPUs, hours"})
    settings: str | None = field(default=None, metadata={"help": "YAML file; default: recipes/configs/tables_SCALE_DATASET.yaml"})
    data_dir: str | None = field(default=None, metadata={"help": "where the data set lies"})
    start: str = field(default="imagenet", metadata={"help": "weights that all but none and none_long start from: imagenet or random"})
    weights: str | None = field(default=None, metadata={"help": "timm weights for --start imagenet; default: timm's, from the Hub"})
    reading: str = field(default="best", metadata={"help": "of the method mscl: best (the defaults) or printed (as in the paper)"})
    rows: list[str] | None = field(default=None, metadata={"help": "rows to run; default: all of the table"})
    shares: list[str] | None = field(default=None, metadata={"help": "label shares to run, of 1/10, 1/5, 1/2, all; default: the table's"})
    seeds: list[int] | None = field(default=None, metadata={"help": "seeds to run; default: those of the configuration"})
    subset_seed: int = field(default=0, metadata={"help": "which masks; tables 2 and 3 and all claims are about 0"})
    work_dir: str = field(default="runs/tables", metadata={"help": "folder of the cells; may be shared by several jobs"})
    results: str = field(default="results", metadata={"help": "folder of the tables; rows of other data sets and settings there are kept"})
    replace: bool = field(default=False, metadata={"help": "write over rows there that were measured with other settings"})
    jobs: int = field(default=1, metadata={"help": "stages run side by side"})
    launcher: str | None = field(default=None, metadata={"help": "e.g. 'accelerate launch --config_file FILE'; default: this Python"})
    finished_only: bool = field(default=False, metadata={"help": "write the tables of what is finished, run nothing"})
    estimate: int | None = field(
        default=None, metadata={"help": "time so many steps of each kind of run instead, and print what the grid costs; 0: FLOPs only"}
    )
    page: str | None = field(default=None, metadata={"help": "also write the report as an HTML page, with images of the data set in it"})

    def __post_init__(self):
        for name, known in (("scale", SCALES), ("start", ("imagenet", "random")), ("reading", ("best", "printed"))):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for name, known in (("table", TABLES), ("rows", ROWS), ("shares", SHARES[1])):
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


def read_spec(options: TablesOptions) -> dict:
    """The grid's settings: how many labels a share is, budgets, network, rates."""
    path = Path(options.settings or RECIPES / "configs" / f"tables_{options.scale}_{options.dataset}.yaml")
    if not path.is_file():
        known = sorted(p.stem.removeprefix("tables_") for p in (RECIPES / "configs").glob("tables_*_*.yaml"))
        raise ValueError(f"no file {path.name}; choose --scale and --dataset of {', '.join(known)}, or give --settings FILE")
    return yaml.safe_load(path.read_text())


def cells_of(table: int, spec: dict, options: TablesOptions) -> Iterator[Cell]:
    """In the order in which they are run: every row with one seed before the next seed."""
    for seed in options.seeds or spec["seeds"]:
        for name, share in itertools.product(TABLES[table], SHARES[table]):
            asked = (options.rows is None or name in options.rows) and (options.shares is None or share in options.shares)
            rest = share != "all" or name != "mscl_unlabelled"  # there are images without masks
            there = name not in spec.get("leave_out", ()) and (options.start == "imagenet" or "imagenet" not in name)
            often = name not in MORE_METHODS or options.seeds or seed in spec["seeds_of_others"]
            if asked and rest and there and often:
                yield make_cell(name, share, seed, spec, options)


def make_cell(name: str, share: str, seed: int, spec: dict, options: TablesOptions) -> Cell:
    """The three runs behind a number. Cells that need the same run name the same folder."""
    row, work = ROWS[name], Path(options.work_dir) / f"{options.scale}_{options.dataset}"
    data = {"dataset": options.dataset} | ({"data-dir": options.data_dir} if options.data_dir else {})
    count = spec["shares"][share]
    subset = {} if count is None else {"train-count": count} | ({"subset-seed": options.subset_seed} if options.subset_seed else {})
    flags = pretraining(row, spec, options)
    if METHODS[flags["method"]].trains and not row.all_images:
        flags |= subset
    start = "random" if "backbone-weights" not in flags and "pretrained" not in flags else "imagenet"
    words = [flags["method"], flags.get("losses"), flags.get("unlabelled"), options.reading if row.method == "mscl" else None, start]
    known = "-".join(str(word) for word in (*words, flags.get("train-count", "all")) if word)
    place = f"{known}-seed{seed}" + (f"-subset{options.subset_seed}" if "subset-seed" in flags else "")
    steps = spec["finetune"]["max-steps"] + row.long * spec["passes"] // spec["finetune"]["batch-size"]
    tuned = f"{place}-{row.loss.replace('+', '_')}-{count or 'all'}-{steps}"
    tuned += f"-of{options.subset_seed}" if "subset-seed" in subset else ""
    common = data | spec["common"] | {"seed": seed}
    first = Stage("pretrain", work / "pretrain" / place, common | spec["network"] | flags)
    tuning = spec["finetune"] | (spec.get("finetune_random", {}) if start == "random" else {})
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
        if options.reading == "printed":
            flags |= {key.replace("_", "-"): value for key, value in yaml.safe_load(PRINTED.read_text()).items()}
        flags |= {"losses": "g+l+p"} | row.options
    flags |= spec.get("methods", {}).get(method, {})
    return flags | {"max-steps": spec["passes"] // (flags["batch-size"] * VIEWS_A_SAMPLE[kind.views])}
