"""`--dataset coco`: annotations in COCO's JSON (polygons and runs of pixels), as Roboflow, CVAT, Label Studio and COCO itself export them.

The pixels of an object are those of pycocotools. Background is class 0; where objects overlap, the smaller one is seen; regions with
`iscrowd` are ignored.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from .coco_shapes import checked_segmentation, draw_mask
from .dataset import SegmentationData
from .files import unique_names
from .folder_names import UnknownSplit, split_folder, split_names, split_names_of, subfolders, without_number
from .label_map import class_names
from .shapes import (
    ImageFinder,
    all_or_error,
    checked_size,
    common_folder,
    encoded,
    from_shapes,
    is_background,
    read_json,
    require_images,
    with_background,
)  # fmt: skip

EXPECTED = "train/_annotations.coco.json, annotations/instances_train2017.json with train2017/, or one JSON file with its images"
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")  # files of COCO beside instances_*.json


def build_coco(
    split: str,
    data_dir: Path | None,
    unlabelled: bool = False,
    annotations: str | Path | None = None,
    image_dir: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> SegmentationData:
    """Open the images that an annotation file lists; images without an annotation are background.

    annotations: the file; without it, the one of the split below data_dir. image_dir: folder of the images. classes: names of the
    categories in the order of the class ids; without them, those of the file by their ids, after the background.
    """
    file = annotation_file(split, data_dir, annotations)
    content = read_json(file)
    check_content(content, file)
    finder = ImageFinder([Path(image_dir)] if image_dir else image_roots(file, data_dir, split))
    if image_dir and (inner := split_folder(Path(image_dir), split) if Path(image_dir).is_dir() else None):
        finder.roots.insert(0, inner)
    paths = [finder.find(entry["file_name"]) for entry in content["images"]]
    missing = [entry["file_name"] for entry, path in zip(content["images"], paths) if path is None]
    require_images(missing, len(paths), str(file), finder.roots)
    root = common_folder(paths)
    names, note = unique_names(paths, root), f" in {root}"
    if unlabelled:
        return from_shapes("coco", split, names, paths, None, (), draw_mask, note)
    names_of, dropped = categories(content, file)
    all_classes = with_background(class_names(classes, None) or list(dict.fromkeys(names_of.values())))
    shapes, notes = shapes_by_image(content, names_of, all_classes, file)
    if empty := sum(not found for found in shapes.values()):
        notes.append(f"{empty} of {len(shapes)} images have no annotation and count as background")
    note = "; ".join([f"{note}; annotations in {file}", *dropped, *notes])
    masks = []
    for entry in content["images"]:
        place = f"{file}, image {entry['file_name']}"
        masks.append((encoded(checked_size(entry.get("height"), entry.get("width"), place), shapes[entry["id"]]), place))
    return from_shapes("coco", split, names, paths, masks, all_classes, draw_mask, note)


def annotation_file(split: str, data_dir: Path | None, annotations: str | Path | None) -> Path:
    """Return the annotation file of a split. Raises UnknownSplit, or ValueError."""
    if annotations is not None:
        path = Path(annotations)
        if not path.is_file():
            raise ValueError(f"--annotations is {annotations}, which is not a file; expected a JSON file of COCO. Correct the path.")
        by_split = {split_of(path, None): [path]}
    elif data_dir is None:
        raise ValueError(f"--data-dir is missing; --dataset coco needs it or --annotations, with {EXPECTED}.")
    else:
        by_split = defaultdict(list)
        for path in sorted([*data_dir.glob("*.json"), *data_dir.glob("*/*.json")]):
            if path.parent == data_dir or path.parent.name == "annotations" or split_names_of(without_number(path.parent.name)):
                by_split[split_of(path, data_dir)].append(path)
    chosen = by_split.get(split_names(split)[0]) or next((by_split[name] for name in split_names(split) if name in by_split), [])
    if not chosen and split == "train":
        chosen = by_split.get(None, [])
    if not by_split:
        raise ValueError(f"--data-dir is {data_dir}, which has no JSON file of annotations; expected {EXPECTED}. Give --annotations FILE.")
    if not chosen:
        available = [name or "train" for name in by_split]
        raise UnknownSplit(split, available, str(annotations or data_dir), "Choose one of them, or hold images out by --val-fraction 0.2.")
    return only_file(chosen, data_dir)


def only_file(files: Sequence[Path], data_dir: Path | None) -> Path:
    """Return the one file of instances. Raises ValueError if several may be meant."""
    if len(files) > 1:
        files = [path for path in files if not path.stem.startswith(OTHER_TASKS)] or files
        files = [path for path in files if path.name == "_annotations.coco.json" or path.stem.startswith("instances")] or files
    if len(files) > 1:
        names = first_three([path.name for path in files])
        advice = "Give --annotations FILE, or --dataset labelme if each image has its own"
        raise ValueError(f"{data_dir} has {len(files)} JSON files that may hold the annotations: {names}. {advice}.")
    return files[0]


def split_of(path: Path, data_dir: Path | None) -> str | None:
    """Return the split (train, val, test) that a file is of, by its folder or by a word of its name; None without such a word."""
    folder = [] if path.parent == data_dir else [path.parent.name]
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word]
    names = next(filter(None, map(split_names_of, [*map(without_number, folder), *reversed(words)])), None)
    return names and names[0]


def image_roots(file: Path, data_dir: Path | None, split: str) -> list[Path]:
    """Return folders in which the images of an annotation file may lie, the most likely first."""
    bases = list(dict.fromkeys([*([data_dir] if data_dir else []), file.parent, file.parent.parent]))
    bases = [base / name for base in bases for name in ("", "images") if (base / name).is_dir()]
    named = [base / file.stem.split("_")[-1] for base in bases]  # instances_train2017.json and train2017/
    in_split = [folder for base in bases if subfolders(base) and (folder := split_folder(base, split))]
    return [file.parent, *named, *in_split, *reversed(bases)] if data_dir != file.parent else [*named, *in_split, *reversed(bases)]


def check_content(content: Any, file: Path) -> None:
    """Raise ValueError unless the file has the lists and keys of COCO that are read here."""
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    for name, keys in needed.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or (name == "images" and not entries):
            raise ValueError(f"{file} has no list of {name!r}; expected COCO's images, annotations and categories. Export again.")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or any(entry.get(key) is None for key in keys):
                raise ValueError(f"{file} has no {' or '.join(keys)} in {name}[{number}]; expected COCO's JSON. Export it again.")
    keys = [entry[key] for entry in content["annotations"] for key in ("image_id", "category_id")]
    if not all(isinstance(key, (int, str)) for key in [*keys, *(entry["id"] for entry in content["categories"])]):
        raise ValueError(f"{file} has annotations or categories whose id is no number or text; expected COCO's JSON. Export it again.")
    ids = Counter(entry["id"] for entry in content["images"] if isinstance(entry["id"], (int, str)))
    if len(ids) != len(content["images"]) or not all(isinstance(entry["file_name"], str) for entry in content["images"]):
        raise ValueError(f"{file} has images with equal ids, or without a text as file_name; expected one id each. Export it again.")


def categories(content: dict, file: Path) -> tuple[dict[Any, str], list[str]]:
    """Return the names of the categories by their ids, in the order of the ids, and notes.

    Roboflow adds the data set itself as a category that no annotation has; it is left out.
    """
    used = {annotation["category_id"] for annotation in content["annotations"]}
    groups = {entry.get("supercategory") for entry in content["categories"]}
    dropped = [e for e in content["categories"] if e["name"] in groups and e["id"] not in used and e.get("supercategory") in (None, "none")]
    kept = [entry for entry in content["categories"] if entry not in dropped]
    if not all(isinstance(entry["name"], str) and isinstance(entry["id"], int) for entry in kept):
        raise ValueError(f"{file} has a category whose id is no number or whose name is no text; expected both. Export it again.")
    names_of = {entry["id"]: entry["name"] for entry in sorted(kept, key=lambda entry: entry["id"])}
    if unknown := sorted(map(str, used - set(names_of))):
        raise ValueError(f"{file} has annotations of the categories {first_three(unknown)}, which it does not list. Export it again.")
    return names_of, [f"the category {entry['name']!r} names the group of the others and is left out" for entry in dropped]


def shapes_by_image(
    content: dict, names_of: dict[Any, str], classes: Sequence[str], file: Path
) -> tuple[dict[Any, list], list[str]]:
    """Return the shapes [class id, segmentation] by image id, and notes. Raises ValueError for objects that have no pixels."""
    sizes = {entry["id"]: (entry.get("height"), entry.get("width")) for entry in content["images"]}
    shapes: dict[Any, list] = {image_id: [] for image_id in sizes}
    counts: Counter = Counter()

    def add(numbered: tuple[int, dict]) -> None:
        """Add one annotation to the shapes of its image. Raises ValueError."""
        number, annotation = numbered
        image_id, name = annotation["image_id"], names_of[annotation["category_id"]]
        where = f"{file}, annotation {annotation.get('id', number)}"
        if image_id not in shapes:
            counts["of images that are not listed"] += 1
            return
        if name not in classes and not is_background(name):
            raise ValueError(f"{where} is of {name!r}, which --classes does not name. Add it, or leave --classes out.")
        class_id = IGNORE_INDEX if annotation.get("iscrowd") else 0 if is_background(name) else classes.index(name)
        segmentation = checked_segmentation(annotation["segmentation"], checked_size(*sizes[image_id], where), where)
        counts["of fewer than three points"] += segmentation == []
        counts["of crowds; their pixels are ignored"] += class_id == IGNORE_INDEX
        if segmentation:
            shapes[image_id].append([class_id, segmentation])

    _require_segmentations(content["annotations"], file)
    all_or_error(add, enumerate(content["annotations"]))
    return shapes, [f"{count} annotations {reason}" for reason, count in counts.items() if count]


def _require_segmentations(annotations: Sequence[dict], file: Path) -> None:
    """Raise ValueError for annotations of a detection data set."""
    boxes = [annotation.get("id", number) for number, annotation in enumerate(annotations) if not annotation.get("segmentation")]
    if boxes:
        raise ValueError(
            f"{file} has {len(boxes)} of {len(annotations)} annotations without a segmentation (only boxes?), the first is annotation "
            f"{boxes[0]}; expected polygons or RLE. Export as segmentation, or remove these annotations."
        )
