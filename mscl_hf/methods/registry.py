"""From flags to a method: what it reads, and what fits the data and the length of the run.

The published values belong to 1.28 million images and hundreds of thousands of steps. A queue longer than the data set holds each image's
own earlier keys as its negatives; a teacher that moves by a thousandth a step has not moved at the end of a short run.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import torch

from ..losses import MultiScaleLoss
from ..models.modeling_mscl import MsclForPreTraining
from .base import Method, feature_map
from .mscl import MSCL
from .options import MethodOptions

SMALL = 50_000  # images up to which InstDisc's release takes the higher temperature (CIFAR's)


class Scale(NamedTuple):
    """images: how many there are to train on, None where a stream does not tell. batch: images per forward pass, over all processes."""

    images: int | None
    batch: int
    steps: int


def create_method(
    name: str,
    kind: type[Method],
    network: MsclForPreTraining,
    given: dict[str, Any],
    loss: MultiScaleLoss,
    scale: Scale,
    say: Callable[[str], None] = print,
) -> Method:
    """The method of a class, with the options given and, for the others, the paper's or what fits the scale, which is said.

    given: from `read_options`. Raises ValueError where the scale or the network's map does not allow what is asked for.
    """
    if not kind.trains:
        return kind(network)
    if issubclass(kind, MSCL):
        if loss.queue:
            check_queue(loss.queue, scale, say)
        network.config.contrast = {"method": name} | network.config.contrast
        method = kind(network, **_known(kind, given))
    else:
        options = sized(name, kind, _known(kind, given), scale, say)
        network.config.contrast = {"method": name} | options
        method = kind(network, **options)
    _check_map(name, method)
    return method


def read_options(name: str, kind: type[Method], options: MethodOptions, loss: MultiScaleLoss) -> dict[str, Any]:
    """Those of the method's and the loss's options that were given; ValueError for one that the method does not read.

    The controls, which do not train, read none and take all, so that they can run with the flags of what they are compared with.
    """
    given = options.given()
    known = [option for stage in (kind.first_stage, kind) if stage for option in defaults_of(stage)]
    if loss.queue and "queue" in known:
        given["queue"] = loss.queue
    unread = [option for option in given if option not in known]
    if not issubclass(kind, MSCL):
        default = MultiScaleLoss()
        unread += [f.name for f in fields(loss) if getattr(loss, f.name) != getattr(default, f.name) and f.name not in given]
    if unread and kind.trains:
        flags = [flag_of(option) for option in known if option not in ("images", "loss")]
        flags += ["--tau-p and the others of its losses"] if issubclass(kind, MSCL) else []
        raise ValueError(f"{flag_of(unread[0])} is no option of --method {name}, which reads {', '.join(flags)}; leave it out")
    return given


def flag_of(option: str) -> str:
    return "--" + option.replace("_", "-")


def _known(kind: type[Method], given: dict[str, Any]) -> dict[str, Any]:
    return {option: value for option, value in given.items() if option in defaults_of(kind)}


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


def sized(name: str, kind: type[Method], given: dict[str, Any], scale: Scale, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The options given, and those that depend on the scale."""
    known, options = defaults_of(kind), dict(given)
    if "images" in known and given.get("bank_loss") != "batch":
        options["images"] = _images(name, scale)
        if "temperature" not in given and scale.images <= SMALL:
            options["temperature"] = 0.1
            say(f"temperature 0.1, which InstDisc's release has for CIFAR's {SMALL:,} images; {known['temperature']} is that for ImageNet")
    if "queue" in known:
        options["queue"] = _queue(given.get("queue"), known["queue"], scale, say)
    if "ema_momentum" in known and "ema_momentum" not in given:
        options["ema_momentum"] = _momentum(known["ema_momentum"], scale.steps, say)
    return options


def defaults_of(kind: type[Method]) -> dict[str, Any]:
    """The options that a method's constructor takes, and their defaults."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[2:]  # behind self and network
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _images(name: str, scale: Scale) -> int:
    if scale.images is None:
        raise ValueError(f"--method {name} remembers each image, and a stream does not tell how many there are; leave out --streaming")
    return scale.images


def check_queue(length: int, scale: Scale, say: Callable[[str], None]) -> None:
    """ValueError where a batch does not fit into a queue; a word where the queue is longer than the data."""
    if length < scale.batch:
        raise ValueError(f"--queue {length} cannot hold the {scale.batch} keys of a batch; give at least {scale.batch}, or leave it out")
    if scale.images is not None and length > scale.images:
        say(
            f"--queue {length} is longer than the data: each of the {scale.images} images is among its own negatives about "
            f"{length / scale.images:.1f} times; {_fitting(length, scale)} would do"
        )


def _queue(given: int | None, published: int, scale: Scale, say: Callable[[str], None]) -> int:
    if given is not None:
        check_queue(given, scale, say)
        return given
    length = _fitting(published, scale)
    if length < published:
        say(f"queue of {length} keys for {scale.images} images: one that is in it is its own negative (the paper has {published})")
    return length


def _fitting(published: int, scale: Scale) -> int:
    """Whole batches, of half of the images at most; at least one batch."""
    if scale.images is None:
        return published
    return min(published, max(scale.batch, scale.images // 2 // scale.batch * scale.batch))


def _momentum(published: float, steps: int, say: Callable[[str], None]) -> float:
    """A teacher that averages over a twentieth of the run at most."""
    momentum = min(published, max(0.9, round(1 - 20 / steps, 4)))
    if momentum < published:
        say(f"teacher's momentum {momentum:g}, an average over {1 / (1 - momentum):.0f} steps of {steps} (the paper: {published:g})")
    return momentum
