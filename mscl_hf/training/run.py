"""A run of a recipe: its processes, its output folder, and the steps after training, which may fail."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ..cli import flat
from ..config.fields import default_words
from ..data.layouts import remembered_splits
from ..records.files import write_json
from ..records.run_folder import RECORD, open_run
from ..records.versions import commit
from .crash_report import report_crash, reporting
from .setup import make_accelerator

STEPS_FAILED = 77  # exit status of a run with a complete model, where a later step failed


@dataclass
class Run:
    """The output folder, the processes, and the names of the steps after training that failed on this process."""

    out: Path
    accelerator: Accelerator
    failed: list[str] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.accelerator.is_main_process

    def log(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text)

    def warn(self, sentences: Sequence[str]) -> None:
        """Print warnings on the main process."""
        for sentence in sentences:
            self.log(f"warning: {sentence}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run a step after the model is written: a failure is printed, on whichever process, and the next steps still run."""
        try:
            yield
        except Exception as error:  # of any type: the next step may work
            self.failed.append(name)
            print(f"{name} failed ({type(error).__name__}: {error}); the model in {self.out} is complete", flush=True)
            report_crash(self.out, error)

    def exit_if_failed(self) -> None:
        """Exit with STEPS_FAILED, on the main process only, since a launcher stops the others once one of them fails."""
        if self.failed and self.is_main:
            print(f"failed: {', '.join(self.failed)}; the same command with --resume runs the failed steps again", flush=True)
            sys.exit(STEPS_FAILED)


@contextmanager
def start_run(config: Any, resume: bool) -> Iterator[Run]:
    """Set all seeds, start the processes and lock the output folder; a crash inside the context leaves a report in it.

    config: the configuration of a recipe. resume: whether the folder may hold a run with the same configuration.
    Raises ValueError where it holds anything else.
    The record of an earlier run is restored where this one fails before its first checkpoint, such as for other images.
    """
    options = flat(config)
    set_seed(options.get("seed", 0))
    trackers, trains_later = options.get("report_to", ()), options.get("freeze_steps", 0) > 0
    accelerator = make_accelerator(options["mixed_precision"], trackers, options["output_dir"], trains_later)
    out = Path(options["output_dir"])
    earlier = open_run(out, options | {"commit": commit()}, resume, accelerator, default_words(config))
    saved = _checkpoints(out)
    try:
        with reporting(out), remembered_splits():
            yield Run(out, accelerator)
    except Exception:
        if earlier and accelerator.is_main_process and _checkpoints(out) <= saved:  # no checkpoint has the new options
            with suppress(OSError):
                write_json(out / RECORD, earlier)
        raise


def _checkpoints(out: Path) -> set[Path]:
    """Return the checkpoints of a run and of its stages."""
    return {*out.glob("checkpoints/step-*"), *out.glob("stage*/checkpoints/step-*")}
