"""`--dataset labelme`: a JSON file of Labelme beside each image. Shapes are drawn as Labelme's own `shape_to_mask` draws them."""

import base64
import binascii
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..losses.labels import IGNORE_INDEX
from ..messages import first_three
from .class_colors import IGNORED_NAME
from .dataset import SegmentationData
from .files import find_images, list_images, unique_names, visible_files
from .folder_names import image_folder, in_split
from .image_io import DECODE_ERRORS, opened, read_header, read_orientation
from .label_map import class_names
from .shapes import (
    ImageFinder,
    all_or_error,
    checked_points,
    checked_size,
    decoded,
    encoded,
    from_shapes,
    is_background,
    read_json,
    require_images,
    with_background,
)  # fmt: skip

EXPECTED = "a folder with a JSON file of Labelme beside each image, or such folders train/ and val/"
LINE_WIDTH, POINT_SIZE = 10, 5  # px, those of Labelme
LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1, "points": 1, "mask": 2}
EXACT_POINTS = ("rectangle", "circle", "line", "point", "mask")


def build_labelme(
    split: str,
    data_dir: Path | None,
    unlabelled: bool = False,
    image_dir: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> SegmentationData:
    """Open the images that have a JSON file; others are unlabelled and left out. Later shapes lie on top.

    image_dir: folder of the images, if they do not lie beside the JSON files. classes: names in the order of the class ids; without them,
    the labels found, sorted, after the background. The label __ignore__ is ignored, _background_ is class 0.
    """
    if data_dir is None:
        raise ValueError(f"--data-dir is missing; --dataset labelme needs {EXPECTED}.")
    root = in_split(data_dir, split)
    image_root = in_split(Path(image_dir), split) if image_dir else root
    if not list_images(image_root).images:
        image_root = in_split(image_folder(data_dir, True) or data_dir, split)
    if unlabelled:
        images = find_images(image_root).images
        return from_shapes("labelme", split, unique_names(images, image_root), images, None, (), draw_mask, f" in {image_root}")
    files = [path for path in visible_files(root) if path.suffix.lower() == ".json"]
    contents = dict(zip(sorted(files), all_or_error(_content, sorted(files))))
    if not files:
        raise ValueError(f"{root} has no JSON files; expected {EXPECTED}. Annotate some images, or give another --data-dir.")
    paths = [_image_of(file, content, image_root) for file, content in contents.items()]
    missing = [content["imagePath"] for content, path in zip(contents.values(), paths) if path is None]
    require_images(missing, len(paths), str(root), [root, image_root])
    labels = {shape["label"] for content in contents.values() for shape in content["shapes"]} - {IGNORED_NAME}
    given = class_names(classes, None)
    found = sorted(label for label in labels if not is_background(label))
    all_classes = with_background([name for name in given or found if name != IGNORED_NAME])

    def stored(file: Path, image: Path) -> tuple[bytes, str]:
        return encoded(_size(contents[file], image, file), _shapes(contents[file], all_classes, file)), str(file)

    masks = all_or_error(lambda pair: stored(*pair), list(zip(contents, paths)))
    without = len(list_images(image_root).images) - len(set(paths))
    note = f" in {image_root}" + (f"; {without} images without a JSON file are left out" if without > 0 else "")
    return from_shapes("labelme", split, _names(paths, image_root), paths, masks, all_classes, draw_mask, note)


def _content(path: Path) -> dict:
    """Return the content of a file of Labelme without the embedded image. Raises ValueError."""
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        advice = "Give --dataset coco" if isinstance(content, dict) and "annotations" in content else "Remove it, or export it again"
        raise ValueError(f"{path} has no shapes and imagePath; expected a file of Labelme. {advice}.")
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise ValueError(f"{path} has no label in shapes[{number}]; expected a text. Label the shape in Labelme, or remove it.")
    return {name: content.get(name) for name in ("shapes", "imagePath", "imageHeight", "imageWidth")}


def _image_of(file: Path, content: dict, image_root: Path) -> Path | None:
    """Return the image that a file names, or one with the name of the file; embedded images are not read."""
    finder = ImageFinder([file.parent, image_root])
    stems = {path.stem: path for path in list_images(file.parent).images} if finder.find(content["imagePath"]) is None else {}
    return finder.find(content["imagePath"]) or stems.get(file.stem)


def _names(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the same names that the images have without masks."""
    inside = [path for path in paths if path.is_relative_to(root)]
    return unique_names(paths, root) if len(inside) == len(paths) else [path.with_suffix("").as_posix() for path in paths]


def _size(content: dict, image: Path, file: Path) -> tuple[int, int]:
    """Return height and width, from the header of the image where the file has none."""
    if content["imageHeight"] and content["imageWidth"]:
        return checked_size(content["imageHeight"], content["imageWidth"], str(file))
    try:
        width, height, _ = read_header(image, None, all_bands=True)
        return (width, height) if read_orientation(image, None, all_bands=True) >= 5 else (height, width)
    except DECODE_ERRORS as error:
        raise ValueError(f"{image} cannot be read as an image ({error}). Replace it.") from error


def _shapes(content: dict, classes: Sequence[str], file: Path) -> list[list]:
    """Return [class id, type, points, mask] of each shape. Raises ValueError for a shape that cannot be drawn."""
    shapes = []
    size = (content["imageHeight"] or 1000, content["imageWidth"] or 1000)
    for number, shape in enumerate(content["shapes"]):
        name, shape_type, where = shape["label"], shape.get("shape_type") or "polygon", f"{file}, shapes[{number}]"
        if name not in classes and name != IGNORED_NAME and not is_background(name):
            raise ValueError(f"{where} has the label {name!r}; expected one of {first_three(classes)}. Add it to --classes, or correct it.")
        class_id = IGNORE_INDEX if name == IGNORED_NAME else 0 if is_background(name) else classes.index(name)
        if shape_type not in LEAST_POINTS:
            raise ValueError(f"{where} is a {shape_type!r}; expected one of {', '.join(LEAST_POINTS)}. Draw it as a polygon.")
        points, least = checked_points(shape.get("points"), size, where), LEAST_POINTS[shape_type]
        if len(points) < least or (shape_type in EXACT_POINTS and len(points) != least):
            raise ValueError(f"{where} is a {shape_type} of {len(points)} points; expected {least}. Correct or remove it.")
        shapes.append([class_id, shape_type, points, shape.get("mask") if shape_type == "mask" else None])
        if shape_type == "mask":
            _stored_mask(shape.get("mask"), where)
    return shapes


def _stored_mask(text: Any, where: str) -> np.ndarray:
    """Return the mask (h, w) bool of a shape of type mask, which is a PNG in base64. Raises ValueError."""
    try:
        with opened(None, base64.b64decode(text, validate=True)) as (picture, _):
            return np.asarray(picture.convert("L")) > 0
    except (TypeError, binascii.Error, *DECODE_ERRORS) as error:
        raise ValueError(f"{where} has a mask that is no PNG in base64 ({error}). Draw it as a polygon.") from error


def draw_mask(content: bytes) -> np.ndarray:
    """Return the class ids (H, W) uint8 of the shapes of one image."""
    height, width, shapes = decoded(content)
    mask = Image.new("L", (width, height))
    for class_id, shape_type, points, stored in shapes:
        if stored is None:
            _draw(ImageDraw.Draw(mask), shape_type, [tuple(point) for point in points], class_id)
        else:
            region = Image.fromarray(_stored_mask(stored, "a shape"))
            mask.paste(class_id, tuple(int(value) for value in points[0]), region)
    return np.asarray(mask)


def _draw(draw: ImageDraw.ImageDraw, shape_type: str, points: list[tuple[float, float]], class_id: int) -> None:
    """Draw one shape with the pixels of Labelme's `shape_to_mask`."""
    if shape_type == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=class_id, fill=class_id)
    elif shape_type == "rectangle":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points))
        draw.rectangle([left, top, right, bottom], outline=class_id, fill=class_id)
    elif shape_type in ("line", "linestrip"):
        draw.line(points, fill=class_id, width=LINE_WIDTH)
    elif shape_type in ("point", "points"):
        for x, y in points:
            draw.ellipse([x - POINT_SIZE, y - POINT_SIZE, x + POINT_SIZE, y + POINT_SIZE], outline=class_id, fill=class_id)
    else:
        draw.polygon(points, outline=class_id, fill=class_id)
