"""Optimizer and learning rates where none are given: by the family of the backbone, and by whether it has timm's weights."""

import harness
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from mscl_hf.config import FinetuneTrainingConfig, TrainingConfig
from mscl_hf.models.backbones import build_config, has_batch_norm
from mscl_hf.models.modeling_mscl import MsclBackbone

CNN, VIT, TUNED = (True, True), (False, False), (False, True)  # has_batch_norm, has_weights
VALUES = {  # learning rate and factor of the backbone
    (CNN, None): (0.05, 1), (CNN, "adamw"): (5e-4, 1), (VIT, None): (5e-4, 1), (VIT, "sgd"): (0.05, 1),
    (TUNED, None): (2e-4, 0.025), (TUNED, "adamw"): (2e-4, 0.025), (TUNED, "sgd"): (0.05, 1),
}  # fmt: skip


@pytest.mark.parametrize(("family", "optim"), VALUES)
def test_rates(family, optim):
    """What is given is kept; what is chosen for a backbone without BatchNorm is logged."""
    said = []
    made = TrainingConfig(optim=optim).for_backbone(*family, said.append)
    assert made.optim == (optim or ("sgd" if family[0] else "adamw"))
    assert (made.learning_rate, made.backbone_lr_scale) == VALUES[family, optim]
    assert len(said) == (not family[0])
    given = TrainingConfig(optim="sgd", learning_rate=0.3, backbone_lr_scale=0.5)
    assert given.for_backbone(*family, said.append) == given and made.for_backbone(*family, said.append) == made


def test_other_options_that_decide_the_rates_of_a_backbone():
    """A given learning rate does not change the factor, so that a resumed run may change it; layer decay and LoRA replace the factor."""
    ignore = lambda text: None  # noqa: E731
    assert TrainingConfig(learning_rate=0.3).for_backbone(*TUNED, ignore).backbone_lr_scale == 0.025
    assert TrainingConfig(layer_decay=0.75).for_backbone(*TUNED, ignore).backbone_lr_scale == 1
    assert FinetuneTrainingConfig(lora_rank=4).for_backbone(*TUNED, ignore).backbone_lr_scale == 1
    assert FinetuneTrainingConfig(optim="adamw").for_backbone(*CNN, ignore).learning_rate == 1e-3


@pytest.mark.parametrize(("name", "expected"), [
    ("resnet10t", True), ("tf_efficientnet_lite0", True), ("test_vit", False), ("test_convnext", False),
    ("swin_tiny_patch4_window7_224", False),
])  # fmt: skip
def test_families(name, expected):
    with torch.device("meta"):
        backbone = MsclBackbone(build_config(name))
    assert has_batch_norm(backbone) == expected


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
    assert said.count(f"chosen for a backbone without BatchNorm, {'with' if weights else 'without'} timm's weights: --optim adamw") == 2


def test_weights_that_nothing_trains_choose_no_rates(tmp_path, capsys):
    """--method imagenet says nothing of rates; the fine-tuning after it has those of a backbone with weights."""
    file, out = tmp_path / "vit.safetensors", tmp_path / "out"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    harness.run("pretrain", *harness.TINY, "--backbone", "test_vit", "--method", "imagenet", "--backbone-weights", file,
                "--output-dir", out, draw_features=lambda *_: None)  # fmt: skip
    assert "chosen for" not in capsys.readouterr().out
    tuned = tmp_path / "tuned"
    harness.run("finetune", "--model", out, *harness.SHORT, "--max-steps", 1, "--val-split", "none", "--output-dir", tuned)
    assert of(tuned) == ("adamw", 2e-4, 0.025)
    card = (tuned / "README.md").read_text()
    assert "adamw, peak learning rate 0.0002, polynomial, weight decay 0.0001, backbone at 0.025 of the rate" in card
