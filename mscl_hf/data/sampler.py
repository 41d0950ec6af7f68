"""Which samples make up a batch: functions of (seed, step), with nothing to save and nothing to restore.

Every number of processes and workers sees the same global batches; process r takes every world-th sample of each part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Ticket(NamedTuple):
    """One sample of one batch. step: which forward pass; slot: place in the global batch; labelled: is its mask used?"""

    step: int
    slot: int
    index: int
    labelled: bool


@lru_cache(maxsize=8)
def permutation(seed: int, part: int, epoch: int, length: int) -> np.ndarray:
    """range(length) in the order of one epoch. part: keeps the draws of labelled (0), unlabelled (1) and streamed (2) data apart."""
    return np.random.default_rng([seed, part, epoch]).permutation(length)


def draw(seed: int, part: int, step: int, count: int, length: int) -> list[int]:
    """`count` of range(length) for a step: an epoch is a seeded permutation cut into whole batches, and what is left over of it is dropped.

    A batch across two epochs could hold an image twice, which in-batch contrast would push from itself. Where count > length it must.
    """
    batches = max(1, length // count)
    order = permutation(seed, part, step // batches, length)
    start = step % batches * count
    return [int(order[place % length]) for place in range(start, start + count)]


@dataclass(frozen=True)
class Order:
    """The batches of a run. labelled and unlabelled are indices of samples; a batch holds `labelled_per_batch` of the first, which come
    first, and is filled up from the second. batch_size counts samples over all processes."""

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]
    batch_size: int
    labelled_per_batch: int
    seed: int

    def __post_init__(self):
        if not (self.batch_size >= 1 and 0 <= self.labelled_per_batch <= self.batch_size):
            raise ValueError(f"a batch of {self.batch_size} images, {self.labelled_per_batch} of them labelled; wanted 1 image or more")
        from_labelled, from_unlabelled = self.labelled_per_batch, self.batch_size - self.labelled_per_batch
        for count, indices, what in ((from_labelled, self.labelled, "labelled"), (from_unlabelled, self.unlabelled, "unlabelled")):
            if count and not indices:
                raise ValueError(f"a batch wants {count} {what} images and there are none; change --labelled-share or --unlabelled")

    def batch(self, step: int) -> list[Ticket]:
        """The global batch of a forward pass."""
        tickets = []
        unlabelled_per_batch = self.batch_size - self.labelled_per_batch
        parts = ((self.labelled, self.labelled_per_batch, True), (self.unlabelled, unlabelled_per_batch, False))
        for part, (indices, count, labelled) in enumerate(parts):
            for place in draw(self.seed, part, step, count, len(indices)) if count else ():
                tickets.append(Ticket(step, len(tickets), indices[place], labelled))
        return tickets

    def share(self, step: int, rank: int, world: int) -> list[Ticket]:
        """This process's part of it, the labelled ones first."""
        tickets = self.batch(step)
        labelled, rest = tickets[: self.labelled_per_batch], tickets[self.labelled_per_batch :]
        return labelled[rank::world] + rest[rank::world]

    def check_world(self, world: int) -> None:
        """ValueError unless every process gets the same number of labelled and of unlabelled samples."""
        if world < 1 or self.batch_size % world or self.labelled_per_batch % world:
            raise ValueError(
                f"a batch of {self.batch_size} images, {self.labelled_per_batch} of them labelled, cannot be split evenly over {world} "
                f"processes; make both multiples of {world} (--batch-size, --labelled-share)"
            )


class Batches:
    """The tickets of this process for forward passes first .. last - 1: a batch sampler for torch's DataLoader."""

    def __init__(self, order: Order, first: int, last: int, rank: int = 0, world: int = 1):
        self.order, self.first, self.last, self.rank, self.world = order, first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Ticket]]:
        return (self.order.share(step, self.rank, self.world) for step in range(self.first, self.last))


def sample_rng(seed: int, ticket: Ticket) -> np.random.Generator:
    """The random numbers of one sample's views: the same whatever worker or process draws them."""
    return np.random.default_rng([seed, 77, ticket.step, ticket.slot, ticket.index])
