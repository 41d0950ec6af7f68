"""Weights of classes: their closed form, the files that hold them, and what they do to each loss with a cross-entropy."""

import json
import math

import harness
import pytest
import torch
import torch.nn.functional as F
from test_recipes import write_folder

from mscl_hf.config import FinetuningLossConfig
from mscl_hf.data.class_weights import LIMITS, balanced_weights, weights_from_file
from mscl_hf.methods import SegmentationTraining
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES
from mscl_hf.models.cross_entropy_mscl import mean_cross_entropy

CLASSES = ("road", "car", "sky")


@pytest.mark.parametrize(
    "pixels, weights",
    [([50, 50], [1, 1]), ([60, 20, 40], [40 / 60, 2, 1]), ([100, 0, 300], [2, 1, 2 / 3]), ([10**6, 1], [0.5, LIMITS[1]]),
     ([99 * 10**6] + 98 * [10**4], None), ([0, 0], [1, 1])],
)  # fmt: skip
def test_balanced_weights(pixels, weights):
    """N / (K n) of the classes that occur, within the limits; a class without a pixel has the weight 1."""
    if weights is None:  # one class with 99% of the pixels of 99 classes
        weights = [LIMITS[0]] + 98 * [LIMITS[1]]
    assert balanced_weights(pixels) == pytest.approx(weights)


def test_weighted_cross_entropy_in_closed_form():
    """Two labelled pixels and an ignored one: (3 log 2 + 1 (-log 0.9)) / 4 for weights 3 and 1."""
    logits = torch.tensor([[[[0.0, math.log(9.0), 5.0]], [[0.0, 0.0, -5.0]]]])  # (1, 2, 1, 3): p = 1/2; 0.9; ignored
    labels = torch.tensor([[[1, 0, 255]]])
    loss = mean_cross_entropy(logits, labels, torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((3 * math.log(2) - math.log(0.9)) / 4, rel=1e-6)
    ignored = mean_cross_entropy(logits.requires_grad_(), torch.full((1, 1, 3), 255), torch.tensor([1.0, 3.0]))
    assert ignored.item() == 0 and ignored.requires_grad


def test_equal_weights_are_none():
    """With equal weights every loss with a cross-entropy has its former value, up to rounding."""
    batch = next(iter(harness.training_data("finetune").batches(0, 1)))
    for name, row in FINETUNING_LOSSES.items():
        if row.cross_entropy:
            losses = []
            for weights in (None, [2.5] * 8):
                method = SegmentationTraining(harness.finetuning(dropout=0.0).network, FinetuningLossConfig(loss=name), weights).train()
                torch.manual_seed(0)
                losses.append(method(**batch)["loss"].item())
            assert losses[1] == pytest.approx(losses[0], rel=1e-5), name


def test_weights_reach_both_heads():
    """The loss is that of torch with these weights, of the classifier and of the auxiliary head."""
    batch = next(iter(harness.training_data("finetune").batches(0, 1)))
    weights = [0.1, 2.0, 1.0, 0.5, 3.0, 1.0, 1.0, 7.0]
    method = SegmentationTraining(harness.finetuning(dropout=0.0).network, None, weights).train()
    losses = method(**batch)
    logits = method.network.both_logits(method.normalize(batch["image"]))
    expected = []
    for part in logits:
        full = F.interpolate(part, size=batch["mask"].shape[-2:], mode="bilinear", align_corners=False)
        expected.append(F.cross_entropy(full, batch["mask"].long(), torch.tensor(weights), ignore_index=255).item())
    assert losses["loss_ce"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss"].item() == pytest.approx(expected[0] + 0.4 * expected[1], rel=1e-5)
    assert "class_weights" not in method.state_dict()


@pytest.mark.parametrize(
    "name, text",
    [("a.csv", "name,weight\ncar,2\nsky,0.5\n"), ("b.csv", "car, 2\n\nsky, 0.5\n"), ("c.json", '{"sky": 0.5, "car": 2}'),
     ("d.json", '\ufeff[["car", 2], ["sky", 0.5]]')],
)  # fmt: skip
def test_files_of_weights(tmp_path, name, text):
    """CSV with and without a header, JSON; a class that is left out has the weight 1."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert weights_from_file(str(tmp_path / name), CLASSES) == [1, 2, 0.5]


@pytest.mark.parametrize(
    "text, words",
    [("bus,2", ("names 'bus'", "road, car, sky")), ("cars,2", ("names 'cars'", "Did you mean car?")), ("car,-1", ("'car' is -1.0",)),
     ("car,2\ncar,3", ("'car' more than once",)), ("car,nan", ("'car' is nan",)), ("road,0\ncar,0\nsky,0", ("all weights are 0",)),
     ("car", ("cannot be read",)), ("car,much", ("cannot be read", "much")), ("car,1,2", ("cannot be read",))],
)  # fmt: skip
def test_files_that_are_rejected(tmp_path, text, words):
    """One sentence with the file, the value and what is expected."""
    file = tmp_path / "weights.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match="--class-weights is .*weights.csv") as rejected:
        weights_from_file(str(file), CLASSES)
    assert all(word in str(rejected.value) for word in words) and "\n" not in str(rejected.value)


def test_what_is_no_file_is_rejected(tmp_path):
    """A missing file, a JSON file of another type, and a loss without a cross-entropy."""
    with pytest.raises(ValueError, match="expected balanced or the path of a CSV or JSON file"):
        weights_from_file("balance", CLASSES)
    (tmp_path / "weights.json").write_text("3")
    with pytest.raises(ValueError, match="it holds a int"):
        weights_from_file(str(tmp_path / "weights.json"), CLASSES)
    message = harness.rejected("finetune", "--loss", "ohem", "--class-weights", "balanced", "--output-dir", tmp_path / "out")
    assert message.startswith("--class-weights is given, and --loss ohem does not read it.") and "--loss ce or" in message


def test_weights_are_logged_and_on_the_card(tmp_path, capsys):
    """Fine-tuning with balanced weights and with a file."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", tmp_path / "start",
                draw_features=lambda *_: None)  # fmt: skip
    data = write_folder(tmp_path / "data")
    names = [f"class_{i}" for i in range(8)]
    (tmp_path / "weights.json").write_text(json.dumps({"class_3": 4}))
    for name, given in (("balanced", "balanced"), ("file", tmp_path / "weights.json")):
        harness.run(
            "finetune", "--model", tmp_path / "start", "--dataset", "folder", "--data-dir", data, "--num-classes", 8, "--batch-size", 4,
            "--dataloader-num-workers", 0, "--max-steps", 1, "--val-split", "none", "--class-weights", given,
            "--output-dir", tmp_path / name,
        )  # fmt: skip
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("class weights: "))
        stage = json.loads((tmp_path / name / "provenance.json").read_text())["stages"][-1]
        assert line == f"class weights: {stage['facts']['class weights']}"
        assert [word.rsplit(" ", 1)[0] for word in line.removeprefix("class weights: ").split(", ")] == names
        assert "class weights" in (tmp_path / name / "README.md").read_text()
    assert "class_3 4" in line and "class_0 1," in line
    assert str(tmp_path) not in json.dumps(stage)
