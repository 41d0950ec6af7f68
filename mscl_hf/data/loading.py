"""From tickets to batches on a device: decode, draw views, stack; in this process or in workers, with the same result."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .order import Batches, Order, Ticket, sample_rng
from .segmentation_data import BadSample, Sample, SegmentationData
from .stream import SegmentationStream


class View(Protocol):
    """What is made of a sample, see `views`. short_side: px of the image's short side beyond which detail is lost; 0 = none.

    others: how many other samples, drawn at random, a view is also made of.
    """

    short_side: int
    others: int
    name: str

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]: ...

    def on_device(self, batch: dict) -> dict: ...


SHUFFLE_BUFFER = 1000


class Samples(Dataset):
    """Maps a ticket to one sample's views, and its index over all data; of slices also the number of their volume and their position in it.

    A bad file is replaced by the next readable one and reported in "bad".
    """

    def __init__(self, labelled: SegmentationData | None, unlabelled: SegmentationData | None, view: View, seed: int):
        self.labelled, self.unlabelled, self.view, self.seed = labelled, unlabelled, view, seed
        parts = [part.slices for part in (labelled, unlabelled) if part is not None]
        self.volumes: dict[str, int] | None = None  # their numbers; None = not all images are slices of volumes
        if all(slices is not None for slices in parts):
            self.volumes = {name: number for number, name in enumerate(sorted({s.volume for slices in parts for s in slices}))}

    def __getitem__(self, ticket: Ticket) -> dict:
        data = self.labelled if ticket.labelled else self.unlabelled
        rng, bad = sample_rng(self.seed, ticket), []
        index, sample = _read(data, ticket.index, bad)
        # Those further 1 .. n - 1 places on: any but the sample itself.
        places = [index + int(step) for step in rng.integers(1, len(data), self.view.others)] if self.view.others else []
        others = [_read(data, place % len(data), bad)[1] for place in places]
        views = self.view(sample, rng, others)
        # Unlabelled images are numbered behind the labelled ones.
        number = index + (0 if ticket.labelled or self.labelled is None else len(self.labelled))
        if self.volumes is not None:
            volume, position = data.slices[index]
            views |= {"volume": torch.tensor(self.volumes[volume]), "position": torch.tensor(position)}
        return {**views, "index": torch.tensor(number), "labelled": ticket.labelled, "name": sample.name, "bad": bad}


def _read(data: SegmentationData, index: int, bad: list[str]) -> tuple[int, Sample]:
    """Sample `index`, or the next one that can be read, and its index; what cannot be read is added to bad."""
    for step in range(len(data)):
        place = (index + step) % len(data)
        try:
            return place, data.read(place)
        except BadSample as error:
            bad.append(str(error))
    raise BadSample(f"none of the {len(data)} samples of {data.name}/{data.split} can be read; the first: {bad[0]}")


class StreamedSamples(IterableDataset):
    """Samples of a stream, pass after pass, each pass in another seeded order; process r of world takes every world-th.

    `skip` samples of this process are read and dropped, so that a resumed run goes on where it stopped. Rows that cannot be used are left
    out and reported in "bad".
    """

    def __init__(self, stream: SegmentationStream, view: View, seed: int, skip: int, shard: tuple[int, int]):
        self.stream, self.view, self.seed, self.skip, self.shard = stream, view, seed, skip, shard

    def __iter__(self) -> Iterator[dict]:
        bad: list[str] = []  # rows left out since the sample before
        for number, sample in islice(enumerate(self._endless(bad)), self.skip, None):
            views = self.view(sample, sample_rng(self.seed, Ticket(number, self.shard[0], 0, True)))
            yield {**views, "labelled": sample.mask is not None, "name": sample.name, "bad": bad[:]}
            bad.clear()

    def _endless(self, bad: list[str]) -> Iterator[Sample]:
        for epoch in count():
            empty = True
            for sample in self.stream.samples(shuffle_seed=self.seed + epoch, buffer=SHUFFLE_BUFFER, shard=self.shard, bad=bad):
                empty = False
                yield sample
            if empty:
                reason = f"; the first bad row: {bad[0]}" if bad else ""
                raise BadSample(f"the stream {self.stream.name}/{self.stream.split} has no sample for process {self.shard[0]}{reason}")


def stack(samples: list[dict]) -> dict:
    """Batch of samples: stacked tensors; labelled (n,): places of the samples whose mask counts; name, bad: lists."""
    batch = {key: torch.stack([s[key] for s in samples]) for key, value in samples[0].items() if isinstance(value, Tensor)}
    batch["labelled"] = torch.tensor([i for i, s in enumerate(samples) if s["labelled"]], dtype=torch.long)
    batch["name"] = [s["name"] for s in samples]
    batch["bad"] = [message for s in samples for message in s["bad"]]
    return batch


def to_device(batch: dict, device: torch.device) -> dict:
    """Tensors of a batch on the device, the rest as it is."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()}


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on, ready to be cut into batches.

    labelled, unlabelled: the samples (either may be None), or `stream` for a data set that is read as it comes.
    order: which samples make up a batch (None for a stream). view: Sample -> views.
    """

    labelled: SegmentationData | None
    unlabelled: SegmentationData | None
    view: View
    seed: int
    order: Order | None = None
    stream: SegmentationStream | None = None
    batch_size: int = 0

    @property
    def images(self) -> int | None:
        """How many there are, None for a stream."""
        return None if self.stream is not None else sum(len(part) for part in (self.labelled, self.unlabelled) if part is not None)

    def batches(
        self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[dict]:
        """The same on the device, with their views complete. On a GPU the next batch is made ready while the present one is used."""
        loader, device = self.loader(first, last, rank, world, workers), torch.device(device)
        if device.type != "cuda":
            for batch in loader:
                yield self.view.on_device(to_device(batch, device))
            return
        stream, ready = torch.cuda.Stream(device), None
        for batch in chain(loader, [None]):
            with torch.cuda.stream(stream):
                coming = None if batch is None else self.view.on_device(to_device(batch, device))
            if ready is not None:
                yield ready
            torch.cuda.current_stream(device).wait_stream(stream)
            for value in (coming or {}).values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(torch.cuda.current_stream(device))
            ready = coming

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> DataLoader:
        """Batches of this process for forward passes first .. last - 1."""
        options = {"collate_fn": stack, "pin_memory": torch.cuda.is_available()}
        if self.stream is not None:
            per_process = self.batch_size // world
            samples = StreamedSamples(self.stream, self.view, self.seed, first * per_process, (rank, world))
            return DataLoader(samples, batch_size=per_process, num_workers=0, **options)  # a stream is not split over workers
        samples = Samples(self.labelled, self.unlabelled, self.view, self.seed)
        sampler = Batches(self.order, first, last, rank, world)
        return DataLoader(samples, batch_sampler=sampler, num_workers=workers, worker_init_fn=_obey_parent_only, **options)


def _obey_parent_only(_: int) -> None:
    """Ctrl-C and job schedulers signal all processes of a group: a worker must outlive the step that its parent finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
