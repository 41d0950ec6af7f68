"""Everything around the optimizer steps of a run: batches, log, checkpoints, unreadable images, and the decision to stop early."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from tqdm import tqdm

from ..config import TrainingConfig
from ..data.training_data import TrainingData
from ..methods.base import Method
from . import checkpoint
from .checkpoint_folder import newest, step_of
from .distributed import any_process, sums_over, together
from .log import Log
from .loss_scaling import MAX_SKIPPED, LossScaling
from .selection import BestStep
from .setup import Buffers, lr_at
from .signals import STOPPED_BY_SIGNAL, reading, stop_signal


class NonFinite(ValueError):
    """The loss or its gradient is NaN or infinite; raised before the weights change."""


class Progress:
    """The progress of a run; `steps_done` optimizer steps are complete. Starts at the newest checkpoint of `out`.

    current: step and sample names for crash reports, updated here. best: the step with the best held-out score, None = not measured.
    """

    def __init__(
        self, method: Method, optimizer: AcceleratedOptimizer, data: TrainingData, options: TrainingConfig, out: Path,
        accelerator: Accelerator, current: dict, max_bad_images: int, steps_before: int, best: BestStep | None = None,
    ):  # fmt: skip
        self.method, self.optimizer, self.options, self.out, self.accelerator = method, optimizer.optimizer, options, out, accelerator
        self.current, self.max_bad_images, self.best = current, max_bad_images, best
        self.bad_images: set[str] = set()  # of all processes
        self.stopped_by_signal = False
        self.data_identity = data.identity()
        self.scaling = LossScaling(accelerator)
        self.steps_done, pending_rows = self._resume()
        self.saved_step = self.steps_done
        accumulate, world = options.gradient_accumulation_steps, (accelerator.process_index, accelerator.num_processes)
        first, last = self.steps_done * accumulate, options.max_steps * accumulate
        self.batches = data.batches(first, last, *world, options.dataloader_num_workers, accelerator.device)
        self.log = Log(out, self.steps_done, options, accelerator, pending_rows, steps_before)
        self.buffers = Buffers(method)

    @contextmanager
    def remaining_steps(self) -> Iterator[range]:
        """Yield the steps that are left; signals are handled, and the data workers and the log are closed at the end."""
        with stop_signal() as self.signal, reading(self.batches), closing(self.log.bar):
            yield range(self.steps_done, self.steps_done if self._is_complete() else self.options.max_steps)
            self.stopped_by_signal = any_process(self.accelerator, self.signal.requested)  # also while the last step was saved

    def next_batches(self) -> list[dict]:
        """Return the batches of the next step, and remember what its forward passes change besides the weights."""
        self.current.update(step=self.steps_done + 1, samples=[])
        self.started = time.perf_counter()
        batches = [next(self.batches) for _ in range(self.options.gradient_accumulation_steps)]
        self.waited = time.perf_counter() - self.started
        self.current["samples"] = [name for batch in batches for name in batch["name"]]
        messages = dict.fromkeys(message for batch in batches for message in batch["bad"])
        self.new_bad_images = [message for message in messages if message not in self.bad_images]
        for message in self.new_bad_images:
            tqdm.write(f"skipped: {message}")
        self.buffers.keep()
        return batches

    def is_finite(self, row: dict[str, float], own_loss: float) -> bool:
        """Return whether the loss and the gradient norm are finite. Where they are not, the state before the step is restored.

        Raises NonFinite instead of returning False without fp16, and after MAX_SKIPPED steps in a row; a checkpoint is saved.
        Averages over processes are NaN on all processes if they are on one: all stop or skip, and none waits for another.
        """
        if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
            return True
        self.buffers.restore()
        remedy = "Lower --learning-rate, or in pre-training raise the temperatures, and continue with --resume."
        if self.scaling.scaler is not None:
            if self.scaling.skipped_in_a_row + 1 < MAX_SKIPPED:
                return False
            remedy = f"It is number {MAX_SKIPPED} of such steps in a row. In a new run, give --mixed-precision bf16 or no."
        self.save()
        raise NonFinite(
            f"step {self.steps_done + 1} gave loss {row['loss']} and gradient norm {row['grad_norm']} "
            f"(process {self.accelerator.process_index}: loss {own_loss}, samples {', '.join(self.current['samples'])}); "
            f"the checkpoint of step {self.steps_done} is saved. {remedy}"
        )

    def skip(self) -> dict[str, float]:
        """Count a step as done that changed nothing but the loss scale; return its values for the log, none."""
        self.scaling.skip()
        self._count({})
        return {}

    def add(self, row: dict[str, float]) -> None:
        """Count a step as done, and add its values to the log."""
        row["lr"] = lr_at(self.steps_done, self.options)
        self._count(row | self.scaling.accept())

    def _count(self, row: dict[str, float]) -> None:
        self.steps_done += 1
        self.current["samples"] = []  # a later failure is not caused by these samples
        self.log.add(self.steps_done, row, time.perf_counter() - self.started, self.waited)

    def is_due(self, every: int) -> bool:
        """Return whether an action that is repeated after `every` steps (0 = never) and after the last one is due."""
        return self.steps_done == self.options.max_steps or every > 0 and self.steps_done % every == 0

    def save_and_stop(self) -> bool:
        """Save a checkpoint if one is due or training stops here, and return whether it stops; called on all processes."""
        signals, bad_images = sums_over(self.accelerator, int(self.signal.requested), len(self.new_bad_images))
        if bad_images:
            self.bad_images.update(gather_object(self.new_bad_images))
        stops = bool(signals) or len(self.bad_images) > self.max_bad_images or self._is_complete()
        is_best = self.best is not None and self.best.step == self.steps_done
        if stops or is_best or self.is_due(self.options.save_steps):
            self.save()
        return stops

    def save(self) -> None:
        """Save the current step, unless it is saved already."""
        if self.steps_done != self.saved_step:
            notes = {"pending": list(self.log.rows), "data": self.data_identity} | self.scaling.state()
            notes |= {} if self.best is None else self.best.state()
            checkpoint.save(self.out, self.steps_done, self.method, self.optimizer, self.options.save_total_limit, notes, self.accelerator)
            self.saved_step = self.steps_done

    def exit_if_stopped(self) -> None:
        """Raise ValueError for too many unreadable images, and SystemExit after a signal, also one during the last step."""
        if len(self.bad_images) > self.max_bad_images:
            last = sorted(self.bad_images)[-1].rstrip(".")
            raise ValueError(
                f"--max-bad-images is {self.max_bad_images} and {len(self.bad_images)} image(s) cannot be read, the last: {last}. "
                f"Replace them or raise the limit, and continue from step {self.steps_done} with --resume."
            )
        if self.stopped_by_signal:
            self.accelerator.print(f"stopped after step {self.steps_done}, checkpoint saved; the same command with --resume continues")
            self.accelerator.end_training()
            sys.exit(STOPPED_BY_SIGNAL)

    def _is_complete(self) -> bool:
        """Return whether all steps are done, or training stopped early."""
        return self.steps_done == self.options.max_steps or self.best is not None and self.best.stops

    def _resume(self) -> tuple[int, list[dict]]:
        """Load the newest checkpoint; return its step, and the rows that the next line of the log averages."""
        folder = newest(self.out, self.accelerator)
        if folder is None or step_of(folder) < self.options.max_steps:
            limit = self.options.save_total_limit + (self.best is not None)
            together(self.accelerator, lambda: checkpoint.check_space(self.out, self.method, self.optimizer, limit), "checking free space")
        if folder is None:
            return 0, []
        state = checkpoint.load(folder, self.method, self.optimizer)
        self.scaling.load(state)
        if self.best is not None:
            self.best.load(state)
        is_complete = state["step"] == self.options.max_steps or self.best is not None and self.best.stops
        self.accelerator.print(f"resuming from step {state['step']} ({folder})" + ", the last one: training is complete" * is_complete)
        self._compare_images(state["data"])
        return state["step"], state["pending"]

    def _compare_images(self, stored: dict) -> None:
        """Raise ValueError for other images in another folder; warn where the images of the same folder changed.

        stored: the identity of the data in the checkpoint; one of an older release lacks content and place.
        """
        current = self.data_identity
        changed = [key for key in ("size", "names", "content") if stored.get(key, current[key]) != current[key]]
        if not changed:
            return
        change = f"{stored['size']}, now {current['size']}" if "size" in changed else f"their {' and '.join(changed)} changed"
        if stored.get("place", current["place"]) != current["place"]:
            raise ValueError(
                f"the images in {current['place']} are not those of the checkpoint ({change}). "
                "Give the data of the run, or another --output-dir."
            )
        self.accelerator.print(f"warning: the images are not those of the checkpoint ({change}); training continues with the new ones")
