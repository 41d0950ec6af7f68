"""The folder of a run: run.json (its configuration), log.jsonl, checkpoints/, and the model in the end. One run at a time writes in it."""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..messages import flag
from .files import UNFINISHED, write_json

try:
    import fcntl
except ImportError:  # Windows has none: there a second run in a folder is not noticed
    fcntl = None

# Options that may change on --resume, since they change no number (batches of prediction: no more than rounding).
FREE_TO_CHANGE = (
    "resume", "config", "output_dir", "data_dir", "image_dir", "mask_dir", "image_cache_gb", "dataloader_num_workers", "shard",
    "save_steps", "save_total_limit", "logging_steps", "health_steps", "report_to", "push_to_hub", "private", "revision", "license",
    "overlays", "confidence", "probabilities", "max_pixels", "eval_batch_size", "eval_threads",
)  # fmt: skip
# Options that may change on --resume to rescue a run that stopped; run.json keeps both values.
MAY_CHANGE = (
    "commit", "learning_rate", "max_grad_norm", "global_temperature", "local_temperature", "pixel_temperature", "temperature",
    "dense_temperature", "max_bad_images",
)  # fmt: skip
# Options that name files are compared by their contents. Images are compared with those of the checkpoint, in training/progress.py.
MODELS = ("model", "start_from")
FILES = (*MODELS, "backbone_weights", "teacher_weights", "classes", "class_colors", "class_weights", "annotations", "val_split")
NOT_OPTIONS = ("commit", "contents", "changed")  # other entries of run.json
COMMANDS = {"method": "mscl-pretrain", "loss": "mscl-finetune", "split": "mscl-evaluate", "overlays": "mscl-predict"}  # by its own option
WITHOUT_RESUME = ("mscl-evaluate", "mscl-predict")  # the same command again continues
MAX_SHOWN = 6  # differing options in a message
RECORD, CONFIG, LOCK = "run.json", "config.yaml", ".lock"
VAL_SPLIT = "val_split.txt"  # the names of the images that --val-fraction holds out, one a line
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # as on Lustre without flock, NFS without its lock daemon
_locks: dict[Path, object] = {}  # open files; the system frees their locks when the process ends


def open_run(
    out: Path, configuration: dict, resume: bool, accelerator: Accelerator, default_words: Mapping[str, str] | None = None
) -> dict | None:
    """Claim an output folder: lock it and write run.json. Return the earlier run.json if a run is continued, else None.

    default_words: {option: what messages show where it is None}.
    A folder that holds only the records of a run that stopped before its first step (a wrong path, for example) is claimed anew.
    Raises ValueError where the folder holds other files or another run, the configuration differs, or a run is writing in it, and
    OSError where it cannot be written.
    """
    record = out / RECORD
    files = {path.name for path in out.iterdir() if not path.name.startswith(UNFINISHED)} - {LOCK} if out.is_dir() else set()
    started = bool(files - {RECORD, CONFIG, VAL_SPLIT})
    if started and RECORD not in files:
        raise ValueError(f"{out} is not empty and holds no run of mscl_hf; give a new or empty --output-dir")
    earlier = json.loads(record.read_text()) if started else None
    if started and _command_of(earlier) != _command_of(configuration):
        raise ValueError(f"{out} holds a run of {_command_of(earlier) or 'another command'}; give another --output-dir")
    if started and not resume:
        raise ValueError(f"{out} already holds a run; give another --output-dir, or --resume to continue it")
    if contents := _contents(configuration):
        configuration = configuration | {"contents": contents}
    content = _merged(out, earlier, configuration, default_words or {}) if started else configuration
    accelerator.wait_for_everyone()  # the main process writes only when all have read
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            _lock(out)
            if not started:
                (out / VAL_SPLIT).unlink(missing_ok=True)  # maybe of other data
            write_json(record, content)
        except OSError as error:
            raise OSError(f"cannot write to {out} ({error.strerror}); give another --output-dir") from error
    return earlier


def _lock(out: Path) -> None:
    """Take a POSIX lock. The system frees it when this process ends, and forked workers do not inherit it."""
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
            warnings.warn(f"{out} cannot be locked ({error.strerror}): a second run in it would not be noticed", stacklevel=2)
            return
        if error.errno not in (errno.EAGAIN, errno.EACCES):  # POSIX's answers where another process holds the lock
            raise
        raise ValueError(f"another run is at work in {out} ({owner}); wait for it, stop it, or give another --output-dir") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _locks[path] = file


def _contents(configuration: dict) -> dict[str, str]:
    """Return the SHA-256 of the files that the options FILES name: one file, or the weights of a model folder."""
    digests = {}
    for option in FILES:
        value = configuration.get(option)
        name = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not name or not isinstance(name, str):  # not set, or a list of names
            continue
        path = Path(name)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if option in MODELS and path.is_dir() else []
        if files:
            digest = hashlib.sha256()
            for file in files:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            digests[option] = digest.hexdigest()
    return digests


def _merged(out: Path, old: dict, new: dict, default_words: Mapping[str, str]) -> dict:
    """Return the new run.json, with the history of the options MAY_CHANGE. Raises ValueError where any other option differs."""
    old, new, resolved = json.loads(json.dumps(old)), json.loads(json.dumps(new)), resolved_options(out)
    # The run's own config.yaml holds, for options that were left open, the values that they got.
    new |= {option: old[option] for option in new.keys() & old.keys() & resolved.keys() if new[option] == resolved[option]}
    history = old.pop("changed", [])
    if _is_of_another_version(old, new):
        raise ValueError(
            f"{out} holds a run of another version of mscl_hf; continue it with that version, or give another --output-dir"
        )
    changed = [option for option in sorted({*old, *new} - {"contents"}) if option not in FREE_TO_CHANGE and _differs(option, old, new)]
    allowed = {option: [old.get(option), new.get(option)] for option in changed if option in MAY_CHANGE}
    if len(allowed) < len(changed):
        shown = [option for option in changed if option != "commit"]
        if shown == ["max_steps"] and new["max_steps"] > old["max_steps"]:
            raise ValueError(_cannot_extend(out, old, new))
        differences = ", ".join(_difference(option, old, new, default_words) for option in shown[:MAX_SHOWN])
        differences += f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
        advice = "" if _command_of(new) in WITHOUT_RESUME else "resume with the old ones, or "
        raise ValueError(f"{out} holds a run with other settings ({differences}); {advice}give another --output-dir")
    history += [allowed] if allowed else []
    return new | ({"changed": history} if history else {})


def resolved_options(out: Path) -> dict:
    """Return the options in the config.yaml of a run; {} without one."""
    try:
        return json.loads(json.dumps(yaml.safe_load((out / CONFIG).read_text(encoding="utf-8")) or {}))
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # removed or edited: then the options have to be given as before
        return {}


def _is_of_another_version(old: dict, new: dict) -> bool:
    """Whether one configuration has an option that the other lacks, and sets it."""
    only_one = (old.keys() ^ new.keys()) - {*NOT_OPTIONS, *FREE_TO_CHANGE}
    return any({**old, **new}[option] is not None for option in only_one)


def _command_of(configuration: dict) -> str | None:
    return next((command for option, command in COMMANDS.items() if option in configuration), None)


def _cannot_extend(out: Path, old: dict, new: dict) -> str:
    """Return the message for a larger --max-steps: the learning rates were scheduled for the old number."""
    option = "--start-from" if _command_of(new) == "mscl-pretrain" else "--model"
    return (
        f"--max-steps is {new['max_steps']} and {out} holds a run of {old['max_steps']} steps, which cannot be extended, since its "
        f"schedule ends there. To train on from its model, give {option} {out} and another --output-dir"
    )


def _differs(option: str, old: dict, new: dict) -> bool:
    contents = [record.get("contents", {}).get(option) for record in (old, new)]
    if all(contents):
        return contents[0] != contents[1]
    values = [record.get(option) for record in (old, new)]
    if option == "unlabelled" and not {"none", "rest", None} & set(values):  # two folders of images, which are compared in training/loop.py
        return False
    return values[0] != values[1]


def _difference(option: str, old: dict, new: dict, default_words: Mapping[str, str]) -> str:
    values = [old.get(option), new.get(option)]
    if values[0] == values[1]:
        return f"{flag(option)}: the contents of {values[1]!r} have changed"
    before, after = (default_words.get(option, "not set") if value is None else _shown(value) for value in values)
    return f"{flag(option)}: {before} -> {after}" + ", with other contents" * (option in FILES and None not in values)


def _shown(value: Any) -> str:
    """Return a value as a flag takes it."""
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
