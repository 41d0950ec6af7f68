"""Decoders: sizes, gradients and saved models of each of them on each type of backbone, and what they compute."""

import typing

import pytest
import torch

from mscl_hf.config import NetworkConfig
from mscl_hf.models.backbones import build_config
from mscl_hf.models.decoders_mscl import DECODERS, DPTDecoder, LinearDecoder
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation

BACKBONES = {
    "test_resnet": {}, "test_convnext": {}, "test_vit": {},
    "vit_tiny_patch16_224": {"backbone_kwargs": {"depth": 4, "patch_size": 14, "reg_tokens": 2}},
}  # fmt: skip
CHANNELS, SIDE = 16, 56  # px: 4 patches of 14


def network(backbone: str, decoder: str) -> MsclForSemanticSegmentation:
    torch.manual_seed(0)
    options = {"image_size": SIDE, "decoder_type": decoder, "decoder_channels": CHANNELS, "num_labels": 5}
    return MsclForSemanticSegmentation(build_config(backbone, **options | BACKBONES[backbone]))


class Config:
    decoder_channels = CHANNELS
    decoder_rates = (1,)


def test_the_option_names_every_decoder():
    choices = typing.get_args(typing.get_type_hints(NetworkConfig)["decoder"])
    assert set(choices) == {"auto", *DECODERS}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_decoder_trains_and_is_saved(tmp_path, backbone, decoder):
    """All of its weights get a gradient, another image size works, and a saved model opens with the same output, bit for bit."""
    model = network(backbone, decoder).train()
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.randint(5, (2, SIDE, SIDE))
    model(images, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    model.eval().save_pretrained(tmp_path)
    opened = MsclForSemanticSegmentation.from_pretrained(tmp_path).eval()
    larger = torch.randn(1, 3, 2 * SIDE, 84)
    with torch.no_grad():
        assert torch.equal(opened(images).logits, model(images).logits)
        assert opened(larger).logits.shape[:2] == (1, 5)


def test_linear_is_affine():
    """In evaluation mode, decoder and classifier are one affine function of the last map."""
    torch.manual_seed(0)
    decoder = LinearDecoder([8, 24], [8, 16], Config).double().eval()
    decoder.norm.running_var.uniform_(0.5, 2)
    x, y = torch.randn(2, 1, 24, 5, 7, dtype=torch.float64)
    f = lambda last: decoder([last.new_zeros(1, 8, 9, 9), last])  # noqa: E731
    torch.testing.assert_close(f(x + y), f(x) + f(y) - f(torch.zeros_like(x)))
    assert f(x).shape == (1, CHANNELS, 5, 7)


@pytest.mark.parametrize(("strides", "side", "expected"), [
    ((16, 16, 16, 16), 6, [24, 12, 6, 3]), ((14, 14, 14, 14), 5, [20, 10, 5, 3]), ((16, 16), 6, [6, 3]), ((16,), 6, [3]),
    ((16,) * 6, 4, [16, 16, 16, 8, 4, 2]),
])  # fmt: skip
def test_dpt_reassembles_maps_of_one_stride(strides, side, expected):
    """Four maps of stride s become s/4, s/2, s and 2 s; fewer keep the deepest of these, more repeat the first."""
    torch.manual_seed(0)
    decoder = DPTDecoder([8] * len(strides), list(strides), Config)
    sides = [part(torch.randn(2, 8, side, side)).shape[-1] for part in decoder.reassemble]
    assert sides == expected
    assert decoder([torch.randn(2, 8, side, side) for _ in strides]).shape == (2, CHANNELS, expected[0], expected[0])


def test_dpt_keeps_the_sizes_of_a_pyramid():
    decoder = DPTDecoder([4, 8, 12, 16], [4, 8, 16, 32], Config)
    maps = [torch.randn(2, c, side, side + 1) for c, side in zip((4, 8, 12, 16), (28, 14, 7, 4))]
    assert [part(x).shape[-2:] for part, x in zip(decoder.reassemble, maps)] == [x.shape[-2:] for x in maps]
    assert decoder(maps).shape == (2, CHANNELS, 28, 29)
