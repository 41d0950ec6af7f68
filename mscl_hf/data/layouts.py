"""The layouts of data sets: for each one a row in DATASETS and a builder."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..losses.labels import IGNORE_INDEX
from ..messages import flag, layout_advice, near_names
from ..records.files import read_text
from . import coco_layout, cvat_layout, labelme_layout, list_layout
from .coco_layout import build_coco
from .cvat_layout import build_cvat
from .dataset import SegmentationData
from .files import find_images, from_files, require_files, skipped_note, slices_by_name, unique_names
from .folder_layout import build_folder
from .folder_names import EXPECTED, available_split, subfolders
from .hub_layout import build_hf
from .image_io import reject_archives
from .label_map import class_names, make_table
from .labelme_layout import build_labelme
from .list_layout import build_list
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
    """Open scenes drawn on demand. scenes: their number. scene_seed: other scenes."""
    split = available_split(split, SPLIT_SIZES, "the synthetic data")
    rows = DrawnScenes(split, scenes or SPLIT_SIZES[split], scene_seed, scene_height, scene_width, masks=not unlabelled)
    note = f"{len(rows)} synthetic scenes, no files (--dataset synthetic)"
    return SegmentationData(rows, () if unlabelled else SYNTHETIC_CLASSES, "synthetic", split, note=note)


def build_camvid(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Open CamVid as in the SegNet tutorial: `train.txt` holds "image mask" a line, with or without /SegNet/CamVid/.

    11 classes; 11 and 255 are void. Groups are the video sequences, since frames of a sequence look alike. The sequences are also the
    volumes of the slices, although frames at equal positions show different things, unlike scans of a body.
    """
    root = data_dir / "CamVid" if (data_dir / "CamVid").is_dir() else data_dir
    lists = {path.stem: path for path in sorted(root.glob("*.txt"))}
    split = available_split(split, lists, str(root), DATASETS["camvid"].layout)
    lines = [line.split() for line in _lines(lists[split]) if line.strip()]
    wrong = [number for number, line in enumerate(lines, 1) if len(line) != 2]
    if wrong or not lines:
        state = f"is wrong in line(s) {', '.join(map(str, wrong[:3]))}" if wrong else "is empty"
        raise ValueError(f"{lists[split]} {state}; expected an image and a mask a line, separated by a blank. Correct the list.")
    images, masks = ([root.joinpath(*Path(line[k]).parts[-2:]) for line in lines] for k in (0, 1))
    require_files(images, str(lists[split]))
    table = np.arange(256, dtype=np.uint8)
    table[11] = IGNORE_INDEX
    names = [path.stem for path in images]
    groups = tuple(name.split("_")[0] for name in names)
    slices = slices_by_name(groups, names)
    return from_files("camvid", split, names, images, None if unlabelled else masks, CAMVID_CLASSES, table, groups, slices, f" in {root}")


def build_voc2012(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Open PASCAL VOC 2012, 21 classes; the masks of trainaug lie in SegmentationClassAug (with the added SBD labels)."""
    candidates = [data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"]
    root = next((path for path in candidates if (path / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        raise ValueError(f"--data-dir is {data_dir}; expected {DATASETS['voc2012'].layout}.")
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
    split = available_split(split, lists, str(root), DATASETS["voc2012"].layout)
    names = [Path(line.split()[0]).stem for line in _lines(lists[split]) if line.strip()]
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    require_files(images, str(lists[split]))
    mask_dir = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    masks = None if unlabelled else [mask_dir / f"{name}.png" for name in names]
    return from_files("voc2012", split, names, images, masks, VOC_CLASSES, note=f" in {root}")


def build_cityscapes(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Open Cityscapes fine labels: labelIds are mapped to the 19 train ids, other ids of the data set to 255. Groups: cities."""
    root = data_dir / "leftImg8bit"
    split = available_split(split, subfolders(root), str(data_dir), DATASETS["cityscapes"].layout)
    if split == "test" and not unlabelled:
        raise ValueError("the split is 'test', of which Cityscapes publishes no masks. Use 'val', or 'test' as unlabelled data.")
    files = find_images(root / split)
    images = [path for path in files.images if path.stem.endswith("_leftImg8bit")]
    names = [path.relative_to(root / split).as_posix().removesuffix("_leftImg8bit.png") for path in images]
    masks = None if unlabelled else [data_dir / "gtFine" / split / f"{name}_gtFine_labelIds.png" for name in names]
    table = np.arange(256, dtype=np.uint8)
    table[:34] = IGNORE_INDEX  # the data set has ids 0..33; any other id is an error when it is read
    table[list(CITYSCAPES_CLASSES.values())] = np.arange(19)
    groups = tuple(name.split("/")[0] for name in names)
    note = f" in {root / split}{skipped_note(files.skipped)}"
    return from_files("cityscapes", split, names, images, masks, tuple(CITYSCAPES_CLASSES), table, groups, note=note)


def build_ade20k(split: str, data_dir: Path, unlabelled: bool = False) -> SegmentationData:
    """Open ADE20K's scene parsing challenge: 150 classes; stored 0 (other objects) is ignored, and ids are lowered by one."""
    root = data_dir / "ADEChallengeData2016" if (data_dir / "ADEChallengeData2016").is_dir() else data_dir
    folder = available_split(split, subfolders(root / "images"), str(root), DATASETS["ade20k"].layout)
    images, skipped = find_images(root / "images" / folder)
    names = unique_names(images, root / "images" / folder)
    masks = None if unlabelled else [root / "annotations" / folder / f"{name}.png" for name in names]
    classes = class_names(Path(__file__).with_name("ade20k_classes.txt"), 150)
    note = f" in {root / 'images' / folder}{skipped_note(skipped)}"
    return from_files("ade20k", split, names, images, masks, classes, make_table(None, reduce_labels=True), note=note)


def _lines(path: Path) -> list[str]:
    """Return the lines of a list of files. Raises ValueError if it is not text."""
    try:
        return read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is neither UTF-8 text nor UTF-16 with a byte order mark ({error}). Save it as UTF-8.") from error


@dataclass(frozen=True)
class Layout:
    """A row of DATASETS. build(split, data_dir, unlabelled, **options). layout: the expected content of the folder."""

    build: Callable[..., SegmentationData | SegmentationStream]
    layout: str
    needs_folder: bool = True


DATASETS: dict[str, Layout] = {
    "synthetic": Layout(build_synthetic, "no folder: scenes are drawn", needs_folder=False),
    "camvid": Layout(build_camvid, "a folder with train.txt, val.txt (an image and a mask a line), train/, trainannot/, val/, valannot/"),
    "voc2012": Layout(build_voc2012, "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/, ImageSets/Segmentation/*.txt"),
    "cityscapes": Layout(build_cityscapes, "leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/ with *_labelIds.png"),
    "ade20k": Layout(build_ade20k, "ADEChallengeData2016 with training/ and validation/ in both images/ and annotations/"),
    "folder": Layout(build_folder, EXPECTED, False),
    "list": Layout(build_list, list_layout.EXPECTED, False),
    "coco": Layout(build_coco, coco_layout.EXPECTED, False),
    "labelme": Layout(build_labelme, labelme_layout.EXPECTED),
    "cvat": Layout(build_cvat, cvat_layout.EXPECTED, False),
    "hf": Layout(build_hf, "a Hub name, a parquet file, a folder of parquet files, an image folder, or a saved Dataset", False),
}


_remembered: ContextVar[dict[str, SegmentationData] | None] = ContextVar("remembered_splits", default=None)


@contextmanager
def remembered_splits() -> Iterator[None]:
    """Within the context, `load_data` does not list a split again that it has opened with the same arguments; files must not change."""
    token = _remembered.set({})
    try:
        yield
    finally:
        _remembered.reset(token)


def load_data(
    dataset: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    unlabelled: bool = False,
    image_range: Sequence[int] | None = None,
    resize_masks: bool = False,
    bands: Sequence[int] | None = None,
    **options: Any,
) -> SegmentationData | SegmentationStream:
    """Load one split of a data set by the name of its layout (a key of DATASETS).

    unlabelled: only the images; no mask is opened. image_range, resize_masks, bands: as in SegmentationData.
    options: keyword arguments of the layout's builder.
    Raises ValueError for an unknown name or option, and for a missing folder, split, image or mask.
    """
    if dataset not in DATASETS:
        advice = layout_advice(dataset) or near_names(dataset, DATASETS)
        raise ValueError(f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}. {advice}".rstrip())
    layout = DATASETS[dataset]
    _check_options(dataset, options if data_dir is None else {"data_dir": data_dir, **options})
    if data_dir is None and layout.needs_folder:
        raise ValueError(f"--data-dir is missing; --dataset {dataset} needs {layout.layout}.")
    if data_dir is not None and dataset not in ("hf", "list"):  # a data set of the Hub, a file
        data_dir = Path(data_dir)
        if data_dir.is_file():
            reject_archives(data_dir)
        if not data_dir.is_dir():
            advice = f" Give --annotations {data_dir} for a file." if "annotations" in options_of(dataset) and data_dir.is_file() else ""
            raise ValueError(f"--data-dir is {data_dir}, which is not a folder; expected {layout.layout}.{advice}")
    data = _opened(layout, split, data_dir, unlabelled, options)
    data = replace(data, resize_masks=True) if resize_masks else data
    data = data if bands is None else replace(data, bands=tuple(bands))
    return data if image_range is None else replace(data, image_range=tuple(image_range))


def _opened(
    layout: Layout, split: str, data_dir: Path | None, unlabelled: bool, options: dict[str, Any]
) -> SegmentationData | SegmentationStream:
    """Return the split as the layout builds it, or as it was opened before within `remembered_splits`; streams are opened anew."""
    remembered, key = _remembered.get(), repr((layout.build, split, data_dir, unlabelled, sorted(options.items())))
    if remembered is not None and key in remembered:
        return remembered[key]
    data = layout.build(split, data_dir, unlabelled, **options)
    if remembered is not None and isinstance(data, SegmentationData):
        remembered[key] = data
    return data


def _check_options(dataset: str, options: dict[str, Any]) -> None:
    """Raise ValueError for options that the data set does not read, naming the data sets that do."""
    accepted = options_of(dataset)
    for name, value in options.items():
        if name in accepted:
            continue
        readers = sorted((other for other in DATASETS if name in options_of(other)), key="folder".__ne__)  # folder first
        if not readers:
            expected = ", ".join(accepted) or "none"
            raise ValueError(f"{name} is not an option of --dataset {dataset}; expected {expected}. {near_names(name, accepted)}".rstrip())
        reason = "is drawn and reads no files" if dataset == "synthetic" else "does not read this option"
        others = f" (or {', '.join(readers[1:])})" if len(readers) > 1 else ""
        raise ValueError(f"{flag(name)} is {value} and --dataset is {dataset}, which {reason}. Give --dataset {readers[0]}{others}.")


def options_of(dataset: str) -> list[str]:
    """Return the names of the options that a data set reads, including data_dir."""
    names = [name for name in inspect.signature(DATASETS[dataset].build).parameters if name not in ("split", "unlabelled")]
    return [name for name in names if dataset != "synthetic" or name != "data_dir"]
