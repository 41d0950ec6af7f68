"""Infer the classes of a data set without class names from the ids in its masks, or report why these ids are not classes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..losses.labels import IGNORE_INDEX
from .checks import run_once
from .dataset import unreadable
from .files import Mask
from .label_map import HIGHEST_ID
from .pixels import BadSample, ColorMask, index_array

FAULTS_AT_MOST = 50  # unusable masks at the beginning after which no more are read
MAPPED_IN_MESSAGE = 12  # ids up to which a message gives a complete label map
RARE_PIXELS, RARE_MASKS = 0.001, 0.2  # shares of all pixels and masks up to which an id may be an error of annotation


@dataclass
class IdCount:
    """Counts of one stored id. between: its pixels with a lower and a higher id in their 3x3 window. file: the first mask that holds it."""

    pixels: int = 0
    between: int = 0
    masks: int = 0
    file: str = ""


class StoredIds:
    """The ids, pixels and number of masks, added up mask by mask."""

    def __init__(self):
        self.counts: dict[int, IdCount] = defaultdict(IdCount)
        self.pixels, self.masks = 0, 0
        self.most_between = (0, "")  # pixels between two ids, of the mask that has most of them

    def add(self, file: str, ids: np.ndarray) -> None:
        """Add the ids (H, W) of a mask as stored."""
        for id, pixels in zip(*map(np.ndarray.tolist, np.unique(ids, return_counts=True))):
            count = self.counts[id]
            count.pixels, count.masks, count.file = count.pixels + pixels, count.masks + 1, count.file or file
        between = ids[between_neighbors(ids)]
        for id, pixels in zip(*map(np.ndarray.tolist, np.unique(between, return_counts=True))):
            self.counts[id].between += pixels
        self.pixels, self.masks = self.pixels + ids.size, self.masks + 1
        self.most_between = max(self.most_between, (between.size, file), key=lambda item: item[0])

    @property
    def sorted(self) -> list[int]:
        return sorted(self.counts)

    def interpolated(self) -> list[int]:
        """Return the ids made by resampling or anti-aliasing; [] unless these are most of all ids.

        Such an id occurs where two areas meet, between their ids: most of its pixels have a lower and a higher id beside them. Of the ids
        of CamVid and PASCAL VOC at most 5 % of the pixels do, of interpolated ids 75 % and more. A thin class between two others is one id
        of several, and drawn lines have one id on both sides. Interpolated ids together are edges, not the larger part of the masks.
        """
        ids = [id for id, count in self.counts.items() if 2 * count.between > count.pixels]
        are_edges = 2 * sum(self.counts[id].pixels for id in ids) < self.pixels
        return sorted(ids) if are_edges and 2 * len(ids) > len(self.counts) else []

    def where(self, id: int) -> str:
        """Return in which masks an id occurs, and its share of the pixels."""
        count = self.counts[id]
        return f"{id} in {count.masks} of {self.masks} masks ({count.file}), {100 * count.pixels / self.pixels:.2g} % of the pixels"

    def is_rare(self, id: int) -> bool:
        """Return whether so few pixels and masks hold an id that it may be an error of annotation."""
        count = self.counts[id]
        return count.pixels <= RARE_PIXELS * self.pixels and count.masks <= max(1, RARE_MASKS * self.masks)


def between_neighbors(ids: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: whether the 3x3 window around a pixel holds a lower and a higher id than the pixel. ids: (H, W)."""
    lowest = highest = np.pad(ids, 1, mode="edge")
    for first, middle, last in ((np.s_[:-2], np.s_[1:-1], np.s_[2:]), (np.s_[:, :-2], np.s_[:, 1:-1], np.s_[:, 2:])):
        lowest = np.minimum(np.minimum(lowest[first], lowest[middle]), lowest[last])
        highest = np.maximum(np.maximum(highest[first], highest[middle]), highest[last])
    return (lowest < ids) & (ids < highest)


def infer_classes(masks: Iterable[tuple[str, Mask | Exception]], table: np.ndarray | None) -> tuple[str, ...]:
    """Return class_0 ... class_K-1, where K - 1 is the highest train id (other than 255) in the masks. The main process reads them.

    Raises BadSample if half of the masks or more cannot be used: fewer are reported by the check of the data.
    Raises ValueError if the ids are not classes: ids of resampled masks, ids above 254, only 255 beside 0 (a black-and-white mask?), no id
    at all, or ids with gaps.
    """
    return run_once(lambda: _classes_of(_stored_ids(masks), table))


def _classes_of(stored: StoredIds, table: np.ndarray | None) -> tuple[str, ...]:
    """Return the names of the classes. Raises ValueError if the ids are not classes."""
    if interpolated := stored.interpolated():
        raise ValueError(
            f"the masks were resized or anti-aliased: {len(interpolated)} of their {len(stored.counts)} ids occur only along edges, "
            f"between a lower and a higher id (most in {stored.most_between[1]}). Export them with nearest-neighbor resampling and without "
            "anti-aliasing, or give --num-classes or --classes if these ids are classes."
        )
    if set(stored.counts) == {0, IGNORE_INDEX} and table is None:
        raise ValueError(
            "the masks hold the ids 0 and 255, and 255 is the ignored label; expected at least two classes. If 255 marks the object, give "
            "--label-map 255:1."
        )
    length = IGNORE_INDEX + 1 if table is None else len(table)
    train_ids = {id: id if table is None or not 0 <= id < length else int(table[id]) for id in stored.sorted}
    beyond = [id for id, train_id in train_ids.items() if not 0 <= train_id <= IGNORE_INDEX]
    if beyond:
        raise ValueError(_beyond(stored, beyond, table is not None))
    ids = sorted(set(train_ids.values()) - {IGNORE_INDEX})
    if not ids:
        raise ValueError(_all_ignored(stored, table is not None))
    if len(ids) <= max(ids):
        raise ValueError(_gaps(stored, ids, train_ids, table is not None))
    return tuple(f"class_{i}" for i in range(max(ids) + 1))


def _stored_ids(masks: Iterable[tuple[str, Mask | Exception]]) -> StoredIds:
    """Count the ids of all usable masks. Raises BadSample if half of the masks or more cannot be used."""
    stored, faults, count = StoredIds(), [], 0
    for file, mask in masks:
        count += 1
        try:
            if isinstance(mask, Exception):
                raise unreadable(f"the mask {file}", mask) from mask
            stored.add(file, index_array(mask, {"mask": file}.get))
        except BadSample as error:
            faults.append(error)
            if len(faults) == count == FAULTS_AT_MOST:
                break
    if faults and 2 * len(faults) >= count:
        colored = [fault for fault in faults if isinstance(fault, ColorMask)]
        raise ColorMask.of_all(colored) if colored else faults[0]
    return stored


def _beyond(stored: StoredIds, beyond: Sequence[int], mapped: bool) -> str:
    """Return the message for ids that no class can have."""
    usual = [id for id in stored.sorted if id not in (IGNORE_INDEX, HIGHEST_ID)]
    if mapped:
        remedy = f"Add them to --label-map ({HIGHEST_ID}:{IGNORE_INDEX} ignores an id)"
    elif not 0 <= min(beyond) <= max(beyond) <= HIGHEST_ID:
        remedy = "Correct the masks"
    elif len(usual) > MAPPED_IN_MESSAGE:
        remedy = "Give --label-map with all classes"
    else:
        ignored = f"{HIGHEST_ID}:{IGNORE_INDEX}" if HIGHEST_ID in stored.counts else ""
        remedy = f'Give --label-map "{",".join(filter(None, (_gapless_map(usual), ignored)))}" (N:{IGNORE_INDEX} ignores an id)'
    return (
        f"the classes cannot be inferred from the masks: they hold the ids {_listed(stored.sorted)} ({stored.where(beyond[0])}); expected "
        f"ids in 0..{IGNORE_INDEX - 1}. {remedy}; if they are instance ids, store the class of each pixel instead."
    )


def _all_ignored(stored: StoredIds, mapped: bool) -> str:
    """Return the message for masks without a pixel of a class."""
    ids = f"they hold the ids {_listed(stored.sorted) or 'none'}"
    if not mapped and stored.counts:
        return (
            f"the classes cannot be inferred from the masks: {ids}, and {IGNORE_INDEX} is the ignored label; expected ids in "
            f"0..{IGNORE_INDEX - 1}. Give --label-map {IGNORE_INDEX}:1 and --num-classes 2 if it is the object."
        )
    expected = f"expected ids in 0..{IGNORE_INDEX - 1}{' that --label-map or --reduce-labels does not ignore' if mapped else ''}"
    return f"the classes cannot be inferred from the masks: {ids}; {expected}. Correct the masks{' or the option' if mapped else ''}."


def _gaps(stored: StoredIds, ids: Sequence[int], train_ids: dict[int, int], mapped: bool) -> str:
    """Return the message for ids that are not 0, 1, 2, ..."""
    to = f", which are class ids {_listed(ids)} by --label-map" if mapped else ""
    errors = _likely_errors(stored, train_ids)
    shown = "".join(f"; {stored.where(id)}" for id in errors[:3])
    if mapped and len(train_ids) > MAPPED_IN_MESSAGE:
        remedy = "Correct --label-map if these are all classes"
    elif mapped:
        numbers = {IGNORE_INDEX: IGNORE_INDEX} | {train_id: number for number, train_id in enumerate(ids)}
        corrected = {stored_id: numbers[train_id] for stored_id, train_id in train_ids.items()}
        label_map = ",".join(f"{stored_id}:{number}" for stored_id, number in corrected.items() if stored_id != number)
        remedy = f'Give --label-map "{label_map}" instead if these are all classes'
    elif errors:
        label_map = ",".join(f"{id}:{IGNORE_INDEX}" for id in errors)
        remedy = f'Correct the masks, or ignore these pixels by --label-map "{label_map}"'
    elif len(ids) > MAPPED_IN_MESSAGE:
        remedy = "Export the masks again if a lossy format changed them; give a --label-map that numbers the ids if these are all classes"
    else:
        remedy = f'Give --label-map "{_gapless_map(ids)}" if these are all classes'
        if IGNORE_INDEX in stored.counts:
            remedy += f' (with "{IGNORE_INDEX}:{len(ids)}" if {IGNORE_INDEX} is a class too)'
    return (
        f"the masks hold the ids {_listed(stored.sorted)}{to} ({IGNORE_INDEX} = ignored){shown}; expected 0, 1, 2, ... without gaps. "
        f"{remedy}, or give --num-classes or --classes if masks that were not read hold the other ids up to {ids[-1]}."
    )


def _likely_errors(stored: StoredIds, train_ids: dict[int, int]) -> list[int]:
    """Return the stored ids of few pixels without which the class ids have no gaps; [] if they are many or gaps remain."""
    rare = [id for id, train_id in train_ids.items() if train_id != IGNORE_INDEX and stored.is_rare(id)]
    others = sorted({train_id for id, train_id in train_ids.items() if id not in rare} - {IGNORE_INDEX})
    return rare if len(rare) <= MAPPED_IN_MESSAGE and others == list(range(len(others))) else []


def _gapless_map(ids: Sequence[int]) -> str:
    """Return the label map from sorted ids to 0, 1, 2, ..., as --label-map takes it."""
    return ",".join(f"{id}:{number}" for number, id in enumerate(ids) if id != number)


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:24])) + f" and {len(ids) - 24} more" * (len(ids) > 24)
