"""Checkpoints of a run: safetensors and JSON, published whole by rename and verified when they are read; nothing is ever unpickled.

checkpoints/step-00000100/ holds the method, the optimizer, state.json, and manifest.json, written last, with the size and SHA-256 of every
other file. Where the state is sharded (`--shard`) each process writes a file of its own, by PyTorch's distributed checkpoint; either kind
is read by any number of processes, sharded or not.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .processes import sum_over, together
from .run_folder import UNFINISHED, write_json
from .sharding import is_sharded

MANIFEST, STATE = "manifest.json", "state.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written; the message names the file and what is wrong with it."""


def save(
    out: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int, pending: Sequence[dict], accelerator: Accelerator
) -> Path:
    """Publish checkpoints/step-N with the method (network, heads, state) and the optimizer; keep the newest `keep`.

    A call of all processes. pending: rows that the next line of the log will average over. Raises OSError when it cannot be written; what
    was published stays.
    """
    folder = out / "checkpoints" / f"step-{step:08d}"
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    sharded = is_sharded(method)
    try:
        together(accelerator, lambda: _make_new(temporary), "saving")
        together(accelerator, lambda: _write_tensors(temporary, method, optimizer, sharded), "saving", on_all=sharded)
        together(accelerator, lambda: _publish(temporary, folder, step, optimizer, pending), "saving")
    except Exception as error:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(_explain(error, folder, out)) from error
        raise
    if accelerator.is_main_process:
        for old in complete(out)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)  # one that cannot be deleted is no reason to lose a run
    return folder


def _make_new(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _write_tensors(temporary: Path, method: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool) -> None:
    of_optimizer = _flatten(optimizer)[0]
    if sharded:
        # What is not sharded, such as batch statistics, is the main process's; PyTorch would take it from whichever has least to write.
        of_all, main = method.state_dict() | of_optimizer, torch.distributed.get_rank() == 0
        state = {name: value.detach().contiguous() for name, value in of_all.items() if main or isinstance(value, DTensor)}
        try:
            dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True))
        except dcp.CheckpointException as error:  # no Exception, but the failures of all processes
            raise OSError("; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())) from error
        return
    for name, state in (("method", method.state_dict()), ("optimizer", of_optimizer)):
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        save_file(copies, temporary / f"{name}.safetensors")


def _publish(temporary: Path, folder: Path, step: int, optimizer: torch.optim.Optimizer, pending: Sequence[dict]) -> None:
    write_json(temporary / STATE, {"step": step, "optimizer": _flatten(optimizer)[1], "pending": list(pending)})
    files = sorted(temporary.iterdir())
    for file in files:
        _sync(file)
    write_json(temporary / MANIFEST, {"files": {file.name: digest for file, digest in zip(files, map_files(_fingerprint, files))}})
    _sync(temporary)
    aside = folder.with_name(f"{UNFINISHED}damaged-{folder.name}")
    if folder.exists():  # what stood there was found damaged, or this step would not have been trained again
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _explain(error: Exception, folder: Path, out: Path) -> str:
    reason = " ".join(str(error).split())[:300]
    free = shutil.disk_usage(out).free / 1e9
    there = complete(out)
    left = f"the newest one is {there[-1].name}" if there else "there is none yet"
    return f"cannot save {folder} ({reason}; {free:.1f} GB are free there); {left}: mend that, and go on with --resume"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def map_files(work: Callable[[Path], object], files: Sequence[Path]) -> list:
    """work(file) of each, several at a time: reading and hashing wait for no Python."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, files))


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def complete(out: Path) -> list[Path]:
    """The published checkpoints of a run whose files are there in their sizes, oldest first."""
    return [folder for folder in published(out) if not _missing(folder)]


def published(out: Path) -> list[Path]:
    """All of them, whatever became of them since."""
    return sorted((out / "checkpoints").glob("step-*"))


def _missing(folder: Path) -> str | None:
    """What can be seen without reading the files; None when nothing is wrong."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        sizes = {name: files[name]["bytes"] for name in (STATE, *files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} has {path.stat().st_size if path.is_file() else 'no'} bytes, not {size}"
    return None


def verify(folder: Path) -> None:
    """Raise DamagedCheckpoint unless every file is the one that was written, to the last bit."""
    wrong = _missing(folder)
    if wrong is None:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        found = map_files(_fingerprint, [folder / name for name in files])
        changed = [name for name, fingerprint in zip(files, found) if fingerprint != files[name]]
        wrong = f"{changed[0]} is not the file that was written (SHA-256)" if changed else None
    if wrong is not None:
        raise DamagedCheckpoint(f"the checkpoint {folder} is damaged: {wrong}")


def newest(out: Path, accelerator: Accelerator) -> Path | None:
    """The newest whole checkpoint, the same on all processes; each damaged one that is passed over is named. None before the first one.

    Raises ValueError where all are damaged: to start anew in silence would throw the run away.
    """
    step = together(accelerator, lambda: _newest_step(out, accelerator.print), f"looking for a checkpoint in {out}")
    step = sum_over(accelerator, step or 0)
    return out / "checkpoints" / f"step-{step:08d}" if step else None


def _newest_step(out: Path, say: Callable[[str], None]) -> int:
    """0 = there is none. Leaves of a process that was killed while it saved are swept."""
    for left in (out / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    there = published(out)
    for folder in reversed(there):
        try:
            verify(folder)
            return int(folder.name.removeprefix("step-"))
        except DamagedCheckpoint as error:
            say(f"warning: {error}; the one before is taken")
    if there:
        raise ValueError(f"all {len(there)} checkpoints of {out} are damaged; restore one from a copy, or give another --output-dir")
    return 0


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore what `save` wrote, in place, each process what it holds; returns the step and the pending rows of the log.

    Raises ValueError where the names or shapes are those of another method.
    """
    state = json.loads((folder / STATE).read_text())
    reader = dcp.HuggingFaceStorageReader(str(folder))
    of_method, stored = method.state_dict(), reader.read_metadata().state_dict_metadata
    absent = [name for name in of_method if name not in stored]
    if absent:
        raise ValueError(f"the checkpoint {folder} lacks {absent[0]}: it is one of another method or network")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_optimizer = {name: _room_for(name, entry, parameters) for name, entry in stored.items() if name not in of_method}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads for itself
        dcp.load({**of_method, **of_optimizer}, storage_reader=reader, no_dist=True)
    per_parameter: dict[int, dict] = {int(index): dict(values) for index, values in state["optimizer"].items()}
    for name, tensor in of_optimizer.items():
        index, key = name.split(".", 1)
        per_parameter.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["pending"]


def _room_for(name: str, entry, parameters: list[nn.Parameter]) -> Tensor:
    """An empty tensor for a state of the optimizer, "<index of its parameter>.<key>": in the parameter's memory format and sharding where
    it has its shape, since fused optimizers go through both as they lie in memory."""
    index = name.split(".", 1)[0]
    if not index.isdigit() or int(index) >= len(parameters):
        raise ValueError(f"the checkpoint holds {name}, which this method does not have: it is one of another method or network")
    parameter, dtype = parameters[int(index)], entry.properties.dtype
    return torch.empty_like(parameter, dtype=dtype) if entry.size == parameter.shape else torch.empty(entry.size, dtype=dtype)


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, dict]]:
    tensors, scalars = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, scalars


def check_space(out: Path, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """ValueError before the first step where the disk cannot hold the checkpoints that will lie there at once: those kept, and the next."""
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    size = sum(value.numel() * value.element_size() for value in method.state_dict().values()) + moments * trained
    wanted, free = size * max(1, keep + 1 - len(complete(out))), shutil.disk_usage(out).free
    if free < wanted:
        raise ValueError(
            f"{out} has {free / 1e9:.2f} GB free and the checkpoints need {wanted / 1e9:.2f} GB; make room, or give another --output-dir"
        )
