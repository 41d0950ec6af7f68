"""Frozen layers do not change by a bit, batch statistics included, and the others are trained; learning rates fall with the depth."""

import harness
import pytest
import test_semi_supervised as semi
import torch
from safetensors.torch import load_file
from same_run import differences

from mscl_hf.models.layer_groups import freeze
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.probe import start_classifier
from mscl_hf.training.setup import build_optimizer

FIRST = {
    "test_resnet": ("conv1", "bn1", "layer1"),
    "test_vit": ("patch_embed", "cls_token", "pos_embed", "blocks.0"),
    "test_convnext": ("stem", "stages.0"),
}


def changed(method, before: dict) -> set[str]:
    """The names of the values of the network that are not those of `before`."""
    return {name for name, value in method.network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["none", "fixmatch"])
@pytest.mark.parametrize("backbone", FIRST)
@pytest.mark.parametrize("stages", ["2", "backbone"])
def test_frozen_layers_do_not_change(tmp_path, name, backbone, stages):
    """With --freeze 2 all other layers that the loss reaches change, also of the backbone; with --freeze backbone none of it does. The
    same holds for the teacher."""
    method = semi.training(name, backbone=backbone, **{"ema_momentum": 0.7} if name != "none" else {})
    method.freeze(stages)
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    harness.train(method, semi.semi_data("fixmatch"), tmp_path / "run", optim="adamw", learning_rate=1e-3, weight_decay=0.1, max_steps=3)
    changes = changed(method, before)
    prefixes = tuple(f"backbone.timm_model.{part}" for part in FIRST[backbone])
    frozen = {key for key in before if key.startswith("backbone." if stages == "backbone" else prefixes)}
    assert frozen and not frozen & changes
    assert any(key.startswith("decoder.") for key in changes) and any(key.startswith("classifier.") for key in changes)
    assert any(key.startswith("backbone.") for key in changes) == (stages != "backbone")
    if name != "none":
        assert all(torch.equal(value, before[key]) for key, value in method.teacher.network.state_dict().items() if key in frozen)


def test_the_classifier_is_fitted_on_the_features_of_frozen_layers():
    """A frozen BatchNorm uses its own statistics also there, and stays in evaluation mode."""
    method, modes = semi.training("fixmatch"), []
    method.freeze("backbone")
    norm = method.network.backbone.timm_model.bn1
    norm.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    method.train()
    start_classifier(method, semi.semi_data("fixmatch"), 2)
    assert modes == [False, False] and not norm.training and method.network.decoder.training


def test_no_gradient_is_kept_for_frozen_layers():
    """The maps of a frozen backbone have no graph, and its modules stay in evaluation mode when training goes on."""
    method = semi.training("none")
    method.freeze("backbone")
    method.eval()
    method.train()
    backbone = method.network.backbone
    assert method.network.training and method.network.decoder.training and not any(part.training for part in backbone.timm_model.modules())
    maps = backbone(torch.rand(2, 3, semi.SIZE, semi.SIZE)).feature_maps
    assert not any(feature.requires_grad for feature in maps)


@pytest.mark.parametrize("stages", ["0", "99"])
def test_a_number_that_the_backbone_does_not_have(stages):
    network = MsclForSemanticSegmentation(harness.config("test_resnet", num_labels=8))
    with pytest.raises(ValueError, match=f"--freeze is {stages}; expected none, backbone, or a number from 1 to 5, the groups of layers"):
        freeze(network.backbone, stages)


RATES = {  # with --layer-decay 0.5 --backbone-lr-scale 0.1: a layer, and its factor
    "test_vit": {"patch_embed": 0.1 / 64, "pos_embed": 0.1 / 64, "blocks.0.": 0.1 / 32, "blocks.5.": 0.1, "norm.": 0.1},
    "test_resnet": {"conv1": 0.1 / 16, "bn1": 0.1 / 16, "layer1.0.": 0.1 / 8, "layer3.0.": 0.1 / 2, "layer4.0.": 0.1},
    "test_convnext": {"stem.": 0.1 / 1024, "stages.0.blocks.0.": 0.1 / 512, "stages.3.blocks.1.": 0.1 / 2, "head.norm.": 0.1},
}


@pytest.mark.parametrize("backbone", RATES)
def test_layer_decay_is_a_table(backbone):
    """Each layer has half of the rate of the next one, the last has --backbone-lr-scale; decoder and classifier have the full rate."""
    method = semi.training("none", backbone=backbone)
    optimizer = build_optimizer(method, harness.options(layer_decay=0.5, backbone_lr_scale=0.1))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scales[id(p)] for name, p in method.named_parameters()}
    prefix = "network.backbone.timm_model."
    for part, expected in RATES[backbone].items():
        assert {value for name, value in by_name.items() if name.startswith(prefix + part)} == {expected}, part
    assert {value for name, value in by_name.items() if not name.startswith(prefix)} == {1.0}


def test_rates_are_equal_by_default():
    """Without these options the groups are those of before, so that older checkpoints continue."""
    method = semi.training("none")
    assert [group["lr_scale"] for group in build_optimizer(method, harness.options()).param_groups] == [1.0] * 4


@pytest.mark.parametrize("name", ["none", "fixmatch"])
def test_layers_that_are_frozen_for_the_first_steps(tmp_path, name):
    """Up to --freeze-steps weights and batch statistics stay; then they change. Runs that are stopped before and after go on equally."""
    more = {"optim": "adamw", "learning_rate": 1e-3, "max_steps": 4, "save_steps": 1, "save_total_limit": 5}

    def made(seed=0):
        method = semi.training(name, seed)
        method.freeze("backbone", 2, 4)
        return method

    harness.train(made(), semi.semi_data("fixmatch"), tmp_path / "straight", **more)
    states = [load_file(folder / "method.safetensors") for folder in checkpoint_folder.complete(tmp_path / "straight")]
    start = made().state_dict()
    values = [key for key in start if key.startswith("network.backbone.")]
    for number, state in enumerate(states, 1):
        changes = {key for key in values if not torch.equal(state[key], start[key])}
        assert not changes if number <= 2 else "network.backbone.timm_model.conv1.0.weight" in changes, (number, changes)
        assert any(key.endswith("running_mean") for key in changes) == (number > 2)
    for stop in (1, 3):
        method = made()
        update = method.after_step
        harness.stop_after(method, stop, 4)
        stops = method.after_step
        method.after_step = lambda done, update=update, stops=stops: (update(done), stops(done))
        with pytest.raises(SystemExit):
            harness.train(method, semi.semi_data("fixmatch"), tmp_path / f"stopped{stop}", **more)
        harness.train(made(seed=9), semi.semi_data("fixmatch"), tmp_path / f"stopped{stop}", **more)
        assert differences(tmp_path / f"stopped{stop}", tmp_path / "straight") == []
