"""Checkpoints of earlier versions open, and give the numbers that the code of that time computed.

old_checkpoints.json holds, of four runs of that code: config.json as it was saved (fields that most share are in common_config), the shapes
of the weights by their keys, and the mean, the standard deviation and the mean weighted from -1 to 1 of its outputs with the weights
of `old_weights` and the image of `IMAGE`.
"""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation

from mscl_hf import MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.config import ContrastConfig, MethodConfig

OLD = json.loads((Path(__file__).parent / "old_checkpoints.json").read_text())
COMMON = OLD.pop("common_config")
OLD = {name: entry | {"config": COMMON | entry["config"]} for name, entry in OLD.items()}
PRE_TRAINED = [name for name in OLD if name != "tuned"]
IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).mul(40).sin()
CONTRAST = {
    "mscl": {"losses": "global+pixel", "queue_size": 8, "label_downsampling": "majority", "pixel_reduction": "in", "global_weight": 0.5,
             "local_weight": 0.1, "pixel_weight": 1.0, "global_temperature": 0.2, "local_temperature": 0.2, "pixel_temperature": 0.1},
    "moco_v2": {"queue_size": 16, "ema_momentum": 0.9, "embed_dim": 8, "hidden_dim": 16},
    "zhao_cross": {"losses": "global+local+pixel", "label_downsampling": "center", "pixel_reduction": "out", "pixel_temperature": 0.1},
}  # fmt: skip


def old_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Draw weights of a plausible size for the keys of a checkpoint, in the order of their names."""
    generator = torch.Generator().manual_seed(7)

    def draw(key: str, shape: list[int]) -> torch.Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.ones(shape, dtype=torch.int64)
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return noise / (noise.numel() / shape[0]) ** 0.5
        return (1 + noise.abs()) if key.endswith(("running_var", "norm.weight")) else 0.1 * noise + key.endswith("weight")

    return {key: draw(key, shapes[key]) for key in sorted(shapes)}


@pytest.fixture(params=OLD)
def checkpoint(request, tmp_path):
    """Name and folder of a checkpoint as the old code saved it."""
    (tmp_path / "config.json").write_text(json.dumps(OLD[request.param]["config"]))
    save_file(old_weights(OLD[request.param]["shapes"]), tmp_path / "model.safetensors", {"format": "pt"})
    return request.param, tmp_path


def assert_as_before(name: str, output: str, values: torch.Tensor) -> None:
    values = values.flatten().double()
    numbers = [values.mean(), values.std(), (values * torch.linspace(-1, 1, len(values))).mean()]
    assert [float(number) for number in numbers] == pytest.approx(OLD[name]["expected"][output], rel=1e-4, abs=1e-6)


@torch.no_grad()
def test_old_checkpoints_open(checkpoint):
    """Backbone, decoder, embeddings and logits are those of the old code, by our classes and by the Auto classes."""
    name, folder = checkpoint
    assert_as_before(name, "backbone", AutoModel.from_pretrained(folder).eval()(IMAGE).feature_maps[-1])
    labels = {} if name == "tuned" else {"num_labels": 3}
    for model_class in (MsclForSemanticSegmentation, AutoModelForSemanticSegmentation):
        network = model_class.from_pretrained(folder, **labels).eval()
        assert_as_before(name, "decoder", network.decoder(list(network.backbone(IMAGE).feature_maps)))
        if name == "tuned":
            assert_as_before(name, "logits", network(IMAGE).logits)
    if name != "tuned":
        for model_class in (MsclForPreTraining, AutoModelForPreTraining):
            out = model_class.from_pretrained(folder).eval()(IMAGE)
            embeddings = [key for key in out if key.endswith("_embeds")]
            assert set(embeddings) == set(OLD[name]["expected"]) - {"backbone", "decoder"}
            for key in embeddings:
                assert_as_before(name, key, out[key])


@pytest.mark.parametrize("name", PRE_TRAINED)
def test_old_names_are_converted(name, tmp_path):
    """Heads and options of the method have today's names, are all known today, and are saved so."""
    config = MsclConfig.from_dict(OLD[name]["config"])
    expected_heads = {"mscl": ["global", "local", "pixel"], "moco_v2": [], "zhao_cross": ["pixel"]}[name]
    options = {field.name for section in (ContrastConfig, MethodConfig) for field in fields(section)}
    assert config.heads == expected_heads and config.contrast["method"] == name
    assert {key: config.contrast[key] for key in CONTRAST[name]} == CONTRAST[name] and set(config.contrast) - {"method"} <= options
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["heads"] == expected_heads and saved["contrast"] == config.contrast
    unchanged = OLD[name]["config"].keys() - {"heads", "contrast"}
    assert {key: saved[key] for key in unchanged} == {key: OLD[name]["config"][key] for key in unchanged}
