"""The images that a run trains on: stored (`TrainingImages`) or streamed (`TrainingStream`), with one interface for the training loop."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path, PurePath
from typing import ClassVar

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .dataset import SegmentationData
from .loader import Samples, StreamedSamples, View, joined, obey_parent_only, shares, stack, to_device
from .sampler import Batches, Order
from .stream import SegmentationStream

Source = SegmentationData | SegmentationStream


class TrainingData(ABC):
    """What a run trains on, ready to be cut into batches.

    view: makes the views of a sample. seed: of order and views. place: where the data lies, for messages.
    """

    view: View
    seed: int
    place: str
    images: int | None  # how many there are; None where a stream does not tell

    @property
    @abstractmethod
    def sources(self) -> list[Source]:
        """The data sets that batches are drawn from; the one with masks, if there is one, is the first."""

    @property
    @abstractmethod
    def masked(self) -> Source | None:
        """The data set whose masks are read, or which was opened to read them."""

    @property
    @abstractmethod
    def stored(self) -> SegmentationData | None:
        """Images for figures and health checks; None where they are streamed."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int | str]:
        """Numbers of images with and without labels, for the model card."""

    @abstractmethod
    def check_world(self, world: int) -> None:
        """Raise ValueError unless every process gets the same number of labelled and of unlabelled samples."""

    @abstractmethod
    def repeats(self) -> list[str]:
        """Sentences on batches that are larger than the data, so that an image repeats in them."""

    @abstractmethod
    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        """Batches of this process for forward passes first .. last - 1, on the CPU."""

    @abstractmethod
    def _identity(self) -> tuple[str, Sequence[str]]:
        """How many there are, and the names of images or shards."""

    def identity(self) -> dict[str, str]:
        """Their number, digests of their names and of the content of some, and where they lie: to notice that a run gets other images."""
        size, names = self._identity()
        stored = [source for source in self.sources if isinstance(source, SegmentationData)]
        content = hashlib.sha256(b"".join(map(_content_of_some, stored)))
        names = hashlib.sha256("\n".join(names).encode())
        return {"size": size, "names": names.hexdigest(), "content": content.hexdigest(), "place": self.place}

    def batches(
        self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[dict]:
        """The same on the device, with their views complete. On a GPU the next batch is prepared while the current one is used."""
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
    """Stored images. labelled, unlabelled: either may be None. order: which of them make up a batch."""

    labelled: SegmentationData | None
    unlabelled: SegmentationData | None
    view: View
    seed: int
    order: Order
    place: str = ""

    @property
    def images(self) -> int:
        return sum(map(len, self.sources))

    @property
    def sources(self) -> list[Source]:
        return [part for part in (self.labelled, self.unlabelled) if part is not None]

    @property
    def masked(self) -> Source | None:
        return self.labelled

    @property
    def stored(self) -> SegmentationData | None:
        return self.labelled or self.unlabelled

    @property
    def counts(self) -> dict[str, int | str]:
        return {"images with labels": len(self.labelled or ()), "images without labels": len(self.unlabelled or ())}

    def check_world(self, world: int) -> None:
        self.order.check_world(world)

    def repeats(self) -> list[str]:
        order = self.order
        parts = ((order.labelled, order.labelled_per_batch, "labelled "), (order.unlabelled, order.batch_size - order.labelled_per_batch, ""))
        return [
            f"a batch holds {count} {which}images and there are {len(images)}: some repeat in it and are contrasted with themselves; "
            "lower --batch-size, or give more images"
            for images, count, which in parts
            if count > len(images)
        ]

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        samples = Samples(self.labelled, self.unlabelled, self.view, self.seed)
        sampler = Batches(self.order, first, last, rank, world)
        return DataLoader(samples, batch_sampler=sampler, num_workers=workers, collate_fn=stack, **_loader_options())

    def _identity(self) -> tuple[str, Sequence[str]]:
        return f"{self.images} images", [name for source in self.sources for name in source.names]


@dataclass(frozen=True)
class TrainingStream(TrainingData):
    """Images that are read as they come."""

    stream: SegmentationStream
    view: View
    seed: int
    batch_size: int
    place: str = ""

    images: ClassVar[None] = None
    stored: ClassVar[None] = None
    counts: ClassVar = {"images with labels": "a stream", "images without labels": 0}

    @property
    def sources(self) -> list[Source]:
        return [self.stream]

    @property
    def masked(self) -> Source | None:
        return self.stream

    def check_world(self, world: int) -> None:
        """Every process gets its part of any stream."""

    def repeats(self) -> list[str]:
        return []

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        lanes = self.stream.lanes(self.batch_size)
        parts = shares(self.batch_size, lanes, rank, world, workers)
        if rank == 0 and (lanes % world or len(parts) > lanes // world):
            _log_once(
                f"{len(self.stream.shards)} shard(s) of {self.stream.name}/{self.stream.split} cannot be split over {world} process(es) "
                f"and their workers in batches of {self.batch_size}: several read the same shard, and each uses other rows of it"
            )
        samples = StreamedSamples(self.stream, self.view, self.seed, self.batch_size, range(first, last), parts)
        workers = len(parts) if workers else 0
        batches = iter(DataLoader(samples, batch_size=None, num_workers=workers, collate_fn=_unchanged, **_loader_options()))
        if len(parts) == 1:
            return batches
        places = [torch.tensor([slot // world for slot in part]) for part in parts]  # slots of process r are r, r + world, ...
        return (joined(of_workers, places) for of_workers in zip(*[batches] * len(parts)))  # DataLoader asks its workers in turn

    def _identity(self) -> tuple[str, Sequence[str]]:
        return f"{len(self.stream.shards)} shards", [PurePath(shard.name).name for shard in self.stream.shards]


def _loader_options() -> dict:
    return {"worker_init_fn": obey_parent_only, "pin_memory": torch.cuda.is_available()}


def _content_of_some(data: SegmentationData, count: int = 16) -> bytes:
    """A digest of images and masks as they are stored, of samples spread over the data; empty for scenes that are drawn."""
    if not isinstance(data.rows, datasets.Dataset):
        return b""
    digest = hashlib.sha256()
    for index in range(0, len(data), max(1, len(data) // count)):
        row = data.stored(index)
        for stored in (row.get("image") or {}, row.get("mask") or {}):
            content = stored.get("bytes")
            with suppress(OSError):  # whoever decodes it will name it
                content = Path(stored["path"]).read_bytes() if content is None and stored.get("path") else content
            digest.update(hashlib.sha256(content or b"").digest())
    return digest.digest()


def _unchanged(part: dict) -> dict:
    return part


@cache
def _log_once(message: str) -> None:
    print(message, flush=True)
