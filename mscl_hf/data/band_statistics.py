"""Mean and standard deviation of each band of the training images, by which images of other than three bands are normalized."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from .checks import examined_rows, run_once, with_progress
from .dataset import SegmentationData
from .pixels import BadSample

READ_AT_MOST = 500  # images of a data set, evenly spaced
LEAST_STD = 1e-3  # of levels in [0, 1]: a constant band becomes 0


def band_statistics(parts: Sequence[SegmentationData], log: Callable[[str], None] = print) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each band of the levels in [0, 1], over all pixels of at most READ_AT_MOST images of a part.

    The main process reads; unreadable images are left out. Raises the first one's BadSample if no image can be read.
    """
    bands, name = parts[0].bands, parts[0].name
    count, pixels, sums, squares = run_once(lambda: _sums(parts))
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    shown = ", ".join(f"{band}: {m:.3f} +- {s:.3f}" for band, m, s in zip(bands, mean, std))
    log(f"mean and standard deviation of the bands in [0, 1], from {count} images of {name}: {shown}")
    if constant := [str(band) for band, s in zip(bands, std) if s < LEAST_STD]:
        log(f"band(s) {', '.join(constant)} of {name} are constant and tell the network nothing")
    return [round(float(m), 6) for m in mean], [round(float(max(s, LEAST_STD)), 6) for s in std]


def _sums(parts: Sequence[SegmentationData], workers: int = 4) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Return the numbers of images and of pixels, and per band the sums of the levels in [0, 1] and of their squares."""
    samples = [(part, row) for part in parts for row in examined_rows(len(part), READ_AT_MOST)]

    def read(sample: tuple[SegmentationData, int]) -> tuple[int, int, np.ndarray, np.ndarray] | BadSample:
        data, row = sample
        try:
            image = replace(data, classes=()).read(row).image
        except BadSample as error:
            return error
        levels = image.reshape(-1, image.shape[2]) / np.float64(255)
        return 1, len(levels), levels.sum(0), np.square(levels).sum(0)

    with ThreadPoolExecutor(workers) as pool:
        results = list(with_progress(pool.map(read, samples), len(samples), f"reading bands of {parts[0].name}/{parts[0].split}"))
    read_results = [result for result in results if not isinstance(result, BadSample)]
    if not read_results:
        raise results[0]
    return tuple(sum(values) for values in zip(*read_results))
