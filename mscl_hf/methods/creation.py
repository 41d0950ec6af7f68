"""Create a method, and scale some of its options to the data set and the length of the run.

The published values are for 1.28 million images and hundreds of thousands of steps. A queue longer than the data set holds each image's
own earlier keys as negatives; a teacher with momentum 0.999 hardly changes in a short run.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from ..config import NetworkConfig
from ..losses import MultiScaleLoss
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method
from .mscl import MSCL

FEW_IMAGES = 50_000  # CIFAR's, up to which InstDisc's release uses the higher temperature


class RunSize(NamedTuple):
    """images: training images, None where a stream does not know. batch: images per forward pass, over all processes."""

    images: int | None
    batch: int
    steps: int


def create_method(
    name: str, method_cls: type[Method], network: MsclForPreTraining, options: dict[str, Any], loss: MultiScaleLoss, run_size: RunSize,
    log: Callable[[str], None] = print,
) -> Method:  # fmt: skip
    """Return a method with these options; the others are its paper's, or scaled to the data set and logged.

    options: those that were set; those of other methods are ignored. loss: for mscl and zhao. The resolved options are written into
    `network.config.contrast`. Raises ValueError for options that do not fit the run, and for a feature map that is too small.
    """
    if not method_cls.trains:
        return method_cls(network)
    options = {option: value for option, value in options.items() if option in defaults_of(method_cls)}
    if issubclass(method_cls, MSCL):
        if loss.queue_size:
            check_queue(loss.queue_size, run_size, log)
        method = method_cls(network, method_cls.loss_of(loss), **options)
        options = asdict(method.loss) | options
    else:
        options = scaled_options(name, method_cls, options, run_size, log)
        method = method_cls(network, **options)
    network.config.contrast = {"method": name} | {key: value for key, value in options.items() if key not in method.local_options}
    _check_map(name, method)
    return method


def defaults_of(method_cls: type[Method]) -> dict[str, Any]:
    """Return the options of a method's constructor and their defaults."""
    parameters = list(inspect.signature(method_cls.__init__).parameters.values())[2:]  # after self and network
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "loss"}


@torch.no_grad()
def _check_map(name: str, method: Method) -> None:
    """Raise ValueError where the feature map has too few positions for the method, or for a --local-grid that is not the default."""
    config = method.network.config
    checks_grid = isinstance(method, MSCL) and "local" in method.loss.terms and config.local_grid != NetworkConfig.local_grid
    if method.min_positions == 1 and not checks_grid:
        return
    least = method.min_positions
    image = torch.zeros(1, config.num_channels, config.image_size, config.image_width or config.image_size)
    method.eval()
    height, width = method.features(image).shape[-2:]
    method.train()
    if min(height, width) < least:
        raise ValueError(
            f"--image-size is {config.image_size}, which gives a feature map of {width} x {height}; expected at least {least} x {least} "
            f"with --method {name}. Raise --image-size, or lower --output-stride."
        )
    if checks_grid and config.local_grid > min(height, width):
        raise ValueError(
            f"--local-grid is {config.local_grid}; expected at most {min(height, width)}, since the feature map is {width} x {height}. "
            "Lower it, or raise --image-size."
        )


def scaled_options(
    name: str, method_cls: type[Method], options: dict[str, Any], run_size: RunSize, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return the options and, where they are not set, the number of images, temperature, queue size and EMA momentum for the run."""
    defaults, options = defaults_of(method_cls), dict(options)
    if "images" in defaults and options.get("bank_loss") != "batch":
        if run_size.images is None:
            raise ValueError(f"--method {name} needs the number of images, which a stream does not have. Leave out --streaming.")
        options["images"] = run_size.images
        if "temperature" not in options and run_size.images <= FEW_IMAGES:
            options["temperature"] = 0.1
            log(f"--temperature is 0.1, InstDisc's value up to {FEW_IMAGES:,} images (for ImageNet {defaults['temperature']})")
    if "queue_size" in options:
        check_queue(options["queue_size"], run_size, log)
    elif "queue_size" in defaults:
        published = defaults["queue_size"]
        options["queue_size"] = length = _fitting_queue(published, run_size)
        if length < published:
            log(f"--queue-size is {length} for {run_size.images} images, of which it holds at most half (default: {published})")
    if "ema_momentum" in defaults and "ema_momentum" not in options:
        options["ema_momentum"] = fitting_momentum(defaults["ema_momentum"], run_size.steps, log)
    return options


def fitting_momentum(published: float, steps: int, log: Callable[[str], None]) -> float:
    """Return the published momentum, or the one that averages over 1/20 of the run if that is lower, which is logged."""
    momentum = min(published, max(0.9, round(1 - 20 / steps, 4)))
    if momentum < published:
        log(f"--ema-momentum is {momentum:g}, an average over {1 / (1 - momentum):.0f} of {steps} steps ({published:g} in the paper)")
    return momentum


def check_queue(length: int, run_size: RunSize, log: Callable[[str], None]) -> None:
    """Raise ValueError for a queue that cannot hold a batch; log one that is longer than the data set."""
    if length < run_size.batch:
        raise ValueError(f"--queue-size is {length}; expected at least {run_size.batch}, the keys of a batch. Raise it, or leave it out.")
    if run_size.images is not None and length > run_size.images:
        log(
            f"--queue-size is {length} for {run_size.images} images: each image is among its own negatives about "
            f"{length / run_size.images:.1f} times; {_fitting_queue(length, run_size)} avoids that"
        )


def _fitting_queue(published: int, run_size: RunSize) -> int:
    """Return the length of whole batches, at least one, for at most half of the images and at most the published length."""
    if run_size.images is None:
        return published
    return min(published, max(run_size.batch, run_size.images // 2 // run_size.batch * run_size.batch))
