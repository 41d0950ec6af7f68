"""Suspicious things about a split, in words: rare, missing and small classes, masks that were resized."""

from contextlib import suppress

import datasets
import numpy as np

from .class_inference import StoredIds
from .dataset import SegmentationData
from .files import scanned_masks
from .pixels import BadSample, index_array
from .split_report import SplitReport

RARE = 0.001  # share of the labelled pixels below which a class is named
SMALLER = 3  # times that images may be larger than the training size without a word


def smoothed_masks(data: SegmentationData) -> str | None:
    """Return a message if masks of ids look resized or anti-aliased."""
    if not data.labelled or data.colors or data.draw or not isinstance(data.rows, datasets.Dataset):
        return None
    ids = StoredIds()
    for where, mask in scanned_masks(data.rows):
        with suppress(BadSample):
            if not isinstance(mask, Exception):
                ids.add(where, index_array(mask, {"mask": where}.get))
    interpolated = ids.interpolated() if ids.masks else []
    if not interpolated:
        return None
    return (
        f"the masks look resized or anti-aliased: {len(interpolated)} of their {len(ids.counts)} ids occur only along edges, between a "
        "lower and a higher id. Export them with nearest-neighbor resampling and without anti-aliasing."
    )


def rare_classes(train: SplitReport) -> list[str]:
    """Return a sentence about the classes with few pixels."""
    rare = [f"{name} {share:.3%}" for name, share in zip(train.data.classes, train.shares) if 0 < share < RARE]
    return [f"{len(rare)} class(es) have less than {RARE:.1%} of the labelled pixels: {', '.join(rare)}"] if rare else []


def missing_classes(train: SplitReport, val: SplitReport) -> list[str]:
    """Return a sentence about the classes that are trained and not measured."""
    present = (set(part.data.labels.present) for part in (train, val))
    missing = [train.data.classes[i] for i in sorted(next(present) - next(present))]
    return [f"{len(missing)} class(es) of {train.split} occur in no mask of {val.split}: {', '.join(missing)}"] if missing else []


def small_classes(train: SplitReport, image_size: int, base_size: int, stride: int) -> list[str]:
    """Return sentences about images that are reduced much, and about classes smaller than a position of the feature map."""
    if not train.sizes:
        return []
    short = float(np.median([min(size) for size in train.sizes.elements()]))
    scale = min(1.0, base_size / short) if base_size else 1.0
    sentences = []
    if short > SMALLER * (base_size or short):
        sentences.append(
            f"images have {short:.0f} px on the short side (median) and are trained at {base_size}: details smaller than "
            f"{short / base_size:.0f} px are lost; give a larger --image-size"
        )
    small = []
    for number, name in enumerate(train.data.classes):
        areas = [histogram[number] * scale**2 for histogram in train.pixels.values() if histogram[number]]
        if areas and np.median(areas) < stride**2:
            small.append(f"{name} ({np.median(areas):.0f} px)")
    if small:
        sentences.append(
            f"{len(small)} class(es) cover less than a {stride}x{stride} px position of the feature map in most masks at --image-size "
            f"{image_size}: {', '.join(small)}; a larger --image-size or a smaller --output-stride shows them"
        )
    return sentences
