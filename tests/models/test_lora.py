"""LoRA: the products alone are trained, and the merged network is an ordinary one with the same output."""

import copy

import harness
import pytest
import torch
from safetensors.torch import load_file

from mscl_hf.methods import SegmentationTraining
from mscl_hf.models import attach_lora, merge_lora
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

pytest.importorskip("peft")


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit2"])
def test_merged_equals_attached(tmp_path, backbone):
    """The base weights do not change in training; the output after merging is that before it to 1e-5, and timm's names are back."""
    torch.manual_seed(0)
    network = MsclForSemanticSegmentation(harness.config(backbone, num_labels=8))
    before = copy.deepcopy(network.backbone.state_dict())
    count = attach_lora(network.backbone, 4)
    assert count >= 8 and sum(p.requires_grad for p in network.backbone.parameters()) == 2 * count
    options = {"optim": "adamw", "learning_rate": 0.01, "max_steps": 3}
    harness.train(SegmentationTraining(network), harness.training_data("finetune"), tmp_path, **options)
    base = {name.replace(".base_layer", ""): value for name, value in network.backbone.state_dict().items() if ".lora_" not in name}
    assert base.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in base.items())
    images = torch.randn(2, 3, harness.SIZE, harness.SIZE)
    network.eval()
    with torch.no_grad():
        attached = network(images).logits
        merge_lora(network.backbone)
        torch.testing.assert_close(network(images).logits, attached, atol=1e-5, rtol=1e-5)
    assert network.backbone.state_dict().keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())


@pytest.mark.parametrize("more", [(), ("--unlabelled", "rest", "--semi-supervised", "fixmatch", "--confidence-threshold", 0)])
def test_fine_tuning_with_lora(tmp_path, more):
    """The whole command: a resumed run gives the same model, whose names are those of a model without LoRA; the card says so."""
    network = ("--backbone", "test_vit", "--image-size", 32, "--decoder-channels", 16)
    quick = {"draw_training": lambda *_: None, "draw_features": lambda *_: None}
    flags = (*network, *harness.SHORT, "--method", "none", "--val-split", "none")
    harness.run("pretrain", *flags, "--output-dir", tmp_path / "model", **quick)
    flags = (*harness.SHORT, "--model", tmp_path / "model", "--lora-rank", 2, "--optim", "adamw", "--learning-rate", 0.01, "--max-steps", 3,
             "--val-split", "none", *more)  # fmt: skip
    harness.run("finetune", *flags, "--output-dir", tmp_path / "out", **quick)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    plain = load_file(tmp_path / "model" / "model.safetensors")
    assert {name for name in plain if name.startswith("backbone.")} == {name for name in weights if name.startswith("backbone.")}
    assert any(not torch.equal(weights[name], plain[name]) for name in weights if name in plain and "qkv" in name)
    MsclForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert "| LoRA | rank 2 in " in (tmp_path / "out" / "README.md").read_text()
    harness.run("finetune", *flags, "--output-dir", tmp_path / "out", "--resume", **quick)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
