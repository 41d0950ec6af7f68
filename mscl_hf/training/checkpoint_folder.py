"""Folders of checkpoints, whatever is in them: published whole by rename with a manifest, verified when they are read, rotated.

checkpoints/step-00000100/manifest.json, written last, has the size and SHA-256 of every other file.
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
from .distributed import sum_over, together

MANIFEST, STATE = "manifest.json", "state.json"
NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written; the message names the file and what is wrong with it."""


def folder_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def make_new(folder: Path) -> Path:
    """An empty hidden folder for what `publish` will give the name of `folder`."""
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def fingerprints(files: Iterable[Path]) -> dict[str, dict]:
    """Name -> size and SHA-256, of files that are flushed to the disk first."""
    files = sorted(files)
    for file in files:
        _sync(file)
    return {file.name: found for file, found in zip(files, map_files(_fingerprint, files))}


def publish(temporary: Path, folder: Path, files: dict[str, dict]) -> None:
    """Write the manifest of these files, as whoever wrote them saw them, and give the folder its name. OSError where one is not there."""
    write_json(temporary / MANIFEST, {"files": files})
    wrong = _missing(temporary)  # with several machines, this one may not see yet what another has written
    if wrong is not None:
        raise OSError(wrong)
    _sync(temporary)
    temporary.rename(folder)
    _sync(folder.parent)


def rotate(out: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints. Each is hidden first: what a killed process leaves of it is swept."""
    for old in complete(out)[:-keep]:
        hidden = old.with_name(f"{UNFINISHED}old-{old.name}")
        try:
            old.rename(hidden)
        except OSError:
            continue  # one that cannot be deleted is no reason to lose a run
        shutil.rmtree(hidden, ignore_errors=True)


def published(out: Path) -> list[Path]:
    """All of them, whatever became of them since, oldest first."""
    found = {int(name[1]): path for path in (out / "checkpoints").glob("step-*") if (name := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def complete(out: Path) -> list[Path]:
    """The published checkpoints of a run whose files are there in their sizes, oldest first."""
    return [folder for folder in published(out) if not _missing(folder)]


def step_of(folder: Path) -> int:
    return int(NAME.fullmatch(folder.name)[1])


def verify(folder: Path) -> None:
    """Raise DamagedCheckpoint unless every file can be read and is the one that was written, to the last bit."""
    wrong = _missing(folder)
    if wrong is None:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        try:
            found = map_files(_fingerprint, [folder / name for name in files])
            changed = [name for name, fingerprint in zip(files, found) if fingerprint != files[name]]
            wrong = f"{changed[0]} is not the file that was written (SHA-256)" if changed else None
        except OSError as error:  # the disk itself
            wrong = f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    if wrong is not None:
        raise DamagedCheckpoint(f"the checkpoint {folder} is damaged: {wrong}")


def newest(out: Path, accelerator: Accelerator) -> Path | None:
    """The newest whole checkpoint, the same on all processes; each damaged one that is passed over is named. None before the first one.

    Those passed over are set aside as damaged-step-N, to be counted no more. Raises ValueError where all are damaged: to start anew in
    silence would throw the run away.
    """
    step = together(accelerator, lambda: _newest_step(out, accelerator.print), f"looking for a checkpoint in {out}")
    step = sum_over(accelerator, step or 0)
    return folder_of(out, step) if step else None


def _newest_step(out: Path, log: Callable[[str], None]) -> int:
    """0 = there is none. Leaves of a process that was killed while it saved or rotated are swept."""
    for left in (out / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    there, damaged = published(out), []
    for folder in reversed(there):
        try:
            verify(folder)
        except DamagedCheckpoint as error:
            log(f"warning: {error}; the one before is taken")
            damaged.append(folder)
            continue
        for other in damaged:  # not before a whole one is found: a run whose checkpoints are all damaged must not look like a new one
            aside = other.with_name(f"damaged-{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            log(f"{other.name} is set aside as {aside}; delete it when you have looked at it")
        return step_of(folder)
    if there:
        raise ValueError(f"all {len(there)} checkpoints of {out} are damaged; restore one from a copy, or give another --output-dir")
    return 0


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


def map_files(work: Callable[[Path], object], files: Iterable[Path]) -> list:
    """work(file) of each, several at a time: reading and hashing wait for no Python."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, files))


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def completed_steps(out: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    return step_of(found[-1]) if (found := complete(out)) else 0
