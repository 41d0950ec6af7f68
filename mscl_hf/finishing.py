"""What follows on a model that is written: steps that may fail without costing the model or each other."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .report import write_report
from .stopping import children_die_in_silence

STEPS_FAILED = 77  # exit status of a run whose model is whole, but of which a later step failed


class Finishing:
    """`with finishing.step("scoring"): ...` logs what fails and goes on; `exit_if_failed` ends with STEPS_FAILED.

    out: the folder of the model, into which reports of crashes go. log: called with sentences.
    """

    def __init__(self, out: Path, log: Callable[[str], None] = print):
        self.out, self.log, self.failed = out, log, []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of whatever kind: the model is written, and the next step may work
            self.failed.append(name)
            self.log(f"{name} failed ({type(error).__name__}: {error}); the model in {self.out} is whole")
            if not isinstance(error, (ValueError, OSError)) and not getattr(error, "reported", False):
                with children_die_in_silence():
                    write_report(self.out, error, step=None, samples=[])

    def exit_if_failed(self) -> None:
        if self.failed:
            self.log(f"failed: {', '.join(self.failed)}; the same command with --resume repeats what is missing")
            sys.exit(STEPS_FAILED)
