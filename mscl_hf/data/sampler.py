"""Which samples make up a batch: a function of (seed, step), so that nothing about it is saved or restored.

Every number of processes and workers sees the same global batches; process r takes every world-th sample of each part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class SampleIndex(NamedTuple):
    """One sample of one batch. step: the forward pass. slot: position in the global batch. labelled: whether its mask is used."""

    step: int
    slot: int
    index: int
    labelled: bool


@lru_cache(maxsize=8)
def permutation(seed: int, part: int, epoch: int, length: int) -> np.ndarray:
    """Shuffle range(length) for one epoch. part: keeps the draws of labelled (0), unlabelled (1) and streamed (2) data apart."""
    return np.random.default_rng([seed, part, epoch]).permutation(length)


def draw(seed: int, part: int, step: int, count: int, length: int) -> list[int]:
    """Draw `count` of range(length) for a step. An epoch is a seeded permutation cut into whole batches; its remainder is dropped.

    A batch across two epochs could hold an image twice, which in-batch contrast would push from itself. Where count > length it must.
    """
    batches = max(1, length // count)
    shuffled = permutation(seed, part, step // batches, length)
    start = step % batches * count
    return [int(shuffled[position % length]) for position in range(start, start + count)]


@dataclass(frozen=True)
class SamplingPlan:
    """The batches of a run. labelled, unlabelled: indices of samples. A batch holds `labelled_per_batch` labelled samples, and then
    unlabelled ones. batch_size: samples over all processes."""

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...]
    batch_size: int
    labelled_per_batch: int
    seed: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; expected at least 1.")
        if not 0 <= self.labelled_per_batch <= self.batch_size:
            raise ValueError(f"labelled_per_batch is {self.labelled_per_batch}; expected 0 to {self.batch_size}, the batch size.")
        for name, indices, count in self.parts:
            if count and not indices:
                raise ValueError(f"a batch needs {count} {name} images and the data has none. Change --labelled-share or --unlabelled.")

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...], int], ...]:
        """Name, indices and number in a batch of the labelled and of the unlabelled samples."""
        unlabelled_per_batch = self.batch_size - self.labelled_per_batch
        return ("labelled", self.labelled, self.labelled_per_batch), ("unlabelled", self.unlabelled, unlabelled_per_batch)

    def batch(self, step: int) -> list[SampleIndex]:
        """Return the global batch of a forward pass."""
        samples: list[SampleIndex] = []
        for part, (name, indices, count) in enumerate(self.parts):
            for position in draw(self.seed, part, step, count, len(indices)) if count else ():
                samples.append(SampleIndex(step, len(samples), indices[position], name == "labelled"))
        return samples

    def share(self, step: int, rank: int, world: int) -> list[SampleIndex]:
        """Return the samples of one process, the labelled ones first."""
        samples = self.batch(step)
        return samples[: self.labelled_per_batch][rank::world] + samples[self.labelled_per_batch :][rank::world]

    def check_world(self, world: int) -> None:
        """Raise ValueError unless every process gets the same number of labelled and of unlabelled samples."""
        if world < 1 or self.batch_size % world or self.labelled_per_batch % world:
            raise ValueError(
                f"--batch-size is {self.batch_size} with {self.labelled_per_batch} labelled images; expected multiples of {world}, the "
                "number of processes. Change --batch-size or --labelled-share."
            )


class BatchSampler:
    """The samples of one process for forward passes first .. last - 1: a batch sampler for torch's DataLoader."""

    def __init__(self, plan: SamplingPlan, first: int, last: int, rank: int = 0, world: int = 1):
        self.plan, self.first, self.last, self.rank, self.world = plan, first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        return (self.plan.share(step, self.rank, self.world) for step in range(self.first, self.last))


def sample_rng(seed: int, sample: SampleIndex) -> np.random.Generator:
    """Return the random numbers of one sample's views, which depend on no worker and no process."""
    return np.random.default_rng([seed, 77, sample.step, sample.slot, sample.index])
