"""Run the cells of a grid: some stages side by side, each stage once, also where several benchmarks share a work folder."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Process
from multiprocessing.connection import wait

from tqdm import tqdm

from mscl_hf.methods import METHODS
from mscl_hf.training.signals import STOPPED_BY_SIGNAL, stop_signal

from .stages import BUSY, LIBRARIES, Stage, finished, record, run_of, settings, start

COLUMNS = ("dataset", "method", "losses", "loss", "train_count", "seed", "mean_iou", "pretrain_steps", "finetune_steps",
           "image_size", "commit", "cell", "split", "num_images", "overall_accuracy", "hours", "machine")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One figure of a table: a pre-training, one or more fine-tunings and an evaluation. share: of the masks, in a grid that varies it."""

    name: str
    seed: int
    stages: tuple[Stage, ...]
    share: str = ""

    def __str__(self):
        return ", ".join(filter(None, (self.name, self.share and f"{self.share} of the labels", f"seed {self.seed}")))

    def is_done(self) -> bool:
        return all(map(finished, self.stages))

    def results(self) -> dict:
        """The results of the evaluation of a finished cell."""
        return json.loads((self.stages[-1].folder / "results.json").read_text())


@dataclass
class Outcome:
    """How `run_cells` ended: the stages that failed, and whether a signal stopped it."""

    failed: list[Stage] = field(default_factory=list)
    stopped: bool = False

    def exit_if_stopped(self) -> None:
        if self.stopped:
            print("stopped; the same command continues", file=sys.stderr)
            sys.exit(STOPPED_BY_SIGNAL)

    def exit_if_failed(self) -> None:
        if self.failed:
            sys.exit("\n".join(f"failed: {stage.folder}, see {stage.log}" for stage in self.failed))


def check(cells: Sequence[Cell]) -> None:
    """Raise ValueError, before any stage is run, for flags that a recipe rejects and for finished stages with other settings."""
    for stage in dict.fromkeys(stage for cell in cells for stage in cell.stages):
        settings(stage)
        finished(stage)


def run_cells(cells: Sequence[Cell], jobs: int, on_done: Callable[[Cell], None], launcher: str | None = None) -> Outcome:
    """Run the unfinished stages, `jobs` at a time, and call on_done after the last stage of each cell.

    SIGTERM and SIGINT are passed on to the stages, which save checkpoints. It forks, see `start`.
    """
    outcome = Outcome()
    running: dict[Process, tuple[Cell, Stage]] = {}
    tqdm.monitor_interval = 0  # tqdm's thread must not exist when this process forks
    with stop_signal() as stop, tqdm(total=len(cells), unit="cell", smoothing=0, disable=None) as bar:
        bar.initial = bar.n = sum(cell.is_done() for cell in cells)
        while not stop.requested:
            is_shared = _start_stages(running, cells, outcome.failed, jobs, launcher)
            if not running and not is_shared:
                return outcome
            wait([process.sentinel for process in running], timeout=2)
            for process in [process for process in running if not process.is_alive()]:
                cell, stage = running.pop(process)
                if process.exitcode not in (0, BUSY) and not stop.requested:
                    outcome.failed.append(stage)
                    bar.write(f"failed: {cell}: {stage.recipe}, see {stage.log}")
                elif cell.is_done():
                    on_done(cell)
            bar.update(sum(cell.is_done() for cell in cells) - bar.n)
        for process in running:
            process.terminate()
        for process in running:
            process.join()
    outcome.stopped = True
    return outcome


def _start_stages(running: dict, cells: Sequence[Cell], failed: list[Stage], jobs: int, launcher: str | None) -> bool:
    """Start the first stages that can be run, until `jobs` are running; returns whether another benchmark runs one of the others."""
    is_shared, started = False, [stage for _, stage in running.values()]
    for cell in cells:
        if len(running) == jobs:
            break
        stage = next((stage for stage in cell.stages if not finished(stage)), None)
        if stage is None or stage in failed or stage in started:
            continue
        process = start(stage, launcher)
        is_shared = is_shared or process is None
        if process is not None:
            running[process] = cell, stage
            started.append(stage)
    return is_shared


def row_of(cell: Cell) -> dict:
    """A finished cell as a row with COLUMNS, and the versions of the libraries."""
    results, pretrain, finetune = cell.results(), run_of(cell.stages[0]), run_of(cell.stages[-2])
    done = [record(stage) for stage in cell.stages]
    return {
        "dataset": pretrain["dataset"],
        "method": pretrain["method"],
        "losses": "+".join(name[0] for name in pretrain["losses"].split("+")) if pretrain["method"] == "mscl" else "-",
        "loss": finetune["loss"],
        "train_count": finetune["train_count"] or "all",
        "seed": cell.seed,
        "mean_iou": round(results["mean_iou"], 5),
        "pretrain_steps": pretrain["max_steps"] if METHODS[pretrain["method"]].trains else 0,
        "finetune_steps": finetune["max_steps"],
        "image_size": finetune["image_size"],
        "cell": cell.name,
        "split": results["split"],
        "num_images": results["num_images"],
        "overall_accuracy": round(results["overall_accuracy"], 5),
        "hours": round(sum(entry["seconds"] for entry in done) / 3600, 4),
        **{name: " ".join(dict.fromkeys(word for entry in done for word in entry[name].split())) for name in ("commit", *LIBRARIES)},
        "machine": "; ".join(dict.fromkeys(entry["machine"] for entry in done)),
    }
