"""The training loop, the same for pre-training and fine-tuning: it uses the `Method` interface and names no method."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from ..config import TrainingConfig
from ..data.training_data import TrainingData
from ..methods.base import Method
from .checkpoint_folder import completed_steps
from .crash_report import report_crash, reporting
from .log import write_log
from .progress import Progress
from .selection import BestStep
from .setup import check_batch, fork_rng, lr_at, memory_of_a_step, prepare, unwrap
from .sharding import gathered


def fit(
    method: Method,
    data: TrainingData,
    options: TrainingConfig,
    out: Path,
    accelerator: Accelerator,
    *,
    health_check: Callable[[Method, int, dict], dict] | None = None,
    health_steps: int = 0,
    max_bad_images: int = 0,
    steps_before: int = 0,
    best: BestStep | None = None,
) -> None:
    """Train a method for options.max_steps; resume where `out` holds a checkpoint.

    health_check: (method, step, row of the log) -> further values for the log, called on all processes every `health_steps` (0 = never)
    and at the end. steps_before: steps of an earlier stage, added to those that trackers see. best: keeps the best checkpoint, whose
    weights the method has at the end, and may stop training early.
    Raises NonFinite before the weights change, and SystemExit(75) after a signal; a checkpoint is saved. A crash leaves a report in `out`.
    In fp16 a step with a gradient that is not finite is skipped, and NonFinite is raised after MAX_SKIPPED of them in a row.
    """
    check_batch(method, data, options, accelerator.num_processes)
    current = {"step": None, "samples": []}  # for crash reports
    enough_memory = partial(memory_of_a_step, method, data, options, accelerator.num_processes)
    with reporting(out, current):
        with enough_memory():
            prepared = prepare(method, data, options, accelerator)
        in_training, wrapped, optimizer = prepared
        progress = Progress(in_training, optimizer, data, options, out, accelerator, current, max_bad_images, steps_before, best)
        with progress.remaining_steps() as steps:  # from the newest checkpoint on
            for step in steps:
                batches = progress.next_batches()
                set_step(step, in_training, optimizer, options, accelerator)
                with enough_memory():
                    terms = forward_and_backward(wrapped, batches, progress.scaling.backward, accelerator)
                row, own_loss = average_terms(terms, accelerator)
                progress.scaling.unscale(optimizer)
                row["grad_norm"] = clip_gradients(wrapped, options.max_grad_norm)
                if progress.is_finite(row, own_loss):
                    optimizer.step()
                    in_training.after_step((step + 1) / options.max_steps)
                    progress.add(row)
                else:
                    row = progress.skip()
                optimizer.zero_grad()
                if health_check and progress.is_due(health_steps):
                    run_health_check(health_check, in_training, step + 1, row, progress.log.write, out)
                if best and progress.is_due(best.every):
                    with evaluation_mode(in_training):
                        values = best.evaluate(in_training, step + 1, accelerator)
                    progress.log.write(step + 1, values)
                if progress.save_and_stop():
                    break
    progress.exit_if_stopped()
    unwrap(method, prepared, options, accelerator)
    if best:
        best.restore(method, out, accelerator)


def forward_and_backward(
    wrapped: nn.Module, batches: Sequence[dict], backward: Callable[[Tensor], None], accelerator: Accelerator
) -> list[dict[str, Tensor]]:
    """Add up the gradients of the mean loss of the batches of a step, exchanged with the last one; return the terms of each batch."""
    terms = []
    for number, batch in enumerate(batches, 1):
        with nullcontext() if number == len(batches) else accelerator.no_sync(wrapped):
            losses = wrapped(**batch)
            backward(losses["loss"] / len(batches))
        terms.append({name: value.detach() for name, value in losses.items()})
    return terms


def run_health_check(
    health_check: Callable[[Method, int, dict], dict], method: Method, step: int, row: dict, write: Callable[[int, dict], None], out: Path
) -> None:
    """Log the values of a health check by write(step, values); a failure is printed, and training continues.

    The method is in evaluation mode, and the random state is restored, so that training is the same with and without the check.
    """
    values = {}
    with evaluation_mode(method):
        try:
            values = health_check(method, step, row)
        except Exception as error:  # such as an image that can no longer be read
            tqdm.write(f"health check of step {step} failed ({type(error).__name__}: {error}); training continues")
            report_crash(out, error)
    if values:
        write(step, values)


@contextmanager
def evaluation_mode(method: Method) -> Iterator[None]:
    """Set evaluation mode without gradients; the random state and the training mode are restored at the end."""
    method.eval()
    with fork_rng(next(method.parameters()).device), torch.no_grad(), torch.compiler.set_stance("force_eager"), gathered(method):
        yield
    method.train()


def check_untrained(health_check: Callable[[Method, int, dict], dict], method: Method, out: Path, accelerator: Accelerator) -> None:
    """Log the health check of a method before training as step 0, on the main process; nothing is done where a checkpoint exists."""
    if accelerator.is_main_process and not completed_steps(out):
        method.to(accelerator.device)
        run_health_check(health_check, method, 0, {}, lambda step, values: write_log(out, [{"step": step, **values}]), out)


def set_step(step: int, method: Method, optimizer: torch.optim.Optimizer, options: TrainingConfig, accelerator: Accelerator) -> None:
    """Set the random state, the learning rates, the training mode and `method.fraction_done` of a step."""
    # Dropout and sampling are functions of the step, so that no random state has to be saved.
    torch.manual_seed(options.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = (options.learning_rate if group["constant"] else lr_at(step, options)) * group["lr_scale"]
    method.fraction_done = step / options.max_steps
    method.before_step()


def average_terms(terms: Sequence[dict[str, Tensor]], accelerator: Accelerator) -> tuple[dict[str, float], float]:
    """Return the mean of each logged term over batches and processes, and the loss of this process."""
    sums: dict[str, Tensor] = {}
    for batch_terms in terms:
        for name, value in batch_terms.items():
            sums[name] = sums.get(name, 0) + value.float() / len(terms)
    means = accelerator.reduce(torch.stack(list(sums.values())), "mean").tolist()
    return dict(zip(sums, means)), float(sums["loss"])


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Return the norm of the gradient; a gradient with a larger norm than `max_norm` (0 = no limit) is scaled down to it."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(norm, DTensor):  # sharded gradients: the partial norms are not combined yet
        norm = norm.full_tensor()
    if 0 < max_norm < float(norm):  # most steps are not clipped, which saves one pass over all gradients
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
