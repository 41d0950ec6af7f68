"""Sizes of the training crop and of the images where none are given: from the training images, for a first run on this machine."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ..config import CheckRun, DataConfig, NetworkConfig
from ..config.data import OWN_DATA, OWN_MASKS
from ..config.network import DEFAULT_SIZE
from ..losses.labels import IGNORE_INDEX
from ..records.run_folder import resolved_options
from .checks import examined_rows, run_once
from .dataset import SegmentationData, histogram_of
from .pixels import BadSample
from .size_checks import EXAMINED, MULTIPLE, median_short_side
from .splits import needs_classes, open_split

LARGEST = 512  # px, of a derived crop
SMALLEST_OBJECT = 32  # px, the side that the smallest class should have in the network: two positions of a feature map of stride 16
CPU_PIXELS = 16 * 160**2  # of the crops in a batch: 300 steps of a ResNet-18 take minutes on two cores
# Two views of 10^6 pixels keep 1.1 GB of activations in a ResNet-18 with its decoder, 4.0 GB in a ResNet-50, 5.1 GB in a ConvNeXt-T.
PIXELS_PER_GPU_BYTE = 1 / 8000


SizedSection = TypeVar("SizedSection", NetworkConfig, CheckRun)  # with image_size and base_size, None = not given


@dataclass(frozen=True)
class Limit:
    """The largest crop that the machine allows. side: in px. reason: why it is not larger; "" for LARGEST."""

    side: int
    reason: str


def with_known_sizes(section: SizedSection, options: DataConfig, resume: bool, out: str) -> SizedSection:
    """Return the section with the sizes of the run in `out` that is resumed, or the fixed default for data that is not of one's own."""
    if section.image_size is not None:
        return section
    recorded = resolved_options(Path(out)) if resume else {}
    if recorded.get("image_size") is not None:
        base_size = recorded.get("base_size") if section.base_size is None else section.base_size
        return replace(section, image_size=recorded["image_size"], base_size=base_size)
    return section if options.dataset in OWN_DATA else replace(section, image_size=DEFAULT_SIZE)


def machine_limit(device: torch.device | None, batch_size: int) -> Limit:
    """Return the largest crop for a first run. device: None = the GPU, if there is one. batch_size: of a process on a GPU, of all processes
    on a CPU."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        pixels, reason = memory * PIXELS_PER_GPU_BYTE, f"limited by {memory / 1e9:.0f} GB of GPU memory"
    else:
        pixels, reason = CPU_PIXELS, "limited by the speed of the CPU"
    side = int(math.sqrt(pixels / batch_size)) // MULTIPLE * MULTIPLE
    return Limit(LARGEST, "") if side >= LARGEST else Limit(max(DEFAULT_SIZE, side), f"{reason} at --batch-size {batch_size}")


def with_derived_sizes(
    section: SizedSection, options: DataConfig, limit: Limit, log: Callable[[str], None] = print, uses_labels: bool = True
) -> SizedSection:
    """Return the section with sizes derived from the training images, which are logged; a given size is kept.

    The crop is as large as the images and the limit allow. The images are scaled to it, or to at most twice its side where the smallest
    class would else be smaller than SMALLEST_OBJECT. Tiles are not scaled. uses_labels: False = no mask is read.
    Raises ValueError if the data cannot be opened.
    """
    if section.image_size is not None:
        return section
    side, extent = _measured(options, uses_labels and options.tile is None)
    if side is None:
        log(f"sizes: {'a stream is not measured' if options.streaming else 'no image can be read'}; crop {DEFAULT_SIZE} px (--image-size)")
        return replace(section, image_size=DEFAULT_SIZE)
    if options.tile is not None:  # tiles are not scaled
        side, section = min(side, options.tile[0]), replace(section, base_size=0)
    scaled = section.base_size or side  # the largest short side of the images in the network
    crop = min(limit.side, max(DEFAULT_SIZE, round(scaled / MULTIPLE) * MULTIPLE))
    wanted = 2 * crop if extent is None else side * SMALLEST_OBJECT / extent
    base = section.base_size
    if base is None:
        base = crop if side <= crop else min(2 * crop, side, max(crop, math.ceil(wanted / MULTIPLE) * MULTIPLE))
    measured = f"short side of the {'images' if options.tile is None else 'tiles'} {side} px"
    measured += "" if extent is None else f", the smallest class {extent:.0f} px"
    reason = f"; the crop is {limit.reason}" if crop == limit.side < scaled and limit.reason else ""
    log(
        f"sizes from the data: crop {crop} px, base size {base} px ({measured}{reason}; --image-size and --base-size set others)"
    )
    return replace(section, image_size=crop, base_size=base)


def _measured(options: DataConfig, uses_labels: bool) -> tuple[int | None, float | None]:
    """Return the median short side of the stored training images, and the side of the smallest class; None = unknown.

    All processes open the data, and the main process reads.
    """
    split = options.train_split or "train"
    images = open_split(options, split, unlabelled=True)
    side = run_once(lambda: median_short_side(images)) if isinstance(images, SegmentationData) else None
    if side is None or not uses_labels:
        return side, None
    any_ids = options.dataset in OWN_MASKS and needs_classes(options)  # the classes are not inferred here
    with suppress(ValueError):  # reported when the masks are opened for training
        masks = open_split(replace(options, num_classes=IGNORE_INDEX) if any_ids else options, split)
        return side, run_once(lambda: _smallest_extent(masks))
    return side, None


def _smallest_extent(data: SegmentationData) -> float | None:
    """Return the side in px of a square of the mean area of the smallest class in the masks that hold it; None without masks."""
    histograms = []
    for index in examined_rows(len(data), EXAMINED) if data.labelled else ():
        with suppress(BadSample):
            histograms.append(histogram_of(data.read_mask(index))[:IGNORE_INDEX])
    counts = np.array(histograms).reshape(-1, IGNORE_INDEX)
    masks = (counts > 0).sum(0)
    return float(np.sqrt((counts.sum(0)[masks > 0] / masks[masks > 0]).min())) if masks.any() else None
