"""`--dataset folder`: your own images and masks, matched by their names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..messages import first_three
from .class_colors import color_table
from .class_inference import infer_classes
from .dataset import SegmentationData
from .files import find_images, from_files, open_masks, skipped_note, slices_by_name, unique_names
from .folder_names import find_folders
from .image_sets import listed_images, split_list, table_nearby
from .label_map import class_names, make_table
from .mask_files import separate
from .mask_matching import match_masks, no_masks, require_matches
from .pixels import ColorMask


def build_folder(
    split: str,
    data_dir: Path | None,
    unlabelled: bool = False,
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
    num_classes: int | None = None,
    label_map: dict[int, int] | str | None = None,
    reduce_labels: bool = False,
    class_colors: str | Path | dict | None = None,
    ignored_colors: Sequence[str] | None = None,
    mask_suffix: str = "",
    masked_only: bool = False,
) -> SegmentationData:
    """Open images/ and masks/ (labels/, ...) matched by stem, each with or without a sub-folder for every split, or both in one folder.

    Lists ImageSets/Segmentation/SPLIT.txt, as in exports of CVAT, may take the place of these sub-folders. Masks may lie beside their
    images, as 00_mask.png or 00.png beside 00.jpg; they are never read as images. Without masks the data is unlabelled: all image files
    below the folder. Without `classes`, `num_classes` or `class_colors` the classes are inferred from the masks.
    mask_suffix: what a mask's stem adds to its image's ("_mask"). masked_only: leave out images without masks. If all images lie in
    sub-folders, these are volumes of slices.
    """
    listed_in = split_list(split, data_dir) if image_dir is None else None
    images_root, masks_root = find_folders("train" if listed_in else split, data_dir, image_dir, mask_dir)
    files = find_images(images_root)
    separated = separate(files.images, images_root, masks_root, mask_suffix)
    if listed_in:
        separated = listed_images(separated, images_root, listed_in)
    images = separated.images
    if not images:
        raise ValueError(f"{images_root} holds only masks, in {separated.folders[0]}; expected images beside them. Add the images.")
    names = unique_names(images, images_root)
    slices = slices_by_name([name.rpartition("/")[0] for name in names], names)
    names_given = class_names(classes, num_classes)
    table = make_table(label_map, reduce_labels)
    colors = color_table(class_colors, ignored_colors, names_given, label_map=label_map, reduce_labels=reduce_labels)
    note = f" in {images_root}{f', listed in {listed_in}' * bool(listed_in)}{_merged_note(names)}{skipped_note(files.skipped)}"
    masks_root = masks_root or separated.own_folder(images_root)
    if unlabelled and separated.left_out:
        note += f"; {separated.left_out} of {len(files.images)} image files are masks and are left out"
    if not unlabelled and masks_root is None and not separated.beside:
        unlabelled, note = True, f"{note}; no masks: {no_masks(data_dir, images_root, separated)}"
    if unlabelled:
        return from_files("folder", split, names, images, None, (), slices=slices, note=note)
    masks = match_masks(separated, images_root, masks_root, mask_suffix)
    require_matches(images, masks, images_root, masks_root or images_root, mask_suffix, masked_only, split)
    if masked_only:
        kept = [i for i, mask in enumerate(masks) if mask is not None]
        note += f"; {len(images) - len(kept)} images without a mask are left out"
        images, names, masks = ([column[i] for i in kept] for column in (images, names, masks))
        slices = None if slices is None else tuple(slices[i] for i in kept)
    note += f"; masks in {masks_root}" if masks_root else f"; masks beside them, such as {masks[0].name} of {images[0].name}"
    all_classes = colors.classes if colors else names_given or _inferred(masks, table, data_dir or images_root.parent)
    return from_files("folder", split, names, images, masks, all_classes, table, slices=slices, note=note, colors=colors)


def _inferred(masks: Sequence[Path], table: np.ndarray | None, folder: Path) -> tuple[str, ...]:
    """Return the classes of the ids in the masks. Raises ValueError, which names a table of colors in the folder if there is one."""
    try:
        return infer_classes(open_masks(masks), table)
    except ColorMask as error:
        if table_file := table_nearby(folder):
            raise ValueError(f"{str(error).partition(', or a table of colors')[0]}. Give --class-colors {table_file}") from error
        raise


def _merged_note(names: Sequence[str]) -> str:
    """Name the sub-folders whose images are read as one split; "" for fewer than two."""
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    return f"; its {len(folders)} sub-folders are read together: {first_three(folders)}" if len(folders) > 1 else ""
