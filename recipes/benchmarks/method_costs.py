"""What every method costs a step, beside the bare backbone: `python recipes/benchmark.py methods`.

Runs the cells of a comparison (pre-training, fine-tuning, evaluation: `benchmark.py compare`), then reads from what they left how long a
step took, how much memory the process held, and how many weights there were.
"""

import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from benchmark import RECIPES, CompareOptions, compare_cells, machine, run_stage
from safetensors import safe_open

from mscl_hf.cli import parse
from mscl_hf.methods import METHODS
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclBackbone
from mscl_hf.training.log import read_log
from mscl_hf.training.setup import keep_freed_memory

# What of a checkpoint is no weight: batch statistics, queues, banks.
STATE = ("running_mean", "running_var", "num_batches_tracked", "rows", "pointer", "filled", "normalizer")
COLUMNS = ("cell", "method", "labels", "ms_per_step", "over_bare", "peak_mb", "handed_on_m", "heads_m", "teacher_m", "state_mb", "mean_iou",
           "seed", "commit", "machine")  # fmt: skip


@dataclass(frozen=True)
class MethodsOptions(CompareOptions):
    """The cells, and where they go."""

    spec: str = field(default=str(RECIPES / "configs" / "compare_methods_camvid.yaml"), metadata={"help": "as for compare"})
    work_dir: str = field(default="runs/methods", metadata={"help": "folder of the cells"})
    timed_steps: int = field(default=40, metadata={"help": "steps to take the time of, one method after another"})


def main(argv: list[str]) -> None:
    (options,) = parse((MethodsOptions,), __doc__.splitlines()[0], argv)
    spec = yaml.safe_load(Path(options.spec).read_text())
    target = Path(options.results or "results/methods.csv")
    rows, work = compare_cells(spec, options), Path(options.work_dir)
    if not options.finished_only:
        for row in rows:
            time_steps(spec, options, row["cell"], work / "timing" / row["cell"])
    bare = bare_backbone(spec, work, options.finished_only)
    table = [bare] + [row | cost(work, row, bare["ms_per_step"]) for row in rows]
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    target.with_suffix(".md").write_text(markdown(table, options.spec))
    print(target.with_suffix(".md").read_text())


def time_steps(spec: dict, options: MethodsOptions, cell: str, folder: Path) -> None:
    """The cell's pre-training once more for a few steps, alone on the machine."""
    flags = spec["common"] | spec["pretrain"] | spec["cells"][cell].get("pretrain", {})
    flags |= {"dataset": spec["dataset"], "max-steps": options.timed_steps, "logging-steps": 1}
    flags |= {"data-dir": options.data_dir} if options.data_dir else {}
    if not (folder / "pretrain" / "model.safetensors").is_file():
        run_stage("pretrain", flags | {"val-split": "none", "output-dir": folder / "pretrain"}, folder)


def cost(work: Path, row: dict, bare_ms: float) -> dict:
    """Of one cell's pre-training; empty cells for what did not train."""
    folder = work / f"{row['cell']}-seed{row['seed']}"
    run = json.loads((folder / "pretrain" / "run.json").read_text())
    timed = work / "timing" / row["cell"] / "pretrain"
    places = [place for place in (timed, timed / "stage1") if (place / "checkpoints").is_dir()]
    found = {"peak_mb": int((folder / "pretrain.peak_mb").read_text()), "labels": METHODS[run["method"]].labels}
    if places:  # two stages have half of the steps each
        found["ms_per_step"] = round(statistics.mean(1e3 * run["batch_size"] / images_per_second(place) for place in places))
        if run["output_stride"] is None:  # else the bare backbone is another one
            found["over_bare"] = round(found["ms_per_step"] / bare_ms, 2)
        found |= sizes(folder / "pretrain")
    else:
        with safe_open(folder / "pretrain" / "model.safetensors", "pt") as file:
            found["handed_on_m"] = millions(file, lambda name: name.startswith(("backbone.", "decoder.")))
    return found


def images_per_second(folder: Path) -> float:
    speeds = [row["images_per_second"] for row in read_log(folder / "log.jsonl") if "images_per_second" in row]
    return statistics.median(speeds[len(speeds) // 4 :])


def sizes(folder: Path) -> dict:
    """Millions of weights in the newest checkpoint by what becomes of them, and megabytes of remembered embeddings."""
    newest = max((folder / "checkpoints").iterdir())
    with safe_open(newest / "method.safetensors", "pt") as file:
        kept = ("network.backbone.", "network.decoder.")
        rows = sum(file.get_tensor(name).nbytes for name in names_in(file) if name.endswith("rows"))
        return {
            "handed_on_m": millions(file, lambda name: name.startswith(kept)),
            "heads_m": millions(file, lambda name: not name.startswith((*kept, "teacher."))),
            "teacher_m": millions(file, lambda name: name.startswith("teacher.")),
            "state_mb": round(rows / 2**20, 2),
        }


def names_in(file) -> list[str]:
    return list(file.keys())


def millions(file, which) -> float:
    names = [name for name in names_in(file) if which(name) and not name.endswith(STATE)]
    return round(sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in names) / 1e6, 2)


def bare_backbone(spec: dict, folder: Path, finished_only: bool) -> dict:
    """Forward and backward of the backbone alone on one view of a ready batch: a process of its own, with one thread like the cells."""
    place = folder / "bare.json"
    if not place.is_file() and not finished_only:
        folder.mkdir(parents=True, exist_ok=True)
        flags = spec["common"] | spec["pretrain"]
        words = [flags["backbone"], str(flags["image-size"]), str(flags["batch-size"]), flags["precision"], str(place)]
        subprocess.run([sys.executable, __file__, *words], check=True)
    return json.loads(place.read_text())


def measure_bare(name: str, size: int, batch: int, precision: str, place: Path, steps: int = 60) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as the training loop does
    network = MsclBackbone(build_config(name, image_size=size)).to(memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = network(images).feature_maps[-1]
        features.backward(torch.ones_like(features))
        network.zero_grad()
        seconds.append(time.perf_counter() - started)
    row = {"cell": "bare backbone, one view", "method": "-", "labels": "-", "over_bare": 1.0, "commit": "", "machine": machine()}
    row["ms_per_step"] = round(1e3 * statistics.median(seconds[10:]), 1)
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    row["handed_on_m"] = round(sum(p.numel() for p in network.parameters()) / 1e6, 2)
    place.write_text(json.dumps(row))


def markdown(rows: list[dict], source: str) -> str:
    """Times and memory of one run each, on one core."""
    source = Path(source).resolve()
    source = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source.name
    lines = [
        f"Made by `python recipes/benchmark.py methods --spec {source} --data-dir DIR`; one thread; times of one run after another.\n",
        "| | masks | ms a step | bare backbones | peak, MB | handed on, M | heads, M | teacher, M | queue or bank, MB | mean IoU, % |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        score = f"{100 * row['mean_iou']:.1f}" if "mean_iou" in row else "-"
        names = ("labels", "ms_per_step", "over_bare", "peak_mb", "handed_on_m", "heads_m", "teacher_m", "state_mb")
        lines.append(f"| {row['cell']} | " + " | ".join(str(row.get(name, "-")) for name in names) + f" | {score} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    measure_bare(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
