"""Arrays of decoded images: levels in [0, 255] of RGB or of chosen bands for images, stored ids for masks."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from .class_colors import ColorTable, listed_colors, suggested_table
from .image_io import upright

INDEX_MODES = ("1", "P", "L", "I", "I;16", "I;16B", "I;16L")
BANDS_AS_STORED = ("L", "LA", "RGB", "RGBA", "CMYK")
BAND_MODES = ("LA", "PA", "RGB", "RGBA")  # read as ids if all bands of a mask are equal
MOST_COLORS = 12  # named in a message
COLORS_OF_A_TABLE = 40  # up to which a message suggests a table
SMOOTHED = (
    "So many colors come from anti-aliasing, smooth resizing or a lossy format: export the masks again as PNG, without anti-aliasing and "
    "with nearest-neighbor resampling."
)
COLORS_OF_A_MASK = 1000  # counted; a photograph has millions


class BadSample(ValueError):
    """An image or mask that cannot be used; its message names file, fault and remedy. unknown_ids, unknown_colors: those of no class."""

    def __init__(self, message: str, unknown_ids: Sequence[int] = (), unknown_colors: Counter | None = None):
        super().__init__(message)
        self.unknown_ids, self.unknown_colors = unknown_ids, unknown_colors or Counter()


class ColorMask(BadSample):
    """One or several masks of colors. colors: pixels of the most common colors (R, G, B). pixels: those of all colors."""

    def __init__(self, file: str, mode: str, colors: Counter, pixels: int, masks: int = 1):
        self.file, self.mode, self.colors, self.pixels = file, mode, colors, pixels
        of = f"the {masks} masks read hold" if masks > 1 else "it holds"
        if len(colors) > COLORS_OF_A_TABLE:
            remedy = SMOOTHED
        else:
            remedy = f"Save {suggested_table(colors)} with your names as colors.json, and give --class-colors colors.json"
        super().__init__(
            f"the mask {file} has mode {mode} with colors, and {of} {listed_colors(colors, pixels, MOST_COLORS)}; expected one class id a "
            f"pixel (palette or gray), or a table of colors. {remedy}"
        )

    @classmethod
    def of_all(cls, faults: list["ColorMask"]) -> "ColorMask":
        """Return one error for several masks, with the colors of all."""
        colors = sum((fault.colors for fault in faults), Counter())
        return cls(faults[0].file, faults[0].mode, colors, sum(fault.pixels for fault in faults), len(faults))

    @classmethod
    def of_array(cls, file: str, mode: str, bands: np.ndarray) -> "ColorMask":
        """Return the error for a mask (H, W, 3) of 8 or 16 bits a band."""
        packed = np.zeros(bands.shape[:2], np.uint64)  # numbers are sorted much faster than rows
        for band in range(3):
            packed = packed << np.uint64(16) | bands[:, :, band]
        numbers, counts = np.unique(packed, return_counts=True)
        most_common = np.argsort(-counts, kind="stable")[:COLORS_OF_A_MASK]
        colors = {tuple(int(numbers[i]) >> shift & 0xFFFF for shift in (32, 16, 0)): int(counts[i]) for i in most_common}
        return cls(file, mode, Counter(colors), packed.size)


def unknown_colors_remedy(colors: Counter) -> str:
    """Return what to do about colors that no table names."""
    if len(colors) > COLORS_OF_A_TABLE:
        return SMOOTHED
    flags = " ".join(",".join(map(str, color)) for color, _ in colors.most_common())
    return f"Add them to the table, or ignore these pixels by --ignored-colors {flags}"


def rgb_array(
    image: Image.Image | np.ndarray, file_of: Callable[[str], str], image_range: tuple[int, int] | None = None,
    bands: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Return (H, W, 3) RGB levels in [0, 255], upright, as transformers' pipelines read it: alpha is dropped, a transparent color is white.

    uint8 without a range. With a range, float32: values of more than 8 bits are scaled from it to [0, 255] and clipped.
    bands: return these bands (H, W, bands) instead of RGB, see `stored_pixels`.
    Raises BadSample for an image of more than 8 bits without a range.
    """
    return in_levels(stored_pixels(image, file_of, bands), image_range, lambda: file_of("image"))


def stored_pixels(
    image: Image.Image | np.ndarray, file_of: Callable[[str], str], bands: Sequence[int] | None = None
) -> np.ndarray:
    """Return (H, W, 3) RGB, upright: uint8, or int32 stored values of an image of more than 8 bits.

    bands: return (H, W, bands) of these instead, also float32. They are counted from 1; an alpha band is the last one, gray is a single
    one, and a palette is RGB.
    image: as `decode` returns it, with all_bands if bands are given. Raises BadSample for a band that the image lacks.
    """
    if bands is not None:
        return _chosen_bands(_all_bands(image, file_of), bands, file_of)
    if isinstance(image, np.ndarray):  # 16-bit colors, with or without alpha
        colors = image[:, :, :3] if image.shape[2] > 2 else np.repeat(image[:, :, :1], 3, axis=2)
        return colors.astype(np.int32)
    image = upright(image)
    if image.mode.startswith("I"):
        return np.repeat(_gray_values(image), 3, axis=2)
    if image.mode == "F":
        raise BadSample(f"{file_of('image')} holds floating-point pixels of unknown range; expected integers. Store it with 8 or 16 bits.")
    if isinstance(image.info.get("transparency"), bytes):  # Pillow warns when such a palette is turned into RGB directly
        image = image.convert("RGBA")
    return convert_to_rgb(image.convert("RGB"), return_numpy=True)


def _gray_values(image: Image.Image) -> np.ndarray:
    """Return the stored values (H, W, 1) int32 of gray of more than 8 bits."""
    gray, step = np.asarray(image, dtype=np.int32), image.info.get("step", 1)
    return (gray if step == 1 else np.rint(gray / step).astype(np.int32))[:, :, None]


def _all_bands(image: Image.Image | np.ndarray, file_of: Callable[[str], str]) -> np.ndarray:
    """Return all bands (H, W, bands), upright: uint8, or int32 stored values of more than 8 bits, or float32."""
    if not isinstance(image, np.ndarray):
        image = upright(image)
        if image.mode.startswith("I"):
            return _gray_values(image)
        if image.mode == "F":
            return np.asarray(image)[:, :, None]
        if image.mode not in BANDS_AS_STORED:
            image = image.convert("L" if image.mode == "1" else "RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        image = np.asarray(image)
        return image if image.ndim == 3 else image[:, :, None]
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "f":
        return image.astype(np.float32)
    if image.dtype.kind not in "iu" or image.dtype.itemsize > 2 and (image.min() < -(2**31) or image.max() >= 2**31):
        raise BadSample(f"{file_of('image')} holds {image.dtype} values beyond 32 bits; expected integers of 8 or 16 bits. Store it so.")
    return image.astype(np.int32)


def _chosen_bands(image: np.ndarray, bands: Sequence[int], file_of: Callable[[str], str]) -> np.ndarray:
    """Return these bands of an image (H, W, all bands)."""
    if max(bands) > image.shape[2]:
        raise BadSample(
            f"{file_of('image')} has {image.shape[2]} band(s); expected at least {max(bands)}, since the bands {' '.join(map(str, bands))} "
            "are read. Correct --bands, or the image."
        )
    return np.ascontiguousarray(image[:, :, [band - 1 for band in bands]])


def in_levels(stored: np.ndarray, image_range: tuple[int, int] | None, name: Callable[[], str]) -> np.ndarray:
    """Scale the pixels of `stored_pixels` as `rgb_array` does; NaN becomes 0. 8-bit values are levels already, whatever the range."""
    if stored.dtype == np.uint8:
        return stored if image_range is None else stored.astype(np.float32)
    if image_range is None:
        raise BadSample(
            f"{name()} holds more than 8 bits and there is no image range; expected the values of black and white. "
            "Give --image-range LOW HIGH (0 65535 for all 16 bits), or a model that has a range."
        )
    low, high = image_range
    levels = ((stored - float(low)) * 255 / (high - low)).clip(0, 255).astype(np.float32)
    return np.nan_to_num(levels, copy=False) if stored.dtype.kind == "f" else levels


def index_array(mask: Image.Image | np.ndarray, file_of: Callable[[str], str], colors: ColorTable | None = None) -> np.ndarray:
    """Return the stored ids (H, W): the indices of a palette image, whose colors are only for display, and the values of gray, also if
    stored as RGB, with an opaque alpha band, as GIF, or as TIFF in which 0 is white. With a table of colors, the ids that it gives to the
    colors, also of a palette. Raises BadSample for lossy formats and unknown colors, ColorMask for colors without a table."""
    array = isinstance(mask, np.ndarray)
    lossy, step = (None, 1) if array else (mask.info.get("lossy"), mask.info.get("step", 1))
    if lossy:
        raise BadSample(
            f"the mask {file_of('mask')} is a {lossy}, which changes ids along edges; expected a lossless format. Export the masks again "
            "from their source as PNG: converting this file does not restore the ids."
        )
    if colors is not None:
        return _ids_of_colors(mask, file_of, colors)
    if array or mask.mode in BAND_MODES:
        ids = _ids_of_bands(mask if array else np.asarray(upright(mask)), "16-bit" if array else mask.mode, file_of)
    elif mask.mode == "P" and mask.info.get("format") == "GIF":
        ids = _ids_of_bands(np.asarray(upright(mask).convert("RGBA")), "P of GIF", file_of)
    elif mask.mode in INDEX_MODES:
        ids = np.asarray(upright(mask), dtype=np.uint8 if mask.mode in ("1", "P", "L") else np.int64)
        if mask.info.get("inverted"):
            ids = (1 if mask.mode == "1" else 255) - ids
    elif mask.mode == "F":
        raise BadSample(f"the mask {file_of('mask')} holds floating-point pixels; expected ids. Store it as 8-bit or 16-bit gray.")
    else:
        raise ColorMask.of_array(file_of("mask"), mask.mode, np.asarray(mask.convert("RGB")))
    return ids if step == 1 else np.rint(ids / step).astype(ids.dtype)


def _ids_of_bands(bands: np.ndarray, mode: str, file_of: Callable[[str], str]) -> np.ndarray:
    """Return ids (H, W) of gray or RGB (H, W, 2 to 4) with or without alpha."""
    colors = _without_alpha(bands, file_of)
    if (colors != colors[:, :, :1]).any():
        raise ColorMask.of_array(file_of("mask"), mode, colors)
    return colors[:, :, 0] if bands.dtype == np.uint8 else colors[:, :, 0].astype(np.int64)


def _without_alpha(bands: np.ndarray, file_of: Callable[[str], str]) -> np.ndarray:
    """Return (H, W, 1 or 3) of bands (H, W, 2 to 4). Raises BadSample unless alpha is opaque."""
    count = bands.shape[2]
    if count in (2, 4) and (bands[:, :, -1] != np.iinfo(bands.dtype).max).any():
        raise BadSample(
            f"the mask {file_of('mask')} has an alpha band that is not opaque everywhere; expected one class id a pixel. "
            "Store it as gray or palette, with the ignored id where it is transparent."
        )
    return bands[:, :, : 3 if count > 2 else 1]


def _ids_of_colors(mask: Image.Image | np.ndarray, file_of: Callable[[str], str], table: ColorTable) -> np.ndarray:
    """Return the train ids (H, W) uint8 of a mask's colors. Raises BadSample."""
    if not isinstance(mask, np.ndarray):
        mask = upright(mask)
        if mask.mode == "F" or mask.mode.startswith("I"):
            raise BadSample(f"the mask {file_of('mask')} has mode {mask.mode}; expected colors of 8 bits. Leave out --class-colors.")
        has_alpha = "A" in mask.getbands() or "transparency" in mask.info
        mask = np.asarray(mask.convert("RGBA" if has_alpha else "RGB"))
    colors = _without_alpha(mask, file_of)
    ids, unknown = table.train_ids(np.broadcast_to(colors, (*colors.shape[:2], 3)))
    if unknown:
        listed = listed_colors(unknown, ids.size, MOST_COLORS)
        message = f"the mask {file_of('mask')} holds colors that --class-colors does not name: {listed}. {unknown_colors_remedy(unknown)}"
        raise BadSample(message, unknown_colors=unknown)
    return ids


def resized(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling, box: tuple[float, ...] | None = None) -> np.ndarray:
    """Resize (H, W) or (H, W, bands) to a (width, height) by Pillow. box: the part, x0, y0, x1, y1 in px. Integers of more than 8 bits
    become float32. All but 8-bit RGB is resized band by band: Pillow would multiply four bands by the last one, as alpha."""
    if is_rgb_or_one_band(pixels):
        return np.asarray(Image.fromarray(pixels).resize(size, resample, box=box))
    number = np.uint8 if pixels.dtype == np.uint8 else np.float32
    bands = (np.ascontiguousarray(pixels[:, :, band], dtype=number) for band in range(pixels.shape[2]))
    return np.stack([resized(band, size, resample, box) for band in bands], axis=2)


def is_rgb_or_one_band(pixels: np.ndarray) -> bool:
    """Return whether Pillow has a mode for (H, W) or (H, W, bands) in which the bands do not depend on each other."""
    return pixels.ndim == 2 or pixels.dtype == np.uint8 and pixels.shape[2] == 3


def displayed(levels: np.ndarray) -> np.ndarray:
    """Return levels (H, W, bands) in [0, 255] as (H, W, 3) uint8, for pictures: the first three bands, or the first one as gray."""
    if levels.shape[2] != 3:
        levels = levels[:, :, :3] if levels.shape[2] > 3 else np.repeat(levels[:, :, :1], 3, axis=2)
    return levels if levels.dtype == np.uint8 else np.rint(levels).clip(0, 255).astype(np.uint8)
