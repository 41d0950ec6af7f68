"""Checkpoints of a run: safetensors and JSON, published whole by rename; nothing is ever unpickled.

A run folder holds run.json (the configuration), log.jsonl, checkpoints/step-00000100/..., and, when done, the model in Hub format.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

# Settings that may change between a run and its continuation without changing what is computed.
FREE_TO_CHANGE = (
    "resume", "config", "output_dir", "data_dir", "num_workers", "save_every_steps", "keep_checkpoints", "log_every_steps",
    "health_every_steps", "report_to", "push_to_hub", "private", "revision", "license",
)  # fmt: skip
# What may change in the middle of a run, since it is the way out of a run that stopped: the record keeps both values.
MAY_CHANGE = ("commit", "lr", "clip_norm", "tau_g", "tau_l", "tau_p", "temperature", "dense_temperature", "max_bad_images")


def open_run(out: Path, configuration: dict, resume: bool, accelerator: Accelerator) -> None:
    """Claim an output folder for a run, or check that the run in it is this one.

    A folder with nothing but the record of a run that ended before its first step (a wrong path, say) may be claimed again.
    Raises ValueError for a folder that holds another run or anything else, or a run with another configuration, and OSError
    for one that cannot be written.
    """
    record = out / "run.json"
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    started = bool(there - {record.name})
    if started and record.name not in there:
        raise ValueError(f"{out} is not empty and holds no run of ours; give a new or empty --output-dir")
    if started and not resume:
        raise ValueError(f"{out} already holds a run; give another --output-dir, or --resume to continue it")
    if started:
        changed = _check_same(out, json.loads(record.read_text()), configuration)
        if changed and accelerator.is_main_process:
            write_json(record, changed)
        return
    accelerator.wait_for_everyone()  # no process may look after the main one has written
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(record, configuration)
        except OSError as error:
            raise OSError(f"cannot write to {out} ({error.strerror}); give another --output-dir") from error


def _check_same(out: Path, old: dict, new: dict) -> dict | None:
    """The record to write when a setting changed that may; ValueError when another one did."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    history = old.pop("changed", [])
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE]
    allowed = {key: [old.get(key), new.get(key)] for key in changed if key in MAY_CHANGE}
    if len(allowed) < len(changed):
        differences = ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed if key != "commit")
        raise ValueError(f"{out} holds a run with other settings ({differences}); resume with the old ones, or give another --output-dir")
    return {**old, **{key: new[key] for key in allowed}, "changed": [*history, allowed]} if allowed else None


def write_json(path: Path, content) -> None:
    """Write through a temporary file, so that a reader never sees half of it."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save(out: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int, pending: list[dict] = ()) -> Path:
    """Publish checkpoints/step-N with the method (network, heads, state) and the optimizer; keep the newest `keep`.

    pending: rows that the next line of the log will average over.
    """
    folder = out / "checkpoints" / f"step-{step:08d}"
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in method.state_dict().items()}
    save_file(state, temporary / "method.safetensors")
    tensors, scalars = _flatten(optimizer)
    save_file(tensors, temporary / "optimizer.safetensors")
    write_json(temporary / "state.json", {"step": step, "optimizer": scalars, "pending": list(pending)})
    for file in temporary.iterdir():
        _sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    _sync(folder.parent)
    for old in complete(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def complete(out: Path) -> list[Path]:
    """The published checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore what `save` wrote, in place; returns the step and the pending rows of the log."""
    state = json.loads((folder / "state.json").read_text())
    method.load_state_dict(load_file(folder / "method.safetensors"))
    per_parameter: dict[int, dict] = {int(index): dict(values) for index, values in state["optimizer"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # in its memory format: fused optimizers go through both as they lie in memory
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
        per_parameter.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["pending"]


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    tensors, scalars = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous().clone()
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, scalars
