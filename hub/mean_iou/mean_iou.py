# Copyright 2026 The mscl_hf authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Mean IoU for `evaluate`, with constant memory: each pair of maps is reduced to counts of (true id, predicted id) pairs.

The metric `mean_iou` of `evaluate` stores every map until `compute`, because only `compute` receives the number of classes, the ignored
label and the new ids of the labels. The counts of pairs contain all that these options need. There are at most as many pairs as
true ids times predicted ids.

Letters: K classes. This file needs datasets, evaluate and numpy, so that `evaluate.load` runs it where mscl_hf is not installed.
"""

from collections import Counter

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Intersection over union of predicted and true segmentation maps, for each class over all images, and its mean over the classes that
occur. The values are those of `evaluate`'s `mean_iou`, bit for bit; the memory does not grow with the number of images.
"""

_INPUTS = """
Args:
    predictions: list of predicted maps, each (H, W) of integer class ids; sizes may differ.
    references: list of true maps, each of the size of its prediction.
    num_labels (`int`): number of classes K.
    ignore_index (`int`): true id whose pixels are left out.
    nan_to_num (`float`, *optional*): replaces NaN (absent classes) after the means are taken.
    label_map (`dict`, *optional*): true id -> new id; all entries refer to the original ids.
    reduce_labels (`bool`, defaults to `False`): subtract 1 from true ids; 0 becomes 255 (ADE20K).
Returns:
    dict of mean_iou, mean_accuracy, overall_accuracy, per_category_iou (K,) and per_category_accuracy (K,).
Examples:
    >>> metric = evaluate.load("mean_iou")  # or the path of this folder
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> float(metric.compute(num_labels=2, ignore_index=255)["mean_iou"])
    0.5
"""

_CITATION = """
@article{everingham2015pascal,
  title={The {PASCAL} Visual Object Classes Challenge: A Retrospective},
  author={Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I.
    and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision}, volume={111}, pages={98--136}, year={2015}}
"""


class MeanIoU(evaluate.Metric):
    """Count with `add` and `add_batch`; `compute` returns the scores and resets the counts."""

    def __init__(self, *args, num_process=1, **kwargs):
        if num_process != 1:
            raise ValueError(
                f"num_process is {num_process}; expected 1, because the counts are kept in memory. "
                "In each process call areas(), sum these tables, and pass the sum to scores()."
            )
        super().__init__(*args, num_process=num_process, **kwargs)
        self._reset()

    def __len__(self):
        return self._images

    def _info(self):
        image = datasets.Image()
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": image, "references": image}),
        )

    def _build_data_dir(self):
        return self._data_dir_root  # without creating a folder: no maps are written to disk

    def _reset(self):
        self._pairs, self._images = Counter(), 0  # {(true id, predicted id): pixels}, number of maps

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Count one predicted map against its true map."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}; expected prediction and reference.")
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Count a list of predicted maps against the list of their true maps."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}; expected predictions and references.")
        if predictions is None or references is None or len(predictions) != len(references):
            sizes = ["no" if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"Got {sizes[0]} predictions and {sizes[1]} references; expected as many of each.")
        # All maps are counted before any count is added: an invalid map leaves the metric unchanged.
        counts = [_count_pairs(prediction, reference) for prediction, reference in zip(predictions, references)]
        for pairs in counts:
            self._pairs.update(pairs)
        self._images += len(counts)

    def compute(self, *, predictions=None, references=None, nan_to_num=None, **options):
        """Return the scores of all maps that were added, and of these maps; then reset the counts."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._images:
            raise ValueError("Nothing was added; call add or add_batch, or pass predictions and references.")
        result = self.scores(self.areas(**options), nan_to_num)
        self._reset()
        return result

    def areas(self, num_labels, ignore_index, label_map=None, reduce_labels=False):
        """Return the pixels of intersection, prediction and label of each class, (3, K) int64, without a reset.

        The tables of several processes can be summed; see `scores`.
        """
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; expected at least 1.")
        areas = np.zeros((3, num_labels), dtype=np.int64)
        for true, predicted, pixels in self._labelled_pairs(ignore_index, label_map, reduce_labels):
            # Ids outside 0..K-1 belong to no class, but the pixel counts for the class of the other map.
            for row, counted, index in ((0, true == predicted, true), (1, True, predicted), (2, True, true)):
                if counted and 0 <= index < num_labels:
                    areas[row, index] += pixels
        return areas

    def confusion(self, num_labels, ignore_index, label_map=None, reduce_labels=False):
        """Return the pixels by true and predicted class, (K, K) int64, without a reset; ids outside 0..K-1 are left out."""
        counts = np.zeros((num_labels, num_labels), dtype=np.int64)
        for true, predicted, pixels in self._labelled_pairs(ignore_index, label_map, reduce_labels):
            if 0 <= true < num_labels and 0 <= predicted < num_labels:
                counts[true, predicted] += pixels
        return counts

    def _labelled_pairs(self, ignore_index, label_map, reduce_labels):
        """Yield (true id, predicted id, pixels) with the new true ids, without ignored pixels."""
        for (true, predicted), pixels in self._pairs.items():
            true = (label_map or {}).get(true, true)
            if reduce_labels:
                true = 255 if true in (0, 255) else true - 1
            if true != ignore_index:
                yield true, predicted, pixels

    @staticmethod
    def scores(areas, nan_to_num=None):
        """Return the result of `compute` for a table (3, K) of `areas`, or for a sum of such tables."""
        intersection, predicted, labelled = np.asarray(areas).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            overall = intersection.sum() / labelled.sum()
            iou = intersection / (predicted + labelled - intersection)
            accuracy = intersection / labelled
        result = {
            "mean_iou": mean_of_present(iou),
            "mean_accuracy": mean_of_present(accuracy),
            "overall_accuracy": overall,
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
        if nan_to_num is None:
            return result
        return {key: np.nan_to_num(value, nan=nan_to_num) for key, value in result.items()}


def mean_of_present(values):
    """Return the mean of the values (K,) that are not NaN; NaN without a warning where all are."""
    return np.float64(np.nan) if np.isnan(values).all() else np.nanmean(values)


def _count_pairs(prediction, reference):
    """Return {(true id, predicted id): pixels} of one image."""
    maps = [np.asarray(reference), np.asarray(prediction)]
    if any(ids.ndim != 2 or ids.dtype.kind not in "biu" for ids in maps) or maps[0].shape != maps[1].shape:
        shapes = " and ".join(f"{ids.dtype} {ids.shape}" for ids in maps)
        raise ValueError(
            f"Reference and prediction are {shapes}; expected integer maps of one (height, width). "
            "Scale the logits to the size of the reference, then take the argmax."
        )
    (true, rows), (predicted, columns) = (_distinct(ids.astype(np.int64, copy=False).ravel()) for ids in maps)
    codes, width = rows * len(predicted) + columns, len(predicted)
    if len(true) * width <= 2**16:  # one pass
        counts = np.bincount(codes)
        codes = counts.nonzero()[0]
        counts = counts[codes]
    else:
        codes, counts = np.unique(codes, return_counts=True)
    return {(int(true[code // width]), int(predicted[code % width])): int(count) for code, count in zip(codes, counts)}


def _distinct(ids):
    """Return ascending ids that include all ids (N,), and the index of each pixel's id among them."""
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if high - low < 256:  # no sort for the usual ids
        return low + np.arange(high - low + 1), ids - low
    return np.unique(ids, return_inverse=True)
