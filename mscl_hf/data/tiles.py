"""Tiles: huge images listed in overlapping parts, each of which is a sample of training.

Tiles are cut from the image cache, whose arrays are memory-mapped: an image is decoded once, and a sample reads the pixels of its tile.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from .cache import Box, CachedData
from .checks import run_once, with_progress
from .pixels import BadSample


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window, so that windows cover `length` pixels; the last one ends at the border."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def tile_boxes(height: int, width: int, size: int, overlap: int) -> list[Box]:
    """Return the tiles (x0, y0, x1, y1) in px of an image, row by row: size x size px; a shorter side of the image is not divided."""
    rows, columns = (window_starts(length, size, size - overlap) for length in (height, width))
    return [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]


def tiled(data: CachedData, tile: Sequence[int], log: Callable[[str], None] = print, workers: int = 4) -> CachedData:
    """Return the tiles of all images as rows. The main process decodes and caches the images. An unreadable image remains one row.

    tile: size and overlap in px. Raises ValueError for data that is not cached.
    """
    size, overlap = tile
    if data.folder is None:
        raise ValueError(
            f"--tile is {size} {overlap} and the images of {data.name}/{data.split} are not cached, but tiles are read from the cache. "
            "Raise --image-cache-gb above their decoded size, or leave --tile out."
        )

    def boxes_of(index: int) -> list[Box | None]:
        try:
            return tile_boxes(*data.read(index).image.shape[:2], size, overlap)
        except BadSample:
            return [None]  # the check of the data reports it

    def read_all() -> list[list[Box | None]]:
        with ThreadPoolExecutor(workers) as pool:
            return list(with_progress(pool.map(boxes_of, range(len(data))), len(data), f"caching {data.name}/{data.split}"))

    boxes = run_once(read_all)
    rows = [index for index, parts in enumerate(boxes) for _ in parts]
    log(f"{data.name}/{data.split}: {len(data)} images in {len(rows)} tiles of at most {size} px that overlap by at least {overlap} px")
    return replace(data.select(rows), boxes=tuple(box for parts in boxes for box in parts))
