"""A data set read front to back: for what is too large to download, or has no length. Many processes share its shards.

The slots of a global batch are fed by *lanes*: slot j by lane j mod L, where L is the largest divisor of the batch size that is at most the
number of shards. Shards are dealt to the lanes in turn, one permutation of all of them after another, so a pass is one such permutation
and holds each row once. Inside a shard, row groups are put together in a drawn order to blocks of rows, and a block's rows are shuffled.
What stands at a position of a lane is thus a function of (seed, lane, position): every number of processes and workers sees the same global
batches, nothing is saved, and who makes only some of the slots opens only the shards of their lanes.

Lanes whose shards have more rows fall behind the others: where shards are unequal, some lanes are in the next pass already. No row is left
out or read twice in a pass for that; but near the end of a pass, as with any endless stream, a batch may hold a row of the pass before.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from .dataset import BadSample, Sample, decoded_sample, row_of
from .label_counts import LabelCounts
from .sampler import permutation
from .shards import Row, Shard, filesystem

SHUFFLED_ROWS = 1000  # rows that all lanes together hold at a time, at least
LEAST_BLOCK = 64  # rows of a block, at least, however many lanes there are


@dataclass(frozen=True)
class SegmentationStream:
    """A split that is streamed: no length and no random access, else like SegmentationData."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    name: str
    split: str
    label_table: np.ndarray | None = None
    repository: str | None = None  # how the addresses of the data set's own files on the Hub begin; no other is asked
    image_range: tuple[int, int] | None = None  # as in SegmentationData
    labels: LabelCounts | None = None  # of its first rows, see `first_rows`

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
                yield from ({column: self._fetched(value) for column, value in row.items()} for _, row in block.read())

    def first_rows(self, limit: int = 256, shards: int = 8) -> tuple[list[Row], bool]:
        """At most `limit` rows as they are stored, the first ones of a few evenly spaced shards; and whether these are all rows."""
        chosen = [self.shards[i] for i in np.unique(np.linspace(0, len(self.shards) - 1, shards).astype(int))]
        each = -(-limit // len(chosen))
        found, complete = [], len(chosen) == len(self.shards)
        for shard in chosen:
            numbered = chain.from_iterable(block.read() for block in shard.blocks(each, None))
            found += [{column: self._fetched(value) for column, value in row.items()} for _, row in islice(numbered, each)]
            complete = complete and next(numbered, None) is None
        return found[:limit], complete and len(found) <= limit

    def lanes(self, batch_size: int) -> int:
        """How many lanes feed batches of this size, see the head of this file."""
        return next(lanes for lanes in range(min(batch_size, len(self.shards)), 0, -1) if batch_size % lanes == 0)

    def batches(self, seed: int, batch_size: int, slots: Sequence[int], first: int = 0) -> Iterator[list[tuple[Sample, list[str]]]]:
        """What stands in these slots of the global batches from number `first` on, without an end; other slots are not decoded.

        A sample comes with the messages of the rows that cannot be used and whose place it takes: it is the next one of the same block,
        and comes again at its own place.
        To get to `first`, shards and row groups are passed over by their metadata where they have any.
        Raises BadSample when no row of a block can be used, ValueError when no shard has a row.
        """
        lanes, wanted = self.lanes(batch_size), set(slots)
        each = batch_size // lanes  # rows of a lane in a batch
        used = sorted({slot % lanes for slot in wanted})
        coming = [self._lane(seed, lane, lanes, first * each) for lane in used]
        with ThreadPoolExecutor(16) as pool:  # each lane finds its place by itself, over a network by many short requests
            heads = list(pool.map(next, coming))
        coming = [chain([head], rows) for head, rows in zip(heads, coming)]
        while True:
            found = {}
            for lane, rows in zip(used, coming):
                for slot in range(lane, batch_size, lanes):
                    place = next(rows)
                    if slot in wanted:
                        found[slot] = self._usable(*place)
            yield [found[slot] for slot in slots]

    def _lane(self, seed: int, lane: int, lanes: int, position: int) -> Iterator[tuple[int, list[tuple[int, Row]], int]]:
        """From this position of a lane on: (shard, the rows of a block as shuffled, place among them)."""
        left, known = position, {}  # rows to pass over; of shards read to their end, how many they have
        size = max(LEAST_BLOCK, -(-SHUFFLED_ROWS // lanes))
        for turn in count(lane, lanes):
            which, place = divmod(turn, len(self.shards))
            number = int(permutation(seed, 2, which, len(self.shards))[place])
            shard, seen = self.shards[number], 0
            rows = (known.get(number) or shard.rows()) if left else None
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
            known[number] = seen
            if len(known) == len(self.shards) and not any(known.values()):
                raise ValueError(f"none of the {len(self.shards)} shards of {self.name}/{self.split} has a row; give others")

    def _usable(self, shard: int, rows: list[tuple[int, Row]], at: int) -> tuple[Sample, list[str]]:
        """The sample at this place of a block, or the next one that can be used: a bad row moves no other from its place."""
        bad: list[str] = []
        for step in range(len(rows)):
            try:
                return self._sample(shard, *rows[(at + step) % len(rows)]), bad
            except BadSample as error:
                bad.append(str(error))
        raise BadSample(f"none of {len(rows)} rows of a block of {self.shards[shard].name} can be used; the first: {bad[0]}")

    def _sample(self, shard: int, number: int, row: Row) -> Sample:
        files = {column: self._file(shard, number, row, column) for column in ("image", "mask")}
        name = f"{shard:05d}_{number:08d}_{Path(files['image']).stem}"
        fetched = {column: self._fetched(row[column]) for column in files if column in row}
        return decoded_sample({**fetched, "name": name}, self, files.__getitem__)

    def _fetched(self, stored: dict | None) -> dict | None:
        """With its bytes where it is a file of the data set's repository, as of one that holds its images loose."""
        path = (stored or {}).get("path") or ""
        if not self.repository or not path.startswith(self.repository) or ".." in path.split("/") or stored.get("bytes") is not None:
            return stored
        try:
            return {"bytes": filesystem("hf", os.getpid()).cat_file(path), "path": path}
        except OSError as error:
            raise BadSample(f"{path} cannot be fetched ({error}); see that the Hub can be reached, and go on with --resume") from error

    def _file(self, shard: int, number: int, row: Row, column: str) -> str:
        """How to name what lies behind a column."""
        return (row.get(column) or {}).get("path") or row_of(column, f"row {number} of {self.shards[shard].name}")
