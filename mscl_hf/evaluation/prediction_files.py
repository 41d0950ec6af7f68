"""The output folder of `mscl-predict`: masks, overlays, confidence and probabilities of each image, and a table.

Letters: K classes, H W height and width of the image in pixels, as stored in its file.
"""

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..data.image_file import pixel_limit, upright_view
from ..data.image_io import DECODE_ERRORS, ORIENTATION, opened
from ..data.pixels import displayed
from ..messages import first_three
from ..records.files import replacing
from ..visual.legend import draw_legend
from ..visual.palette import class_colors, overlay

MASKS, OVERLAYS, CONFIDENCE, PROBABILITIES = "masks", "overlays", "confidence", "probabilities"
OUTPUT_KINDS = (OVERLAYS, CONFIDENCE, PROBABILITIES)  # beside masks
TABLE, CLASSES, LEGEND, FAILED = "predictions.csv", "classes.csv", "legend.png", "failed.csv"
SOURCE = "source"  # text in a mask: size and time of the image that it was predicted from
MAX_CLASSES = 255  # class ids are 8 bits, and 255 stands for no class
PIXELS_AT_ONCE = 2**22  # pixels of an overlay that are computed at once
OPACITY = 0.5  # of the colors: the image has to be recognized without the one beside it
FASTEST = 1  # compression level of zip: probabilities compress little


@dataclass(frozen=True)
class PredictedImage:
    """path: of the image. mask: of its mask. width, height: as stored. pixels: (K) of each class."""

    path: Path
    mask: Path
    width: int
    height: int
    pixels: tuple[int, ...]

    @property
    def shares(self) -> list[float]:
        """The share of each class, in [0, 1]."""
        return [count / (self.width * self.height) for count in self.pixels]


@dataclass(frozen=True)
class ImageInfo:
    """An image to predict. number: its position in the list. state: of its file. size: (H, W), upright. orientation: that of EXIF."""

    number: int
    path: Path
    name: str
    state: str
    size: tuple[int, int]
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """The size (H, W) in the pixel order of the file."""
        return self.size[::-1] if self.orientation >= 5 else self.size


@dataclass(frozen=True)
class Prediction:
    """ids (H, W) uint8 and confidence (H, W) uint8 or None of an image, in the pixel order of its file. levels: None without overlays."""

    info: ImageInfo
    ids: np.ndarray
    confidence: np.ndarray | None
    levels: np.ndarray | None


@dataclass(frozen=True)
class PredictionFolder:
    """Where predictions are written. kinds: those of OUTPUT_KINDS that are written. max_pixels: of an image, see `read_image_file`."""

    folder: Path
    classes: tuple[str, ...]
    kinds: tuple[str, ...]
    max_pixels: int

    def __post_init__(self):
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(f"--model has {len(self.classes)} classes; expected at most {MAX_CLASSES}. Give another model.")

    def path(self, kind: str, name: str) -> Path:
        """Return the file of one kind for the image of this name."""
        return self.folder / kind / f"{name}{'.npz' if kind == PROBABILITIES else '.png'}"

    def finished(self, path: Path, name: str) -> PredictedImage | None:
        """Return what an earlier run has written for an image; None where a file is missing, damaged, or of another state of the image."""
        mask = self.path(MASKS, name)
        if not all(self.path(kind, name).is_file() for kind in (MASKS, *self.kinds)):
            return None
        try:
            with pixel_limit(self.max_pixels), opened(mask) as (image, _):
                if image.info.get(SOURCE) != file_state(path):
                    return None
                ids = np.asarray(image)
        except DECODE_ERRORS:
            return None
        return self._result(path, mask, ids)

    @property
    def needs_logits(self) -> bool:
        """Whether more than the class ids is written."""
        return bool({CONFIDENCE, PROBABILITIES} & set(self.kinds))

    def write(self, prediction: Prediction) -> PredictedImage:
        """Write the files of a prediction except its probabilities, the mask last."""
        info, ids = prediction.info, prediction.ids
        if prediction.confidence is not None:
            _save(Image.fromarray(prediction.confidence), self.path(CONFIDENCE, info.name), info.orientation)
        if OVERLAYS in self.kinds:
            with replacing(self.path(OVERLAYS, info.name)) as file:
                Image.fromarray(_overlay(prediction.levels, upright_view(ids, info.orientation), self.classes)).save(file, format="PNG")
        mask = self.path(MASKS, info.name)
        picture = Image.fromarray(ids)
        picture.putpalette(class_colors(self.classes).tobytes())
        text = PngImagePlugin.PngInfo()
        text.add_text(SOURCE, info.state)
        _save(picture, mask, info.orientation, pnginfo=text)
        return self._result(info.path, mask, ids)

    def write_probabilities(self, info: ImageInfo, bands: Iterator[tuple[int, Tensor]]) -> None:
        """Write an npz with `probabilities` (H, W, K), float16, through a temporary file instead of memory.

        bands: the first row of each band of the upright image, and its probabilities (K, rows, width).
        """
        with replacing(self.path(PROBABILITIES, info.name)) as file:
            array_file = file.with_name(f"{file.name}.npy")
            try:
                shape = (*info.stored_size, len(self.classes))
                stored = np.lib.format.open_memmap(array_file, mode="w+", dtype=np.float16, shape=shape)
                view = upright_view(stored, info.orientation)
                for top, probabilities in bands:
                    view[top : top + probabilities.shape[1]] = probabilities.permute(1, 2, 0).cpu().numpy()
                stored.flush()
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=FASTEST) as archive:
                    archive.write(array_file, f"{PROBABILITIES}.npy")
            finally:
                array_file.unlink(missing_ok=True)

    def _result(self, path: Path, mask: Path, ids: np.ndarray) -> PredictedImage:
        pixels = np.bincount(ids.ravel(), minlength=len(self.classes))
        return PredictedImage(path, mask, ids.shape[1], ids.shape[0], tuple(pixels.tolist()))

    def write_classes(self) -> None:
        """Write classes.csv: id, name and color of each class; with overlays also legend.png."""
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(self.classes)]
        rows = [(i, name, color) for i, (name, color) in enumerate(zip(self.classes, colors))]
        _write_csv(self.folder / CLASSES, ("id", "name", "color"), rows)
        if OVERLAYS in self.kinds:
            with replacing(self.folder / LEGEND) as file:
                draw_legend(self.classes, file)

    def write_table(self, images: Sequence[PredictedImage], failed: dict[Path, str]) -> None:
        """Write predictions.csv, a row for each predicted image, and failed.csv where images could not be predicted."""
        rows = [
            (image.path, image.mask.relative_to(self.folder).as_posix(), image.width, image.height, *(f"{x:.6f}" for x in image.shares))
            for image in images
        ]
        _write_csv(self.folder / TABLE, ("image", "mask", "width", "height", *(f"share_{name}" for name in self.classes)), rows)
        (self.folder / FAILED).unlink(missing_ok=True)
        if failed:
            _write_csv(self.folder / FAILED, ("image", "reason"), list(failed.items()))


def failure_message(failed: dict[Path, str], total: int) -> str:
    """Return one sentence about the images that could not be predicted, with their number."""
    names = first_three([str(path) for path in failed])
    return (
        f"{len(failed)} of {total} images were not predicted: {names}; {FAILED} has the reasons. Correct or remove them; the same command "
        "predicts those that are missing."
    )


def _overlay(levels: np.ndarray, ids: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the upright image with the colors of its classes over it, (H, W, 3) uint8, a few rows at a time."""
    picture = np.empty((*levels.shape[:2], 3), np.uint8)
    step = max(1, PIXELS_AT_ONCE // levels.shape[1])
    for top in range(0, len(levels), step):
        rows = slice(top, top + step)
        picture[rows] = overlay(displayed(levels[rows]), ids[rows], classes, OPACITY)
    return picture


def _save(picture: Image.Image, file: Path, orientation: int, **options) -> None:
    """Write a PNG that has the EXIF orientation of its image, so that programs turn both alike."""
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = orientation
    with replacing(file) as temporary:
        picture.save(temporary, format="PNG", **options)


def file_state(path: Path) -> str:
    """Return size [bytes] and time of the last change [ns] of a file."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with replacing(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))  # names of files may be invalid Unicode
