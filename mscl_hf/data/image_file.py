"""One image file for prediction: its pixels upright, and its EXIF orientation, by which results are turned back."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .image_formats import UnsupportedFile, upright_view  # noqa: F401
from .image_io import DECODE_ERRORS, decode, read_orientation
from .pixels import BadSample, in_levels, stored_pixels


class ImageFile(NamedTuple):
    """levels: (H, W, 3) RGB, or (H, W, bands), in [0, 255], upright, uint8 or float32, see `rgb_array`. orientation: EXIF orientation, 1 to
    8, of the file."""

    levels: np.ndarray
    orientation: int


def read_image_file(
    path: Path, image_range: tuple[int, int] | None, max_pixels: int, bands: Sequence[int] | None = None
) -> ImageFile:
    """Decode an image file. Raises BadSample, which names it, also for more than max_pixels, before they are decoded.

    image_range: values of black and white in images of more than 8 bits. bands: those to read, see `stored_pixels`.
    """
    try:
        with pixel_limit(max_pixels):
            orientation = read_orientation(path, None, bands is not None)
            stored = stored_pixels(decode(path, None, bands is not None), lambda column: str(path), bands)
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
    return ImageFile(in_levels(stored, image_range, lambda: str(path)), orientation)


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
