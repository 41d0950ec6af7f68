"""A split of a data set: images with masks of train ids, whatever their layout. Every unusable file raises BadSample, which names it."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from ..losses.labels import IGNORE_INDEX
from .class_colors import ColorTable
from .image_formats import UnsupportedFile
from .image_io import DECODE_ERRORS, decode
from .pixels import BadSample, index_array, resized, rgb_array
from .synthetic import DrawnScenes

ASPECT_TOLERANCE = 0.02  # of the ratio of width to height, within which a mask may be resized to its image


class Sample(NamedTuple):
    """image: (H, W, 3) RGB, or (H, W, bands), in levels of 0 to 255, uint8, or float32 where files hold more bits.
    mask: (H, W) uint8 of train ids, 255 = ignored, or None. name: unique in its split."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str


class Slice(NamedTuple):
    """The volume of an image that is a slice. position: of the slice in its volume, in [0, 1]."""

    volume: str
    position: float


class LabelCounts:
    """Labelled pixels, added up mask by mask.

    pixels, images: (K,) int64, the pixels of each class and the masks that hold it. ignored: pixels with the ignored label.
    read: masks counted. total: masks of the data set, of which `read` may be a part; None for a stream that was not read to its end.
    vanished: classes that the stored masks hold and none of the counted masks, which are smaller.
    """

    def __init__(self, num_classes: int, total: int | None):
        self.pixels = np.zeros(num_classes, dtype=np.int64)
        self.images = np.zeros(num_classes, dtype=np.int64)
        self.ignored, self.read, self.total = 0, 0, total
        self.vanished: list[int] = []

    def add(self, histogram: np.ndarray) -> None:
        """Add one mask. histogram: (256,) pixels of each train id, as `histogram_of` returns it."""
        classes = histogram[: len(self.pixels)]
        self.pixels += classes
        self.images += classes > 0
        self.ignored += int(histogram[IGNORE_INDEX])
        self.read += 1

    @property
    def present(self) -> list[int]:
        """The classes that at least one counted mask holds."""
        return np.flatnonzero(self.pixels).tolist()

    @property
    def stored(self) -> list[int]:
        """The classes that at least one mask holds at its stored size."""
        return sorted({*self.present, *self.vanished})


def histogram_of(mask: np.ndarray) -> np.ndarray:
    """Return (256,) int64, the pixels of each train id of a mask (H, W) uint8."""
    return np.bincount(mask.ravel(), minlength=256)


@dataclass(frozen=True)
class SegmentationData:
    """A split of a data set.

    rows: a `datasets.Dataset` with Image columns, or scenes drawn on demand.
    classes: the names of train ids 0..K-1; () without masks.
    label_table: (256,) uint8 or (65536,) int32, stored id -> train id, 255 = ignored; None = stored ids are train ids.
    groups: the stratum of each row, such as its video sequence, for subsets that keep the proportions.
    slices: the volume of each row and its position there; None = the images are not slices.
    note: sentence for the log at startup: how many images and masks, and where.
    image_range: the values of black and white in images of more than 8 bits; None = such images cannot be read. With a range, all images
        are read as float32.
    labels: label counts of these rows; None = not counted.
    colors: the ids of colors in masks of colors; None = masks hold ids.
    resize_masks: whether masks of another size than their image, but the same aspect, are resized to it.
    draw: draws the ids (H, W) uint8 of a mask that is stored as shapes, from its bytes; None = masks are stored as images.
    bands: the bands of an image that are its channels, counted from 1, see `stored_pixels`; None = RGB.
    """

    rows: datasets.Dataset | DrawnScenes
    classes: tuple[str, ...]
    name: str
    split: str
    label_table: np.ndarray | None = None
    groups: tuple[str, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    note: str = ""
    image_range: tuple[int, int] | None = None
    labels: LabelCounts | None = None
    colors: ColorTable | None = None
    resize_masks: bool = False
    draw: Callable[[bytes], np.ndarray] | None = None
    bands: tuple[int, ...] | None = None

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
        if not isinstance(self.rows, datasets.Dataset):
            return self.rows.names
        return self.rows.select_columns("name").with_format("arrow")[:]["name"].to_pylist()

    def read(self, index: int) -> Sample:
        """Decode row `index`. Raises BadSample, which names the unusable file."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.name}/{self.split}, which has {len(self)} rows")
        if not isinstance(self.rows, datasets.Dataset):
            return to_sample(self.rows[int(index)], self, lambda column: self._file({}, index, column))
        stored = self.stored(index)
        return decoded_sample(stored, self, lambda column: self._file(stored, index, column))

    def is_cached(self, index: int) -> bool:
        """Return whether row `index` was decoded before, and its arrays are stored: never, without a cache."""
        return False

    def read_mask(self, index: int) -> np.ndarray:
        """Return the train ids (H, W) uint8 of row `index` at their stored size, without decoding its image. Raises BadSample."""
        stored = {} if not isinstance(self.rows, datasets.Dataset) else self.stored(index)
        file_of = partial(self._file, stored, index)
        mask = _decoded_mask(stored["mask"], file_of, self) if stored else self.rows[int(index)]["mask"]
        return train_ids(mask, self, file_of)

    def select(self, indices: Sequence[int]) -> "SegmentationData":
        """Return the data with only these rows, in this order."""
        indices = [int(i) for i in indices]
        groups, slices = (None if of is None else tuple(of[i] for i in indices) for of in (self.groups, self.slices))
        return replace(self, rows=self.rows.select(indices), groups=groups, slices=slices, labels=None)

    def with_labels(self, labels: LabelCounts) -> "SegmentationData":
        """Return the data with the counts of its labels; cached properties are kept."""
        counted = copy.copy(self)
        object.__setattr__(counted, "labels", labels)  # as dataclasses do it in a frozen one; `replace` would drop the caches
        return counted

    def stored(self, index: int) -> dict[str, Any]:
        """Return row `index` of a `datasets.Dataset`, not decoded: an image is {"path": ..., "bytes": ...}."""
        return self._undecoded[int(index)].to_pylist()[0]

    @cached_property
    def _undecoded(self) -> datasets.Dataset:
        return self.rows.with_format("arrow")

    def _file(self, stored: dict[str, Any], index: int, column: str) -> str:
        """Return the name of a column's file in messages; that of a mask follows the words "the mask"."""
        return (stored.get(column) or {}).get("path") or row_of(column, f"row {index} of {self.name}/{self.split}")


def row_of(column: str, row: str) -> str:
    """Return the name of an image that is not a file; that of a mask follows the words "the mask"."""
    return f"of {row}" if column == "mask" else f"the {column} of {row}"


def decoded_sample(stored: dict[str, Any], data: Any, file_of: Callable[[str], str]) -> Sample:
    """Decode a row of an encoded image and mask; arguments and errors as in `to_sample`."""
    row = {"name": stored["name"], "image": _decoded(stored.get("image") or {}, file_of("image"), data.bands is not None)}
    if data.labelled and stored.get("mask"):  # a missing mask is reported by `to_sample`
        row["mask"] = _decoded_mask(stored["mask"], file_of, data)
    return to_sample(row, data, file_of)


def _decoded_mask(value: dict[str, Any], file_of: Callable[[str], str], data: Any) -> Any:
    """Decode or draw one stored mask. Raises BadSample."""
    if data.draw is None:
        return _decoded(value, f"the mask {file_of('mask')}")
    try:
        return Image.fromarray(data.draw(value["bytes"]))
    except ValueError as error:
        raise BadSample(f"{file_of('mask')}: {error}") from error


def _decoded(value: dict[str, Any], file: str, all_bands: bool = False) -> Any:
    """Decode one stored image. Raises BadSample."""
    try:
        return decode(value.get("path"), value.get("bytes"), all_bands)
    except DECODE_ERRORS as error:
        raise unreadable(file, error) from error


def unreadable(where: str, error: Exception) -> BadSample:
    """Return the error for a truncated file, one that is not an image, one beyond Pillow's pixel limit, or several images in one file."""
    if isinstance(error, UnsupportedFile):
        return BadSample(f"{where} {error}")
    reason = re.sub(r" at 0x[0-9a-f]+", "", str(error))  # Pillow adds the address of a buffer, which makes equal messages differ
    return BadSample(f"{where} cannot be read as an image ({reason}). Replace it, or skip it with --max-bad-images N.")


def to_sample(row: dict[str, Any], data: Any, file_of: Any) -> Sample:
    """Check and convert one decoded row. data: SegmentationData or a stream. file_of(column): the file's name."""
    image = rgb_array(row["image"], file_of, data.image_range, data.bands)
    if not data.classes:
        return Sample(image, None, row["name"])
    if row.get("mask") is None:
        raise BadSample(f"{file_of('image')} has no mask. Add one, or leave the image out of the labelled data.")
    mask = train_ids(row["mask"], data, file_of)
    if mask.shape != image.shape[:2]:
        has_aspect = abs(mask.shape[0] * image.shape[1] / (mask.shape[1] * image.shape[0]) - 1) <= ASPECT_TOLERANCE
        if not (data.resize_masks and has_aspect):
            remedy = "Give --resize-masks if both show the same" if has_aspect else "Bring both to one size"
            raise BadSample(
                f"{file_of('image')} is {_size(image)} but its mask {file_of('mask')} is {_size(mask)} "
                f"(width x height, EXIF orientation applied). {remedy}."
            )
        mask = resized(mask, (image.shape[1], image.shape[0]), Image.Resampling.NEAREST)
    return Sample(image, mask, row["name"])


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def train_ids(mask: Any, data: Any, file_of: Any) -> np.ndarray:
    """Return the train ids (H, W) uint8 of a decoded mask. Raises BadSample."""
    stored = index_array(mask, file_of, data.colors)
    table = np.arange(256, dtype=np.uint8) if data.label_table is None else data.label_table
    no_class = (table >= len(data.classes)) & (table != IGNORE_INDEX)  # by stored id
    fits = stored.dtype == np.uint8 or bool(((stored >= 0) & (stored < len(table))).all())
    if not fits or no_class[stored].any():
        unknown_ids = [int(id) for id in np.unique(stored) if not 0 <= id < len(table) or no_class[id]]
        raise BadSample(
            f"the mask {file_of('mask')} holds the ids {unknown_ids[:10]}; expected ids of the {len(data.classes)} classes or the ignored "
            f"label {IGNORE_INDEX}. Correct the mask, --classes or --label-map.",
            unknown_ids,
        )
    return table[stored].astype(np.uint8, copy=False)
