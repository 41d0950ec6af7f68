"""The plan of the paper's three tables: the runs behind each figure. Cells that need the same run name the same folder."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mscl_hf.config.contrast import TERMS, parse_losses
from mscl_hf.config.fields import Section, option
from mscl_hf.methods import METHODS

from ..common import CONFIGS, read_yaml
from ..runner import Cell
from ..stages import Stage
from .rows import CELLS, PAPER_CELLS, SHARES

# Views of an image that a step of pre-training passes through the network: all methods get the same number of passes.
VIEWS_PER_SAMPLE = {"pair": 2, "two_crop": 2, "copy_paste": 2, "single": 1, "slices": 2}  # slices: variants GR and GD
SEMI = {"semi-supervised": "fixmatch", "unlabelled": "rest"}  # flags of fine-tuning; those of the settings come on top
READ_THE_REST = ("mscl_unlabelled", "semi", "mscl_semi")  # no image is unlabelled where all masks are used
PRINTED = CONFIGS.parents[1] / "configs" / "mscl_printed.yaml"


@dataclass(frozen=True)
class Row:
    """A row of a table: a pre-training, and the fine-tuning after it.

    method: "start" = the weights that pre-training starts from, without pre-training.
    long: the passes of a pre-training are spent on more fine-tuning instead.
    all_images: pre-training reads all training images; else only those whose masks may be used.
    semi: fine-tuning also reads as many images without masks, in half of the steps, so that the passes are the same.
    """

    method: str
    options: dict = field(default_factory=dict)
    loss: str = "ce"
    long: bool = False
    all_images: bool = False
    semi: bool = False


# Methods of other papers that read no masks use all images: the number of masks does not limit them.
OTHERS = {name: Row(name, all_images=method_cls.reads_masks != "yes")
          for name, method_cls in METHODS.items() if name not in ("none", "imagenet", "mscl", "distill")}  # fmt: skip
ROWS = {
    "none": Row("none"),
    "none_long": Row("none", long=True),
    "imagenet": Row("start"),
    "imagenet_long": Row("start", long=True),
    "mscl": Row("mscl"),
    "mscl_unlabelled": Row("mscl", {"unlabelled": "rest"}),
    "semi": Row("start", long=True, semi=True),
    "mscl_semi": Row("mscl", semi=True),
    **{losses: Row("mscl", {"losses": losses}) for losses in PAPER_CELLS[2][1:]},
    "aaf": Row("start", loss="ce+aaf"),
    "rmi": Row("start", loss="bce+rmi"),
    **OTHERS,
}
MORE_METHODS = tuple(name for name in OTHERS if name not in PAPER_CELLS[3])
TABLES = CELLS | {3: (*CELLS[3], *MORE_METHODS)}


@dataclass(frozen=True)
class TablesOptions(Section):
    """The cells, and the folders of their parts."""

    dataset: str = option(..., "camvid, voc2012 or cityscapes")
    table: list[int] = option([1, 2, 3], "1 = label counts, 2 = losses, 3 = methods")
    scale: Literal["small", "medium", "full"] = option("small", "small = two CPU cores; medium = one GPU, minutes a cell; full = GPUs")
    settings: str | None = option(None, "YAML file (default: recipes/benchmarks/configs/tables_SCALE_DATASET.yaml)")
    data_dir: str | None = option(None, "folder of the data set (default: none, for synthetic scenes)")
    start: Literal["imagenet", "random"] = option("imagenet", "weights that all rows but none and none_long start from")
    weights: str | None = option(None, "safetensors file of timm weights for --start imagenet (default: from the Hub)")
    reading: Literal["best", "printed"] = option("best", "options of mscl: best = its defaults, printed = as in the paper")
    rows: list[str] | None = option(None, "rows to run (default: all of the table)")
    shares: list[str] | None = option(None, "label shares to run, of 1/10, 1/5, 1/2, all (default: those of the table)")
    seeds: list[int] | None = option(None, "seeds to run (default: those of the settings)")
    subset_seed: int = option(0, "seed of the choice of masks; tables 2 and 3 and all claims use 0")
    work_dir: str = option("runs/tables", "folder of the cells; several benchmarks may share it")
    results: str = option("results", "folder of the tables; rows with other data sets or settings in it are kept")
    replace: bool = option(False, "overwrite rows in --results that were measured with other settings")
    jobs: int = option(1, "stages run side by side", at_least=1)
    launcher: str | None = option(None, "such as 'accelerate launch --config_file FILE' (default: this Python)")
    finished_only: bool = option(False, "write the tables of the finished cells, and run nothing")
    estimate: int | None = option(
        None, "only time this number of steps of each type of stage, and print the cost of the grid; 0 = FLOPs only", at_least=0
    )
    page: str | None = option(None, "HTML file for the report, which has images of the data set in it (default: none)")

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("table", TABLES), ("rows", ROWS), ("shares", SHARES[1])):
            unknown = [value for value in getattr(self, name) or () if value not in choices]
            if unknown:
                raise ValueError(f"--{name} is {unknown[0]}; expected values of {', '.join(map(str, choices))}.")


def read_spec(options: TablesOptions) -> dict:
    """The settings of the grid: numbers of labels, steps, network, learning rates."""
    path = Path(options.settings or CONFIGS / f"tables_{options.scale}_{options.dataset}.yaml")
    if not path.is_file():
        names = sorted(p.stem.removeprefix("tables_") for p in CONFIGS.glob("tables_*_*.yaml"))
        raise ValueError(f"no file {path.name}; expected --scale and --dataset of {', '.join(names)}. Give these, or --settings FILE.")
    return read_yaml(path)


def cells_of(table: int, spec: dict, options: TablesOptions) -> Iterator[Cell]:
    """The cells of a table in the order in which they are run: all rows with one seed before the next seed."""
    for seed in options.seeds or spec["seeds"]:
        for name, share in itertools.product(TABLES[table], SHARES[table]):
            is_selected = (options.rows is None or name in options.rows) and (options.shares is None or share in options.shares)
            has_images = share != "all" or name not in READ_THE_REST
            can_run = name not in spec.get("leave_out", ()) and (options.start == "imagenet" or "imagenet" not in name)
            has_seed = name not in MORE_METHODS or options.seeds or seed in spec["seeds_of_others"]
            if is_selected and has_images and can_run and has_seed:
                yield make_cell(name, share, seed, spec, options)


def make_cell(name: str, share: str, seed: int, spec: dict, options: TablesOptions) -> Cell:
    """The three runs behind a figure."""
    row, work = ROWS[name], Path(options.work_dir) / f"{options.scale}_{options.dataset}"
    data = {"dataset": options.dataset} | ({"data-dir": options.data_dir} if options.data_dir else {})
    count = spec["shares"][share]
    subset = {} if count is None else {"train-count": count} | ({"subset-seed": options.subset_seed} if options.subset_seed else {})
    flags = pretraining_flags(row, spec, options)
    if METHODS[flags["method"]].trains and not row.all_images:
        flags |= subset
    start = "random" if "backbone-weights" not in flags and "pretrained" not in flags else "imagenet"
    words = [flags["method"], flags.get("losses"), flags.get("unlabelled"), options.reading if row.method == "mscl" else None, start]
    first_name = "-".join(str(word) for word in (*words, flags.get("train-count", "all")) if word)
    first_name += f"-seed{seed}" + (f"-subset{options.subset_seed}" if "subset-seed" in flags else "")
    steps = spec["finetune"]["max-steps"] + row.long * spec["passes"] // spec["finetune"]["batch-size"]
    semi = SEMI | spec.get("semi", {}) if row.semi else {}
    steps = steps // 2 if row.semi else steps
    second_name = f"{first_name}-{row.loss.replace('+', '_')}-{count or 'all'}-{steps}"
    second_name += f"-{semi['semi-supervised']}" if row.semi else ""
    second_name += f"-of{options.subset_seed}" if "subset-seed" in subset else ""
    common = data | spec["common"] | {"seed": seed}
    first = Stage("pretrain", work / "pretrain" / first_name, common | spec["network"] | flags)
    finetune = spec["finetune"] | (spec.get("finetune_random", {}) if start == "random" else {})
    flags = common | finetune | subset | semi | {"loss": row.loss, "max-steps": steps, "model": str(first.folder)}
    second = Stage("finetune", work / "finetune" / second_name, flags, first)
    flags = data | spec["evaluate"] | {"seed": seed, "model": str(second.folder)}
    return Cell(name, seed, (first, second, Stage("evaluate", work / "evaluate" / second_name, flags, second)), share)


def pretraining_flags(row: Row, spec: dict, options: TablesOptions) -> dict:
    """Flags of a row's pre-training, except those of its data set. Every method passes the same number of views through the network."""
    method = {"start": "none" if options.start == "random" else "imagenet"}.get(row.method, row.method)
    weights = {"backbone-weights": options.weights} if options.weights else {"pretrained": True}
    method_cls = METHODS[method]
    if options.start == "random" or method == "none" or method_cls.two_towers:
        weights = {}
    if not method_cls.trains:
        return {"method": method, "val-split": "none"} | weights
    flags = {"method": method} | spec["pretrain"] | weights
    if method == "mscl":
        printed = read_yaml(PRINTED) if options.reading == "printed" else {}
        losses = row.options.get("losses", "g+l+p")
        absent = {*TERMS} - {*parse_losses(losses)}  # the recipe rejects their options
        flags |= {name.replace("_", "-"): value for name, value in printed.items() if name.split("_")[0] not in absent}
        flags |= {"losses": losses} | row.options
    flags |= spec.get("methods", {}).get(method, {})
    return flags | {"max-steps": spec["passes"] // (flags["batch-size"] * VIEWS_PER_SAMPLE[method_cls.views])}
