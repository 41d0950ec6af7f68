"""What a run reports while it trains: log.jsonl always, trackers if asked for, a progress bar."""

import json
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from ..records.files import write_text


class Log:
    """log.jsonl, trackers and the progress bar; written by the main process, means over the steps since the last line."""

    def __init__(self, out: Path, first: int, options, accelerator: Accelerator, pending: list[dict] = (), before: int = 0):
        """first: the step that a resumed run starts from; pending: the rows of steps before it that no line covers yet;
        before: steps of an earlier stage, which trackers have seen."""
        self.path, self.options, self.accelerator, self.before = out / "log.jsonl", options, accelerator, before
        self.rows: list[dict] = list(pending)
        self.seconds = self.waited = 0.0
        self.steps = 0  # of this process; a resumed one has no times for the pending rows
        if accelerator.is_main_process:
            kept = [row for row in read_log(self.path) if row["step"] <= first]  # a resumed run repeats what came after
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        main = accelerator.is_main_process
        self.bar = tqdm(total=options.max_steps, initial=first, disable=not main, dynamic_ncols=True, mininterval=1, unit="step")

    def add(self, step: int, row: dict[str, float], seconds: float, waited: float) -> None:
        self.rows.append(row)
        self.seconds += seconds
        self.waited += waited
        self.steps += 1
        self.bar.update()
        if step % self.options.logging_steps and step != self.options.max_steps:
            return
        count = len(self.rows)
        means = {name: sum(row[name] for row in self.rows) / count for name in row}
        images = self.options.batch_size * self.options.gradient_accumulation_steps
        speed = {"images_per_second": self.steps * images / self.seconds, "data_wait": self.waited / self.seconds}
        shown = {k: f"{v:.3g}" for k, v in means.items() if k.startswith(("loss", "excess"))}
        self.bar.set_postfix(shown | {"img/s": f"{speed['images_per_second']:.0f}", "wait": f"{speed['data_wait']:.0%}"})
        self.write(step, means | speed)
        self.rows, self.steps, self.seconds, self.waited = [], 0, 0.0, 0.0

    def write(self, step: int, row: dict) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.before + step)

    def close(self) -> None:
        self.bar.close()


def read_log(path: Path) -> list[dict]:
    """The lines of a log.jsonl; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
