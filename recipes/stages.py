"""One stage of a cell, a run of a recipe in a folder of its own: whoever locks it first runs it, and what was killed goes on.

The lock belongs to the process that does the work, so it is gone when that process is, whatever happened to the one that started it.
"""

import contextlib
import fcntl
import functools
import importlib.util
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

RECIPES = Path(__file__).resolve().parent
BUSY = 75  # another process has the stage; the number is that of a stopped run, which is not over either
# Stages are forked from a process that has imported everything once: starting Python takes longer than a short evaluation.
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Stage:
    """A recipe, its flags but for the folder, and the stage that has to be done before."""

    recipe: str
    folder: Path
    flags: dict = field(hash=False, compare=False)
    after: "Stage | None" = None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def proof(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.done.json")


def finished(stage: Stage) -> bool:
    """Whether the stage is done; ValueError when it was done with other settings."""
    if not stage.proof.is_file():
        return False
    there, wanted = record(stage)["flags"], json.loads(json.dumps(_lasting(stage.flags)))
    if there != wanted:
        changed = ", ".join(sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key)))
        raise ValueError(f"{stage.folder} was made with other settings ({changed}); give another --work-dir")
    return True


def record(stage: Stage) -> dict:
    """Of a finished stage: flags, seconds of the attempt that finished it, threads."""
    return json.loads(stage.proof.read_text())


def start(stage: Stage, launcher: str | None = None) -> multiprocessing.Process | None:
    """Run it in another process, whose exit status is the recipe's, or BUSY; None when someone is at it already.

    To be called from a process with one thread only, and without CUDA: it forks.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(stage) as lock:  # only a look: the new process takes it for itself
        if not _take(lock):
            return None
    if not launcher:
        _recipe(stage.recipe)
    process = FORK.Process(target=_locked, args=(stage, shlex.split(launcher or "")))
    process.start()
    return process


@functools.cache
def _recipe(name: str):
    """The module of a recipe, by its path: there is a library with the name of one."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lasting(flags: dict) -> dict:
    """The flags that say what is computed, not where."""
    return {key: value for key, value in flags.items() if key not in ("data-dir", "model", "backbone-weights")}


def _locked(stage: Stage, launcher: list[str]) -> None:
    with _lock_file(stage) as lock:
        if not _take(lock):
            sys.exit(BUSY)
        if not finished(stage):  # by someone else, since it was looked at
            _run(stage, launcher, lock.fileno())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_file(stage: Stage):
    return stage.folder.with_name(f"{stage.folder.name}.lock").open("w")


def _take(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(stage: Stage, launcher: list[str], lock: int) -> None:
    words = [word for key, value in stage.flags.items() for word in as_flag(key, value)]
    words += ["--output-dir", str(stage.folder)]
    if stage.recipe == "evaluate":
        shutil.rmtree(stage.folder, ignore_errors=True)  # what a killed one left
    else:
        words += ["--resume", "true"]
    started = time.perf_counter()
    with stage.log.open("a") as log:
        if launcher:
            command = [*launcher, str(RECIPES / f"{stage.recipe}.py"), *words]
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock], check=False).returncode
        else:
            status = _here(stage.recipe, words, log.fileno())
    if status:
        sys.exit(1 if status == BUSY else status)
    done = {"flags": _lasting(stage.flags), "seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}
    done["machine"] = ", ".join([machine(), *(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))])
    temporary = stage.proof.with_suffix(".tmp")
    temporary.write_text(json.dumps(done, indent=2))
    temporary.replace(stage.proof)
    shutil.rmtree(stage.folder / "checkpoints", ignore_errors=True)  # the model is there; a grid of hundreds would fill the disk


def _here(recipe: str, words: list[str], log: int) -> int | str | None:
    """Run a recipe's main in this process, which does nothing else."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    sys.argv = [str(RECIPES / f"{recipe}.py"), *words]
    try:
        _recipe(recipe).main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return 1 if isinstance(stop.code, str) else stop.code
    return 0


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


def as_flag(key: str, value) -> list[str]:
    flag = f"--{key}"
    if isinstance(value, bool):
        return [flag, str(value).lower()]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]
