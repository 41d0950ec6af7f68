"""The files of a stream: their number of rows, from metadata, and their rows in blocks."""

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
    """Rows that are shuffled together. read() returns (number in the shard, row) of each, in stored order."""

    rows: int
    read: Callable[[], list[tuple[int, Row]]]


class Shard(Protocol):
    """A file, or part of one, that a shard sequence reads at a time. name: its name in messages."""

    name: str

    def rows(self) -> int | None:
        """Return the number of rows by metadata alone; None where there is no metadata."""

    def blocks(self, size: int, rng: np.random.Generator | None) -> Iterator[Block]:
        """Yield all rows in blocks of about `size`, in an order drawn by rng (None = as stored). Read a block before taking the next."""


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file at a path or at an address that fsspec opens (hf://, s3://). columns: (column here, column in the file) pairs.

    It is read by row groups, each held in memory, still encoded, once for each shard sequence of a process.
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
        with _explained(self.name):
            table = parquet.read_row_groups(groups, columns=[stored for _, stored in self.columns], use_threads=False)
            table = table.select([stored for _, stored in self.columns])
        numbers = chain.from_iterable(range(sum(counts[:group]), sum(counts[: group + 1])) for group in groups)
        values = zip(*(map(_encoded, column.to_pylist()) for column in table.columns))
        return [(number, dict(zip((column for column, _ in self.columns), row))) for number, row in zip(numbers, values)]


_one_thread = Lock()  # parts of a stream share state inside `datasets`: two threads that read at once lose rows


@dataclass(frozen=True)
class StreamedShard:
    """Rows in any other form that `datasets` streams: their number is unknown, and their blocks come in stored order."""

    name: str
    stored: datasets.IterableDataset  # columns image and mask, not decoded

    def rows(self) -> None:
        return None

    def blocks(self, size: int, rng: np.random.Generator | None) -> Iterator[Block]:
        start = 0
        # Unlike iter(), .iter() does not divide the rows among the workers of a DataLoader, which the shard sequences have done.
        batches = self.stored.iter(batch_size=size)
        while True:
            with _one_thread:
                columns = next(batches, None)
            if columns is None:
                return
            rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
            yield Block(len(rows), partial(list, enumerate(rows, start)))
            start += len(rows)


def gathered(order: Sequence[int], counts: Sequence[int], size: int) -> list[list[int]]:
    """Join row groups, in this order, to blocks of at least `size` rows; a smaller remainder joins the last block."""
    blocks, rows = [], size
    for group in order:
        if rows >= size:
            blocks.append([])
            rows = 0
        blocks[-1].append(group)
        rows += counts[group]
    if rows < size and len(blocks) > 1:
        remainder = blocks.pop()
        blocks[-1] += remainder
    return blocks


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise ValueError, with the address and a remedy, for errors of reading."""
    try:
        yield
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{address} cannot be read as parquet with the columns of the other files ({type(error).__name__}: {error}). "
            "Check that it is reachable and complete, or remove it."
        ) from error


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    files = filesystem(address.split("://")[0] if "://" in address else "file", os.getpid())
    # Row groups are read in one request each: data read ahead would be thrown away.
    with _explained(address), files.open(address, "rb", cache_type="none") as file:
        yield pq.ParquetFile(file)


@cache
def filesystem(protocol: str, process: int) -> fsspec.AbstractFileSystem:
    """Return one file system for all threads of a process, which would each list the folder; connections do not outlive a fork."""
    return fsspec.filesystem(protocol)


@cache
def _stored_rows(address: str) -> int:
    with _opened(address) as parquet:
        return parquet.metadata.num_rows


def _encoded(value: Any) -> dict | None:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value
