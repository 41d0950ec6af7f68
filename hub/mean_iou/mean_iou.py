# Copyright 2026 The mscl_hf authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Mean IoU for `evaluate`, streamed: a map becomes a small table of (label, prediction) pairs.

`evaluate`'s own metric of this name stores every map until `compute`. Which label is ignored, and how labels
are renamed, is known at `compute` only; so the state here is how many pixels had each pair of stored ids: it
loses nothing and is at most as large as the number of classes squared.
"""

from collections import Counter

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Intersection over union of predicted and true segmentation maps, for each class over all images, and its mean
over the classes that occur. Same numbers as `evaluate`'s `mean_iou`, bit for bit, in constant memory.
"""

_INPUTS = """
Args:
    predictions: list of predicted maps, each (height, width) of integer class ids; sizes may differ.
    references: list of true maps, each of its prediction's size.
    num_labels (`int`): number of classes K.
    ignore_index (`int`): true label whose pixels are left out.
    nan_to_num (`float`, *optional*): written for NaN (absent classes) after the means were taken.
    label_map (`dict`, *optional*): true id -> new id; every entry looks at the original ids.
    reduce_labels (`bool`, defaults to `False`): true ids become one lower, 0 becomes 255 (ADE20K).
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
    """`add` and `add_batch` count, `compute` finishes and starts anew; only ids and counts are kept."""

    def __init__(self, *args, num_process=1, **kwargs):
        if num_process != 1:
            raise ValueError(
                f"num_process={num_process}, but this metric counts in one process; "
                "gather the maps (accelerator.gather_for_metrics) and use num_process=1."
            )
        super().__init__(*args, num_process=num_process, **kwargs)
        self._pairs, self._images = Counter(), 0

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

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Count one predicted map against its true map."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}; give prediction and reference.")
        self._pairs.update(_pairs(prediction, reference))
        self._images += 1

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Count a list of predicted maps against the list of their true maps."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}; give predictions and references.")
        if predictions is None or references is None or len(predictions) != len(references):
            sizes = ["none" if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"Got {sizes[0]} predictions and {sizes[1]} references; give as many of each.")
        # All pairs are counted before any is kept: a bad map leaves the state as it was.
        counted = [_pairs(prediction, reference) for prediction, reference in zip(predictions, references)]
        for pairs in counted:
            self._pairs.update(pairs)
        self._images += len(counted)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Finish: the metric of everything added (and of these maps), then forget it."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._images:
            raise ValueError("Nothing was added; call add or add_batch, or give predictions and references.")
        result = _finish(self._pairs, **kwargs)  # a wrong option raises here, before the counts are forgotten
        self._pairs, self._images = Counter(), 0
        return result

    def _compute(self, predictions, references, **kwargs):
        pairs = Counter()
        for prediction, reference in zip(predictions, references):
            pairs.update(_pairs(prediction, reference))
        return _finish(pairs, **kwargs)


def _pairs(prediction, reference):
    """{(true id, predicted id): pixels} of one image."""
    maps = [np.asarray(reference), np.asarray(prediction)]
    if any(ids.ndim != 2 or ids.dtype.kind not in "biu" for ids in maps) or maps[0].shape != maps[1].shape:
        shapes = " and ".join(f"{ids.dtype} {ids.shape}" for ids in maps)
        raise ValueError(f"Reference and prediction are {shapes}; give integer maps of one (height, width).")
    (true, row), (predicted, column) = (_distinct(ids.astype(np.int64).ravel()) for ids in maps)
    size = len(true), len(predicted)
    table = np.bincount(row * size[1] + column, minlength=size[0] * size[1]).reshape(size)
    return {(int(true[t]), int(predicted[p])): int(table[t, p]) for t, p in zip(*table.nonzero())}


def _distinct(ids):
    """The ids that may occur, ascending, and each pixel's place among them."""
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if high - low < 256:  # the usual case needs no sort
        return np.arange(low, high + 1), ids - low
    return np.unique(ids, return_inverse=True)


def _finish(pairs, num_labels, ignore_index, nan_to_num=None, label_map=None, reduce_labels=False):
    """The metric from the table of pairs; the last lines are those of mscl_hf.evaluation.metrics.MeanIoU.compute."""
    areas = np.zeros((3, num_labels), dtype=np.int64)  # intersection, prediction, label
    for (true, predicted), pixels in pairs.items():
        true = (label_map or {}).get(true, true)
        if reduce_labels:
            true = 255 if true in (0, 255) else true - 1
        if true == ignore_index:
            continue
        for row, hit, place in ((0, true == predicted, true), (1, True, predicted), (2, True, true)):
            if hit and 0 <= place < num_labels:
                areas[row, place] += pixels
    intersection, predicted, labelled = areas.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        overall = intersection.sum() / labelled.sum()
        iou = intersection / (predicted + labelled - intersection)
        accuracy = intersection / labelled
    means = [np.float64(np.nan) if np.isnan(x).all() else np.nanmean(x) for x in (iou, accuracy)]
    result = {
        "mean_iou": means[0],
        "mean_accuracy": means[1],
        "overall_accuracy": overall,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }
    if nan_to_num is None:
        return result
    return {key: np.nan_to_num(value, nan=nan_to_num) for key, value in result.items()}
