"""The best step by held-out mean IoU: its checkpoint is kept, its weights are the result, and training may stop early."""

import json

import harness
import pytest
import torch
from safetensors.torch import load_file
from same_run import differences, logged
from test_recipes import on_two, write_folder

from mscl_hf.config import FinetuneTrainingConfig
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.loop import fit
from mscl_hf.training.selection import BestStep, Scores

STEPS = 8
VALUES = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.45, 6: 0.3, 7: 0.1, 8: 0.0}  # by step; of two equal ones the first is the best


def train(method, out, every=1, patience=0, values=VALUES, publish="best", **given):
    """Fine-tune with a mean IoU that is read from a table; return the method and the best step."""
    out.mkdir(exist_ok=True)
    best = BestStep(lambda method: Scores(values[round(method.fraction_done * STEPS) + 1]), every, patience, publish=publish)
    options = harness.options(**{"max_steps": STEPS, "logging_steps": 1, **given})
    fit(method, harness.training_data("finetune"), options, out, harness.fresh_accelerator(), best=best)
    return method, best


def steps_kept(out) -> list[int]:
    return [checkpoint_folder.step_of(folder) for folder in checkpoint_folder.complete(out)]


def test_the_weights_of_the_best_step_are_the_result(tmp_path):
    """They equal those of a run without evaluation after the same step; the newest two checkpoints and the best are kept."""
    options = {"max_steps": STEPS, "save_steps": 1, "save_total_limit": 9, "logging_steps": 1}
    harness.train(harness.finetuning(), harness.training_data("finetune"), tmp_path / "plain", **options)
    method, best = train(harness.finetuning(), tmp_path / "best", save_steps=3)
    assert (best.step, best.value, best.last_step) == (2, 0.5, STEPS)
    assert steps_kept(tmp_path / "best") == [2, 6, 8]
    expected = load_file(checkpoint_folder.folder_of(tmp_path / "plain", 2) / "method.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in method.state_dict().items())
    last = load_file(checkpoint_folder.folder_of(tmp_path / "plain", STEPS) / "method.safetensors")
    stored = load_file(checkpoint_folder.folder_of(tmp_path / "best", STEPS) / "method.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in last.items())  # evaluation changes nothing in training
    assert [row["val_mean_iou"] for row in logged(tmp_path / "best") if "val_mean_iou" in row] == list(VALUES.values())


def test_training_stops_early(tmp_path, capsys):
    """After three evaluations without a higher value; the same command then trains no further, and its weights are the same."""
    method, best = train(harness.finetuning(), tmp_path, patience=3)
    assert (best.step, best.last_step, best.stops) == (2, 5, True)
    assert steps_kept(tmp_path)[-1] == 5 and checkpoint_folder.is_complete(tmp_path, STEPS)
    again, best = train(harness.finetuning(seed=9), tmp_path, patience=3)
    assert (best.step, best.last_step) == (2, 5) and "training is complete" in capsys.readouterr().out
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())


def test_the_last_step_can_be_published(tmp_path):
    """The evaluations are logged and may stop training, and the weights are those of the last step."""
    options = {"max_steps": STEPS, "logging_steps": 1}
    plain = harness.finetuning()
    harness.train(plain, harness.training_data("finetune"), tmp_path / "plain", **options)
    method, best = train(harness.finetuning(), tmp_path / "last", publish="last")
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in method.state_dict().items())
    assert (best.published_step, best.step) == (STEPS, 2) and "of the last step, 8; step 2 had the highest" in best.in_words("val")
    assert len([row for row in logged(tmp_path / "last") if "val_mean_iou" in row]) == STEPS


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_stopped_and_resumed_equals_straight(tmp_path, stop):
    """The best step, the count of evaluations and every logged number go on in a resumed run."""
    straight, _ = train(harness.finetuning(), tmp_path / "straight", every=2, patience=3)
    method = harness.finetuning()
    harness.stop_after(method, stop, STEPS)
    with pytest.raises(SystemExit):
        train(method, tmp_path / "stopped", every=2, patience=3)
    resumed, best = train(harness.finetuning(seed=9), tmp_path / "stopped", every=2, patience=3)
    assert (best.step, best.last_step) == (2, STEPS)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def test_a_damaged_best_checkpoint_is_an_error(tmp_path):
    """Its name and the damaged file are reported; no other weights are published instead."""
    train(harness.finetuning(), tmp_path)
    file = checkpoint_folder.folder_of(tmp_path, 2) / "method.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(checkpoint_folder.DamagedCheckpoint, match="step-00000002 is damaged"):
        train(harness.finetuning(), tmp_path)


def test_options_that_need_each_other():
    """Early stopping needs evaluations, which sharded networks do not have."""
    with pytest.raises(ValueError, match="--early-stopping is 2 without --eval-steps. Give --eval-steps as well."):
        FinetuneTrainingConfig(early_stopping=2)
    with pytest.raises(ValueError, match="--eval-steps is 2 with --shard"):
        FinetuneTrainingConfig(eval_steps=2, shard=True)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("start") / "model"
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", out,
                draw_features=lambda *_: None)  # fmt: skip
    return out


def flags(folder, model) -> tuple:
    data = write_folder(folder / "data", count=5)
    return ("--model", model, "--dataset", "folder", "--data-dir", data, "--num-classes", 8, "--batch-size", 4, "--dataloader-num-workers",
            0, "--max-steps", 6, "--eval-steps", 2, "--logging-steps", 1)  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_the_published_model_is_the_best(tmp_path, pretrained, processes):
    """results.json has the highest value of the log, to the last bit, also on two processes with batch statistics; the card names the
    step."""
    arguments = (*flags(tmp_path, pretrained), "--output-dir", tmp_path / "out")
    if processes == 1:
        harness.run("finetune", *arguments)
    else:
        on_two(tmp_path, "finetune", *arguments)
    values = {row["step"]: row["val_mean_iou"] for row in logged(tmp_path / "out") if "val_mean_iou" in row}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(values) == [2, 4, 6] and results["mean_iou"] == max(values.values()) == values[results["step"]]
    assert results["last_step"] == 6
    words = f"of step {results['step']} of 6: the highest mean IoU on val, {results['mean_iou']:.4f}"
    assert words in (tmp_path / "out" / "README.md").read_text()


def test_nothing_to_measure_on(tmp_path, pretrained):
    """Without held-out images the option is an error before the first step."""
    message = harness.rejected("finetune", *flags(tmp_path, pretrained), "--val-split", "none", "--output-dir", tmp_path / "out")
    assert message == "--eval-steps is 2, and no held-out image has labels. Give --val-split, or leave it out."
