"""The folder of a run: run.json (the configuration), log.jsonl, checkpoints/, in the end the model; one run at a time writes in it."""

import errno
import hashlib
import json
import os
import warnings
from pathlib import Path

from accelerate import Accelerator

from .files import UNFINISHED, write_json

try:
    import fcntl
except ImportError:  # Windows has none; there two runs in one folder are not noticed
    fcntl = None

# Settings that may change between a run and its continuation without changing what is computed.
FREE_TO_CHANGE = (
    "resume", "config", "output_dir", "data_dir", "image_dir", "mask_dir", "num_workers", "shard", "save_steps", "save_total_limit",
    "logging_steps", "health_steps", "report_to", "push_to_hub", "private", "revision", "license",
)  # fmt: skip
# What may change in the middle of a run, since it is the way out of a run that stopped: the record keeps both values.
MAY_CHANGE = ("commit", "lr", "max_grad_norm", "global_temperature", "local_temperature", "pixel_temperature", "temperature", "dense_temperature", "max_bad_images")
# Options that name files: these count by what they hold, wherever they lie. Images are compared with those of the checkpoint, in train.py.
MODELS = ("model", "start_from")
FILES = (*MODELS, "backbone_weights", "classes")
COMMANDS = {"method": "mscl-pretrain", "loss": "mscl-finetune", "split": "mscl-evaluate"}  # by an option that no other command has
SHOWN_AT_MOST = 6  # settings that differ
RECORD, LOCK = "run.json", ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # as of Lustre without flock, NFS without its lock daemon
_locks: dict[Path, object] = {}  # open files of this process, whose locks end with it, however it ends


def open_run(out: Path, configuration: dict, resume: bool, accelerator: Accelerator) -> None:
    """Claim an output folder for a run, or check that the run in it is this one; a lock keeps a second run out while this one lives.

    A folder with nothing but the record of a run that ended before its first step (a wrong path, say) may be claimed again.
    Raises ValueError for a folder that holds another run or anything else, a run with another configuration, or one that goes on at this
    moment, and OSError for one that cannot be written.
    """
    record = out / RECORD
    there = {path.name for path in out.iterdir() if not path.name.startswith(UNFINISHED)} - {LOCK} if out.is_dir() else set()
    started = bool(there - {RECORD})
    if started and RECORD not in there:
        raise ValueError(f"{out} is not empty and holds no run of ours; give a new or empty --output-dir")
    old = json.loads(record.read_text()) if started else {}
    if started and _command_of(old) != _command_of(configuration):
        raise ValueError(f"{out} holds a run of {_command_of(old) or 'another command'}; give another --output-dir")
    if started and not resume:
        raise ValueError(f"{out} already holds a run; give another --output-dir, or --resume to continue it")
    if contents := _contents(configuration):
        configuration = configuration | {"contents": contents}
    wanted = _check_same(out, old, configuration) if started else configuration
    accelerator.wait_for_everyone()  # no process may look after the main one has written
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            _lock(out)
            write_json(record, wanted)
        except OSError as error:
            raise OSError(f"cannot write to {out} ({error.strerror}); give another --output-dir") from error


def _lock(out: Path) -> None:
    """A POSIX lock: the system frees it when this process ends, and workers that are forked off do not inherit it."""
    path = (out / LOCK).resolve()
    if fcntl is None or path in _locks:
        return
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = path.read_text().strip()
        file.close()
        if error.errno in NO_LOCKS:
            warnings.warn(f"no locks where {out} lies ({error.strerror}): a second run in it would not be noticed", stacklevel=2)
            return
        if error.errno not in (errno.EAGAIN, errno.EACCES):  # by which POSIX says that another process has it
            raise
        raise ValueError(f"another run is at work in {out} ({owner}); wait for it, stop it, or give another --output-dir") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _locks[path] = file


def _contents(configuration: dict) -> dict[str, str]:
    """The SHA-256 of what each of the options FILES names: a file, or the weights of a model folder."""
    found = {}
    for key in FILES:
        value = configuration.get(key)
        name = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not name or not isinstance(name, str):  # not given, or a list of names
            continue
        path = Path(name)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if key in MODELS and path.is_dir() else []
        if files:
            digest = hashlib.sha256()
            for name in files:
                with name.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            found[key] = digest.hexdigest()
    return found


def _check_same(out: Path, old: dict, new: dict) -> dict:
    """The record to write, which keeps both values of a setting that matters and may change; ValueError when another one did."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    history = old.pop("changed", [])
    changed = [key for key in sorted({*old, *new} - {"contents"}) if key not in FREE_TO_CHANGE and _differs(key, old, new)]
    allowed = {key: [old.get(key), new.get(key)] for key in changed if key in MAY_CHANGE}
    if len(allowed) < len(changed):
        shown = [key for key in changed if key != "commit"]
        if shown == ["max_steps"] and new["max_steps"] > old["max_steps"]:
            raise ValueError(_longer(out, old, new))
        differences = ", ".join(_difference(key, old, new) for key in shown[:SHOWN_AT_MOST])
        differences += f" and {len(shown) - SHOWN_AT_MOST} more" if len(shown) > SHOWN_AT_MOST else ""
        raise ValueError(f"{out} holds a run with other settings ({differences}); resume with the old ones, or give another --output-dir")
    history += [allowed] if allowed else []
    return new | ({"changed": history} if history else {})


def _command_of(configuration: dict) -> str | None:
    return next((command for option, command in COMMANDS.items() if option in configuration), None)


def _longer(out: Path, old: dict, new: dict) -> str:
    """The message for a run that is to get more steps: its learning rates were set for those that it has."""
    option = "--start-from" if _command_of(new) == "mscl-pretrain" else "--model"
    return (
        f"--max-steps is {new['max_steps']} and {out} holds a run of {old['max_steps']} steps, which cannot be extended, since its "
        f"schedule ends there. To train on from its model, give {option} {out} and another --output-dir"
    )


def _differs(key: str, old: dict, new: dict) -> bool:
    contents = [record.get("contents", {}).get(key) for record in (old, new)]
    if all(contents):
        return contents[0] != contents[1]
    values = [record.get(key) for record in (old, new)]
    if key == "unlabelled" and not {"none", "rest", None} & set(values):  # two folders of images
        return False
    return values[0] != values[1]


def _difference(key: str, old: dict, new: dict) -> str:
    if old.get(key) == new.get(key):
        return f"{key}: {new.get(key)!r} does not hold what it held"
    return f"{key}: {old.get(key)!r} -> {new.get(key)!r}" + ", which holds something else" * (
        key in FILES and None not in (old.get(key), new.get(key))
    )
