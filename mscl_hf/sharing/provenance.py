"""Where a model comes from: provenance.json, which travels with the weights, and from which the model card is written."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import resolve_revision

from ..data.build import DataOptions
from ..data.folder_layout import IMAGE_FOLDERS, SPLITS
from ..data.loader import TrainingData
from ..models.checks_mscl import read_json
from ..models.open_model import pinned, split_revision
from ..records.redact import public, without_secrets
from ..records.run_folder import RECORD
from ..records.versions import versions
from ..training.launcher import DEFAULTS
from ..training.options import TrainOptions

FILE = "provenance.json"
SILENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
NOT_REPEATED = ("output_dir", "resume", "report_to", "push_to_hub", "private", "revision", "license")  # flags that change no number
COMMON_FOLDERS = {*IMAGE_FOLDERS, *(name for names in SPLITS for name in names)}  # names that do not identify a data set
MEASURED = ("mean_iou", "mean_accuracy", "overall_accuracy")


def provenance(model: str, say: Callable[[str], None] = print) -> dict:
    """What is known of a model, a folder, a Hub name or NAME@REVISION.

    title; license, as the Hub names it; stages and evaluations, oldest first. All empty for a model of another origin, and, which is
    said, where the record cannot be read: it is a stranger's file, and no reason to lose a run.
    """
    place, revision = split_revision(model)
    file = cached_file(place, FILE, revision=revision, **SILENT)
    nothing = {"title": None, "license": None, "stages": [], "evaluations": []}
    if file is None:
        return nothing
    try:
        found = read_json(file)
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"the {FILE} of {public(model)} cannot be read ({type(error).__name__}: {error}); its history is left out of the model card")
        return nothing
    return nothing | found


def stage_record(
    stage: str, what: dict[str, Any], data: TrainingData, options: Sequence, config: PreTrainedConfig, accelerator: Accelerator,
    start: str | None, trained: bool = True, warnings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """One stage of training as its card tells it.

    what: method and loss, by the words of the card. options: the recipe's dataclasses. start: the model that it went on from, None for a
    new network. trained: False for the controls, which leave the network as it starts. warnings: of the data, see `label_warnings`.
    """
    (of_data,), (train,) = ([o for o in options if isinstance(o, kind)] for kind in (DataOptions, TrainOptions))
    source = data.stream or data.labelled or data.unlabelled
    batch = train.batch_size * train.gradient_accumulation_steps
    passes = f", {train.max_steps * batch / data.images:.3g} passes" if data.images else ""
    resized = f"images brought to {config.base_size} px on the short side" if config.base_size else "images at their own size"
    height, width = config.image_size, config.image_width or config.image_size
    start_facts = {"seed": train.seed, "started from": "random weights" if start is None else public(start)}
    facts = {
        "data": f"{data_name(of_data)}, {source.split}" + (f" at {of_data.data_revision}" if of_data.data_revision else ""),
        "images with labels": "a stream" if data.stream else len(data.labelled) if data.labelled else 0,
        "images without labels": len(data.unlabelled) if data.unlabelled else 0,
        "budget": f"{train.max_steps:,} steps of {batch} images{passes}",
        "crops": f"{height} x {width} px, {resized}",
        **({} if config.image_range is None else {"image range": "{} to {}".format(*config.image_range)}),
        "optimizer": f"{train.optimizer}, peak learning rate {train.lr:g}, {train.schedule}, weight decay {train.weight_decay:g}",
        "precision": train.precision,
        "machine": f"{accelerator.num_processes} x {_device(accelerator.device)}",
    }
    return {
        "stage": stage,
        "facts": what | (facts if trained else {"budget": "no training"}) | start_facts,
        "data_set": _hub_name(of_data),
        "base_model": None if start is None or Path(start).exists() else split_revision(start)[0],
        "command": command_line(options, accelerator.num_processes, accelerator.device.type == "cuda"),
        "warnings": list(warnings),
        "versions": versions(),
    }


def with_evaluation(record: dict, results: dict, options: DataOptions) -> dict:
    """The record with what `evaluate_model` returned, and the warnings beside it, in place of an earlier evaluation on the same split."""
    kept = ("split", "num_images", *MEASURED, "per_class_iou", "per_class_accuracy", "score_classes", "inference", "precision")
    kept += tuple(key for key in ("classes_scored", "num_classes", "warnings") if key in results)
    new = {"dataset": data_name(options)} | {key: results[key] for key in kept}
    others = [found for found in record["evaluations"] if (found["dataset"], found["split"]) != (new["dataset"], new["split"])]
    return record | {"evaluations": [*others, new]}


def data_name(options: DataOptions) -> str:
    """Return the data set's name on the Hub or among the built-in ones, else that of its folder without `images`, `train` and the like."""
    place = options.data_dir or options.image_dir
    if name := _hub_name(options):
        return name
    if options.dataset not in ("folder", "hf") or place is None:
        return options.dataset
    if "://" in place:
        return Path(without_secrets(place)).name
    path = Path(without_secrets(place)).resolve()
    named = (folder.name for folder in (path, *path.parents) if folder.name.lower() not in COMMON_FOLDERS)
    return next(named, "") or path.name or options.dataset


def pinned_options(options: tuple) -> tuple:
    """A recipe's options with what they take from the Hub at the commits of this moment: models as NAME@COMMIT, data by --data-revision.

    A run that goes on keeps its commits, whatever became of the repositories, and though the Hub is out of reach.
    """
    before, found = _record_to_continue(options), []
    for of in options:
        changes = {name: _pinned_as(getattr(of, name), before.get(name)) for name in ("model", "start_from") if hasattr(of, name)}
        if isinstance(of, DataOptions) and (name := _hub_name(of)):
            if of.data_revision is None and before.get("data_dir") == name and before.get("data_revision"):
                changes["data_revision"] = before["data_revision"]
            else:
                commit_of_data = resolve_revision(name, of.data_revision, repo_type="dataset")
                changes["data_revision"] = getattr(commit_of_data, "resolved", of.data_revision)
        found.append(replace(of, **changes) if changes else of)
    return tuple(found)


def _record_to_continue(options: tuple) -> dict:
    """run.json of the folder that the options write to, where they go on with the run in it; an evaluation always does."""
    out, resume = (next((getattr(of, name) for of in options if hasattr(of, name)), None) for name in ("output_dir", "resume"))
    record = Path(out or "", RECORD)
    return json.loads(record.read_text(encoding="utf-8")) if out and resume is not False and record.is_file() else {}


def _pinned_as(name: str | None, recorded: str | None) -> str | None:
    """The commit in the record, where it is one of this name."""
    same = name is not None and recorded is not None and not Path(name).exists() and split_revision(recorded)[0] == name
    return recorded if same else pinned(name)


def command_line(options: Sequence, processes: int = 1, gpu: bool = False) -> str:
    """How to run this recipe again: all options that are not the defaults, whether they came from flags or from a file."""
    launcher = ["accelerate", "launch", *["--num_processes", str(processes)] * (processes > 1)]
    if processes > 1 and not gpu:  # where Accelerate would start one
        launcher = ["torchrun", "--nproc_per_node", str(processes)]
    words = [*launcher, f"recipes/{Path(sys.argv[0]).stem.removeprefix('mscl-')}.py"]
    for instance in options:
        for option in fields(instance):
            value = getattr(instance, option.name)
            default = option.default if option.default_factory is MISSING else option.default_factory()
            default = DEFAULTS.get(option.name, default)  # the command that is shown has no settings of a launcher
            if value == default or option.name in NOT_REPEATED:
                continue
            flag = option.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *(public(str(one)) for one in (value if isinstance(value, list) else [value]))]
    return shlex.join(words)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _hub_name(options: DataOptions) -> str | None:
    """The data set's name on the Hub, where it is from there."""
    name = options.data_dir or ""
    return name if options.dataset == "hf" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() else None


def _check(record: dict) -> None:
    """Raise what a reader of the record would stumble over."""
    for stage in record["stages"]:
        texts = (stage["stage"], stage["command"], *stage["versions"].values(), *stage["facts"], *map(str, stage["facts"].values()))
        texts += tuple(stage.get("warnings", ()))
        "".join((*texts, stage["facts"]["budget"], stage["facts"]["started from"], stage["base_model"] or "", stage["data_set"] or ""))
    for found in record["evaluations"]:
        "".join((found["dataset"], found["split"], found["precision"], *found["per_class_iou"], *(found["score_classes"] or ())))
        "".join(found.get("warnings", ()))
        figures = [found["num_images"], *(found[key] for key in MEASURED), found.get("classes_scored"), found.get("num_classes")]
        for name, iou in found["per_class_iou"].items():
            figures += [iou, found["per_class_accuracy"][name]]
        sum(figure for figure in figures if figure is not None)
        [found["inference"][key] for key in ("mode", "window", "base_size", "flip", "scales")]
    "".join((record.get("title") or "", record.get("license") or ""))
