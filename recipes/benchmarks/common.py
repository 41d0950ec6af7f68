"""Shared by the benchmarks: the machine, statistics over seeds, command-line words, CSV files and Markdown tables."""

import csv
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml

CONFIGS = Path(__file__).resolve().parent / "configs"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
                     2.110, 2.101, 2.093, 2.086), 1))  # fmt: skip


def machine() -> str:
    """Processor, number of cores, and GPUs. Initializes CUDA, so that this process cannot be forked afterwards."""
    cpuinfo = Path("/proc/cpuinfo")
    models = cpuinfo.read_text().split("model name")[1:] if cpuinfo.is_file() else []
    processor = models[0].splitlines()[0].strip("\t :") if models else platform.machine()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([processor, f"{os.cpu_count()} cores", *gpus])


def read_yaml(path: str | Path) -> dict:
    return yaml.safe_load(Path(path).read_text())


def mean_sd(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; "-" where there is no value."""
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    return f"{values[0]:.1f}" if values else "-"


def difference(pairs: Sequence[float]) -> str:
    """Mean of paired differences and its 95 % interval; "-" where there is no pair."""
    if len(pairs) > 1:
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(pairs))
    return f"{pairs[0]:+.1f}" if pairs else "-"


def interval(pairs: Sequence[float]) -> tuple[float, float, float]:
    """Mean and ends of the 95 % t interval of at least two numbers."""
    half = T95.get(len(pairs) - 1, 1.96) * statistics.stdev(pairs) / len(pairs) ** 0.5
    mean = statistics.mean(pairs)
    return mean, mean - half, mean + half


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file; none where it is missing."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Write rows; keys that are not columns are left out, and columns that a row lacks stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def markdown_table(head: Sequence, rows: Iterable[Sequence]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
