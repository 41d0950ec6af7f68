"""Files on disk: find images, name and order them, and make rows of images and masks."""

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
from ..records.files import read_text
from .class_colors import ColorTable
from .dataset import SegmentationData, Slice
from .image_io import DECODE_ERRORS, IMAGE_SUFFIXES, decode

HIDDEN = (".", "__MACOSX", "@eaDir")  # folders with thumbnails, of macOS and of Synology
NOT_READ = (".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".npy", ".npz", ".mat", ".h5", ".dcm", ".nii", ".exr",
            ".svg", ".psd", ".eps", ".raw", ".dng", ".cr2", ".nef", ".arw")  # fmt: skip
SCAN_AT_MOST = 500  # masks that are read to infer the classes
Mask = Image.Image | np.ndarray  # as `decode` returns it


def file_rows(names: Sequence[str], images: Sequence[Path], masks: Sequence[Path] | None) -> datasets.Dataset:
    """Return rows that hold paths: nothing is copied, and a file is decoded when its row is read."""
    columns = {"image": list(map(str, images)), "name": list(names)} | ({} if masks is None else {"mask": list(map(str, masks))})
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Value("string"))))
    for column in columns:
        if column != "name":  # all paths at once; from_dict would encode one after another
            rows = rows.cast_column(column, datasets.Image())
    return rows


class Listing(NamedTuple):
    """images: the image files below a folder, sorted. skipped: sub-folders that are not entered, because they are links or hold the output
    of a run, and images and arrays in formats that are not read."""

    images: list[Path]
    skipped: list[Path]


def list_images(folder: Path) -> Listing:
    """List all image files below a folder, also links to files, even broken ones; hidden files and folders are left out.

    Raises ValueError for an unreadable folder.
    """
    skipped: list[Path] = []
    files = [(path.suffix.lower(), path) for path in visible_files(folder, skipped)]
    skipped += [path for suffix, path in files if suffix in NOT_READ]
    return Listing(sorted(path for suffix, path in files if suffix in IMAGE_SUFFIXES), sorted(skipped))


def visible_files(folder: Path, skipped: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files below a folder without hidden ones. Sub-folders that are links or hold the output of a run are not entered; they are
    added to `skipped`."""

    try:
        with os.scandir(folder) as listed:
            entries = {entry.name: entry for entry in listed if not entry.name.startswith(HIDDEN)}
        paths = [path for path in folder.iterdir() if path.name in entries]  # takes a third of the time of Path(folder, name)
    except OSError as error:
        remedy = "Correct its permissions, or move it elsewhere."
        raise ValueError(f"the folder {folder} cannot be read ({error.strerror}). {remedy}") from error
    folders = []
    for path in sorted(paths, key=lambda path: path.name):
        entry = entries[path.name]
        if is_folder(entry):
            folders.append(path)
        elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or not os.path.exists(entry.path):
            # A broken link is reported by the check of the data.
            yield path
    for path in folders:
        if not path.is_symlink() and not holds_run(path):
            yield from visible_files(path, skipped)
        elif skipped is not None:
            skipped.append(path)


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one; False for a link to itself, which is broken."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def holds_run(folder: Path) -> bool:
    """Whether a run wrote its record or model into the folder; the record of another program has no output_dir."""
    for name, mark in (("run.json", '"output_dir"'), ("config.json", '"mscl"')):
        with suppress(OSError, UnicodeDecodeError):
            if mark in read_text(folder / name):
                return True
    return False


def find_images(folder: Path) -> Listing:
    """List all image files as `list_images` does. Raises ValueError if there are none."""
    listing = list_images(folder)
    if not listing.images:
        raise ValueError(f"{folder} holds no images{skipped_note(listing.skipped)}; expected files of {' '.join(IMAGE_SUFFIXES)}.")
    return listing


def holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible_files(folder))


def skipped_note(skipped: Sequence[Path]) -> str:
    """Name what is not read, and what to do to read it; "" for nothing. skipped: see `Listing`."""
    links = [f"{path} -> {os.readlink(path)}" for path in skipped if path.is_dir() and path.is_symlink()]
    runs = [str(path) for path in skipped if path.is_dir() and not path.is_symlink()]
    files = [path.name for path in skipped if not path.is_dir()]
    note = ""
    if links:
        note += f"; {len(links)} linked folder(s) are not entered: {first_three(links)}; to read one, replace the link with the folder"
    if runs:
        note += f"; {len(runs)} folder(s) with the output of a run are not entered: {first_three(runs)}"
    if files:
        note += f"; {len(files)} file(s) in formats that are not read: {first_three(files)}; convert them to PNG"
    return note


def unique_names(images: Sequence[Path], folder: Path) -> list[str]:
    """Return the paths below the folder without suffix; with it where two files differ in nothing else.

    Raises ValueError for a path that does not lie below the folder.
    """
    prefix = str(folder / "_")[:-1]  # "" for ".", "/" for "/"; `relative_to` takes ten times as long
    if outside := [path for path in images if not str(path).startswith(prefix) or not prefix and path.is_absolute()]:
        raise ValueError(f"the image {outside[0]} lies outside of the folder {folder}; expected images below it. Move or link it there.")
    names = [str(path)[len(prefix) :].replace(os.sep, "/") for path in images]
    stems = [name.removesuffix(path.suffix) for name, path in zip(names, images)]
    count = Counter(stems)
    return [stem if count[stem] == 1 else name for stem, name in zip(stems, names)]


def slices_of(volumes: Sequence[str], keys: Sequence[Any]) -> tuple[Slice, ...]:
    """Return slices that are sorted by a key in their volumes: the i-th of n has position (i + 0.5) / n."""
    rows_of: dict[str, list[int]] = {}
    for row, volume in enumerate(volumes):
        rows_of.setdefault(volume, []).append(row)
    slices: dict[int, Slice] = {}
    for volume, rows in rows_of.items():
        for i, row in enumerate(sorted(rows, key=lambda row: keys[row])):
            slices[row] = Slice(volume, (i + 0.5) / len(rows))
    return tuple(slices[row] for row in range(len(volumes)))


def slices_by_name(volumes: Sequence[str], names: Sequence[str]) -> tuple[Slice, ...] | None:
    """Return slices that are sorted by name, slice_2 before slice_10; None if an image has no volume."""
    if not all(volumes):
        return None
    parts = [re.split(r"([0-9]+)", name) for name in names]  # every second one is a number
    return slices_of(volumes, [[int(part) if i % 2 else part for i, part in enumerate(name)] for name in parts])


def require_files(paths: Sequence[Path], listed_in: str) -> None:
    """Raise ValueError if listed files do not exist."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{listed_in} lists files that do not exist: {first_three(missing)}. Complete the data set.")


def open_masks(paths: Sequence[Path]) -> Iterable[tuple[str, Mask | Exception]]:
    """Yield (file name, mask) of at most SCAN_AT_MOST evenly spaced masks; for an unreadable one, the error in place of the mask."""
    step = max(1, -(-len(paths) // SCAN_AT_MOST))
    for path in paths[::step]:
        try:
            yield str(path), decode(path)
        except DECODE_ERRORS as error:
            yield str(path), error


def spaced_rows(count: int) -> list[int]:
    """Return at most SCAN_AT_MOST evenly spaced rows, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, SCAN_AT_MOST)).astype(int)).tolist()


def scanned_masks(rows: datasets.Dataset) -> Iterator[tuple[str, Mask | Exception]]:
    """Yield (description, mask) of at most SCAN_AT_MOST evenly spaced rows; for an unreadable mask, the error. Images are not decoded."""
    masks = rows.with_format("arrow")
    for index in spaced_rows(len(rows)):
        mask = masks[index]["mask"][0].as_py()
        try:
            if mask is not None:
                yield f"of row {index}", decode(mask["path"], mask["bytes"])
        except DECODE_ERRORS as error:
            yield f"of row {index}", error


def from_files(
    dataset: str,
    split: str,
    names: Sequence[str],
    images: Sequence[Path],
    masks: Sequence[Path] | None,
    classes: Sequence[str],
    table: np.ndarray | None = None,
    groups: tuple[str, ...] | None = None,
    slices: tuple[Slice, ...] | None = None,
    note: str = "",
    colors: ColorTable | None = None,
) -> SegmentationData:
    """Return the data of these files. masks: None for unlabelled data, whose classes are (). note: where the files lie."""
    note = f"{len(images)} images{'' if masks is None else ' with masks'}{note}"
    if masks is None:
        return SegmentationData(file_rows(names, images, None), (), dataset, split, None, groups, slices, note)
    if missing := [f"{image} ({mask})" for image, mask in zip(images, masks) if not mask.is_file()]:
        raise ValueError(f"{len(missing)} of {len(images)} images have no mask: {first_three(missing)}. Complete the data set.")
    rows = file_rows(names, images, masks)
    return SegmentationData(rows, tuple(classes), dataset, split, table, groups, slices, note, colors=colors)
