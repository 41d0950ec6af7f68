"""Settings of `accelerate launch`, from its flags or its configuration file, which are the defaults of the recipes' flags."""

import os
from functools import cache
from pathlib import Path

import psutil

from ..messages import flag

DEFAULTS = {"mixed_precision": "no", "gradient_accumulation_steps": 1}  # without settings of the launcher
PRECISIONS = ("no", "bf16", "fp16")
PRECISION, STEPS = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
LAUNCHERS = ("accelerate-launch", "accelerate.commands.launch")


def launched_precision() -> str:
    """Return the launcher's --mixed_precision, else "no". Raises ValueError for one that is not supported."""
    launched = os.environ.get(PRECISION, DEFAULTS["mixed_precision"]).lower()
    if launched not in PRECISIONS:
        expected = f"one of {', '.join(PRECISIONS)}. Use bf16, or leave it out"
        raise ValueError(f"--mixed_precision of the launcher is {launched}; expected {expected}.")
    return launched


def launched_accumulation() -> int:
    """Return the launcher's --gradient_accumulation_steps, else 1. Raises ValueError for other words, such as DeepSpeed's auto."""
    value = os.environ.get(STEPS) or _accumulation_of_parent() or DEFAULTS["gradient_accumulation_steps"]
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{STEPS} is {value}; expected a number. Unset it, and give --gradient-accumulation-steps.") from None


def check_launched(name: str, value: str | int, launched: str | int) -> None:
    """Raise ValueError for a value of an option that differs from the launcher's, unless that is its default."""
    if launched not in (DEFAULTS[name], value):
        raise ValueError(f"{flag(name)} is {value} and --{name} of the launcher is {launched}. Give one of them only.")


def lacks_processes(count: int) -> bool:
    """Return whether `accelerate launch` started one process instead of several, as it does without a GPU.

    count: the number of processes. In this case the launcher sets MASTER_ADDR, and not WORLD_SIZE.
    """
    return count == 1 and PRECISION in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ


@cache
def _accumulation_of_parent() -> str | None:
    """Return the flag of the `accelerate launch` that started this process; the launcher itself passes it on with DeepSpeed only."""
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent process, or one that cannot be read
        return None
    names = [Path(word).name.removesuffix(".exe") for word in words]
    for i in range(len(words)):
        skipped = 2 if names[i : i + 2] == ["accelerate", "launch"] else 1 if names[i] in LAUNCHERS else 0
        if skipped:
            from accelerate.commands.launch import launch_command_parser  # here: it takes seconds

            return launch_command_parser().parse_args(words[i + skipped :]).gradient_accumulation_steps
    return None
