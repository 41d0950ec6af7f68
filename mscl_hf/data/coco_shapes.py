"""Polygons and runs of pixels (RLE) of COCO: checked, and drawn by pycocotools."""

from typing import Any

import numpy as np

from .shapes import checked_points, decoded

MASK_POINTS = 6  # numbers of the smallest polygon


def checked_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> Any:
    """Return polygons of at least three points, or runs of pixels. Raises ValueError for what pycocotools could not draw."""
    if isinstance(segmentation, list):
        flat = all(isinstance(value, (int, float)) for value in segmentation)
        polygons = [segmentation] if flat else segmentation
        if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
            raise ValueError(f"{where} has a polygon that is no list of x, y, x, y, ...; correct or remove it.")
        for polygon in polygons:
            checked_points(list(zip(polygon[::2], polygon[1::2])), size, where)
        return [polygon for polygon in polygons if len(polygon) >= MASK_POINTS]
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, (list, str)) or list(segmentation.get("size") or ()) != list(size):
        raise ValueError(f"{where} has a segmentation of another size than its image; expected RLE of {size}. Correct it.")
    lengths = counts if isinstance(counts, list) else run_lengths(counts)
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"{where} has an RLE whose runs do not add up to {size[1]}x{size[0]} px; correct or remove it.")
    return {"size": list(size), "counts": counts}


def run_lengths(counts: str) -> list[int]:
    """Return the runs of pixels of a compressed RLE: five bits a character, least first, as the difference to the run before the last."""
    lengths, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            return [-1]
        if not bits & 32:
            value -= (1 << shift) * (bits >> 4 & 1)
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths if shift == 0 else [-1]


def draw_mask(content: bytes) -> np.ndarray:
    """Return the class ids (H, W) uint8 of the shapes of one image: the largest first, so that the smallest lies on top."""
    from pycocotools import mask as coco_masks  # a compiled module that only this format needs

    height, width, shapes = decoded(content)
    objects = []
    for class_id, segmentation in shapes:
        if isinstance(segmentation, list):
            runs = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            runs = coco_masks.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        objects.append((int(coco_masks.area(runs)), class_id, runs))
    mask = np.zeros((height, width), np.uint8)
    for _, class_id, runs in sorted(objects, key=lambda item: -item[0]):
        mask[coco_masks.decode(runs).astype(bool)] = class_id
    return mask
