"""Folders of checkpoints: written under a temporary name, renamed when complete, verified when read, and rotated.

checkpoints/step-00000100/manifest.json, written last, holds the size and SHA-256 of every other file.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accelerate import Accelerator

from ..records.files import UNFINISHED, write_json
from .distributed import sums_over, together

MANIFEST, STATE = "manifest.json", "state.json"
NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(ValueError):
    """A checkpoint differs from what was written; the message names the file and the difference."""


def folder_of(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return out / "checkpoints" / f"step-{step:08d}"


def make_new(folder: Path) -> Path:
    """Return a new hidden folder, which `publish` renames to `folder`."""
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def fingerprints(files: Iterable[Path]) -> dict[str, dict]:
    """Flush files to the disk, and return size and SHA-256 by name."""
    files = sorted(files)
    for file in files:
        _sync(file)
    return {file.name: fingerprint for file, fingerprint in zip(files, _in_threads(files))}


def publish(temporary: Path, folder: Path, files: dict[str, dict]) -> None:
    """Write the manifest and rename the folder. files: fingerprints by name, from the processes that wrote them.

    Raises OSError where a file is missing.
    """
    write_json(temporary / MANIFEST, {"files": files})
    fault = _size_fault(temporary)  # files of another machine may not be visible yet
    if fault is not None:
        raise OSError(fault)
    _sync(temporary)
    temporary.rename(folder)
    _sync(folder.parent)


def rotate(out: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints and the best steps that they name.

    Each is renamed first, so that a killed process leaves none half-deleted.
    """
    checkpoints = complete(out)
    best_steps = {_best(folder).get("step") for folder in checkpoints[-keep:]}
    for old in checkpoints[:-keep]:
        if step_of(old) in best_steps:
            continue
        hidden = old.with_name(f"{UNFINISHED}old-{old.name}")
        try:
            old.rename(hidden)
        except OSError:
            continue  # a checkpoint that cannot be deleted must not stop training
        shutil.rmtree(hidden, ignore_errors=True)


def published(out: Path) -> list[Path]:
    """Return all checkpoints, also damaged ones, oldest first."""
    folders = {int(name[1]): path for path in (out / "checkpoints").glob("step-*") if (name := NAME.fullmatch(path.name))}
    return [folders[step] for step in sorted(folders)]


def complete(out: Path) -> list[Path]:
    """Return the checkpoints whose files all exist with the right size, oldest first."""
    return [folder for folder in published(out) if not _size_fault(folder)]


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint."""
    return int(NAME.fullmatch(folder.name)[1])


def verify(folder: Path) -> None:
    """Raise DamagedCheckpoint where a file cannot be read, or differs from the one that was written."""
    fault = _size_fault(folder)
    if fault is None:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        try:
            current = _in_threads([folder / name for name in files])
            changed = [name for name, fingerprint in zip(files, current) if fingerprint != files[name]]
            fault = f"{changed[0]} is not the file that was written (SHA-256)" if changed else None
        except OSError as error:
            fault = f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    if fault is not None:
        raise DamagedCheckpoint(f"the checkpoint {folder} is damaged: {fault}")


def newest(out: Path, accelerator: Accelerator) -> Path | None:
    """Return the newest undamaged checkpoint, the same on all processes; None where there is no checkpoint.

    Damaged ones are logged, and renamed to damaged-step-N. Raises ValueError where all are damaged, instead of starting from the beginning.
    """
    step = together(accelerator, lambda: _newest_step(out, accelerator.print), f"looking for a checkpoint in {out}")
    (step,) = sums_over(accelerator, step or 0)
    return folder_of(out, step) if step else None


def _newest_step(out: Path, log: Callable[[str], None]) -> int:
    """Return the step of the newest undamaged checkpoint, 0 without one; delete unfinished ones of a killed process."""
    for unfinished in (out / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    checkpoints, damaged = published(out), []
    for folder in reversed(checkpoints):
        try:
            verify(folder)
        except DamagedCheckpoint as error:
            log(f"warning: {error}; the one before it is used")
            damaged.append(folder)
            continue
        for other in damaged:  # only now: a run whose checkpoints are all damaged must not look like a new one
            renamed = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(renamed, ignore_errors=True)
            other.rename(renamed)
            log(f"{other.name} is renamed to {renamed}; it is not used any more")
        return step_of(folder)
    if checkpoints:
        raise ValueError(f"all {len(checkpoints)} checkpoints of {out} are damaged. Restore one from a copy, or give another --output-dir.")
    return 0


def _size_fault(folder: Path) -> str | None:
    """Return the first fault that shows in the manifest and the sizes of the files, None without one."""
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


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _in_threads(files: Iterable[Path]) -> list[dict]:
    """Return the fingerprint of each file: reading and hashing release Python's lock."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_fingerprint, files))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_complete(out: Path, max_steps: int) -> bool:
    """Return whether the newest checkpoint is the last one: of max_steps, or of a run that stopped early."""
    checkpoints = complete(out)
    return bool(checkpoints) and (step_of(checkpoints[-1]) == max_steps or _best(checkpoints[-1]).get("stops", False))


def _best(folder: Path) -> dict:
    """Return what a checkpoint holds of the best step, {} where best steps are not kept."""
    try:
        return json.loads((folder / STATE).read_text()).get("best", {})
    except (OSError, ValueError, AttributeError):  # damaged, which is reported when it is loaded
        return {}


def completed_steps(out: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one."""
    return step_of(checkpoints[-1]) if (checkpoints := complete(out)) else 0
