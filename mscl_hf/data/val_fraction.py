"""`--val-fraction`: hold a part of the training images out where the data has no held-out split, and write their names down.

The names are written to val_split.txt in the run's folder when they are drawn. A resumed run, fine-tuning of that model and its evaluation
read the file, so that images that are added later, or another seed, move no image from one part to the other.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import DataConfig, DatasetConfig
from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from ..records.files import read_text, write_text
from ..records.run_folder import VAL_SPLIT
from .checks import run_once, with_progress
from .dataset import SegmentationData, histogram_of
from .pixels import BadSample
from .subset import subset_order


def is_list(split: str | None) -> bool:
    """Return whether a split is a text file with the names of its images, and no name."""
    return split is not None and split.endswith(".txt")


def drawn_names(data: SegmentationData, fraction: float, seed: int) -> list[str]:
    """Return the names of the images to hold out, in the order of the data. All masks are read.

    Classes are taken in turn, the rarest first, and each of their images goes to the part that lacks the class more (iterative
    stratification, Sechidis et al. 2011). Raises ValueError for fewer than two images.
    """
    if len(data) < 2:
        raise ValueError(f"--val-fraction is {fraction} and {data.name}/{data.split} has {len(data)} image(s); expected two. Add images.")
    holds = _classes_of(data)
    wanted = min(len(data) - 1, max(1, round(fraction * len(data))))
    room = np.array([wanted, len(data) - wanted])  # of the held-out part and of the other
    lacking = holds.sum(0)[:, None] * room / len(data)  # (256, 2) images of each class
    rank = np.empty(len(data), int)
    rank[subset_order(len(data), seed)] = range(len(data))
    part = np.full(len(data), -1)
    while (part < 0).any():
        left = np.flatnonzero(part < 0)
        counts = holds[left].sum(0)
        rarest = int(np.where(counts > 0, counts, len(data) + 1).argmin()) if counts.any() else None
        members = left if rarest is None else left[holds[left, rarest]]
        for index in members[np.argsort(rank[members])]:
            need = room if rarest is None else lacking[rarest]
            choice = int(np.lexsort((-room, -need))[0])
            choice = choice if room[choice] > 0 else 1 - choice
            part[index] = choice
            room[choice] -= 1
            lacking[holds[index], choice] -= 1
    return [name for name, number in zip(data.names, part) if number == 0]


def _classes_of(data: SegmentationData) -> np.ndarray:
    """Return (N, 255) bool, the classes in the mask of each row; none for a bad mask, which the check of the data reports."""
    holds = np.zeros((len(data), IGNORE_INDEX), bool)

    def read(index: int) -> None:
        with suppress(BadSample):
            holds[index] = histogram_of(data.read_mask(index))[:IGNORE_INDEX] > 0

    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(read, range(len(data) if data.labelled else 0))
        for _ in with_progress(rows, len(data), f"reading masks of {data.name}/{data.split}"):
            pass
    return holds


def write_names(path: Path, names: Sequence[str], options: DataConfig) -> None:
    """Write the names of the held-out images."""
    head = f"# held out by --val-fraction {options.val_fraction} --subset-seed {options.subset_seed}"
    write_text(path, "\n".join([head, *names]) + "\n")


def read_names(path: str | Path) -> list[str]:
    """Return the names in a list of held-out images. The main process reads it. Raises ValueError."""

    def read() -> list[str]:
        try:
            lines = [line.strip() for line in read_text(Path(path)).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the split is {path}, which cannot be read ({error}); expected a name of an image a line.") from error
        names = [line for line in lines if line and not line.startswith("#")]
        if not names:
            raise ValueError(f"the split is {path}, which names no image; expected a name of an image a line. Give another split.")
        return names

    return run_once(read)


def listed_part(data: SegmentationData, path: str | Path, held_out: bool) -> SegmentationData:
    """Return the images that the list names, or all others. Raises ValueError for a name that the data does not have."""
    listed, names = set(read_names(path)), data.names
    if absent := sorted(listed.difference(names)) if held_out else []:
        raise ValueError(
            f"{path} lists {len(absent)} of {len(listed)} images that {data.name}/{data.split} does not have: {first_three(absent)}. "
            "Give the data that the list was made for."
        )
    kept = [index for index, name in enumerate(names) if (name in listed) == held_out]
    if not kept:
        raise ValueError(f"{path} lists all {len(names)} images of {data.name}/{data.split}; expected some to train on. Shorten the list.")
    which = f"the {len(kept)} images that {path} lists" if held_out else f"the {len(names) - len(kept)} images of {path} are held out"
    return replace(data.select(kept), split="val" if held_out else data.split, note=f"{data.note}; {which}")


def split_of_model(options: DatasetConfig, model: str) -> str | None:
    """Return the list of the images that a model's training held out; None if its folder has none."""
    path = Path(model) / VAL_SPLIT
    return str(path) if options.dataset != "synthetic" and path.is_file() else None
