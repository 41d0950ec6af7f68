"""From tickets to batches on a device: decode, draw views, stack; in this process or in workers, with the same result."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path, PurePath
from typing import Protocol

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .dataset import BadSample, Sample, SegmentationData
from .sampler import Batches, Order, Ticket, sample_rng
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
    """What one process makes of the global batches `first` .. `last` - 1 of a stream; rows that cannot be used are reported in "bad".

    A worker makes its `shares` of every batch, and `joined` puts those of all workers together. Were a worker to make whole batches, as
    DataLoader means it (the i-th by worker i mod n), each of them would open the shards of all lanes and read n times what it uses.
    """

    def __init__(self, stream: SegmentationStream, view: View, seed: int, batch_size: int, steps: range, shares: list[list[int]]):
        self.stream, self.view, self.seed, self.batch_size, self.steps, self.shares = stream, view, seed, batch_size, steps, shares

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        slots = self.shares[0 if worker is None else worker.id]
        for step, samples in zip(self.steps, self.stream.batches(self.seed, self.batch_size, slots, self.steps.start)):
            yield stack([self._item(step, slot, *sample) for slot, sample in zip(slots, samples)])

    def _item(self, step: int, slot: int, sample: Sample, bad: list[str]) -> dict:
        views = self.view(sample, sample_rng(self.seed, Ticket(step, slot, 0, True)))
        return {**views, "labelled": sample.mask is not None, "name": sample.name, "bad": bad}


def shares(batch_size: int, lanes: int, rank: int, world: int, workers: int) -> list[list[int]]:
    """The slots of a global batch that each worker of process `rank` fills: those of whole lanes, where it has a lane for each worker.

    Otherwise, workers read the same lanes and use other rows of them. As many lists as workers, but none is empty.
    """
    slots = list(range(rank, batch_size, world))
    own = sorted({slot % lanes for slot in slots})
    workers = max(1, min(workers, len(slots)))
    if workers > len(own):
        return [slots[worker::workers] for worker in range(workers)]
    return [[slot for slot in slots if own.index(slot % lanes) % workers == worker] for worker in range(workers)]


def joined(parts: Sequence[dict], places: Sequence[Tensor]) -> dict:
    """The batch of which each worker made a part; places: where in the batch the samples of each part stand."""
    batch, size = {}, sum(map(len, places))
    for key, value in parts[0].items():
        if isinstance(value, Tensor) and key != "labelled":
            batch[key] = torch.empty(size, *value.shape[1:], dtype=value.dtype, pin_memory=value.is_pinned())
            for part, at in zip(parts, places):
                batch[key][at] = part[key]
    batch["labelled"] = torch.cat([at[part["labelled"]] for part, at in zip(parts, places)]).sort().values
    names = dict(zip(torch.cat(list(places)).tolist(), chain.from_iterable(part["name"] for part in parts)))
    batch["name"] = [names[place] for place in range(size)]
    batch["bad"] = [message for part in parts for message in part["bad"]]
    return batch


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
    order: which samples make up a batch (None for a stream). view: Sample -> views. place: where the data lies, for messages.
    """

    labelled: SegmentationData | None
    unlabelled: SegmentationData | None
    view: View
    seed: int
    order: Order | None = None
    stream: SegmentationStream | None = None
    batch_size: int = 0
    place: str = ""

    @property
    def images(self) -> int | None:
        """How many there are, None for a stream."""
        return None if self.stream is not None else sum(len(part) for part in (self.labelled, self.unlabelled) if part is not None)

    def identity(self) -> dict[str, str]:
        """Their number, a digest of their names and one of the content of some, by which another data set is noticed wherever it lies; and
        where it lies."""
        if self.stream is not None:
            size, names = f"{len(self.stream.shards)} shards", [PurePath(shard.name).name for shard in self.stream.shards]
        else:
            size, names = f"{self.images} images", [name for part in self._parts for name in part.names]
        content = hashlib.sha256(b"".join(map(_content_of_some, self._parts)))
        names = hashlib.sha256("\n".join(names).encode())
        return {"size": size, "names": names.hexdigest(), "content": content.hexdigest(), "place": self.place}

    @property
    def _parts(self) -> list[SegmentationData]:
        return [part for part in (self.labelled, self.unlabelled) if part is not None]

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

    def loader(self, first: int, last: int, rank: int = 0, world: int = 1, workers: int = 0) -> Iterable[dict]:
        """Batches of this process for forward passes first .. last - 1."""
        options = {"worker_init_fn": _obey_parent_only, "pin_memory": torch.cuda.is_available()}
        if self.stream is not None:
            return self._streamed(range(first, last), rank, world, workers, options)
        samples = Samples(self.labelled, self.unlabelled, self.view, self.seed)
        sampler = Batches(self.order, first, last, rank, world)
        return DataLoader(samples, batch_sampler=sampler, num_workers=workers, collate_fn=stack, **options)

    def _streamed(self, steps: range, rank: int, world: int, workers: int, options: dict) -> Iterator[dict]:
        lanes = self.stream.lanes(self.batch_size)
        parts = shares(self.batch_size, lanes, rank, world, workers)
        if rank == 0 and (lanes % world or len(parts) > lanes // world):
            _say_once(
                f"{len(self.stream.shards)} shard(s) of {self.stream.name}/{self.stream.split} cannot be split over {world} process(es) "
                f"and their workers in batches of {self.batch_size}: several read the same shard, and each uses other rows of it"
            )
        samples = StreamedSamples(self.stream, self.view, self.seed, self.batch_size, steps, parts)
        made = iter(DataLoader(samples, batch_size=None, num_workers=len(parts) if workers else 0, collate_fn=_as_it_is, **options))
        if len(parts) == 1:
            return made
        places = [torch.tensor([slot // world for slot in part]) for part in parts]  # slots of process r are r, r + world, ...
        return (joined(of_all, places) for of_all in zip(*[made] * len(parts)))  # DataLoader asks its workers in turn


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


def _as_it_is(part: dict) -> dict:
    return part


@cache
def _say_once(message: str) -> None:
    print(message, flush=True)


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
