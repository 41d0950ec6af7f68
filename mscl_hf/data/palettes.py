"""The colors of palette masks: masks that give one id several colors were numbered anew in each file, and their ids are no classes."""

from contextlib import suppress

import datasets
import numpy as np

from .dataset import SegmentationData
from .files import SCAN_AT_MOST
from .image_io import DECODE_ERRORS, opened

Color = tuple[int, int, int]


def different_palettes(data: SegmentationData) -> str | None:
    """A sentence where palette masks give the id of a class different colors; None where they agree. No pixel is decoded.

    data: with the counts of its labels. Compares at most SCAN_AT_MOST masks, evenly spaced, by the classes that occur.
    """
    if not isinstance(data.rows, datasets.Dataset) or data.labels is None:
        return None
    stored_ids = data.labels.stored
    if data.label_table is not None:
        stored_ids = np.flatnonzero(np.isin(data.label_table[:256], stored_ids)).tolist()
    first: dict[int, tuple[Color, str]] = {}
    for index in np.unique(np.linspace(0, len(data) - 1, min(len(data), SCAN_AT_MOST)).astype(int)).tolist():
        mask = data.stored(index).get("mask") or {}
        file, colors = mask.get("path") or f"the mask of row {index}", _palette(mask)
        for id in (id for id in stored_ids if id < len(colors)):
            color, where = first.setdefault(id, (colors[id], file))
            if color != colors[id]:
                return (
                    f"palette masks of {data.name}/{data.split} give the id {id} different colors: {color} in {where}, {colors[id]} in "
                    f"{file}; ids are read, not colors, so that one id must be one class in all masks"
                )
    return None


def _palette(stored: dict) -> list[Color]:
    """The colors of a palette image by index; [] of others, and of what cannot be opened."""
    with suppress(*DECODE_ERRORS), opened(stored.get("path"), stored.get("bytes")) as (image, _):
        values = image.getpalette("RGB") if image.mode == "P" and image.format != "GIF" else None  # a GIF gives its colors
        return list(zip(*[iter(values or [])] * 3))
    return []
