"""Speed: the losses beside plain autograd, a step beside the bare network, this project beside its peers; `benchmark.py speed` runs it.

python recipes/benchmark.py speed --data-dir CamVid --peers runs/peers
"""

import contextlib
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from speed_report import draw, report
from speed_step import DEVICE, peak_mb, step, wait

from mscl_hf.cli import parse
from mscl_hf.evaluation.metrics import MeanIoU
from mscl_hf.losses import pixel_contrast
from mscl_hf.losses.streamed import logsumexp, streamed_sum
from mscl_hf.records.versions import commit

HERE = Path(__file__).resolve()
PARTS = ("loss", "step", "peers", "metric", "growth")
DIM, TEMPERATURE = 128, 0.1


@dataclass(frozen=True)
class SpeedOptions:
    """What to measure, on what."""

    data_dir: str | None = field(default=None, metadata={"help": "the data set's folder; none: drawn scenes, and no peers"})
    dataset: str = field(default="camvid", metadata={"help": "its kind, as of pretrain.py; folder for images without masks"})
    losses: str = field(default="g+l+p", metadata={"help": "of the step; g+l where there are no masks"})
    workers: int = field(default=0, metadata={"help": "loader processes, ours and the peers'"})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"of {', '.join(PARTS)}; the rest is kept"})
    peers: str | None = field(default=None, metadata={"help": "folder of the environments that recipes/peers.py setup made"})
    results: str = field(default="results/speed.json", metadata={"help": "file of the figures; a picture comes beside it"})
    largest: int = field(default=262144, metadata={"help": "most anchors and keys of the loss"})
    rounds: int = field(default=3, metadata={"help": "how often each is run, in turns"})
    steps: int = field(default=30, metadata={"help": "steps of a run that count; ten more come before them"})
    image_size: int = field(default=128, metadata={"help": "side of the crops in px"})
    batch_size: int = field(default=16, metadata={"help": "images a step, two views each"})
    backbone: str = field(default="resnet18", metadata={"help": "timm name"})

    def __post_init__(self):
        unknown = set(self.parts) - set(PARTS)
        if unknown or min(self.rounds, self.steps) < 1:
            raise ValueError(
                f"--parts {' '.join(self.parts)} --rounds {self.rounds} --steps {self.steps}: choose parts of {', '.join(PARTS)}, and at "
                "least one round and step"
            )
        if "peers" in self.parts and not (self.peers and self.data_dir):
            raise ValueError("--parts peers needs --peers DIR (python recipes/peers.py setup --envs DIR) and --data-dir; or leave it out")


def main(argv: list[str]) -> None:
    if argv[:1] == ["worker"]:
        print(json.dumps(WORKERS[argv[1]](**json.loads(argv[2]))))
        return
    (options,) = parse((SpeedOptions,), __doc__.splitlines()[0], argv)
    with tempfile.TemporaryDirectory() as cache:  # not the user's
        os.environ["MSCL_HF_CACHE"] = cache
        run_parts(options)


def run_parts(options: SpeedOptions) -> None:
    target = Path(options.results)
    found = json.loads(target.read_text()) if target.is_file() else {}
    for part in options.parts:
        started = time.perf_counter()
        found[part] = {"machine": machine(), "rows": MEASURED[part](options)}
        found[part]["minutes"] = round((time.perf_counter() - started) / 60, 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, target.with_suffix(".png"))
    page = report(found, target.with_suffix(".png").name)
    target.with_suffix(".md").write_text(page)
    print(page)


def machine() -> dict:
    names = Path("/proc/cpuinfo").read_text().split("model name") if Path("/proc/cpuinfo").is_file() else ()
    processor = names[1].splitlines()[0].strip("\t :") if len(names) > 1 else platform.machine()
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{processor}, {os.cpu_count()} cores"
    return {"machine": where, "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit() or "-"}


def measure(worker: str, **settings) -> dict:
    """One figure in a process of its own, so that its memory is its own."""
    row = settings | run(sys.executable, HERE.parent / "benchmark.py", "speed", "worker", worker, json.dumps(settings))
    row.pop("flags", None)  # they hold the paths of this machine
    print(row, flush=True)
    return row


def run(*command, **environment) -> dict:
    """The last line that a command prints, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)} | environment
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))} ended with status {done.returncode}; what went wrong is shown above")
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def clock(function, repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        function()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# (a) the loss


def measure_loss(options: SpeedOptions) -> list[dict]:
    sizes = [n for n in (1024, 4096, 16384, 65536, 262144, 1048576) if n <= options.largest]
    rows = []
    for n in sizes:
        routes = ("plain", "fp32", "bf16") if n <= 16384 else ("fp32", "bf16") if n <= 65536 else ("bf16",)
        rounds = options.rounds if n <= 65536 else 1
        rows += [measure("loss", n=n, route=route, repeats=3 if n <= 16384 else 0) for _ in range(rounds) for route in routes]
    return rows


def loss(n: int, route: str, repeats: int) -> dict:
    """InfoNCE of n anchors and n keys, forward and backward: seconds, and what it adds to the peak memory."""
    generator = torch.Generator().manual_seed(0)
    anchors, keys = (F.normalize(torch.randn(1, n, DIM, generator=generator), dim=2).to(DEVICE).requires_grad_() for _ in range(2))

    def plain() -> None:
        scores = anchors[0] @ keys[0].T / TEMPERATURE
        (scores.logsumexp(1) - scores.diagonal()).mean().backward()

    def streamed() -> None:
        a, b = (anchors.bfloat16(), keys.bfloat16()) if route == "bf16" else (anchors, keys)
        everything = streamed_sum(logsumexp(), a, b, TEMPERATURE, torch.full((1, n), 1 / n, device=DEVICE))
        (everything - (a.float() * b.float()).sum(2).mean() / TEMPERATURE).backward()

    function = plain if route == "plain" else streamed
    forget_peak()
    before = peak_mb()
    seconds = clock(function, 1)  # which also warms up; long runs need no second
    added = peak_mb() - before
    return {"seconds": clock(function, repeats) if repeats else seconds, "added_mb": added}


# (b) the step


STEP = ("--mixed-precision", "bf16", "--val-split", "none")
SIMCLR = ("--losses", "g", "--negatives", "ntxent", "--global-temperature", "0.5", "--output-stride", "32", "--geometry", "crops",
          "--augment-both", "true", "--val-split", "none")  # fmt: skip
NO_CACHE = ("--image-cache-gb", "0")


def flags(options: SpeedOptions, *more, **changes) -> list[str]:
    data = ("--dataset", options.dataset, "--data-dir", options.data_dir) if options.data_dir else ()
    size = {"image-size": options.image_size, "batch-size": options.batch_size, "backbone": options.backbone,
            "num-workers": options.workers} | changes  # fmt: skip
    losses = () if "--losses" in more else ("--losses", options.losses)
    return [*more, *losses, *data, *(word for name, value in size.items() for word in (f"--{name}", str(value)))]


def measure_step(options: SpeedOptions) -> list[dict]:
    more = {"fp32": ("--mixed-precision", "no"), "bf16": (), "bf16, no cache": NO_CACHE}
    return [
        measure("step", name=name, flags=flags(options, *STEP, *more[name]), steps=options.steps)
        for _ in range(options.rounds) for name in more
    ]  # fmt: skip


# (c) the peers


def measure_peers(options: SpeedOptions) -> list[dict]:
    rows = []
    settings = {"image-size": options.image_size, "batch-size": options.batch_size, "backbone": options.backbone,
                "workers": options.workers, "steps": options.steps, "warmup": 10, "threads": torch.get_num_threads()}  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    for _, precision in itertools.product(range(options.rounds), ("bf16", "fp32")):
        for name, more in (("mscl_hf", ()), ("mscl_hf, no cache", NO_CACHE)):
            words_of_ours = flags(options, *SIMCLR, "--mixed-precision", precision, *more)
            ours = measure("step", name=name, flags=words_of_ours, steps=options.steps, bare=False)
            rows.append({"peer": name, "precision": precision} | {key: ours[key] for key in ("images_per_second", "milliseconds")})
        for peer in ("lightly_train", "lightly", "stable_pretraining"):
            python, images = Path(options.peers) / peer / "bin" / "python", Path(options.data_dir) / "train"
            more = ("--images", images, "--mixed-precision", precision)
            row = run(python, HERE.parent / "peers.py", "run", peer, *words, *more, PYTHONPATH="")
            rows.append({"peer": peer, "precision": precision, **{key: row[key] for key in ("version", "images_per_second")}})
            print(rows[-1], flush=True)
        rows.append(measure("bare", precision=precision, backbone=options.backbone, side=options.image_size, views=2 * options.batch_size))
    return rows


def bare(precision: str, backbone: str, side: int, views: int) -> dict:
    """Forward and backward of the timm model alone on ready tensors: what no step of two views an image can beat."""
    import timm

    model = timm.create_model(backbone, num_classes=0).to(DEVICE, memory_format=torch.channels_last).train()
    images = torch.randn(views, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def function() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            out = model(images)
        out.backward(torch.ones_like(out))
        model.zero_grad()

    clock(function, 3)
    return {"peer": "bare network", "images_per_second": round(views / 2 / clock(function, 20), 2)}


# (d) the metric


def measure_metric(options: SpeedOptions) -> list[dict]:
    return [measure("metric", route="streamed") for _ in range(options.rounds)]


def metric(route: str, pairs: int = 40, classes: int = 19, size: tuple[int, int] = (512, 1024)) -> dict:
    """Return milliseconds per pair of maps, megabytes added and the mean IoU."""
    generator = np.random.default_rng(0)
    label = np.kron(generator.integers(0, classes, (size[0] // 16, size[1] // 16)), np.ones((16, 16), dtype=np.int64)).astype(np.uint8)
    prediction = np.where(generator.random(size) < 0.8, label, generator.integers(0, classes, size)).astype(np.uint8)
    mean_iou = MeanIoU()
    forget_peak()
    before, started = peak_mb("cpu"), time.perf_counter()
    for _ in range(pairs):
        mean_iou.add_batch(predictions=[prediction], references=[label])
    value = mean_iou.compute(num_labels=classes, ignore_index=255)
    seconds = time.perf_counter() - started
    return {"ms": round(1e3 * seconds / pairs, 2), "added_mb": round(peak_mb("cpu") - before), "mean_iou": float(value["mean_iou"])}


# (e) growth


def measure_growth(options: SpeedOptions) -> list[dict]:
    """One thing grows, the others stay as in (b): image size, batch, the pixels in the bag of the pixel loss, classes."""
    rows = []
    grids = ("--pixel-scope", "batch", "--pixel-dim", "128", "--loss-precision", "bf16")
    runs = [("image size", side, {"image-size": side}, ()) for side in (96, 128, 192, 256)]
    runs += [("batch", size, {"batch-size": size}, ()) for size in (8, 16, 32, 64)]
    runs += [("pixels", options.batch_size * side**2, {"pixel-grid": side}, grids) for side in (16, 23, 32, 45, 64)]
    for what, size, changes, more in runs:
        words = flags(options, *STEP, *more, **changes)
        row = measure("step", name=what, flags=words, steps=max(2, options.steps // 5), warmup=2, bare=False)
        rows.append({"grows": what, "size": size} | {key: value for key, value in row.items() if key not in ("flags", "name")})
    return rows + [{"grows": "classes", "size": n} | measure("classes", count=n) for n in (2, 11, 150, 255)]


def classes(count: int) -> dict:
    """The pixel loss alone on 16 bags of 1,024 pixels of so many classes."""
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(16, 1024, DIM, generator=generator), dim=2).requires_grad_() for _ in range(2))
    labels = torch.randint(0, count, (16, 1024), generator=generator)
    function = lambda: pixel_contrast(a, b, labels).loss.backward()  # noqa: E731
    return {"milliseconds": {"losses": round(1e3 * clock(function, 9), 2)}}


MEASURED = {"loss": measure_loss, "step": measure_step, "peers": measure_peers, "metric": measure_metric, "growth": measure_growth}
WORKERS = {"loss": loss, "step": step, "bare": bare, "metric": metric, "classes": classes}
