"""The log of a training run: log.jsonl, trackers, a progress bar (lines where stderr is a file) and training.png."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from ..progress_bar import progress_bar
from ..records.files import write_text
from ..visual.curves import class_figure, training_figure


class Log:
    """log.jsonl, trackers and the progress bar, written by the main process; a line holds means over the steps since the last one.

    first: the step that a resumed run starts from. pending: rows of steps before it that are in no line yet.
    steps_before: steps of an earlier stage, added to those that trackers see.
    """

    def __init__(self, out: Path, first: int, options, accelerator: Accelerator, pending: list[dict] = (), steps_before: int = 0):
        self.path, self.options, self.accelerator, self.steps_before = out / "log.jsonl", options, accelerator, steps_before
        self.rows: list[dict] = list(pending)
        self.seconds = self.waited = 0.0
        self.steps = 0  # since the last line, without pending rows, whose times are unknown
        if accelerator.is_main_process:
            kept = [row for row in read_log(self.path) if row["step"] <= first]  # later ones are repeated
            write_log(out, kept)
        hidden = None if accelerator.is_main_process else True  # None: hidden where stderr is a file
        self.bar = progress_bar(total=options.max_steps, initial=first, disable=hidden, mininterval=1, unit="step")

    def add(self, step: int, row: dict[str, float], seconds: float, waited: float) -> None:
        """Add the values of a step, {} of one that was skipped, and write a line where one is due.

        seconds: of the step; waited: seconds without data.
        """
        self.rows.append(row)
        self.seconds += seconds
        self.waited += waited
        self.steps += 1
        self.bar.update()
        if step % self.options.logging_steps and step != self.options.max_steps:
            return
        rows = [row for row in self.rows if row]
        means = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[-1] if rows else {})}
        if self.options.mixed_precision == "fp16":
            means["skipped_steps"] = len(self.rows) - len(rows)
        images = self.options.batch_size * self.options.gradient_accumulation_steps
        speed = {"images_per_second": self.steps * images / self.seconds, "data_wait": self.waited / self.seconds}
        shown = {k: f"{v:.3g}" for k, v in means.items() if k.startswith(("loss", "excess"))}
        shown |= {"skipped steps": str(means["skipped_steps"])} if means.get("skipped_steps") else {}
        shown |= {"img/s": f"{speed['images_per_second']:.0f}", "wait": f"{speed['data_wait']:.0%}"}
        self.bar.set_postfix(shown)
        if self.bar.disable and self.accelerator.is_main_process:
            words = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {step}/{self.options.max_steps}: {words}", file=sys.stderr, flush=True)
        self.write(step, means | speed)
        self.rows, self.steps, self.seconds, self.waited = [], 0, 0.0, 0.0

    def write(self, step: int, row: dict) -> None:
        """Write a line of log.jsonl, and report its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.steps_before + step)


def draw_training(out: Path, title: str) -> None:
    """Draw training.png from log.jsonl, if it has lines, and classes.png where held-out images were measured during training."""
    if rows := read_log(out / "log.jsonl"):
        training_figure(rows, out / "training.png", title)
        class_figure(rows, out / "classes.png", title)


def reached(out: Path) -> str:
    """Return the last loss and the last linear probe of a run in words; "" where nothing was trained."""
    rows = read_log(out / "log.jsonl")
    names = {"loss": "loss", "probe_mean_iou": "linear probe mean IoU"}
    last = {shown: next((row[key] for row in rows[::-1] if key in row), None) for key, shown in names.items()}
    values = ", ".join(f"{shown} {value:.4g}" for shown, value in last.items() if value is not None)
    return f" ({values} after {rows[-1]['step']} steps)" if values else ""


def write_log(out: Path, rows: Sequence[dict]) -> None:
    """Write a new log.jsonl with these rows."""
    write_text(out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_log(path: Path) -> list[dict]:
    """Return the lines of a log.jsonl, without a last line that a crash cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
