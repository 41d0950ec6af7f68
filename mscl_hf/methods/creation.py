"""Create a method: which options it reads, and values that are scaled to the data set and the length of the run.

The published values belong to 1.28 million images and hundreds of thousands of steps. A queue longer than the data set holds each image's
own earlier keys as its negatives; a teacher that moves by a thousandth a step has not moved at the end of a short run.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch

from ..config import ContrastConfig, MethodConfig
from ..losses import MultiScaleLoss
from ..messages import flag
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method, feature_map
from .mscl import MSCL

SMALL = 50_000  # images up to which InstDisc's release takes the higher temperature (CIFAR's)


class Scale(NamedTuple):
    """images: how many there are to train on, None where a stream does not tell. batch: images per forward pass, over all processes."""

    images: int | None
    batch: int
    steps: int


def create_method(
    name: str, method_cls: type[Method], network: MsclForPreTraining, options: dict[str, Any], loss: MultiScaleLoss, scale: Scale,
    log: Callable[[str], None] = print,
) -> Method:  # fmt: skip
    """A method with the options given; the others are its paper's, or scaled to the data set and logged.

    options: from `given_options`. loss: of mscl and zhao. What the method trains with is written into `network.config.contrast`.
    Raises ValueError where the scale or the network's feature map does not allow what the options ask for.
    """
    if not method_cls.trains:
        return method_cls(network)
    options = {option: value for option, value in options.items() if option in defaults_of(method_cls)}
    if issubclass(method_cls, MSCL):
        if loss.queue_size:
            check_queue(loss.queue_size, scale, log)
        method = method_cls(network, loss, **options)
        options = asdict(method.loss) | options
    else:
        options = sized(name, method_cls, options, scale, log)
        method = method_cls(network, **options)
    network.config.contrast = {"method": name} | options
    _check_map(name, method)
    return method


def given_options(name: str, stages: Sequence[type[Method]], method: MethodConfig, contrast: ContrastConfig) -> dict[str, Any]:
    """The options that were given and are read by one of the method's stages. Raises ValueError for one that none reads.

    The controls, which do not train, accept all options, so that they can run with the flags of the method they are compared with.
    """
    given = method.given()
    read = [option for stage in stages for option in defaults_of(stage)]
    if contrast.queue_size and "queue_size" in read:
        given["queue_size"] = contrast.queue_size
    unread = [option for option in given if option not in read]
    has_contrast = any(issubclass(stage, MSCL) for stage in stages)
    if not has_contrast:
        default = ContrastConfig()
        unread += [f.name for f in fields(contrast) if getattr(contrast, f.name) != getattr(default, f.name) and f.name not in given]
    if unread and stages[-1].trains:
        flags = [flag(option) for option in read if option not in ("images", "loss")]
        flags += ["--pixel-temperature and the other options of its loss"] if has_contrast else []
        raise ValueError(f"{flag(unread[0])} is no option of --method {name}, which reads {', '.join(flags)}. Leave it out.")
    return given


@torch.no_grad()
def _check_map(name: str, method: Method) -> None:
    """ValueError where the map has too few cells for a method that contrasts them."""
    if method.min_cells == 1:
        return
    config = method.network.config
    height, width = config.image_size, config.image_width or config.image_size
    method.eval()
    found = feature_map(method.parts(), method.normalise(torch.zeros(1, 3, height, width))).shape[-2:]
    method.train()
    if min(found) < method.min_cells:
        raise ValueError(
            f"--method {name} contrasts the cells of a map, and that of {config.backbone} at {width} x {height} px has {found[1]} x "
            f"{found[0]}, at least {method.min_cells} x {method.min_cells} are needed; raise --image-size or lower --output-stride"
        )


def sized(name: str, method_cls: type[Method], given: dict[str, Any], scale: Scale, log: Callable[[str], None] = print) -> dict[str, Any]:
    """The options given, and those that depend on the scale."""
    known, options = defaults_of(method_cls), dict(given)
    if "images" in known and given.get("bank_loss") != "batch":
        options["images"] = _images(name, scale)
        if "temperature" not in given and scale.images <= SMALL:
            options["temperature"] = 0.1
            log(f"temperature 0.1, which InstDisc's release has for CIFAR's {SMALL:,} images; {known['temperature']} is that for ImageNet")
    if "queue_size" in known:
        options["queue_size"] = _queue(given.get("queue_size"), known["queue_size"], scale, log)
    if "ema_momentum" in known and "ema_momentum" not in given:
        options["ema_momentum"] = _momentum(known["ema_momentum"], scale.steps, log)
    return options


def defaults_of(method_cls: type[Method]) -> dict[str, Any]:
    """The options that a method's constructor takes, and their defaults."""
    parameters = list(inspect.signature(method_cls.__init__).parameters.values())[2:]  # behind self and network
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "loss"}


def _images(name: str, scale: Scale) -> int:
    if scale.images is None:
        raise ValueError(f"--method {name} remembers each image, and a stream does not tell how many there are; leave out --streaming")
    return scale.images


def check_queue(length: int, scale: Scale, log: Callable[[str], None]) -> None:
    """ValueError where a batch does not fit into a queue; a word where the queue is longer than the data."""
    if length < scale.batch:
        raise ValueError(f"--queue-size {length} cannot hold the {scale.batch} keys of a batch; give at least {scale.batch}, or leave it out")
    if scale.images is not None and length > scale.images:
        log(
            f"--queue-size {length} is longer than the data: each of the {scale.images} images is among its own negatives about "
            f"{length / scale.images:.1f} times; {_fitting(length, scale)} would do"
        )


def _queue(given: int | None, published: int, scale: Scale, log: Callable[[str], None]) -> int:
    if given is not None:
        check_queue(given, scale, log)
        return given
    length = _fitting(published, scale)
    if length < published:
        log(f"queue of {length} keys for {scale.images} images: one that is in it is its own negative (the paper has {published})")
    return length


def _fitting(published: int, scale: Scale) -> int:
    """Whole batches, of half of the images at most; at least one batch."""
    if scale.images is None:
        return published
    return min(published, max(scale.batch, scale.images // 2 // scale.batch * scale.batch))


def _momentum(published: float, steps: int, log: Callable[[str], None]) -> float:
    """A teacher that averages over a twentieth of the run at most."""
    momentum = min(published, max(0.9, round(1 - 20 / steps, 4)))
    if momentum < published:
        log(f"teacher's momentum {momentum:g}, an average over {1 / (1 - momentum):.0f} steps of {steps} (the paper: {published:g})")
    return momentum
