"""docs/backbones.md and the presets in recipes/configs: names, sizes and licenses are timm's, and every preset builds."""

import harness
import pytest
import timm
import torch

from mscl_hf.cli import parse
from mscl_hf.config import PretrainConfig
from mscl_hf.models.decoders_mscl import DECODERS
from mscl_hf.models.modeling_mscl import MsclForPreTraining

PRESETS = sorted((harness.ROOT / "recipes" / "configs").glob("*_few_masks.yaml"))
LICENSES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "dinov3-license": "DINOv3 license"}


def guide() -> list[tuple[str, str, str, str]]:
    """Name, parameters, license and decoder of each backbone in the first table."""
    table = (harness.ROOT / "docs" / "backbones.md").read_text().split("## Which one")[1].split("\n\n")[1]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return [(name, parameters, license_name, decoder) for name, _, parameters, license_name, decoder in rows]


def test_the_table_is_found():
    assert len(guide()) >= 10


@pytest.mark.parametrize(("name", "parameters", "license_name", "decoder"), guide(), ids=lambda value: value.replace(" ", "-"))
def test_the_table_is_timms(name, parameters, license_name, decoder):
    """Weights that timm has, their license, the number of parameters of the backbone, and a decoder that exists."""
    config = timm.get_pretrained_cfg(name)
    assert config.hf_hub_id and LICENSES[config.license] == license_name and decoder in DECODERS
    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
    assert parameters == f"{count / 1e6:.2g} M"


@pytest.mark.parametrize("preset", [path for path in PRESETS if "method: imagenet" in path.read_text()], ids=lambda path: path.stem)
def test_presets_build(preset):
    """The network of each preset, with maps at the decoder's stride, from images of another size than the preset's."""
    config = parse(PretrainConfig, "", ["--config", str(preset)])
    assert config.run.method == "imagenet" and timm.get_pretrained_cfg(config.network.backbone).hf_hub_id
    network = MsclForPreTraining(harness.load_recipe("pretrain").model_config_of(config)).eval()
    with torch.no_grad():
        features = network.decoder(list(network.backbone(torch.zeros(1, 3, 100, 140)).feature_maps))
    assert torch.isfinite(features).all() and features.shape[1] == network.config.decoder_channels
