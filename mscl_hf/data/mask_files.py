"""Which files of a folder are masks, and of which images: by the names of files and folders, and by few colors where names do not tell."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import list_images
from .layout import IMAGE_FOLDERS, MASK_FOLDERS
from .opening import DECODE_ERRORS, decode

WORDS = (
    r"masks?|labels?|annotations?|annot|annos?|segs?|segmentations?|segmentation_?class|gt|ground_?truth|label_?ids|label_?train_?ids|"
    "semantic|targets?"
)
MASK_NAME = re.compile(rf"(?i:[ ._-]?masks?|[ ._-](?:{WORDS}))$|_L$")  # 00_mask, 00-labels; 00_L as CamVid has it
MASK_WORD = re.compile(rf"(?i)(?:^|[ ._-])(?:{WORDS})(?:[ ._-]|$)")  # train_masks, masks_png
FORMATS = (".jpg", ".jpeg", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".png")  # of two files of one name the later is the mask
SAMPLES = 8  # pairs that are opened to see whether one file is the other's mask


class Separated(NamedTuple):
    """images: the files that are no masks. beside: masks of an image in its own folder. folders: below the root, of masks.
    left_out: number of files that are masks."""

    images: list[Path]
    beside: dict[Path, list[Path]]
    folders: list[Path]
    left_out: int

    def own_folder(self, root: Path) -> Path | None:
        """The only folder of masks, where it lies directly in the root."""
        return self.folders[0] if len(self.folders) == 1 and self.folders[0].parent == root else None


def separate(files: Sequence[Path], root: Path, masks_root: Path | None = None, suffix: str = "") -> Separated:
    """Tell masks from images among the image files below `root`.

    Masks are: what lies below masks_root, where that lies in root; folders named after masks beside images; 00_mask.png (or 00 and the
    suffix) beside 00.jpg; 00.png beside 00.jpg, if it looks like a mask or masks_root is root.
    Raises ValueError where only some of such files of one name look like masks.
    """
    inside = masks_root is not None and masks_root != root and masks_root.is_relative_to(root)
    folders = [*([masks_root] if inside else []), *_folders_of_masks(files, root)]
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if not any(path.is_relative_to(folder) for folder in folders):
            by_folder[path.parent].append(path)
    beside: dict[Path, list[Path]] = defaultdict(list)
    images = []
    for members in by_folder.values():
        masks = _by_ending(members, suffix)
        masks |= _by_format([path for path in members if path not in masks], masks_root == root)
        images += [path for path in members if path not in masks]
        for mask, image in masks.items():
            if image is not None:
                beside[image].append(mask)
    return Separated(sorted(images), dict(beside), folders, len(files) - len(images))


def match_masks(separated: Separated, images_root: Path, masks_root: Path | None, suffix: str) -> list[Path | None]:
    """The mask of each image, None where there is none: the file whose path below masks_root equals the image's but for the ending, or
    adds to it, or, without masks_root, the one beside the image.

    Raises ValueError when two masks fit one image, or two images one mask: either would be a guess.
    """
    images = separated.images
    if masks_root is None:
        return [_only(image, separated.beside.get(image, [])) for image in images]
    others = set(images)
    by_key: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(masks_root).images:
        if path not in others:
            by_key[key(path, masks_root)].append(path)
    owners: dict[Path, Path] = {}
    masks = []
    for image in images:
        keys = (key(image, images_root) + suffix, normal(image.relative_to(images_root).as_posix()) + suffix)  # 00 and 00.jpg
        mask = _only(image, [path for name in keys for path in by_key.get(name, [])])
        if mask in owners:
            raise ValueError(f"the images {owners[mask]} and {image} share one stem, so their masks cannot be told; rename one")
        if mask is not None:
            owners[mask] = image
        masks.append(mask)
    return masks


def _only(image: Path, masks: Sequence[Path]) -> Path | None:
    if len(masks) > 1:
        raise ValueError(f"the image {image} has two masks, {masks[0]} and {masks[1]}; keep one of them")
    return masks[0] if masks else None


def key(path: Path, root: Path) -> str:
    """The path below the root without its ending, as `normal` text."""
    return normal(path.relative_to(root).with_suffix("").as_posix())


def normal(text: str) -> str:
    """Composed Unicode: macOS stores the letter and its accent apart, and other systems keep what they are given."""
    return unicodedata.normalize("NFC", text)


def stem_of_image(stem: str, suffix: str = "") -> str | None:
    """What remains of a mask's stem without the suffix or a usual ending; None where it has neither."""
    if suffix and stem.endswith(suffix):
        return stem[: -len(suffix)]
    ending = MASK_NAME.search(stem)
    return stem[: ending.start()] if ending else None


def _by_ending(files: Sequence[Path], suffix: str) -> dict[Path, Path | None]:
    """{mask: its image} of 00_mask.png and 00.jpg.png beside 00.jpg; None for further files of the same ending, whose image is missing."""
    by_stem, by_name = ({normal(getattr(path, part)): path for path in reversed(files)} for part in ("stem", "name"))
    masks: dict[Path, Path | None] = {}
    endings = set()
    for path in files:
        stem = normal(path.stem)
        base = stem_of_image(stem, suffix)
        image = by_stem.get(base) or by_name.get(base) or by_name.get(stem)
        if image is not None:
            masks[path] = image
            endings.add(stem[len(base) :] if base else "")
    endings.discard("")
    return masks | {path: None for path in files if path not in masks and normal(path.stem).endswith(tuple(endings))}


def _by_format(files: Sequence[Path], told: bool) -> dict[Path, Path | None]:
    """{mask: its image} of two files of one stem, such as 00.png and 00.jpg; None for masks whose image is missing.

    told: they are masks. Otherwise a few are opened, and all or none of them must look like masks.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_stem[normal(path.stem)].append(path)
    pairs: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for members in by_stem.values():
        if len(members) == 2 and _rank(members[0]) != _rank(members[1]):
            image, mask = sorted(members, key=_rank)
            pairs[image.suffix.lower(), mask.suffix.lower()].append((image, mask))
    masks: dict[Path, Path | None] = {}
    for formats, members in pairs.items():
        if told or _look_like_masks(members):
            masks |= {mask: image for image, mask in members}
            alone = [path for path in files if path.suffix.lower() == formats[1] and len(by_stem[normal(path.stem)]) == 1]
            masks |= {path: None for path in alone if looks_like_mask(path, members[0][0])}
    return masks


def _rank(path: Path) -> int:
    return FORMATS.index(path.suffix.lower())


def _look_like_masks(pairs: Sequence[tuple[Path, Path]]) -> bool:
    votes = {looks_like_mask(mask, image) for image, mask in _few(pairs)} - {None}
    if len(votes) > 1:
        folder = pairs[0][0].parent
        raise ValueError(
            f"{folder} holds {len(pairs)} pairs of one name, as {pairs[0][0].name} and {pairs[0][1].name}, and only some look like an "
            f"image and its mask. If they are, pass --image-dir {folder} --mask-dir {folder}; else rename one of each pair"
        )
    return votes == {True}


def looks_like_mask(path: Path, image: Path) -> bool | None:
    """Whether a file has one channel where the image has several, or few colors for its size; None where one cannot be read."""
    with suppress(*DECODE_ERRORS):
        mask, bands = decode(path), len(decode(image).getbands())
        one = len(mask.getbands()) == 1
        if one and bands > 1:
            return True
        colors = len(np.unique(np.asarray(mask))) if one else len(mask.getcolors(256) or range(257))
        return colors <= min(64 if one else 256, mask.width * mask.height // 16)
    return None


def _folders_of_masks(files: Sequence[Path], root: Path) -> list[Path]:
    """Those below the root: named after masks and beside a folder of images, or with such a word in the name and masks of images nearby."""
    below = {folder for path in files for folder in path.relative_to(root).parents if folder.parts}
    below = sorted((root / folder for folder in below), key=lambda folder: (len(folder.parts), folder))
    chosen: list[Path] = []
    for folder in below:
        beside_images = any(other.parent == folder.parent and other.name.lower() in IMAGE_FOLDERS for other in below)
        if any(folder.is_relative_to(other) for other in chosen):
            continue
        if folder.name.lower() in MASK_FOLDERS and beside_images or MASK_WORD.search(folder.name) and _mirrors(folder, files):
            chosen.append(folder)
    return chosen


def _mirrors(folder: Path, files: Sequence[Path]) -> bool:
    """Whether the files look like masks, and at least half of them have the stems of images nearby that lie in no such folder."""
    own = [path for path in files if path.is_relative_to(folder)]
    nearby = [path for path in files if path.is_relative_to(folder.parent)]
    images = {normal(path.stem): path for path in nearby if not any(map(MASK_WORD.search, path.relative_to(folder.parent).parts[:-1]))}
    pairs = []
    for path in own:
        stem = normal(path.stem)
        image = next((images[name] for name in (stem, stem_of_image(stem)) if name in images), None)
        pairs += [] if image is None else [(image, path)]
    return 2 * len(pairs) >= len(own) and all(looks_like_mask(mask, image) is not False for image, mask in _few(pairs))


def _few(pairs: Sequence[tuple[Path, Path]]) -> Sequence[tuple[Path, Path]]:
    return pairs[:: max(1, len(pairs) // SAMPLES)]
