"""Properties of image files that Pillow does not report: pages and bands of TIFF, frames, lossy compression, bits per band.

Nothing is decoded here; `image_io.decode` calls these functions on the file or on the opened image.
"""

import sys
from typing import IO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2

FULL_BANDS = {2: 3, 5: 4, 6: 3, 8: 3}  # bands of a photometric interpretation (RGB, CMYK, YCbCr, Lab); 1 for the others
PHOTOMETRIC = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
ALPHA = (1, 2)  # values of ExtraSamples
REDUCED_OR_MASK = 5  # bits of NewSubfileType: a reduced-resolution copy, a transparency mask
MOST_PAGES = 10_000
# Pillow reads the high bytes of 16-bit colors. Read by the other raw mode, the same file gives the low bytes.
LOW_BYTES = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
GRAY_ALPHA = "LA;16B"  # of PNG; read as RGBA it gives high and low bytes side by side


class UnsupportedFile(ValueError):
    """An intact file that cannot be used as one image. The message follows the file's name."""


def is_tiff(head: bytes) -> bool:
    return head.startswith(tuple(PREFIXES))


def tiff_page(file: IO[bytes]) -> tuple[int, ImageFileDirectory_v2]:
    """Return index and tags of the page of a TIFF that is the image.

    Raises UnsupportedFile for several pages, and for more bands than gray, palette, RGB or CMYK with a declared alpha band have; ValueError
    for a file without an image.
    """
    pages = tiff_pages(file)
    if len(pages) > 1:
        raise UnsupportedFile(
            f"is a TIFF of {len(pages)} pages; expected one image in a file. Store each page as its own file, or give --bands 1 2 3 if "
            "the pages are the bands of one image."
        )
    _check_bands(pages[0][1])
    return pages[0]


def tiff_pages(file: IO[bytes]) -> list[tuple[int, ImageFileDirectory_v2]]:
    """Return index and tags of each page of a TIFF; thumbnails and reduced-resolution copies are not pages.

    Raises ValueError for a file without an image.
    """
    file.seek(0)
    header = file.read(8)
    header += file.read(8) if header[2] == 43 else b""  # BigTIFF
    pages, offset, visited = [], ImageFileDirectory_v2(header).next, set()
    while offset and offset not in visited and len(visited) < MOST_PAGES:
        visited.add(offset)
        directory = ImageFileDirectory_v2(header)
        file.seek(offset)
        directory.load(file)
        offset, reduced = directory.next, whole(directory, 254) & REDUCED_OR_MASK or whole(directory, 255) == 2
        pages.append((len(pages), directory, bool(reduced)))
    full = [page for page in pages if not page[2]] or pages[:1]
    if not full or len(full) == 1 and 256 not in full[0][1]:
        raise ValueError("it is a damaged TIFF without the tags of its image")
    return [page[:2] for page in full]


def _check_bands(tags: ImageFileDirectory_v2) -> None:
    """Raise UnsupportedFile for bands that Pillow would drop or read with 8 bits."""
    photometric, has_alpha = whole(tags, 262), whole(tags, 338) in ALPHA
    colors = FULL_BANDS.get(photometric, 1)
    bands = whole(tags, 277, colors)
    if bands > colors + (has_alpha and colors != 4):
        meaning = PHOTOMETRIC.get(photometric, f"photometric interpretation {photometric}")
        undeclared = "" if has_alpha else ", no band declared as alpha"
        raise UnsupportedFile(
            f"is a TIFF of {bands} bands ({meaning}{undeclared}); expected 1 (gray or palette) or 3 (RGB), with or without an alpha band, "
            "or 4 (CMYK). Name the bands to read, such as --bands 1 2 3, or store one or three of them as a gray or RGB image."
        )
    if bands > 1 and whole(tags, 258, 1) > 8 and whole(tags, 284, 1) == 2:
        raise UnsupportedFile(
            f"is a TIFF of {whole(tags, 258)} bits that stores one band after another, of which Pillow reads 8 bits; expected pixel after "
            "pixel (PlanarConfiguration 1). Store it so, or as PNG, or give --bands 1 2 3."
        )


def unreadable_tiff(tags: ImageFileDirectory_v2) -> str:
    """Return the message for a TIFF of one page whose pixels Pillow cannot read."""
    photometric = PHOTOMETRIC.get(whole(tags, 262), f"photometric interpretation {whole(tags, 262)}")
    numbers = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(whole(tags, 339, 1), "unknown")
    return (
        f"is a TIFF of {whole(tags, 277, 1)} band(s) of {whole(tags, 258, 1)} bits ({numbers}, {photometric}, compression "
        f"{whole(tags, 259, 1)}), which Pillow cannot read; expected 8-bit or 16-bit gray or RGB. Store it so, as PNG or TIFF."
    )


def whole(tags: ImageFileDirectory_v2, tag: int, default: int = 0) -> int:
    """Return the first value of a tag, or the default if it is absent or no whole number, as in damaged files."""
    value = tags.get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def check_frames(image: Image.Image) -> None:
    """Raise UnsupportedFile for an animation. A JPEG may hold previews and depth maps (MPO) beside its one image."""
    if image.format in ("GIF", "PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise UnsupportedFile(
            f"is an animated {image.format} of {image.n_frames} frames; expected one image in a file. Store each frame as its own file."
        )


def lossy_compression(image: Image.Image, file: IO[bytes]) -> str | None:
    """Return the name of the lossy format of an opened image, or None."""
    if image.format in ("JPEG", "MPO"):
        return "JPEG"
    if image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        return f"TIFF with {image.info['compression'].removeprefix('tiff_').upper()} compression"
    return "lossy WebP" if image.format == "WEBP" and _has_lossy_chunk(file) else None


def _has_lossy_chunk(file: IO[bytes]) -> bool:
    """Return whether a WebP file stores its pixels in a chunk "VP8 "; lossless pixels are in "VP8L"."""
    position = 12
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8 or header[:4] in (b"VP8 ", b"VP8L"):
            return header[:4] == b"VP8 "
        size = int.from_bytes(header[4:], "little")
        position += 8 + size + size % 2


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an opened image are stored, by Pillow's names such as "L;4" or "RGB;16B"; "" without a name."""
    args = image.tile[0].args if image.tile else ""
    args = args[0] if isinstance(args, tuple) and args else args
    return args if isinstance(args, str) else ""


def value_step(image: Image.Image) -> float:
    """Return the factor by which Pillow multiplies stored values: gray of 2 and 4 bits, and PGM of a maximum other than 255 and 65535."""
    codec, args = (image.tile[0].codec_name, image.tile[0].args) if image.tile else ("", ())
    if codec in ("ppm", "ppm_plain") and isinstance(args, tuple) and len(args) == 2:
        return (65535 if image.mode == "I" else 255) / args[1]
    return {"L;2": 85.0, "L;4": 17.0}.get(raw_mode(image).rstrip("IR"), 1.0)


def is_inverted(image: Image.Image) -> bool:
    """Return whether Pillow inverts stored values: a TIFF of at most 8 bits in which 0 is white, whose raw mode ends in I (and R)."""
    return image.format == "TIFF" and "I" in raw_mode(image).partition(";")[2]


def holds_more_than_8_bits(image: Image.Image) -> bool:
    """Return whether an opened image stores integers of more than 8 bits a band."""
    codec, args = (image.tile[0].codec_name, image.tile[0].args) if image.tile else ("", ())
    deep_ppm = codec in ("ppm", "ppm_plain") and isinstance(args, tuple) and len(args) == 2 and args[1] > 255
    return image.mode.startswith("I") or ";16" in raw_mode(image) or deep_ppm


def read_low_bytes(image: Image.Image, colors: str) -> None:
    """Make an opened image of 16-bit colors decode to its low bytes. Raises UnsupportedFile for a raw mode that has no counterpart."""
    low = "RGBA" if colors == GRAY_ALPHA else LOW_BYTES.get(colors)
    if low is None:
        raise UnsupportedFile(
            f"holds 16-bit colors ({image.format}, {colors}) of which 8 bits would be lost; expected 16-bit gray or RGB. Store it as PNG, "
            "or with 8 bits."
        )
    image.tile = [tile._replace(args=low if isinstance(tile.args, str) else (low, *tile.args[1:])) for tile in image.tile]


def joined_bytes(high: np.ndarray, low: np.ndarray, colors: str) -> np.ndarray:
    """Return (H, W, 2 to 4) uint16 of the two readings (H, W, 3 or 4) uint8 of 16-bit colors."""
    if colors == GRAY_ALPHA:  # `low` holds all four bytes
        high, low = low[:, :, ::2], low[:, :, 1::2]
    return high * np.uint16(256) + low


def upright_view(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of an array (H, W, ...) in the pixel order of the file, turned as the EXIF orientation demands.

    What is written into the view lies in the array as the pixels lie in the file.
    """
    if orientation in (2, 3):
        stored = stored[:, ::-1]
    if orientation in (3, 4):
        stored = stored[::-1]
    if orientation in (6, 7):
        stored = stored[::-1]
    if orientation in (7, 8):
        stored = stored[:, ::-1]
    return stored.swapaxes(0, 1) if orientation >= 5 else stored
