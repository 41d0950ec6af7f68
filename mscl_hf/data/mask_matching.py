"""Match masks with images by their names, and suggest flags where masks are missing."""

import shlex
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..messages import first_three
from .files import list_images, skipped_note, visible_files
from .folder_names import IMAGE_FOLDERS, MASK_FOLDERS, mask_folders, split_folder, split_folders, subfolders
from .image_io import IMAGE_SUFFIXES
from .mask_files import Separated, key, normal


def match_masks(separated: Separated, images_root: Path, masks_root: Path | None, suffix: str) -> list[Path | None]:
    """Return the mask of each image, or None: the file whose path below masks_root equals the image's without the ending, or with the
    suffix; without masks_root, the one beside the image.

    Raises ValueError if two masks fit one image, or two images one mask.
    """
    images = separated.images
    if masks_root is None:
        return [_only(image, separated.beside.get(image, [])) for image in images]
    image_files = set(images)
    by_key: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(masks_root).images:
        if path not in image_files:
            by_key[key(path, masks_root)].append(path)
    owners: dict[Path, Path] = {}
    masks = []
    for image in images:
        keys = (key(image, images_root) + suffix, normal(image.relative_to(images_root).as_posix()) + suffix)  # 00 and 00.jpg
        mask = _only(image, [path for name in keys for path in by_key.get(name, [])])
        if mask in owners:
            raise ValueError(f"the images {owners[mask]} and {image} have the same stem and only one mask, {mask}. Rename one of them.")
        if mask is not None:
            owners[mask] = image
        masks.append(mask)
    return masks


def _only(image: Path, masks: Sequence[Path]) -> Path | None:
    """Return the mask, or None. Raises ValueError for two masks."""
    if len(masks) > 1:
        raise ValueError(f"the image {image} has two masks, {masks[0]} and {masks[1]}. Keep one of them.")
    return masks[0] if masks else None


def require_matches(
    images: Sequence[Path], masks: Sequence[Path | None], images_root: Path, masks_root: Path, suffix: str, masked_only: bool, split: str
) -> None:
    """Raise ValueError if images have no mask; with masked_only, only if none has one.

    The message has the expected file, the files that exist, and the flags that match them.
    """
    missing = [image for image, mask in zip(images, masks) if mask is None or not mask.is_file()]
    if not missing or masked_only and len(missing) < len(images):
        return
    matched = {*images, *masks}
    skipped: list[Path] = []
    unused = [path for path in visible_files(masks_root, skipped) if path not in matched]
    shown = first_three([path.relative_to(masks_root).as_posix() for path in unused]) or "no other file"
    lacks_split = split != "train" and bool(split_folders(masks_root)) and split_folder(masks_root, split) is None
    folder = masks_root / images_root.name if lacks_split else masks_root
    expected = _expected(missing[0], images, masks, images_root, folder, suffix)
    candidates = [path for path in unused if path.suffix.lower() in IMAGE_SUFFIXES]
    plain = {key(path, masks_root) for path in candidates} & {key(path, images_root) for path in missing}
    if lacks_split:
        remedy = f"Add the masks of the split {split!r}, or train with --val-split none."
    elif suffix and 2 * len(plain) >= len(missing):
        remedy = "Leave out --mask-suffix: the masks have the names of their images."
    elif flags := _suffix_flag(missing, candidates, images_root, masks_root) or _folder_flags(missing, candidates, suffix):
        remedy = f"Give {flags}"  # without a full stop, for copying
    elif len(missing) == len(images):
        remedy = "Give the masks the names of their images, as PNG, BMP, GIF or TIFF, or pre-train without masks (--losses g+l)."
    else:
        remedy = "Add the masks, remove these images, or give --masked-only "
        remedy += "(mscl-pretrain --unlabelled rest still reads them, without labels)."
    raise ValueError(
        f"{len(missing)} of {len(images)} images have no mask: {first_three(list(map(str, missing)))}; expected {expected}, and "
        f"{masks_root} holds {shown}{skipped_note(skipped)}. {remedy}"
    )


def _expected(image: Path, images: Sequence[Path], masks: Sequence[Path | None], images_root: Path, masks_root: Path, suffix: str) -> Path:
    """Return the path that the image's mask should have; beside images, it is named like the other masks."""
    path = masks_root / f"{key(image, images_root)}{suffix}.png"
    if path not in images:
        return path
    endings = [mask.name[len(other.stem) :] for other, mask in zip(images, masks) if mask is not None and mask.name.startswith(other.stem)]
    ending = next((ending for ending in endings if not ending.startswith(".")), "_mask.png")
    return path.with_name(image.stem + ending)


def _suffix_flag(missing: Sequence[Path], unused: Sequence[Path], images_root: Path, masks_root: Path) -> str:
    """Return --mask-suffix with what most names of masks add to those of their images; "" without such a suffix."""
    names = sorted(key(path, masks_root) for path in unused)
    endings: Counter[str] = Counter()
    for image in missing:
        stem = key(image, images_root)
        for name in names[bisect_left(names, stem) :]:
            if not name.startswith(stem):
                break
            endings[name[len(stem) :]] += 1
    ending, count = max(endings.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    return f"--mask-suffix={shlex.quote(ending)}" if ending and "/" not in ending and 2 * count >= len(missing) else ""


def _folder_flags(missing: Sequence[Path], unused: Sequence[Path], suffix: str) -> str:
    """Return --image-dir and --mask-dir if the masks have the names of the images, in folders that are nested differently; else ""."""
    by_stem = {normal(path.stem): path for path in unused}
    roots = set()
    for image in missing:
        mask = by_stem.get(normal(image.stem) + suffix)
        if mask is None:
            return ""
        image_parts, mask_parts = image.parent.parts, mask.parent.parts
        while image_parts and mask_parts and image_parts[-1] == mask_parts[-1]:
            image_parts, mask_parts = image_parts[:-1], mask_parts[:-1]
        roots.add((Path(*image_parts), Path(*mask_parts)))
    if len(roots) != 1:
        return ""
    image_dir, mask_dir = (shlex.quote(str(root)) for root in roots.pop())
    return f"--image-dir {image_dir} --mask-dir {mask_dir}"


def no_masks(data_dir: Path | None, images_root: Path, separated: Separated) -> str:
    """Return why a folder of images has no masks, and what to do."""
    base = images_root if data_dir is None else data_dir
    filled = mask_folders(base)
    if len(filled) > 1:
        return f"{first_three(list(map(str, filled)))} may hold masks; name one by --mask-dir"
    if separated.folders:
        mask_dir = separated.folders[0]
        nearby = [image for image in separated.images if image.is_relative_to(mask_dir.parent)]
        image_dir = mask_dir.parent / nearby[0].relative_to(mask_dir.parent).parts[0]
        flags = f"--image-dir {image_dir} --mask-dir {mask_dir}" if image_dir.is_dir() else f"--mask-dir {mask_dir}"
        return f"{first_three(list(map(str, separated.folders)))} hold masks that are not read; give {flags}"
    empty = [folder / name for folder in (base, images_root.parent) for name in subfolders(folder) if name.lower() in MASK_FOLDERS]
    if base.name.lower() in IMAGE_FOLDERS and (beside := mask_folders(base.parent)):
        return f"{beside[0]} is beside {base}; give --data-dir {base.parent}"
    if files := [path for path in visible_files(base) if path.suffix.lower() == ".json"]:  # of COCO, LabelMe, VIA, ...
        names = first_three([path.relative_to(base).as_posix() for path in files])
        advice = f"if not, export masks as PNG, one class id a pixel, into {base / 'masks'}"
        return f"{base} holds {names}; give --dataset coco or --dataset labelme if these are annotations; {advice}"
    if empty:
        files = first_three([path.name for path in visible_files(empty[0])])
        return f"{empty[0]} holds {files}, and masks are read from PNG, BMP, GIF or TIFF" if files else f"{empty[0]} holds no file"
    return f"{base} has no folder masks/, labels/, annotations/ or the like, and no files such as 00_mask.png beside 00.jpg"
