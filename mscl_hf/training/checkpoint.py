"""What is in a checkpoint of a run: safetensors and JSON; nothing is ever unpickled. The folders themselves: manifest.py.

The method, the optimizer, and state.json. Where the state is sharded (`--shard`) each process writes a file of its own, by PyTorch's
distributed checkpoint; either kind is read by any number of processes, sharded or not.
"""

import json
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..records.files import UNFINISHED, write_json
from .checkpoint_folder import STATE, complete, fingerprints, folder_of, make_new, publish, rotate
from .distributed import together
from .sharding import is_sharded


def save(
    out: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int, notes: dict, accelerator: Accelerator
) -> Path:
    """Publish checkpoints/step-N with the method (network, heads, state) and the optimizer; keep the newest `keep`.

    A call of all processes. notes: what else `load` shall return. Raises OSError when it cannot be written; what was published stays.
    """
    folder = folder_of(out, step)
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    state = notes | {"step": step, "optimizer": _flatten(optimizer)[1]}
    try:
        together(accelerator, lambda: make_new(folder), "saving")
        if is_sharded(method):
            rank = accelerator.process_index
            own = together(accelerator, lambda: _write_shard(temporary, method, optimizer, rank), "saving", on_all=True)
            files = {name: found for of_one in gather_object([own]) for name, found in of_one.items()}
        else:
            files = together(accelerator, lambda: _write_tensors(temporary, method, optimizer), "saving")
        together(accelerator, lambda: _publish(temporary, folder, state, files), "saving")
    except Exception as error:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(_explain(error, folder, out)) from error
        raise
    if accelerator.is_main_process:
        rotate(out, keep)
    return folder


def _write_tensors(temporary: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """All of it, by one process; returns the fingerprints of its files."""
    for name, state in (("method", method.state_dict()), ("optimizer", _flatten(optimizer)[0])):
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        save_file(copies, temporary / f"{name}.safetensors")
    return fingerprints(temporary.iterdir())


def _write_shard(temporary: Path, method: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, dict]:
    """What this process holds; returns the fingerprints of its files."""
    # What is not sharded, such as batch statistics, is the main process's; PyTorch would take it from whichever has least to write.
    of_all = method.state_dict() | _flatten(optimizer)[0]
    state = {name: value.detach().contiguous() for name, value in of_all.items() if rank == 0 or isinstance(value, DTensor)}
    try:
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    except dcp.CheckpointException as error:  # no Exception, but the failures of all processes
        raise OSError(_failures(error)) from error
    return fingerprints(temporary.glob(f"shard-{rank + 1:05d}-*"))


def _publish(temporary: Path, folder: Path, state: dict, files: dict[str, dict]) -> None:
    write_json(temporary / STATE, state)
    publish(temporary, folder, files | fingerprints([temporary / STATE]))


def _failures(error: dcp.CheckpointException) -> str:
    return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())


def _explain(error: Exception, folder: Path, out: Path) -> str:
    reason = " ".join(str(error).split())[:300]
    free = shutil.disk_usage(out).free / 1e9
    there = complete(out)
    left = f"the newest one is {there[-1].name}" if there else "there is none yet"
    return f"cannot save {folder} ({reason}; {free:.1f} GB are free there); {left}: correct that, and go on with --resume"


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what `save` wrote, in place, each process what it holds; returns the step and the notes.

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
        try:
            dcp.load({**of_method, **of_optimizer}, storage_reader=reader, no_dist=True)
        except dcp.CheckpointException as error:
            raise ValueError(f"the checkpoint {folder} is one of another network ({_failures(error)[:300]})") from error
    per_parameter: dict[int, dict] = {int(index): dict(values) for index, values in state["optimizer"].items()}
    for name, tensor in of_optimizer.items():
        index, key = name.split(".", 1)
        per_parameter.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


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
