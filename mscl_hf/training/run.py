"""A run of a recipe: its processes, its output folder, and what happens when it fails or is stopped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ..cli import flat
from ..records.files import write_json
from ..records.run_folder import RECORD, open_run
from ..records.versions import commit
from .crash_report import reporting
from .finishing import Finishing
from .setup import make_accelerator


@dataclass(frozen=True)
class Run:
    """out: the output folder. finishing: the steps after the model is written, of which some may fail."""

    out: Path
    accelerator: Accelerator
    finishing: Finishing

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def log(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text)

    def warn(self, sentences: Sequence[str]) -> None:
        """Print warnings on the main process."""
        for sentence in sentences:
            self.log(f"warning: {sentence}")


@contextmanager
def start_run(config: Any, resume: bool) -> Iterator[Run]:
    """Seed all generators, start the processes and claim the output folder; a crash inside leaves a report in it.

    config: of a recipe. resume: whether the folder may hold a run with the same configuration. Raises ValueError for any other content.
    Where a continued run fails before its next checkpoint (its images are not the same, for example), run.json is put back.
    """
    options = flat(config)
    set_seed(options["seed"])
    accelerator = make_accelerator(options["mixed_precision"], options.get("report_to", ()), options["output_dir"])
    out = Path(options["output_dir"])
    earlier, saved = open_run(out, options | {"commit": commit()}, resume, accelerator), _checkpoints(out)
    try:
        with reporting(out):
            yield Run(out, accelerator, Finishing(out, accelerator.is_main_process))
    except Exception:
        if earlier and accelerator.is_main_process and _checkpoints(out) <= saved:  # no step was made with the new options
            with suppress(OSError):
                write_json(out / RECORD, earlier)
        raise


def _checkpoints(out: Path) -> set[Path]:
    return {*out.glob("checkpoints/step-*"), *out.glob("stage*/checkpoints/step-*")}
