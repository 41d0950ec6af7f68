"""TIFF files whose bands Pillow would lose: more than RGB and alpha, 16 bits band after band, or a page for each band. Read by tifffile.

Only the pages that `image_formats.tiff_pages` lists are read: tifffile's series would open other files that an OME-TIFF names.
"""

from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from .image_formats import UnsupportedFile, tiff_pages, upright_view, whole

BANDS_OF_PILLOW = 4  # Pillow's limit is a number of pixels, which have up to four bands
INSTALL = "Install tifffile and imagecodecs by pip install 'mscl_hf[tiff]'."


def bands_header(file: IO[bytes]) -> tuple[int, int, int, int, int]:
    """Return width and height in px as stored, EXIF orientation, number of bands, and bits of a band.

    Raises UnsupportedFile for pages that are not the bands of one image; Pillow's DecompressionBombError for too many pixels.
    """
    tags = [tags for _, tags in tiff_pages(file)]
    headers = {_of_page(page) for page in tags}
    width, height, orientation, bands, bits = _of_page(tags[0])
    if len(tags) > 1 and (len(headers) > 1 or bands != 1):
        raise UnsupportedFile(
            f"is a TIFF of {len(tags)} pages, of which the first has {width} x {height} px and {bands} band(s); expected pages of one size "
            "and one band each, which are read as the bands of one image. Store each page as its own file."
        )
    bands *= len(tags)
    numbers, limit = width * height * max(bands, BANDS_OF_PILLOW), 2 * BANDS_OF_PILLOW * (Image.MAX_IMAGE_PIXELS or 2**62)
    if numbers > limit:
        raise Image.DecompressionBombError(f"{width} x {height} px of {bands} bands are {numbers:,} values; expected at most {limit:,.0f}")
    return width, height, orientation, bands, bits


def _of_page(tags: ImageFileDirectory_v2) -> tuple[int, int, int, int, int]:
    orientation = whole(tags, 274, 1)
    return whole(tags, 256), whole(tags, 257), orientation if orientation in range(1, 9) else 1, whole(tags, 277, 1), whole(tags, 258, 1)


def read_bands(file: IO[bytes]) -> np.ndarray:
    """Return all bands (H, W, bands) of a TIFF as stored, upright. Raises UnsupportedFile, ValueError and as `bands_header`."""
    *_, orientation, _, _ = bands_header(file)
    numbers = [number for number, _ in tiff_pages(file)]
    try:
        import tifffile
    except ImportError as error:
        raise UnsupportedFile(f"is a TIFF whose bands are read by tifffile, which is not installed. {INSTALL}") from error
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = [_pixels(tiff.pages[number]) for number in numbers]
    except UnsupportedFile:
        raise
    except Exception as error:  # damaged files fail anywhere in tifffile and its codecs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "imagecodecs" in reason or isinstance(error, ImportError):
            raise UnsupportedFile(f"is a TIFF in a compression that needs imagecodecs, which is not installed. {INSTALL}") from error
        raise ValueError(f"it is a damaged TIFF: {reason}") from error
    return upright_view(np.concatenate(pages, axis=2) if len(pages) > 1 else pages[0], orientation)


def _pixels(page: Any) -> np.ndarray:
    """Return a page of tifffile as (H, W, bands)."""
    axes = page.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise UnsupportedFile(f"is a TIFF of axes {axes}; expected rows, columns and bands. Store it so.")
    pixels = page.asarray()
    return pixels[:, :, None] if axes == "YX" else np.moveaxis(pixels, 0, 2) if axes == "SYX" else pixels
