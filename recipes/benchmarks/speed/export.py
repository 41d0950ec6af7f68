"""Compare networks exported to ONNX with eager torch: largest difference of the logits, and time of an image, measured in turns.

python -m recipes.benchmarks export
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from mscl_hf.cli import parse_sections
from mscl_hf.config.fields import Section, option
from mscl_hf.export import export
from mscl_hf.export.compare import full_logits, random_images
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.records.versions import commit

from ..common import machine, markdown_table, write_csv

SIZES = ((96, 96), (97, 131), (224, 160))  # height, width in px
BATCHES = (1, 3)
DIFFERENCES = [f"diff_{batch}x{height}x{width}" for height, width in SIZES for batch in BATCHES]
COLUMNS = [
    "backbone", "decoder", "size_multiple", "parameters_m", "onnx_mb", "export_seconds", "largest_logit", *DIFFERENCES, "threads",
    "image_px", "rounds", "eager_ms", "eager_quartiles", "onnx_ms", "onnx_quartiles", "speed_up", "torch", "onnxruntime",
    "commit", "machine",
]  # fmt: skip


@dataclass(frozen=True)
class ExportSpeedOptions(Section):
    """What to export, and how often to run it."""

    backbones: list[str] = option(
        ["resnet18", "resnet50", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"], "timm names; random weights"
    )
    threads: list[int] = option([1, 2], "numbers of threads of both, one after the other", at_least=1)
    image_size: int = option(224, "height and width in px of the timed image", at_least=1)
    rounds: int = option(20, "timed images of each, in turns", at_least=4)
    results: str = option("results/export.csv", "CSV file to write, a row for each network and number of threads")


def main(argv: list[str]) -> None:
    (options,) = parse_sections([ExportSpeedOptions], __doc__.splitlines()[0], argv)
    rows, target = [], Path(options.results)
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(backbone, Path(scratch), options)
        write_csv(target, COLUMNS, rows)
        target.with_suffix(".md").write_text(markdown(rows))
    print(target.with_suffix(".md").read_text())


@torch.inference_mode()
def measure(backbone: str, folder: Path, options: ExportSpeedOptions) -> list[dict]:
    """One row for each number of threads."""
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
    row |= differences(network, onnx_function(file, 1))
    return [row | timing(network, file, threads, options) for threads in options.threads]


def onnx_function(file: Path, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The exported network as a function of images."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])


def differences(network: MsclForSemanticSegmentation, run: Callable) -> dict:
    """Largest absolute difference of the logits for each batch and size, and the largest logit for comparison."""
    row, largest = {}, 0.0
    for height, width in SIZES:
        for batch in BATCHES:
            images = random_images(network.config, batch, height, width)
            expected = full_logits(network, images)
            row[f"diff_{batch}x{height}x{width}"] = f"{float((run(images) - expected).abs().max()):.1e}"
            largest = max(largest, float(expected.abs().max()))
    return row | {"largest_logit": f"{largest:.2g}"}


def timing(network: MsclForSemanticSegmentation, file: Path, threads: int, options: ExportSpeedOptions) -> dict:
    """Median and quartiles in ms of one image, in turns."""
    torch.set_num_threads(threads)
    image = random_images(network.config, 1, options.image_size, options.image_size)
    functions = {"eager": lambda image: full_logits(network, image), "onnx": onnx_function(file, threads)}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.rounds):
        for name, function in functions.items():
            time.sleep(0.05)  # threads of the other library keep the cores busy for a while after their work
            function(image)
            started = time.perf_counter()
            function(image)
            times[name].append(1e3 * (time.perf_counter() - started))
    row = {"threads": threads, "speed_up": round(statistics.median(times["eager"]) / statistics.median(times["onnx"]), 2)}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row |= {f"{name}_ms": round(middle, 1), f"{name}_quartiles": f"{low:.1f} to {high:.1f}"}
    return row


def markdown(rows: list[dict]) -> str:
    """Two tables: differences of the logits, and times."""
    first, networks, times = rows[0], [], []
    for row in rows:
        if row["threads"] == first["threads"]:
            rule = f"multiples of {row['size_multiple']}" if row["size_multiple"] > 1 else "-"
            columns = ("export_seconds", "largest_logit", *DIFFERENCES)
            networks.append((row["backbone"], row["decoder"], rule, *(row[name] for name in columns)))
        eager, onnx = (f"{row[f'{name}_ms']} ({row[f'{name}_quartiles']})" for name in ("eager", "onnx"))
        times.append((row["backbone"], row["parameters_m"], row["threads"], eager, onnx, row["speed_up"]))
    sizes = [name.removeprefix("diff_") for name in DIFFERENCES]
    return "\n".join([
        f"Made by `python -m recipes.benchmarks export` at `{first['commit']}` on {first['machine']}, CPU: torch {first['torch']}, ONNX "
        f"Runtime {first['onnxruntime']}; random weights, 21 classes, float32.\n",
        "Largest absolute difference of the logits, ONNX Runtime against eager torch, by batch x height x width:\n",
        *markdown_table(("backbone", "decoder", "size rule", "export, s", "largest logit", *sizes), networks),
        f"\nMilliseconds for one image of {first['image_px']} x {first['image_px']} px, measured in turns: median and quartiles of "
        f"{first['rounds']} rounds:\n",
        *markdown_table(("backbone", "weights, M", "threads", "eager torch", "ONNX Runtime", "times as fast"), times),
    ]) + "\n"  # fmt: skip
