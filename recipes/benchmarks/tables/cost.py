"""Estimate what the grid of the paper's tables costs: hours on this device, from timed steps, and FLOPs, which need no device.

Stages whose steps take the same time are of one type. One run of each type is made for a few steps, by the ordinary recipe; the estimate is
the time of all stages at this pace, one after another.
"""

import functools
import statistics
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mscl_hf.cli import as_words, parse_sections
from mscl_hf.config import NetworkConfig
from mscl_hf.config.network import DEFAULT_SIZE
from mscl_hf.methods import METHODS
from mscl_hf.models.backbones import config_of
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.records.versions import commit

from ..common import machine, markdown_table
from ..runner import Cell
from ..stages import RECIPES, Stage, record, start, step_seconds
from .grid import VIEWS_PER_SAMPLE

# Flags that do not change the time of a step.
WITHOUT_COST = {"seed", "train-count", "learning-rate", "max-steps", "warmup-steps", "lr-scheduler-type", "weight-decay", "max-grad-norm",
                "model", "data-dir", "backbone-weights", "pretrained", "val-split", "save-steps", "health-steps"}  # fmt: skip
# Flags of the network, which later stages read from the model of the stage before.
INHERITED = {"backbone", "two-towers", "decoder", "decoder-channels", "decoder-rates", "output-stride", "image-size", "image-width",
             "base-size"}  # fmt: skip
StageType = tuple[str, ...]


class Timing(NamedTuple):
    """Seconds of what happens once in a stage, and of a step."""

    once: float
    step: float


def cost(grid: dict[int, list[Cell]], steps: int, launcher: str | None = None) -> str:
    """Markdown with the cost of each table and of all tables together. steps: to time of each type; 0 = run nothing, give no hours."""
    types = types_of(stages_of(cell for cells in grid.values() for cell in cells))
    timings = measure(types, steps, launcher) if steps else {}
    return report(grid, types, timings, steps, launcher)


# Types of stages


def stages_of(cells: Iterable[Cell]) -> list[Stage]:
    """Each stage once, also where several cells need it."""
    return list(dict.fromkeys(stage for cell in cells for stage in cell.stages))


def types_of(stages: list[Stage]) -> dict[StageType, list[Stage]]:
    """Stages by type; pre-training first, since fine-tuning needs its model."""
    types: dict[StageType, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: list(RECIPES).index(stage.recipe)):
        types.setdefault(type_of(stage), []).append(stage)
    return types


def type_of(stage: Stage) -> StageType:
    return (stage.recipe, *as_words(dict(sorted(cost_flags(stage).items()))))


def cost_flags(stage: Stage) -> dict:
    """The flags that change the time of a step; those of the network are read from the earlier stages too."""
    flags = {name.replace("_", "-"): value for name, value in stage.flags.items()}
    flags = {name: value for name, value in flags.items() if name not in WITHOUT_COST}
    if stage.recipe == "pretrain":
        method = METHODS[flags["method"]]
        return flags | ({} if method.trains else {"method": "none"}) | ({"two-towers": True} if method.two_towers else {})
    return {name: value for name, value in cost_flags(stage.after).items() if name in INHERITED} | flags


def steps_of(stage: Stage) -> int:
    """Training steps; 0 in an evaluation, and where the network is saved as it starts."""
    return stage.flags.get("max-steps", 0)


def passes_of(stage: Stage) -> int:
    """Views that pass through the network forward and backward."""
    views = 2 if "semi-supervised" in stage.flags else 1  # an unlabelled image beside each labelled one
    views = VIEWS_PER_SAMPLE[METHODS[stage.flags["method"]].views] if stage.recipe == "pretrain" and steps_of(stage) else views
    return steps_of(stage) * stage.flags.get("batch-size", 0) * views


# Time


def measure(types: dict[StageType, list[Stage]], steps: int, launcher: str | None = None) -> dict[StageType, Timing]:
    """Time one run of each type. It forks, see `start`. Raises ValueError where a run fails."""
    timings: dict[StageType, Timing] = {}
    folders: dict[StageType, Path] = {}
    tqdm.monitor_interval = 0  # tqdm's thread must not exist when this process forks
    with TemporaryDirectory() as scratch:
        for number, (stage_type, stages) in enumerate(tqdm(types.items(), unit="run", disable=None)):
            sample = min(stages, key=lambda stage: stage.flags.get("train-count", float("inf")))  # all masks are read before the first step
            model = None if sample.after is None else folders[type_of(sample.after)]
            short = shortened(sample, steps, Path(scratch) / str(number), model)
            process = start(short, launcher)
            process.join()
            if process.exitcode:
                lines = short.log.read_text().strip().splitlines() or ["it printed nothing"]
                raise ValueError(f"the {short.recipe} stage of {sample.folder.name} failed: {lines[-1]}")
            timings[stage_type], folders[stage_type] = timing(short), short.folder
    return timings


def shortened(stage: Stage, steps: int, folder: Path, model: Path | None) -> Stage:
    """The stage with a few steps, each of which is logged, from random weights, which take the same time as those of a file."""
    flags = {name: value for name, value in stage.flags.items() if name not in ("pretrained", "backbone-weights")}
    flags |= {} if model is None else {"model": str(model)}
    if stage.recipe == "evaluate":
        return Stage(stage.recipe, folder, flags)
    flags |= {"max-steps": steps, "logging-steps": 1, "save-steps": 0, "val-split": "none"}
    if stage.recipe == "pretrain":
        flags |= {"health-steps": 0, "method": cost_flags(stage)["method"]}
    return Stage(stage.recipe, folder, flags)


def timing(stage: Stage) -> Timing:
    """The timing of a finished stage. The slower first quarter of its steps is part of what happens once, as is a whole evaluation.

    A method of two stages has half of its steps in each; the mean of both is taken.
    """
    once, medians = record(stage)["seconds"], []
    for seconds in step_seconds(stage):
        medians.append(statistics.median(seconds[len(seconds) // 4 :]))
        once -= len(seconds) * medians[-1]
    return Timing(max(0.0, once), statistics.mean(medians)) if medians else Timing(once, 0.0)


def seconds_of(stage: Stage, timings: dict[StageType, Timing]) -> float:
    once, step = timings[type_of(stage)]
    return once + steps_of(stage) * step


# FLOPs


def tflop_per_pass(stage: Stage) -> float:
    """TFLOP of a view, forward and backward (three times forward), through the parts of the network that the stage trains.

    Without heads, losses, and the second forward pass of methods with a teacher.
    """
    flags = cost_flags(stage)
    if not passes_of(stage):
        return 0.0
    parts = "decoder and auxiliary head"
    if stage.recipe == "pretrain":
        parts = METHODS[flags["method"]].trained_parts
        if flags["method"] == "mscl" and "p" not in flags["losses"] and flags.get("attach") != "decoder":
            parts = "backbone"
    return 3 * _forward_tflop(tuple(as_words({name: flags[name] for name in sorted(INHERITED & flags.keys())})), parts)


@functools.cache
def _forward_tflop(words: tuple[str, ...], parts: str) -> float:
    """TFLOP of one crop through the backbone and the named parts of a network. words: its options."""
    (options,) = parse_sections([NetworkConfig], "", words)
    with torch.device("meta"):
        model = MsclForSemanticSegmentation(config_of(options)).eval()
        crop = torch.empty(1, 3, model.config.image_size, model.config.image_width or model.config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model.backbone(crop).feature_maps
        if "decoder" in parts:
            model.decoder(list(maps))
        if "auxiliary" in parts and model.auxiliary_head is not None:
            model.auxiliary_head(maps[-2])
    return counter.get_total_flops() / 1e12


# The report


def report(grid: dict[int, list[Cell]], types: dict[StageType, list[Stage]], timings: dict[StageType, Timing], steps: int,
           launcher: str | None = None) -> str:  # fmt: skip
    """Markdown: the cost of each table, then of each type of stage."""
    hours = ("hours",) if timings else ()
    by_table = [(number, *totals(stages_of(cells), timings)) for number, cells in grid.items()]
    by_table.append(("together, shared stages once", *totals(stages_of(cell for cells in grid.values() for cell in cells), timings)))
    by_type = []
    for stage_type, stages in types.items():
        number, *sums = totals(stages, timings)
        pace = timings.get(stage_type)
        paces = (f"{1e3 * pace.step:,.1f}", f"{pace.once:,.1f}") if pace else ()
        all_steps = sum(map(steps_of, stages))
        by_type.append((title(stages[0]), number, f"{all_steps:,}", rounded(tflop_per_pass(stages[0])), *sums, *paces))
    head = ("type of stage", "stages", "steps", "TFLOP per view", "PFLOP", *hours, *(("ms per step", "s once") if timings else ()))
    tables = [*markdown_table(("table", "stages", "PFLOP", *hours), by_table), "", *markdown_table(head, by_type)]
    return "\n".join([origin(steps, launcher), *tables]) + "\n"


def totals(stages: list[Stage], timings: dict[StageType, Timing]) -> tuple[str, ...]:
    """Number of stages, PFLOP, and hours where steps were timed."""
    pflop = sum(passes_of(stage) * tflop_per_pass(stage) for stage in stages) / 1e3
    hours = (rounded(sum(seconds_of(stage, timings) for stage in stages) / 3600),) if timings else ()
    return str(len(stages)), rounded(pflop), *hours


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def title(stage: Stage) -> str:
    """A type of stage in words."""
    flags = cost_flags(stage)
    words = [stage.recipe, *(str(flags[name]) for name in ("method", "losses", "loss") if name in flags)]
    words += [f"--{name} {Path(str(flags[name])).name}" for name in ("unlabelled", "config") if name in flags]
    words += ["two towers"] if flags.get("two-towers") else []
    if steps_of(stage):
        words.append(f"{flags['batch-size']} x {flags.get('image-size', DEFAULT_SIZE)} px")
    return " ".join(words)


def origin(steps: int, launcher: str | None) -> str:
    """A sentence on where the figures are from. Uses CUDA, so that this process cannot be forked afterwards."""
    arithmetic = "PFLOP: what is trained, forward and backward, without heads, losses and teachers; evaluations are not included."
    if not steps:
        return f"FLOPs only, nothing was run. {arithmetic}\n"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    launched = f", `{launcher}`" if launcher else ""
    where = f"{device}{launched}, torch {torch.__version__}, commit {commit() or '-'}"
    return f"Hours of one stage after another, estimated from {steps} steps of each type of stage: {where}. {arithmetic}\n"
