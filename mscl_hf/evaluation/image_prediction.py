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
from .inference import argmax
from .prediction import Predictor
from .prediction_files import CONFIDENCE, OVERLAYS, PROBABILITIES, ImageInfo, PredictedImage, Prediction, PredictionFolder, file_state


class LoadedImage(NamedTuple):
    """An image to predict, and its upright pixels (H, W, C)."""

    info: ImageInfo
    levels: np.ndarray

    @property
    def is_large(self) -> bool:
        return self.info.size[0] * self.info.size[1] > LARGE


@dataclass(frozen=True)
class PredictionPipeline:
    """The prediction of many images. image_range, bands: as in `read_image_file`. threads: number that read, and number that write."""

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

        def read(number: int) -> LoadedImage | tuple[int, str]:
            try:
                return self._read(number, paths[number], names[number])
            except BadSample as error:
                return number, str(error)

        def usable() -> Iterator[LoadedImage]:
            for item in in_threads(read, range(len(paths)), self.threads, lambda item: isinstance(item, LoadedImage) and item.is_large):
                if isinstance(item, LoadedImage):
                    yield item
                else:
                    unusable.append(item)

        def write(prediction: Prediction) -> tuple[int, PredictedImage]:
            return prediction.info.number, self.folder.write(prediction)

        groups = of_one_size(usable(), lambda item: item.info.size, self._at_once)
        predictions = (prediction for group in groups for prediction in self._predict(group))
        with pixel_limit(self.folder.max_pixels):  # for all threads: in `read_image_file`, one thread could restore the limit of another
            for result in in_threads(write, predictions, self.threads):
                yield result
                while unusable:
                    yield unusable.popleft()
        yield from unusable

    def _at_once(self, size: tuple[int, int]) -> int:
        return 1 if self.folder.needs_logits else self.predictor.at_once(size, size)

    def _read(self, number: int, path: Path, name: str) -> LoadedImage:
        """Read an image. Raises BadSample for one that cannot be used."""
        try:
            state = file_state(path)
        except OSError as error:
            raise BadSample(f"{path} cannot be read ({error.strerror}). Replace it, or remove it.") from error
        file = read_image_file(path, self.image_range, self.folder.max_pixels, self.bands)
        size = file.levels.shape[:2]
        self.predictor.check_size(size, str(path))
        return LoadedImage(ImageInfo(number, path, name, state, size, file.orientation), file.levels)

    def _predict(self, items: Sequence[LoadedImage]) -> Iterator[Prediction]:
        """Predict images of one size; probabilities are written meanwhile."""
        try:
            if self.folder.needs_logits:
                results = (self._from_logits(item) for item in items)
            else:
                predicted = self.predictor.ids([item.levels for item in items])
                results = ((_in_file_order(item.info, ids), None) for item, ids in zip(items, predicted))
            for (info, levels), (ids, confidence) in zip(items, results):
                yield Prediction(info, ids, confidence, levels if OVERLAYS in self.folder.kinds else None)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{items[0].info.path} needs more memory than the GPU has. Give --eval-batch-size 1; if that is not enough, --mode slide "
                "or a smaller --window, and another --output-dir."
            ) from error

    def _from_logits(self, item: LoadedImage) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids (H, W) uint8 and confidence (H, W) uint8 or None, in the pixel order of the file; probabilities are written."""
        maps = [np.empty(item.info.stored_size, np.uint8) for _ in range(1 + (CONFIDENCE in self.folder.kinds))]
        bands = _fill(self.predictor.bands(item.levels), *(upright_view(array, item.info.orientation) for array in maps))
        if PROBABILITIES in self.folder.kinds:
            self.folder.write_probabilities(item.info, bands)
        else:
            deque(bands, maxlen=0)
        return maps[0], maps[1] if len(maps) > 1 else None


def _in_file_order(info: ImageInfo, ids: Tensor) -> np.ndarray:
    """Return the class ids of an upright image (H, W), uint8 in the pixel order of its file."""
    stored = np.empty(info.stored_size, np.uint8)
    upright_view(stored, info.orientation)[:] = ids.cpu().numpy()
    return stored


def _fill(bands: Iterator[Tensor], ids: np.ndarray, confidence: np.ndarray | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, probabilities (K, rows, W)) of the bands of logits, after filling its rows of ids and confidence."""
    top = 0
    for band in bands:
        rows = slice(top, top + band.shape[2])
        ids[rows] = argmax(band).cpu().numpy()
        probabilities = band[0].softmax(0)
        if confidence is not None:
            confidence[rows] = (probabilities.amax(0) * 255).round().byte().cpu().numpy()
        yield top, probabilities
        top = rows.stop
