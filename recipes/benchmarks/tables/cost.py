"""What the grid of the paper's tables costs: hours on this device, from measured steps, and arithmetic, for which no device is needed.

Stages whose steps take equally long are of one kind. One run of each kind is made for a few steps, by the ordinary recipe; the grid takes
as long as its stages would at that pace, one after another.
"""

import functools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from benchmark import machine
from stages import Stage, as_flag, record, start
from tables_grid import VIEWS_A_SAMPLE, Cell
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mscl_hf.cli import parse
from mscl_hf.config import NetworkConfig
from mscl_hf.methods import METHODS
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.records.versions import commit
from mscl_hf.training.log import read_log

# What the time of a step does not depend on.
WITHOUT_COST = {"seed", "train-count", "lr", "max-steps", "warmup-steps", "schedule", "weight-decay", "max-grad-norm", "model", "data-dir",
                "backbone-weights", "pretrained", "val-split", "save-steps", "health-steps"}  # fmt: skip
# What fine-tuning and evaluation find in the folder of the stage before.
HANDED_ON = {"backbone", "two-towers", "decoder", "decoder-channels", "decoder-rates", "output-stride", "image-size", "image-width",
             "base-size"}  # fmt: skip
RECIPES_IN_ORDER = ("pretrain", "finetune", "evaluate")
Kind = tuple[str, ...]


class Timing(NamedTuple):
    """Seconds: of all that happens once in a stage, and of a step."""

    once: float
    step: float


def cost(grid: dict[int, list[Cell]], steps: int, launcher: str | None = None) -> str:
    """Markdown: what the cells of each table cost, and all of them together. steps: of each kind of run; 0 = nothing is run, no hours."""
    kinds = kinds_of(stages_of(cell for cells in grid.values() for cell in cells))
    timings = measure(kinds, steps, launcher) if steps else {}
    return report(grid, kinds, timings, steps, launcher)


def stages_of(cells: Iterable[Cell]) -> list[Stage]:
    """Each once, however many cells need it."""
    return list(dict.fromkeys(stage for cell in cells for stage in cell.stages))


def kinds_of(stages: list[Stage]) -> dict[Kind, list[Stage]]:
    """Stages by what decides the time of their steps; pre-training first, for a model is needed to fine-tune."""
    kinds: dict[Kind, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: RECIPES_IN_ORDER.index(stage.recipe)):
        kinds.setdefault(kind_of(stage), []).append(stage)
    return kinds


def kind_of(stage: Stage) -> Kind:
    return (stage.recipe, *(word for name, value in sorted(decisive(stage).items()) for word in as_flag(name, value)))


def decisive(stage: Stage) -> dict:
    """The flags that the time of a step depends on, those of the network among them, whichever stage they were given to."""
    flags = {name.replace("_", "-"): value for name, value in stage.flags.items()}
    flags = {name: value for name, value in flags.items() if name not in WITHOUT_COST}
    if stage.recipe == "pretrain":
        method = METHODS[flags["method"]]
        return flags | ({} if method.trains else {"method": "none"}) | ({"two-towers": True} if method.two_towers else {})
    return {name: value for name, value in decisive(stage.after).items() if name in HANDED_ON} | flags


def steps_of(stage: Stage) -> int:
    """None of them where the network is saved as it starts, and in an evaluation."""
    return stage.flags.get("max-steps", 0)


def passes_of(stage: Stage) -> int:
    """Views through the network, forward and backward."""
    views = VIEWS_A_SAMPLE[METHODS[stage.flags["method"]].views] if stage.recipe == "pretrain" and steps_of(stage) else 1
    return steps_of(stage) * stage.flags.get("batch-size", 0) * views


def measure(kinds: dict[Kind, list[Stage]], steps: int, launcher: str | None = None) -> dict[Kind, Timing]:
    """Run one of each kind; ValueError when one fails. To be called as `start` is: without threads and without CUDA."""
    timings: dict[Kind, Timing] = {}
    done: dict[Kind, Path] = {}
    tqdm.monitor_interval = 0  # no thread beside this one, which forks
    with TemporaryDirectory() as place:
        for number, (kind, stages) in enumerate(tqdm(kinds.items(), unit="run")):
            sample = min(stages, key=lambda stage: stage.flags.get("train-count", float("inf")))  # all data are checked before a step
            model = None if sample.after is None else done[kind_of(sample.after)]
            short = shortened(sample, steps, Path(place) / str(number), model)
            process = start(short, launcher)
            process.join()
            if process.exitcode:
                said = short.log.read_text().strip().splitlines() or ["nothing"]
                raise ValueError(f"the {short.recipe} stage of {sample.folder.name} fails: {said[-1]}")
            timings[kind], done[kind] = timing(short), short.folder
    return timings


def shortened(stage: Stage, steps: int, folder: Path, model: Path | None) -> Stage:
    """The same with a few steps, each of which is logged. No weights are fetched: they change no time."""
    flags = {name: value for name, value in stage.flags.items() if name not in ("pretrained", "backbone-weights")}
    flags |= {} if model is None else {"model": str(model)}
    if stage.recipe == "evaluate":
        return Stage(stage.recipe, folder, flags)
    flags |= {"max-steps": steps, "logging-steps": 1, "save-steps": 0, "val-split": "none"}
    if stage.recipe == "pretrain":
        flags |= {"health-steps": 0, "method": decisive(stage)["method"]}
    return Stage(stage.recipe, folder, flags)


def timing(stage: Stage) -> Timing:
    """Of a finished stage. The first quarter of its steps is warm-up and counts for what happens once, as does all of an evaluation.

    A method in two stages spends half of its steps in each: the mean of both is a step.
    """
    logs = [[row for row in read_log(path) if "images_per_second" in row] for path in sorted(stage.folder.rglob("log.jsonl"))]
    once = record(stage)["seconds"]
    if not any(logs):
        return Timing(once, 0.0)
    run = json.loads((stage.folder / "run.json").read_text())
    images = run["batch_size"] * run["gradient_accumulation_steps"]
    medians = []
    for rows in logs:
        seconds = [images / row["images_per_second"] for row in rows]
        medians.append(statistics.median(seconds[len(seconds) // 4 :]))
        once -= len(seconds) * medians[-1]
    return Timing(max(0.0, once), statistics.mean(medians))


def seconds_of(stage: Stage, timings: dict[Kind, Timing]) -> float:
    once, step = timings[kind_of(stage)]
    return once + steps_of(stage) * step


def tflop_of_a_pass(stage: Stage) -> float:
    """Of a view, forward and backward (three times forward), through the parts of the network that the stage trains.

    Heads, losses and the further forward pass of methods with a teacher are not in it.
    """
    flags = decisive(stage)
    if not passes_of(stage):
        return 0.0
    parts = "decoder and auxiliary head"
    if stage.recipe == "pretrain":
        parts = METHODS[flags["method"]].transfers
        if flags["method"] == "mscl" and "p" not in flags["losses"] and flags.get("attach") != "decoder":
            parts = "backbone"
    return 3 * _forward(tuple(word for name in sorted(HANDED_ON & flags.keys()) for word in as_flag(name, flags[name])), parts)


@functools.cache
def _forward(network: Sequence[str], parts: str) -> float:
    """TFLOP of one crop through the backbone and what is named of the others."""
    (options,) = parse((NetworkConfig,), "", network)
    with torch.device("meta"):
        model = MsclForSemanticSegmentation(options.config()).eval()
        crop = torch.empty(1, 3, options.image_size, options.image_width or options.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model.backbone(crop).feature_maps
        if "decoder" in parts:
            model.decoder(list(maps))
        if "auxiliary" in parts and model.auxiliary_head is not None:
            model.auxiliary_head(maps[-2])
    return counter.get_total_flops() / 1e12


def report(grid: dict[int, list[Cell]], kinds: dict[Kind, list[Stage]], timings: dict[Kind, Timing], steps: int, launcher=None) -> str:
    head = "kind of run", "stages", "steps", "TFLOP a pass", "PFLOP"
    by_kind = [(*head, *(("hours", "ms a step", "s once") if timings else ()))]
    for kind, stages in kinds.items():
        number, *totals = sums(stages, timings)
        steps_in_all, pace = sum(map(steps_of, stages)), timings.get(kind)
        paces = (f"{1e3 * pace.step:,.1f}", f"{pace.once:,.1f}") if pace else ()
        by_kind.append((title(stages[0]), number, f"{steps_in_all:,}", rounded(tflop_of_a_pass(stages[0])), *totals, *paces))
    by_table = [("table", "stages", "PFLOP", *(("hours",) if timings else ()))]
    by_table += [(number, *sums(stages_of(cells), timings)) for number, cells in grid.items()]
    together = stages_of(cell for cells in grid.values() for cell in cells)
    by_table.append(("together, shared stages once", *sums(together, timings)))
    return "\n".join([origin(steps, launcher), *lines(by_table), "", *lines(by_kind)]) + "\n"


def sums(stages: list[Stage], timings: dict[Kind, Timing]) -> tuple[str, ...]:
    """How many, PFLOP, hours if they were measured."""
    pflop = sum(passes_of(stage) * tflop_of_a_pass(stage) for stage in stages) / 1e3
    hours = (rounded(sum(seconds_of(stage, timings) for stage in stages) / 3600),) if timings else ()
    return str(len(stages)), rounded(pflop), *hours


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def title(stage: Stage) -> str:
    flags = decisive(stage)
    words = [stage.recipe, *(str(flags[name]) for name in ("method", "losses", "loss") if name in flags)]
    words += [f"--{name} {Path(str(flags[name])).name}" for name in ("unlabelled", "config") if name in flags]
    words += ["two towers"] if flags.get("two-towers") else []
    if steps_of(stage):
        words.append(f"{flags['batch-size']} x {flags.get('image-size', NetworkConfig.image_size)} px")
    return " ".join(words)


def origin(steps: int, launcher: str | None) -> str:
    """Where the figures are from. Asks for the device, so that nothing can be forked afterwards."""
    arithmetic = "PFLOP: of what is trained, forward and backward, without heads, losses and teachers; evaluations are not in it."
    if not steps:
        return f"Arithmetic, nothing was run. {arithmetic}\n"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    how = f", `{launcher}`" if launcher else ""
    where = f"{device}{how}, torch {torch.__version__}, commit {commit() or '-'}"
    return f"Hours of one stage after another, estimated from {steps} steps of each kind of run: {where}. {arithmetic}\n"


def lines(rows: list[tuple]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
