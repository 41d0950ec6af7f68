"""Where data comes from: a row of DATASETS and a builder for every layout."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..messages import first_three, layout_advice, near_names
from ..records.files import read_text
from .dataset import IGNORE_INDEX, SegmentationData, Slice
from .files import (
    class_names,
    file_rows,
    find_images,
    make_table,
    open_masks,
    require_files,
    require_masks,
    skipped_note,
    slices_by_name,
    unique_names,
)
from .folder_layout import WANTED, UnknownSplit, find_folders, subfolders
from .found_classes import found_classes
from .hub_layout import build_hf
from .image_io import refuse_packed
from .mask_files import match_masks, separate
from .missing_masks import no_masks, require_matches
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
    note = f"{len(rows)} drawn scenes, no files (--dataset synthetic)"
    return SegmentationData(rows, () if unlabelled else SYNTHETIC_CLASSES, "synthetic", split, note=note)


def build_camvid(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """CamVid as the SegNet tutorial packs it: `train.txt` holds "image mask" a line, with or without /SegNet/CamVid/.

    11 classes; 11 and 255 are void. Groups are the video sequences, since frames of one sequence look alike. Its sequences are also the
    volumes of the slices, though unlike scans of a body they show nothing in common at equal places.
    """
    root = data_dir / "CamVid" if (data_dir / "CamVid").is_dir() else data_dir
    lists = {path.stem: path for path in sorted(root.glob("*.txt"))}
    check_split(split, lists, str(root), DATASETS["camvid"].layout)
    lines = [line.split() for line in _lines(lists[split]) if line.strip()]
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
    return from_files("camvid", split, names, images, None if unlabelled else masks, CAMVID_CLASSES, table, groups, slices, f" in {root}")


def build_voc2012(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """PASCAL VOC 2012, 21 classes; trainaug takes its masks from SegmentationClassAug (the added SBD labels)."""
    candidates = [data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"]
    root = next((path for path in candidates if (path / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        raise ValueError(f"{data_dir} is not PASCAL VOC 2012; wanted {DATASETS['voc2012'].layout}")
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
    check_split(split, lists, str(root), DATASETS["voc2012"].layout)
    names = [Path(line.split()[0]).stem for line in _lines(lists[split]) if line.strip()]
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    require_files(images, str(lists[split]))
    mask_dir = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    masks = None if unlabelled else [mask_dir / f"{name}.png" for name in names]
    return from_files("voc2012", split, names, images, masks, VOC_CLASSES, note=f" in {root}")


def build_cityscapes(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Cityscapes fine labels: labelIds files to the 19 train ids, the other ids of the data set to 255. Groups: cities."""
    root = data_dir / "leftImg8bit"
    check_split(split, subfolders(root), str(data_dir), DATASETS["cityscapes"].layout)
    if split == "test" and not unlabelled:
        raise ValueError("the Cityscapes split 'test' has no public masks; score on 'val', or load 'test' as unlabelled data")
    files = find_images(root / split)
    images = [path for path in files.images if path.stem.endswith("_leftImg8bit")]
    names = [path.relative_to(root / split).as_posix().removesuffix("_leftImg8bit.png") for path in images]
    masks = None if unlabelled else [data_dir / "gtFine" / split / f"{name}_gtFine_labelIds.png" for name in names]
    table = np.arange(256, dtype=np.uint8)
    table[:34] = IGNORE_INDEX  # the data set knows ids 0..33; any other id stays itself and is refused when read
    table[list(CITYSCAPES_CLASSES.values())] = np.arange(19)
    groups = tuple(name.split("/")[0] for name in names)
    note = f" in {root / split}{skipped_note(files.skipped)}"
    return from_files("cityscapes", split, names, images, masks, tuple(CITYSCAPES_CLASSES), table, groups, note=note)


def build_ade20k(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """ADE20K's scene parsing challenge: 150 classes, stored 0 (other objects) ignored and ids lowered by one."""
    root = data_dir / "ADEChallengeData2016" if (data_dir / "ADEChallengeData2016").is_dir() else data_dir
    there = subfolders(root / "images")
    folder = {"train": "training", "val": "validation"}.get(split, split)
    check_split(folder, there, str(root), DATASETS["ade20k"].layout)
    images, skipped = find_images(root / "images" / folder)
    names = unique_names(images, root / "images" / folder)
    masks = None if unlabelled else [root / "annotations" / folder / f"{name}.png" for name in names]
    classes = class_names(Path(__file__).with_name("ade20k_classes.txt"), 150)
    note = f" in {root / 'images' / folder}{skipped_note(skipped)}"
    return from_files("ade20k", split, names, images, masks, classes, make_table(None, reduce_labels=True), note=note)


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
    """Your own files: images/ and masks/ (labels/, ...) matched by stem, each with or without a sub-folder for every split, or in one.

    Masks may also lie beside their images, as 00_mask.png or 00.png beside 00.jpg; they are never taken for images. Without masks the
    data is unlabelled: every image file below the folder. Without `classes` or `num_classes` the classes are the ids found in the masks.
    `mask_suffix` is what a mask's stem adds to its image's ("_mask"); `masked_only` leaves out the images that have no mask. Where all
    images lie in sub-folders, these are volumes of slices.
    """
    images_root, masks_root = find_folders(split, data_dir, image_dir, mask_dir)
    files = find_images(images_root)
    separated = separate(files.images, images_root, masks_root, mask_suffix)
    images = separated.images
    if not images:
        raise ValueError(f"found no images in {images_root} outside of {separated.folders[0]}; expected images beside the masks")
    names = unique_names(images, images_root)
    slices = slices_by_name([name.rpartition("/")[0] for name in names], names)
    table = make_table(label_map, reduce_labels)
    note = f" in {images_root}{_merged_note(names)}{skipped_note(files.skipped)}"
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
    note += f"; masks in {masks_root}" if masks_root else f"; masks beside them, as {masks[0].name} of {images[0].name}"
    found = class_names(classes, num_classes) or found_classes(open_masks(masks), table)
    return from_files("folder", split, names, images, masks, found, table, slices=slices, note=note)


def _merged_note(names: Sequence[str]) -> str:
    """Names the sub-folders whose images are read as one split; '' for fewer than two."""
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    return f"; its {len(folders)} sub-folders are read together: {first_three(folders)}" if len(folders) > 1 else ""


def _lines(path: Path) -> list[str]:
    """Raises ValueError where a list of files is no text."""
    try:
        return read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the list {path} is neither UTF-8 text nor UTF-16 with a byte order mark ({error}); save it as UTF-8") from error


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
) -> SegmentationData:
    """Put a layout's parts together; masks=None makes unlabelled data, whose classes are (). note: where they were found, and what else."""
    note = f"{len(images)} images{'' if masks is None else ' with masks'}{note}"
    if masks is None:
        return SegmentationData(file_rows(names, images, None), (), dataset, split, None, groups, slices, note)
    require_masks(images, masks)
    return SegmentationData(file_rows(names, images, masks), tuple(classes), dataset, split, table, groups, slices, note)


def check_split(split: str, there: Any, where: str, layout: str = "") -> None:
    """Raise UnknownSplit naming the splits there are."""
    if split not in there:
        wanted = f"; wanted {layout}" if layout and not there else ""
        raise UnknownSplit(f"no split {split!r} in {where}; the splits there: {', '.join(there) or 'none'}{wanted}", split, there)


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
    "folder": Source(build_folder, WANTED, False),
    "hf": Source(
        build_hf,
        "a Hub name, a parquet file, a folder of parquet files, an image folder, or a saved Dataset",
        False,
    ),
}


def load_data(
    dataset: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    unlabelled: bool = False,
    image_range: Sequence[int] | None = None,
    **options: Any,
) -> SegmentationData | SegmentationStream:
    """Load one split of a data set by the name of its layout (a key of DATASETS).

    unlabelled: only the images; no mask is looked for or opened. image_range: as in SegmentationData.
    options: the keyword arguments of the layout's builder.
    Raises ValueError for an unknown name or option, a missing folder, split, image or mask.
    """
    if dataset not in DATASETS:
        advice = layout_advice(dataset) or near_names(dataset, DATASETS)
        raise ValueError(f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}. {advice}".rstrip())
    source = DATASETS[dataset]
    _check_options(dataset, options if data_dir is None else {"data_dir": data_dir, **options})
    if data_dir is None and source.needs_folder:
        raise ValueError(f"the data set {dataset!r} needs a data folder (--data-dir): {source.layout}")
    if data_dir is not None and dataset != "hf":  # hf may name a data set of the Hub, which is no folder
        data_dir = Path(data_dir)
        if data_dir.is_file():
            refuse_packed(data_dir)
        if not data_dir.is_dir():
            raise ValueError(f"the data folder {data_dir} is not there; wanted {source.layout}")
    data = source.build(split, data_dir, unlabelled, **options)
    return data if image_range is None else replace(data, image_range=tuple(image_range))


def _check_options(dataset: str, options: dict[str, Any]) -> None:
    """Raise ValueError for options that the data set does not read, naming the data sets that do."""
    accepted = _options_of(dataset)
    for name, value in options.items():
        if name in accepted:
            continue
        readers = sorted((other for other in DATASETS if name in _options_of(other)), key="folder".__ne__)  # folder first
        if not readers:
            near = difflib.get_close_matches(name, accepted)
            raise ValueError(f"the data set {dataset!r} has no option {name!r}; close: {near}; it has: {', '.join(accepted) or 'none'}")
        others = f" (or {', '.join(readers[1:])})" if len(readers) > 1 else ""
        reason = "is drawn and reads no files" if dataset == "synthetic" else "does not read this option"
        flag = "--" + {"revision": "data_revision"}.get(name, name).replace("_", "-")
        raise ValueError(f"{flag} is {value} and --dataset is {dataset}, which {reason}; give --dataset {readers[0]}{others}")


def _options_of(dataset: str) -> list[str]:
    """The names of the options that a data set reads, data_dir among them."""
    names = [name for name in inspect.signature(DATASETS[dataset].build).parameters if name not in ("split", "unlabelled")]
    return [name for name in names if dataset != "synthetic" or name != "data_dir"]
