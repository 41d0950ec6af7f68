"""Saving and loading over timm's families: every weight and buffer comes back, and the output is bit-identical.

66 networks of 60 of timm's model modules in every run; nearly all of its modules with --runslow.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation

torch.set_num_threads(1)
SWIN = {"embed_dim": 24, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
VIT = {"depth": 2, "embed_dim": 48, "num_heads": 2}
# The smallest member of a family, made smaller where its options allow.
FAMILIES = {
    "test_resnet": {}, "resnetblur18": {}, "resnetv2_18": {"channels": [16, 32, 48, 64]}, "legacy_seresnet18": {}, "skresnet18": {},
    "res2net50_26w_4s": {}, "resnest14d": {}, "test_convnext": {}, "test_efficientnet": {}, "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {}, "hardcorenas_b": {}, "regnetx_002": {}, "vgg11": {"mlp_ratio": 0.01}, "densenet121": {},
    "dpn48b": {}, "hrnet_w18_small": {}, "inception_v3": {}, "inception_next_atto": {}, "legacy_xception": {}, "rexnet_100": {},
    "mobilevit_xxs": {}, "fastvit_t8": {}, "repvit_m1": {}, "repghostnet_050": {}, "ghostnet_050": {}, "hgnetv2_b0": {},
    "edgenext_xx_small": {}, "poolformerv2_s12": {}, "test_nfnet": {}, "test_byobnet": {}, "dla46x_c": {},
    "ese_vovnet19b_slim_dw": {}, "starnet_s050": {}, "test_mambaout": {}, "focalnet_tiny_srf": {},
    "pvt_v2_b0": {}, "test_vit": {}, "deit_tiny_patch16_224": VIT, "vit_small_patch14_dinov2": VIT, "vit_small_patch16_dinov3": VIT,
    "eva02_tiny_patch14_224": VIT, "vit_small_patch16_rope_224": VIT, "beit_base_patch16_224": VIT, "test_vit_relpos": {},
    "swin_tiny_patch4_window7_224": SWIN, "swinv2_tiny_window8_256": SWIN, "swinv2_cr_tiny_224": SWIN,
    "davit_tiny": {"embed_dims": [24, 48, 96, 192], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    "xcit_nano_12_p8_224": {"depth": 2}, "levit_128s": {}, "tiny_vit_5m_224": {}, "efficientformerv2_s0": {}, "efficientvit_b0": {},
    "efficientvit_m0": {}, "test_coatnet": {}, "test_maxvit": {}, "mixer_s32_224": {}, "cait_xxs24_224": VIT,
    "pit_ti_224": {}, "cpubone_nano": {}, "cspnext_tiny": {}, "lcnetv2_small": {}, "efficientvim_m1": {}, "fasternet_t0": {},
    "shvit_s1": {},
}  # fmt: skip
# The smallest of the other modules of timm; together with the above all that can be built here in reasonable memory.
OTHERS = """
    convit_tiny convmixer_768_32 crossvit_tiny_240 csatv2 cs3darknet_focus_s efficientformer_l1 gcvit_xxtiny hiera_tiny_224
    sam2_hiera_tiny gmlp_ti16_224 halonet_h1 inception_resnet_v2 inception_v4 iformer_t jx_nest_tiny lcnet_035 lowformer_b0
    mobilenetv5_base mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nextvit_small pnasnet5large qwen3_vit_88m rdnet_tiny
    samvit_base_patch16_224 selecsls42 sequencer2d_s swiftformer_xs tnt_s_legacy_patch16_224 tresnet_m twins_svt_small visformer_tiny
    vitamin_small_224 vit_tiny_r_s16_p8_224 volo_d1_224 xception41p coat_tiny
""".split()

# The classic families by their timm names, as docs/backbones.md lists them -> the output strides that they offer.
ANY = (8, 16, 32)
CLASSIC = {
    "resnet18": ANY, "resnet34": ANY, "resnet50": ANY, "resnet101": ANY, "resnet152": ANY, "resnet50d": ANY, "wide_resnet50_2": ANY,
    "resnext50_32x4d": ANY, "seresnet50": ANY, "vgg16": (32,), "vgg16_bn": (32,), "vgg19": (32,), "vgg19_bn": (32,), "inception_v3": (32,),
    "inception_v4": (32,), "inception_resnet_v2": (32,), "legacy_xception": (32,), "xception41": ANY, "xception65": ANY, "xception71": ANY,
    "xception41p": ANY, "xception65p": ANY, "inception_next_atto": ANY, "inception_next_tiny": ANY, "inception_next_small": ANY,
    "inception_next_base": ANY,
}  # fmt: skip
# One of each, trained for a step in earnest.
TRAINED = ("resnet50", "vgg16", "vgg19_bn", "inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception", "xception41",
           "inception_next_atto")  # fmt: skip


def poison():
    """Leave NaN in freed memory, so that a tensor that was not filled is not right by chance."""
    blocks = [torch.full((1 << k,), float("nan")) for k in range(3, 21) for _ in range(40 if k < 16 else 4)]
    del blocks


def shaken(model):
    """Change every weight and statistic, so that none has its initial value."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if "running" in name)]:
            tensor.add_(torch.rand_like(tensor) - 0.5, alpha=0.01)
    return model.eval()


def answer(model, image, **options):
    """Return logits or embeddings, and the maps of all stages or None."""
    with torch.no_grad():
        out = model(image, **options)
    return [out.logits] if hasattr(out, "logits") else [out.global_embeds, out.local_embeds, out.pixel_embeds], out.hidden_states


def assert_stages(backbone, maps):
    """Every stage has a name of its own and a map of the channels it announces; what is tapped is among them."""
    names = backbone.stage_names
    assert len(set(names)) == len(names) == len(maps) and backbone.config.stage_names == names
    assert [m.shape[1] for m in maps] == backbone.num_features == list(backbone.out_feature_channels.values())
    assert backbone.out_features == [names[index] for index in backbone.taps] and len(backbone.channels) == len(backbone.strides)


def assert_round_trip(model_cls, name, kwargs, folder, **options):
    config = build_config(name, image_size=64, backbone_kwargs=kwargs, decoder_channels=16, num_labels=3, **options)
    model, image = shaken(model_cls(config)), torch.randn(1, 3, 90, 123)
    wanted, maps = answer(model, image, output_hidden_states=True)
    assert_stages(model.backbone, maps)
    model.save_pretrained(folder)
    poison()
    loaded = model_cls.from_pretrained(folder).eval()
    found, _ = answer(loaded, image)
    for of in ("named_parameters", "named_buffers"):  # buffers outside the checkpoint too
        there = dict(getattr(loaded, of)())
        assert [key for key, value in getattr(model, of)() if not torch.equal(value, there[key])] == []
    assert all(w.isfinite().all() for w in wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_bit_identical(name, tmp_path):
    """Config, weights and buffers rebuild the same segmentation model in memory filled with NaN, and name their stages."""
    assert_round_trip(MsclForSemanticSegmentation, name, FAMILIES[name], tmp_path)


@pytest.mark.parametrize("name", ["test_resnet", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
def test_round_trip_of_a_pre_training_model(name, tmp_path):
    """The same for all three heads."""
    assert_round_trip(MsclForPreTraining, name, FAMILIES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_round_trip_of_every_other_module(name, tmp_path):
    """The same for what is larger or rarer."""
    assert_round_trip(MsclForSemanticSegmentation, name, {}, tmp_path)


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_families(name):
    """Any image of 96 px or more passes unresized, maps have the channels they announce, and the strides are those in the table."""
    for stride in (8, 16, 32):
        if stride not in CLASSIC[name]:
            with pytest.raises(ValueError, match=f"--output-stride is {stride}"):
                build_config(name, image_size=96, output_stride=stride)
    config = build_config(name, image_size=96, output_stride=min(CLASSIC[name]))
    assert config.fixed_size is None and config.size_multiple == 1
    with torch.device("meta"):
        backbone = MsclBackbone(config).eval()
        maps = backbone(torch.empty(1, 3, 256, 352)).feature_maps
    assert backbone.strides[-1] == min(CLASSIC[name]) and [m.shape[1] for m in maps] == backbone.channels
    unpadded = name in ("inception_v3", "inception_v4", "inception_resnet_v2")
    assert maps[-1].shape[-2:] == ((6, 9) if unpadded else (256 // backbone.strides[-1], 352 // backbone.strides[-1]))


@pytest.mark.parametrize("name", TRAINED)
def test_classic_families_train(name):
    """Pre-training and segmentation give finite losses, and a gradient to all weights that the maps depend on."""
    smaller = {"mlp_ratio": 0.01} if name.startswith("vgg") else {}
    config = build_config(name, image_size=96, backbone_kwargs=smaller, decoder_channels=16, num_labels=3)
    image, labels = torch.randn(2, 3, 96, 96), torch.randint(3, (2, 96, 96))
    out = MsclForPreTraining(config)(image)
    assert all(out[key].isfinite().all() for key in ("global_embeds", "local_embeds", "pixel_embeds"))
    model = MsclForSemanticSegmentation(config)
    loss = model(image, labels=labels).loss
    loss.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert loss.isfinite() and all(re.search(r"timm_model\.(pre_logits|head)\.", key) for key in without)


def test_sixty_families_in_every_run():
    """The sweep above is as wide as this file says, by timm's own division into modules."""
    module = timm.models._registry._model_to_module
    assert len({module[name] for name in FAMILIES}) >= 60 and not set(FAMILIES) & set(OTHERS)


def test_what_timm_does_not_have():
    """docs/backbones.md says which; the day timm has them, the page is to be changed."""
    assert not [name for name in ("lenet5", "alexnet", "googlenet") if timm.is_model(name)]


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_the_example_of_a_custom_network(name, monkeypatch, tmp_path):
    """The page's example, run: networks registered with timm are built by name, saved, and opened again."""
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    module = ModuleType("own_networks")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = set(timm.list_models())
    try:
        exec(re.search(r"```python\n(.*?)```", page, re.S).group(1), module.__dict__)
        for model_cls in (MsclForPreTraining, MsclForSemanticSegmentation):
            assert_round_trip(model_cls, name, {}, tmp_path)
    finally:
        forget(set(timm.list_models()) - before)


def forget(names):
    """Take models out of timm's registry."""
    registry = timm.models._registry
    for name in names:
        for table in (registry._model_entrypoints, registry._model_to_module, registry._model_default_cfgs):
            table.pop(name, None)
        for models in registry._module_to_models.values():
            models.discard(name)
