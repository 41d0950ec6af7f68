"""What the data of strangers may have opened: images of a few formats, held by a row or in a file of this machine, and no archive."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any
from zipfile import is_zipfile

import numpy as np
import yaml
from datasets.utils.extract import Extractor
from huggingface_hub import DatasetCard
from PIL import Image, ImageOps, UnidentifiedImageError

from .image_formats import (
    UnsupportedFile,
    check_frames,
    holds_more_than_8_bits,
    is_inverted,
    is_tiff,
    joined_bytes,
    lossy_compression,
    raw_mode,
    read_low_bytes,
    tiff_page,
    unreadable_tiff,
    value_step,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Of all that Pillow reads; for EPS it would run Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
LFS_POINTER = b"version https://git-lfs"  # how the small text begins that Git has in place of a file
ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:")  # two letters or more: one is a drive of Windows
ORIENTATION = 0x0112  # the EXIF tag
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(path: str | Path | None, encoded: bytes | None = None) -> Image.Image | np.ndarray:
    """Return the image, upright: of these bytes, else of the file at the path. Every image that this package reads comes through here.

    Colors of 16 bits, for which Pillow has no mode, are returned as an array (H, W, 2 to 4) uint16: gray or RGB, and alpha.
    `image.info` gets "format", "lossy", the name of a lossy format or None, "step", see `value_step`, and "inverted", see `is_inverted`.
    Unlike `datasets`, which would ask a server or open an archive of the row's choice, it takes a path for nothing but a file of this
    machine. Raises one of DECODE_ERRORS, UnsupportedFile among them for several pages or frames and for bands that would be lost.
    """
    with opened(path, encoded) as (image, file):
        info = {"format": image.format, "lossy": lossy_compression(image, file), "step": value_step(image)}
        info["inverted"] = is_inverted(image)
        colors = raw_mode(image) if holds_more_than_8_bits(image) and not image.mode.startswith("I") else None
        image.load()
        image.info |= info
        if colors is None:
            return upright(image)
        high = upright(image)
    with opened(path, encoded, low_bytes_of=colors) as (image, _):
        image.load()
        return joined_bytes(np.asarray(high), np.asarray(upright(image)), colors)


def stores_more_than_8_bits(path: str | Path | None, encoded: bytes | None = None) -> bool:
    """Whether an image stores integers of more than 8 bits a band; its pixels are not decoded. Raises one of DECODE_ERRORS."""
    with opened(path, encoded) as (image, _):
        return holds_more_than_8_bits(image)


@contextmanager
def opened(path: str | Path | None, encoded: bytes | None = None, low_bytes_of: str | None = None) -> Iterator[tuple[Image.Image, IO]]:
    """Open an image whose pixels are not decoded yet, and its file. low_bytes_of: a raw mode of 16-bit colors, whose low bytes are read."""
    if encoded is None and path is None:
        raise ValueError("neither its bytes nor its path are there")
    if encoded is None and ADDRESS.match(str(path)):
        raise ValueError("it is an address, and none is asked: give data that holds its images, or files that lie on this machine")
    with open(path, "rb") if encoded is None else BytesIO(encoded) as file:
        page, tags = tiff_page(file) if is_tiff(file.read(4)) else (0, None)
        with _opened_page(file, page, tags) as image:
            check_frames(image)
            if low_bytes_of:
                read_low_bytes(image, low_bytes_of)
            yield image, file


def _opened_page(file: IO[bytes], page: int, tags: Any) -> Image.Image:
    """tags: those of the page, of a TIFF; None for other formats."""
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
        if page:
            image.seek(page)
        return image
    except (UnidentifiedImageError, TypeError, LookupError) as error:  # the latter from damaged tags
        file.seek(0)
        head = file.read(len(LFS_POINTER))
        if not head:
            raise UnsupportedFile("is empty; replace it, or skip it with --max-bad-images N") from error
        if head == LFS_POINTER:
            raise UnsupportedFile("is a Git LFS pointer; run `git lfs pull`") from error
        if tags is not None:
            raise UnsupportedFile(unreadable_tiff(tags)) from error
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error


def upright(image: Image.Image) -> Image.Image:
    """As its EXIF says that it is seen."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image


def refuse_packed(place: Path) -> None:
    """ValueError where a data set is an archive, or a folder that holds one: nothing is unpacked here."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if not named_as_image(path))
    packed = next((path for path in files if path.is_file() and is_packed(path)), None)
    if packed is not None:
        raise ValueError(f"{packed} is packed, and archives are not opened here; unpack it yourself, and give a folder without archives")


def is_packed(path: Path) -> bool:
    """By the two judges that `datasets` asks: before it unpacks a file, and where it streams one, which may have anything in front."""
    return Extractor.infer_extractor_format(path) is not None or is_zipfile(path)


def named_as_image(path: Path) -> bool:
    """Whether `datasets` would take it for nothing else: a.json.png is JSON to it, which it unpacks."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    return bool(suffixes) and suffixes.issubset(IMAGE_SUFFIXES)


def refuse_strays(folder: Path) -> None:
    """ValueError where a folder's card (README.md, .huggingface.yaml) names data files that do not lie in the folder."""
    for card in cards(folder):
        for pattern in named_files(card):
            if not lies_in(folder, pattern):
                raise ValueError(f"{card} names data files {pattern!r} that do not lie in {folder}; correct it, or remove {card.name}")


def cards(folder: Path) -> list[Path]:
    """The files of a folder in which `datasets` looks for its configurations."""
    return [card for card in (folder / "README.md", folder / ".huggingface.yaml") if card.is_file()]


def named_files(card: Path) -> list[str]:
    """The patterns of files and folders that its configurations name."""
    try:
        said = DatasetCard.load(card).data if card.suffix == ".md" else yaml.safe_load(card.read_text(encoding="utf-8")) or {}
        return list(chain.from_iterable(map(named_by, said.get("configs") or [])))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{card} cannot be read as the card of a data set ({type(error).__name__}); correct or remove it") from error


def named_by(configuration: dict) -> list[str]:
    """The patterns of one configuration, which are looked up below the folder that it names, if it names one."""
    place, patterns = configuration.get("data_dir"), texts(configuration.get("data_files"))
    return patterns if place is None else [*patterns, f"{place}/", *(f"{place}/{pattern}" for pattern in patterns)]


def texts(value: Any, depth: int = 3) -> list[str]:
    """The texts of lists and mappings within each other; ValueError where they are nested deeper than `datasets` takes them."""
    value = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, list):
        return [] if value is None else [str(value)]
    if not depth:
        raise ValueError("lists in lists")
    return [text for item in value for text in texts(item, depth - 1)]


def lies_in(folder: Path, pattern: str) -> bool:
    """Whether all that a pattern of `datasets` can match does; a link out of the folder is followed where the pattern names it."""
    if ":" in pattern or ".." in re.split(r"[/\\]", pattern):
        return False
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return not pattern.startswith("/") and (folder / fixed).resolve().is_relative_to(folder.resolve())
