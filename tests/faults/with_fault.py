"""Run a recipe with a planted fault, for tests.

    python tests/faults/with_fault.py FAULT FIRED RECIPE FLAGS...

FIRED: a file that is written when the fault happens, for the test to check. FAULT: a name of FAULTS and its arguments, by colons.
"""

import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harness
import torch

from mscl_hf.data.training_data import TrainingData
from mscl_hf.evaluation import evaluate
from mscl_hf.methods.base import Method
from mscl_hf.training import checkpoint, checkpoint_folder, loop
from mscl_hf.training.progress import Progress

# The functions that change the disk while a checkpoint is saved.
BOUNDARIES = ((checkpoint, "make_new"), (checkpoint, "save_file"), (checkpoint, "write_json"), (checkpoint_folder, "write_json"),
              (checkpoint_folder, "_sync"), (Path, "rename"), (checkpoint_folder.shutil, "rmtree"))  # fmt: skip


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def after(place, name: str, action: Callable[[], None]) -> None:
    """Call action() after each call of a function."""
    old = getattr(place, name)

    def inner(*args, **kwargs):
        result = old(*args, **kwargs)
        action()
        return result

    mock.patch.object(place, name, inner).start()


def before_step(action: Callable[[int], None]) -> None:
    """Call action(step) before the forward passes of each step, the first being 1."""
    old = loop.set_step

    def inner(step, *args):
        action(step + 1)
        return old(step, *args)

    mock.patch.object(loop, "set_step", inner).start()


def die_in_save(fired: Path, save_number: int, number: int) -> None:
    """Send SIGKILL after the number-th call of BOUNDARIES in one save; both are counted from 1."""
    saves, passed = [0], [0]
    old = checkpoint.save

    def save(*args):
        saves[0] += 1
        return old(*args)

    def boundary() -> None:
        if saves[0] == save_number:
            passed[0] += 1
            if passed[0] == number:
                fired.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    mock.patch.object(checkpoint, "save", save).start()
    for place, name in BOUNDARIES:
        after(place, name, boundary)


def file_limit(fired: Path, size: int) -> None:
    """Limit files to `size` bytes from the second save on, as on a full disk: the system itself raises the error."""
    saves = [0]
    old = checkpoint.save

    def save(*args):
        saves[0] += 1
        if saves[0] == 2:
            fired.touch()
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            return old(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    mock.patch.object(checkpoint, "save", save).start()


def disk_full(fired: Path, number: int) -> None:
    """Raise ENOSPC in the number-th call of fsync only, where a full disk may first be noticed."""
    calls = [0]
    old = os.fsync

    def fsync(handle):
        calls[0] += 1
        if calls[0] == number:
            fired.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return old(handle)

    mock.patch.object(os, "fsync", fsync).start()


def nan(fired: Path, on: int, at: int, what: str = "loss") -> None:
    """Make the loss, or the gradient only, NaN on one process at one step."""
    forward, current = Method.__call__, [0]
    before_step(lambda step: current.__setitem__(0, step))

    def broken(self, **batch):
        terms = forward(self, **batch)
        if current[0] == at and rank() == on:
            fired.touch()
            if what == "loss":
                return terms | {"loss": terms["loss"] * float("nan")}
            terms["loss"].register_hook(lambda gradient: gradient * float("nan"))
        return terms

    mock.patch.object(Method, "__call__", broken).start()


def leave(fired: Path, on: int, at: int, status: int = 9) -> None:
    """End one process at one step, as when the system kills it."""

    def end(step: int) -> None:
        if step == at and rank() == on:
            fired.touch()
            os._exit(status)

    before_step(end)


def raise_in_save(fired: Path) -> None:
    """Raise an error on the main process only, while the others wait for it."""

    def broken(*_):
        fired.touch()
        raise RuntimeError("the planted fault")

    mock.patch.object(checkpoint, "_publish", broken).start()


def raise_in_evaluation(fired: Path, on: int) -> None:
    old = evaluate.Predictor.ids

    def broken(self, *args):
        if rank() == on:
            fired.touch()
            raise RuntimeError("the planted fault")
        return old(self, *args)

    mock.patch.object(evaluate.Predictor, "ids", broken).start()


def signal_at(fired: Path, on: int, at: int, number: int = int(signal.SIGTERM), times: int = 1) -> None:
    """Send one process a signal before a step, and before `times` - 1 following ones."""

    def send(step: int) -> None:
        if at <= step < at + times and rank() == on:
            fired.touch()
            os.kill(os.getpid(), number)

    before_step(send)


def signal_in_evaluation(fired: Path, on: int, number: int = int(signal.SIGTERM)) -> None:
    old = evaluate.Predictor.ids

    def send(self, *args):
        if rank() == on:
            fired.touch()
            os.kill(os.getpid(), number)
        return old(self, *args)

    mock.patch.object(evaluate.Predictor, "ids", send).start()


def worker_killed(fired: Path, at: int) -> None:
    """Kill a data worker, as the system does when memory runs out."""

    def kill(step: int) -> None:
        if step == at:
            import psutil

            children = psutil.Process().children()
            children[0].kill()
            fired.touch()
            time.sleep(0.2)

    before_step(kill)


def bad_images(fired: Path, at: int) -> None:
    """Report an unreadable file on each process, in two steps."""
    old = TrainingData.batches

    def batches(self, first, *args, **more):
        for step, batch in enumerate(old(self, first, *args, **more), first + 1):
            if step in (at, at + 1):
                fired.touch()
                batch["bad"].append(f"{rank()}.png cannot be read")
            yield batch

    mock.patch.object(TrainingData, "batches", batches).start()


def loader_fails(fired: Path, at: int) -> None:
    """Raise an error of ours while the batch of one step is made."""
    old = TrainingData.batches

    def batches(self, first, *args, **more):
        for step, batch in enumerate(old(self, first, *args, **more), first + 1):
            if step == at:
                fired.touch()
                raise RuntimeError("the planted fault")
            yield batch

    mock.patch.object(TrainingData, "batches", batches).start()


def out_of_memory(fired: Path) -> None:
    """Raise an out-of-memory error in the first forward pass."""

    def full(*_, **__):
        fired.touch()
        raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    mock.patch.object(Method, "__call__", full).start()


def record(fired: Path) -> None:
    """No fault: write the samples and the loss of each step, a line for each, into FIRED.RANK."""
    old = Progress.add

    def inner(self, row):
        line = {"step": self.steps_done + 1, "names": self.current["samples"], "loss": row["loss"]}
        with Path(f"{fired}.{rank()}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        old(self, row)

    mock.patch.object(Progress, "add", inner).start()


FAULTS = {fault.__name__: fault for fault in (
    die_in_save, file_limit, disk_full, nan, leave, raise_in_save, raise_in_evaluation, signal_at, signal_in_evaluation, worker_killed,
    bad_images, loader_fails, out_of_memory, record,
)}  # fmt: skip


def plant(spec: str, fired: Path) -> None:
    """Plant faults. spec: a name of FAULTS and its arguments, such as "nan:1:4"; several joined by "+"; "none" for no fault."""
    for part in spec.split("+") if spec != "none" else ():
        name, *numbers = part.split(":")
        FAULTS[name](fired, *(int(n) if n.isdigit() else n for n in numbers))


def run(spec: str, fired: Path, recipe: str, flags: list[str]) -> None:
    torch.use_deterministic_algorithms(True)
    plant(spec, fired)
    sys.argv = [recipe, *flags]
    harness.load_recipe(recipe).main()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
