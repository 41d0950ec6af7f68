"""Exported to ONNX: how far its logits lie from eager torch's, and the time of an image in both, by turns.

python recipes/export_speed.py
"""

import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import torch
from benchmark import machine

from mscl_hf.cli import command, parse
from mscl_hf.export import export
from mscl_hf.export.compare import full_logits, random_images
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.records.versions import commit

SIZES = ((96, 96), (97, 131), (224, 160))  # height, width in px
BATCHES = (1, 3)
DIFFERENCES = [f"diff_{batch}x{height}x{width}" for height, width in SIZES for batch in BATCHES]
COLUMNS = [
    "backbone", "decoder", "size_multiple", "parameters_m", "onnx_mb", "export_seconds", "largest_logit", *DIFFERENCES, "threads",
    "image_px", "rounds", "eager_ms", "eager_quartiles", "onnx_ms", "onnx_quartiles", "speed_up", "torch", "onnxruntime",
    "commit", "machine",
]  # fmt: skip


@dataclass(frozen=True)
class SpeedOptions:
    """What to export, and how often to run it."""

    backbones: list[str] = field(
        default_factory=lambda: ["resnet18", "resnet50", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"],
        metadata={"help": "timm names; random weights"},
    )
    threads: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "of both, one after the other"})
    image_size: int = field(default=224, metadata={"help": "height and width in px of the timed image"})
    rounds: int = field(default=20, metadata={"help": "turns of one image each"})
    results: str = field(default="results/export.csv", metadata={"help": "CSV to write, a row for a network and a number of threads"})

    def __post_init__(self):
        if self.rounds < 4 or min(self.threads) < 1:
            raise ValueError(f"--rounds {self.rounds} --threads {self.threads}: give at least 4 rounds and 1 thread")


@command
def main() -> None:
    (options,) = parse((SpeedOptions,), __doc__.splitlines()[0])
    rows, target = [], Path(options.results)
    target.parent.mkdir(parents=True, exist_ok=True)
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(backbone, Path(scratch), options)
        write(target, rows)
    print(target.with_suffix(".md").read_text())


def write(target: Path, rows: list[dict]) -> None:
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    target.with_suffix(".md").write_text(markdown(rows))


@torch.inference_mode()
def measure(backbone: str, folder: Path, options: SpeedOptions) -> list[dict]:
    """A row for each number of threads."""
    torch.manual_seed(0)
    network = MsclForSemanticSegmentation(build_config(backbone, image_size=options.image_size, num_labels=21)).eval()
    network.save_pretrained(folder / "model")
    started = time.perf_counter()
    with torch.inference_mode(False):
        print(f"{backbone}: {export(str(folder / 'model'), 'onnx', folder / 'onnx')}", flush=True)
    config, file = network.config, folder / "onnx" / "model.onnx"
    row = {
        "backbone": backbone, "decoder": config.decoder_type, "size_multiple": config.size_multiple,
        "parameters_m": round(sum(p.numel() for p in network.parameters()) / 1e6, 1),
        "onnx_mb": round(file.stat().st_size / 2**20, 1), "export_seconds": round(time.perf_counter() - started),
        "image_px": options.image_size, "rounds": options.rounds, "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__, "commit": commit() or "-", "machine": machine(),
    }  # fmt: skip
    row |= differences(network, runner(file, 1))
    return [row | timing(network, file, threads, options) for threads in options.threads]


def runner(file: Path, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])


def differences(network: MsclForSemanticSegmentation, run: Callable) -> dict:
    """Largest absolute difference of the logits at each batch and size, and the largest logit, to compare it with."""
    found, largest = {}, 0.0
    for height, width in SIZES:
        for batch in BATCHES:
            images = random_images(network.config, batch, height, width)
            wanted = full_logits(network, images)
            found[f"diff_{batch}x{height}x{width}"] = f"{float((run(images) - wanted).abs().max()):.1e}"
            largest = max(largest, float(wanted.abs().max()))
    return found | {"largest_logit": f"{largest:.2g}"}


def timing(network: MsclForSemanticSegmentation, file: Path, threads: int, options: SpeedOptions) -> dict:
    """Of one image, by turns: median and quartiles of the rounds in ms."""
    torch.set_num_threads(threads)
    image = random_images(network.config, 1, options.image_size, options.image_size)
    ways = {"eager": lambda image: full_logits(network, image), "onnx": runner(file, threads)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            time.sleep(0.05)  # threads of the other one wait in a loop for a while, and would take the cores
            way(image)
            started = time.perf_counter()
            way(image)
            taken[name].append(1e3 * (time.perf_counter() - started))
    found = {"threads": threads, "speed_up": round(statistics.median(taken["eager"]) / statistics.median(taken["onnx"]), 2)}
    for name, values in taken.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found |= {f"{name}_ms": round(middle, 1), f"{name}_quartiles": f"{low:.1f} to {high:.1f}"}
    return found


def markdown(rows: list[dict]) -> str:
    first = rows[0]
    lines = [
        f"Made by `python recipes/export_speed.py` at `{first['commit']}` on {first['machine']}, CPU: torch {first['torch']}, ONNX Runtime "
        f"{first['onnxruntime']}; random weights, 21 classes, float32.\n",
        "Largest absolute difference of the logits, ONNX Runtime against eager torch, by batch x height x width:\n",
        "| backbone | decoder | size rule | export, s | largest logit | " + " | ".join(name[len("diff_") :] for name in DIFFERENCES) + " |",
        "|" + "---|" * (5 + len(DIFFERENCES)),
    ]
    for row in rows:
        if row["threads"] == first["threads"]:
            rule = f"multiples of {row['size_multiple']}" if row["size_multiple"] > 1 else "-"
            cells = [row["backbone"], row["decoder"], rule, *(row[name] for name in ("export_seconds", "largest_logit", *DIFFERENCES))]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        f"\nMilliseconds for one image of {first['image_px']} x {first['image_px']} px, both by turns: median and quartiles of "
        f"{first['rounds']} rounds:\n",
        "| backbone | weights, M | threads | eager torch | ONNX Runtime | times as fast |",
        "|" + "---|" * 6,
    ]
    for row in rows:
        eager, onnx = (f"{row[f'{way}_ms']} ({row[f'{way}_quartiles']})" for way in ("eager", "onnx"))
        lines.append(f"| {row['backbone']} | {row['parameters_m']} | {row['threads']} | {eager} | {onnx} | {row['speed_up']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
