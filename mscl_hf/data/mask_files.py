"""Tell masks from images in a folder, by the names of files and folders, and by their few colors where names are ambiguous."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .folder_names import IMAGE_FOLDERS, MASK_FOLDERS, WORDS
from .image_io import DECODE_ERRORS, decode

MASK_NAME = re.compile(rf"(?i:[ ._-]?masks?|[ ._-](?:{WORDS}))$|_L$")  # 00_mask, 00-labels; 00_L as in CamVid
MASK_PREFIX = re.compile(rf"(?i)(?:{WORDS})[ ._-](?=.)")  # mask_00
# Those of these names that photos also have: gasmask, face-target, woman_L, target_00. Such files are opened.
PHOTO_NAME = re.compile(r"(?i:(?<![ ._-])masks?|[ ._-](?:semantic|targets?))$|_L$|^(?i:semantic|targets?)[ ._-]")
FIRST_WORD, LAST_WORD = re.compile(r"^[^ ._-]+[ ._-]"), re.compile(r"[ ._-][^ ._-]+$")
MASK_WORD = re.compile(rf"(?i)(?:^|[ ._-])(?:{WORDS})(?:[ ._-]|$)")  # train_masks, masks_png
# Among files of one stem, the last in this order is the mask of the first.
FORMATS = (".jpg", ".jpeg", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".gif", ".png")
SAMPLES = 8  # pairs that are opened to check whether one file is the other's mask


class Separated(NamedTuple):
    """images: the files that are not masks. beside: masks of an image in the image's folder. folders: folders of masks below the root.
    left_out: number of files that are masks."""

    images: list[Path]
    beside: dict[Path, list[Path]]
    folders: list[Path]
    left_out: int

    def own_folder(self, root: Path) -> Path | None:
        """Return the only folder of masks, if it lies directly in the root."""
        return self.folders[0] if len(self.folders) == 1 and self.folders[0].parent == root else None


def separate(files: Sequence[Path], root: Path, masks_root: Path | None = None, suffix: str = "") -> Separated:
    """Tell masks from images among the image files below `root`.

    Masks are: files below masks_root, if that lies in root; files of folders named after masks beside images; 00_mask.png (or 00 and the
    suffix) and the like beside 00.jpg; 00.png and 00_L.png beside 00.jpg, if they look like masks or masks_root is root.
    Raises ValueError if only some of the files of such pairs look like masks.
    """
    inside = masks_root is not None and masks_root != root and masks_root.is_relative_to(root)
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_folder[path.parent].append(path)
    folders = [*([masks_root] if inside else []), *_folders_of_masks(by_folder, root)]
    masked = set(folders)
    beside: dict[Path, list[Path]] = defaultdict(list)
    images = []
    for folder, members in by_folder.items():
        if not masked.isdisjoint((folder, *folder.parents)):
            continue
        masks = _by_name(members, suffix, masks_root == root)
        masks |= _by_format([path for path in members if path not in masks] if masks else members, masks_root == root)
        images += [path for path in members if path not in masks] if masks else members
        for mask, image in masks.items():
            if image is not None:
                beside[image].append(mask)
    return Separated(sorted(images), dict(beside), folders, len(files) - len(images))


def key(path: Path, root: Path) -> str:
    """Return the path below the root without its ending, as composed Unicode."""
    return normal(path.relative_to(root).with_suffix("").as_posix())


def normal(text: str) -> str:
    """Return composed Unicode: macOS stores a letter and its accent separately, other systems keep names as written."""
    return unicodedata.normalize("NFC", text)


def stem_of_image(stem: str, suffix: str = "") -> str | None:
    """Return a mask's stem without the suffix or a usual ending; None if it has neither."""
    if _has_suffix(stem, suffix):
        return stem[: -len(suffix)]
    ending = MASK_NAME.search(stem)
    return stem[: ending.start()] if ending else None


def _by_name(files: Sequence[Path], suffix: str, are_masks: bool) -> dict[Path, Path | None]:
    """Return {mask: its image} of files in one folder, by their names; None for masks of the same naming whose image is missing.

    Beside 00.jpg: 00_mask.png, mask_00.png, 00.jpg.png. If they look like masks: mask_00.png beside img_00.jpg, 00_mask.png beside
    00_sat.jpg, mask.png beside the only image of the folder or image.png; also 00_L.png and other names of photos, unless are_masks.
    """
    stems, by_name = [normal(path.stem) for path in files], {normal(path.name): path for path in files}
    masks = {path: by_name[stem] for path, stem in zip(files, stems) if stem in by_name}
    endings = {path: base for path, stem in zip(files, stems) if (base := stem_of_image(stem, suffix)) is not None}
    prefixes = {path: stem[match.end() :] for path, stem in zip(files, stems) if (match := MASK_PREFIX.match(stem)) and path not in endings}
    words = [path for path, stem in zip(files, stems) if MASK_WORD.fullmatch(stem)]
    if not (masks or endings or prefixes or words):  # most folders hold images alone
        return {}
    stems = dict(zip(files, stems))
    by_base = by_name | {stem: path for path, stem in stems.items()}
    photo_names = {path for path, stem in stems.items() if not are_masks and PHOTO_NAME.search(stem) and not _has_suffix(stem, suffix)}
    groups = [(bases, cut) for named, cut in ((endings, LAST_WORD), (prefixes, FIRST_WORD)) for bases in _divided(named, photo_names)]
    groups = [(bases, cut) for bases, cut in groups if photo_names.isdisjoint(bases) or _may_be_masks(bases, by_base)]
    not_images = {*words, *(path for bases, _ in groups for path in bases)}
    plain = [path for path in files if path not in not_images]
    likely: dict[Path, Path] = {}
    for bases, cut in filter(lambda group: group[0], groups):
        shortened = _unique((cut.sub("", stems[path]), path) for path in plain)
        masks |= {path: by_base[base] for path, base in bases.items() if base in by_base}
        likely |= {path: shortened[base] for path, base in bases.items() if base not in by_base and base in shortened}
    images = [path for path in plain if stems[path].lower() in IMAGE_FOLDERS] or plain
    likely |= {path: images[0] for path in words if len(images) == 1}
    if all(looks_like_mask(mask, image) for mask, image in _few(list(likely.items()))):
        masks |= {path: image for path, image in likely.items() if path not in masks}
    shared = [bases for bases, _ in groups if any(path in masks for path in bases)]
    return dict.fromkeys(path for bases in shared for path in bases) | masks


def _has_suffix(stem: str, suffix: str) -> bool:
    return suffix != "" and stem.endswith(suffix)


def _divided(bases: dict[Path, str], photo_names: set[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Divide the paths into those without names of photos, and those with such names."""
    return tuple({path: base for path, base in bases.items() if (path in photo_names) is chosen} for chosen in (False, True))


def _may_be_masks(bases: dict[Path, str], by_base: dict[str, Path]) -> bool:
    """Return False if the files whose image exists do not look like masks."""
    pairs = [(by_base[base], path) for path, base in bases.items() if base in by_base]
    return not pairs or _look_like_masks(pairs)


def _unique(items: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return the items whose key occurs once."""
    paths_of: dict[str, list[Path]] = defaultdict(list)
    for name, path in items:
        paths_of[name].append(path)
    return {name: paths[0] for name, paths in paths_of.items() if len(paths) == 1}


def _by_format(files: Sequence[Path], are_masks: bool) -> dict[Path, Path | None]:
    """Return {mask: its image} of files of one stem, such as 00.png and 00.jpg; None for masks whose image is missing.

    Unless are_masks, a few are opened, and all or none of them must look like masks.
    """
    if len({path.suffix for path in files}) < 2:
        return {}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_stem[normal(path.stem)].append(path)
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for members in by_stem.values():
        image, *others = sorted(members, key=_rank)
        if len(set(map(_rank, members))) == len(members):
            for mask in others:
                pairs[image.suffix.lower(), mask.suffix.lower()].append((image, mask))
    masks: dict[Path, Path | None] = {}
    for formats, members in pairs.items():
        if are_masks or _look_like_masks(members):
            masks |= {mask: image for image, mask in members}
            alone = [path for path in files if path.suffix.lower() == formats[1] and len(by_stem[normal(path.stem)]) == 1]
            masks |= {path: None for path in alone if looks_like_mask(path, members[0][0])}
    return masks


def _rank(path: Path) -> int:
    return FORMATS.index(path.suffix.lower())


def _look_like_masks(pairs: Sequence[tuple[Path, Path]]) -> bool:
    """Return whether the second files of the pairs look like masks. Raises ValueError if only some do."""
    votes = {looks_like_mask(mask, image) for image, mask in _few(pairs)} - {None}
    if len(votes) > 1:
        folder = pairs[0][0].parent
        raise ValueError(
            f"{folder} holds {len(pairs)} pairs such as {pairs[0][0].name} and {pairs[0][1].name}, and only some look like an "
            f"image and its mask. If all are, give --image-dir {folder} --mask-dir {folder}; if not, rename one of each pair."
        )
    return votes == {True}


def looks_like_mask(path: Path, image: Path) -> bool | None:
    """Return whether a file has one channel and its image several, or few colors for its size; None if one is unreadable."""
    with suppress(*DECODE_ERRORS):
        mask, channels = decode(path), _channels(image)
        if isinstance(mask, np.ndarray):  # colors of 16 bits
            return False
        one = len(mask.getbands()) == 1
        if one and channels > 1:
            return True
        colors = len(np.unique(np.asarray(mask))) if one else len(mask.getcolors(256) or range(257))
        return colors <= min(64 if one else 256, mask.width * mask.height // 16)
    return None


@lru_cache(maxsize=SAMPLES)
def _channels(path: Path) -> int:
    image = decode(path, None, all_bands=True)
    return image.shape[2] if isinstance(image, np.ndarray) else len(image.getbands())


def _folders_of_masks(by_folder: dict[Path, list[Path]], root: Path) -> list[Path]:
    """Return the folders below the root that are named after masks beside a folder of images, or hold masks of images nearby."""
    below: dict[Path, list[Path]] = defaultdict(list)
    for folder, members in by_folder.items():
        for parent in (folder, *folder.parents)[: 1 + len(folder.relative_to(root).parts)]:  # up to the root
            below[parent] += members
    with_images = {folder.parent for folder in below if folder.name.lower() in IMAGE_FOLDERS}
    nearby: dict[Path, dict[str, Path]] = {}
    chosen: dict[Path, None] = {}
    for folder in sorted(below.keys() - {root}, key=lambda folder: (len(folder.parts), folder)):
        if MASK_WORD.search(folder.name) and not any(parent in chosen for parent in folder.parents):
            parent = folder.parent
            named = folder.name.lower() in MASK_FOLDERS and parent in with_images
            if not named and parent not in nearby:
                folders_of = {path: path.relative_to(parent).parts[:-1] for path in below[parent]}
                nearby[parent] = {normal(path.stem): path for path, names in folders_of.items() if not any(map(MASK_WORD.search, names))}
            if named or _mirrors(below[folder], nearby[parent]):
                chosen[folder] = None
    return list(chosen)


def _mirrors(files: Sequence[Path], images: dict[str, Path]) -> bool:
    """Return whether the files look like masks, and at least half of them have the stems of images."""
    pairs = []
    for path in files:
        stem = normal(path.stem)
        image = images.get(stem) or images.get(stem_of_image(stem))
        pairs += [] if image is None else [(image, path)]
    return 2 * len(pairs) >= len(files) and all(looks_like_mask(mask, image) is not False for image, mask in _few(pairs))


def _few(pairs: Sequence[tuple[Path, Path]]) -> Sequence[tuple[Path, Path]]:
    """Return about SAMPLES evenly spaced pairs."""
    return pairs[:: max(1, len(pairs) // SAMPLES)]
