"""Probes: a ridge regression that measures features, a logistic regression that initializes a classifier."""

import harness
import pytest
import torch
import torch.nn.functional as F

from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.losses import labels_at
from mscl_hf.training.probe import logistic_regression, ridge_probe, start_classifier
from mscl_hf.transforms.views import TrainView


def test_probe_reads_what_is_linear_and_nothing_else():
    """Classes given by the largest of K features: near one; noise: near chance; ignored positions change nothing."""
    generator = torch.Generator().manual_seed(0)
    classes, positions = 4, 400

    def part(signal: float):
        labels = torch.randint(0, classes, (2, positions), generator=generator)
        return signal * F.one_hot(labels, classes).float() + 0.1 * torch.randn(2, positions, classes, generator=generator), labels

    (x, y), (x_held, y_held) = part(1.0), part(1.0)
    assert ridge_probe(x, y, x_held, y_held, classes) > 0.99
    noisy, noisy_held = part(0.0), part(0.0)
    assert ridge_probe(*noisy, *noisy_held, classes) < 0.25  # chance: IoU 1/7
    x, y, y_held = x.clone(), y.clone(), y_held.clone()
    x[:, ::2], y[:, ::2], y_held[:, ::3] = 1e3 * torch.randn(x[:, ::2].shape, generator=generator), 255, 255
    assert ridge_probe(x, y, x_held, y_held, classes) > 0.99


def test_probe_without_labels_is_none():
    """Without a labelled position on either side the result is None, not NaN."""
    x, y, nothing = torch.randn(1, 9, 4), torch.zeros(1, 9).long(), torch.full((1, 9), 255)
    assert ridge_probe(x, nothing, x, y, 2) is None and ridge_probe(x, y, x, nothing, 2) is None


def test_probe_survives_dead_and_doubled_features():
    """Constant, zero and repeated columns make the plain normal equations singular; the ridge regression works."""
    labels = torch.arange(2).repeat(1, 50)
    feature = labels[..., None].float()
    x = torch.cat([feature, feature, torch.zeros(1, 100, 1), torch.full((1, 100, 1), 7.0)], dim=-1)
    assert ridge_probe(x, labels, x, labels, 2) == 1


def test_logistic_regression_finds_the_minimum():
    """The objective is convex: a gradient of zero is the answer; a class without examples has finite and small logits."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (300,), generator=generator)
    x = F.one_hot(y, 3).float() + torch.randn(300, 3, generator=generator)
    weight, bias = (value.double().requires_grad_() for value in logistic_regression(x, y, 4, penalty=0.01))
    loss = F.cross_entropy(F.linear(x.double(), weight, bias), y) + 0.01 * (weight.square().sum() + bias.square().sum())
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    share = F.linear(x, weight.float(), bias.float()).softmax(1)[:, 3]
    assert share.max() < 0.2 and bias[3] > -10


def training(scenes=6, labels=None):
    data = harness.scenes(scenes)
    ready = TrainingImages(data, None, TrainView(32, 32), 0, SamplingPlan(tuple(range(scenes)), (), 3, 3, 0))
    if labels is not None:
        view = TrainView(32, 32)
        view.on_device = lambda batch: batch | {"mask": labels.expand_as(batch["mask"])}
        ready = TrainingImages(data, None, view, 0, ready.plan)
    return ready


def test_start_classifier_returns_its_accuracy():
    """The accuracy is that of the network's logits afterwards; nothing but the classifier changes."""
    method = harness.finetuning()
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    accuracy = start_classifier(method, training(), 4)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"network.classifier.weight", "network.classifier.bias"} and method.training
    method.network.dropout.eval()
    hits, count = 0, 0
    for batch in training().batches(0, 4):
        logits = method.network(method.normalize(batch["image"])).logits  # by batch statistics, as the classifier was fitted
        labels = labels_at(batch["mask"], logits.shape[-2:])
        hits += int(((logits.flatten(2).argmax(1) == labels) & (labels != 255)).sum())
        count += int((labels != 255).sum())
    assert hits / count == pytest.approx(accuracy, abs=0.01)
    assert accuracy > 0.4  # the most frequent class alone gives less


def test_positions_without_labels_do_not_count():
    """Without labels the result is None, and nothing changes."""
    method = harness.finetuning()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    assert start_classifier(method, training(labels=torch.full((32, 32), 255, dtype=torch.uint8)), 2) is None
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    half = torch.full((32, 32), 255, dtype=torch.uint8)
    half[:16] = 2
    assert start_classifier(method, training(labels=half), 2) == 1


def test_only_a_new_classifier_is_fitted(tmp_path, capsys):
    """Fine-tuning a pre-trained model fits one; continuing a fine-tuned model or --probe-batches 0 does not."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--output-dir", tmp_path / "none")
    short = (*harness.SHORT, "--max-steps", 1, "--val-split", "none")
    fitted = []
    for source, target, more in (("none", "b", ()), ("b", "c", ()), ("none", "d", ("--probe-batches", 0))):
        capsys.readouterr()
        harness.run("finetune", "--model", tmp_path / source, *short, *more, "--output-dir", tmp_path / target)
        fitted.append("new classifier, fitted alone" in capsys.readouterr().out)
    assert fitted == [True, False, False]
