"""Where a model comes from: provenance.json, which travels with the weights, and from which the model card is written."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import resolve_revision

from ..cli import flat
from ..config import DataConfig, FinetuneConfig, PretrainConfig
from ..config.launcher import DEFAULTS as LAUNCHER_DEFAULTS
from ..data.folder_layout import IMAGE_FOLDERS, SPLITS
from ..data.training_data import TrainingData
from ..messages import flag
from ..models.checks_mscl import read_json
from ..models.loading import pinned, split_revision
from ..records.redact import public, without_secrets
from ..records.run_folder import RECORD
from ..records.versions import package_versions

FILE = "provenance.json"
SILENT = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
NOT_REPEATED = ("output_dir", "resume", "report_to", "push_to_hub", "private", "revision", "license")  # flags that change no number
COMMON_FOLDERS = {*IMAGE_FOLDERS, *(name for names in SPLITS for name in names)}  # names that do not identify a data set
MEASURED = ("mean_iou", "mean_accuracy", "overall_accuracy")


def read_provenance(model: str, log: Callable[[str], None] = print) -> dict:
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
        log(f"the {FILE} of {public(model)} cannot be read ({type(error).__name__}: {error}); its history is left out of the model card")
        return nothing
    return nothing | found


def stage_record(
    stage: str, what: dict[str, Any], data: TrainingData, config: PretrainConfig | FinetuneConfig, network: PreTrainedConfig,
    accelerator: Accelerator, start: str | None, trained: bool = True, warnings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """One stage of training, for the model card.

    what: method and loss, in words. start: the model that training started from, None for a new network. trained: False for the controls,
    which leave the network as it starts. warnings: of the data, see `label_warnings`.
    """
    train, source = config.training, data.sources[0]
    batch = train.batch_size * train.gradient_accumulation_steps
    passes = f", {train.max_steps * batch / data.images:.3g} passes" if data.images else ""
    resized = f"images scaled to {network.base_size} px on the short side" if network.base_size else "images at their own size"
    height, width = network.image_size, network.image_width or network.image_size
    start_facts = {"seed": train.seed, "started from": "random weights" if start is None else public(start)}
    facts = {
        "data": f"{data_name(config.data)}, {source.split}" + (f" at {config.data.data_revision}" if config.data.data_revision else ""),
        **data.counts,
        "budget": f"{train.max_steps:,} steps of {batch} images{passes}",
        "crops": f"{height} x {width} px, {resized}",
        **({} if network.image_range is None else {"image range": "{} to {}".format(*network.image_range)}),
        "optimizer": f"{train.optim}, peak learning rate {train.learning_rate:g}, {train.lr_scheduler_type}, weight decay {train.weight_decay:g}",
        "precision": train.mixed_precision.replace("no", "fp32"),
        "machine": f"{accelerator.num_processes} x {_device(accelerator.device)}",
    }
    return {
        "stage": stage,
        "facts": what | (facts if trained else {"budget": "no training"}) | start_facts,
        "data_set": _hub_name(config.data),
        "base_model": None if start is None or Path(start).exists() else split_revision(start)[0],
        "command": command_line(config, accelerator.num_processes, accelerator.device.type == "cuda"),
        "warnings": list(warnings),
        "versions": package_versions(),
    }


def with_evaluation(record: dict, results: dict, options: DataConfig) -> dict:
    """The record with what `evaluate_model` returned, and the warnings beside it, in place of an earlier evaluation on the same split."""
    kept = ("split", "num_images", *MEASURED, "per_class_iou", "per_class_accuracy", "score_classes", "inference", "precision")
    kept += tuple(key for key in ("classes_scored", "num_classes", "warnings") if key in results)
    new = {"dataset": data_name(options)} | {key: results[key] for key in kept}
    others = [found for found in record["evaluations"] if (found["dataset"], found["split"]) != (new["dataset"], new["split"])]
    return record | {"evaluations": [*others, new]}


def data_name(options: DataConfig) -> str:
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


def pin_revisions(config: Any) -> Any:
    """The configuration of a recipe with all that it takes from the Hub at its commit: models as NAME@COMMIT, data by --data-revision.

    A run that is resumed keeps its commits, whatever became of the repositories, and although the Hub may be out of reach.
    """
    before, changed = _record_to_continue(flat(config)), {}
    for f in fields(config):
        section = getattr(config, f.name)
        changes = {name: _pinned_as(getattr(section, name), before.get(name)) for name in ("model", "start_from") if hasattr(section, name)}
        if isinstance(section, DataConfig) and (name := _hub_name(section)):
            if section.data_revision is None and before.get("data_dir") == name and before.get("data_revision"):
                changes["data_revision"] = before["data_revision"]
            else:
                commit_of_data = resolve_revision(name, section.data_revision, repo_type="dataset")
                changes["data_revision"] = getattr(commit_of_data, "resolved", section.data_revision)
        if changes:
            changed[f.name] = replace(section, **changes)
    return replace(config, **changed)


def _record_to_continue(options: dict) -> dict:
    """run.json of the output folder, where its run is continued; an evaluation always is."""
    record = Path(options["output_dir"] or "", RECORD)
    return json.loads(record.read_text(encoding="utf-8")) if options.get("resume") is not False and record.is_file() else {}


def _pinned_as(name: str | None, recorded: str | None) -> str | None:
    """The commit in the record, where it is one of this name."""
    same = name is not None and recorded is not None and not Path(name).exists() and split_revision(recorded)[0] == name
    return recorded if same else pinned(name)


def command_line(config: Any, processes: int = 1, gpu: bool = False) -> str:
    """How to run this recipe again: all options that are not the defaults, whether they came from flags or from a file."""
    launcher = ["accelerate", "launch", *["--num_processes", str(processes)] * (processes > 1)]
    if processes > 1 and not gpu:  # where Accelerate would start one
        launcher = ["torchrun", "--nproc_per_node", str(processes)]
    words = [*launcher, f"recipes/{Path(sys.argv[0]).stem.removeprefix('mscl-')}.py"]
    for section in (getattr(config, f.name) for f in fields(config)):
        default = type(section)()
        for name, value in vars(section).items():
            # The command that is shown has no settings of a launcher.
            if value == LAUNCHER_DEFAULTS.get(name, getattr(default, name)) or name in NOT_REPEATED:
                continue
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(f"no_{name}"))
            else:
                words += [flag(name), *(public(str(item)) for item in (value if isinstance(value, list) else [value]))]
    return shlex.join(words)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _hub_name(options: DataConfig) -> str | None:
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
