"""Where data comes from: a row of DATASETS and a builder for every layout."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import (
    class_names,
    file_rows,
    find_images,
    found_classes,
    make_table,
    open_masks,
    require_files,
    require_masks,
    slices_by_name,
    unique_names,
)
from .hub_source import build_hf
from .opening import refuse_packed
from .segmentation_data import IGNORE_INDEX, SegmentationData, Slice
from .stream import SegmentationStream
from .synthetic import CLASSES as SYNTHETIC_CLASSES
from .synthetic import SPLIT_SIZES, DrawnScenes

CAMVID_CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian", "bicyclist"]
VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
CITYSCAPES_CLASSES = {  # name: id in the labelIds files, in the order of the train ids
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")


def build_synthetic(
    split: str,
    data_dir: Path | None,
    unlabelled: bool = False,
    scenes: int | None = None,
    scene_seed: int = 0,
    scene_height: int = 96,
    scene_width: int = 128,
) -> SegmentationData:
    """Scenes drawn on demand; `scenes` changes their number, `scene_seed` draws other ones."""
    check_split(split, SPLIT_SIZES, "the synthetic data")
    rows = DrawnScenes(split, scenes or SPLIT_SIZES[split], scene_seed, scene_height, scene_width, masks=not unlabelled)
    return SegmentationData(rows, () if unlabelled else SYNTHETIC_CLASSES, "synthetic", split)


def build_camvid(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """CamVid as the SegNet tutorial packs it: `train.txt` holds "image mask" a line, with or without /SegNet/CamVid/.

    11 classes; 11 and 255 are void. Groups are the video sequences, since frames of one sequence look alike. Its sequences are also the
    volumes of the slices, though unlike scans of a body they show nothing in common at equal places.
    """
    root = data_dir / "CamVid" if (data_dir / "CamVid").is_dir() else data_dir
    lists = {path.stem: path for path in sorted(root.glob("*.txt"))}
    check_split(split, lists, str(root), DATASETS["camvid"].layout)
    lines = [line.split() for line in lists[split].read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [number for number, line in enumerate(lines, 1) if len(line) != 2]
    if wrong or not lines:
        raise ValueError(f"{lists[split]} must hold an image and a mask a line, separated by a blank; wrong line(s): {wrong[:3]}")
    images, masks = ([root.joinpath(*Path(line[k]).parts[-2:]) for line in lines] for k in (0, 1))
    require_files(images, str(lists[split]))
    table = np.arange(256, dtype=np.uint8)
    table[11] = IGNORE_INDEX
    names = [path.stem for path in images]
    groups = tuple(name.split("_")[0] for name in names)
    slices = slices_by_name(groups, names)
    return from_files("camvid", split, names, images, None if unlabelled else masks, CAMVID_CLASSES, table, groups, slices)


def build_voc2012(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """PASCAL VOC 2012, 21 classes; trainaug takes its masks from SegmentationClassAug (the added SBD labels)."""
    candidates = [data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"]
    root = next((path for path in candidates if (path / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        raise ValueError(f"{data_dir} is not PASCAL VOC 2012; wanted {DATASETS['voc2012'].layout}")
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
    check_split(split, lists, str(root), DATASETS["voc2012"].layout)
    names = [Path(line.split()[0]).stem for line in lists[split].read_text().splitlines() if line.strip()]
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    require_files(images, str(lists[split]))
    mask_dir = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    masks = None if unlabelled else [mask_dir / f"{name}.png" for name in names]
    return from_files("voc2012", split, names, images, masks, VOC_CLASSES)


def build_cityscapes(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Cityscapes fine labels: labelIds files to the 19 train ids, the other ids of the data set to 255. Groups: cities."""
    root = data_dir / "leftImg8bit"
    check_split(split, subfolders(root), str(data_dir), DATASETS["cityscapes"].layout)
    if split == "test" and not unlabelled:
        raise ValueError("the Cityscapes split 'test' has no public masks; score on 'val', or load 'test' as unlabelled data")
    images = [path for path in find_images(root / split) if path.stem.endswith("_leftImg8bit")]
    names = [path.relative_to(root / split).as_posix().removesuffix("_leftImg8bit.png") for path in images]
    masks = None if unlabelled else [data_dir / "gtFine" / split / f"{name}_gtFine_labelIds.png" for name in names]
    table = np.arange(256, dtype=np.uint8)
    table[:34] = IGNORE_INDEX  # the data set knows ids 0..33; any other id stays itself and is refused when read
    table[list(CITYSCAPES_CLASSES.values())] = np.arange(19)
    groups = tuple(name.split("/")[0] for name in names)
    return from_files("cityscapes", split, names, images, masks, tuple(CITYSCAPES_CLASSES), table, groups)


def build_ade20k(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """ADE20K's scene parsing challenge: 150 classes, stored 0 (other objects) ignored and ids lowered by one."""
    root = data_dir / "ADEChallengeData2016" if (data_dir / "ADEChallengeData2016").is_dir() else data_dir
    there = subfolders(root / "images")
    folder = {"train": "training", "val": "validation"}.get(split, split)
    check_split(folder, there, str(root), DATASETS["ade20k"].layout)
    images = find_images(root / "images" / folder)
    names = unique_names(images, root / "images" / folder)
    masks = None if unlabelled else [root / "annotations" / folder / f"{name}.png" for name in names]
    classes = class_names(Path(__file__).with_name("ade20k_classes.txt"), 150)
    return from_files("ade20k", split, names, images, masks, classes, make_table(None, reduce_labels=True))


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
    mask_suffix: str = "",
    masked_only: bool = False,
) -> SegmentationData:
    """Your own files: images/ and masks/ matched by stem, each with or without a sub-folder for every split.

    Without masks/ (or `mask_dir`) the data is unlabelled: every image file below the folder. Without `classes` or
    `num_classes` the classes are the ids found in the masks. `mask_suffix` is what a mask's stem adds to its image's
    ("_mask"); `masked_only` leaves out the images that have no mask. Where all images lie in sub-folders, these are volumes of slices.
    """
    images_root, masks_root = folder_roots(data_dir, image_dir, mask_dir)
    images_root, masks_root = split_roots(split, images_root, masks_root)
    images = find_images(images_root)
    names = unique_names(images, images_root)
    slices = slices_by_name([name.rpartition("/")[0] for name in names], names)
    table = make_table(label_map, reduce_labels)
    if unlabelled or masks_root is None:
        return from_files("folder", split, names, images, None, (), table, slices=slices)
    masks = match_masks(images, images_root, masks_root, mask_suffix)
    if masked_only:
        kept = [i for i, mask in enumerate(masks) if mask is not None]
        images, names, masks = ([column[i] for i in kept] for column in (images, names, masks))
        slices = None if slices is None else tuple(slices[i] for i in kept)
    if not images:
        raise ValueError(f"no image of {images_root} has a mask of the same stem in {masks_root}; check the names")
    require_masks(images, masks)
    found = class_names(classes, num_classes) or found_classes(open_masks(masks), table)
    return from_files("folder", split, names, images, masks, found, table, slices=slices)


def folder_roots(data_dir: Path | None, image_dir: Any, mask_dir: Any) -> tuple[Path, Path | None]:
    """Where the images and the masks are; None = there are no masks."""
    if image_dir is None and data_dir is None:
        raise ValueError(f"the data set 'folder' needs a data folder: {DATASETS['folder'].layout}")
    own = None if data_dir is None else data_dir / "masks"
    masks = Path(mask_dir) if mask_dir is not None else own if own is not None and own.is_dir() else None
    if image_dir is not None:
        images = Path(image_dir)
    else:
        images = data_dir / "images" if (data_dir / "images").is_dir() or masks is not None else data_dir
    for path in (images, masks):
        if path is not None and not path.is_dir():
            raise ValueError(f"the folder {path} is not there; wanted {DATASETS['folder'].layout}")
    return images, masks


def split_roots(split: str, images: Path, masks: Path | None) -> tuple[Path, Path | None]:
    """The split's sub-folders, or the folders themselves when they are not divided (all of it is 'train')."""
    if (images / split).is_dir():
        return images / split, masks / split if masks is not None and (masks / split).is_dir() else masks
    divided = [name for name in subfolders(images) if name in SPLIT_FOLDERS]
    if divided or split != "train":
        found = f"the split folders there are {divided}" if divided else "it has no split folders, so all of it is 'train'"
        raise ValueError(f"no split {split!r} in {images}: {found}; make {images / split}, and the same below the masks")
    return images, masks


def match_masks(images: Sequence[Path], images_root: Path, masks_root: Path, suffix: str) -> list[Path | None]:
    """The mask file whose path below masks_root equals the image's but for the file ending; None where there is none.

    Raises ValueError when two masks fit one image, or two images one mask: either would be a guess.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in find_images(masks_root):
        by_stem.setdefault(path.relative_to(masks_root).with_suffix("").as_posix(), []).append(path)
    taken: dict[str, Path] = {}
    masks = []
    for image in images:
        stem = image.relative_to(images_root).with_suffix("").as_posix()
        fitting = by_stem.get(stem + suffix, [])
        if len(fitting) > 1:
            raise ValueError(f"the image {image} has two masks, {fitting[0]} and {fitting[1]}; keep one of them")
        if stem in taken:
            raise ValueError(f"the images {taken[stem]} and {image} share one stem, so their masks cannot be told; rename one")
        taken[stem] = image
        masks.append(fitting[0] if fitting else None)
    return masks


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
) -> SegmentationData:
    """Put a layout's parts together; masks=None makes unlabelled data, whose classes are ()."""
    if masks is None:
        return SegmentationData(file_rows(names, images, None), (), dataset, split, None, groups, slices)
    require_masks(images, masks)
    return SegmentationData(file_rows(names, images, masks), tuple(classes), dataset, split, table, groups, slices)


def subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def check_split(split: str, there: Any, where: str, layout: str = "") -> None:
    """Raise ValueError naming the splits there are."""
    if split not in there:
        wanted = f"; wanted {layout}" if layout and not there else ""
        raise ValueError(f"no split {split!r} in {where}; the splits there: {', '.join(there) or 'none'}{wanted}")


@dataclass(frozen=True)
class Source:
    """A row of DATASETS. build(split, data_dir, unlabelled, **options); layout says what the folder must hold."""

    build: Callable[..., SegmentationData | SegmentationStream]
    layout: str
    needs_folder: bool = True


DATASETS: dict[str, Source] = {
    "synthetic": Source(build_synthetic, "no folder: scenes are drawn", needs_folder=False),
    "camvid": Source(
        build_camvid,
        "a folder with train.txt (an image and a mask a line), train/, trainannot/, val.txt, ...",
    ),
    "voc2012": Source(build_voc2012, "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/, ImageSets/Segmentation/*.txt"),
    "cityscapes": Source(build_cityscapes, "leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/ with *_labelIds.png"),
    "ade20k": Source(
        build_ade20k,
        "ADEChallengeData2016 with images/training, annotations/training, images/validation, ...",
    ),
    "folder": Source(build_folder, "a folder with images/ and masks/ (or only images), or image_dir and mask_dir", False),
    "hf": Source(
        build_hf,
        "a Hub name, a parquet file, a folder of parquet files, an image folder, or a saved Dataset",
        False,
    ),
}


def load_data(
    dataset: str, split: str, data_dir: str | Path | None = None, *, unlabelled: bool = False, **options: Any
) -> SegmentationData | SegmentationStream:
    """Load one split of a data set by the name of its layout (a key of DATASETS).

    unlabelled: only the images; no mask is looked for or opened. options: the keyword arguments of the layout's builder.
    Raises ValueError for an unknown name or option, a missing folder, split, image or mask.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS)
        raise ValueError(f"unknown data set {dataset!r}; close: {near}; there are: {', '.join(DATASETS)}")
    source = DATASETS[dataset]
    known = [name for name in inspect.signature(source.build).parameters if name not in ("split", "data_dir", "unlabelled")]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            raise ValueError(f"the data set {dataset!r} has no option {name!r}; close: {near}; it has: {', '.join(known) or 'none'}")
    if data_dir is None and source.needs_folder:
        raise ValueError(f"the data set {dataset!r} needs a data folder (--data-dir): {source.layout}")
    if data_dir is not None and dataset != "hf":  # hf may name a data set of the Hub, which is no folder
        data_dir = Path(data_dir)
        if data_dir.is_file():
            refuse_packed(data_dir)
        if not data_dir.is_dir():
            raise ValueError(f"the data folder {data_dir} is not there; wanted {source.layout}")
    return source.build(split, data_dir, unlabelled, **options)
