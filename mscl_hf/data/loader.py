"""From sample indices to batches on a device: read, make views, stack; in this process or in workers, with the same result."""

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
from .sampler import SampleIndex, sample_rng
from .stream import SegmentationStream


class View(Protocol):
    """Makes the views of a sample, see `transforms.views`.

    short_side: px of the image's short side beyond which detail is lost; 0 = never. others: how many other random samples a view uses.
    """

    short_side: int
    others: int
    name: str

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Sequence[Sample] = ()) -> dict[str, Tensor]: ...

    def on_device(self, batch: dict) -> dict: ...


class Samples(Dataset):
    """Maps a sample index to the sample's views and its number over all data; for slices also the number of their volume and their
    position in it. An unreadable sample is replaced by the next readable one and reported in "bad"."""

    def __init__(self, labelled: SegmentationData | None, unlabelled: SegmentationData | None, view: View, seed: int):
        self.labelled, self.unlabelled, self.view, self.seed = labelled, unlabelled, view, seed
        parts = [part.slices for part in (labelled, unlabelled) if part is not None]
        self.volumes: dict[str, int] | None = None  # their numbers; None = not all images are slices of volumes
        if all(slices is not None for slices in parts):
            self.volumes = {name: number for number, name in enumerate(sorted({s.volume for slices in parts for s in slices}))}

    def __getitem__(self, sample_index: SampleIndex) -> dict:
        data = self.labelled if sample_index.labelled else self.unlabelled
        rng, bad = sample_rng(self.seed, sample_index), []
        index, sample = _read(data, sample_index.index, bad)
        # 1 .. n - 1 samples further on: any but the sample itself.
        offsets = rng.integers(1, len(data), self.view.others) if self.view.others else ()
        others = [_read(data, (index + int(offset)) % len(data), bad)[1] for offset in offsets]
        views = self.view(sample, rng, others)
        # Unlabelled images are numbered behind the labelled ones.
        number = index + (0 if sample_index.labelled or self.labelled is None else len(self.labelled))
        if self.volumes is not None:
            volume, position = data.slices[index]
            views |= {"volume": torch.tensor(self.volumes[volume]), "position": torch.tensor(position)}
        return {**views, "index": torch.tensor(number), "labelled": sample_index.labelled, "name": sample.name, "bad": bad}


def _read(data: SegmentationData, index: int, bad: list[str]) -> tuple[int, Sample]:
    """Read sample `index`, or the next readable one; return its index and the sample. Messages of unreadable samples are added to `bad`."""
    for offset in range(len(data)):
        row = (index + offset) % len(data)
        try:
            return row, data.read(row)
        except BadSample as error:
            bad.append(str(error))
    raise BadSample(f"none of the {len(data)} samples of {data.name}/{data.split} can be read; the first: {bad[0]}")


class StreamedSamples(IterableDataset):
    """The samples of one process in the global batches `steps` of a stream; unusable rows are reported in "bad".

    Each worker makes its slots of every batch (see `worker_slots`), and `joined` puts the parts of all workers together. Whole batches by
    each worker in turn, as DataLoader makes them, would open the shards of all sequences in each worker and read n times what it uses.
    """

    def __init__(self, stream: SegmentationStream, view: View, seed: int, batch_size: int, steps: range, slots: list[list[int]]):
        self.stream, self.view, self.seed, self.batch_size, self.steps, self.slots = stream, view, seed, batch_size, steps, slots

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        slots = self.slots[0 if worker is None else worker.id]
        for step, samples in zip(self.steps, self.stream.batches(self.seed, self.batch_size, slots, self.steps.start)):
            items = []
            for slot, (sample, bad) in zip(slots, samples):
                views = self.view(sample, sample_rng(self.seed, SampleIndex(step, slot, 0, True)))
                items.append({**views, "labelled": sample.mask is not None, "name": sample.name, "bad": bad})
            yield stack(items)


def worker_slots(batch_size: int, sequences: int, rank: int, world: int, workers: int) -> list[list[int]]:
    """Return the slots of a global batch that each worker of process `rank` fills: those of whole shard sequences, if there are enough.

    Otherwise workers read the same sequences and use different rows of them. As many lists as workers, none of them empty.
    """
    slots = list(range(rank, batch_size, world))
    of_process = sorted({slot % sequences for slot in slots})
    workers = max(1, min(workers, len(slots)))
    if workers > len(of_process):
        return [slots[worker::workers] for worker in range(workers)]
    return [[slot for slot in slots if of_process.index(slot % sequences) % workers == worker] for worker in range(workers)]


def joined(parts: Sequence[dict], positions: Sequence[Tensor]) -> dict:
    """Put together the batch of which each worker made a part. positions: those of each part's samples in the batch."""
    batch, size = {}, sum(map(len, positions))
    for key, value in parts[0].items():
        if isinstance(value, Tensor) and key != "labelled":
            batch[key] = torch.empty(size, *value.shape[1:], dtype=value.dtype, pin_memory=value.is_pinned())
            for part, at in zip(parts, positions):
                batch[key][at] = part[key]
    batch["labelled"] = torch.cat([at[part["labelled"]] for part, at in zip(parts, positions)]).sort().values
    names = dict(zip(torch.cat(list(positions)).tolist(), chain.from_iterable(part["name"] for part in parts)))
    batch["name"] = [names[position] for position in range(size)]
    batch["bad"] = [message for part in parts for message in part["bad"]]
    return batch


def stack(samples: list[dict]) -> dict:
    """Return a batch: stacked tensors, of the samples that have them; labelled (n,), the positions of the samples whose mask is used; name
    and bad, lists."""
    keys = dict.fromkeys(key for sample in samples for key, value in sample.items() if isinstance(value, Tensor))
    batch = {key: torch.stack([s[key] for s in samples if key in s]) for key in keys}
    batch["labelled"] = torch.tensor([i for i, s in enumerate(samples) if s["labelled"]], dtype=torch.long)
    batch["name"] = [s["name"] for s in samples]
    batch["bad"] = [message for s in samples for message in s["bad"]]
    return batch


def to_device(batch: dict, device: torch.device) -> dict:
    """Return the batch with its tensors on the device."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()}


def obey_parent_only(_: int) -> None:
    """Ignore signals of other processes than the parent.

    Ctrl-C and job schedulers signal all processes of a group, and a worker must outlive the step that its parent finishes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
