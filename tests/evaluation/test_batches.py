"""Images in batches: the same counts as one at a time, groups of one size, threads, and batches that need too much memory."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_evaluate import worker

from mscl_hf.config import InferenceConfig
from mscl_hf.data.dataset import Sample
from mscl_hf.evaluation import Predictor, evaluate_model, prediction
from mscl_hf.evaluation.batches import InBatches, in_threads, of_one_size
from mscl_hf.evaluation.evaluate import pixel_pairs
from mscl_hf.evaluation.metrics import MeanIoU

SIZES = ((20, 30), (30, 20), (24, 24))


class Images:
    """Labelled images of three sizes in a mixed order."""

    classes, name, split, num_classes = worker.CLASSES, "images", "val", len(worker.CLASSES)

    def __init__(self, count: int = 17):
        draw = np.random.default_rng(0)
        self.samples = []
        for number in range(count):
            size = SIZES[draw.integers(len(SIZES))]
            mask = draw.choice([*range(self.num_classes), 255], size).astype(np.uint8)
            self.samples.append(Sample(draw.integers(0, 256, (*size, 3), dtype=np.uint8), mask, f"{number}.png"))

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Sample:
        return self.samples[index]


def results(model, **options) -> dict:
    found = evaluate_model(model, Images(), Accelerator(cpu=True), InferenceConfig(base_size=0, **options))
    return {name: value for name, value in found.items() if name not in ("seconds", "inference")}


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": [0.7, 1.0]}, {"mode": "slide", "window": 12, "stride": 7}], ids=str)
def test_batches_count_the_same_pixels(options):
    """Batches of any size, threads or none: every count equals that of one image at a time, and the network sees full batches."""
    seen = {}
    wanted = results(worker.TinyModel(), **options, eval_batch_size=1, eval_threads=0)
    for batch in (2, 4, 64):
        model = worker.TinyModel()
        assert results(model, **options, eval_batch_size=batch, eval_threads=3) == wanted
        seen[batch] = max(shape[0] for shape, _ in model.seen)
    assert wanted["num_images"] == 17 and 0 < wanted["mean_iou"] < 1
    assert seen[2] == 2 and seen[4] > 2 and seen[64] >= (6 if "mode" not in options else 4)


def test_counts_are_those_of_the_metric():
    """The pixels by true and predicted class, counted on the device, equal the metric's; ignored pixels are left out."""
    draw = np.random.default_rng(1)
    ids, mask = draw.integers(0, 5, (33, 21)), draw.choice([0, 1, 2, 3, 4, 255], (33, 21)).astype(np.uint8)
    metric = MeanIoU()
    metric.add_batch(predictions=[ids], references=[mask])
    counts = pixel_pairs(torch.from_numpy(ids), torch.from_numpy(mask), 5)
    assert (counts.numpy() == metric.confusion(5, 255)).all() and counts.sum() == (mask != 255).sum()


def test_groups_have_one_size_and_everything_arrives():
    """Groups are full where enough items of a size occur, and a bounded number of items waits."""
    items, waiting, most_waiting = [(size, n) for n in range(50) for size in ("a", "b") if size == "a" or n % 7 == 0], 0, 0

    def given():
        nonlocal waiting, most_waiting
        for item in items:
            waiting += 1
            most_waiting = max(most_waiting, waiting)
            yield item

    groups = []
    for group in of_one_size(given(), lambda item: item[0], lambda size: {"a": 4, "b": 3}[size]):
        waiting -= len(group)
        groups.append(group)
    assert sorted(item for group in groups for item in group) == sorted(items)
    assert all(len({size for size, _ in group}) == 1 for group in groups)
    assert [len(group) for group in groups if group[0][0] == "a"] == 12 * [4] + [2] and most_waiting <= 13
    many = list(of_one_size(range(100), lambda number: number, lambda size: 4))  # all of different sizes
    assert sorted(group[0] for group in many) == list(range(100))


def test_threads_keep_the_order_and_raise_in_turn():
    """Results come in order, at most one more than the threads is computed ahead, and an error comes after the results before it."""
    started, lock = [], threading.Lock()

    def function(number: int) -> int:
        with lock:
            started.append(number)
        if number == 7:
            raise OSError("seven")
        return 10 * number

    for threads in (0, 1, 3):
        started.clear()
        found = []
        with pytest.raises(OSError, match="seven"):
            for value in in_threads(function, range(20), threads):
                found.append(value)
                assert len(started) <= len(found) + threads + 1
        assert found == [10 * n for n in range(7)]


def test_threads_work_at_the_same_time():
    """Two threads compute two results at once: each waits for the other."""
    both = threading.Barrier(2, timeout=30)
    assert list(in_threads(lambda number: both.wait() * 0 + number, range(6), 2)) == list(range(6))
    with pytest.raises(threading.BrokenBarrierError):
        list(in_threads(lambda number: threading.Barrier(2, timeout=0.1).wait(), range(1), 1))


def test_images_are_read_in_threads():
    """Evaluation reads images outside of the main thread, unless it may not."""
    for threads, is_main in ((0, True), (2, False)):
        readers = set()

        class Noted(Images):
            def read(self, index):
                readers.add(threading.current_thread() is threading.main_thread())
                return super().read(index)

        evaluate_model(worker.TinyModel(), Noted(3), Accelerator(cpu=True), InferenceConfig(base_size=0, eval_threads=threads))
        assert readers == {is_main}


def test_large_results_are_not_computed_ahead():
    """After a large one, each is computed when it is needed; after a small one, threads go ahead again."""
    started, lock = [], threading.Lock()

    def function(number: int) -> int:
        with lock:
            started.append(number)
        return number

    ahead = []
    for number in in_threads(function, range(12), 2, lambda number: 2 <= number < 7):
        ahead.append(len(started) - number - 1)
    assert ahead[4:7] == [0, 0, 0] and max(ahead) <= 2 and ahead[9] > 0


class Scarce:
    """A network for at most three images at once."""

    def __init__(self):
        self.batches = []

    def __call__(self, pixel_values):
        self.batches.append(len(pixel_values))
        if len(pixel_values) > 3:
            raise torch.OutOfMemoryError
        return SimpleNamespace(logits=pixel_values * 2)


def test_a_batch_that_needs_too_much_memory_is_halved(capsys):
    """The batch is halved until it fits, says so once, and stays at the size that fits; no image is lost. One image is an error."""
    model = Scarce()
    network, images = InBatches(model, 8), torch.arange(22.0).view(11, 2, 1, 1)
    for _ in range(2):
        assert torch.equal(network(pixel_values=images).logits, images * 2)
    assert model.batches == [8, 4, 2, 2, 2, 2, 2, 1] + [2, 2, 2, 2, 2, 1]
    assert "8 images or windows at once need more memory than there is; continuing with 4" in capsys.readouterr().out
    with pytest.raises(torch.OutOfMemoryError):
        InBatches(lambda pixel_values: model(pixel_values.expand(4, -1, -1, -1)), 8)(pixel_values=images[:1])


def test_how_many_images_at_once(monkeypatch):
    """The option, less for large images, one for images in windows; probabilities of several views are limited by their memory."""
    def at_once(size, **options):
        model = worker.TinyModel()
        return Predictor(model, model.config, torch.device("cpu"), InferenceConfig(eval_batch_size=6, **options)).at_once(size, size)

    assert at_once((50, 60)) == 6 and at_once((50, 60), flip=True) == 6
    assert at_once((50, 60), mode="slide", window=40) == 1 and at_once((50, 60), mode="slide", window=64) == 6
    monkeypatch.setattr(prediction, "MAX_MAP", 4 * 50 * 60 * 2)
    assert at_once((50, 60), flip=True) == 2
    monkeypatch.setattr(prediction, "MAX_WHOLE", 50 * 60 * 3)
    assert at_once((50, 60)) == 3
