"""The images that a run trains on: stored (`TrainingImages`) or streamed (`TrainingStream`), with one interface for the training loop."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path, PurePath

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .dataset import SegmentationData
from .loader import Samples, StreamedSamples, View, joined, obey_parent_only, stack, to_device, worker_slots
from .sampler import BatchSampler, SamplingPlan
from .stream import SegmentationStream

Source = SegmentationData | SegmentationStream


class TrainingData(ABC):
    """The images that a run trains on, in batches.

    labelled, unlabelled: the data sets that batches are drawn from, one of which may be None. view: makes the views of a sample.
    seed: of sampling and views. place: where the data lies, for messages.
    """

    labelled: Source | None
    unlabelled: Source | None
    view: View
    seed: int
    place: str

    @property
    def sources(self) -> list[Source]:
        """The data sets that batches are drawn from; one with masks comes first."""
        return [part for part in (self.labelled, self.unlabelled) if part is not None]

    @property
    def stored(self) -> SegmentationData | None:
        """Images for figures and health checks; None for a stream."""
        return next((source for source in self.sources if isinstance(source, SegmentationData)), None)

    @property
    def images(self) -> int | None:
        """The number of images; None for a stream."""
        return None if self.stored is None else sum(map(len, self.sources))

    @property
    def labelled_images(self) -> int | None:
        """The number of images of which the masks are used; None for a stream."""
        return len(self.labelled or ()) if self.stored is not None else None

    @property
    def counts(self) -> dict[str, int | str]:
        """Numbers of images with and without labels, for the model card."""
        parts = {"images with labels": self.labelled, "images without labels": self.unlabelled}
        return {name: "a stream" if isinstance(part, SegmentationStream) else len(part or ()) for name, part in parts.items()}

    def labelled_alone(self) -> "TrainingData":
        """Return the same labelled images in the same batches, without the unlabelled ones."""
        return self

    @abstractmethod
    def check_world(self, world: int) -> None:
        """Raise ValueError unless every process gets the same number of labelled and of unlabelled samples."""

    @abstractmethod
    def repeats(self) -> list[str]:
        """Return warnings about batches that are larger than the data, so that an image repeats in them."""

    @abstractmethod
    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        """Return the batches of this process for forward passes first .. last - 1, on the CPU."""

    @abstractmethod
    def _identity(self) -> tuple[str, Sequence[str]]:
        """Return the number and the names of images or shards."""

    def identity(self) -> dict[str, str]:
        """Return the number of images, digests of their names and of the content of some, and their place: a resumed run compares them."""
        size, names = self._identity()
        stored = [source for source in self.sources if isinstance(source, SegmentationData)]
        content = hashlib.sha256(b"".join(map(_content_of_some, stored)))
        names = hashlib.sha256("\n".join(names).encode())
        return {"size": size, "names": names.hexdigest(), "content": content.hexdigest(), "place": self.place}

    def batches(
        self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[dict]:
        """Yield the batches of `loader` on the device, with complete views. On a GPU the next one is prepared during the current step."""
        loader, device = self.loader(first, last, rank, world, workers), torch.device(device)
        if device.type != "cuda":
            for batch in loader:
                yield self.view.on_device(to_device(batch, device))
            return
        cuda_stream, ready = torch.cuda.Stream(device), None
        for batch in chain(loader, [None]):
            with torch.cuda.stream(cuda_stream):
                following = None if batch is None else self.view.on_device(to_device(batch, device))
            if ready is not None:
                yield ready
            torch.cuda.current_stream(device).wait_stream(cuda_stream)
            for value in (following or {}).values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(torch.cuda.current_stream(device))
            ready = following


@dataclass(frozen=True)
class TrainingImages(TrainingData):
    """Stored images. plan: which of them make up a batch."""

    labelled: SegmentationData | None
    unlabelled: SegmentationData | None
    view: View
    seed: int
    plan: SamplingPlan
    place: str = ""

    def labelled_alone(self) -> TrainingData:
        count = self.plan.labelled_per_batch
        return replace(self, unlabelled=None, plan=replace(self.plan, unlabelled=(), batch_size=count)) if count else self

    def check_world(self, world: int) -> None:
        self.plan.check_world(world)

    def repeats(self) -> list[str]:
        return [
            f"--batch-size is {self.plan.batch_size} with {count} {name} images, and the data has {len(indices)}: some repeat in a batch "
            "and are contrasted with themselves. Lower --batch-size, or give more images."
            for name, indices, count in self.plan.parts
            if count > len(indices)
        ]

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        samples = Samples(self.labelled, self.unlabelled, self.view, self.seed)
        sampler = BatchSampler(self.plan, first, last, rank, world)
        return DataLoader(samples, batch_sampler=sampler, num_workers=workers, collate_fn=stack, **_loader_options())

    def _identity(self) -> tuple[str, Sequence[str]]:
        return f"{self.images} images", [name for source in self.sources for name in source.names]


@dataclass(frozen=True)
class TrainingStream(TrainingData):
    """Streamed images."""

    stream: SegmentationStream
    view: View
    seed: int
    batch_size: int
    place: str = ""

    @property
    def labelled(self) -> Source | None:
        return self.stream if self.stream.labelled else None

    @property
    def unlabelled(self) -> Source | None:
        return None if self.stream.labelled else self.stream

    def check_world(self, world: int) -> None:
        """Do nothing: a stream can be divided over any number of processes."""

    def repeats(self) -> list[str]:
        return []

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        sequences = self.stream.sequences(self.batch_size)
        parts = worker_slots(self.batch_size, sequences, rank, world, workers)
        if rank == 0 and (sequences % world or len(parts) > sequences // world):
            _log_once(
                f"{len(self.stream.shards)} shard(s) of {self.stream.name}/{self.stream.split} cannot be split over {world} process(es) "
                f"and their workers in batches of {self.batch_size}: several read the same shard, and each uses other rows of it."
            )
        samples = StreamedSamples(self.stream, self.view, self.seed, self.batch_size, range(first, last), parts)
        workers = len(parts) if workers else 0
        batches = iter(DataLoader(samples, batch_size=None, num_workers=workers, collate_fn=_unchanged, **_loader_options()))
        if len(parts) == 1:
            return batches
        positions = [torch.tensor([slot // world for slot in part]) for part in parts]  # slots of process r are r, r + world, ...
        return (joined(of_workers, positions) for of_workers in zip(*[batches] * len(parts)))  # DataLoader takes its workers in turn

    def _identity(self) -> tuple[str, Sequence[str]]:
        return f"{len(self.stream.shards)} shards", [PurePath(shard.name).name for shard in self.stream.shards]


@dataclass(frozen=True)
class TrainingMix(TrainingData):
    """Stored labelled images, followed in each batch by images of a stream, which have no masks."""

    of_images: TrainingImages
    of_stream: TrainingStream
    place: str = ""

    @property
    def labelled(self) -> Source | None:
        return self.of_images.labelled

    @property
    def unlabelled(self) -> Source | None:
        return self.of_stream.stream

    @property
    def view(self) -> View:
        return self.of_images.view

    @property
    def seed(self) -> int:
        return self.of_images.seed

    @property
    def images(self) -> int | None:
        return None

    def labelled_alone(self) -> TrainingData:
        return self.of_images

    def check_world(self, world: int) -> None:
        self.of_images.check_world(world)

    def repeats(self) -> list[str]:
        return self.of_images.repeats()

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        of_images, of_stream = workers // 2, workers - workers // 2
        parts = self.of_images.loader(first, last, rank, world, of_images), self.of_stream.loader(first, last, rank, world, of_stream)
        for labelled, others in zip(*parts):
            lists = {name: labelled[name] + others[name] for name in ("name", "bad")}
            yield others | labelled | lists

    def _identity(self) -> tuple[str, Sequence[str]]:
        parts = [self.of_images._identity(), self.of_stream._identity()]
        return " and ".join(size for size, _ in parts), [name for _, names in parts for name in names]


def _loader_options() -> dict:
    return {"worker_init_fn": obey_parent_only, "pin_memory": torch.cuda.is_available()}


def _content_of_some(data: SegmentationData, count: int = 16) -> bytes:
    """Return a digest of `count` evenly spaced images and masks as stored; empty for synthetic scenes."""
    if not isinstance(data.rows, datasets.Dataset):
        return b""
    digest = hashlib.sha256()
    for index in range(0, len(data), max(1, len(data) // count)):
        row = data.stored(index)
        for stored in (row.get("image") or {}, row.get("mask") or {}):
            content = stored.get("bytes")
            with suppress(OSError):  # reported when it is decoded
                content = Path(stored["path"]).read_bytes() if content is None and stored.get("path") else content
            digest.update(hashlib.sha256(content or b"").digest())
    return digest.digest()


def _unchanged(part: dict) -> dict:
    return part


@cache
def _log_once(message: str) -> None:
    print(message, flush=True)
