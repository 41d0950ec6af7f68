"""The files that streams are read from: how many rows they have, without reading them, and their rows in blocks."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple, Protocol

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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


_one_thread = Lock()  # parts of one stream share what `datasets` keeps of it: two threads that read at once lose rows


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
        coming = self.stored.iter(batch_size=size)
        while True:
            with _one_thread:
                columns = next(coming, None)
            if columns is None:
                return
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
        raise ValueError(
            f"{address} cannot be read as parquet with the columns of the others ({type(error).__name__}: {error}); "
            "see that it can be reached and is whole, or remove it"
        ) from error


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    files = filesystem(address.split("://")[0] if "://" in address else "file", os.getpid())
    # Row groups are read in one go: what a cache read ahead would be thrown away.
    with _told(address), files.open(address, "rb", cache_type="none") as file:
        yield pq.ParquetFile(file)


@cache
def filesystem(protocol: str, process: int) -> fsspec.AbstractFileSystem:
    """One for all threads of a process, each of which would list the folder anew; connections do not outlive a fork."""
    return fsspec.filesystem(protocol)


@cache
def _stored_rows(address: str) -> int:
    with _opened(address) as parquet:
        return parquet.metadata.num_rows


def _encoded(value: Any) -> dict | None:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value
