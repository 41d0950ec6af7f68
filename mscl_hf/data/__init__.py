"""Data sets as images and masks of train ids, and the choice of which images keep their labels."""

from .dataset import BadSample, Sample, SegmentationData, check_data
from .layouts import DATASETS, load_data
from .stream import SegmentationStream
from .subset import choose_subset

__all__ = [
    "DATASETS",
    "BadSample",
    "Sample",
    "SegmentationData",
    "SegmentationStream",
    "check_data",
    "choose_subset",
    "load_data",
]
