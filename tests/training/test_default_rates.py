"""Optimizer and learning rates where none are given: by the family of the backbone, and by whether it has timm's weights."""

import harness
import pytest
import timm
import yaml
from safetensors.torch import save_file

from mscl_hf.config import FinetuneTrainingConfig, TrainingConfig

CNN, VIT, TUNED = (False, False), (True, False), (True, True)  # is_vit, has_weights
RATE = {(CNN, None): 0.05, (VIT, None): 5e-4, (TUNED, None): 2e-4, (CNN, "adamw"): 5e-4, (VIT, "sgd"): 0.05, (TUNED, "sgd"): 0.05}


@pytest.mark.parametrize(("family", "optim"), RATE)
def test_rates(family, optim):
    """What is given is kept; the rest is a ViT's own only with AdamW and without a given rate."""
    said = []
    made = TrainingConfig(optim=optim).for_backbone(*family, said.append)
    assert made.optim == (optim or ("adamw" if family[0] else "sgd")) and made.learning_rate == RATE[family, optim]
    assert made.backbone_lr_scale == (0.025 if (family, optim) == (TUNED, None) else 1.0)
    assert bool(said) == (family[0] and optim is None)
    given = TrainingConfig(optim=optim, learning_rate=0.3, backbone_lr_scale=0.5).for_backbone(*family, said.append)
    assert (given.learning_rate, given.backbone_lr_scale) == (0.3, 0.5)
    assert TrainingConfig(learning_rate=0.3).for_backbone(*TUNED, said.append).backbone_lr_scale == 1.0
    assert FinetuneTrainingConfig(optim="adamw").for_backbone(*CNN, said.append).learning_rate == 1e-3
    assert made.for_backbone(*family, said.append) == made


def of(folder) -> tuple:
    options = yaml.safe_load((folder / "config.yaml").read_text())
    return options["optim"], options["learning_rate"], options["backbone_lr_scale"]


@pytest.mark.parametrize("weights", [False, True])
def test_a_vit_by_the_commands(tmp_path, weights, capsys):
    """Pre-training and fine-tuning choose, log and record the values; whether there were weights is read from the model's history."""
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.safetensors")
    flags = ("--backbone", "test_vit", *(("--backbone-weights", tmp_path / "vit.safetensors") if weights else ()))
    first, then = tmp_path / "first", tmp_path / "then"
    quiet = {"draw_training": lambda *_: None, "draw_features": lambda *_: None}
    harness.run("pretrain", *harness.TINY, *flags, *harness.SHORT, "--max-steps", 1, "--output-dir", first, **quiet)
    harness.run("finetune", "--model", first, *harness.SHORT, "--max-steps", 1, "--val-split", "none", "--output-dir", then, pictures=False)
    said = capsys.readouterr().out
    assert of(first) == (("adamw", 2e-4, 0.025) if weights else ("adamw", 5e-4, 1.0))
    assert of(then) == (("adamw", 2e-4, 0.025) if weights else ("adamw", 1e-3, 1.0))
    assert said.count(f"chosen for a ViT {'with' if weights else 'without'} timm's weights") == 2
