"""From tickets to batches on a device: decode, draw views, stack; in this process or in workers, with the same result."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .dataset import BadSample, Sample, SegmentationData
from .sampler import Ticket, sample_rng
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


def obey_parent_only(_: int) -> None:
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
