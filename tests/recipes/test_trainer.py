"""recipes/trainer.py as a user runs it: transformers' Trainer fine-tunes a folder, measures it, and goes on where it was stopped."""

import json
import shutil

import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from mscl_hf import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.data import load_data
from mscl_hf.models.backbones import build_config
from mscl_hf.sharing.model_folder import write_model

torch.set_num_threads(1)
FLAGS = ("--max-steps", 4, "--per-device-train-batch-size", 4, "--save-steps", 2, "--logging-steps", 1, "--train-count", 6)
MEASURED = ("--eval-strategy", "steps", "--eval-steps", 2)  # which draws random numbers too


@pytest.fixture
def start(tmp_path):
    """A pre-trained folder."""
    torch.manual_seed(0)
    write_model(MsclForPreTraining(build_config("test_resnet", image_size=64, decoder_channels=16)), tmp_path / "pretrained")
    return tmp_path / "pretrained"


def mean_iou_at_once(folder) -> float:
    """Over the pixels of all held-out images together, class by class."""
    model, processor = AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    data, predicted, true = load_data("synthetic", "val"), [], []
    for sample in map(data.read, range(len(data))):
        with torch.no_grad():
            logits = model(**processor(np.array(sample.image), return_tensors="pt")).logits
        logits = F.interpolate(logits, size=sample.mask.shape, mode="bilinear", align_corners=False)
        predicted.append(logits[0].argmax(0).numpy().ravel())
        true.append(sample.mask.ravel())
    predicted, true = np.concatenate(predicted), np.concatenate(true)
    predicted, true = predicted[true != 255], true[true != 255]
    unions = [((predicted == k) | (true == k)).sum() for k in range(data.num_classes)]
    shares = [((predicted == k) & (true == k)).sum() / union for k, union in enumerate(unions) if union]
    return float(np.mean(shares))


def test_trainer_fine_tunes_measures_and_resumes(recipe, start, tmp_path):
    """A classifier for the classes of the data on a pre-training folder; the mean IoU is that over all predictions at once, though it was
    measured before; a run of which only the checkpoint of step 2 is left, and one from the start, end in another process in the same
    weights, bit for bit."""
    whole = tmp_path / "whole"
    shown = recipe("trainer", "--model", start, "--output-dir", whole, *FLAGS, *MEASURED).stdout
    model = MsclForSemanticSegmentation.from_pretrained(whole)
    classes = load_data("synthetic", "val").classes
    assert model.config.label2id == {name: i for i, name in enumerate(classes)} and model.config.architectures == [type(model).__name__]
    before, end = load_file(start / "model.safetensors"), load_file(whole / "model.safetensors")
    trained = [key for key in before if key.startswith(("backbone.", "decoder.")) and key.endswith("weight")]
    moved = [float((end[key] - before[key]).abs().max()) for key in trained]
    assert min(moved) > 0 and max(moved) < 0.05  # from there, by four small steps, not from a new network
    figures = json.loads((whole / "eval_results.json").read_text())
    assert figures["eval_mean_iou"] == mean_iou_at_once(whole) and f"mean IoU on val: {figures['eval_mean_iou']:.4f}" in shown

    shutil.copytree(whole / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    saved = (tmp_path / "stopped" / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns
    for out, more in (("stopped", ("--resume", "--val-split", "none")), ("again", MEASURED)):
        torch.manual_seed(99)
        harness.run("trainer", "--model", start, "--output-dir", tmp_path / out, *FLAGS, *more)
        found = load_file(tmp_path / out / "model.safetensors")
        assert found.keys() == end.keys() and all(torch.equal(found[key], end[key]) for key in end)
        assert losses(tmp_path / out) == losses(whole) and len(losses(whole)) == 4
    assert (tmp_path / "stopped" / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns == saved  # it did not begin anew
    halfway = load_file(whole / "checkpoint-2" / "model.safetensors")
    assert all((halfway[key] != end[key]).any() for key in trained)


def losses(folder) -> list[float]:
    """Of each step, as the run logged them."""
    rows = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(("flags", "message"), [
    (("--model", "/no/such/folder"), "there is no model folder /no/such/folder. Give"),
    (("--max-steps", 0), "--max-steps is 0, --streaming False; give at least 1"),
    (("--learning-rat", 1), "--learning-rat is not an option of this command. Did you mean --learning-rate?"),
])  # fmt: skip
def test_wrong_input_ends_in_one_sentence(flags, message, tmp_path):
    """As in the other recipes: what came, what was wanted, and exit status 1."""
    assert message in harness.rejected("trainer", *flags, "--output-dir", tmp_path)
