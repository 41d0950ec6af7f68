"""provenance.json: how a model was trained and measured. It is published with the weights; the model card is written from it."""

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
from ..config import DataConfig, DatasetConfig, FinetuneConfig, PretrainConfig
from ..config.data import OWN_DATA
from ..config.launcher import DEFAULTS as LAUNCHER_DEFAULTS
from ..data.folder_names import IMAGE_FOLDERS, SPLITS
from ..data.training_data import TrainingData
from ..messages import flag
from ..models.checks_mscl import read_json
from ..models.loading import pinned, split_revision
from ..records.redact import public, without_secrets
from ..records.run_folder import RECORD
from ..records.versions import package_versions

PROVENANCE = "provenance.json"
OPTIONAL = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}  # of `cached_file`
NOT_REPEATED = ("output_dir", "resume", "report_to", "push_to_hub", "private", "revision", "license")  # options that change no number
COMMON_FOLDERS = {*IMAGE_FOLDERS, *(name for names in SPLITS for name in names)}  # names that do not identify a data set
RANDOM = "random weights"
METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy")


def read_provenance(model: str, log: Callable[[str], None] = print) -> dict:
    """Return the provenance of a model: its title, license, stages and evaluations, oldest first.

    model: a folder, a Hub name or NAME@REVISION. All entries are empty for a model without provenance.json, and for one whose file is
    invalid, which is logged: it may come from anybody, and must not end a run.
    """
    name, revision = split_revision(model)
    file = cached_file(name, PROVENANCE, revision=revision, **OPTIONAL)
    empty = {"title": None, "license": None, "stages": [], "evaluations": []}
    if file is None:
        return empty
    try:
        record = read_json(file)
        _check(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        log(f"the {PROVENANCE} of {public(model)} cannot be read ({problem}); its history is left out of the model card")
        return empty
    return empty | record


def stage_record(
    stage: str, method: dict[str, Any], data: TrainingData, config: PretrainConfig | FinetuneConfig, network: PreTrainedConfig,
    accelerator: Accelerator, start: str | None, trained: bool = True, warnings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Return the record of one stage of training.

    method: facts about the method and the loss. start: model that training starts from, None for random weights. trained: False for
    the controls, which train nothing. warnings: about the data, see `label_warnings`.
    """
    facts = _training_facts(data, config, network, accelerator) if trained else {"budget": "no training"}
    start_facts = {"seed": config.training.seed, "started from": RANDOM if start is None else public(start)}
    return {
        "stage": stage,
        "facts": method | facts | start_facts,
        "data_set": _hub_name(config.data),
        "base_model": None if start is None or Path(start).exists() else split_revision(start)[0],
        "command": command_line(config, accelerator.num_processes, accelerator.device.type == "cuda"),
        "warnings": list(warnings),
        "versions": package_versions(),
    }


def _training_facts(
    data: TrainingData, config: PretrainConfig | FinetuneConfig, network: PreTrainedConfig, accelerator: Accelerator
) -> dict[str, str | int]:
    """Return the data, budget, crops, optimizer, precision and machine in words."""
    train, revision = config.training, config.data.data_revision
    schedule = f"peak learning rate {train.learning_rate:g}, {train.lr_scheduler_type}"
    scales = "" if train.backbone_lr_scale == 1 else f", backbone at {train.backbone_lr_scale:g} of the rate"
    scales += "" if train.layer_decay == 1 else f", layer decay {train.layer_decay:g}"
    batch = train.batch_size * train.gradient_accumulation_steps
    images = data.labelled_images if isinstance(config, FinetuneConfig) else data.images  # a step has `batch` of these
    epochs = f", {train.max_steps * batch / images:.3g} epochs" if images else ""
    resized = f"images scaled to {network.base_size} px on the short side" if network.base_size else "images at their original size"
    height, width, device = network.image_size, network.image_width or network.image_size, accelerator.device
    return {
        "data": f"{data_name(config.data)}, {data.sources[0].split}" + (f" at {revision}" if revision else ""),
        **data.counts,
        "budget": f"{train.max_steps:,} steps of {batch} images{epochs}",
        "crops": f"{height} x {width} px, {resized}",
        **({} if network.image_range is None else {"image range": "{} to {}".format(*network.image_range)}),
        **({} if config.data.tile is None else {"tiles": "{} px, overlapping by {} px".format(*config.data.tile)}),
        **({} if network.bands is None else {"bands": " ".join(map(str, network.bands))}),
        "optimizer": f"{train.optim}, {schedule}, weight decay {train.weight_decay:g}{scales}",
        "precision": train.mixed_precision.replace("no", "fp32"),
        "machine": f"{accelerator.num_processes} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type.upper()}",
    }


def has_weights(stages: Sequence[dict]) -> bool:
    """Return whether the first of these stages of training started from given weights; a model without stages may have."""
    return not stages or stages[0]["facts"]["started from"] != RANDOM


def with_evaluation(record: dict, results: dict, options: DatasetConfig) -> dict:
    """Return the record with the results of `evaluate_model`, which replace those of an earlier evaluation on the same split."""
    keys = ("split", "num_images", *METRICS, "per_class_iou", "per_class_accuracy", "score_classes", "inference", "precision")
    keys += tuple(key for key in ("classes_scored", "num_classes", "warnings") if key in results)
    new = {"dataset": data_name(options)} | {key: results[key] for key in keys}
    others = [old for old in record["evaluations"] if (old["dataset"], old["split"]) != (new["dataset"], new["split"])]
    return record | {"evaluations": [*others, new]}


def data_name(options: DatasetConfig) -> str:
    """Return the data set's name on the Hub or among the built-in ones, else that of its folder without `images`, `train` and the like."""
    location = options.data_dir or options.annotations or options.image_dir
    if name := _hub_name(options):
        return name
    if options.dataset not in OWN_DATA or location is None:
        return options.dataset
    if "://" in location:
        return Path(without_secrets(location)).name
    path = Path(without_secrets(location)).resolve()
    names = (folder.name for folder in (path, *path.parents) if folder.name.lower() not in COMMON_FOLDERS)
    return next(names, "") or path.name or options.dataset


def pin_revisions(config: Any) -> Any:
    """Return the configuration of a recipe with models and data of the Hub at a commit: NAME@COMMIT, and --data-revision.

    A run that is resumed keeps the commits in its run.json, also if the Hub is out of reach.
    """
    recorded, pinned_sections = _record_to_continue(flat(config)), {}
    for f in fields(config):
        section = getattr(config, f.name)
        models = [name for name in ("model", "start_from") if hasattr(section, name)]
        changes = {name: _pinned_model(getattr(section, name), recorded.get(name)) for name in models}
        if isinstance(section, DatasetConfig) and (name := _hub_name(section)):
            if section.data_revision is None and recorded.get("data_dir") == name and recorded.get("data_revision"):
                changes["data_revision"] = recorded["data_revision"]
            else:
                revision = resolve_revision(name, section.data_revision, repo_type="dataset")
                changes["data_revision"] = getattr(revision, "resolved", section.data_revision)
        if changes:
            pinned_sections[f.name] = replace(section, **changes)
    return replace(config, **pinned_sections)


def _record_to_continue(options: dict) -> dict:
    """Return the run.json of a run that is continued, else {}. An evaluation, which has no --resume, always is."""
    record = Path(options["output_dir"] or "", RECORD)
    return json.loads(record.read_text(encoding="utf-8")) if options.get("resume") is not False and record.is_file() else {}


def _pinned_model(name: str | None, recorded: str | None) -> str | None:
    """Return NAME@COMMIT of the record if it is for this name, else at the newest commit."""
    same = name is not None and recorded is not None and not Path(name).exists() and split_revision(recorded)[0] == name
    return recorded if same else pinned(name)


def command_line(config: Any, processes: int = 1, gpu: bool = False) -> str:
    """Return the command that repeats a run, with its model and all options that differ from their defaults."""
    recipe = Path(sys.argv[0]).stem.removeprefix("mscl-")
    words = [f"mscl-{recipe.removesuffix('_model')}"]
    if processes > 1:  # `accelerate launch` starts one process on a CPU
        launcher = ["accelerate", "launch", "--num_processes"] if gpu else ["torchrun", "--nproc_per_node"]
        words = [*launcher, str(processes), f"recipes/{recipe}.py"]
    for section in (getattr(config, f.name) for f in fields(config)):
        words += _flags(section, [name for name in vars(section) if name not in NOT_REPEATED], public)
    return shlex.join(words)


def next_command(command: str, model: Path | str | None, data: DatasetConfig | None = None, split: str | None = None) -> str:
    """Return a command for a model (None = a new one), with the data options that were given as far as the command has them.

    split: to measure on, for mscl-evaluate; None = its default.
    """
    section_cls = DataConfig if command in ("mscl-pretrain", "mscl-finetune") else DatasetConfig
    of_model = {"image_range"} if model is None else {"image_range", "bands"}
    names = [f.name for f in fields(section_cls) if f.name not in of_model]
    start = [] if model is None else ["--model", str(model)]
    end = [] if split is None else ["--split", split]
    if command == "mscl-evaluate" and getattr(data, "tile", None):
        size, overlap = data.tile
        end += ["--mode", "slide", "--window", str(size), "--stride", str(size - overlap)]
    return shlex.join([command, *start, *([] if data is None else _flags(data, names, without_secrets)), *end])


def _flags(section: Any, names: Sequence[str], shown: Callable[[str], str]) -> list[str]:
    """Return the flags of a section's options with these names: of the model, and of others that differ from their defaults."""
    words, default = [], type(section)()
    for name in names:
        value = getattr(section, name)
        # The launcher's settings of this run are not those of the next, so its defaults count.
        if name == "val_split" and section.val_fraction:  # a file in the run's folder, which the fraction makes anew
            continue
        if name != "model" and value == LAUNCHER_DEFAULTS.get(name, getattr(default, name)):
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), *(shown(str(item)) for item in (value if isinstance(value, list) else [value]))]
    return words


def fewer_masks(history: Sequence[dict], stage: dict) -> str | None:
    """Return in words that the last stage of a history read masks of the same data as a stage, and fewer; None where it did not."""
    facts, key = stage["facts"], "images with labels"
    before = history[-1]["facts"] if history else {}
    masks, used = before.get(key), facts.get(key)
    if before.get("data") != facts["data"] or not (isinstance(masks, int) and isinstance(used, int) and 0 < masks < used):
        return None
    return f"trained on {masks} masks of {facts['data']}, and {used} are used now; --train-count {masks} uses as many"


def _hub_name(options: DatasetConfig) -> str | None:
    """Return the name on the Hub of a data set that is read from there, else None."""
    name = options.data_dir or ""
    return name if options.dataset == "hf" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() else None


def _check(record: dict) -> None:
    """Raise the error that writing a model card from this record would raise."""
    for stage in record["stages"]:
        texts = (stage["stage"], stage["command"], *stage["versions"].values(), *stage["facts"], *map(str, stage["facts"].values()))
        texts += tuple(stage.get("warnings", ()))
        "".join((*texts, stage["facts"]["budget"], stage["facts"]["started from"], stage["base_model"] or "", stage["data_set"] or ""))
    for results in record["evaluations"]:
        "".join((results["dataset"], results["split"], results["precision"], *results["per_class_iou"], *(results["score_classes"] or ())))
        "".join(results.get("warnings", ()))
        numbers = [results["num_images"], *(results[key] for key in METRICS), results.get("classes_scored"), results.get("num_classes")]
        for name, iou in results["per_class_iou"].items():
            numbers += [iou, results["per_class_accuracy"][name]]
        sum(number for number in numbers if number is not None)
        [results["inference"][key] for key in ("mode", "window", "base_size", "flip", "scales")]
    "".join((record.get("title") or "", record.get("license") or ""))
