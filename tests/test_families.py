"""Saving and loading over timm's families: every weight and buffer comes back, and the output is bit-identical."""

import pytest
import torch

from mscl_hf.backbones import build_config
from mscl_hf.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation

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
}  # fmt: skip
# The smallest of the other modules of timm; together with the above all that can be built here in reasonable memory.
OTHERS = """
    convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny efficientformer_l1
    efficientvim_m1 fasternet_t0 gcvit_xxtiny hiera_tiny_224 sam2_hiera_tiny gmlp_ti16_224 halonet_h1 inception_resnet_v2 inception_v4
    iformer_t jx_nest_tiny lcnetv2_small lcnet_035 lowformer_b0 mobilenetv5_base mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge
    nextvit_small pit_ti_224 pnasnet5large qwen3_vit_88m rdnet_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1
    swiftformer_xs tnt_s_legacy_patch16_224 tresnet_m twins_svt_small visformer_tiny vitamin_small_224 vit_tiny_r_s16_p8_224 volo_d1_224
    xception41p coat_tiny
""".split()


def poison():
    """Leave NaN in freed memory, so that a tensor which nobody filled cannot be right by luck."""
    blocks = [torch.full((1 << k,), float("nan")) for k in range(3, 21) for _ in range(40 if k < 16 else 4)]
    del blocks


def shaken(model):
    """No weight or statistic keeps a value that initialisation alone would give."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if "running" in name)]:
            tensor.add_(torch.rand_like(tensor) - 0.5, alpha=0.01)
    return model.eval()


def answer(model, image):
    with torch.no_grad():
        out = model(image)
    return [out.logits] if hasattr(out, "logits") else [out.global_embeds, out.local_embeds, out.pixel_embeds]


def assert_round_trip(kind, name, kwargs, folder):
    config = build_config(name, image_size=64, backbone_kwargs=kwargs, decoder_channels=16, num_labels=3)
    model, image = shaken(kind(config)), torch.randn(1, 3, 90, 123)
    wanted = answer(model, image)
    model.save_pretrained(folder)
    poison()
    loaded = kind.from_pretrained(folder).eval()
    found = answer(loaded, image)
    for of in ("named_parameters", "named_buffers"):  # buffers outside the checkpoint too
        there = dict(getattr(loaded, of)())
        assert [key for key, value in getattr(model, of)() if not torch.equal(value, there[key])] == []
    assert all(w.isfinite().all() for w in wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_bit_identical(name, tmp_path):
    """Config, weights and buffers rebuild the same segmentation model in poisoned memory; 90x123 px fits every family."""
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
