"""Steps after the model is written. A failure is logged; the other steps still run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .crash_report import report_crash

STEPS_FAILED = 77  # exit status of a run whose model is complete, but of which a later step failed
NEEDED_ON_HUB = ("scoring", "model card")


class Finishing:
    """`with finishing.step("scoring"): ...` logs what fails and goes on; `exit_if_failed` ends with STEPS_FAILED.

    out: the folder of the model, into which reports of crashes go. Every process prints its own failures, which others may not have.
    """

    def __init__(self, out: Path, is_main_process: bool = True):
        self.out, self.is_main_process, self.failed = out, is_main_process, []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any type: the model is written, and the next step may work
            self.failed.append(name)
            print(f"{name} failed ({type(error).__name__}: {error}); the model in {self.out} is complete", flush=True)
            report_crash(self.out, error)

    def require_for_push(self) -> None:
        """Raise ValueError where a step failed without which a model is not published."""
        failed = [name for name in NEEDED_ON_HUB if name in self.failed]
        if failed:
            raise ValueError(f"{' and '.join(failed)} failed, and a model is not pushed without its card and its scores")

    def exit_if_failed(self) -> None:
        """End with STEPS_FAILED, on the main process alone: a launcher stops the others as soon as one ends with an error."""
        if self.failed and self.is_main_process:
            print(f"failed: {', '.join(self.failed)}; the same command with --resume runs the failed steps again", flush=True)
            sys.exit(STEPS_FAILED)
