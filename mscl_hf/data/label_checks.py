"""Checks of splits: fewer than two classes in training are an error; other gaps, and images that are in two splits, are warnings."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..config import DatasetConfig
from ..config.data import OWN_MASKS
from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from .checks import examined_rows
from .dataset import SegmentationData
from .files import SCAN_AT_MOST, scanned_masks, spaced_rows
from .image_io import DECODE_ERRORS, opened
from .label_map import parse_label_map
from .pixels import BadSample, index_array
from .stream import SegmentationStream

Color = tuple[int, int, int]
HEAD = 65_536  # bytes that are compared before whole files are
# Rows of a split that are compared, evenly spaced: on network storage this takes a minute or two, and other processes wait.
MOST_FILES = 20_000
MOST_STORED = 4000  # images stored in the rows, whose size is known only after reading them


def stored_ids(data: SegmentationData) -> list[int]:
    """Return the ids stored in at most SCAN_AT_MOST evenly spaced masks, sorted. Drawn masks and masks of colors give train ids."""
    if not isinstance(data.rows, datasets.Dataset):
        return data.labels.present if data.labels else []
    ids = set()
    if data.colors or data.draw:
        for index in spaced_rows(len(data)):
            with suppress(BadSample):
                ids.update(np.unique(data.read_mask(index)).tolist())
        return sorted(ids)
    for where, mask in scanned_masks(data.rows):
        with suppress(BadSample):  # reported by the check of the data
            if not isinstance(mask, Exception):
                ids.update(np.unique(index_array(mask, {"mask": where}.get)).tolist())
    return sorted(ids)


def require_classes(data: SegmentationData | SegmentationStream, ids: Sequence[int], options: DatasetConfig) -> None:
    """Raise ValueError if the training masks hold fewer than two classes: every prediction would be right.

    data: with counts of its labels. ids: those stored in its masks. If only the first rows of a stream are known, one class is an error
    only where the ignored label or --reduce-labels explains it. A class that vanishes at the training size counts.
    """
    counts, explained = data.labels, options.reduce_labels or IGNORE_INDEX in ids and not options.label_map
    if len(counts.stored) > 1 or (counts.stored and counts.total is None and not explained):
        return
    masks = f"the {'first ' if counts.total is None else ''}{counts.read} masks" if isinstance(data, SegmentationStream) else "the masks"
    left = f"only {data.classes[counts.stored[0]]!r} is labelled" if counts.stored else "no pixel is labelled"
    causes = ["--reduce-labels ignores the id 0"] if options.reduce_labels else []
    causes += [f"--label-map is {options.label_map}"] if options.label_map else []
    causes += ["255 is the ignored label"] if IGNORE_INDEX in ids and not options.label_map else []
    because = f" ({', '.join(causes)})" if causes else ""
    listed_ids = f"{', '.join(map(str, ids[:10]))}{', ...' if len(ids) > 10 else ''}" or "none"
    raise ValueError(
        f"{masks} of {data.name}/{data.split} hold the ids {listed_ids}, and {left}{because}; expected pixels of at least two "
        f"classes. {_remedy(ids, options, counts.total is None)}."
    )


def require_two_classes(training: SegmentationData | SegmentationStream | None, held_out: SegmentationData | None) -> None:
    """Raise ValueError if the first masks of a stream and all held-out masks hold one class: every prediction would be right."""
    counts = [None if data is None else data.labels for data in (training, held_out)]
    if None in counts or len(counts[0].stored) != 1 or counts[0].stored != counts[1].stored:
        return
    name = training.classes[counts[0].stored[0]]
    raise ValueError(
        f"the first {counts[0].read} masks of {training.name}/{training.split} and all of {held_out.name}/{held_out.split} hold only the "
        f"class {name!r}; expected pixels of at least two classes. Give more masks, or correct them or --classes."
    )


def require_unlabelled(labelled: SegmentationData, unlabelled: SegmentationData | SegmentationStream | None, where: str) -> None:
    """Raise ValueError if there are no unlabelled images, or if all of them are labelled ones, byte for byte. where: of --unlabelled.

    The images of a stream are not compared.
    """
    if isinstance(unlabelled, SegmentationStream):
        return
    remedy = "Use fewer masks (--train-count N), or give a folder of other images"
    if unlabelled is None:
        raise ValueError(f"--unlabelled is {where}, and all {len(labelled)} images are used with masks; expected more. {remedy}.")
    if where != "rest" and len(shared_images(labelled, unlabelled)) == len(compared_rows(unlabelled)) > 0:
        raise ValueError(f"--unlabelled is {where}, and all its images are also in {labelled.name}/{labelled.split}. {remedy}.")


def _remedy(ids: Sequence[int], options: DatasetConfig, is_part: bool) -> str:
    if options.label_map:
        return "Correct --label-map or the masks"
    leave_out = "Leave out --reduce-labels" if options.reduce_labels else ""
    if IGNORE_INDEX in ids:
        free = next(i for i in range(IGNORE_INDEX + 1) if i not in {*ids} - {IGNORE_INDEX})
        give = f"{'and if' if leave_out else 'If'} 255 marks an object, give --label-map 255:{free}"
        keep = "; if it is to be ignored, give --label-map 255:255" if is_part else ""
        return f"{leave_out}, {give}" if leave_out else give + keep
    return leave_out or "Give more masks, or correct them"


def label_warnings(
    training: Sequence[SegmentationData | SegmentationStream | None], held_out: SegmentationData | None, options: DatasetConfig
) -> list[str]:
    """Return warnings about classes that cannot be trained or measured, and about images that are in two splits.

    training: the parts of the training data, labelled or not. Labels that were not counted are not checked.
    """
    parts = [part for part in training if part is not None]
    warnings = [sentence for part in parts for sentence in _never_trained(part)]
    warnings += [] if held_out is None else _hardly_measured(held_out) or _never_measured(parts, held_out)
    if options.label_map and options.dataset in OWN_MASKS:
        warnings += _unused_entries([*parts, held_out], options.label_map)
    labelled = [part for part in (*parts, held_out) if isinstance(part, SegmentationData)]
    warnings += [sentence for part in labelled if (sentence := different_palettes(part))]
    warnings += [sentence for part in parts for sentence in _in_two_splits(part, held_out)]
    return warnings


def _never_trained(data: SegmentationData | SegmentationStream) -> list[str]:
    """Return warnings about classes without a pixel in the masks."""
    counts = data.labels
    vanished = [] if counts is None else [data.classes[i] for i in counts.vanished]
    missing = [] if counts is None else [name for i, name in enumerate(data.classes) if i not in counts.stored]
    sentences = []
    if vanished:
        sentences = [
            f"{len(vanished)} of {data.num_classes} classes vanish when the masks of {data.name}/{data.split} are resized to "
            f"{data.short_side} px on the short side: {first_three(vanished)}; a larger --base-size keeps them (0 = as stored)"
        ]
    if not missing:
        return sentences
    which = "the" if counts.read == counts.total else "the first" if counts.total is None else "the examined"
    where = f"in none of {which} {counts.read} masks of {data.name}/{data.split}"
    return [*sentences, f"{len(missing)} of {data.num_classes} classes occur {where}: {first_three(missing)}"]


def _hardly_measured(data: SegmentationData) -> list[str]:
    """Return a warning if the held-out masks hold fewer than two classes."""
    where = f"{data.name}/{data.split}"
    if data.labels is None or len(data.labels.present) > 1:
        return []
    if not data.labels.present:
        return [f"no pixel of {where} is labelled, so that the mean IoU on it is undefined"]
    return [f"only the class {data.classes[data.labels.present[0]]} is labelled in {where}, so that the mean IoU on it compares no classes"]


def _never_measured(parts: Sequence[SegmentationData | SegmentationStream], held_out: SegmentationData) -> list[str]:
    """Return a warning about classes that training masks hold and held-out masks do not."""
    if held_out.labels is None:
        return []
    trained = {i for part in parts if part.labels is not None for i in part.labels.stored}
    missing = [held_out.classes[i] for i in sorted(trained - set(held_out.labels.stored)) if i < held_out.num_classes]
    if not missing:
        return []
    where = f"{held_out.labels.read} masks of {held_out.name}/{held_out.split}"
    return [f"{len(missing)} of {held_out.num_classes} classes are in training masks and in none of the {where}: {first_three(missing)}"]


def _unused_entries(parts: Sequence[SegmentationData | SegmentationStream | None], label_map: str) -> list[str]:
    """Return a warning about ids of the label map that no mask holds."""
    labelled = [part for part in parts if isinstance(part, SegmentationData) and part.labelled]
    if not labelled:
        return []
    ids = {i for part in labelled for i in stored_ids(part)}
    unused = [f"{stored}:{train}" for stored, train in parse_label_map(label_map).items() if stored not in ids]
    scanned = sum(min(len(part), SCAN_AT_MOST) for part in labelled)
    return [f"--label-map has entries whose stored id is in none of {scanned} masks: {first_three(unused)}"] if unused else []


def _in_two_splits(first: SegmentationData | SegmentationStream, second: SegmentationData | None) -> list[str]:
    """Return a warning about images whose files are in both splits."""
    if second is None or isinstance(first, SegmentationStream):
        return []
    names = shared_images(first, second)
    if not names:
        return []
    where = f"of {len(second)} images of {second.name}/{second.split} are also in {first.name}/{first.split}"
    compared = [(len(compared_rows(data)), data) for data in (first, second)]
    limits = [f"; {n} of {len(data)} images of {data.name}/{data.split} were compared" for n, data in compared if n < len(data)]
    return [f"{len(names)} {where}, byte for byte: {first_three(names)}{''.join(limits)}"]


def shared_images(first: SegmentationData, second: SegmentationData) -> list[str]:
    """Return the names in `second` of the images whose file has the bytes of a file in `first`.

    Sizes are compared first, then the first bytes, and only files that agree in both are read whole. Of large splits only some rows are
    compared, see `compared_rows`. Equal names prove nothing, since many splits count from 0.
    """
    indices: list[Sequence[int]] = [compared_rows(data) for data in (first, second)]
    for fingerprint in (_size, partial(_digest, limit=HEAD), _digest):
        keys = [{i: _key(fingerprint, data, i) for i in rows} for data, rows in zip((first, second), indices)]
        common = set(keys[0].values()) & set(keys[1].values()) - {None}
        indices = [[i for i, key in of.items() if key in common] for of in keys]
    names = second.names
    return [names[i] for i in indices[1]]


def compared_rows(data: SegmentationData) -> Sequence[int]:
    """Return the rows that `shared_images` compares: all, or MOST_FILES or MOST_STORED of more; none of drawn images."""
    if not isinstance(data.rows, datasets.Dataset) or not len(data):
        return range(0)
    is_file = (data.stored(0)["image"] or {}).get("bytes") is None
    return examined_rows(len(data), MOST_FILES if is_file else MOST_STORED)


def _key(fingerprint: Callable[[bytes | None, str], object], data: SegmentationData, index: int) -> object:
    image = data.stored(index)["image"] or {}
    try:
        return fingerprint(image.get("bytes"), image.get("path") or "")
    except OSError:  # reported by the check of the data
        return None


def _size(content: bytes | None, path: str) -> int:
    return os.path.getsize(path) if content is None else len(content)


def _digest(content: bytes | None, path: str, limit: int | None = None) -> bytes:
    """Return the digest of the first `limit` bytes, None = of all."""
    if content is None:
        with Path(path).open("rb") as file:
            content = file.read(limit)
    return hashlib.blake2b(content[:limit]).digest()


def different_palettes(data: SegmentationData) -> str | None:
    """Return a warning if palette masks give the id of a class different colors: each file numbers its colors anew. No pixel is decoded.

    data: with counts of its labels. Compares at most SCAN_AT_MOST evenly spaced masks by the classes that occur.
    """
    if not isinstance(data.rows, datasets.Dataset) or data.labels is None or data.colors or data.draw:
        return None
    stored_ids = data.labels.stored
    if data.label_table is not None:
        stored_ids = np.flatnonzero(np.isin(data.label_table[:256], stored_ids)).tolist()
    first: dict[int, tuple[Color, str]] = {}
    for index in spaced_rows(len(data)):
        mask = data.stored(index).get("mask") or {}
        file, colors = mask.get("path") or f"the mask of row {index}", _palette(mask)
        for id in (id for id in stored_ids if id < len(colors)):
            color, where = first.setdefault(id, (colors[id], file))
            if color != colors[id]:
                return (
                    f"palette masks of {data.name}/{data.split} give the id {id} different colors: {color} in {where}, {colors[id]} in "
                    f"{file}; ids are read, not colors, so one id must be one class in all masks"
                )
    return None


def _palette(stored: dict) -> list[Color]:
    """Return the colors of a palette image by index; [] for other images and unreadable files."""
    with suppress(*DECODE_ERRORS), opened(stored.get("path"), stored.get("bytes")) as (image, _):
        values = image.getpalette("RGB") if image.mode == "P" and image.format != "GIF" else None  # a GIF is read by its colors
        return list(zip(*[iter(values or [])] * 3))
    return []
