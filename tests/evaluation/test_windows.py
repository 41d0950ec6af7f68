"""Windows and bands: weights, seams, equality with whole images, and the memory of large images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_evaluate import worker
from torch import nn

from mscl_hf.config import InferenceConfig
from mscl_hf.evaluation import Predictor, prediction
from mscl_hf.evaluation.inference import predict_ids, predict_logits
from mscl_hf.evaluation.windows import axis_weights, window_starts


class Convolutions(nn.Module):
    """A fully convolutional network of stride 1 whose output depends on the pixels at a distance of at most `radius`."""

    def __init__(self, radius: int, classes: int = 4, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        widths = [3, *[8] * (radius - 1), classes]
        layers = [layer for i in range(radius) for layer in (nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.Tanh())]
        self.layers = nn.Sequential(*layers[:-1]).double()
        self.config = SimpleNamespace(num_labels=classes, image_mean=(0.5,) * 3, image_std=(0.2,) * 3)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layers(pixel_values.double()))


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def windows(window: int, stride: int, **options) -> InferenceConfig:
    return InferenceConfig(mode="slide", window=window, stride=stride, **options)


def test_weights_are_positive_somewhere_and_add_up_to_one():
    """For any length, window and stride each pixel has a positive weight; with two windows at a pixel the weights add up to 1."""
    for length in range(1, 40):
        for window in range(1, 15):
            for stride in range(1, window + 1):
                options, total, count = windows(window, stride), torch.zeros(length), torch.zeros(length)
                starts = window_starts(length, window, stride)
                for start in starts:
                    weights = axis_weights(start, length, options)
                    assert weights.min() >= 0 and weights.max() <= 1
                    total[start : start + window] += weights
                    count[start : start + window] += 1
                assert total.min() > 0, (length, window, stride)
                regular = len({b - a for a, b in zip(starts, starts[1:])}) <= 1 and count.max() <= 2
                if regular and stride < window and (length - window) % stride == 0:
                    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(
    ("stride", "tops", "lefts"),
    [(16, (0, 16, 17), (0, 16, 32, 43)), (9, (0, 9, 17), (0, 9, 18, 27, 36, 43)), (24, (0, 17), (0, 24, 43))],
)
def test_windows_are_averaged_by_their_weights(stride, tops, lefts):
    """Slow reference: sum of softmaxes times weights, divided by the sum of the weights, window after window over the whole image."""
    model, image, options = worker.TinyModel(stride=1), image_of(41, 67), windows(24, stride)
    total, weight = torch.zeros(1, 4, 41, 67), torch.zeros(41, 67)
    for top in tops:
        for left in lefts:
            region = (..., slice(top, top + 24), slice(left, left + 24))
            weights = axis_weights(top, 41, options)[:, None] * axis_weights(left, 67, options)
            total[region] += model.conv(image[region]).softmax(1).detach() * weights
            weight[region] += weights
    torch.testing.assert_close(predict_logits(model, image, (41, 67), options).softmax(1), total / weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize(("height", "width", "window", "stride"), [(90, 131, 48, 32), (64, 200, 40, 24), (100, 33, 33, 20)])
def test_windows_equal_the_whole_image_up_to_the_receptive_field(radius, height, width, window, stride):
    """Where the receptive field reaches no further than a quarter of the overlap, class ids equal those of the whole image in each pixel.

    Uniform weights differ from the whole image, since they include pixels without their surroundings.
    """
    assert radius <= (window - stride) // 4
    model, image, size = Convolutions(radius), image_of(height, width), (height, width)
    whole = predict_logits(model, image, size)
    slide = predict_logits(model, image, size, windows(window, stride))
    torch.testing.assert_close(slide.softmax(1), whole.softmax(1), atol=1e-6, rtol=0)
    assert torch.equal(*(predict_ids(model, image, size, options)[0] for options in (windows(window, stride), None)))
    uniform = predict_logits(model, image, size, windows(window, stride, window_weights="uniform"))
    assert (uniform.softmax(1) - whole.softmax(1)).abs().max() > 1e-3


def test_there_is_no_seam():
    """A network that answers the opposite in the next window: uniform weights give steps at borders of windows, distance none."""

    class Alternating:
        calls = 0

        def __call__(self, pixel_values):
            self.calls += 1
            logits = torch.tensor([5.0, -5.0]) * (-1) ** self.calls
            return SimpleNamespace(logits=logits[None, :, None, None].expand(1, 2, *pixel_values.shape[-2:]))

    image = image_of(80, 160)

    def largest_step(weights):
        share = predict_logits(Alternating(), image, (80, 160), windows(48, 32, window_weights=weights)).softmax(1)[0, 0]
        return max(float(share.diff(dim=dim).abs().max()) for dim in (0, 1))

    assert largest_step("uniform") > 0.3
    assert largest_step("distance") < 0.16  # 1/8 for a full change within the 8 middle pixels of an overlap of 16


OPTIONS = [
    {}, {"flip": True}, {"base_size": 30}, {"base_size": 90, "flip": True, "scales": [0.5, 1.0, 1.7]},
    {"mode": "slide", "window": 24}, {"mode": "slide", "window": 24, "flip": True, "scales": [0.4, 1.0, 2.3]},
    {"mode": "slide", "window": 24, "base_size": 33, "window_weights": "uniform"}, {"mode": "slide", "window": 60},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("band", [1, 200, 900])
def test_bands_equal_the_whole_map(monkeypatch, options, band):
    """The bands of a large image are, joined, the logits of `predict_logits` up to rounding, whatever their height."""
    model, config = worker.TinyModel(stride=1), InferenceConfig(**options)
    image = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    predictor = Predictor(model, model.config, torch.device("cpu"), config)
    (whole,) = predictor.bands(image)
    (ids,) = predictor.ids([image])
    monkeypatch.setattr(prediction, "MAX_MAP", 1)
    monkeypatch.setattr("mscl_hf.evaluation.bands.BAND", band)
    bands = list(predictor.bands(image))
    assert len(bands) > 2 and all(part.shape[2] * 67 <= max(band, 67) for part in bands)
    torch.testing.assert_close(torch.cat(bands, 2).softmax(1), whole.softmax(1), atol=2e-6, rtol=0)
    assert (predictor.ids([image])[0] != ids).float().mean() < 2e-3
    torch.testing.assert_close(torch.cat(list(predictor.bands(image, (53, 20))), 2), predict_logits(
        model, predictor.normalized(image), (53, 20), config), atol=2e-5, rtol=1e-5)  # fmt: skip


def test_bands_of_windows_at_the_stored_size_are_exact(monkeypatch):
    """Without scaling nothing is interpolated: the bands equal the whole map bit for bit."""
    model = worker.TinyModel(stride=2)
    image = np.random.default_rng(0).integers(0, 256, (90, 67, 3), dtype=np.uint8)
    predictor = Predictor(model, model.config, torch.device("cpu"), windows(24, 16))
    (whole,) = predictor.bands(image)
    monkeypatch.setattr(prediction, "MAX_MAP", 1)
    monkeypatch.setattr("mscl_hf.evaluation.bands.BAND", 300)
    assert torch.equal(torch.cat(list(predictor.bands(image)), 2), whole)


def test_the_network_receives_windows_of_a_few_rows_at_a_time(monkeypatch):
    """Windows are computed when a band needs them, so that the memory does not grow with the height of the image."""
    monkeypatch.setattr(prediction, "MAX_MAP", 1)
    monkeypatch.setattr("mscl_hf.evaluation.bands.BAND", 64)
    model, image = worker.TinyModel(stride=1), np.zeros((400, 64, 3), np.uint8)
    seen = []
    for number, _ in enumerate(Predictor(model, model.config, torch.device("cpu"), windows(32, 24)).bands(image)):
        seen.append(len(model.seen) / 3)  # rows of 3 windows
        assert seen[-1] <= number / 24 + 2
    assert len(seen) == 400 and seen[-1] == len(window_starts(400, 32, 24))
