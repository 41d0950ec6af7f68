"""Runs of semi-supervised fine-tuning: several processes, stops, the published network, the card and the pictures."""

import json

import harness
import pytest
import test_semi_supervised as semi
import torch
from safetensors.torch import load_file
from same_run import differences
from test_two_processes import load, run_two

from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log

worker = load("semi_worker")
FLAGS = ("--unlabelled", "rest", "--semi-supervised", "fixmatch", "--confidence-threshold", 0.2, "--max-steps", 4)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_two("semi_worker", tmp_path_factory.mktemp("semi"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("semi_model") / "model"
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", out,
                draw_training=lambda *_: None, draw_features=lambda *_: None)  # fmt: skip
    return out


@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_are_one(two_processes, case):
    """Losses, the gradient of every parameter and the teacher are those of one process with the whole batch."""
    expected = worker.step(case)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-3
    for rank in range(2):
        for actual, part in zip(two_processes[rank][case], expected):
            assert actual.keys() == part.keys()
            for key in part:
                torch.testing.assert_close(actual[key], part[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("name", "options", "stop"), [
    ("fixmatch", {}, 3), ("mean_teacher", {"optim": "adamw", "learning_rate": 1e-3, "gradient_accumulation_steps": 2}, 2),
    ("unimatch_v2", {"dataloader_num_workers": 2}, 1),
])  # fmt: skip
def test_stopped_and_resumed_equals_straight(tmp_path, name, options, stop):
    """SIGTERM after a step, then a resumed run: network, teacher, optimizer and log are those of an undisturbed run, bit for bit."""
    options = {"max_steps": semi.STEPS, "save_steps": semi.STEPS} | options
    harness.train(semi.training(name), semi.semi_data(name), tmp_path / "straight", **options)
    method = semi.training(name)
    update = method.after_step
    harness.stop_after(method, stop, semi.STEPS)
    stops = method.after_step
    method.after_step = lambda done: (update(done), stops(done))
    with pytest.raises(SystemExit):
        harness.train(method, semi.semi_data(name), tmp_path / "stopped", **options)
    assert [folder.name for folder in checkpoint_folder.complete(tmp_path / "stopped")] == [f"step-{stop:08d}"]
    harness.train(semi.training(name, seed=99), semi.semi_data(name), tmp_path / "stopped", **options)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []


@pytest.mark.parametrize("publish", ["teacher", "network"])
def test_what_is_published(model, tmp_path, publish):
    """The weights of the model folder are the teacher's or the network's; card and log say which, and how many images had no mask."""
    flags = (*harness.SHORT, *FLAGS, "--model", model, "--publish", publish, "--eval-steps", 2)
    harness.run("finetune", *flags, "--output-dir", tmp_path / "out")
    step = json.loads((tmp_path / "out" / "results.json").read_text())["step"]
    checkpoint = load_file(tmp_path / "out" / "checkpoints" / f"step-{step:08d}" / "method.safetensors")
    prefix = {"teacher": "teacher.parts.network.", "network": "network."}[publish]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights and all(torch.equal(value, checkpoint[prefix + name]) for name, value in weights.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| published network | {'the EMA teacher' if publish == 'teacher' else 'the trained network'} |" in card
    assert "| images without labels | 504 |" in card and "| images with labels | 8 |" in card
    rows = read_log(tmp_path / "out" / "log.jsonl")
    other = {"teacher": "network", "network": "teacher"}[publish]
    assert [row["step"] for row in rows if {"val_mean_iou", f"val_mean_iou_{other}"} <= row.keys()] == [2, 4]
    assert [row["step"] for row in rows if "pseudo_label_share" in row] == [2, 4]
    of_classes = [row for row in rows if {"val_class_iou", f"val_class_iou_{other}"} <= row.keys()]
    assert len(of_classes) == 2 and all(len(row["val_class_iou"]) == 8 for row in of_classes)
    assert (tmp_path / "out" / "pseudo_labels.png").is_file() and (tmp_path / "out" / "classes.png").is_file()


def test_weight_zero_is_plain_fine_tuning(model, tmp_path):
    """A whole run with weight 0 publishes the weights of plain fine-tuning, bit for bit, from one fitted classifier on."""
    flags = (*harness.SHORT, "--model", model, "--val-split", "none", "--max-steps", 3)
    harness.run("finetune", *flags, "--output-dir", tmp_path / "plain")
    harness.run("finetune", *flags, *FLAGS[:4], "--unlabelled-weight", 0, "--publish", "network", "--output-dir", tmp_path / "zero")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "zero"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
