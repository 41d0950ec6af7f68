"""Measure speed: the losses beside plain autograd, a step beside the bare network, other libraries, the metric, growth with size.

python -m recipes.benchmarks speed --data-dir CamVid --peers runs/peers
"""

import importlib.util
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mscl_hf.cli import parse_sections
from mscl_hf.evaluation.metrics import MeanIoU
from mscl_hf.losses import pixel_contrast
from mscl_hf.losses.streamed import logsumexp, streamed_sum
from mscl_hf.records.versions import commit

from ..common import machine
from . import waits
from .libraries import bare, bare_finetuning, measure_finetune_peers, measure_peers
from .memory import measure_memory, memory
from .options import NO_CACHE, STEP, SpeedOptions, check_environments, step_flags
from .processes import measure, median_seconds, reset_peak, run_worker
from .report import draw, report
from .step import DEVICE, peak_mb, step

DIM, TEMPERATURE = 128, 0.1


def main(argv: list[str]) -> None:
    if argv[:1] == ["worker"]:
        print(json.dumps(WORKERS[argv[1]](**json.loads(argv[2]))))
        return
    (options,) = parse_sections([SpeedOptions], __doc__.splitlines()[0], argv)
    with tempfile.TemporaryDirectory() as cache:  # instead of the user's
        os.environ["MSCL_HF_CACHE"] = cache
        run_parts(options)


def run_parts(options: SpeedOptions) -> None:
    check_environments(options)
    target = Path(options.results)
    parts = json.loads(target.read_text()) if target.is_file() else {}
    for part in options.parts:
        started = time.perf_counter()
        rows = MEASURED[part](options)
        facts = {"machine": machine(), "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit() or "-"}
        parts[part] = {"machine": facts, "rows": rows, "minutes": round((time.perf_counter() - started) / 60, 1)}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(parts, indent=1) + "\n")
    draw(parts, target.with_suffix(".png"))
    page = report(parts, target.with_suffix(".png").name)
    target.with_suffix(".md").write_text(page)
    print(page)


# The loss


def measure_loss(options: SpeedOptions) -> list[dict]:
    sizes = [n for n in (1024, 4096, 16384, 65536, 262144, 1048576) if n <= options.largest]
    rows = []
    for n in sizes:
        routes = ("plain", "fp32", "bf16") if n <= 16384 else ("fp32", "bf16") if n <= 65536 else ("bf16",)
        rounds = options.rounds if n <= 65536 else 1
        rows += [measure("loss", n=n, route=route, repeats=3 if n <= 16384 else 0) for _ in range(rounds) for route in routes]
    return rows


def loss(n: int, route: str, repeats: int) -> dict:
    """InfoNCE of n anchors and n keys, forward and backward: seconds, and the increase of the peak memory in MB."""
    generator = torch.Generator().manual_seed(0)
    anchors, keys = (F.normalize(torch.randn(1, n, DIM, generator=generator), dim=2).to(DEVICE).requires_grad_() for _ in range(2))

    def plain() -> None:
        scores = anchors[0] @ keys[0].T / TEMPERATURE
        (scores.logsumexp(1) - scores.diagonal()).mean().backward()

    def streamed() -> None:
        a, b = (anchors.bfloat16(), keys.bfloat16()) if route == "bf16" else (anchors, keys)
        log_sums = streamed_sum(logsumexp(), a, b, TEMPERATURE, torch.full((1, n), 1 / n, device=DEVICE))
        (log_sums - (a.float() * b.float()).sum(2).mean() / TEMPERATURE).backward()

    function = plain if route == "plain" else streamed
    reset_peak()
    before = peak_mb()
    seconds = median_seconds(function, 1)  # also the warm-up; long runs are not repeated
    added = peak_mb() - before
    return {"seconds": median_seconds(function, repeats) if repeats else seconds, "added_mb": added}


# The step


def measure_step(options: SpeedOptions) -> list[dict]:
    variants = {"fp32": ("--mixed-precision", "no"), "bf16": (), "bf16, no cache": NO_CACHE}
    runs = itertools.product(range(options.rounds), variants.items())
    return [measure("step", name=name, flags=step_flags(options, *STEP, *more), steps=options.steps) for _, (name, more) in runs]


# The metric


def measure_metric(options: SpeedOptions) -> list[dict]:
    return [measure("metric", route="streamed") for _ in range(options.rounds)]


def metric(route: str, pairs: int = 40, classes: int = 19, size: tuple[int, int] = (512, 1024)) -> dict:
    """Mean IoU of pairs of maps: milliseconds a pair, and MB added."""
    generator = np.random.default_rng(0)
    label = np.kron(generator.integers(0, classes, (size[0] // 16, size[1] // 16)), np.ones((16, 16), dtype=np.int64)).astype(np.uint8)
    prediction = np.where(generator.random(size) < 0.8, label, generator.integers(0, classes, size)).astype(np.uint8)
    mean_iou = MeanIoU()
    reset_peak()
    before, started = peak_mb("cpu"), time.perf_counter()
    for _ in range(pairs):
        mean_iou.add_batch(predictions=[prediction], references=[label])
    value = mean_iou.compute(num_labels=classes, ignore_index=255)
    seconds = time.perf_counter() - started
    return {"ms": round(1e3 * seconds / pairs, 2), "added_mb": round(peak_mb("cpu") - before), "mean_iou": float(value["mean_iou"])}


# Growth


def measure_growth(options: SpeedOptions) -> list[dict]:
    """One size grows and the others stay as in `measure_step`: image size, batch, number of keys of the pixel loss, classes."""
    rows = []
    grids = ("--pixel-scope", "batch", "--pixel-dim", "128", "--loss-precision", "bf16")
    runs = [("image size", side, {"image-size": side}, ()) for side in (96, 128, 192, 256)]
    runs += [("batch", size, {"batch-size": size}, ()) for size in (8, 16, 32, 64)]
    runs += [("pixels", options.batch_size * side**2, {"pixel-grid": side}, grids) for side in (16, 23, 32, 45, 64)]
    for name, size, changes, more in runs:
        flags = step_flags(options, *STEP, *more, **changes)
        row = measure("step", name=name, flags=flags, steps=max(2, options.steps // 5), warmup=2, bare=False)
        rows.append({"grows": row.pop("name"), "size": size} | row)
    return rows + [{"grows": "classes", "size": n} | measure("classes", count=n) for n in (2, 11, 150, 255)]


def classes(count: int) -> dict:
    """The pixel loss alone on 16 sets of 1,024 pixels of `count` classes."""
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(16, 1024, DIM, generator=generator), dim=2).requires_grad_() for _ in range(2))
    labels = torch.randint(0, count, (16, 1024), generator=generator)
    seconds = median_seconds(lambda: pixel_contrast(a, b, labels, scope="within").loss.backward(), 9)
    return {"milliseconds": {"losses": round(1e3 * seconds, 2)}}


# Waits


def measure_waits(options: SpeedOptions) -> list[dict]:
    """Each round measures every wait, each in a new process."""
    if "evaluation" in options.waits and importlib.util.find_spec("torchmetrics") is None:
        raise ValueError("--waits has evaluation, which is compared with torchmetrics. Run pip install torchmetrics, or leave it out.")
    rows = []
    for number, name in itertools.product(range(options.rounds), options.waits):
        if name == "finetune":
            measured = [finetuning(num_labels) for num_labels in (21, 150)]
        elif name == "large image":
            measured = [row for height in waits.HEIGHTS for row in run_worker("large_image", height=height, first=number)]
        else:
            worker, settings = {
                "help": ("command_help", {"command": "mscl-pretrain"}),
                "start": ("start", {}),
                "evaluation": ("evaluate", {"data_dir": options.data_dir, "first": number}),
            }[name]
            measured = run_worker(worker, **settings)
        print(*measured, sep="\n", flush=True)
        rows += measured
    return rows


def finetuning(num_labels: int) -> dict:
    """The step of fine-tuning beside the bare network, each in a process of its own for its memory."""
    bare, whole = (measure("finetune", num_labels=num_labels, route=route) for route in ("bare", "fine-tuning"))
    return waits.row(f"fine-tuning step, {num_labels} classes, 513 px", whole["seconds"], "network and heads", bare["seconds"],
                     peak_mb=whole["peak_mb"], their_peak_mb=bare["peak_mb"])  # fmt: skip


MEASURED = {"loss": measure_loss, "step": measure_step, "peers": measure_peers, "finetune_peers": measure_finetune_peers,
            "metric": measure_metric, "growth": measure_growth, "memory": lambda options: measure_memory(),
            "waits": measure_waits}  # fmt: skip
WORKERS = {
    "loss": loss, "step": step, "bare": bare, "bare_finetuning": bare_finetuning, "metric": metric, "memory": memory, "classes": classes,
    "finetune": waits.finetune, "command_help": waits.command_help, "start": waits.start, "evaluate": waits.evaluate,
    "large_image": waits.large_image,
}  # fmt: skip
