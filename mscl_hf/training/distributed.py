"""What the processes of a run must agree on, so that none waits for another one that has given up."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator

Result = TypeVar("Result")


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True on all processes if it is on one."""
    return bool(sum_over(accelerator, int(flag)))


def sum_over(accelerator: Accelerator, number: int) -> int:
    """Of all processes, the same on each; of a number that only the main process knows, its own where the others give 0."""
    return sums_over(accelerator, number)[0]


def sums_over(accelerator: Accelerator, *numbers: int) -> list[int]:
    """The same for several numbers, at the price of one."""
    if accelerator.num_processes == 1:
        return list(numbers)
    return accelerator.reduce(torch.tensor(numbers, device=accelerator.device), "sum").tolist()


def together(accelerator: Accelerator, work: Callable[[], Result], what: str, on_all: bool = False) -> Result | None:
    """work() on the main process (on_all: on each), after which all go on or all raise: the one that failed its own error, the others
    OSError(what, and where to look)."""
    failure = result = None
    try:
        if on_all or accelerator.is_main_process:
            result = work()
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or OSError(f"{what} failed on another process; see the message there")
    return result
