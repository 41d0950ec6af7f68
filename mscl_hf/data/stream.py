"""A data set read front to back: for what is too large to download, or has no length."""

import hashlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .segmentation_data import DECODE_ERRORS, BadSample, Sample, to_sample, unreadable


@dataclass(frozen=True)
class SegmentationStream:
    """A split that is streamed: no length and no random access, else like SegmentationData.

    rows: an IterableDataset whose columns "image" and (when there are classes) "mask" are not yet decoded.
    """

    rows: datasets.IterableDataset
    classes: tuple[str, ...]
    name: str
    split: str
    label_table: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def samples(
        self,
        skip: int = 0,
        shuffle_seed: int | None = None,
        buffer: int = 1000,
        shard: tuple[int, int] = (0, 1),
        bad: list[str] | None = None,
    ) -> Iterator[Sample]:
        """One pass over the stream; the same arguments give the same samples in the same order.

        skip: rows of the whole stream already used (by all processes together). shuffle_seed: None keeps the stored
        order, a number draws from a buffer of `buffer` rows. shard: (rank, world): rank r gets the rows r, r + world, ...
        after the skipped ones, so processes share one stream and no row is read by two. Rows of others are not decoded.
        bad: takes the message of each row that cannot be used, which is then left out; None = such a row raises.
        Raises ValueError inside a DataLoader worker, where `datasets` would divide the stream a second time, and
        BadSample for a row that cannot be used.
        """
        rank, world = shard
        if not 0 <= rank < world or skip < 0:
            raise ValueError(f"got shard {shard} and skip={skip}; wanted 0 <= rank < world and skip >= 0")
        if _in_dataloader_worker():
            raise ValueError("a streamed data set cannot be read inside a DataLoader worker; use num_workers=0")
        rows = self.rows
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=buffer)
        return self._decoded(itertools.islice(enumerate(rows), skip + rank, None, world), shuffle_seed is not None, bad)

    def _decoded(self, rows: Iterator[tuple[int, dict[str, Any]]], shuffled: bool, bad: list[str] | None) -> Iterator[Sample]:
        for position, row in rows:
            try:
                sample = self._sample(position, row, shuffled)
            except BadSample as error:
                if bad is None:
                    raise
                bad.append(str(error))
                continue
            yield sample

    def _sample(self, position: int, row: dict[str, Any], shuffled: bool) -> Sample:
        files = {column: self._file(row, column, None if shuffled else position) for column in ("image", "mask")}
        decoded = {"name": f"{position:08d}_{Path(files['image']).stem}"}
        for column in ("image", "mask") if self.labelled else ("image",):
            try:
                decoded[column] = None if row[column] is None else datasets.Image().decode_example(row[column])
            except DECODE_ERRORS as error:
                raise unreadable(files[column], error) from error
        return to_sample(decoded, self, files.__getitem__)

    def _file(self, row: dict[str, Any], column: str, position: int | None) -> str:
        """How to name what lies behind a column; a shuffled pass has no row numbers that mean anything, so there its content names it."""
        stored = row.get(column) or {}
        if stored.get("path"):
            return stored["path"]
        which = f"of row {position}" if position is not None else f"with MD5 {hashlib.md5(stored.get('bytes') or b'').hexdigest()}"
        return f"the {column} {which} of {self.name}/{self.split}"


def _in_dataloader_worker() -> bool:
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and torch_data.get_worker_info() is not None
