"""Images with masks of train ids, whatever the layout they were stored in; every fault of a file is named here."""

import copy
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import datasets
import numpy as np
from tqdm import tqdm

from .image_formats import UnsupportedFile
from .image_io import DECODE_ERRORS, decode
from .label_counts import IGNORE_INDEX, LabelCounts, histogram_of
from .pixels import BadSample, index_array, rgb_array


class Sample(NamedTuple):
    """image: (H, W, 3) RGB in levels of 0 to 255, uint8, or float32 where files hold more bits.
    mask: (H, W) uint8 of train ids, 255 = ignored, or None. name: unique in its split."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str


class Slice(NamedTuple):
    """Where an image is from that is a slice of a volume. position: its place among the volume's slices, from 0 to 1."""

    volume: str
    position: float


class UnknownLabels(BadSample):
    """A mask that holds stored ids which are no class."""

    def __init__(self, message: str, ids: list[int]):
        super().__init__(message)
        self.ids = ids


class Fault(NamedTuple):
    """Why a row cannot be used. unknown_ids: those stored in its mask, where that is the fault."""

    message: str
    unknown_ids: list[int]


class Rows(Protocol):
    """What data is read from: `datasets.Dataset` with Image columns, or scenes drawn on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def select(self, indices: Sequence[int]) -> "Rows": ...

    names: list[str]


@dataclass(frozen=True)
class SegmentationData:
    """A split of a data set.

    rows: len() and [i] -> {"image": PIL image, "mask": PIL image or None, "name": str}, or a `datasets.Dataset` that stores these encoded.
    classes: the names of train ids 0..K-1; () when there are no masks.
    label_table: (256,) uint8 or (65536,) int32, stored id -> train id, 255 = ignored; None = stored ids are train ids.
    groups: the stratum of each row (a video sequence, say), for subsets that keep the proportions.
    slices: where each row is from, in data of volumes; None = the images belong to none.
    note: what was found where, for the log at startup.
    image_range: the stored values that are black and white in images of more than 8 bits; None = no such image can be read. With a range,
        every image is read as float32.
    labels: what the check of the data counted in the masks of these rows; None = not counted.
    """

    rows: Rows
    classes: tuple[str, ...]
    name: str
    split: str
    label_table: np.ndarray | None = None
    groups: tuple[str, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    note: str = ""
    image_range: tuple[int, int] | None = None
    labels: LabelCounts | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    @property
    def names(self) -> list[str]:
        """The name of each row, without decoding anything."""
        return list(self.rows["name"]) if isinstance(self.rows, datasets.Dataset) else self.rows.names

    def read(self, index: int) -> Sample:
        """Decode row `index`. Raises BadSample naming the file that cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.name}/{self.split}, which has {len(self)} rows")
        if not isinstance(self.rows, datasets.Dataset):
            return to_sample(self.rows[int(index)], self, lambda column: self._file({}, index, column))
        stored = self.stored(index)
        return decoded_sample(stored, self, lambda column: self._file(stored, index, column))

    def read_mask(self, index: int) -> np.ndarray:
        """(H, W) uint8, the train ids of row `index` at their stored size; its image is not decoded. Raises BadSample."""
        stored = {} if not isinstance(self.rows, datasets.Dataset) else self.stored(index)
        file_of = partial(self._file, stored, index)
        mask = _decoded(stored["mask"], f"the mask {file_of('mask')}") if stored else self.rows[int(index)]["mask"]
        return _train_ids(index_array(mask, file_of), self, file_of)

    def select(self, indices: Sequence[int]) -> "SegmentationData":
        """The same data with only these rows, in this order."""
        indices = [int(i) for i in indices]
        groups, slices = (None if of is None else tuple(of[i] for i in indices) for of in (self.groups, self.slices))
        return replace(self, rows=self.rows.select(indices), groups=groups, slices=slices, labels=None)

    def with_labels(self, labels: LabelCounts) -> "SegmentationData":
        """The same data with the counts of its labels, and with all that is cached of it."""
        counted = copy.copy(self)
        object.__setattr__(counted, "labels", labels)  # as dataclasses do it in a frozen one; `replace` would drop the caches
        return counted

    def stored(self, index: int) -> dict[str, Any]:
        """Row `index` of a `datasets.Dataset`, not decoded: an image is {"path": ..., "bytes": ...}."""
        return self._undecoded[int(index)].to_pylist()[0]

    @cached_property
    def _undecoded(self) -> datasets.Dataset:
        return self.rows.with_format("arrow")

    def _file(self, stored: dict[str, Any], index: int, column: str) -> str:
        """How to name the file behind a column in a message, of a mask after the words "the mask"."""
        return (stored.get(column) or {}).get("path") or row_of(column, f"row {index} of {self.name}/{self.split}")


def row_of(column: str, row: str) -> str:
    """The name of an image without a file, and of a mask after the words "the mask"."""
    return f"of {row}" if column == "mask" else f"the {column} of {row}"


def decoded_sample(stored: dict[str, Any], data: Any, file_of: Callable[[str], str]) -> Sample:
    """The sample of a row that holds its image and mask encoded; arguments and faults as of `to_sample`."""
    row = {"name": stored["name"]}
    for column in ("image", "mask") if data.labelled else ("image",):
        value = stored.get(column) or {}
        # a mask may be missing, which `to_sample` says
        row[column] = _decoded(value, "the mask " * (column == "mask") + file_of(column)) if value or column == "image" else None
    return to_sample(row, data, file_of)


def _decoded(value: dict[str, Any], file: str) -> Any:
    """Raises BadSample."""
    try:
        return decode(value.get("path"), value.get("bytes"))
    except DECODE_ERRORS as error:
        raise unreadable(file, error) from error


def unreadable(where: str, error: Exception) -> BadSample:
    """The message for a truncated file, a file that is no image, one beyond Pillow's pixel limit, or several images in one."""
    if isinstance(error, UnsupportedFile):
        return BadSample(f"{where} {error}")
    reason = re.sub(r" at 0x[0-9a-f]+", "", str(error))  # Pillow tells the address of a buffer, and one bad row would count as many
    return BadSample(f"{where} cannot be read as an image ({reason}); replace it, or skip it with --max-bad-images N")


def to_sample(row: dict[str, Any], data: Any, file_of: Any) -> Sample:
    """Check and convert one decoded row. data has `classes`, `label_table` and `image_range`; file_of(column) names its file."""
    image = rgb_array(row["image"], file_of, data.image_range)
    if not data.classes:
        return Sample(image, None, row["name"])
    if row.get("mask") is None:
        raise BadSample(f"{file_of('image')} has no mask; add one, or leave the image out of the labelled data")
    stored = index_array(row["mask"], file_of)
    if stored.shape != image.shape[:2]:
        raise BadSample(
            f"{file_of('image')} is {_size(image)} but its mask {file_of('mask')} is {_size(stored)} "
            "(width x height, EXIF orientation applied); bring both to one size"
        )
    return Sample(image, _train_ids(stored, data, file_of), row["name"])


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _train_ids(stored: np.ndarray, data: Any, file_of: Any) -> np.ndarray:
    table = np.arange(256, dtype=np.uint8) if data.label_table is None else data.label_table
    outside = (table >= len(data.classes)) & (table != IGNORE_INDEX)  # stored ids that are no class
    fits = stored.dtype == np.uint8 or bool(((stored >= 0) & (stored < len(table))).all())
    if not fits or outside[stored].any():
        wrong = [int(v) for v in np.unique(stored) if not 0 <= v < len(table) or outside[v]]
        raise UnknownLabels(
            f"the mask {file_of('mask')} holds the label(s) {wrong[:10]}, which belong to none of the {len(data.classes)} "
            f"classes nor to the ignored label {IGNORE_INDEX}; correct the mask, the classes or the label map",
            wrong,
        )
    return table[stored].astype(np.uint8, copy=False)


def with_progress(results: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """The results, one for each image, with a progress bar on the main process where they take longer than 3 s."""
    silent = os.environ.get("RANK", "0") != "0"
    return tqdm(results, total=total, desc=description, unit="image", delay=3, leave=False, disable=silent)


EXAMINED_AT_MOST = 4000  # rows that are read before training starts


def examined_rows(count: int, limit: int = EXAMINED_AT_MOST) -> Sequence[int]:
    """All rows, or `limit` evenly spaced ones where there are more."""
    return range(count) if count <= limit else [i * count // limit for i in range(limit)]


def check_data(
    data: SegmentationData,
    max_bad_images: int = 0,
    decode_at_most: int = EXAMINED_AT_MOST,
    workers: int = 4,
    labels: LabelCounts | None = None,
) -> tuple[list[int], list[str]]:
    """Read samples before training starts, so that a bad file costs seconds and not a night.

    Reads every row, or `decode_at_most` evenly spaced ones where there are more; rows not read count as usable.
    labels: to which the masks of the usable rows that are read are added.
    Returns (indices of the usable rows, a message for each bad row).
    Raises BadSample when more than `max_bad_images` rows are bad, or all of them.
    """
    if max_bad_images < 0 or decode_at_most < 1 or workers < 1:
        raise ValueError(
            f"check_data got max_bad_images={max_bad_images}, decode_at_most={decode_at_most}, workers={workers}; "
            "wanted at least 0, 1 and 1"
        )
    chosen = examined_rows(len(data), decode_at_most)

    def examined(index: int) -> tuple[Fault | None, np.ndarray | None]:
        """What is wrong with a row, and the histogram of its mask."""
        try:
            mask = data.read(index).mask
        except BadSample as error:
            return Fault(str(error), getattr(error, "ids", [])), None  # the error itself would keep the arrays of its frames
        return None, None if mask is None or labels is None else histogram_of(mask)

    faults = {}
    with ThreadPoolExecutor(workers) as pool:
        results = with_progress(pool.map(examined, chosen), len(chosen), f"checking {data.name}/{data.split}")
        for i, (fault, histogram) in zip(chosen, results):
            if fault:
                faults[i] = fault
            elif histogram is not None:
                labels.add(histogram)
    bad = [fault.message for fault in faults.values()]
    if len(bad) > max_bad_images or (bad and len(bad) == len(data)):
        verb = "is" if len(bad) == 1 else "are"
        raise BadSample(
            f"{len(bad)} of the {len(chosen)} samples read from {data.name}/{data.split} {verb} bad "
            f"(--max-bad-images {max_bad_images}); the first: {bad[0]}; {_remedy(list(faults.values()), data)}"
        )
    return [i for i in range(len(data)) if i not in faults], bad


def _remedy(faults: Sequence[Fault], data: SegmentationData) -> str:
    """What to do about the faults; more classes where the unknown ids are the next ones after those of the classes."""
    remedy, ids = "correct them" if len(faults) > 1 else "correct it", sorted({id for fault in faults for id in fault.unknown_ids})
    is_next = ids == list(range(data.num_classes, data.num_classes + len(ids))) and IGNORE_INDEX not in ids
    if all(fault.unknown_ids for fault in faults) and is_next and data.label_table is None:
        names = ", ".join(map(repr, data.classes[:3])) + ", ..." * (data.num_classes > 3)
        remedy = (
            f"the masks hold ids up to {ids[-1]}, and {data.num_classes} class(es) are known: {names}. Give --num-classes {ids[-1] + 1}, "
            "or as many names to --classes, separated by spaces or commas (in a file: one a line)"
        )
    if len(faults) == len(data):
        return remedy
    return f"{remedy}, or pass --max-bad-images N with N >= {len(faults)} to leave them out"
