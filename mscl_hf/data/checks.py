"""Checks of a data set before training, which the main process alone makes."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import distributed

from ..losses.labels import IGNORE_INDEX
from ..progress_bar import progress_bar
from .dataset import LabelCounts, SegmentationData, histogram_of
from .pixels import BadSample, unknown_colors_remedy

EXAMINED_AT_MOST = 4000  # rows that are read before training starts, while the other processes wait
Result = TypeVar("Result")


class Fault(NamedTuple):
    """Why a row cannot be used. unknown_ids: the ids in its mask that are not classes. colors: pixels of the colors without a class."""

    message: str
    unknown_ids: Sequence[int]
    colors: Counter


def run_once(work: Callable[[], Result]) -> Result:
    """Call `work` on the main process and return its result on all processes; an error raises everywhere, with the same message.

    All processes must call it. Results are sent by pickle. Without a process group it is a plain call.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return work()
    failure, outcome = None, [None, None]  # the result; class and message of an error
    if distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # whatever it is, the other processes must not wait for a result
            failure = error
            error_class = next((cls for cls in (BadSample, ValueError, OSError) if isinstance(error, cls)), RuntimeError)
            outcome[1] = error_class, str(error)  # not the error itself, which may be impossible to send
    distributed.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        error_class, message = outcome[1]
        raise error_class(message)
    return outcome[0]


def with_progress(results: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Return the results, one for each image, with a progress bar on the main process if they take longer than 3 s."""
    hidden = None if os.environ.get("RANK", "0") == "0" else True  # None: hidden where stderr is a file
    return progress_bar(results, total=total, desc=description, unit="image", delay=3, leave=False, disable=hidden)


def examined_rows(count: int, limit: int = EXAMINED_AT_MOST) -> Sequence[int]:
    """Return all rows, or `limit` evenly spaced ones of more."""
    return range(count) if count <= limit else [i * count // limit for i in range(limit)]


def check_data(
    data: SegmentationData,
    max_bad_images: int = 0,
    decode_at_most: int = EXAMINED_AT_MOST,
    workers: int = 4,
    labels: LabelCounts | None = None,
) -> tuple[list[int], list[str]]:
    """Read samples before training starts, so that a bad file costs seconds and not a night.

    Reads all rows, or `decode_at_most` evenly spaced ones of more; rows that are not read count as usable. Without `labels`, rows whose
    decoded arrays are cached are not read again.
    labels: counts to which the masks of usable rows are added.
    Returns (indices of the usable rows, a message for each bad row).
    Raises BadSample if more than `max_bad_images` rows are bad, or all of them.
    """
    rows = examined_rows(len(data), decode_at_most)

    def examined(index: int) -> tuple[Fault | None, np.ndarray | None]:
        """Return the fault of a row and the histogram of its mask."""
        if labels is None and data.is_cached(index):
            return None, None
        try:
            mask = data.read(index).mask
        except BadSample as error:
            fault = Fault(str(error), error.unknown_ids, error.unknown_colors)
            return fault, None  # the error itself would keep the arrays of its frames
        return None, None if mask is None or labels is None else histogram_of(mask)

    faults = {}
    with ThreadPoolExecutor(workers) as pool:
        results = with_progress(pool.map(examined, rows), len(rows), f"checking {data.name}/{data.split}")
        for row, (fault, histogram) in zip(rows, results):
            if fault:
                faults[row] = fault
            elif histogram is not None:
                labels.add(histogram)
    messages = [fault.message for fault in faults.values()]
    if len(faults) > max_bad_images or (faults and len(faults) == len(data)):
        raise BadSample(
            f"{len(faults)} of the {len(rows)} samples read from {data.name}/{data.split} cannot be used (--max-bad-images is "
            f"{max_bad_images}); the first: {messages[0].rstrip('.')}; {_remedy(list(faults.values()), data)}."
        )
    return [row for row in range(len(data)) if row not in faults], messages


def _remedy(faults: Sequence[Fault], data: SegmentationData) -> str:
    """Return what to do about the faults: give more classes, if the unknown ids follow directly on the known ones."""
    remedy = "correct them" if len(faults) > 1 else "correct it"
    colors = sum((fault.colors for fault in faults), Counter())
    if all(fault.colors for fault in faults) and len(colors) > len(faults[0].colors):
        remedy = f"for all of them: {unknown_colors_remedy(colors).rstrip('.')}"
    ids = sorted({id for fault in faults for id in fault.unknown_ids})
    is_next = ids == list(range(data.num_classes, data.num_classes + len(ids))) and IGNORE_INDEX not in ids
    if all(fault.unknown_ids for fault in faults) and is_next and data.label_table is None:
        names = ", ".join(map(repr, data.classes[:3])) + ", ..." * (data.num_classes > 3)
        remedy = (
            f"the masks hold ids up to {ids[-1]} and the data has {data.num_classes} class(es), {names}: give --num-classes {ids[-1] + 1}, "
            "or as many names to --classes, separated by spaces or commas (in a file: one a line)"
        )
    return remedy if len(faults) == len(data) else f"{remedy}, or give --max-bad-images N with N >= {len(faults)} to leave them out"
