"""The phases of a pre-training step, timed by clocks around the functions of the real training loop, beside the bare network."""

import contextlib
import copy
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from mscl_hf.cli import parse
from mscl_hf.config import PretrainConfig, TrainingConfig
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.methods import MSCL
from mscl_hf.models import has_batch_norm
from mscl_hf.training import checkpoint, loop, setup
from mscl_hf.training.setup import make_accelerator

from ... import pretrain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step(name: str, flags: list[str], steps: int, warmup: int = 10, bare: bool = True) -> dict:
    """Time steps of the real training loop, and after each one a step of the bare network on a batch that lies in memory.

    Returns medians in ms of the whole step, its phases and the bare network; images per second; peak memory in MB.
    """
    config = parse(PretrainConfig, "", [*flags, "--max-steps", str(steps + warmup), "--save-steps", "0"])
    torch.manual_seed(0)
    accelerator = make_accelerator(config.training.mixed_precision)
    network = pretrain.start_network(config, pretrain.model_config_of(config))
    log = lambda text: None  # noqa: E731
    config = pretrain.with_image_range(config, network, log)
    config = replace(config, training=config.training.for_backbone(has_batch_norm(network.backbone), has_weights=False, log=log))
    images = pretrain.open_images(MSCL, config, network, log)
    stage = pretrain.open_stage(MSCL, images, config, network, log)
    clocks = Clocks()
    bare_step = BareNetwork(stage.method, config.training, accelerator).run if bare else None
    stage.method.after_step = lambda fraction_done: clocks.end_step(bare_step)
    with tempfile.TemporaryDirectory() as out, clocks.around(stage):
        loop.fit(stage.method, stage.train_data, config.training, Path(out), accelerator)
    medians = clocks.median_ms(steps)
    rate = config.training.batch_size / medians["step"] * 1e3
    row = {"milliseconds": medians, "images_per_second": round(rate, 2), "peak_mb": round(peak_mb())}
    if bare:
        row["overhead"] = round(statistics.median(seconds["step"] / seconds["bare"] for seconds in clocks.steps[-steps:]) - 1, 4)
    return row


class BareNetwork:
    """Forward and backward passes of a copy of the backbone and the decoder on both views of a batch."""

    def __init__(self, method: MSCL, options: TrainingConfig, accelerator):
        network = copy.deepcopy(method.network).to(accelerator.device, memory_format=torch.channels_last).train()
        self.backbone, self.decoder, self.accelerator = network.backbone, network.decoder, accelerator
        height, width = network.config.image_size, network.config.image_width or network.config.image_size
        images = torch.randn(2 * options.batch_size, 3, height, width, device=accelerator.device)
        self.images = images.contiguous(memory_format=torch.channels_last)

    def run(self) -> None:
        with self.accelerator.autocast():
            decoded = self.decoder(list(self.backbone(self.images).feature_maps))
        decoded.backward(torch.ones_like(decoded))
        for part in (self.backbone, self.decoder):
            part.zero_grad()
        wait()


class Clocks:
    """Seconds of each phase of every training step."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.current: dict[str, float] = defaultdict(float)
        self.started: float | None = None

    def timed(self, phase: str, function: Callable) -> Callable:
        """The function, with its seconds added to a phase of the current step."""

        def inner(*args, **kwargs):
            wait()
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait()
                self.current[phase] += time.perf_counter() - started

        return inner

    def end_step(self, bare_step: Callable[[], None] | None = None) -> None:
        """Called after each optimizer step. bare_step: timed before the next step begins, and no part of it."""
        wait()
        if self.started is not None:
            row = dict(self.current) | {"step": time.perf_counter() - self.started}
            row["losses"] = row.pop("method") - row["forward"]
            row["rest"] = row["step"] - sum(value for name, value in row.items() if name != "step")
            self.steps.append(row)
        if bare_step is not None:
            started = time.perf_counter()
            bare_step()
            if self.steps:
                self.steps[-1]["bare"] = time.perf_counter() - started
        self.current.clear()
        self.started = time.perf_counter()

    def around(self, stage: pretrain.Stage) -> contextlib.ExitStack:
        """Put the clocks into the training loop until the returned stack is closed."""
        stack, loader, build = contextlib.ExitStack(), TrainingImages.loader, setup.build_optimizer

        def timed_loader(*args):
            next_batch = self.timed("decode", iter(loader(*args)).__next__)
            with contextlib.suppress(StopIteration):
                while True:
                    yield next_batch()

        def timed_optimizer(*args):
            optimizer = build(*args)
            optimizer.step = self.timed("optimizer", optimizer.step)
            return optimizer

        method, view = stage.method, stage.train_data.view
        for owner, name, replacement in (
            (TrainingImages, "loader", timed_loader),
            (setup, "build_optimizer", timed_optimizer),
            (checkpoint, "save", lambda *_: None),
            *(
                (owner, name, self.timed(phase, getattr(owner, name)))
                for owner, name, phase in (
                    (torch.nn.utils, "get_total_norm", "optimizer"), (torch.nn.utils, "clip_grads_with_norm_", "optimizer"),
                    (torch.Tensor, "backward", "backward"), (method.network, "forward", "forward"), (method, "forward", "method"),
                    (view, "on_device", "views"),
                )
            ),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, replacement))
        return stack

    def median_ms(self, steps: int) -> dict[str, float]:
        """Medians of the last steps."""
        phases = dict.fromkeys(phase for row in self.steps for phase in row)
        return {phase: round(1e3 * statistics.median(row.get(phase, 0) for row in self.steps[-steps:]), 2) for phase in phases}


def peak_mb(device: str | None = None) -> float:
    """The largest memory in MB that this process, or its GPU, has used since `reset_peak`."""
    if (device or DEVICE) == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wait() -> None:
    """Wait for the GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
