"""Images that are in two splits, by the bytes of their files."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import datasets

from .checks import examined_rows
from .dataset import SegmentationData

HEAD = 65_536  # bytes that are compared before whole files are
# Rows of a split that are compared, evenly spaced: on network storage this takes a minute or two, and other processes wait.
MOST_FILES = 20_000
MOST_STORED = 4000  # images stored in the rows, whose size is known only after reading them


def shared_images(first: SegmentationData, second: SegmentationData) -> list[str]:
    """Return the names in `second` of the images whose file has the bytes of a file in `first`.

    Sizes are compared first, then the first bytes, and only files that agree in both are read whole. Of large splits only some rows are
    compared, see `compared_rows`. Equal names prove nothing, since many splits count from 0.
    """
    indices: list[Sequence[int]] = [compared_rows(data) for data in (first, second)]
    for fingerprint in (_size, partial(_digest, limit=HEAD), _digest):
        keys = [{i: _key(fingerprint, data, i) for i in rows} for data, rows in zip((first, second), indices)]
        common = set(keys[0].values()) & set(keys[1].values()) - {None}
        indices = [[i for i, key in of.items() if key in common] for of in keys]
    names = second.names
    return [names[i] for i in indices[1]]


def compared_rows(data: SegmentationData) -> Sequence[int]:
    """Return the rows that `shared_images` compares: all, or MOST_FILES or MOST_STORED of more; none of drawn images."""
    if not isinstance(data.rows, datasets.Dataset) or not len(data):
        return range(0)
    is_file = (data.stored(0)["image"] or {}).get("bytes") is None
    return examined_rows(len(data), MOST_FILES if is_file else MOST_STORED)


def _key(fingerprint: Callable[[bytes | None, str], object], data: SegmentationData, index: int) -> object:
    image = data.stored(index)["image"] or {}
    try:
        return fingerprint(image.get("bytes"), image.get("path") or "")
    except OSError:  # reported by the check of the data
        return None


def _size(content: bytes | None, path: str) -> int:
    return os.path.getsize(path) if content is None else len(content)


def _digest(content: bytes | None, path: str, limit: int | None = None) -> bytes:
    """Return the digest of the first `limit` bytes, None = of all."""
    if content is None:
        with Path(path).open("rb") as file:
            content = file.read(limit)
    return hashlib.blake2b(content[:limit]).digest()
