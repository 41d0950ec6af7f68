"""A data set read front to back: for what is too large to download, or has no length. Many processes share its shards.

The slots of a global batch are fed by *lanes*: slot j by lane j mod L, where L is the largest divisor of the batch size that is at most the
number of shards. Shards are dealt to the lanes in turn, one permutation of all of them after another, so a pass is one such permutation
and holds each row once. Inside a shard, row groups are put together in a drawn order to blocks of rows, and a block's rows are shuffled.
What stands at a position of a lane is thus a function of (seed, lane, position): every number of processes and workers sees the same global
batches, nothing is saved, and who makes only some of the slots opens only the shards of their lanes.

Lanes whose shards have more rows fall behind the others: where shards are unequal, some lanes are in the next pass already. No row is left
out or read twice in a pass for that; but near the end of a pass, as with any endless stream, a batch may hold a row of the pass before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .order import permutation
from .segmentation_data import DECODE_ERRORS, BadSample, Sample, to_sample, unreadable

SHUFFLED_ROWS = 1000  # rows that all lanes together hold at a time, at least
LEAST_BLOCK = 64  # rows of a block, at least, however many lanes there are

Row = dict[str, Any]  # image, mask: {"bytes", "path"}, not decoded


class Block(NamedTuple):
    """Rows that are shuffled together. read() -> (row's number in its shard, row) of each, in stored order."""

    rows: int
    read: Callable[[], list[tuple[int, Row]]]


class Shard(Protocol):
    """What one lane reads at a time. name: how messages call it."""

    name: str

    def rows(self) -> int | None:
        """How many, by metadata alone; None where only reading tells."""

    def blocks(self, size: int, rng: np.random.Generator | None) -> Iterator[Block]:
        """All rows in blocks of about `size`, in an order drawn by rng, None = as stored. A block is read before the next is asked for."""


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file at a path or at an address that fsspec opens (hf://, s3://). columns: what image and mask are called in it.

    The least that is read of it is a row group, which is held in memory, still encoded, once for each lane of a process.
    """

    name: str
    columns: tuple[tuple[str, str], ...]

    def rows(self) -> int:
        return _stored_rows(self.name)

    def blocks(self, size: int, rng: np.random.Generator | None) -> Iterator[Block]:
        with _opened(self.name) as parquet:
            counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            order = range(len(counts)) if rng is None else rng.permutation(len(counts)).tolist()
            for groups in gathered(order, counts, size):
                yield Block(sum(counts[group] for group in groups), partial(self._read, parquet, groups, counts))

    def _read(self, parquet: pq.ParquetFile, groups: list[int], counts: list[int]) -> list[tuple[int, Row]]:
        # One thread: workers are forked, and there is one for each core already.
        with _told(self.name):
            table = parquet.read_row_groups(groups, columns=[stored for _, stored in self.columns], use_threads=False)
            table = table.select([stored for _, stored in self.columns])
        numbers = chain.from_iterable(range(sum(counts[:group]), sum(counts[: group + 1])) for group in groups)
        values = zip(*(map(_encoded, column.to_pylist()) for column in table.columns))
        return [(number, dict(zip((column for column, _ in self.columns), row))) for number, row in zip(numbers, values)]


@dataclass(frozen=True)
class StreamedShard:
    """Rows of any other form that `datasets` streams: only reading them tells how many there are, and their blocks come as stored."""

    name: str
    stored: datasets.IterableDataset  # columns image and mask, not decoded

    def rows(self) -> None:
        return None

    def blocks(self, size: int, rng: np.random.Generator | None) -> Iterator[Block]:
        start = 0
        # Unlike iter(), .iter() does not deal the rows out to the workers of a DataLoader, which lanes have done already.
        for columns in self.stored.iter(batch_size=size):
            rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
            yield Block(len(rows), partial(list, enumerate(rows, start)))
            start += len(rows)


def gathered(order: Sequence[int], counts: Sequence[int], size: int) -> list[list[int]]:
    """Row groups in this order, put together until they hold `size` rows; a smaller rest joins the last ones."""
    blocks, rows = [], size
    for group in order:
        if rows >= size:
            blocks.append([])
            rows = 0
        blocks[-1].append(group)
        rows += counts[group]
    if rows < size and len(blocks) > 1:
        rest = blocks.pop()
        blocks[-1] += rest
    return blocks


@contextmanager
def _told(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{address} cannot be read as parquet with the columns of the others ({error}); mend or remove it") from error


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    # Row groups are read in one go: what a cache read ahead would be thrown away.
    with _told(address), fsspec.open(address, "rb", cache_type="none") as file:
        yield pq.ParquetFile(file)


@cache
def _stored_rows(address: str) -> int:
    with _opened(address) as parquet:
        return parquet.metadata.num_rows


def _encoded(value: Any) -> dict | None:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


@dataclass(frozen=True)
class SegmentationStream:
    """A split that is streamed: no length and no random access, else like SegmentationData."""

    shards: tuple[Shard, ...]
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

    def rows(self) -> Iterator[Row]:
        """All rows once, as they are stored, not decoded."""
        for shard in self.shards:
            for block in shard.blocks(LEAST_BLOCK, None):
                yield from (row for _, row in block.read())

    def lanes(self, batch_size: int) -> int:
        """How many lanes feed batches of this size, see the head of this file."""
        return next(lanes for lanes in range(min(batch_size, len(self.shards)), 0, -1) if batch_size % lanes == 0)

    def batches(
        self, seed: int, batch_size: int, slots: Sequence[int], first: int = 0
    ) -> Iterator[list[tuple[Sample, list[str]]]]:
        """What stands in these slots of the global batches from number `first` on, without an end; other slots are not decoded.

        A sample comes with the messages of the rows that cannot be used and whose place it takes: it is the next one of the same block.
        To get to `first`, shards and row groups are passed over by their metadata where they have any.
        Raises BadSample when no row of a block can be used, ValueError when no shard has a row.
        """
        lanes = self.lanes(batch_size)
        each = batch_size // lanes  # rows of a lane in a batch
        used = sorted({slot % lanes for slot in slots})
        coming = [self._lane(seed, lane, lanes, first * each) for lane in used]
        with ThreadPoolExecutor(16) as pool:  # each lane finds its place by itself, over a network by many short requests
            heads = list(pool.map(next, coming))
        coming = [chain([head], rows) for head, rows in zip(heads, coming)]
        while True:
            found = {}
            for lane, rows in zip(used, coming):
                for slot in range(lane, batch_size, lanes):
                    place = next(rows)
                    if slot in slots:
                        found[slot] = self._usable(*place)
            yield [found[slot] for slot in slots]

    def _lane(self, seed: int, lane: int, lanes: int, position: int) -> Iterator[tuple[int, list[tuple[int, Row]], int]]:
        """From this position of a lane on: (shard, the rows of a block as shuffled, place among them)."""
        left, without_rows = position, set()
        size = max(LEAST_BLOCK, -(-SHUFFLED_ROWS // lanes))
        for turn in count(lane, lanes):
            which, place = divmod(turn, len(self.shards))
            number = int(permutation(seed, 2, which, len(self.shards))[place])
            shard, seen = self.shards[number], 0
            rows = shard.rows() if left else None
            if rows and rows <= left:
                left -= rows
                continue
            for part, block in enumerate(shard.blocks(size, np.random.default_rng([seed, 78, turn]))):
                seen += block.rows
                if block.rows <= left:
                    left -= block.rows
                    continue
                stored = block.read()
                mixed = [stored[i] for i in np.random.default_rng([seed, 78, turn, part]).permutation(len(stored))]
                yield from ((number, mixed, at) for at in range(left, len(mixed)))
                left = 0
            without_rows |= set() if seen else {number}
            if len(without_rows) == len(self.shards):
                raise ValueError(f"none of the {len(self.shards)} shards of {self.name}/{self.split} has a row; give others")

    def _usable(self, shard: int, rows: list[tuple[int, Row]], at: int) -> tuple[Sample, list[str]]:
        """The sample at this place of a block, or the next one that can be used: a bad row moves no other from its place."""
        bad: list[str] = []
        for step in range(len(rows)):
            try:
                return self._sample(shard, *rows[(at + step) % len(rows)]), bad
            except BadSample as error:
                bad.append(str(error))
        raise BadSample(f"none of {len(rows)} rows in a row of {self.shards[shard].name} can be used; the first: {bad[0]}")

    def _sample(self, shard: int, number: int, row: Row) -> Sample:
        files = {column: self._file(shard, number, row, column) for column in ("image", "mask")}
        decoded: Row = {"name": f"{shard:05d}_{number:08d}_{Path(files['image']).stem}"}
        for column in ("image", "mask") if self.labelled else ("image",):
            try:
                decoded[column] = None if row[column] is None else datasets.Image().decode_example(row[column])
            except DECODE_ERRORS as error:
                raise unreadable(files[column], error) from error
        return to_sample(decoded, self, files.__getitem__)

    def _file(self, shard: int, number: int, row: Row, column: str) -> str:
        """How to name what lies behind a column."""
        return (row.get(column) or {}).get("path") or f"the {column} of row {number} of {self.shards[shard].name}"
