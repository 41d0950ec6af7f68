"""From paths on disk to rows: finding images, pairing them with masks, and saying what is missing."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from ..messages import first_three
from ..models.fields_mscl import is_plain
from ..records.files import read_text
from .dataset import IGNORE_INDEX, Slice
from .image_io import DECODE_ERRORS, IMAGE_SUFFIXES, decode

HIDDEN = (".", "__MACOSX", "@eaDir")  # of macOS and of Synology, with thumbnails
NOT_READ = (".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".npy", ".npz", ".mat", ".h5", ".dcm", ".nii", ".exr",
            ".svg", ".psd", ".eps", ".raw", ".dng", ".cr2", ".nef", ".arw")  # fmt: skip
SCAN_AT_MOST = 500  # masks looked at to find the classes when none are named
Mask = Image.Image | np.ndarray  # as `decode` returns it
HIGHEST_ID = 65_535  # of a mask: 16 bits


def file_rows(names: Sequence[str], images: Sequence[Path], masks: Sequence[Path] | None) -> datasets.Dataset:
    """Rows that point at files: nothing is copied, and each file is decoded when its row is read."""
    columns = {"image": [str(path) for path in images], "name": list(names)}
    features = {"image": datasets.Image(), "name": datasets.Value("string")}
    if masks is not None:
        columns["mask"] = [str(path) for path in masks]
        features["mask"] = datasets.Image()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


class Listing(NamedTuple):
    """images: the image files below a folder, sorted. skipped: its sub-folders that are links or hold the output of a run, which are
    not entered, and images and arrays in formats that are not read."""

    images: list[Path]
    skipped: list[Path]


def list_images(folder: Path) -> Listing:
    """All image files below a folder, links to files among them, also broken ones; hidden files and folders are passed over.

    Raises ValueError for a folder that cannot be read.
    """
    skipped: list[Path] = []
    files = list(visible_files(folder, skipped))
    skipped += [path for path in files if path.suffix.lower() in NOT_READ]
    return Listing(sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES), sorted(skipped))


def visible_files(folder: Path, skipped: list[Path] | None = None) -> Iterator[Path]:
    """The files below a folder but for hidden ones and the output of runs. skipped: takes the sub-folders of runs, and those that are
    links, which are not entered."""

    def unreadable(error: OSError):
        raise ValueError(f"the folder {error.filename} cannot be read ({error.strerror}); correct its permissions, or move it elsewhere")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        paths = [Path(place, name) for name in sorted(folders) if not name.startswith(HIDDEN)]
        closed = [path for path in paths if path.is_symlink() or holds_run(path)]
        folders[:] = [path.name for path in paths if path not in closed]
        if skipped is not None:
            skipped += closed
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(HIDDEN)):
            if path.is_file() or not path.exists():  # a broken link is a file that the check of the data names
                yield path


def holds_run(folder: Path) -> bool:
    """Whether a run wrote its record or model into the folder; the record of another program has no output_dir."""
    for name, mark in (("run.json", '"output_dir"'), ("config.json", '"mscl"')):
        with suppress(OSError, UnicodeDecodeError):
            if mark in read_text(folder / name):
                return True
    return False


def find_images(folder: Path) -> Listing:
    """The same; raises ValueError where there is none."""
    found = list_images(folder)
    if not found.images:
        looked_for = f"{' '.join(IMAGE_SUFFIXES)} in it and its sub-folders"
        raise ValueError(f"found no images in {folder} (looked for {looked_for}){skipped_note(found.skipped)}")
    return found


def holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible_files(folder))


def skipped_note(skipped: Sequence[Path]) -> str:
    """What is not read, and how it would be; '' for nothing. skipped: see `Listing`."""
    links = [f"{path} -> {os.readlink(path)}" for path in skipped if path.is_dir() and path.is_symlink()]
    runs = [str(path) for path in skipped if path.is_dir() and not path.is_symlink()]
    files = [path.name for path in skipped if not path.is_dir()]
    note = ""
    if links:
        note += f"; {len(links)} linked folder(s) are not entered: {first_three(links)}"
        note += "; to read one, replace the link with the folder"
    if runs:
        note += f"; {len(runs)} folder(s) with the output of a run are not entered: {first_three(runs)}"
    if files:
        note += f"; {len(files)} file(s) in formats that are not read: {first_three(files)}; convert them to PNG"
    return note


def unique_names(images: Sequence[Path], folder: Path) -> list[str]:
    """Path below the folder without suffix; with it where two files differ in nothing else."""
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in images]
    count = Counter(stems)
    return [s if count[s] == 1 else path.relative_to(folder).as_posix() for s, path in zip(stems, images)]


def slices_of(volumes: Sequence[str], order: Sequence[Any]) -> tuple[Slice, ...]:
    """Slices that lie in their volumes in the order of a key: the i-th of n at (i + 0.5) / n."""
    rows_of: dict[str, list[int]] = {}
    for row, volume in enumerate(volumes):
        rows_of.setdefault(volume, []).append(row)
    slices: dict[int, Slice] = {}
    for volume, rows in rows_of.items():
        for place, row in enumerate(sorted(rows, key=lambda row: order[row])):
            slices[row] = Slice(volume, (place + 0.5) / len(rows))
    return tuple(slices[row] for row in range(len(volumes)))


def slices_by_name(volumes: Sequence[str], names: Sequence[str]) -> tuple[Slice, ...] | None:
    """The same in the order of the names, slice_2 before slice_10; None where an image has no volume."""
    if not all(volumes):
        return None
    parts = [re.split(r"([0-9]+)", name) for name in names]  # every second one is a number
    return slices_of(volumes, [[int(part) if place % 2 else part for place, part in enumerate(name)] for name in parts])


def require_files(paths: Sequence[Path], listed_in: str) -> None:
    """Raise ValueError naming the first listed files that are not there."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{listed_in} lists files that are not there: {first_three(missing)}; complete the data set")


def require_masks(images: Sequence[Path], masks: Sequence[Path]) -> None:
    """Raise ValueError naming the first images whose listed mask file is not there."""
    missing = [f"{image} ({mask})" for image, mask in zip(images, masks) if not mask.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(images)} images have no mask: {first_three(missing)}; complete the data set")


def class_names(classes: str | Path | Sequence[str] | None, num_classes: int | None) -> tuple[str, ...] | None:
    """Names from a list, a text file with one name a line, "sky,road,car", or a number of classes; None when not given.

    Lines of a file that start with # are comments. Raises ValueError, also for a blank line or entry between names: it may stand for an id.
    """
    if isinstance(classes, (str, Path)):
        is_file = os.path.isfile(classes)  # of a Path, a long list of names is no answer but an error
        if not is_file and Path(classes).suffix == ".txt":
            raise ValueError(f"the file of class names {classes} is not there; give an existing file or a list of names")
        classes = _lines(Path(classes)) if is_file else _without_blanks(str(classes).split(","), "the list of class names", "entry")
    if classes is None:
        if num_classes is None:
            return None
        if not 1 <= num_classes <= 255:
            raise ValueError(f"num_classes={num_classes}; wanted 1 to 255 classes")
        classes = [f"class_{i}" for i in range(num_classes)]
    if num_classes is not None and num_classes != len(classes):
        raise ValueError(f"got {len(classes)} class names but num_classes={num_classes}; give one of them, or equal ones")
    if not all(is_plain(name) and name.strip() for name in classes):
        raise ValueError(f"the class names are {str(classes)[:100]!r}; wanted a text for each, none empty and without control characters")
    repeated = [name for name, times in Counter(classes).items() if times > 1]
    if repeated:
        raise ValueError(f"the class names repeat {', '.join(map(repr, repeated[:3]))}; expected different names. Rename or remove one")
    if not 1 <= len(classes) <= 255:
        raise ValueError(f"got {len(classes)} class names; expected 1 to 255. Write one name for each class id")
    return tuple(classes)


def _lines(path: Path) -> list[str]:
    try:
        lines = [None if line.lstrip().startswith("#") else line for line in read_text(path).splitlines()]
        return _without_blanks(lines, f"the file of class names {path}", "line")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the file of class names {path} is neither UTF-8 text nor UTF-16 with a byte order mark ({error}); write one name a line"
        ) from error


def _without_blanks(names: Sequence[str | None], what: str, unit: str) -> list[str]:
    """The names without blanks around them. None: a comment. Raises ValueError for a blank between names."""
    stripped = [None if name is None else name.strip() for name in names]
    filled = [number for number, name in enumerate(stripped) if name]
    for number in range(filled[0], filled[-1]) if filled else ():
        if stripped[number] == "":
            raise ValueError(f"{unit} {number + 1} of {what} is blank; expected a name for each class id. Remove it, or name the class")
    return [stripped[number] for number in filled]


def make_table(label_map: dict[int, int] | str | None, reduce_labels: bool = False) -> np.ndarray | None:
    """The table of a label map: stored id -> train id, 255 = ignored. Ids not named stay as they are; None = all do.

    (256,) uint8; (65536,) int32 where the map names a 16-bit id.
    reduce_labels: stored 0 becomes the ignored label and every other id goes down by one (ADE20K's convention).
    """
    if not label_map and not reduce_labels:
        return None
    if label_map and reduce_labels:
        raise ValueError("got both a label map and reduce_labels; write the reduction into the label map")
    if reduce_labels:
        return np.concatenate([[IGNORE_INDEX], np.arange(254), [IGNORE_INDEX]]).astype(np.uint8)
    pairs = parse_label_map(label_map)
    table = np.arange(256, dtype=np.uint8) if max(pairs) < 256 else np.arange(HIGHEST_ID + 1, dtype=np.int32)
    table[list(pairs)] = list(pairs.values())
    return table


def parse_label_map(label_map: dict[int, int] | str) -> dict[int, int]:
    """{stored id: train id} of such a dict, or of text as "255:1,7:255". Raises ValueError."""
    try:
        pairs = [p.split(":") for p in label_map.split(",")] if isinstance(label_map, str) else label_map.items()
        found, repeated = {}, []
        for stored, train in pairs:
            if any(isinstance(id, (bool, float)) for id in (stored, train)):
                raise ValueError
            if not 0 <= int(stored) <= HIGHEST_ID or not 0 <= int(train) <= IGNORE_INDEX:
                raise ValueError
            repeated += [int(stored)] if int(stored) in found else []
            found[int(stored)] = int(train)
    except (TypeError, ValueError):
        raise ValueError(
            f'the label map is {label_map!r}; expected "stored:train,..." as "255:1", with stored ids in 0..{HIGHEST_ID} and train ids in '
            f"0..{IGNORE_INDEX}"
        ) from None
    if repeated:
        raise ValueError(
            f"the label map is {label_map!r} and names the id {repeated[0]} twice; expected each id once. Leave out one of them"
        )
    return found


def open_masks(paths: Sequence[Path]) -> Iterable[tuple[str, Mask | Exception]]:
    """(file name, mask) of at most SCAN_AT_MOST masks, evenly spaced over the list; of a broken one, the error in place of the mask."""
    step = max(1, -(-len(paths) // SCAN_AT_MOST))
    for path in paths[::step]:
        try:
            yield str(path), decode(path)
        except DECODE_ERRORS as error:
            yield str(path), error
