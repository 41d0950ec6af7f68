"""The training loop, the same for pre-training and fine-tuning: it uses the `Method` interface and names no method."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..config import TrainingConfig
from ..data.training_data import TrainingData
from ..methods.base import Method
from .crash_report import report_crash, reporting
from .log import Log
from .progress import Progress
from .setup import check_batch, fork_rng, prepare, unwrap
from .sharding import gathered
from .step import average_terms, clip_gradients, set_step, sync_gradients


def fit(
    method: Method,
    data: TrainingData,
    options: TrainingConfig,
    out: Path,
    accelerator: Accelerator,
    health_check: Callable[[Method, int, dict], dict] | None = None,
    health_steps: int = 0,
    max_bad_images: int = 0,
    steps_before: int = 0,
) -> None:
    """Train a method for options.max_steps; resume where `out` holds a checkpoint.

    health_check: (method, step, row of the log) -> further values for the log, called on all processes every `health_steps` (0 = never)
    and at the end. steps_before: steps of an earlier stage, added to those that trackers see.
    Raises NonFinite before the weights change, and SystemExit(75) after a signal; a checkpoint is saved. A crash leaves a report in `out`.
    """
    check_batch(method, data, options, accelerator.num_processes)
    current = {"step": None, "samples": []}  # for crash reports
    with reporting(out, current):
        trained, model, optimizer = prepare(method, data, options, accelerator)
        progress = Progress(trained, optimizer, data, options, out, accelerator, current, max_bad_images, steps_before)
        with progress.running() as steps:
            for step in steps:
                batches = progress.next_batches()
                set_step(step, trained, optimizer, options, accelerator)
                terms = []
                for number, batch in enumerate(batches, 1):
                    with sync_gradients(accelerator, model, number == len(batches)):
                        losses = model(**batch)
                        (losses["loss"] / len(batches)).backward()
                    terms.append({name: value.detach() for name, value in losses.items()})
                row, own_loss = average_terms(terms, accelerator)
                row["grad_norm"] = clip_gradients(model, options.max_grad_norm)
                progress.require_finite(row, own_loss)
                optimizer.step()
                optimizer.zero_grad()
                trained.after_step((step + 1) / options.max_steps)
                progress.add(row)
                if health_check and progress.is_due(health_steps):
                    run_health_check(health_check, trained, step + 1, row, progress.log, out)
                if progress.save_and_stop():
                    break
    progress.exit_if_stopped()
    unwrap(method, trained, options, accelerator)


def run_health_check(
    health_check: Callable[[Method, int, dict], dict], method: Method, step: int, row: dict, log: Log, out: Path
) -> None:
    """Log the values of a health check; a failure is printed, and training continues.

    The method is in evaluation mode, and the random state is restored, so that training is the same with and without the check.
    """
    method.eval()
    values = {}
    with fork_rng(next(method.parameters()).device), torch.no_grad(), torch.compiler.set_stance("force_eager"), gathered(method):
        try:
            values = health_check(method, step, row)
        except Exception as error:  # such as an image that can no longer be read
            tqdm.write(f"health check of step {step} failed ({type(error).__name__}: {error}); training continues")
            report_crash(out, error)
    method.train()
    if values:
        log.write(step, values)
