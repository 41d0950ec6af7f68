"""Comparisons: every cell is an ordinary pre-training, fine-tuning and evaluation run; finished cells are skipped.

python recipes/benchmark.py compare --spec recipes/configs/compare_camvid.yaml --data-dir CamVid --work-dir runs/camvid --jobs 2
"""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from stages import as_flag, machine

from mscl_hf.cli import command, parse
from mscl_hf.records.versions import commit

RECIPES = Path(__file__).resolve().parent
COLUMNS = ("dataset", "method", "losses", "loss", "train_count", "seed", "mean_iou", "pretrain_steps", "finetune_steps",
           "image_size", "commit", "cell", "split", "num_images", "overall_accuracy", "hours", "machine")  # fmt: skip
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                     2.110, 2.101, 2.093, 2.086), 1))  # fmt: skip


@dataclass(frozen=True)
class CompareOptions:
    """A grid of cells and where its parts go."""

    spec: str = field(metadata={"help": "YAML file: dataset, common, pretrain, finetune, evaluate, seeds, baseline, cells"})
    data_dir: str | None = field(default=None, metadata={"help": "where the data set lies; none for drawn scenes"})
    work_dir: str = field(default="runs/compare", metadata={"help": "folder of the cells; may be shared by several jobs"})
    results: str | None = field(default=None, metadata={"help": "CSV to write; default: results/NAME_OF_SPEC.csv, with a .md beside it"})
    jobs: int = field(default=1, metadata={"help": "cells run side by side, one thread each"})
    only: list[str] | None = field(default=None, metadata={"help": "cells to run; default: all"})
    seeds: list[int] | None = field(default=None, metadata={"help": "seeds to run; default: those of the spec"})
    finished_only: bool = field(default=False, metadata={"help": "write the tables of what is finished, run nothing"})


@command
def main() -> None:
    if sys.argv[1:2] == ["speed"]:
        import speed

        return speed.main(sys.argv[2:])
    if sys.argv[1:2] == ["methods"]:
        import methods

        return methods.main(sys.argv[2:])
    if sys.argv[1:2] == ["tables"]:
        import tables

        return tables.main(sys.argv[2:])
    if sys.argv[1:2] != ["compare"]:
        raise ValueError(f"unknown benchmark {' '.join(sys.argv[1:2])!r}; choose compare, tables, methods or speed")
    return compare(sys.argv[2:])


def compare(argv: list[str]) -> None:
    (options,) = parse((CompareOptions,), __doc__.splitlines()[0], argv)
    spec = yaml.safe_load(Path(options.spec).read_text())
    rows = compare_cells(spec, options)
    target = Path(options.results or f"results/{Path(options.spec).stem}.csv")
    write_csv(target, rows)
    target.with_suffix(".md").write_text(summary(spec, rows, options.spec))
    print(target.with_suffix(".md").read_text())


def compare_cells(spec: dict, options: CompareOptions) -> list[dict]:
    """The rows of the cells that could be run, or had been."""
    names = options.only or list(spec["cells"])
    unknown = set(names) - set(spec["cells"])
    if unknown:
        raise ValueError(f"no cell {', '.join(sorted(unknown))} in {options.spec}; there are {', '.join(spec['cells'])}")
    # Cells that fine-tune another cell's pre-training come when that is done.
    waves = [[name for name in names if ("from" in spec["cells"][name]) is borrows] for borrows in (False, True)]
    seeds, rows = options.seeds or spec["seeds"], []
    with ThreadPoolExecutor(options.jobs) as pool:
        for wave in waves:
            rows += pool.map(lambda cell: run_cell(spec, options, *cell), [(name, seed) for seed in seeds for name in wave])
    return [row for row in rows if row]


def run_cell(spec: dict, options: CompareOptions, name: str, seed: int) -> dict | None:
    """Pre-train, fine-tune, evaluate; a stage whose result is there is not run again. Returns the cell's row, None if a stage fails."""
    folder = Path(options.work_dir) / f"{name}-seed{seed}"
    cell = spec["cells"][name]
    source = Path(options.work_dir) / f"{cell.get('from', name)}-seed{seed}"  # whose pre-training this cell fine-tunes
    data = {"dataset": spec["dataset"]} | ({"data-dir": options.data_dir} if options.data_dir else {})
    common = data | spec.get("common", {})
    stages = {
        "pretrain": common | spec["pretrain"] | cell.get("pretrain", {}),
        "finetune": common | spec["finetune"] | cell.get("finetune", {}) | {"model": source / "pretrain"},
        "evaluate": data | spec["evaluate"] | {"model": folder / "finetune"},
    }
    if "from" in cell:
        del stages["pretrain"]
    for stage, flags in stages.items():
        proof = "results.json" if stage == "evaluate" else "model.safetensors"
        flags |= {"seed": seed, "output-dir": folder / stage}
        if (folder / stage / proof).is_file():
            continue
        if options.finished_only:
            return None
        if not run_stage(stage, flags, folder):
            print(f"{name}, seed {seed}: {stage} failed, see {folder / stage}.log")
            return None
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    places = {"pretrain": source, "finetune": folder}
    run = {stage: json.loads((place / stage / "run.json").read_text()) for stage, place in places.items()}
    method = run["pretrain"]["method"]
    seconds = sum(float((place / f"{stage}.seconds").read_text()) for stage, place in places.items())
    print(f"{name}, seed {seed}: mean IoU {results['mean_iou']:.4f}")
    return {
        "dataset": spec["dataset"],
        "method": method,
        "losses": run["pretrain"]["losses"] if method == "mscl" else "-",
        "loss": run["finetune"].get("loss", "ce"),  # runs from before there was a choice do not name it
        "train_count": spec["common"].get("train-count", "all"),
        "seed": seed,
        "mean_iou": round(results["mean_iou"], 5),
        "pretrain_steps": run["pretrain"]["max_steps"] if method != "none" else 0,
        "finetune_steps": run["finetune"]["max_steps"],
        "image_size": run["pretrain"]["image_size"],
        "commit": results["commit"] or commit() or "-",
        "cell": name,
        "split": results["split"],
        "num_images": results["num_images"],
        "overall_accuracy": round(results["overall_accuracy"], 5),
        "hours": round(seconds / 3600, 3),
        "machine": machine(),
    }


def run_stage(stage: str, flags: dict, folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / stage, ignore_errors=True)  # what a killed run left
    words = [word for key, value in flags.items() for word in as_flag(key, value)]
    log = folder / f"{stage}.log"
    started = os.times().elapsed
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(RECIPES / f"{stage}.py"), *words],
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
    (folder / f"{stage}.seconds").write_text(f"{os.times().elapsed - started:.1f}\n")
    (folder / f"{stage}.peak_mb").write_text(f"{used.ru_maxrss / 1024:.0f}\n")
    return status == 0


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def summary(spec: dict, rows: list[dict], source: str) -> str:
    """Mean and sample deviation over seeds per cell, and the paired difference to the baseline with its 95 % t interval."""
    by_cell: dict[str, dict[int, float]] = {}
    for row in rows:
        by_cell.setdefault(row["cell"], {})[row["seed"]] = 100 * row["mean_iou"]
    place = "" if spec["dataset"] == "synthetic" else " --data-dir DIR"
    lines = [
        f"Made by `python recipes/benchmark.py compare --spec {source}{place}`; mean IoU in %.\n",
        "| cell | pre-training steps | fine-tuning steps | seeds | mean IoU | difference (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    for cell, scores in by_cell.items():
        row = next(row for row in rows if row["cell"] == cell)
        against = spec["cells"][cell].get("against", spec["baseline"])  # a control with the same fine-tuning budget
        base = by_cell.get(against, {})
        pairs = [scores[seed] - base[seed] for seed in scores if seed in base]
        lines.append(
            f"| {cell} | {row['pretrain_steps']} | {row['finetune_steps']} | {len(scores)} | {mean_sd(list(scores.values()))} | "
            f"{f'{difference(pairs)} against {against}' if cell != against else '-'} |"
        )
    return "\n".join(lines) + "\n"


def mean_sd(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def difference(pairs: list[float]) -> str:
    if not pairs:
        return "-"
    if len(pairs) == 1:
        return f"{pairs[0]:+.1f}"
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(pairs))


def interval(pairs: list[float]) -> tuple[float, float, float]:
    """Mean and ends of the 95 % t interval, of two numbers or more."""
    half = T95.get(len(pairs) - 1, 1.96) * statistics.stdev(pairs) / len(pairs) ** 0.5
    mean = statistics.mean(pairs)
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
