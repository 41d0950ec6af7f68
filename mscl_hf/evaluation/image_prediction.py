"""From files of images to files of predictions: threads read and write while the network runs on images of one size."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.image_file import pixel_limit, read_image_file, upright_view
from ..data.pixels import BadSample
from .batches import LARGE, in_threads, of_one_size
from .prediction import Predictor
from .prediction_files import CONFIDENCE, OVERLAYS, PROBABILITIES, OpenedImage, PredictedImage, Prediction, PredictionFolder, file_state


class Readable(NamedTuple):
    """An image to predict, and its upright pixels (H, W, C)."""

    image: OpenedImage
    levels: np.ndarray

    @property
    def is_large(self) -> bool:
        return self.image.size[0] * self.image.size[1] > LARGE


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction of many images. image_range, bands: as in `read_image_file`. threads: that read, and as many that write."""

    predictor: Predictor
    folder: PredictionFolder
    image_range: tuple[int, int] | None
    bands: Sequence[int] | None = None
    threads: int = 0

    def run(self, paths: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[int, PredictedImage | str]]:
        """Predict images and write their files.

        Yields the position of each image in the list, with its result or with the reason why it cannot be used, in any order.
        """
        unusable = deque()

        def read(number: int) -> Readable | tuple[int, str]:
            try:
                return self._read(number, paths[number], names[number])
            except BadSample as error:
                return number, str(error)

        def usable() -> Iterator[Readable]:
            for item in in_threads(read, range(len(paths)), self.threads, lambda item: isinstance(item, Readable) and item.is_large):
                if isinstance(item, Readable):
                    yield item
                else:
                    unusable.append(item)

        def write(prediction: Prediction) -> tuple[int, PredictedImage]:
            return prediction.image.number, self.folder.write(prediction)

        groups = of_one_size(usable(), lambda item: item.image.size, self._at_once)
        predictions = (prediction for group in groups for prediction in self._predict(group))
        with pixel_limit(self.folder.max_pixels):  # for all threads: in `read_image_file`, one thread could restore the limit of another
            for result in in_threads(write, predictions, self.threads):
                yield result
                while unusable:
                    yield unusable.popleft()
        yield from unusable

    def _at_once(self, size: tuple[int, int]) -> int:
        return 1 if self.folder.needs_logits else self.predictor.at_once(size, size)

    def _read(self, number: int, path: Path, name: str) -> Readable:
        """Read an image. Raises BadSample for one that cannot be used."""
        try:
            state = file_state(path)
        except OSError as error:
            raise BadSample(f"{path} cannot be read ({error.strerror}). Replace it, or remove it.") from error
        file = read_image_file(path, self.image_range, self.folder.max_pixels, self.bands)
        size = file.levels.shape[:2]
        self.predictor.check_size(size, str(path))
        return Readable(OpenedImage(number, path, name, state, size, file.orientation), file.levels)

    def _predict(self, items: Sequence[Readable]) -> Iterator[Prediction]:
        """Predict images of one size; probabilities are written at once."""
        try:
            if self.folder.needs_logits:
                maps = (self._from_logits(item) for item in items)
            else:
                maps = ((_stored(item.image, ids), None) for item, ids in zip(items, self.predictor.ids([item.levels for item in items])))
            for (image, levels), (ids, confidence) in zip(items, maps):
                yield Prediction(image, ids, confidence, levels if OVERLAYS in self.folder.kinds else None)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{items[0].image.path} needs more memory than the GPU has. Give --eval-batch-size 1; if that is not enough, --mode slide "
                "or a smaller --window, and another --output-dir."
            ) from error

    def _from_logits(self, item: Readable) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids (H, W) uint8 and confidence (H, W) uint8 or None, in the pixel order of the file; probabilities are written."""
        maps = [np.empty(item.image.stored_size, np.uint8) for _ in range(1 + (CONFIDENCE in self.folder.kinds))]
        bands = _filling(self.predictor.bands(item.levels), *(upright_view(array, item.image.orientation) for array in maps))
        if PROBABILITIES in self.folder.kinds:
            self.folder.write_probabilities(item.image, bands)
        else:
            deque(bands, maxlen=0)
        return maps[0], maps[1] if len(maps) > 1 else None


def _stored(image: OpenedImage, ids: Tensor) -> np.ndarray:
    """Return the class ids of an upright image (H, W), uint8 in the pixel order of its file."""
    stored = np.empty(image.stored_size, np.uint8)
    upright_view(stored, image.orientation)[:] = ids.cpu().numpy()
    return stored


def _filling(bands: Iterator[Tensor], ids: np.ndarray, confidence: np.ndarray | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, probabilities (K, rows, W)) of the bands of logits; ids and confidence get their rows before."""
    top = 0
    for band in bands:
        rows = slice(top, top + band.shape[2])
        ids[rows] = band[0].argmax(0).cpu().numpy()
        probabilities = band[0].softmax(0)
        if confidence is not None:
            confidence[rows] = (probabilities.amax(0) * 255).round().byte().cpu().numpy()
        yield top, probabilities
        top = rows.stop
