"""--epochs: its steps are those of --max-steps, and the two exclude each other."""

import json

import harness
import pytest
import yaml
from same_run import differences

from mscl_hf.config import FinetuneTrainingConfig, TrainingConfig
from mscl_hf.config.training import DEFAULT_STEPS


@pytest.mark.parametrize(
    "epochs, images, batch, accumulated, steps",
    [(2, 8, 4, 1, 4), (1, 9, 4, 1, 3), (0.5, 8, 4, 1, 1), (3, 8, 4, 2, 3), (0.1, 30, 3, 1, 1), (0.001, 8, 4, 1, 1)],
)
def test_steps_of_epochs(epochs, images, batch, accumulated, steps):
    """The number of images over those of a step, rounded up."""
    given = TrainingConfig(epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulated)
    log = []
    used = given.with_steps(images, log.append)
    assert (used.max_steps, used.epochs) == (steps, None)
    assert log == [f"{epochs:g} epochs of {images} images, {batch * accumulated} a step: {steps} steps"]
    assert used.with_steps(images, log.append) == used and len(log) == 1


def test_epochs_and_steps_exclude_each_other():
    """Also where the number of steps is the default; without both, the default counts."""
    for config_cls in (TrainingConfig, FinetuneTrainingConfig):
        assert config_cls().max_steps == DEFAULT_STEPS
        with pytest.raises(ValueError, match=f"--epochs is 2 and --max-steps is {DEFAULT_STEPS}; expected one of them"):
            config_cls(epochs=2, max_steps=DEFAULT_STEPS)
    with pytest.raises(ValueError, match="--epochs is 0; expected above 0"):
        TrainingConfig(epochs=0)


def test_a_stream_has_no_epochs():
    """Its number of images is unknown."""
    with pytest.raises(ValueError, match="--epochs is 2, and the number of images in a stream is unknown. Give --max-steps instead."):
        TrainingConfig(epochs=2).with_steps(None, print)


def test_a_run_of_epochs_is_one_of_its_steps(tmp_path, capsys):
    """Pre-training and fine-tuning: same weights and log; config.yaml holds the steps, and the same command resumes."""
    flags = (*harness.TINY, *harness.SHORT, "--val-split", "none", "--unlabelled", "none")
    for name, length in (("epochs", ("--epochs", 1.5)), ("steps", ("--max-steps", 3))):
        harness.run("pretrain", *flags, *length, "--output-dir", tmp_path / name)
        tuning = (*harness.SHORT, "--val-split", "none", "--model", tmp_path / "epochs", "--output-dir", tmp_path / f"tuned-{name}")
        harness.run("finetune", *tuning, *length)
    assert "1.5 epochs of 8 images, 4 a step: 3 steps" in capsys.readouterr().out
    for name in ("", "tuned-"):
        assert differences(tmp_path / f"{name}epochs", tmp_path / f"{name}steps") == []
        written = yaml.safe_load((tmp_path / f"{name}epochs" / "config.yaml").read_text())
        assert (written["max_steps"], written["epochs"]) == (3, None)
        assert json.loads((tmp_path / f"{name}epochs" / "run.json").read_text())["epochs"] == 1.5
    harness.run("pretrain", *flags, "--epochs", 1.5, "--resume", "--output-dir", tmp_path / "epochs")
    assert "training is complete" in capsys.readouterr().out
