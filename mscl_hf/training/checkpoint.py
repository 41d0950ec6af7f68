"""The content of a checkpoint: method and optimizer as safetensors, state.json; no pickles. Its folder: checkpoint_folder.py.

With `--shard` each process writes its own shard, by PyTorch's distributed checkpoint. Both formats can be read by any number of
processes, sharded or not.
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
    """Write checkpoints/step-N with the method (network, heads, state) and the optimizer, and delete all but the newest `keep`.

    Called on all processes. notes: further values for `load` to return. Raises OSError where it cannot be written; older checkpoints stay.
    """
    folder = folder_of(out, step)
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    state = notes | {"step": step, "optimizer": _flatten(optimizer)[1]}
    try:
        together(accelerator, lambda: make_new(folder), "saving")
        if is_sharded(method):
            rank = accelerator.process_index
            shard = together(accelerator, lambda: _write_shard(temporary, method, optimizer, rank), "saving", on_all=True)
            files = {name: fingerprint for files in gather_object([shard]) for name, fingerprint in files.items()}
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
    """Write the whole state, by one process, and return the fingerprints of its files."""
    for name, state in (("method", method.state_dict()), ("optimizer", _flatten(optimizer)[0])):
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        save_file(copies, temporary / f"{name}.safetensors")
    return fingerprints(temporary.iterdir())


def _write_shard(temporary: Path, method: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, dict]:
    """Write the shard of this process, and return the fingerprints of its files."""
    # Tensors that are not sharded, such as batch statistics, are the main process's; PyTorch would take them from any process.
    tensors = method.state_dict() | _flatten(optimizer)[0]
    state = {name: value.detach().contiguous() for name, value in tensors.items() if rank == 0 or isinstance(value, DTensor)}
    try:
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    except dcp.CheckpointException as error:  # a BaseException with the failures of all processes
        raise OSError(_failures(error)) from error
    return fingerprints(temporary.glob(f"shard-{rank + 1:05d}-*"))


def _publish(temporary: Path, folder: Path, state: dict, files: dict[str, dict]) -> None:
    write_json(temporary / STATE, state)
    publish(temporary, folder, files | fingerprints([temporary / STATE]))


def _failures(error: dcp.CheckpointException) -> str:
    return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())


def _explain(error: Exception, folder: Path, out: Path) -> str:
    reason = " ".join(str(error).split())[:300]
    free, checkpoints = shutil.disk_usage(out).free / 1e9, complete(out)
    newest = f"the newest checkpoint is {checkpoints[-1].name}" if checkpoints else "there is no checkpoint yet"
    return f"cannot save {folder} ({reason}; {free:.1f} GB free); {newest}. Correct the cause, and continue with --resume."


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Load a checkpoint into the method and the optimizer, each process its part; return the step and the notes.

    Raises ValueError where names or shapes differ, as with another method.
    """
    state = json.loads((folder / STATE).read_text())
    optimizer_state = load_method(folder, method, optimizer)
    per_parameter: dict[int, dict] = {int(index): dict(values) for index, values in state["optimizer"].items()}
    for name, tensor in optimizer_state.items():
        index, key = name.split(".", 1)
        per_parameter.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def load_method(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Load a checkpoint into the method, and return the tensors of the optimizer's state, {} without an optimizer. Raises ValueError."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    method_state, stored = method.state_dict(), reader.read_metadata().state_dict_metadata
    missing = [name for name in method_state if name not in stored]
    if missing:
        raise ValueError(f"the checkpoint {folder} lacks {missing[0]}; expected one of the same method and network")
    optimizer_state = {}
    if optimizer is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer_state = {name: _empty_state(name, entry, parameters) for name, entry in stored.items() if name not in method_state}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads by itself
        try:
            dcp.load({**method_state, **optimizer_state}, storage_reader=reader, no_dist=True)
        except dcp.CheckpointException as error:
            raise ValueError(f"the checkpoint {folder} has another network ({_failures(error)[:300]})") from error
    return optimizer_state


def _empty_state(name: str, entry, parameters: list[nn.Parameter]) -> Tensor:
    """Return an empty tensor for "<index of a parameter>.<key>" of the optimizer's state.

    It has the memory format and sharding of the parameter where the shapes agree, as fused optimizers require.
    """
    index = name.split(".", 1)[0]
    if not index.isdigit() or int(index) >= len(parameters):
        raise ValueError(f"the checkpoint holds {name}, which the method lacks; expected one of the same method and network")
    parameter, dtype = parameters[int(index)], entry.properties.dtype
    return torch.empty_like(parameter, dtype=dtype) if entry.size == parameter.shape else torch.empty(entry.size, dtype=dtype)


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Return the optimizer's state by "<index of a parameter>.<key>": tensors, and all other values by index."""
    tensors, scalars = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, scalars


def check_space(out: Path, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Raise ValueError where the disk cannot hold the checkpoints that are kept, and the next one beside them."""
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    size = sum(value.numel() * value.element_size() for value in method.state_dict().values()) + moments * trained
    required, free = size * max(1, keep + 1 - len(complete(out))), shutil.disk_usage(out).free
    if free < required:
        raise ValueError(
            f"{out} has {free / 1e9:.2f} GB free and the checkpoints need {required / 1e9:.2f} GB. Free some, or give another --output-dir."
        )
