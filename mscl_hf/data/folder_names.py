"""Names of folders with images, masks and splits, and how `--dataset folder` finds them."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .files import holds_images, is_folder

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation",
                "segmentationclass", "gt", "ground_truth", "groundtruth")  # fmt: skip
WORDS = (  # in names of mask folders and mask files
    r"masks?|labels?|annotations?|annot|annos?|segs?|segmentations?|segmentation_?class|gt|ground_?truth|label_?ids|label_?train_?ids|"
    "semantic|targets?"
)
SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))  # names that mean the same
NUMBERED = re.compile(rf"({'|'.join(name for names in SPLITS for name in names)})[ ._-]?[0-9]+")  # train2017, val_2017
EXPECTED = "a folder with images/ and masks/ (or only images), or --image-dir and --mask-dir"


class UnknownSplit(ValueError):
    """A data set has no such split. available: the names of its splits."""

    def __init__(self, split: str, available: Sequence[str], where: str, remedy: str, flag: str = "the split"):
        super().__init__(f"{flag} is {split!r}; expected a split of {where} ({', '.join(available) or 'it has none'}). {remedy}")
        self.split, self.available, self.where, self.remedy = split, tuple(available), where, remedy


def available_split(split: str, available: Collection[str], where: str, layout: str = "") -> str:
    """Return the split's name among those available, or another of the same meaning: val, valid, validation. Raises UnknownSplit.

    layout: the expected content of the folder, if it has no split at all.
    """
    for name in split_names(split):
        if name in available:
            return name
    raise UnknownSplit(
        split, list(available), where, f"Give a folder like this: {layout}." if layout and not available else "Choose one of them."
    )


def find_folders(split: str, data_dir: Path | None, image_dir: Any = None, mask_dir: Any = None) -> tuple[Path, Path | None]:
    """Return the folders of a split's images and masks; None for masks if no folder is given and not exactly one exists.

    images/ and masks/ (labels/, annotations/, ...) contain the folders of the splits or lie in them. Without either, the images lie in the
    split's folder, or in data_dir itself, which is then the split 'train'. Raises ValueError for a missing folder or split.
    """
    images, masks = _find_folders(split, data_dir, image_dir, mask_dir)
    if masks is not None and masks.resolve().is_relative_to(images.resolve()):  # so that paths of files can be compared
        masks = images / masks.resolve().relative_to(images.resolve())
    return images, masks


def _find_folders(split: str, data_dir: Path | None, image_dir: Any, mask_dir: Any) -> tuple[Path, Path | None]:
    if image_dir is None and data_dir is None:
        raise ValueError(f"--data-dir is missing; --dataset folder needs {EXPECTED}.")
    images, masks = (None if folder is None else Path(folder) for folder in (image_dir, mask_dir))
    for flag, folder in (("--image-dir", images), ("--mask-dir", masks)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{flag} is {folder}, which is not a folder; expected {EXPECTED}.")
    candidates = [masks] if masks is not None else [] if data_dir is None else mask_folders(data_dir)
    images = images or image_folder(data_dir, bool(candidates))
    if images is not None:
        return in_split(images, split), _masks_of(split, candidates)
    images = in_split(data_dir, split)
    if images == data_dir:  # a mask folder that is not a link lies among the images; `separate` finds it
        return images, _masks_of(split, [path for path in candidates if masks is not None or path.is_symlink()])
    if masks is None and not candidates:
        named = re.compile(rf"(?i){re.escape(images.name)}[ ._-]?(?:{WORDS})")  # train_masks, trainannot
        siblings = [data_dir / name for name in subfolders(data_dir) if named.fullmatch(name)]
        candidates = [folder for folder in siblings if holds_images(folder)]
    inner = candidates if masks is not None else mask_folders(images)
    folder = image_folder(images, True) if inner else None
    return (images, _masks_of(split, candidates)) if folder is None else (folder, _masks_of(split, inner))


def mask_folders(folder: Path) -> list[Path]:
    """Return sub-folders that are named after masks and hold image files; only masks/ if it is one of them."""
    matches = [path for path in _named(folder, MASK_FOLDERS) if holds_images(path)]
    return [path for path in matches if path.name == "masks"] or matches


def image_folder(folder: Path, has_masks: bool) -> Path | None:
    """Return images/, or beside masks the only sub-folder with another name of IMAGE_FOLDERS."""
    matches = _named(folder, IMAGE_FOLDERS)
    if folder / "images" in matches:
        return folder / "images"
    return matches[0] if has_masks and len(matches) == 1 else None


def in_split(folder: Path, split: str) -> Path:
    """Return the split's sub-folder, or the folder itself if it has no splits (then all of it is 'train'). Raises UnknownSplit."""
    sub_folder = split_folder(folder, split)
    if sub_folder is not None:
        return sub_folder
    splits = split_folders(folder)
    if splits or split != "train":
        raise UnknownSplit(split, splits or ["train"], str(folder), f"Choose one, or make {folder / split}, and the same below the masks.")
    return folder


def split_folder(folder: Path, split: str) -> Path | None:
    """Return the sub-folder with the split's name, else with a synonym, else the only one with such a name and a number."""
    if (folder / split).is_dir():
        return folder / split
    names = {name.lower(): name for name in reversed(subfolders(folder))}
    exact = next((folder / names[name] for name in split_names(split) if name in names), None)
    numbered = [folder / name for name in split_folders(folder) if without_number(name) in split_names(split)]
    return numbered[0] if exact is None and len(numbered) == 1 else exact


def split_folders(folder: Path) -> list[str]:
    """Return the sub-folders that are splits. train_1 and train_2 alone are parts of one; train2017 beside val2017 is a split."""
    names = {name: without_number(name) for name in subfolders(folder)}
    splits = {split for split, *_ in filter(None, map(split_names_of, names.values()))}
    matches = [name for name, plain in names.items() if split_names_of(plain)]
    return matches if len(splits) > 1 else [name for name in matches if names[name] == name.lower()]


def split_names_of(name: str) -> tuple[str, ...] | None:
    """Return all names of the split that has this name; None for other names."""
    return next((names for names in SPLITS if name in names), None)


def without_number(name: str) -> str:
    """Return train for train2017, and other names in lower case."""
    numbered = NUMBERED.fullmatch(name.lower())
    return numbered[1] if numbered else name.lower()


def split_names(split: str) -> tuple[str, ...]:
    """Return the split's name and then its synonyms."""
    return (split, *(name for names in SPLITS if split in names for name in names if name != split))


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the sub-folders; [] for a missing folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry))


def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in subfolders(folder) if name.lower() in names]


def _masks_of(split: str, candidates: Sequence[Path]) -> Path | None:
    return (split_folder(candidates[0], split) or candidates[0]) if len(candidates) == 1 else None
