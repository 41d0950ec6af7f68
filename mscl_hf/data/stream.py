"""A data set read front to back, for data too large to download or without a length. Many processes share its shards.

The slots of a global batch are fed by *sequences* of shards: slot j by sequence j mod S, where S is the largest divisor of the batch size
that is at most the number of shards. Shards are dealt to the sequences in turn, one permutation of all of them after another, so a pass is
one permutation and holds each row once. Inside a shard, row groups are joined in random order to blocks of rows, and a block's rows are
shuffled. The row at a position of a sequence is thus a function of (seed, sequence, position): every number of processes and workers sees
the same global batches, nothing is saved, and a process that fills only some slots opens only the shards of their sequences.

Sequences whose shards have more rows fall behind the others: where shards are unequal, some sequences are already in the next pass. No row
is left out or read twice in a pass; but near the end of a pass, as with any endless stream, a batch may hold a row of the pass before.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from .class_colors import ColorTable
from .dataset import BadSample, LabelCounts, Sample, decoded_sample, row_of
from .sampler import permutation
from .shards import Row, Shard, filesystem

SHUFFLED_ROWS = 1000  # rows that all sequences together hold at a time, at least
LEAST_BLOCK = 64  # rows of a block, at least


@dataclass(frozen=True)
class SegmentationStream:
    """A streamed split: no length and no random access, otherwise like SegmentationData."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    name: str
    split: str
    label_table: np.ndarray | None = None
    repository: str | None = None  # prefix of the addresses of the data set's files on the Hub; no other address is read
    image_range: tuple[int, int] | None = None  # as in SegmentationData
    labels: LabelCounts | None = None  # labels counted in `first_rows`
    colors: ColorTable | None = None  # as in SegmentationData
    resize_masks: bool = False  # as in SegmentationData
    draw: None = None  # streamed masks are images
    bands: tuple[int, ...] | None = None  # as in SegmentationData

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def rows(self) -> Iterator[Row]:
        """Yield every row once as stored, not decoded."""
        for shard in self.shards:
            for block in shard.blocks(LEAST_BLOCK, None):
                yield from ({column: self._fetched(value) for column, value in row.items()} for _, row in block.read())

    def first_rows(self, limit: int = 256, shards: int = 8) -> tuple[list[Row], bool]:
        """Return at most `limit` rows as stored, the first ones of evenly spaced shards; and whether these are all rows."""
        chosen = [self.shards[i] for i in np.unique(np.linspace(0, len(self.shards) - 1, shards).astype(int))]
        each = -(-limit // len(chosen))
        rows, complete = [], len(chosen) == len(self.shards)
        for shard in chosen:
            numbered = chain.from_iterable(block.read() for block in shard.blocks(each, None))
            rows += [{column: self._fetched(value) for column, value in row.items()} for _, row in islice(numbered, each)]
            complete = complete and next(numbered, None) is None
        return rows[:limit], complete and len(rows) <= limit

    def sequences(self, batch_size: int) -> int:
        """Return how many shard sequences feed batches of this size, see the head of this file."""
        return next(count for count in range(min(batch_size, len(self.shards)), 0, -1) if batch_size % count == 0)

    def batches(self, seed: int, batch_size: int, slots: Sequence[int], first: int = 0) -> Iterator[list[tuple[Sample, list[str]]]]:
        """Yield the samples of these slots of the global batches from number `first` on, without an end; other slots are not decoded.

        A sample comes with the messages of the unusable rows that it replaces: it is the next usable row of the block, and comes again in
        its own turn. On the way to `first`, shards and row groups are skipped by their metadata where they have any.
        Raises BadSample if no row of a block can be used, ValueError if no shard has a row.
        """
        sequences, chosen = self.sequences(batch_size), set(slots)
        each = batch_size // sequences  # rows of a sequence in a batch
        used = sorted({slot % sequences for slot in chosen})
        iterators = [self._sequence(seed, number, sequences, first * each) for number in used]
        with ThreadPoolExecutor(16) as pool:  # each sequence seeks by itself, over a network by many short requests
            heads = list(pool.map(next, iterators))
        iterators = [chain([head], rows) for head, rows in zip(heads, iterators)]
        while True:
            samples = {}
            for number, rows in zip(used, iterators):
                for slot in range(number, batch_size, sequences):
                    position = next(rows)
                    if slot in chosen:
                        samples[slot] = self._usable(*position)
            yield [samples[slot] for slot in slots]

    def _sequence(self, seed: int, first: int, sequences: int, position: int) -> Iterator[tuple[int, list[tuple[int, Row]], int]]:
        """Yield (shard, the shuffled rows of a block, position among them) from this position of a sequence on. first: its first turn."""
        skipped, row_counts = position, {}  # rows still to skip; numbers of rows of the shards that were read to their end
        size = max(LEAST_BLOCK, -(-SHUFFLED_ROWS // sequences))
        for turn in count(first, sequences):
            epoch, place = divmod(turn, len(self.shards))
            number = int(permutation(seed, 2, epoch, len(self.shards))[place])
            shard, rows_read = self.shards[number], 0
            rows = (row_counts.get(number) or shard.rows()) if skipped else None
            if rows and rows <= skipped:
                skipped -= rows
                continue
            for part, block in enumerate(shard.blocks(size, np.random.default_rng([seed, 78, turn]))):
                rows_read += block.rows
                if block.rows <= skipped:
                    skipped -= block.rows
                    continue
                stored = block.read()
                shuffled = [stored[i] for i in np.random.default_rng([seed, 78, turn, part]).permutation(len(stored))]
                yield from ((number, shuffled, at) for at in range(skipped, len(shuffled)))
                skipped = 0
            row_counts[number] = rows_read
            if len(row_counts) == len(self.shards) and not any(row_counts.values()):
                raise ValueError(f"none of the {len(self.shards)} shards of {self.name}/{self.split} has a row. Give others.")

    def _usable(self, shard: int, rows: list[tuple[int, Row]], at: int) -> tuple[Sample, list[str]]:
        """Return the sample at this position of a block, or the next usable one: a bad row moves no other row."""
        bad: list[str] = []
        for offset in range(len(rows)):
            try:
                return self._sample(shard, *rows[(at + offset) % len(rows)]), bad
            except BadSample as error:
                bad.append(str(error))
        raise BadSample(f"none of {len(rows)} rows of a block of {self.shards[shard].name} can be used; the first: {bad[0]}")

    def _sample(self, shard: int, number: int, row: Row) -> Sample:
        files = {column: self._file(shard, number, row, column) for column in ("image", "mask")}
        name = f"{shard:05d}_{number:08d}_{Path(files['image']).stem}"
        fetched = {column: self._fetched(row[column]) for column in files if column in row}
        return decoded_sample({**fetched, "name": name}, self, files.__getitem__)

    def _fetched(self, stored: dict | None) -> dict | None:
        """Return the value with its bytes, if it names a file of the data set's repository on the Hub."""
        path = (stored or {}).get("path") or ""
        if not self.repository or not path.startswith(self.repository) or ".." in path.split("/") or stored.get("bytes") is not None:
            return stored
        try:
            return {"bytes": filesystem("hf", os.getpid()).cat_file(path), "path": path}
        except OSError as error:
            raise BadSample(f"{path} cannot be downloaded ({error}). Check the connection, and continue with --resume.") from error

    def _file(self, shard: int, number: int, row: Row, column: str) -> str:
        """Return the name of a column's file in messages."""
        return (row.get(column) or {}).get("path") or row_of(column, f"row {number} of {self.shards[shard].name}")
