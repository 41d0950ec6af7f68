"""Agreement of the processes of a run, so that none waits for one that has failed."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator

Result = TypeVar("Result")


def any_process(accelerator: Accelerator, condition: bool) -> bool:
    """Return on all processes whether the condition holds on any."""
    return bool(sums_over(accelerator, int(condition))[0])


def sums_over(accelerator: Accelerator, *numbers: int) -> list[int]:
    """Return the sums of several numbers over all processes, by one exchange."""
    if accelerator.num_processes == 1:
        return list(numbers)
    return accelerator.reduce(torch.tensor(numbers, device=accelerator.device), "sum").tolist()


def together(accelerator: Accelerator, work: Callable[[], Result], what: str, on_all: bool = False) -> Result | None:
    """Return work(), called on the main process (on_all: on each). If it fails on one process, all raise.

    A process that fails raises its own error, the others an OSError that names `what` was done.
    """
    failure = result = None
    try:
        if on_all or accelerator.is_main_process:
            result = work()
    except Exception as error:  # of any type: the other processes must learn of it
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or OSError(f"{what} failed on another process; see the message there")
    return result
