"""Prediction and evaluation: windows, scales and mirror images, sizes, classes, numbers of processes."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers.modeling_outputs import SemanticSegmenterOutput

from mscl_hf.cli import parse_sections
from mscl_hf.config import InferenceConfig
from mscl_hf.evaluation import inference
from mscl_hf.evaluation.evaluate import evaluate_model, in_sentences
from mscl_hf.evaluation.inference import predict_ids, predict_logits
from mscl_hf.evaluation.metrics import MeanIoU
from mscl_hf.evaluation.windows import window_starts

WORKER = Path(__file__).parents[1] / "distributed" / "evaluate_worker.py"
spec = importlib.util.spec_from_file_location("evaluate_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
CLASSES, MEAN, STD = worker.CLASSES, worker.MEAN, worker.STD


@pytest.fixture
def accelerator():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def image():
    return torch.randn(1, 3, 41, 67, generator=torch.Generator().manual_seed(0))


def probabilities(model, image, size, **options):
    return predict_logits(model, image, size, InferenceConfig(**options)).softmax(1)


class Constant:
    """A network that returns these logits."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.logits)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [2, 3, 4, 7, 16, 17, 21, 35, 50])
def test_ids_of_a_large_map_are_those_of_the_whole(monkeypatch, channels, order):
    """Upsampled a few channels at a time, the argmax equals that of predict_logits in every pixel, also for equal logits."""
    generator = torch.Generator().manual_seed(channels)
    logits = torch.randn(1, channels, 33, 44, generator=generator)
    logits[:, :, :20] = logits[:, :, :20].round()  # many equal ones
    model, sizes = Constant(logits.contiguous(memory_format=order)), []
    image, size = torch.zeros(1, 3, 8, 8), (400, 411)
    expected = predict_logits(model, image, size)[0].numpy().argmax(0)

    def counted(maps, **options):
        enlarged = interpolate(maps, **options)
        sizes.append(enlarged.shape[1])
        return enlarged

    monkeypatch.setattr(inference, "MAX_NUMBERS", 2**18)
    monkeypatch.setattr(inference, "interpolate", counted)
    (ids,) = predict_ids(model, image, size)
    assert ids.shape == size and (ids.numpy() == expected).all()
    assert sum(sizes) == channels and max(sizes) <= (7 if order is torch.contiguous_format else 19)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": [0.5, 1.0]}, {"mode": "slide", "window": 16, "stride": 8}])
def test_ids_are_the_argmax_of_logits(image, options):
    """For one view and several, at the size of the logits and at others."""
    model = worker.TinyModel()
    for size in ((41, 67), (50, 80)):
        expected = predict_logits(model, image, size, InferenceConfig(**options))[0].argmax(0)
        assert torch.equal(predict_ids(model, image, size, InferenceConfig(**options))[0], expected)


def test_windows_cover_exactly_and_are_equal():
    """Every pixel is covered, no window leaves the image, steps never exceed the stride."""
    for length in range(1, 40):
        for window in range(1, 15):
            for stride in range(1, window + 1):
                starts = window_starts(length, window, stride)
                long = min(window, length)
                assert starts[0] == 0 and starts[-1] + long == length and len(set(starts)) == len(starts)
                assert all(0 < b - a <= stride for a, b in zip(starts, starts[1:]))


def test_one_view_is_the_upsampled_logits(image):
    """Without averaging, the result is the bilinear interpolation of the logits to the size of the labels."""
    model = worker.TinyModel()
    expected = interpolate(model.conv(image), size=(50, 80), mode="bilinear", align_corners=False)
    assert torch.equal(predict_logits(model, image, (50, 80)), expected)


@pytest.mark.parametrize("base_size", [None, 30])
@pytest.mark.parametrize(("window", "stride"), [(16, None), (20, 20), (50, 7)])
def test_windows_equal_the_whole_for_a_pointwise_model(image, window, stride, base_size):
    """A model that looks at one pixel at a time cannot tell windows from the whole image."""
    model, size = worker.TinyModel(kernel=1, stride=1), (55, 91)
    whole = probabilities(model, image, size, base_size=base_size)
    slide = probabilities(model, image, size, mode="slide", window=window, stride=stride, base_size=base_size)
    torch.testing.assert_close(slide, whole, atol=1e-6, rtol=1e-5)


def test_uniform_windows_are_averaged_as_probabilities(image):
    """Slow reference: sum of softmaxes over windows, divided by how often a pixel was seen."""
    model = worker.TinyModel(stride=1)
    total, times = torch.zeros(1, 4, 41, 67), torch.zeros(41, 67)
    for top in (0, 16, 17):  # windows of 24, two thirds = 16
        for left in (0, 16, 32, 43):
            region = (..., slice(top, top + 24), slice(left, left + 24))
            total[region] += model.conv(image[region]).softmax(1).detach()
            times[region] += 1
    slide = probabilities(model, image, (41, 67), mode="slide", window=24, window_weights="uniform")
    torch.testing.assert_close(slide, total / times, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(slide, probabilities(model, image, (41, 67)), atol=1e-4)


def test_an_image_inside_the_window_is_run_whole(image):
    """No padding, one call: the small image itself."""
    model = worker.TinyModel()
    options = (InferenceConfig(), InferenceConfig(mode="slide", window=67))
    whole, slide = (predict_logits(model, image, (41, 67), option) for option in options)
    assert torch.equal(whole, slide) and [shape for shape, _ in model.seen] == [(1, 3, 41, 67)] * 2


def test_flip_makes_a_lopsided_model_symmetric(image):
    """With flip, the prediction on the mirrored image is the mirrored prediction; without, it is not."""
    model = worker.TinyModel(stride=1)
    for flip in (False, True):
        one = probabilities(model, image, (41, 67), flip=flip)
        other = probabilities(model, image.flip(-1), (41, 67), flip=flip).flip(-1)
        assert torch.allclose(one, other, atol=1e-6) == flip


def test_scales_are_averaged_as_probabilities(image):
    """Slow reference: the mean of the softmaxes of the logits, each brought to the labels' size first."""
    model, expected = worker.TinyModel(), 0
    for size in ((20, 34), (62, 100)):  # 0.5 and 1.5 times 41 x 67, rounded
        scaled = interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        expected = expected + interpolate(model.conv(scaled), size=(41, 67), mode="bilinear").softmax(1) / 2
    mixed = probabilities(model, image, (41, 67), scales=[0.5, 1.5])
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=1e-5)


def test_base_size_is_the_short_side(image):
    """41 x 67 with base_size 82 reaches the network as 82 x 134; the result has the requested size."""
    model = worker.TinyModel()
    assert predict_logits(model, image, (10, 11), InferenceConfig(base_size=82)).shape == (1, 4, 10, 11)
    assert model.seen[0][0] == (1, 3, 82, 134)


def test_a_class_ruled_out_everywhere_stays_finite(image):
    """A probability of exactly 0 in every view gives a very low logit, not -inf or NaN."""
    model = worker.TinyModel()
    with torch.no_grad():
        model.conv.bias[2] = -1e4
    for options in ({"flip": True}, {"mode": "slide", "window": 24, "scales": [1.0, 1.3]}):
        logits = predict_logits(model, image, (41, 67), InferenceConfig(**options))
        assert logits.isfinite().all() and (logits.argmax(1) != 2).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "tile"}, "--mode is 'tile'; expected one of whole, slide"),
        ({"base_size": -1}, "--base-size is -1; expected at least 0"),
        ({"window": -1}, "--window is -1; expected at least 1"),
        ({"mode": "slide", "window": 64, "stride": 65}, "--stride is 65; expected at most --window 64"),
        ({"window": 64}, "--window is 64; expected none with --mode whole"),
        ({"stride": 64}, "--stride is 64; expected none with --mode whole"),
        ({"scales": []}, "--scales is empty; expected positive"),
        ({"scales": [1.0, float("nan")]}, "--scales is nan; expected above 0"),
    ],
)
def test_invalid_options_raise(options, words):
    """The error names the flag, its value and what is expected."""
    with pytest.raises(ValueError, match=words):
        InferenceConfig(**options)


def test_options_are_flags():
    """The command line has every option, each with a help text."""
    flags = "--base-size 360 --mode slide --window 64 --stride 32 --flip --scales 0.75 1.25"
    (options,) = parse_sections([InferenceConfig], "", flags.split())
    assert options == InferenceConfig(360, "slide", 64, 32, True, [0.75, 1.25])
    assert all(field.metadata["help"] for field in fields(InferenceConfig))


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_evaluation_equals_a_loop_written_by_hand(accelerator):
    """Normalize, predict, argmax at the mask's size, count: the numbers of a plain loop, as plain JSON."""
    model, data, metric = worker.TinyModel(), worker.TinyData(6), MeanIoU()
    for index in range(6):
        sample = data.read(index)
        pixels = (sample.image / 255.0 - np.array(MEAN)) / np.array(STD)
        logits = model.conv(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))
        logits = interpolate(logits, size=sample.mask.shape, mode="bilinear")
        metric.add(prediction=logits.argmax(1)[0].numpy(), reference=sample.mask)
    expected = metric.compute(num_labels=4, ignore_index=255)
    result = evaluate_model(model, data, accelerator, seed=3, config={"a": 1})
    assert json.loads(json.dumps(result)) == result
    assert all(result[key] == expected[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy"))
    assert result["per_class_iou"] == dict(zip(CLASSES, expected["per_category_iou"]))
    assert result["per_class_accuracy"] == dict(zip(CLASSES, expected["per_category_accuracy"]))
    record = {"num_images": 6, "dataset": "tiny", "split": "test", "seed": 3, "config": {"a": 1}}
    assert record.items() <= result.items() and result["seconds"] > 0 and result["score_classes"] is None


def test_images_are_scaled_to_the_size_of_training_by_default(accelerator):
    """base_size None = that of the model, 0 = the size of the images, a number = that; the result records it."""
    data, short = worker.TinyData(1), min(worker.TinyData(1).read(0).image.shape[:2])
    for trained, base_size, expected in ((40, None, 40), (40, 0, short), (40, 50, 50), (None, None, short)):
        model = worker.TinyModel()
        if trained:
            model.config.base_size = trained
        result = evaluate_model(model, data, accelerator, InferenceConfig(base_size=base_size))
        assert min(model.seen[0][0][2:]) == expected and result["inference"]["base_size"] in (expected, 0)


class Oracle(worker.TinyModel):
    """Reads the class from the red channel of TinyData's images, at full resolution."""

    def forward(self, pixel_values):
        red = (pixel_values[:, :1] * STD[0] + MEAN[0]) * 255
        centers = torch.arange(4).view(1, 4, 1, 1) * 60 + 29.5
        return SimpleNamespace(logits=-(red - centers).abs())


def test_a_perfect_model_scores_one_and_a_class_list_restricts_the_mean(accelerator):
    """mean_iou is 1 for the truth, and also where a wrong class is not in score_classes."""
    data = worker.TinyData(8)
    result = evaluate_model(Oracle(), data, accelerator)
    assert result["mean_iou"] == 1 and result["absent_classes"] == []

    class Spoiled(Oracle):
        def forward(self, pixel_values):
            logits = super().forward(pixel_values).logits
            logits[:, 3] = logits[:, 2] + 1  # every car is called a tree
            return SimpleNamespace(logits=logits)

    result = evaluate_model(Spoiled(), data, accelerator, score_classes=["road", "sky"])
    assert result["mean_iou"] == 1 and result["score_classes"] == ["road", "sky"]
    assert result["per_class_iou"]["car"] == 0 and result["mean_iou_all_classes"] < 0.75
    assert result["mean_iou_all_classes"] == np.mean(list(result["per_class_iou"].values()))


def test_absent_classes_are_none_and_named(accelerator):
    """A class in no label and no prediction is None; a class that is only predicted has IoU 0 and is listed separately."""

    class OneLabel(worker.TinyData):
        def read(self, index):
            sample = super().read(index)
            sample.mask[:] = 0
            return sample

    class Half(worker.TinyModel):
        def forward(self, pixel_values):
            logits = torch.zeros(1, 4, *pixel_values.shape[-2:])
            logits[:, 0, :, ::2] = logits[:, 1, :, 1::2] = 1
            return SimpleNamespace(logits=logits)

    result = evaluate_model(Half(), OneLabel(2), accelerator)
    assert result["absent_classes"] == ["car", "tree"] and result["never_labelled_classes"] == ["road"]
    assert result["per_class_iou"]["car"] is None and result["per_class_accuracy"]["road"] is None
    assert result["mean_iou"] == result["per_class_iou"]["sky"] / 2 and (result["classes_scored"], result["num_classes"]) == (2, 4)
    assert in_sentences(result) == [
        f"mean IoU on test: {result['mean_iou']:.4f} (over 2 of 4 classes)",
        "classes that are predicted in test but never labelled, with IoU 0 each: road",
    ]


def test_data_without_a_single_labelled_pixel(accelerator, tmp_path):
    """All pixels ignored: the means are None, and the picture is drawn."""
    data = worker.TinyData(2)
    empty = SimpleNamespace(image=np.zeros((40, 40, 3), np.uint8), mask=np.full((40, 40), 255), name="")
    data.read = lambda index: empty
    results = evaluate_model(worker.TinyModel(), data, accelerator, pictures_dir=tmp_path)
    assert [results[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_iou_all_classes")] == [None] * 4
    assert results["classes_scored"] == 0 and results["num_classes"] == 4 and set(results["per_class_iou"].values()) == {None}
    assert in_sentences(results) == ["mean IoU on test: undefined, because no pixel is labelled"]
    assert (tmp_path / "predictions.png").is_file()
    json.dumps(results, allow_nan=False)


def test_the_model_is_in_evaluation_mode_and_its_mode_is_restored(accelerator):
    """Dropout is off during evaluation; the training mode is restored, also after an error."""
    model = worker.TinyModel().train()
    evaluate_model(model, worker.TinyData(2), accelerator)
    assert model.training and not any(training for _, training in model.seen)
    with pytest.raises(ValueError, match=r"image1\.png is truncated"):
        evaluate_model(model, worker.TinyData(3, broken=1), accelerator)
    assert model.training


@pytest.mark.parametrize(
    ("classes", "score", "words"),
    [
        (CLASSES[:3], None, "3 classes; expected the 4 classes of tiny"),
        (("sky", "car", "road", "tree"), None, "Class 1 of the model is 'car'; expected 'road', as in tiny"),
        (CLASSES, ["raod"], "--score-classes has 'raod'.*Did you mean road"),
        (CLASSES, ["sky", "sky"], "each once"),
        (CLASSES, [], "one or more"),
    ],
)
def test_mismatched_classes_raise_before_the_first_image(accelerator, classes, score, words):
    """Classes that differ from those of the model raise one message, and no image is read."""
    model = worker.TinyModel(classes=classes)
    with pytest.raises(ValueError, match=words):
        evaluate_model(model, worker.TinyData(3, broken=0), accelerator, score_classes=score)
    assert not model.seen


def test_an_error_in_a_picture_keeps_the_scores(accelerator, tmp_path, monkeypatch, caplog):
    """The scores are returned, and the log has the missing picture and the reason."""
    def fails(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("mscl_hf.evaluation.evaluate.prediction_sheet", fails)
    results = evaluate_model(worker.TinyModel(), worker.TinyData(5), accelerator, pictures_dir=tmp_path)
    assert results["mean_iou"] == evaluate_model(worker.TinyModel(), worker.TinyData(5), accelerator)["mean_iou"]
    assert "predictions.png could not be drawn" in caplog.text and "no font" in caplog.text


def test_bf16_is_used_where_the_accelerator_says_so():
    """With mixed precision the model computes in bf16, and the scores stay close."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    dtypes = []

    class Spy(worker.TinyModel):
        def forward(self, pixel_values):
            output = super().forward(pixel_values)
            dtypes.append(output.logits.dtype)
            return output

    try:
        half = evaluate_model(Spy(), worker.TinyData(4), Accelerator(cpu=True, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    full = evaluate_model(worker.TinyModel(), worker.TinyData(4), Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert set(dtypes) == {torch.bfloat16} and half["precision"] == "bf16"
    assert abs(half["mean_iou"] - full["mean_iou"]) < 0.02


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return the worker's results: of one process, and of both ranks of two."""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    runs = {}
    for name, launch in {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }.items():
        folder = tmp_path_factory.mktemp(name)
        done = subprocess.run([*launch, WORKER, folder], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        runs[name] = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    return runs


@pytest.mark.parametrize("size", [1, 5, 7, 9])
def test_two_processes_give_the_scores_of_one(outputs, size):
    """Also with a different number of images on the processes, or none on one, both ranks return the results of one process."""
    (one,), two = outputs["one"], outputs["two"]
    assert one["world"] == 1 and [output["world"] for output in two] == [2, 2]
    assert one[str(size)] == two[0][str(size)] == two[1][str(size)]
    assert one[str(size)]["num_images"] == size


def test_a_failure_on_one_process_ends_all(outputs):
    """The process that reads a broken image names it; the others stop instead of waiting."""
    assert "image3.png is truncated" in outputs["one"][0]["broken"]
    assert "failed on another process" in outputs["two"][0]["broken"]
    assert "image3.png is truncated" in outputs["two"][1]["broken"]


def test_a_model_without_mean_and_std_raises(accelerator):
    """They are never replaced by ImageNet's: one sentence, before the first image is read."""
    model = worker.TinyModel()
    del model.config.image_std
    with pytest.raises(ValueError, match="image_mean and image_std of the model's configuration are .* and None; expected"):
        evaluate_model(model, worker.TinyData(3, broken=0), accelerator)


def test_a_model_saved_in_bfloat16_is_measured_in_float32(tmp_path):
    """A model that a recipe opens computes in float32, in whatever type it was saved."""
    from mscl_hf.models.backbones import build_config
    from mscl_hf.models.loading import open_model
    from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

    config = build_config("test_resnet", image_size=64, decoder_channels=16, num_labels=2)
    MsclForSemanticSegmentation(config).to(torch.bfloat16).save_pretrained(tmp_path)
    network = open_model(MsclForSemanticSegmentation, str(tmp_path))
    assert network.dtype == torch.float32 and network.eval()(torch.randn(1, 3, 64, 64)).logits.dtype == torch.float32
