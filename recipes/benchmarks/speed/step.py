"""The phases of a pre-training step, by clocks around the real training loop, beside the bare network."""

import contextlib
import copy
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch

from mscl_hf.cli import parse
from mscl_hf.config import DataConfig, NetworkConfig, ViewConfig
from mscl_hf.data.build import pretraining_data
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.methods import MSCL
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.training import checkpoint, loop, setup
from mscl_hf.training.setup import make_accelerator
from mscl_hf.transforms.views import VIEWS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step(name: str, flags: list[str], steps: int, warmup: int = 10, bare: bool = True) -> dict:
    """Steps of the real training loop, and after each of them one of the bare network (backbone and decoder) on ready tensors.

    Gives medians in ms of the whole step, its phases, the bare network; and images per second.
    """
    kinds = (MultiScaleLoss, ViewConfig, DataConfig, NetworkConfig, loop.TrainingConfig)
    budget = ("--max-steps", str(steps + warmup), "--save-steps", "0")
    loss_options, views, data_options, net, train = parse(kinds, "", [*flags, *budget])
    torch.manual_seed(0)
    accelerator = make_accelerator(train.mixed_precision)
    config = net.config(contrast=asdict(loss_options))
    view = VIEWS["pair"](config.image_size, config.base_size, views, config.image_width)
    data = pretraining_data(data_options, view, train.batch_size, 0, "none", 0.5, "p" in loss_options.heads, lambda *_: None)
    method = MSCL(MsclForPreTraining(config))
    clocks = Phases()
    alone = BareNetwork(method, train, accelerator).run if bare else None
    method.after_step = lambda done: clocks.end_of_step(alone)
    with tempfile.TemporaryDirectory() as out, clocks.around(method, data.view):
        loop.fit(method, data, train, Path(out), accelerator)
    medians = clocks.median_ms(steps)
    done = {"milliseconds": medians, "images_per_second": round(train.batch_size / medians["step"] * 1e3, 2), "peak_mb": round(peak_mb())}
    if bare:
        done["overhead"] = round(statistics.median(row["step"] / row["bare"] for row in clocks.steps[-steps:]) - 1, 4)
    return done


class BareNetwork:
    """Forward and backward of a copy of the backbone and the decoder on both views of a batch."""

    def __init__(self, method: MSCL, options: loop.TrainingConfig, accelerator):
        network = copy.deepcopy(method.network).to(accelerator.device, memory_format=torch.channels_last).train()
        self.backbone, self.decoder, self.accelerator = network.backbone, network.decoder, accelerator
        height = network.config.image_size
        width = network.config.image_width or height
        images = torch.randn(2 * options.batch_size, 3, height, width, device=accelerator.device)
        self.images = images.contiguous(memory_format=torch.channels_last)

    def run(self) -> None:
        with self.accelerator.autocast():
            decoded = self.decoder(list(self.backbone(self.images).feature_maps))
        decoded.backward(torch.ones_like(decoded))
        for part in (self.backbone, self.decoder):
            part.zero_grad()
        wait()


class Phases:
    """Seconds of each part of every training step, by clocks around the real ones."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.started: float | None = None

    def timed(self, name: str, function):
        """The function, its seconds added to the present step's."""

        def inner(*args, **kwargs):
            wait()
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait()
                self.now[name] += time.perf_counter() - begun

        return inner

    def end_of_step(self, aside=None) -> None:
        """Called after each optimizer step; aside: what is to be timed before the next begins, and is no part of it."""
        wait()
        if self.started is not None:
            row = dict(self.now) | {"step": time.perf_counter() - self.started}
            row["losses"] = row.pop("method") - row["forward"]
            row["rest"] = row["step"] - sum(value for name, value in row.items() if name != "step")
            self.steps.append(row)
        if aside is not None:
            begun = time.perf_counter()
            aside()
            if self.steps:
                self.steps[-1]["bare"] = time.perf_counter() - begun
        self.now.clear()
        self.started = time.perf_counter()

    def around(self, method: MSCL, view) -> contextlib.ExitStack:
        """Puts the clocks into the training loop until the stack is closed."""
        stack, loader, build = contextlib.ExitStack(), TrainingImages.loader, setup.build_optimizer

        def timed_loader(*args):
            following = self.timed("decode", iter(loader(*args)).__next__)
            with contextlib.suppress(StopIteration):
                while True:
                    yield following()

        def timed_optimizer(*args):
            optimizer = build(*args)
            optimizer.step = self.timed("optimizer", optimizer.step)
            return optimizer

        for place, name, stand_in in (
            (TrainingImages, "loader", timed_loader),
            (setup, "build_optimizer", timed_optimizer),
            (loop, "_clip", self.timed("optimizer", loop._clip)),
            (checkpoint, "save", lambda *_: None),
            (torch.Tensor, "backward", self.timed("backward", torch.Tensor.backward)),
            (method.network, "forward", self.timed("forward", method.network.forward)),
            (method, "forward", self.timed("method", method.forward)),
            (view, "on_device", self.timed("views", view.on_device)),
        ):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        return stack

    def median_ms(self, steps: int) -> dict[str, float]:
        names = dict.fromkeys(name for row in self.steps for name in row)
        return {name: round(1e3 * statistics.median(row.get(name, 0) for row in self.steps[-steps:]), 2) for name in names}


def peak_mb(device: str | None = None) -> float:
    """The most memory that this process, or the GPU that it uses, has held since `forget_peak`."""
    if (device or DEVICE) == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
