"""Masks that are stored as shapes (polygons, boxes, runs of pixels): a row holds the shapes of an image, drawn when it is read."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np

from ..messages import first_three
from ..records.files import read_text
from .dataset import SegmentationData
from .image_io import ADDRESS

Item, Result = TypeVar("Item"), TypeVar("Result")
MOST_PIXELS = 1024**3 // 6  # of a mask that is drawn: those that Pillow reads of an image
FARTHEST = 16  # multiples of the image's longer side within which coordinates may lie: drawing takes time and memory by length


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Export it again.") from error


def encoded(size: tuple[int, int], shapes: Sequence[Any]) -> bytes:
    """Return the shapes of one image as they are stored in a row. size: height and width in px."""
    return json.dumps({"size": size, "shapes": shapes}).encode()


def decoded(content: bytes) -> tuple[int, int, list[Any]]:
    """Return height, width and shapes."""
    stored = json.loads(content)
    return (*stored["size"], stored["shapes"])


def checked_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Return the size. Raises ValueError unless both are whole numbers and the image is not beyond Pillow's pixel limit."""
    sides = (height, width)
    if not all(type(side) in (int, float) and side == int(side) and side > 0 for side in sides) or height * width > MOST_PIXELS:
        raise ValueError(f"{where} has the size {width}x{height}; expected the width and height of the image in px. Correct it.")
    return int(height), int(width)


def checked_points(points: Any, size: tuple[int, int], where: str) -> list[tuple[float, float]]:
    """Return (x, y) pairs. Raises ValueError for anything else, and for points far outside of the image."""
    farthest = FARTHEST * max(size)
    try:
        pairs = [(float(x), float(y)) for x, y in points]
        if not all(abs(value) <= farthest for pair in pairs for value in pair):  # false for NaN too
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{where} has the points {str(points)[:60]}; expected x, y in px. Correct or remove it.") from None
    return pairs


def all_or_error(convert: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the converted items. Raises one ValueError for all that cannot be converted: the first message, and where the others are."""
    results, errors = [], []
    for item in items:
        try:
            results.append(convert(item))
        except ValueError as error:
            errors.append(str(error))
    if len(errors) > 1:
        others = [re.split(r" (?:has|is) ", message)[0] for message in errors[1:]]
        raise ValueError(f"{errors[0].rstrip('.')}; {len(others)} more are wrong: {first_three(others)}.")
    if errors:
        raise ValueError(errors[0])
    return results


class ImageFinder:
    """Finds the images that an annotation file names, below a few folders."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = list(dict.fromkeys(root for root in roots if root.is_dir()))

    def find(self, name: str) -> Path | None:
        """Return the file: by its path below a root, else by its last part. Names that leave the folder are read by their last part."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        is_inside = bool(parts) and ".." not in parts and not ADDRESS.match(name) and not name.startswith("/")
        for relative in dict.fromkeys([Path(*parts)] * is_inside + ([Path(parts[-1])] if parts and parts[-1] != ".." else [])):
            for root in self.roots:
                if (root / relative).is_file():
                    self.roots = [root, *(other for other in self.roots if other != root)]  # probably that of the next one too
                    return root / relative
        return None


def require_images(missing: Sequence[str], count: int, listed_in: str, roots: Sequence[Path], remedy: str = "Give --image-dir DIR") -> None:
    """Raise ValueError if images that are listed do not exist."""
    if missing:
        folders = first_three(list(map(str, roots))) or "no folder"
        state = f"{len(missing)} of the {count} images that it lists do not exist in {folders}"
        raise ValueError(f"{listed_in} is not complete: {state}: {first_three(missing)}. {remedy}.")


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the innermost folder that holds all files."""
    parts = [path.parent.parts for path in paths]
    shortest = min(parts, key=len)
    length = next((i for i in range(len(shortest)) if len({of[i] for of in parts}) > 1), len(shortest))
    return Path(*shortest[:length])


def from_shapes(
    dataset: str,
    split: str,
    names: Sequence[str],
    images: Sequence[Path],
    masks: Sequence[tuple[bytes, str]] | None,
    classes: Sequence[str],
    draw: Callable[[bytes], np.ndarray],
    note: str = "",
) -> SegmentationData:
    """Return the data of these images. masks: the shapes of each image and their place for messages; None for unlabelled data."""
    columns: dict[str, list] = {"image": [str(path) for path in images], "name": list(names)}
    features = {"image": datasets.Image(), "name": datasets.Value("string")}
    if masks is not None:
        columns["mask"] = [{"bytes": content, "path": place} for content, place in masks]
        features["mask"] = {"bytes": datasets.Value("large_binary"), "path": datasets.Value("string")}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    note = f"{len(images)} images{'' if masks is None else ' with masks'}{note}"
    return SegmentationData(rows, () if masks is None else tuple(classes), dataset, split, note=note, draw=draw)


def with_background(classes: Sequence[str], first: str = "background") -> tuple[str, ...]:
    """Return the class names with that of the background as class 0, whatever it is called."""
    others = [name for name in classes if not is_background(name)]
    return (next((name for name in classes if is_background(name)), first), *others)


def is_background(name: str) -> bool:
    return name.strip("_ ").lower() == "background"
