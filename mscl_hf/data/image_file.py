"""One image file for prediction: its pixels upright, and its EXIF orientation, by which results are turned back."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .image_formats import UnsupportedFile
from .image_io import DECODE_ERRORS, ORIENTATION, decode, opened
from .pixels import BadSample, in_levels, stored_pixels


class ImageFile(NamedTuple):
    """levels: (H, W, 3) RGB in [0, 255], upright, uint8 or float32, see `rgb_array`. orientation: EXIF orientation of the file, 1 to 8."""

    levels: np.ndarray
    orientation: int


def read_image_file(path: Path, image_range: tuple[int, int] | None, max_pixels: int) -> ImageFile:
    """Decode an image file. Raises BadSample, which names it, also for more than max_pixels, before they are decoded.

    image_range: values of black and white in images of more than 8 bits.
    """
    try:
        with pixel_limit(max_pixels):
            with opened(path) as (image, _):
                orientation = image.getexif().get(ORIENTATION, 1)
            stored = stored_pixels(decode(path), lambda column: str(path))
    except Image.DecompressionBombError as error:
        raise BadSample(f"{path} has more than {max_pixels:,} px, the limit. Give a larger --max-pixels, or divide the image.") from error
    except UnsupportedFile as error:
        raise BadSample(f"{path} {str(error).replace('skip it with --max-bad-images N', 'remove it')}") from error
    except BadSample:
        raise
    except DECODE_ERRORS as error:
        raise BadSample(f"{path} cannot be read as an image ({str(error).rstrip('.')}). Replace it, or remove it.") from error
    if stored.dtype != np.uint8:
        _check_range(stored, image_range, path)
    return ImageFile(in_levels(stored, image_range, lambda: str(path)), orientation if orientation in range(1, 9) else 1)


def _check_range(stored: np.ndarray, image_range: tuple[int, int] | None, path: Path) -> None:
    """Raise BadSample for an image of more than 8 bits whose values mostly lie outside of the range."""
    if image_range is None:
        return  # `in_levels` reports it
    low, high = image_range
    if stored.max() <= low or 2 * np.count_nonzero(stored > high) > stored.size:
        raise BadSample(
            f"{path} holds values of {stored.min()} to {stored.max()}, and the image range is {low} to {high}; expected an image stored "
            "like those of training. Store it so."
        )


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow open images of up to max_pixels, without its warning at half of them."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # Pillow raises an error above twice this number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


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
