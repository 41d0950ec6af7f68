"""Reading images of untrusted data: of a few formats, from a row or a local file; archives are rejected."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import yaml
from datasets.utils.extract import Extractor
from huggingface_hub import DatasetCard
from PIL import Image, ImageOps, UnidentifiedImageError

from . import band_files, image_formats
from .image_formats import UnsupportedFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Pillow reads more; for EPS it would run Ghostscript, whatever the name of the file.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
LFS_POINTER = b"version https://git-lfs"  # start of the text that Git stores in place of a large file
ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:")  # two letters or more: a single one is a drive of Windows
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


class Header(NamedTuple):
    """Of an image that is not decoded. width, height: in px as stored. deep: whether it stores integers of more than 8 bits a band."""

    width: int
    height: int
    deep: bool


def decode(path: str | Path | None, encoded: bytes | None = None, all_bands: bool = False) -> Image.Image | np.ndarray:
    """Decode an image, upright: from these bytes, or from the file at the path. All images of this package are read here.

    all_bands: a TIFF whose bands or pages Pillow would lose is returned as an array (H, W, bands) of its stored values.
    Colors of 16 bits, for which Pillow has no mode, are returned as an array (H, W, 2 to 4) uint16: gray or RGB, and alpha.
    `image.info` gets "format", "lossy" (the name of a lossy format, or None), "step" (see `value_step`) and "inverted" (see `is_inverted`).
    A path is only ever a local file; `datasets` would also contact a server or open an archive that the row names.
    Raises one of DECODE_ERRORS, which include UnsupportedFile for several pages or frames and for bands that would be lost.
    """
    if all_bands:
        with _file(path, encoded) as file:
            if _has_lost_bands(file):
                return band_files.read_bands(file)
    with opened(path, encoded) as (image, file):
        info = {"format": image.format, "lossy": image_formats.lossy_compression(image, file), "step": image_formats.value_step(image)}
        info["inverted"] = image_formats.is_inverted(image)
        colors = image_formats.raw_mode(image) if image_formats.holds_more_than_8_bits(image) and not image.mode.startswith("I") else None
        image.load()
        image.info |= info
        if colors is None:
            return upright(image)
        high = upright(image)
    with opened(path, encoded, low_bytes_of=colors) as (image, _):
        image.load()
        return image_formats.joined_bytes(np.asarray(high), np.asarray(upright(image)), colors)


def read_header(path: str | Path | None, encoded: bytes | None = None, all_bands: bool = False) -> Header:
    """Return the header of an image; all_bands: also of those that `decode` reads with it. Raises one of DECODE_ERRORS."""
    if all_bands:
        with _file(path, encoded) as file:
            if _has_lost_bands(file):
                width, height, _, _, bits = band_files.bands_header(file)
                return Header(width, height, bits > 8)
    with opened(path, encoded) as (image, _):
        return Header(*image.size, image_formats.holds_more_than_8_bits(image))


def read_orientation(path: str | Path | None, encoded: bytes | None = None, all_bands: bool = False) -> int:
    """Return the EXIF orientation of an image, 1 to 8; arguments as in `read_header`. Pillow decodes a PNG to find it."""
    if all_bands:
        with _file(path, encoded) as file:
            if _has_lost_bands(file):
                return band_files.bands_header(file)[2]
    with opened(path, encoded) as (image, _):
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else 1


@contextmanager
def _file(path: str | Path | None, encoded: bytes | None) -> Iterator[IO[bytes]]:
    """Open these bytes, or the local file at the path."""
    if encoded is None and path is None:
        raise ValueError("it has neither bytes nor a path")
    if encoded is None and ADDRESS.match(str(path)):
        raise ValueError("it is an address and addresses are not read: give data that holds its images, or local files")
    with open(path, "rb") if encoded is None else BytesIO(encoded) as file:
        yield file


def _has_lost_bands(file: IO[bytes]) -> bool:
    """Return whether a file is a TIFF of which Pillow would lose bands or pages."""
    if not image_formats.is_tiff(file.read(4)):
        return False
    try:
        image_formats.tiff_page(file)
    except UnsupportedFile:
        return True
    return False


@contextmanager
def opened(path: str | Path | None, encoded: bytes | None = None, low_bytes_of: str | None = None) -> Iterator[tuple[Image.Image, IO]]:
    """Open an image, not yet decoded, and its file. low_bytes_of: a raw mode of 16-bit colors; their low bytes are read."""
    with _file(path, encoded) as file:
        page, tags = image_formats.tiff_page(file) if image_formats.is_tiff(file.read(4)) else (0, None)
        with _opened_page(file, page, tags) as image:
            image_formats.check_frames(image)
            if low_bytes_of:
                image_formats.read_low_bytes(image, low_bytes_of)
            yield image, file


def _opened_page(file: IO[bytes], page: int, tags: Any) -> Image.Image:
    """Open the image. tags: those of the page of a TIFF; None for other formats."""
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
        if page:
            image.seek(page)
        return image
    except (UnidentifiedImageError, TypeError, LookupError) as error:  # the last two from damaged tags
        file.seek(0)
        head = file.read(len(LFS_POINTER))
        if not head:
            raise UnsupportedFile("is empty. Replace it, or skip it with --max-bad-images N.") from error
        if head == LFS_POINTER:
            raise UnsupportedFile("is a Git LFS pointer. Run `git lfs pull`.") from error
        if tags is not None:
            raise UnsupportedFile(image_formats.unreadable_tiff(tags)) from error
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation demands."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image


def reject_archives(place: Path) -> None:
    """Raise ValueError for a data set that is an archive or a folder that holds one."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if not named_as_image(path))
    # `datasets` unpacks a file by its first bytes, or when streaming as a ZIP file behind other content.
    archives = (path for path in files if path.is_file() and (Extractor.infer_extractor_format(path) is not None or is_zipfile(path)))
    archive = next(archives, None)
    if archive is not None:
        raise ValueError(f"{archive} is an archive, and archives are not opened. Unpack it, and give a folder without archives.")


def named_as_image(path: Path) -> bool:
    """Return whether all suffixes are those of images: `datasets` reads a.json.png as JSON, and unpacks it."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    return bool(suffixes) and suffixes.issubset(IMAGE_SUFFIXES)


def reject_outside_files(folder: Path) -> None:
    """Raise ValueError if a folder's card (README.md, .huggingface.yaml) names data files outside the folder."""
    for card in cards(folder):
        for pattern in named_files(card):
            if not lies_in(folder, pattern):
                raise ValueError(f"{card} names data files {pattern!r} outside of {folder}. Correct it, or remove {card.name}.")


def cards(folder: Path) -> list[Path]:
    """Return the files of a folder in which `datasets` looks for configurations."""
    return [card for card in (folder / "README.md", folder / ".huggingface.yaml") if card.is_file()]


def named_files(card: Path) -> list[str]:
    """Return the patterns of files and folders that a card's configurations name, also below the folder that each of them names.

    Raises ValueError for an unreadable card.
    """
    try:
        content = DatasetCard.load(card).data if card.suffix == ".md" else yaml.safe_load(card.read_text(encoding="utf-8")) or {}
        files = []
        for configuration in content.get("configs") or []:
            place, patterns = configuration.get("data_dir"), texts(configuration.get("data_files"))
            files += patterns if place is None else [*patterns, f"{place}/", *(f"{place}/{pattern}" for pattern in patterns)]
        return files
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{card} cannot be read as the card of a data set ({type(error).__name__}). Correct or remove it.") from error


def texts(value: Any, depth: int = 3) -> list[str]:
    """Return the texts in nested lists and mappings. Raises ValueError if they are nested deeper than `datasets` allows."""
    value = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, list):
        return [] if value is None else [str(value)]
    if not depth:
        raise ValueError("lists in lists")
    return [text for item in value for text in texts(item, depth - 1)]


def lies_in(folder: Path, pattern: str) -> bool:
    """Return whether all files that a pattern of `datasets` can match lie in the folder; links that the pattern names are followed."""
    if ":" in pattern or ".." in re.split(r"[/\\]", pattern):
        return False
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    return not pattern.startswith("/") and (folder / fixed).resolve().is_relative_to(folder.resolve())
