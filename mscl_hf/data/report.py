"""What `mscl-data check` finds in a data set: all problems and all suspicious things, not only the first."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import DataConfig
from ..config.data import OWN_MASKS
from .checks import examined_rows, with_progress
from .dataset import LabelCounts, SegmentationData, histogram_of
from .folder_names import UnknownSplit
from .label_checks import label_warnings, require_classes, stored_ids
from .pixels import BadSample
from .split_report import SplitReport
from .splits import HELD_OUT, needs_classes, open_split, with_image_range
from .suspicions import missing_classes, rare_classes, small_classes, smoothed_masks


@dataclass
class DataReport:
    """splits: those that exist. problems: why training would be rejected. suspicions: what may be wrong. notes: what was decided."""

    splits: list[SplitReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_problem(self, message: str) -> None:
        if message not in self.problems:
            self.problems.append(message)


def examine(options: DataConfig, image_size: int, base_size: int | None, stride: int) -> DataReport:
    """Open all splits, read up to 4,000 samples of each, and collect what is wrong.

    image_size: of the training crop, base_size: the short side to which images are scaled before it (0 = not scaled, None = image_size),
    stride: of the feature map, all in px; small objects are judged by them.
    """
    report = DataReport()
    if options.tile is not None:
        report.notes.append("whole images are examined; training divides them into tiles")
    train_split, held_out = options.train_split or "train", options.val_split or HELD_OUT.get(options.dataset, "val")
    with _collected(report):
        options = with_image_range(options, log=report.notes.append)
    train = _examined(options, train_split, report, True)
    if train.is_labelled and needs_classes(options):
        options = replace(options, classes=list(train.data.classes))
    splits = [train, *(_examined(options, split, report, False) for split in (held_out, "test") if split not in ("none", train_split))]
    report.splits = [split for split in splits if split is not None]
    opened = {split.split: split for split in report.splits if split.data is not None}
    if train.is_labelled:
        with _collected(report):
            if len(train.data.labels.stored) < 2:
                require_classes(train.data, stored_ids(train.data), options)
        report.suspicions += rare_classes(train) + small_classes(train, image_size, image_size if base_size is None else base_size, stride)
    elif train.data is not None and not report.problems:
        report.suspicions.append(f"there are no masks: {train.data.note}; pre-training needs --losses g, l or g+l")
    val = opened.get(held_out)
    if val is None and held_out != "none":
        report.suspicions.append(f"there is no split {held_out!r}, so that nothing is measured; --val-fraction 0.2 holds out a part")
    elif val is not None and val.is_labelled and train.is_labelled:
        report.suspicions += missing_classes(train, val)
    parts = [None if split is None or split.assumed else split.data for split in (train, val, opened.get("test"))]
    report.suspicions += label_warnings(parts[:1], parts[1], options)
    if parts[2] is not None:
        report.suspicions += [text for text in label_warnings(parts[:2], parts[2], options) if "byte for byte" in text]
    report.suspicions = list(dict.fromkeys(report.suspicions))
    return report


class _collected(suppress):
    """Collect a ValueError as a problem."""

    def __init__(self, report: DataReport):
        super().__init__(ValueError)
        self.report = report

    def __exit__(self, error_cls, error, traceback) -> bool:
        if isinstance(error, ValueError):
            self.report.add_problem(str(error))
        return super().__exit__(error_cls, error, traceback)


def _examined(options: DataConfig, split: str, report: DataReport, is_train: bool) -> SplitReport | None:
    """Return the report of a split; None if the data has no such split, which is a problem for the training split only."""
    result = SplitReport(split)
    for number, attempt in enumerate(_attempts(options)):
        try:
            data = attempt(split)
        except UnknownSplit as error:
            if is_train:
                report.add_problem(str(error))
            return result if is_train else None
        except ValueError as error:
            report.add_problem(str(error))
            continue
        result.assumed = number > 0
        _read_all(data, result)
        break
    reported = {_kind(problem) for problem in report.problems}
    for first, count in _kinds(result.faults):
        message = f"{count} of {len(result.data)} samples of {split}, such as: {first}"
        if len(result.faults) <= options.max_bad_images:
            report.suspicions.append(f"{message} (skipped, since --max-bad-images is {options.max_bad_images})")
        elif not (result.assumed and _kind(first) in reported):
            report.add_problem(message)
    return result


def _attempts(options: DataConfig) -> list[Callable[[str], SegmentationData]]:
    """Return ways to open a split, each of which passes over more: masks as they are, any ids, only images with masks, only images."""
    options = replace(options, streaming=False)
    any_ids = replace(options, num_classes=255) if options.dataset in OWN_MASKS and needs_classes(options) else options
    variants = [options, any_ids, *([replace(any_ids, masked_only=True)] if options.dataset == "folder" else [])]
    unique = [variant for number, variant in enumerate(variants) if variant not in variants[:number]]
    attempts = [lambda split, variant=variant: open_split(variant, split) for variant in unique]
    return [*attempts, lambda split: open_split(options, split, unlabelled=True)]


def _read_all(data: SegmentationData, result: SplitReport) -> None:
    """Read the samples of a split into its report."""
    rows = examined_rows(len(data))
    labels = LabelCounts(data.num_classes, len(rows)) if data.labelled else None

    def read(index: int) -> tuple[tuple[int, int] | None, np.ndarray | None, str]:
        """Return the size, the histogram of the mask, and the fault."""
        try:
            image, mask, _ = data.read(index)
            return image.shape[1::-1], None if mask is None else histogram_of(mask), ""
        except BadSample as error:
            message = str(error)
        with suppress(BadSample):  # an image without its mask still has a size
            return replace(data, classes=()).read(index).image.shape[1::-1], None, message
        return None, None, message

    with ThreadPoolExecutor(4) as pool:
        samples = with_progress(pool.map(read, rows), len(rows), f"reading {data.name}/{data.split}")
        for index, (size, histogram, fault) in zip(rows, samples):
            result.sizes.update([size] if size else [])
            result.faults += [fault] if fault else []
            if labels is not None and histogram is not None:
                labels.add(histogram)
                result.pixels[index] = histogram
    result.data = data if labels is None else data.with_labels(labels)
    if smoothed := smoothed_masks(data):
        result.faults.append(smoothed)


def _kinds(messages: Sequence[str]) -> list[tuple[str, int]]:
    """Return the first message of each kind with the number of its kind: messages that differ in files and numbers only are one."""
    first: dict[str, str] = {}
    counts: Counter = Counter()
    for message in messages:
        kind = _kind(message)
        first.setdefault(kind, message)
        counts[kind] += 1
    return [(first[kind], count) for kind, count in counts.most_common()]


def _kind(message: str) -> str:
    """Return the beginning of a message without files and numbers."""
    return re.sub(r"\S*/\S*|[0-9.]+|\([^)]*\)", "", message).strip()[:36]
