"""Settings of `accelerate launch`, by its flags or its configuration file, that recipes take where their own flag is not given."""

import os
from functools import cache
from pathlib import Path

import psutil
from accelerate.commands.launch import launch_command_parser

DEFAULTS = {"precision": "fp32", "gradient_accumulation_steps": 1}  # where the launcher says nothing
PRECISIONS = ("fp32", "bf16")
PRECISION, STEPS = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def launched_precision() -> str:
    """The launcher's --mixed_precision; "fp32" for "no", which it sets where it was told nothing."""
    word = os.environ.get(PRECISION, "no").lower()
    return DEFAULTS["precision"] if word == "no" else word


def launched_accumulation() -> int:
    """The launcher's --gradient_accumulation_steps; ValueError where that is no number, such as DeepSpeed's auto."""
    word = os.environ.get(STEPS) or _accumulation_of_parent() or DEFAULTS["gradient_accumulation_steps"]
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{STEPS} is {word}; expected a number. Unset it, and give --gradient-accumulation-steps.") from None


def check_precision(precision: str) -> None:
    """ValueError for a precision that is not supported, and for one that contradicts the launcher's, other than its default "no"."""
    launched = launched_precision()
    if launched not in PRECISIONS:
        raise ValueError(f"--mixed_precision of the launcher is {launched}; expected no or bf16. Use bf16, or leave it out.")
    if launched not in (DEFAULTS["precision"], precision):
        raise ValueError(f"--precision is {precision} and --mixed_precision of the launcher is {launched}; give one of them only")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision is {precision!r}; choose one of fp32, bf16; bf16 has the range of fp32 and needs no loss scaling")


def check_accumulation(gradient_accumulation_steps: int) -> None:
    """ValueError for a number that contradicts the launcher's, other than its default 1."""
    steps = launched_accumulation()
    if steps not in (DEFAULTS["gradient_accumulation_steps"], gradient_accumulation_steps):
        raise ValueError(
            f"--gradient-accumulation-steps is {gradient_accumulation_steps} and --gradient_accumulation_steps of the launcher is {steps}; "
            "give one of them only"
        )


def lacks_processes(count: int) -> bool:
    """Whether `accelerate launch` was told to start several processes and started one, as it does without a GPU.

    count: how many processes take part. The launcher then sets MASTER_ADDR, and no WORLD_SIZE.
    """
    return count == 1 and PRECISION in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ


@cache
def _accumulation_of_parent() -> str | None:
    """The flag of the `accelerate launch` that started this process, which passes it on with DeepSpeed only."""
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or one that cannot be read
        return None
    names = [Path(word).name.removesuffix(".exe") for word in words]
    for i in range(len(words)):
        if names[i : i + 2] == ["accelerate", "launch"]:
            return launch_command_parser().parse_args(words[i + 2 :]).gradient_accumulation_steps
        if names[i] in ("accelerate-launch", "accelerate.commands.launch"):
            return launch_command_parser().parse_args(words[i + 1 :]).gradient_accumulation_steps
    return None
