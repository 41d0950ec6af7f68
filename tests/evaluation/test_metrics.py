"""The streaming mean IoU: equal to a slow reference and to the metric of `evaluate`, and usable through `evaluate.load`."""

import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from mscl_hf.evaluation.metrics import MeanIoU

MODULE = Path(__file__).parents[2] / "hub" / "mean_iou"
DTYPES = (np.int8, np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64)


def slow_reference(pairs, num_classes, ignore_index, reduce_labels=False, label_map=None):
    """The definition, written plainly: areas per image by np.histogram, summed, then divided."""
    areas = np.zeros((3, num_classes))
    for prediction, label in pairs:
        label = np.array([(label_map or {}).get(v, v) for v in label.ravel().tolist()]).reshape(label.shape)
        if reduce_labels:
            label[label == 0] = 255
            label = label - 1
            label[label == 254] = 255
        counted = label != ignore_index
        prediction, label = prediction[counted], label[counted]
        for row, ids in enumerate((prediction[prediction == label], prediction, label)):
            areas[row] += np.histogram(ids, bins=num_classes, range=(0, num_classes - 1))[0]
    shared, predicted, labelled = areas
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        iou, accuracy = shared / (predicted + labelled - shared), shared / labelled
        return {
            "mean_iou": np.nanmean(iou),
            "mean_accuracy": np.nanmean(accuracy),
            "overall_accuracy": shared.sum() / labelled.sum(),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for key in one:
        a, b = np.asarray(one[key]), np.asarray(other[key])
        assert a.dtype == b.dtype == np.float64 and a.shape == b.shape, key
        assert np.array_equal(a, b, equal_nan=True), (key, a, b)


def random_case(rng):
    """Images of several sizes and integer types, ids inside and outside the classes, ignored pixels."""
    num_classes = int(rng.choice([1, 2, 3, 3, 11, 11, 21, 21, 150, 255, 256, 1500]))
    ignore = int(rng.choice([255, -1, 0, -100]))
    pairs = []
    for _ in range(rng.integers(1, 4)):
        shape = tuple(rng.integers(1, 24, 2))
        maps = []
        for is_label in (False, True):
            dtype = rng.choice(DTYPES)
            info = np.iinfo(dtype)
            reach = rng.choice([num_classes, num_classes + 3, 300])
            low = rng.choice([0, -3])
            ids = rng.integers(low, reach, shape)
            if is_label:
                share = rng.choice([0.0, 0.2, 1.0], p=[0.3, 0.6, 0.1])
                ids = np.where(rng.random(shape) < share, ignore, ids)
            maps.append(ids.clip(info.min, info.max).astype(dtype))
        if rng.random() < 0.5:  # agreement, so that intersections are not empty
            same = rng.random(shape) < 0.7
            maps[0] = np.where(same, maps[1], maps[0])
        pairs.append(tuple(maps))
    return pairs, num_classes, ignore, bool(rng.random() < 0.3)


def computed(pairs, **options):
    """`compute` of the package's metric, of (prediction, label) pairs."""
    predictions, references = zip(*pairs)
    return MeanIoU().compute(predictions=predictions, references=references, **{"ignore_index": 255} | options)


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_random_cases_equal_the_definition_bit_for_bit(seed):
    """Any number of classes, ignored label, integer type, ids outside the classes: equal scores, NaN too."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns about means of nothing
        for _ in range(1000):
            pairs, num_classes, ignore, reduce = random_case(rng)
            before = [(p.copy(), t.copy()) for p, t in pairs]
            result = computed(pairs, num_labels=num_classes, ignore_index=ignore, reduce_labels=reduce)
            assert_same_bits(result, slow_reference(pairs, num_classes, ignore, reduce))
            for (p, t), (p0, t0) in zip(pairs, before):
                assert np.array_equal(p, p0) and np.array_equal(t, t0), "the caller's maps were changed"


def test_worked_example():
    """3 classes, one ignored pixel: areas, IoU and accuracies as counted by hand; `areas` keeps the counts, `compute` resets them."""
    metric = MeanIoU()
    metric.add(prediction=np.array([[0, 1, 1], [2, 0, 0]]), reference=np.array([[0, 1, 0], [1, 255, 0]]))
    areas = metric.areas(num_labels=3, ignore_index=255)
    assert areas.tolist() == [[2, 1, 0], [2, 2, 1], [3, 2, 0]] and areas.dtype == np.int64 and len(metric) == 1
    result = metric.compute(num_labels=3, ignore_index=255)
    assert len(metric) == 0 and not metric.areas(num_labels=3, ignore_index=255).any()
    assert result["per_category_iou"].tolist() == [2 / 3, 1 / 3, 0.0]  # class 2: predicted, never labelled
    assert result["mean_iou"] == np.mean([2 / 3, 1 / 3, 0.0]) and result["overall_accuracy"] == 3 / 5
    assert np.isnan(result["per_category_accuracy"][2]) and result["mean_accuracy"] == (2 / 3 + 1 / 2) / 2


def test_areas_of_processes_can_be_summed():
    """The scores of summed tables are those of all images together."""
    rng, parts = np.random.default_rng(5), [MeanIoU(), MeanIoU(), MeanIoU()]
    pairs = [tuple(rng.integers(0, 5, (2, 7, 9))) for _ in range(4)]
    for i, (prediction, label) in enumerate(pairs):  # the third process has no image
        parts[i % 2].add(prediction=prediction, reference=label)
    areas = sum(part.areas(num_labels=4, ignore_index=0) for part in parts)
    assert_same_bits(MeanIoU.scores(areas), computed(pairs, num_labels=4, ignore_index=0))


def test_ids_outside_the_classes_count_for_the_other_map_only():
    """An outside id counts for the other map's class only, and two outside ids never match."""
    metric = MeanIoU()
    metric.add(prediction=np.array([[0, 7, 9]]), reference=np.array([[-5, 1, 9]]))
    assert metric.areas(num_labels=2, ignore_index=255).tolist() == [[0, 0], [1, 0], [0, 1]]


def test_nothing_to_average_is_nan_without_a_warning():
    """All pixels ignored: every score is NaN; nan_to_num replaces it after the means."""
    pairs = [(np.zeros((2, 2), int), np.full((2, 2), 255))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(np.isnan(value).all() for value in computed(pairs, num_labels=2).values())
        assert all((np.asarray(value) == 7).all() for value in computed(pairs, num_labels=2, nan_to_num=7).values())


def test_nan_to_num_does_not_change_the_means():
    """An absent class gets the given number but is not part of the mean."""
    result = computed([(np.zeros((2, 2), int), np.zeros((2, 2), int))], num_labels=3, nan_to_num=0)
    assert result["mean_iou"] == 1 and result["per_category_iou"].tolist() == [1, 0, 0]


def test_many_distinct_ids_need_little_memory():
    """Maps of thousands of distinct ids are counted without a table of all their pairs."""
    ids = np.arange(30_000).reshape(150, 200)
    metric = MeanIoU()
    metric.add(prediction=ids[::-1], reference=ids)
    assert len(metric._pairs) == 30_000 and metric.areas(num_labels=30_000, ignore_index=255)[1].sum() == 29_999


@pytest.mark.parametrize("prediction", [np.zeros((3, 2), int), np.zeros((2, 3)), np.zeros(6, int), None])
def test_invalid_maps_raise(prediction):
    """Different sizes, fractional ids and flat arrays: the error names both types and shapes."""
    with pytest.raises(ValueError, match=r"are int64 \(2, 3\) and .*; expected integer maps of one \(height, width\)"):
        MeanIoU().add(prediction=prediction, reference=np.zeros((2, 3), int))


def test_a_number_of_classes_below_one_raises():
    """An invalid option of `compute` keeps the counts."""
    metric = MeanIoU()
    metric.add(prediction=[[0]], reference=[[0]])
    with pytest.raises(ValueError, match="num_labels is 0; expected at least 1"):
        metric.compute(num_labels=0, ignore_index=255)
    assert metric.compute(num_labels=1, ignore_index=255)["mean_iou"] == 1


@pytest.fixture(scope="module")
def module():
    evaluate = pytest.importorskip("evaluate")
    return evaluate.load(str(MODULE))


def test_the_folder_can_be_loaded_without_this_package(tmp_path):
    """`evaluate.load` opens a copy of the folder where mscl_hf cannot be imported and the Hub is not reached."""
    shutil.copytree(MODULE, tmp_path / "mean_iou")
    code = """import sys
sys.modules["mscl_hf"] = None
import evaluate
metric = evaluate.load(sys.argv[1])
metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
assert metric.compute(num_labels=2, ignore_index=255)["mean_iou"] == 0.5"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "mean_iou")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_evaluate_module_keeps_no_maps(module):
    """The state after many large images is as small as after one: pairs of ids, not pixels."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        label = rng.integers(0, 5, (200, 300))
        module.add_batch(predictions=[label[::-1], label], references=[label, label])
    assert len(module) == 40 and len(module._pairs) == 25 and module.writer is None
    assert module.compute(num_labels=5, ignore_index=255, nan_to_num=0)["overall_accuracy"] > 0.5


def test_label_map_is_simultaneous_and_leaves_the_callers_labels(module):
    """{0: 1, 1: 0} swaps two labels, and the caller's arrays stay as they are."""
    label, prediction = np.array([[0, 1, 2]]), np.array([[1, 0, 2]])
    options = {"num_labels": 3, "ignore_index": 255, "label_map": {0: 1, 1: 0}}
    result = module.compute(predictions=[prediction], references=[label], **options)
    assert result["mean_iou"] == 1 and label.tolist() == [[0, 1, 2]]
    rng = np.random.default_rng(3)
    pairs = [(rng.integers(0, 6, (9, 9)), rng.integers(0, 6, (9, 9))) for _ in range(3)]
    table = {1: 2, 2: 3, 3: 255, 5: 0}
    options = {"num_labels": 6, "ignore_index": 255, "label_map": table, "reduce_labels": True}
    predictions, references = zip(*pairs)
    result = module.compute(predictions=predictions, references=references, **options)
    assert_same_bits(result, slow_reference(pairs, 6, 255, True, table))


def test_evaluate_module_takes_what_segmentation_code_holds(module):
    """Palette images, tensors and nested lists give equal scores; an array (H, W) in place of a list raises."""
    Image = pytest.importorskip("PIL.Image")
    torch = pytest.importorskip("torch")
    ids = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    picture = Image.fromarray(ids)
    picture.putpalette([0, 0, 0, 128, 0, 0])
    for maps in ([picture], torch.from_numpy(ids)[None], [ids.tolist()], ids[None]):
        result = module.compute(predictions=maps, references=[ids], num_labels=2, ignore_index=255)
        assert result["mean_iou"] == 1
    with pytest.raises(ValueError, match="height, width"):
        module.compute(predictions=ids, references=ids, num_labels=2, ignore_index=255)


def test_evaluate_module_rejects_invalid_calls(module):
    """Unpaired maps, an empty compute and several processes raise; an invalid batch leaves the state unchanged."""
    import evaluate

    good = np.zeros((2, 2), int)
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        module.add_batch(predictions=[good, good], references=[good])
    with pytest.raises(ValueError, match="integer maps"):
        module.add_batch(predictions=[good, good[:1]], references=[good, good])
    assert len(module) == 0 and not module._pairs
    with pytest.raises(ValueError, match="Nothing was added"):
        module.compute(num_labels=2, ignore_index=255)
    with pytest.raises(ValueError, match="num_process"):
        evaluate.load(str(MODULE), num_process=2, process_id=0)


def _hub_is_reachable():
    if os.environ.get("HF_EVALUATE_OFFLINE") or os.environ.get("HF_HUB_OFFLINE"):
        return False
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_three_metrics_agree(module):
    """The metric `mean_iou` of `evaluate`, downloaded from the Hub, gives the scores of the package and of the folder."""
    if not _hub_is_reachable():
        pytest.skip("the Hub cannot be reached")
    import evaluate

    theirs, rng = evaluate.load("mean_iou"), np.random.default_rng(11)
    for _ in range(20):
        pairs = [tuple(rng.integers(0, 24, (2, 31, 17)).astype(np.uint8)) for _ in range(3)]
        call = {"predictions": [p for p, _ in pairs], "references": [t for _, t in pairs]}
        call |= {"num_labels": 21, "ignore_index": 255}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            wanted = theirs.compute(**call)
        assert_same_bits(MeanIoU().compute(**call), wanted)
        assert_same_bits(module.compute(**call), wanted)
