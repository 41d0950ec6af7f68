"""Measurements in processes of their own, with their time and memory."""

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from .step import DEVICE, wait

ROOT = Path(__file__).resolve().parents[3]


def measure(worker: str, **settings) -> dict:
    """One row, measured in a new process, so that its memory is that of the measurement."""
    row = settings | run_worker(worker, **settings)
    row.pop("flags", None)  # they have paths of this machine
    print(row, flush=True)
    return row


def run_worker(worker: str, **settings):
    """What a function of WORKERS returns in a new process."""
    return run_json(sys.executable, "-m", "recipes.benchmarks", "speed", "worker", worker, json.dumps(settings))


def run_json(*command, **environment) -> dict:
    """The last line that a command prints, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))} ended with status {done.returncode}; its errors are above.")
    return json.loads(done.stdout.splitlines()[-1])


def reset_peak() -> None:
    """Reset the peak memory that `peak_mb` returns."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def median_seconds(function, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        function()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
