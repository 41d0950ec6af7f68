"""The image cache: decoded images on disk, so that a file is decoded once and not every epoch; one memory-mapped array an image or mask.

The name of a cached array is a digest of all that decides its content: the file with its size and time (or its bytes), the short side, the
image range, for a mask its image and how it is read. Arrays appear whole, by a rename: runs may share the folder, be killed, or lose
it, at any time.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import PIL
from PIL import Image

from ..losses.labels import IGNORE_INDEX
from .checks import examined_rows
from .dataset import BadSample, Sample, SegmentationData, histogram_of
from .pixels import resized

VERSION = 3  # of decoding; a change makes all older arrays unused
DRAWING = 1  # version of the drawing of shapes
ROWS_AT_ONCE = 1000  # if they hold paths; rows with the bytes of images are read one at a time
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in px


def cache_folder() -> Path:
    """Return the folder of the image cache: below MSCL_HF_CACHE, or below mscl_hf in the user's cache folder."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mscl_hf")  # a container may have no home
    return Path(os.environ.get("MSCL_HF_CACHE") or fallback) / "decoded"


@dataclass(frozen=True)
class CachedData(SegmentationData):
    """Samples of at most short_side px on their short side (0 = as stored), cached in `folder` (None = decoded each time).

    boxes: the tile of the image that each row is, None = the whole image; None = all rows are whole images.
    """

    short_side: int = 0
    folder: Path | None = None
    boxes: tuple[Box | None, ...] | None = None

    def read(self, index: int) -> Sample:
        """Read row `index` from the cache, or decode and cache it. Raises BadSample as `SegmentationData.read` does."""
        sample = self._whole(index)
        if self.boxes is None or self.boxes[index] is None:
            return sample
        x0, y0, x1, y1 = self.boxes[index]
        image, mask = (None if array is None else array[y0:y1, x0:x1] for array in sample[:2])
        return Sample(image, mask, _tile_name(sample.name, self.boxes[index]))

    @property
    def names(self) -> list[str]:
        """The name of each row; that of a tile has its position."""
        names = super().names
        return names if self.boxes is None else list(map(_tile_name, names, self.boxes))

    def select(self, indices: Sequence[int]) -> "CachedData":
        """Return the data with only these rows, in this order."""
        selected = super().select(indices)
        return selected if self.boxes is None else replace(selected, boxes=tuple(self.boxes[int(i)] for i in indices))

    def _whole(self, index: int) -> Sample:
        """Read the image of row `index`."""
        if self.folder is None or not 0 <= index < len(self):
            return smaller(super().read(index), self.short_side)
        name, paths = self.cached(index)
        arrays = [_load(path) for path in paths]
        if all(array is not None for array in arrays):
            return Sample(arrays[0], arrays[1] if self.labelled else None, name)
        sample = smaller(super().read(index), self.short_side)
        for path, array in zip(paths, sample[:2]):
            _store(path, array)
        return sample

    def is_cached(self, index: int) -> bool:
        """Return whether the arrays of row `index` are stored: its files could be decoded, and have not changed since."""
        return self.folder is not None and all(map(os.path.exists, self.cached(index)[1]))  # False for a folder that cannot be read

    def vanished_classes(self, present: Collection[int]) -> list[int]:
        """Return the classes in the stored masks that are not present at this size. Reads the masks that `check_data` reads."""
        if len(present) == self.num_classes or not self.short_side:
            return []

        def classes_of(index: int) -> set[int]:
            with suppress(BadSample):  # a bad sample is reported by the check
                return set(np.flatnonzero(histogram_of(self.read_mask(index))).tolist())
            return set()

        with ThreadPoolExecutor(4) as pool:
            return sorted(set().union(*pool.map(classes_of, examined_rows(len(self)))) - {*present, IGNORE_INDEX})

    def cached(self, index: int) -> tuple[str, list[Path]]:
        """Return the name of a row and the paths of its arrays. Each process derives them once: it does not notice later changes."""
        if index not in self._paths:
            self._paths[index] = self._name_and_paths(self.stored(index))
        return self._paths[index]

    def _name_and_paths(self, row: dict) -> tuple[str, list[Path]]:
        image = _identity(row["image"])
        scaled = () if self.image_range is None else (self.image_range,)
        bands = () if self.bands is None else (f"bands {self.bands}",)
        paths = [self._path("image", image, *scaled, *bands)]
        if self.labelled:  # a mask is resized with its image
            paths.append(self._path("mask", image, _identity(row.get("mask")), self.num_classes, *self._reading))
        return row["name"], paths

    def all_paths(self) -> set[Path]:
        """Return the paths of the arrays of all rows."""
        at_once = ROWS_AT_ONCE if self.stored(0)["image"].get("bytes") is None else 1
        for first in range(0, len(self), at_once):
            rows = self._undecoded[first : first + at_once].to_pylist()
            self._paths.update(enumerate(map(self._name_and_paths, rows), first))
        return {path for _, paths in self._paths.values() for path in paths}

    @cached_property
    def _paths(self) -> dict[int, tuple[str, list[Path]]]:
        return {}

    @cached_property
    def _reading(self) -> list[bytes | str]:
        """How masks are read, for their names: the label table, a long one, of 16-bit ids, by its digest; the table of colors; resizing."""
        table = b"" if self.label_table is None else self.label_table.tobytes()
        colors = [] if self.colors is None else [repr(sorted(self.colors.ids.items()))]
        drawn = [] if self.draw is None else [f"{self.draw.__module__} {DRAWING}"]
        resizing = ["resized"] if self.resize_masks else []
        return [table if len(table) <= 256 else hashlib.blake2b(table).digest(), *colors, *drawn, *resizing]

    def _path(self, *decisive: str | bytes | int | tuple[int, int]) -> Path:
        name = hashlib.blake2b(repr((VERSION, PIL.__version__, self.short_side, *decisive)).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"


def _identity(stored: dict | None) -> bytes:
    """Return a digest of the bytes, or the path of the file with its size and time."""
    stored = stored or {}
    if stored.get("bytes") is not None:
        return hashlib.blake2b(stored["bytes"]).digest()
    path = stored.get("path") or ""
    with suppress(OSError):
        state = os.stat(path)
        return f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}".encode()
    return path.encode()  # decoding reports what is wrong with it


def smaller(sample: Sample, short_side: int) -> Sample:
    """Return the sample with its short side scaled down to short_side px, if it is longer; 0 = unchanged."""
    height, width = sample.image.shape[:2]
    if not short_side or min(height, width) <= short_side:
        return sample
    size = tuple(round(side * short_side / min(height, width)) for side in (width, height))
    image = resized(sample.image, size, Image.Resampling.BILINEAR)
    mask = None if sample.mask is None else resized(sample.mask, size, Image.Resampling.NEAREST)
    return Sample(image, mask, sample.name)


def _tile_name(name: str, box: Box | None) -> str:
    return name if box is None else f"{name} x{box[0]} y{box[1]}"


def _load(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r")
    except Exception:  # absent or damaged, which numpy reports in many ways: it is written anew
        return None


def _store(path: Path, array: np.ndarray) -> None:
    array = np.ascontiguousarray(array)
    part = path.with_suffix(f".{os.getpid()}.{id(array)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array)  # np.save ignores a disk that is full at the last few KB
        os.replace(part, path)
    except OSError as error:  # a full disk costs speed, not the run
        with suppress(OSError):
            part.unlink()
        where = f"{path.parent.parent} ({error.strerror})"  # not the file: equal warnings are shown once
        warnings.warn(f"images cannot be cached in {where}; they are decoded each time", stacklevel=2)


def with_cache(data: SegmentationData, short_side: int, limit_gb: float, log: Callable[[str], None] = print) -> SegmentationData:
    """Return the data read through the image cache if it fits into limit_gb; the oldest arrays are deleted to make room.

    Each part of a run's data is compared with the limit when it is opened, by an estimate from a few samples: several may exceed it.
    """
    data = CachedData(**{f.name: getattr(data, f.name) for f in fields(SegmentationData)}, short_side=short_side)
    if not limit_gb or not isinstance(data.rows, datasets.Dataset) or not len(data):
        return data
    size = _bytes_of(data)
    if size > limit_gb * 1e9:
        log(f"{data.name}/{data.split} is decoded each time: a cache takes {size / 1e9:.1f} GB, and --image-cache-gb is {limit_gb:g}")
        return data
    data = replace(data, folder=cache_folder())
    make_room(data.folder, limit_gb * 1e9 - size, data.all_paths)
    return data


def _bytes_of(data: SegmentationData, samples: int = 8) -> float:
    """Estimate the bytes of all decoded samples from a few; unreadable ones count as none."""
    sizes = []
    for index in range(0, len(data), max(1, len(data) // samples)):
        with suppress(BadSample):
            image, mask, _ = data.read(index)
            sizes.append(image.nbytes + (0 if mask is None else mask.nbytes))
    return len(data) * sum(sizes) / max(1, len(sizes))


def make_room(folder: Path, limit: float, used: Callable[[], Collection[Path]] = set) -> None:
    """Delete partial files of killed runs, and the oldest arrays that are not in `used()` until those take at most `limit` bytes.

    `used` is called only if all arrays together exceed the limit. A run that still maps a deleted array keeps it until it ends.
    """
    files = []
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        with suppress(OSError):  # another run may delete files too
            state = path.stat()
            if path.suffix == ".part" and state.st_mtime < time.time() - 3600:
                path.unlink()
            elif path.suffix in (".npy", ".part"):
                files.append((state.st_mtime, state.st_size, path))
    if sum(size for _, size, _ in files) <= limit:
        return
    kept = used()
    files = sorted(file for file in files if file[2] not in kept)
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink()
        total -= size
