"""The output folder of `mscl-predict`: masks, overlays, confidence and probabilities of each image, and a table.

Letters: K classes, H W height and width of the image in pixels, as stored in its file.
"""

import csv
import io
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..data.image_file import ImageFile, pixel_limit, read_image_file, upright_view
from ..data.image_io import DECODE_ERRORS, ORIENTATION, opened
from ..data.pixels import BadSample, displayed
from ..messages import first_three
from ..records.files import replacing
from ..visual.legend import draw_legend
from ..visual.palette import class_colors, overlay
from .batches import LARGE, in_threads, of_one_size
from .prediction import Predictor

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
class OpenedImage:
    """An image to predict. number: its position in the list. state: of its file. file: its pixels."""

    number: int
    path: Path
    name: str
    state: str
    file: ImageFile

    @property
    def size(self) -> tuple[int, int]:
        """The size (H, W) of the upright image."""
        return self.file.levels.shape[:2]

    @property
    def is_large(self) -> bool:
        return self.size[0] * self.size[1] > LARGE


@dataclass(frozen=True)
class Prediction:
    """ids (H, W) uint8 and confidence (H, W) uint8 or None of an image, in the pixel order of its file. levels: None without overlays."""

    image: OpenedImage
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
                if image.info.get(SOURCE) != _state(path):
                    return None
                ids = np.asarray(image)
        except DECODE_ERRORS:
            return None
        return self._result(path, mask, ids)

    def predict(
        self, predictor: Predictor, paths: Sequence[Path], names: Sequence[str], image_range: tuple[int, int] | None,
        bands: Sequence[int] | None = None, threads: int = 0,
    ) -> Iterator[tuple[int, PredictedImage | str]]:  # fmt: skip
        """Predict images and write their files; threads read and write while the network runs.

        Yields the position of each image in the list, with its result or with the reason why it cannot be used, in any order.
        """
        unusable = deque()

        def read(number: int) -> OpenedImage | tuple[int, str]:
            try:
                return self._open(predictor, number, paths[number], names[number], image_range, bands)
            except BadSample as error:
                return number, str(error)

        def usable() -> Iterator[OpenedImage]:
            for image in in_threads(read, range(len(paths)), threads, lambda image: isinstance(image, OpenedImage) and image.is_large):
                if isinstance(image, OpenedImage):
                    yield image
                else:
                    unusable.append(image)

        groups = of_one_size(usable(), lambda image: image.size, lambda size: 1 if self._needs_logits else predictor.at_once(size, size))
        predictions = (prediction for group in groups for prediction in self._predict(predictor, group))
        with pixel_limit(self.max_pixels):  # for all threads: in `read_image_file`, one thread could restore the limit of another
            for result in in_threads(lambda prediction: (prediction.image.number, self._write(prediction)), predictions, threads):
                yield result
                while unusable:
                    yield unusable.popleft()
        yield from unusable

    @property
    def _needs_logits(self) -> bool:
        """Whether more than the class ids is written."""
        return bool({CONFIDENCE, PROBABILITIES} & set(self.kinds))

    def _open(
        self, predictor: Predictor, number: int, path: Path, name: str, image_range: tuple[int, int] | None, bands: Sequence[int] | None
    ) -> OpenedImage:
        """Read an image. Raises BadSample for one that cannot be used."""
        try:
            state = _state(path)
        except OSError as error:
            raise BadSample(f"{path} cannot be read ({error.strerror}). Replace it, or remove it.") from error
        image = read_image_file(path, image_range, self.max_pixels, bands)
        predictor.check_size(image.levels.shape[:2], str(path))
        return OpenedImage(number, path, name, state, image)

    def _predict(self, predictor: Predictor, images: Sequence[OpenedImage]) -> Iterator[Prediction]:
        """Predict images of one size; probabilities are written at once."""
        try:
            if self._needs_logits:
                for image in images:
                    yield self._prediction(image, *self._compute(predictor, image.file, image.name))
                return
            for image, predicted in zip(images, predictor.ids([image.file.levels for image in images])):
                ids = np.empty(_stored_size(image.file), np.uint8)
                upright_view(ids, image.file.orientation)[:] = predicted.cpu().numpy()
                yield self._prediction(image, ids, None)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{images[0].path} needs more memory than the GPU has. Give --eval-batch-size 1; if that is not enough, --mode slide or a "
                "smaller --window, and another --output-dir."
            ) from error

    def _prediction(self, image: OpenedImage, ids: np.ndarray, confidence: np.ndarray | None) -> Prediction:
        levels = image.file.levels if OVERLAYS in self.kinds else None
        return Prediction(replace(image, file=image.file._replace(levels=None)), ids, confidence, levels)

    def _write(self, prediction: Prediction) -> PredictedImage:
        """Write the files of a prediction, the mask last."""
        image, ids = prediction.image, prediction.ids
        orientation, name = image.file.orientation, image.name
        if prediction.confidence is not None:
            _save(Image.fromarray(prediction.confidence), self.path(CONFIDENCE, name), orientation)
        if OVERLAYS in self.kinds:
            with replacing(self.path(OVERLAYS, name)) as file:
                Image.fromarray(_overlay(prediction.levels, upright_view(ids, orientation), self.classes)).save(file, format="PNG")
        mask = self.path(MASKS, name)
        picture = Image.fromarray(ids)
        picture.putpalette(class_colors(self.classes).tobytes())
        text = PngImagePlugin.PngInfo()
        text.add_text(SOURCE, image.state)
        _save(picture, mask, orientation, pnginfo=text)
        return self._result(image.path, mask, ids)

    def _compute(self, predictor: Predictor, image: ImageFile, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids (H, W) uint8 and confidence (H, W) uint8 or None, in the pixel order of the file; probabilities are written."""
        stored_size = _stored_size(image)
        ids = np.empty(stored_size, np.uint8)
        confidence = np.empty(stored_size, np.uint8) if CONFIDENCE in self.kinds else None
        outputs = [None if array is None else upright_view(array, image.orientation) for array in (ids, confidence)]
        bands = predictor.bands(image.levels)
        if PROBABILITIES not in self.kinds:
            for _ in _written(bands, *outputs):
                pass
            return ids, confidence
        with replacing(self.path(PROBABILITIES, name)) as file:
            self._save_probabilities(_written(bands, *outputs), (*stored_size, len(self.classes)), image.orientation, file)
        return ids, confidence

    def _save_probabilities(
        self, bands: Iterator[tuple[int, Tensor]], shape: tuple[int, ...], orientation: int, file: Path
    ) -> None:
        """Write an npz with `probabilities` of this shape (H, W, K), float16, through a temporary file instead of memory."""
        array_file = file.with_name(f"{file.name}.npy")
        try:
            stored = np.lib.format.open_memmap(array_file, mode="w+", dtype=np.float16, shape=shape)
            view = upright_view(stored, orientation)
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


def _stored_size(image: ImageFile) -> tuple[int, int]:
    """Return (H, W) in the pixel order of the file."""
    height, width = image.levels.shape[:2]
    return (width, height) if image.orientation >= 5 else (height, width)


def failure_message(failed: dict[Path, str], total: int) -> str:
    """Return one sentence about the images that could not be predicted, with their number."""
    names = first_three([str(path) for path in failed])
    return (
        f"{len(failed)} of {total} images were not predicted: {names}; {FAILED} has the reasons. Correct or remove them; the same command "
        "predicts those that are missing."
    )


def _written(bands: Iterator[Tensor], ids: np.ndarray, confidence: np.ndarray | None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, probabilities (K, rows, W)) of the bands of logits; ids and confidence of their rows are written before."""
    top = 0
    for band in bands:
        rows = slice(top, top + band.shape[2])
        ids[rows] = band[0].argmax(0).cpu().numpy()
        probabilities = band[0].softmax(0)
        if confidence is not None:
            confidence[rows] = (probabilities.amax(0) * 255).round().byte().cpu().numpy()
        yield top, probabilities
        top = rows.stop


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


def _state(path: Path) -> str:
    """Return size [bytes] and time of the last change [ns] of a file."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with replacing(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))  # names of files may be invalid Unicode
