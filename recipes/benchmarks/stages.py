"""One stage of a cell, a run of a recipe in a folder of its own: whoever locks it first runs it, and what was killed goes on.

The lock belongs to the process that does the work, so it is gone when that process is, whatever happened to the one that started it.
SIGTERM to that process is SIGTERM to the recipe, below a launcher too: a checkpoint is saved, and the stage goes on another time.
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
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import torch
from launched import STOPPED, launch

from mscl_hf.cli import flat, parse
from mscl_hf.records.run_folder import FREE_TO_CHANGE
from mscl_hf.records.versions import commit

RECIPES = Path(__file__).resolve().parent
BUSY = STOPPED  # another process has the stage, which is not over either
# Stages are forked from a process that has imported everything once: starting Python takes longer than a short evaluation.
FORK = multiprocessing.get_context("fork")
# Options that say where things lie, and how often something is written. The model that a stage goes on from is the stage before: not
# where it lies counts, but what made it.
PLACES = (*FREE_TO_CHANGE, "model", "image_cache_gb")
LIBRARIES = ("torch", "timm", "transformers")
STOPPING = (signal.SIGTERM, signal.SIGINT)


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
    there, wanted = record(stage).get("settings", {}), settings(stage)
    if there != wanted:
        changed = ", ".join(sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))[:5])
        raise ValueError(f"{stage.folder} was made with other settings ({changed}); give another --work-dir")
    return True


def settings(stage: Stage) -> dict:
    """What decides the result of a stage: its options, defaults among them, the content of weights from a file, and the same of the stages
    before it, as a digest. ValueError for flags that the recipe would refuse."""
    return _settings(*_identity(stage))


def _identity(stage: Stage) -> tuple:
    return stage.recipe, tuple(_words(stage)), stage.after and _digest_of(_identity(stage.after))


@functools.cache
def _digest_of(identity: tuple) -> str:
    return blake2b(json.dumps(_settings(*identity), sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _settings(recipe: str, words: tuple[str, ...], before: str | None) -> dict:
    options = parse(_recipe(recipe).KINDS, "", words)
    known = _recipe(recipe).resolve(options) if recipe == "pretrain" else flat(*options)
    weights = known.get("backbone_weights")
    lasting = {name: value for name, value in known.items() if name not in PLACES}
    lasting |= {"backbone_weights": _digest(weights)} if weights else {}
    return json.loads(json.dumps(lasting | ({"model": before} if before else {})))


@functools.cache
def _digest(path: str) -> str:
    return blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def record(stage: Stage) -> dict:
    """Of a finished stage: settings and flags, seconds of the attempt that finished it, threads, machine, commits, versions."""
    return json.loads(stage.proof.read_text())


def start(stage: Stage, launcher: str | None = None) -> multiprocessing.Process | None:
    """Run it in another process, whose exit status is the recipe's, or BUSY; None when someone is at it already.

    To be called from a process with one thread only, and without CUDA: it forks.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(stage) as lock:  # only a look: the new process takes it for itself
        if not _take(lock):
            return None
    _recipe(stage.recipe)  # imported once, for all that are forked
    commit()  # of what was imported, whatever becomes of the sources until a stage asks
    process = FORK.Process(target=_locked, args=(stage, shlex.split(launcher or "")))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the new process minds them: it must not miss one
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@functools.cache
def _recipe(name: str):
    """The module of a recipe, by its path: there is a library with the name of one."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lasting(flags: dict) -> dict:
    """The flags that say what is computed, not where."""
    return {key: value for key, value in flags.items() if key not in ("data-dir", "model", "backbone-weights")}


def _locked(stage: Stage, launcher: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the benchmark does about it is not for its stages
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
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


def _words(stage: Stage) -> list[str]:
    return [word for key, value in stage.flags.items() for word in as_flag(key, value)]


def _run(stage: Stage, launcher: list[str], lock: int) -> None:
    words = [*_words(stage), "--output-dir", str(stage.folder)]
    if stage.recipe == "evaluate":
        shutil.rmtree(stage.folder, ignore_errors=True)  # what a killed one left
    else:
        words += ["--resume", "true"]
    started = time.perf_counter()
    with stage.log.open("a") as log:
        if launcher:
            status = launch([*launcher, str(RECIPES / f"{stage.recipe}.py"), *words], log, lock)
        else:
            status = _here(stage.recipe, words, log.fileno())
    if status:
        sys.exit(1 if status == BUSY else status)
    done = {"flags": lasting(stage.flags), "settings": settings(stage), "seconds": round(time.perf_counter() - started, 1)}
    done |= {"threads": torch.get_num_threads(), "commit": _commits(stage), **{name: version(name) for name in LIBRARIES}}
    done["machine"] = ", ".join([machine(), *(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))])
    temporary = stage.proof.with_suffix(".tmp")
    temporary.write_text(json.dumps(done, indent=2))
    temporary.replace(stage.proof)
    shutil.rmtree(stage.folder / "checkpoints", ignore_errors=True)  # the model is there; a grid of hundreds would fill the disk


def _commits(stage: Stage) -> str:
    """Of the sources that ran it; of several, where it was stopped and went on with others."""
    run = json.loads((stage.folder / "run.json").read_text())
    before = [change["commit"][0] for change in run.get("changed", ()) if "commit" in change]
    return " ".join(dict.fromkeys(found or "-" for found in [*before, run["commit"]]))


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
