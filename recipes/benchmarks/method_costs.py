"""Measure what a training step of each method costs beside the bare backbone: time, memory, and numbers of weights.

python -m recipes.benchmarks methods --data-dir CamVid

The cells are run as by `compare`; then each pre-training is run once more for a few steps, alone on the machine, to time its steps.
"""

import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mscl_hf.cli import parse_sections
from mscl_hf.config.fields import option
from mscl_hf.methods import METHODS
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclBackbone
from mscl_hf.training.setup import keep_freed_memory

from .common import CONFIGS, machine, markdown_table, read_yaml, write_csv
from .compare import CompareOptions, cells_of, data_flags, run
from .runner import Cell, row_of, run_cells
from .stages import FORK, Stage, record, run_of, step_seconds

# Tensors of a checkpoint that are not weights: batch statistics, queues, memory banks.
STATE = ("running_mean", "running_var", "num_batches_tracked", "rows", "pointer", "filled", "normalizer")
KEPT = ("network.backbone.", "network.decoder.")  # weights that fine-tuning starts from
COLUMNS = ("cell", "method", "labels", "ms_per_step", "over_bare", "peak_mb", "handed_on_m", "heads_m", "teacher_m", "state_mb", "mean_iou",
           "seed", "commit", "machine")  # fmt: skip


@dataclass(frozen=True)
class MethodsOptions(CompareOptions):
    """The cells, and their folders."""

    spec: str = option(str(CONFIGS / "compare_methods_camvid.yaml"), "YAML file as of compare (default: all methods on CamVid)")
    work_dir: str = option("runs/methods", "folder of the cells")
    timed_steps: int = option(40, "training steps to time, one method after another", at_least=1)


def main(argv: list[str]) -> None:
    (options,) = parse_sections([MethodsOptions], __doc__.splitlines()[0], argv)
    spec = read_yaml(options.spec)
    cells = cells_of(spec, options, keep_checkpoints=True)
    outcome = run(cells, options)
    outcome.exit_if_stopped()
    cells = {cell: timing_stage(spec, options, cell.name) for cell in cells if cell.is_done()}
    if not options.finished_only:
        run_cells([Cell(f"{cell.name}, timing", cell.seed, (stage,)) for cell, stage in cells.items()], 1, print).exit_if_stopped()
    bare = bare_backbone(spec, Path(options.work_dir), options.finished_only)
    rows = [bare] + [row_of(cell) | cost(cell, stage, bare["ms_per_step"]) for cell, stage in cells.items()]
    target = Path(options.results or "results/methods.csv")
    write_csv(target, COLUMNS, rows)
    target.with_suffix(".md").write_text(markdown(rows, options.spec))
    print(target.with_suffix(".md").read_text())
    outcome.exit_if_failed()


def timing_stage(spec: dict, options: MethodsOptions, name: str) -> Stage:
    """The pre-training of a cell for a few steps, each of which is logged."""
    flags = data_flags(spec, options) | spec["common"] | spec["pretrain"] | spec["cells"][name].get("pretrain", {})
    flags |= {"max-steps": options.timed_steps, "logging-steps": 1, "val-split": "none"}
    return Stage("pretrain", Path(options.work_dir) / "timing" / name / "pretrain", flags)


def cost(cell: Cell, timed: Stage, bare_ms: float) -> dict:
    """Columns on the pre-training of a cell; those on training steps are missing where nothing is trained."""
    stage = cell.stages[0]
    config = run_of(stage)
    row = {"peak_mb": record(stage)["peak_mb"], "labels": METHODS[config["method"]].reads_masks}
    seconds = step_seconds(timed)
    if not seconds:
        return row | {"handed_on_m": weights_of(stage.folder / "model.safetensors")["handed_on_m"]}
    # The first quarter of the steps is warm-up; a method of two stages has half of the steps in each.
    row["ms_per_step"] = round(statistics.mean(1e3 * statistics.median(of_method[len(of_method) // 4 :]) for of_method in seconds))
    if config["output_stride"] is None:  # another stride makes another backbone
        row["over_bare"] = round(row["ms_per_step"] / bare_ms, 2)
    return row | weights_of(max((stage.folder / "checkpoints").iterdir()) / "method.safetensors")


def weights_of(path: Path) -> dict:
    """Millions of weights that fine-tuning starts from, of the others, and of the teacher; megabytes of queues and memory banks."""
    counts = {"handed_on_m": 0, "heads_m": 0, "teacher_m": 0}
    state_bytes = 0
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.endswith("rows"):
                state_bytes += file.get_tensor(name).nbytes
            elif not name.endswith(STATE):
                part = "teacher_m" if name.startswith("teacher.") else "heads_m"
                part = "handed_on_m" if f"network.{name.removeprefix('network.')}".startswith(KEPT) else part
                counts[part] += torch.Size(file.get_slice(name).get_shape()).numel()
    return {part: round(count / 1e6, 2) for part, count in counts.items()} | {"state_mb": round(state_bytes / 2**20, 2)}


def bare_backbone(spec: dict, folder: Path, finished_only: bool) -> dict:
    """The row of the backbone alone, which is measured in a new process with one thread, as the cells are."""
    path = folder / "bare.json"
    if not path.is_file() and not finished_only:
        folder.mkdir(parents=True, exist_ok=True)
        process = FORK.Process(target=measure_bare, args=(spec["common"] | spec["pretrain"], path))
        process.start()
        process.join()
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected the time of the bare backbone. Run without --finished-only.")
    return json.loads(path.read_text())


def measure_bare(flags: dict, path: Path, steps: int = 60) -> None:
    """Time forward and backward passes of the backbone on one view of a batch that lies in memory, and write the row."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the training loop does
    size = flags["image-size"]
    network = MsclBackbone(build_config(flags["backbone"], image_size=size)).to(memory_format=torch.channels_last).train()
    images = torch.randn(flags["batch-size"], 3, size, size).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=flags["mixed-precision"] == "bf16"):
            features = network(images).feature_maps[-1]
        features.backward(torch.ones_like(features))
        network.zero_grad()
        seconds.append(time.perf_counter() - started)
    row = {"cell": "bare backbone, one view", "method": "-", "labels": "-", "over_bare": 1.0, "commit": "", "machine": machine()}
    row["ms_per_step"] = round(1e3 * statistics.median(seconds[10:]), 1)
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    row["handed_on_m"] = round(sum(p.numel() for p in network.parameters()) / 1e6, 2)
    path.write_text(json.dumps(row))


def markdown(rows: list[dict], spec: str) -> str:
    """The rows as a Markdown table, with the command that made it."""
    path = Path(spec).resolve()
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name
    heads = {"cell": "", "labels": "masks", "ms_per_step": "ms per step", "over_bare": "bare backbones", "peak_mb": "peak, MB",
             "handed_on_m": "transferred, M", "heads_m": "heads, M", "teacher_m": "teacher, M",
             "state_mb": "queue or bank, MB"}  # fmt: skip
    lines = [(*(row.get(name, "-") for name in heads), f"{100 * row['mean_iou']:.1f}" if "mean_iou" in row else "-") for row in rows]
    origin = f"Made by `python -m recipes.benchmarks methods --spec {path} --data-dir DIR`; one thread; times of one run after another.\n"
    return "\n".join([origin, *markdown_table((*heads.values(), "mean IoU, %"), lines)]) + "\n"
