"""The best checkpoint by the mean IoU on held-out images: it is kept, training may stop early, and its weights are published."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..methods.base import Method
from . import checkpoint
from .checkpoint_folder import folder_of, verify
from .distributed import together

VALUE, OF_CLASSES = "val_mean_iou", "val_class_iou"  # keys of log.jsonl


class Scores(NamedTuple):
    """mean_iou: on the held-out images. of_classes: IoU by the name of the class, None for one that does not occur."""

    mean_iou: float
    of_classes: dict[str, float | None] = {}

    def for_log(self, name: str = "") -> dict:
        """Return the values of a network for log.jsonl; name: of the network."""
        return {f"{VALUE}{name}": self.mean_iou} | ({f"{OF_CLASSES}{name}": self.of_classes} if self.of_classes else {})


class BestStep:
    """The step with the highest held-out mean IoU; of equal ones, the first.

    measure: returns the scores of a method, called on all processes with the same result. every: steps between evaluations.
    patience: evaluations without a higher value after which training stops; 0 = it does not stop. others: measures of other networks of
    the method by name, which are logged only. publish: "best", or "last" to use the values for the log and early stopping only.
    """

    def __init__(
        self, measure: Callable[[Method], Scores], every: int, patience: int = 0, others: Mapping[str, Callable[[Method], Scores]] = {},
        publish: str = "best",
    ):  # fmt: skip
        self.publish = publish
        self.measure, self.every, self.patience, self.others = measure, every, patience, dict(others)
        self.step, self.value, self.without_improvement, self.last_step = 0, -1.0, 0, 0

    @property
    def published_step(self) -> int:
        """The step whose weights the method has at the end."""
        return self.step if self.publish == "best" else self.last_step

    @property
    def stops(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.patience <= self.without_improvement

    def evaluate(self, method: Method, step: int, accelerator: Accelerator) -> dict:
        """Measure the method, remember whether it is the best, and return the values for the log."""
        if accelerator.num_processes > 1:  # DistributedDataParallel copies the batch statistics only before the next forward pass
            for value in method.buffers():
                torch.distributed.broadcast(value, 0)
        scores, self.last_step = self.measure(method), step
        value = scores.mean_iou
        others = {name: measure(method) for name, measure in self.others.items()}
        if value > self.value:
            self.step, self.value, self.without_improvement, comment = step, value, 0, "the highest so far"
        else:
            self.without_improvement += 1
            comment = f"the highest is {self.value:.4f}, of step {self.step}"
        if accelerator.is_main_process:
            of_others = "".join(f", of the {name} {other.mean_iou:.4f}" for name, other in others.items())
            tqdm.write(f"step {step}: held-out mean IoU {value:.4f}{of_others}; {comment}")
            if self.stops:
                tqdm.write(f"step {step}: training stops early, after {self.patience} evaluations without a higher mean IoU")
        rows = [scores.for_log(), *(other.for_log(f"_{name}") for name, other in others.items())]
        return {key: value for row in rows for key, value in row.items()}

    def in_words(self, split: str) -> str:
        """Return which step is published, and which has the highest mean IoU on a split."""
        early = ", where training stopped early" if self.stops else ""
        if self.publish == "last":
            return f"of the last step, {self.last_step}{early}; step {self.step} had the highest mean IoU on {split}, {self.value:.4f}"
        return f"of step {self.step} of {self.last_step}{early}: the highest mean IoU on {split}, {self.value:.4f}"

    def state(self) -> dict:
        """Return what a checkpoint holds of it."""
        values = {"step": self.step, "value": self.value, "without_improvement": self.without_improvement, "last_step": self.last_step}
        return {"best": values | {"stops": self.stops}}

    def load(self, state: dict) -> None:
        """Continue from the state in a checkpoint."""
        stored = state["best"]
        self.step, self.value, self.last_step = stored["step"], stored["value"], stored["last_step"]
        self.without_improvement = stored["without_improvement"]

    def restore(self, method: Method, out: Path, accelerator: Accelerator) -> None:
        """Load the weights of the published step into the method, after training. Raises DamagedCheckpoint."""
        if self.published_step != self.last_step:
            folder = folder_of(out, self.published_step)
            together(accelerator, lambda: verify(folder), f"reading {folder}")
            checkpoint.load_method(folder, method)
