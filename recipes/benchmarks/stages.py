"""One stage of a cell: a run of a recipe in its own folder and its own process.

The process that does the work holds a lock on the stage, which the system frees when the process ends, however it ends. SIGTERM to this
process is SIGTERM to the recipe, also below a launcher: the recipe saves a checkpoint, from which the stage continues the next time.
"""

import contextlib
import fcntl
import functools
import importlib
import json
import multiprocessing
import os
import resource
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
from types import ModuleType

import torch

from mscl_hf import data, evaluation, methods, models, records, sharing, training, transforms
from mscl_hf.cli import as_words, flat, parse
from mscl_hf.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from mscl_hf.records.run_folder import FREE_TO_CHANGE
from mscl_hf.records.versions import commit
from mscl_hf.training.log import read_log

from .common import machine
from .launched import STOPPED, launch

RECIPES = {  # module, configuration
    "pretrain": ("pretrain", PretrainConfig),
    "finetune": ("finetune", FinetuneConfig),
    "evaluate": ("evaluate_model", EvaluateConfig),
}
BUSY = STOPPED  # exit status where another process has the stage: it is not finished either
FORK = multiprocessing.get_context("fork")  # starting Python and its imports would take longer than a short evaluation
# Options that change no figure: paths, and how often something is written. A stage's model counts by the stage that made it.
UNIMPORTANT = (*FREE_TO_CHANGE, "model")
WEIGHTS = ("backbone_weights", "teacher_weights")
PATHS = ("data-dir", "model", "backbone-weights", "teacher-weights")
LIBRARIES = ("torch", "timm", "transformers")
STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Stage:
    """A recipe, its output folder, its other flags, and the stage that has to be finished before it."""

    recipe: str  # a key of RECIPES
    folder: Path
    flags: dict = field(hash=False, compare=False)
    after: "Stage | None" = None
    keep_checkpoints: bool = field(default=False, hash=False, compare=False)

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def record_path(self) -> Path:
        """The record of a finished stage; missing until then."""
        return self.folder.with_name(f"{self.folder.name}.done.json")


# The settings of a stage, and its record


def finished(stage: Stage) -> bool:
    """Whether the stage is done. Raises ValueError where it was done with other settings."""
    if not stage.record_path.is_file():
        return False
    old, new = record(stage).get("settings", {}), settings(stage)
    if old != new:
        changed = ", ".join(sorted(key for key in {*old, *new} if old.get(key) != new.get(key))[:5])
        raise ValueError(f"{stage.folder} was made with other settings ({changed}). Give another --work-dir.")
    return True


def settings(stage: Stage) -> dict:
    """What decides the result of a stage: its options with their defaults, and digests of its file of weights and of the stages before it.

    Raises ValueError for flags that the recipe rejects.
    """
    return _settings(*_identity(stage))


def _identity(stage: Stage) -> tuple:
    return stage.recipe, tuple(as_words(stage.flags)), stage.after and _digest_of(_identity(stage.after))


@functools.cache
def _digest_of(identity: tuple) -> str:
    return blake2b(json.dumps(_settings(*identity), sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _settings(recipe: str, words: tuple[str, ...], digest_before: str | None) -> dict:
    config = parse(RECIPES[recipe][1], "", words)
    if recipe == "pretrain":
        _module(recipe).check_options(config)
        config = _module(recipe).resolved(config)
    options = flat(config)
    options = {name: value for name, value in options.items() if name not in UNIMPORTANT}
    if "learning_rate" in options and options["learning_rate"] is None:
        options["learning_rate"] = config.training.RATES  # so that other defaults are noticed
    options |= {name: _file_digest(options[name]) for name in WEIGHTS if options.get(name)}
    return json.loads(json.dumps(options | ({"model": digest_before} if digest_before else {})))


@functools.cache
def _file_digest(path: str) -> str:
    return blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def without_paths(flags: dict) -> dict:
    """The flags that decide what is computed."""
    return {name: value for name, value in flags.items() if name not in PATHS}


def record(stage: Stage) -> dict:
    """Settings and flags of a finished stage; seconds and peak memory of its last attempt; threads, machine, commits, versions."""
    return json.loads(stage.record_path.read_text())


def run_of(stage: Stage) -> dict:
    """run.json of a stage that was started: the configuration and the commit."""
    return json.loads((stage.folder / "run.json").read_text())


def step_seconds(stage: Stage) -> list[list[float]]:
    """Seconds of each logged training step, a list for each method that the stage trains by; [] where it trains nothing."""
    logs = [read_log(path) for path in sorted(stage.folder.rglob("log.jsonl"))]
    rates = [[row["images_per_second"] for row in rows if "images_per_second" in row] for rows in logs]
    if not any(rates):
        return []
    run = run_of(stage)
    images = run["batch_size"] * run["gradient_accumulation_steps"]
    return [[images / rate for rate in of_log] for of_log in rates]


# The run


def start(stage: Stage, launcher: str | None = None) -> multiprocessing.Process | None:
    """Start the stage in a new process, whose exit status is the recipe's, or BUSY; None where another process has the stage.

    It forks: the calling process must have one thread only, and must not have used CUDA.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(stage) as lock:  # only a test: the new process takes the lock
        if not _take(lock):
            return None
    _import_all(stage.recipe)
    commit()  # cached before the fork: the sources may change until the stage asks
    process = FORK.Process(target=_run_locked, args=(stage, shlex.split(launcher or "")))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the new process has its own handlers, so that it misses no signal
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process


@functools.cache
def _import_all(recipe: str) -> None:
    """Import what a recipe uses, once for all processes that are forked: packages of mscl_hf load their modules on first use."""
    _module(recipe)
    for package in (data, evaluation, methods, models, records, sharing, training, transforms):
        for name in package.__all__:
            getattr(package, name)


def _module(recipe: str) -> ModuleType:
    return importlib.import_module(f"..{RECIPES[recipe][0]}", __package__)


def _script(recipe: str) -> str:
    return str(Path(__file__).resolve().parents[1] / f"{RECIPES[recipe][0]}.py")


def _run_locked(stage: Stage, launcher: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # replaces the handlers of the benchmark
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    with _lock_file(stage) as lock:
        if not _take(lock):
            sys.exit(BUSY)
        if not finished(stage):  # another process may have finished it in the meantime
            _run(stage, launcher, lock.fileno())


def _run(stage: Stage, launcher: list[str], lock: int) -> None:
    words = [*as_words(stage.flags), "--output-dir", str(stage.folder)]
    if stage.recipe == "evaluate":
        shutil.rmtree(stage.folder, ignore_errors=True)  # of an attempt that was killed
    else:
        words += ["--resume", "true"]
    started = time.perf_counter()
    with stage.log.open("a") as log:
        command = [_script(stage.recipe), *words]
        status = launch([*launcher, *command], log, lock) if launcher else _run_here(stage.recipe, command, log.fileno())
    if status:
        sys.exit(1 if status == BUSY else status)
    _write_record(stage, time.perf_counter() - started)
    if not stage.keep_checkpoints:  # those of hundreds of cells would fill the disk
        shutil.rmtree(stage.folder / "checkpoints", ignore_errors=True)


def _run_here(recipe: str, command: list[str], log: int) -> int | str | None:
    """Run a recipe's main in this process, which must do nothing else; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    sys.argv = command
    try:
        _module(recipe).main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return 1 if isinstance(stop.code, str) else stop.code
    return 0


def _write_record(stage: Stage, seconds: float) -> None:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    content = {"flags": without_paths(stage.flags), "settings": settings(stage), "seconds": round(seconds, 1), "peak_mb": peak // 1024}
    content |= {"threads": torch.get_num_threads(), "commit": _commits(stage), "machine": machine()}
    content |= {name: version(name) for name in LIBRARIES}
    temporary = stage.record_path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(stage.record_path)


def _commits(stage: Stage) -> str:
    """The commits of all attempts, in order; "-" for sources without one."""
    run = run_of(stage)
    earlier = [change["commit"][0] for change in run.get("changed", ()) if "commit" in change]
    return " ".join(dict.fromkeys(name or "-" for name in [*earlier, run["commit"]]))


# Locks


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this context with the same folder."""
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
