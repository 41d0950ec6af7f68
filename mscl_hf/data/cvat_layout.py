"""`--dataset cvat`: an export of CVAT in the format "CVAT for images 1.1": annotations.xml, and the images in images/.

Polygons and boxes have the pixels of pycocotools, as in CVAT's own conversion to masks. Shapes lie on top of each other by their z_order.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from ..records.files import read_text
from .class_colors import IGNORED_NAME
from .dataset import SegmentationData
from .files import unique_names
from .folder_names import available_split
from .label_map import class_names
from .shapes import (
    ImageFinder,
    all_or_error,
    checked_points,
    checked_size,
    common_folder,
    decoded,
    encoded,
    from_shapes,
    is_background,
    require_images,
    with_background,
)  # fmt: skip

EXPECTED = 'an export of CVAT in the format "CVAT for images 1.1": annotations.xml and images/'
WITHOUT_AREA = ("tag", "points", "polyline", "skeleton", "cuboid")
ELLIPSE_POINTS = 90


def build_cvat(
    split: str,
    data_dir: Path | None,
    unlabelled: bool = False,
    annotations: str | Path | None = None,
    image_dir: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> SegmentationData:
    """Open the images that annotations.xml lists; those without shapes are background. Subsets of CVAT are the splits, all else is train.

    annotations: the file, if it has another name. image_dir: folder of the images. classes: names of the labels in the order of the class
    ids; without them, those of the task in their order, after the background. The label __ignore__ is ignored.
    """
    if annotations is None and data_dir is None:
        raise ValueError(f"--data-dir is missing; --dataset cvat needs it or --annotations, with {EXPECTED}.")
    file = Path(annotations) if annotations is not None else data_dir / "annotations.xml"
    root = read_xml(file)
    entries = root.findall("image")
    if not entries:
        raise ValueError(f"{file} lists no image; expected {EXPECTED}. Export the task again, in this format.")
    subsets = [(entry.get("subset") or "default").lower() for entry in entries]
    subsets = ["train" if subset == "default" else subset for subset in subsets]
    chosen = available_split(split, list(dict.fromkeys(subsets)), str(file))
    named = {(entry.get("subset") or "default") for entry, subset in zip(entries, subsets) if subset == chosen}
    entries = [entry for entry, subset in zip(entries, subsets) if subset == chosen]
    bases = [Path(image_dir)] if image_dir else [file.parent / "images", file.parent, *([data_dir] if data_dir else [])]
    finder = ImageFinder([base / name for base in bases for name in (*sorted(named), "")])
    paths = [finder.find(entry.get("name") or "") for entry in entries]
    missing = [str(entry.get("name")) for entry, path in zip(entries, paths) if path is None]
    require_images(missing, len(paths), str(file), finder.roots)
    folder = common_folder(paths)
    names, note = unique_names(paths, folder), f" in {folder}"
    if unlabelled:
        return from_shapes("cvat", split, names, paths, None, (), draw_mask, note)
    given = class_names(classes, None) or [label.text for label in root.findall("meta//labels/label/name") if label.text]
    all_classes = with_background([name for name in dict.fromkeys(given) if name != IGNORED_NAME])
    masks = all_or_error(lambda entry: _stored(entry, all_classes, file), entries)
    empty = sum(not decoded(content)[2] for content, _ in masks)
    note += f"; annotations in {file}" + (f"; {empty} images have no shapes and are background" if empty else "")
    return from_shapes("cvat", split, names, paths, masks, all_classes, draw_mask, note)


def read_xml(file: Path) -> ElementTree.Element:
    """Return the root of an annotation file. Raises ValueError, also for entities, which can grow without bounds."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected {EXPECTED}. Give --annotations FILE.")
    try:
        text = read_text(file)
        if "<!DOCTYPE" in text[:2000]:
            raise ValueError("it has a document type")
        root = ElementTree.fromstring(text.partition("?>")[2] if text.lstrip("\ufeff").startswith("<?xml") else text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{file} cannot be read as XML of CVAT ({error}). Export the task again.") from error
    if root.tag != "annotations" or root.find("track") is not None:
        state = "tracks of a video" if root.find("track") is not None else f"the root {root.tag!r}"
        raise ValueError(f"{file} holds {state}; expected {EXPECTED}. Export the task again, in this format.")
    return root


def _stored(entry: ElementTree.Element, classes: Sequence[str], file: Path) -> tuple[bytes, str]:
    """Return the shapes [class id, type, numbers] of an image from the lowest to the highest, and its place."""
    place = f"{file}, image {entry.get('name')}"
    size = checked_size(_number(entry, "height", place), _number(entry, "width", place), place)
    shapes = []
    for shape in entry:
        if shape.tag in WITHOUT_AREA or shape.tag not in ("polygon", "box", "ellipse", "mask"):
            raise ValueError(f"{place} has a {shape.tag}, which has no area; expected polygon, box, ellipse or mask. Remove it in CVAT.")
        name, where = shape.get("label") or "", f"{place}, {shape.tag}"
        if name not in classes and name != IGNORED_NAME and not is_background(name):
            raise ValueError(f"{where} has the label {name!r}; expected one of {first_three(classes)}. Add it to --classes.")
        class_id = IGNORE_INDEX if name == IGNORED_NAME else 0 if is_background(name) else classes.index(name)
        stored = _runs(shape, size, where) if shape.tag == "mask" else _polygon(shape, size, where)
        shapes.append((_number(shape, "z_order", where, 0), [class_id, "mask" if shape.tag == "mask" else "polygon", stored]))
    return encoded(size, [stored for _, stored in sorted(shapes, key=lambda item: item[0])]), place


def _number(element: ElementTree.Element, name: str, where: str, default: float | None = None) -> float:
    text = element.get(name)
    try:
        if text is None and default is not None:
            return default
        value = float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (TypeError, ValueError):
        raise ValueError(f"{where} has {name} {text!r}; expected a number. Export the task again.") from None


def _polygon(shape: ElementTree.Element, size: tuple[int, int], where: str) -> list[float]:
    """Return the polygon x, y, x, y, ... of a polygon, a box or an ellipse."""
    if shape.tag == "polygon":
        points = checked_points([pair.split(",") for pair in (shape.get("points") or "").split(";")], size, where)
        if len(points) < 3:
            raise ValueError(f"{where} has {len(points)} points; expected 3. Correct or remove it.")
        return [value for point in points for value in point]
    if shape.tag == "box":
        left, top, right, bottom = (_number(shape, name, where) for name in ("xtl", "ytl", "xbr", "ybr"))
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    else:
        x, y, width, height = (_number(shape, name, where) for name in ("cx", "cy", "rx", "ry"))
        angles = np.arange(ELLIPSE_POINTS) * 2 * math.pi / ELLIPSE_POINTS
        corners = np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)
    turn, center = math.radians(_number(shape, "rotation", where, 0)), (corners.min(0) + corners.max(0)) / 2
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = checked_points(((corners - center) @ matrix + center if turn else corners).tolist(), size, where)
    return [value for point in points for value in point]


def _runs(shape: ElementTree.Element, size: tuple[int, int], where: str) -> list:
    """Return left, top, width, height and the runs of 0 and 1 in their box, row by row."""
    left, top, width, height = (int(_number(shape, name, where)) for name in ("left", "top", "width", "height"))
    try:
        counts = [int(count) for count in (shape.get("rle") or "").split(",")]
    except ValueError:
        counts = [-1]
    inside = left >= 0 and top >= 0 and 0 < width <= size[1] - left and 0 < height <= size[0] - top
    if not inside or min(counts) < 0 or sum(counts) != width * height:
        raise ValueError(f"{where} has a box or runs that do not fit the image of {size[1]}x{size[0]} px. Correct or remove it.")
    return [left, top, width, height, counts]


def draw_mask(content: bytes) -> np.ndarray:
    """Return the class ids (H, W) uint8 of the shapes of one image."""
    from pycocotools import mask as coco_masks  # a compiled module that only formats of polygons need

    image_height, image_width, shapes = decoded(content)
    mask = np.zeros((image_height, image_width), np.uint8)
    for class_id, shape_type, stored in shapes:
        if shape_type == "polygon":
            runs = coco_masks.merge(coco_masks.frPyObjects([stored], image_height, image_width))
            mask[coco_masks.decode(runs).astype(bool)] = class_id
        else:
            left, top, width, height, counts = stored
            region = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width).astype(bool)
            mask[top : top + height, left : left + width][region] = class_id
    return mask
