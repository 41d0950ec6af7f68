"""Scores by class: the confusion matrix equals a slow count, the table is in order of pixels, the picture is readable."""

import json

import numpy as np
import pytest
from PIL import Image

from mscl_hf.evaluation import MeanIoU, class_table, draw_confusion
from mscl_hf.visual import confusion as drawn
from mscl_hf.visual.confusion import confusion_figure

OPTIONS = {"num_labels": 5, "ignore_index": 255}


@pytest.mark.parametrize("more", [{}, {"reduce_labels": True}, {"label_map": {3: 1, 1: 3}}])
def test_confusion_equals_a_slow_count(more):
    """Pixel by pixel, with ignored pixels and ids outside of the classes; its diagonal and sums are those of `areas`."""
    rng, metric, expected = np.random.default_rng(0), MeanIoU(), np.zeros((5, 5), dtype=int)
    for shape in ((6, 7), (9, 4)):
        truth = rng.choice([0, 1, 2, 3, 4, 255], shape)
        prediction = rng.integers(0, 5, shape)
        metric.add_batch(predictions=[prediction], references=[truth])
        for true, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
            true = more.get("label_map", {}).get(true, true)
            if more.get("reduce_labels"):
                true = 255 if true in (0, 255) else true - 1
            if true != 255:
                expected[true, predicted] += 1
    counts, (intersection, predicted, labelled) = metric.confusion(**OPTIONS, **more), metric.areas(**OPTIONS, **more)
    assert counts.tolist() == expected.tolist()
    assert np.diag(counts).tolist() == intersection.tolist()
    assert counts.sum(0).tolist() == predicted.tolist() and counts.sum(1).tolist() == labelled.tolist()


RESULTS = {
    "per_class_pixels": {"road": 30, "car": 60, "sky": 0, "bus": 10},
    "per_class_iou": {"road": 0.5, "car": 0.25, "sky": None, "bus": 0.0},
    "per_class_accuracy": {"road": 0.75, "car": 1.0, "sky": None, "bus": None},
    "confusion": {"road": {"road": 20, "bus": 10}, "car": {"car": 60}, "bus": {"car": 10}},
}


def test_table_is_in_order_of_pixels():
    """The most frequent class first; absent classes last, without numbers."""
    assert class_table(RESULTS) == [
        ("class", "pixels", "IoU", "accuracy"), ("car", "60.00", "25.0", "100.0"), ("road", "30.00", "50.0", "75.0"),
        ("bus", "10.00", "0.0", "-"), ("sky", "0.00", "absent", "-"),
    ]  # fmt: skip


def test_the_picture_has_what_the_results_have(tmp_path, monkeypatch):
    """Rows in order of pixels sum to 1, the columns are the classes that are labelled or predicted; results survive JSON."""
    calls = []
    monkeypatch.setattr(drawn, "_draw", lambda *arguments: calls.append(arguments))
    draw_confusion(json.loads(json.dumps(RESULTS)), tmp_path)
    ((shares, rows, columns, path),) = calls
    assert (rows, columns, path) == (["car", "road", "bus"], ["car", "road", "bus"], tmp_path / "confusion.png")
    assert shares == pytest.approx(np.array([[1, 0, 0], [0, 2 / 3, 1 / 3], [1, 0, 0]]))
    draw_confusion(RESULTS | {"confusion": {}}, tmp_path)  # nothing is labelled
    assert len(calls) == 1


@pytest.mark.parametrize("count, shown", [(2, 2), (40, 40), (41, 31), (150, 31)])
def test_many_classes_stay_readable(tmp_path, monkeypatch, count, shown):
    """Up to 40 classes are drawn, of more the 30 most frequent ones and a column of all others; each row sums to 1."""
    counts = np.random.default_rng(0).integers(1, 99, (count, count))
    shares, draw = [], drawn._draw
    monkeypatch.setattr(drawn, "_draw", lambda *arguments: shares.append(arguments[0]) or draw(*arguments))
    confusion_figure(counts, [f"a class with a $long name {i}" for i in range(count)], tmp_path / "confusion.png")
    assert shares[0].shape == (min(count, 30 if count > 40 else 40), shown) and shares[0].sum(1) == pytest.approx(1)
    width, height = Image.open(tmp_path / "confusion.png").size
    assert min(width, height) > 200 and max(width, height) < 2000


def test_nothing_labelled_is_rejected(tmp_path):
    """A share of nothing is no number."""
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        confusion_figure(np.zeros((2, 2)), ["a", "b"], tmp_path / "confusion.png")
