"""The training loop, the same for pre-training and fine-tuning: it knows the `Method` interface and no method by name."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from ..config import TrainingConfig
from ..data.training_data import TrainingData
from ..methods.base import Method
from . import checkpoint
from .checkpoint_folder import newest, step_of
from .crash_report import report_crash, reporting
from .distributed import any_process, sums_over, together
from .log import Log
from .schedule import lr_at
from .setup import Buffers, check_batch, compiled_parts, keep_freed_memory, prepare
from .sharding import gathered, take_back
from .signals import STOPPED_BY_SIGNAL, reading, stop_signal


class NonFinite(ValueError):
    """The loss or its gradient is NaN or infinite; raised before the weights move."""


def fit(
    method: Method,
    data: TrainingData,
    options: TrainingConfig,
    out: Path,
    accelerator: Accelerator,
    watch: Callable[[Method, int, dict], dict] | None = None,
    watch_every_steps: int = 0,
    max_bad_images: int = 0,
    steps_before: int = 0,
) -> Method:
    """Train `method` for options.max_steps, resuming from `out` if it holds a checkpoint; returns it unwrapped.

    watch(method, step, the step's row of the log) -> more numbers for the log, called on every process every `watch_every_steps`
    (0 = never) and at the end. steps_before: those of an earlier stage, which trackers count on from.
    Raises NonFinite before the weights move; SystemExit(75) after a SIGTERM, with a checkpoint saved. A crash leaves a report in `out`.
    """
    world, rank, accumulate = accelerator.num_processes, accelerator.process_index, options.gradient_accumulation_steps
    check_batch(method, data, options, world)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    now = {"step": None, "samples": []}  # what a report tells of
    with reporting(out, now):
        trained, model, optimizer = prepare(method, data, options, accelerator)
        first, pending = _resume(out, trained, optimizer, data, options, accelerator)
        coming = data.batches(first * accumulate, options.max_steps * accumulate, rank, world, options.dataloader_num_workers, accelerator.device)
        log = Log(out, first, options, accelerator, pending, steps_before)
        saver = _Saver(out, trained, optimizer, data, options, accelerator, first)
        buffers = Buffers(trained)
        skipped: set[str] = set()
        done, asked = first, 0
        with stop_signal() as stop, reading(coming), closing(log):
            for step in range(first, options.max_steps):
                now.update(step=step + 1, samples=[])
                started = time.perf_counter()
                batches = [next(coming) for _ in range(accumulate)]
                waited = time.perf_counter() - started
                now["samples"] = _names(batches)
                bad = _tell_bad(batches, skipped)
                buffers.keep()
                try:
                    row = _step(step, trained, model, optimizer, batches, options, accelerator)
                except NonFinite:
                    buffers.restore()
                    saver.save(done, log.rows)
                    raise
                done = step + 1
                now["samples"] = []  # what fails from here on is not theirs
                log.add(done, row, time.perf_counter() - started, waited)
                is_checked = watch is not None and _is_due(done, watch_every_steps, options.max_steps)
                if is_checked and (checked := _in_eval(watch, trained, done, row, out)):
                    log.write(done, checked)
                asked, found = sums_over(accelerator, int(stop.requested), len(bad))
                if found:
                    skipped.update(gather_object(bad))
                stopping = asked or len(skipped) > max_bad_images
                if stopping or _is_due(done, options.save_steps, options.max_steps):
                    saver.save(done, log.rows)
                if stopping:
                    break
            asked = any_process(accelerator, stop.requested)  # while the last step was saved, too
    for part in compiled_parts(trained) if options.torch_compile else ():
        part._compiled_call_impl = None  # evaluation sees other sizes, and each would be compiled
    _end_early(asked, done, skipped, max_bad_images, accelerator)
    if options.shard:
        take_back(method, trained, accelerator.device)
        return method
    return trained


def _resume(
    out: Path, method: Method, optimizer, data: TrainingData, options: TrainingConfig, accelerator: Accelerator
) -> tuple[int, list[dict]]:
    """The step to go on from, and the rows that the next line of the log will average over."""
    found = newest(out, accelerator)
    if found is None or step_of(found) < options.max_steps:
        keep = options.save_total_limit
        together(accelerator, lambda: checkpoint.check_space(out, method, optimizer.optimizer, keep), "looking for room")
    if found is None:
        return 0, []
    state = checkpoint.load(found, method, optimizer.optimizer)
    accelerator.print(f"resuming from step {state['step']} ({found})")
    _check_images(state["data"], data.identity(), accelerator)
    return state["step"], state["pending"]


def _check_images(stored: dict, current: dict, accelerator: Accelerator) -> None:
    """ValueError where the run is given images from another place that are not the same; a warning where the place is, and they changed.

    Some may have gone bad in their place, which must not end the run. A checkpoint of an older release has no content and no place.
    """
    changed = [key for key in ("size", "names", "content") if stored.get(key, current[key]) != current[key]]
    if not changed:
        return
    words = f"{stored['size']}, now {current['size']}" if "size" in changed else f"their {' and '.join(changed)} changed"
    if stored.get("place", current["place"]) != current["place"]:
        raise ValueError(
            f"the images in {current['place']} are not those of the checkpoint ({words}); give the data of the run, or another --output-dir"
        )
    accelerator.print(f"warning: the images are not those of the checkpoint ({words}); the run goes on with these")


class _Saver:
    """Saves a step once: it may be due, and then be asked for again by a signal or a bad step."""

    def __init__(
        self, out: Path, method: Method, optimizer, data: TrainingData, options: TrainingConfig, accelerator: Accelerator, saved: int
    ):
        self.out, self.method, self.optimizer, self.options, self.accelerator = out, method, optimizer.optimizer, options, accelerator
        self.data, self.saved = data.identity(), saved

    def save(self, step: int, pending: list[dict]) -> None:
        if step != self.saved:
            notes = {"pending": list(pending), "data": self.data}
            checkpoint.save(self.out, step, self.method, self.optimizer, self.options.save_total_limit, notes, self.accelerator)
            self.saved = step


def _tell_bad(batches: list[dict], skipped: set[str]) -> list[str]:
    """What could not be read, and was not known of: named here, it may have gone bad in the middle of a run."""
    new = [message for message in dict.fromkeys(message for batch in batches for message in batch["bad"]) if message not in skipped]
    for message in new:
        tqdm.write(f"skipped: {message}")
    return new


def _names(batches: list[dict]) -> list[str]:
    return [name for batch in batches for name in batch["name"]]


def _end_early(asked: bool, done: int, skipped: set[str], max_bad_images: int, accelerator: Accelerator) -> None:
    """Say why a run ends here, if it does; its checkpoint is saved. One that was asked to stop ends also where only scoring is left."""
    if len(skipped) > max_bad_images:
        raise ValueError(
            f"{len(skipped)} bad image(s), more than --max-bad-images {max_bad_images}; the last: {sorted(skipped)[-1]}; a checkpoint of "
            f"step {done} is saved: correct them, or raise the limit, and go on with --resume"
        )
    if asked:
        accelerator.print(f"stopped after step {done}, checkpoint saved; the same command with --resume continues")
        accelerator.end_training()
        sys.exit(STOPPED_BY_SIGNAL)


def _step(step: int, method: Method, model: nn.Module, optimizer, batches: list[dict], options: TrainingConfig, accelerator) -> dict:
    """One optimizer step; returns its row of the log. Raises NonFinite while the weights are still those of the step before."""
    # Dropout and sampling are functions of the step: nothing to save, nothing to restore.
    torch.manual_seed(options.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = (options.learning_rate if group["constant"] else lr_at(step, options)) * group["lr_scale"]
    method.progress = step / options.max_steps
    terms, own = _accumulated_step(model, batches, accelerator)
    norm = _clip(accelerator, model, options.max_grad_norm)
    _stop_unless_finite(accelerator, step, terms, norm, own, batches)
    optimizer.step()
    optimizer.zero_grad()
    method.after_step((step + 1) / options.max_steps)
    return terms | {"grad_norm": norm, "lr": lr_at(step, options)}


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _accumulated_step(model: nn.Module, batches: list[dict], accelerator: Accelerator) -> tuple[dict[str, float], float]:
    """Forward and backward over the batches of one optimizer step; returns the mean of every logged term, and this process's own loss."""
    model.train()
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        with _sync_gradients(accelerator, model, last):
            terms = model(**batch)
            (terms["loss"] / len(batches)).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
    own = torch.stack(list(sums.values()))
    values = accelerator.reduce(own.clone(), "mean").tolist()
    return dict(zip(sums, values)), float(sums["loss"])


@contextmanager
def _sync_gradients(accelerator: Accelerator, model: nn.Module, sync: bool) -> Iterator[None]:
    if sync:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def _clip(accelerator: Accelerator, model: nn.Module, limit: float) -> float:
    """The gradient's norm; where it is above the limit (0 = none), the gradient is scaled down to it."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(norm, DTensor):  # of sharded gradients, still to be summed
        norm = norm.full_tensor()
    if 0 < limit < float(norm):  # most steps are not clipped, and need not touch every gradient again
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _stop_unless_finite(accelerator: Accelerator, step: int, terms: dict, norm: float, own: float, batches: list[dict]) -> None:
    # The mean loss and the averaged gradient carry one process's NaN to all of them: all stop, none hangs.
    if math.isfinite(terms["loss"]) and math.isfinite(norm):
        return
    raise NonFinite(
        f"step {step + 1} gave loss {terms['loss']} and gradient norm {norm}, process {accelerator.process_index} loss {own} with samples "
        f"{', '.join(_names(batches))}; the weights are those of step {step}: lower --learning-rate, or in pre-training raise the "
        "temperatures, and continue with --resume or start again"
    )


def _in_eval(watch: Callable[[Method, int, dict], dict], method: Method, step: int, trained: dict, out: Path) -> dict:
    """Health checks must leave no trace: no dropout, no batch statistics, no random numbers taken. One that fails is logged and gives no
    row: the last of them comes before the checkpoint of a finished run."""
    method.eval()
    row = {}
    with torch.random.fork_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"), gathered(method):
        try:
            row = watch(method, step, trained)
        except Exception as error:  # an image that cannot be read any more, say
            tqdm.write(f"health check of step {step} failed ({type(error).__name__}: {error}); training goes on")
            report_crash(out, error)
    method.train()
    return row
