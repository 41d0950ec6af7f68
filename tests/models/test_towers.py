"""Two towers: conversion of colors, channels, saving, loading and training."""

import pytest
import torch
from PIL import Image, ImageCms
from test_families import assert_round_trip
from transformers import AutoImageProcessor

from mscl_hf import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.config import NetworkConfig
from mscl_hf.models.backbones import build_config
from mscl_hf.models.backbones import config_of as config_from
from mscl_hf.models.timm_weights import load_timm_weights
from mscl_hf.models.towers_mscl import TwoTowers, lab_views, rgb_to_lab
from mscl_hf.sharing.model_folder import write_model

torch.set_num_threads(1)
SMALLER = {
    "vit_tiny_patch16_224": {"depth": 2},
    "vit_small_patch16_dinov3": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": [1] * 4},
}
CORNERS = torch.tensor([[r, g, b] for r in (0.0, 1.0) for g in (0.0, 1.0) for b in (0.0, 1.0)])


def config_of(name="test_resnet", two_towers=True, **options):
    kwargs = SMALLER.get(name, {})
    return build_config(
        name, two_towers=two_towers, backbone_kwargs=kwargs, **{"image_size": 64, "decoder_channels": 16, "num_labels": 3, **options}
    )


def backbone_of(*arguments, **options):
    return MsclBackbone(config_of(*arguments, **options)).eval()


def as_image(colors):
    """N colors (N, 3) -> an image of one row, (1, 3, 1, N)."""
    return colors.T[None, :, None]


def slow_lab(red, green, blue):
    """CIE 1976 L*a*b* of one sRGB color, step by step as IEC 61966-2-1 and CIE 15 write it."""

    def linear(c):
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    def f(t):
        return t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29

    r, g, b = linear(red), linear(green), linear(blue)
    x = 0.4124 * r + 0.3576 * g + 0.1805 * b
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = 0.0193 * r + 0.1192 * g + 0.9505 * b
    x, y, z = f(x / 0.9505), f(y / 1.0), f(z / 1.0890)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_lab_is_that_of_the_formulas():
    """Random, dark and pure colors: each pixel as a slow computation with the standard's four digits gives it."""
    torch.manual_seed(0)
    colors = torch.cat([torch.rand(200, 3), torch.rand(50, 3) * 0.05, CORNERS])
    found = rgb_to_lab(as_image(colors))[0, :, 0].T
    torch.testing.assert_close(found, torch.tensor([slow_lab(*c) for c in colors.tolist()]), atol=0.03, rtol=0)
    published = torch.tensor([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]])  # red, green, blue
    torch.testing.assert_close(rgb_to_lab(as_image(torch.eye(3)))[0, :, 0].T, published, atol=0.03, rtol=0)


def test_lab_agrees_with_a_color_management_system():
    """LittleCMS (in Pillow) speaks Lab for a D50 white: the same lightness to a few units, and hues in the same places."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (1, 400, 3), dtype=torch.uint8)
    change = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(pixels.numpy()), change)
    bands = [torch.frombuffer(bytearray(lab.getchannel(i).tobytes()), dtype=torch.uint8) for i in range(3)]
    theirs = torch.stack([bands[0] / 2.55, bands[1] - 128.0, bands[2] - 128.0])
    ours = rgb_to_lab(pixels[0].T[None, :, None] / 255)[0, :, 0]
    assert (theirs - ours)[0].abs().max() < 4 and (theirs - ours)[1:].abs().mean() < 4
    assert all(torch.corrcoef(torch.stack([theirs[i], ours[i]]))[0, 1] > 0.99 for i in range(3))


def test_views_fill_the_range():
    """L is -1 for black and 1 for white; over the colors of sRGB a and b reach from -1 to 1."""
    steps = torch.linspace(0, 1, 21)
    lum, chroma = lab_views(as_image(torch.cartesian_prod(steps, steps, steps)))
    assert lum.shape[1] == 1 and chroma.shape[1] == 2
    for channel in (lum[:, 0], chroma[:, 0], chroma[:, 1]):
        assert channel.min().item() == pytest.approx(-1, abs=0.01) and channel.max().item() == pytest.approx(1, abs=0.01)


def test_gray_has_no_color():
    """A gray image gives the color tower a constant input, so that its maps do not depend on the brightness."""
    grays = torch.rand(2, 1, 64, 64).expand(-1, 3, -1, -1)
    chroma = lab_views(grays)[1]
    assert (chroma.amax(dim=(0, 2, 3)) - chroma.amin(dim=(0, 2, 3))).max() < 1e-5
    backbone = backbone_of()
    lum, chroma = (part.detach() for part in backbone.timm_model.split(backbone(grays).feature_maps[-1]))
    torch.testing.assert_close(chroma[0], chroma[1], atol=1e-4, rtol=1e-4)
    assert (lum[0] - lum[1]).abs().max() > 0.01 * lum.abs().max()


def test_lab_is_finite_everywhere():
    """Black, white, pure and out-of-range colors: finite values, finite gradients, in every precision."""
    image = as_image(torch.cat([CORNERS, CORNERS * 3 - 1])).requires_grad_()
    sum(view.square().sum() for view in lab_views(image)).backward()
    assert image.grad.isfinite().all()
    torch.testing.assert_close(rgb_to_lab(image[..., 8:]), rgb_to_lab(image[..., :8]))
    for dtype in (torch.bfloat16, torch.float16):
        assert all(view.dtype == dtype and view.isfinite().all() for view in lab_views(image.detach().to(dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(rgb_to_lab(image), rgb_to_lab(image.detach()), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_maps_are_those_of_the_towers(name):
    """The network is two separate ones: its maps are theirs, lightness first, and `split` takes them apart again."""
    backbone, image = backbone_of(name), torch.rand(2, 3, 64, 80)
    towers, options = backbone.timm_model, {"indices": backbone.taps, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    with torch.no_grad():
        found = backbone(image).feature_maps
        wanted = zip(*(t.forward_intermediates(v, **options) for t, v in zip((towers.lum, towers.chroma), lab_views(image))))
    assert isinstance(towers, TwoTowers) and [m.shape[1] for m in found] == backbone.channels
    for whole, parts in zip(found, wanted):
        assert all(torch.equal(a, b) for a, b in zip(towers.split(whole), parts))


NAMES = ["resnet18", "resnet50", "resnet50d", "test_resnet", "resnetv2_18", "vit_tiny_patch16_224", "vit_small_patch16_dinov3",
         "convnext_atto", "swin_tiny_patch4_window7_224", "inception_next_atto", "pvt_v2_b0"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_as_wide_as_one_network_and_smaller(name):
    """Half width each: all but the stem have the channels and strides of the single network together, with fewer weights."""
    one, two = config_of(name, two_towers=False), config_of(name)
    with torch.device("meta"):
        one, two = MsclBackbone(one), MsclBackbone(two)
    assert two.channels == one.channels and two.strides == one.strides and two.taps == one.taps
    for single, double in list(zip(one.timm_model.feature_info, two.timm_model.feature_info))[1:]:
        assert (single["num_chs"], single["reduction"]) == (double["num_chs"], double["reduction"])
    assert sum(p.numel() for p in two.parameters()) < 0.75 * sum(p.numel() for p in one.parameters())


def test_heads_that_do_not_divide_are_halved():
    """A ViT of width 30 with 2 heads becomes 15 with 1; heads that divide the half stay."""
    for width, heads, half, left in ((30, 2, 15, 1), (48, 6, 24, None)):
        kwargs = {"embed_dim": width, "num_heads": heads}
        config = build_config("test_vit", two_towers=True, image_size=64, backbone_kwargs=kwargs)
        assert config.backbone_kwargs["embed_dim"] == half and config.backbone_kwargs["num_heads"] == (left or heads)


@pytest.mark.parametrize("model_cls", [MsclForPreTraining, MsclForSemanticSegmentation])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
def test_round_trip_is_bit_identical(name, model_cls, tmp_path):
    """Weights and buffers of both towers, those outside the checkpoint too, are restored in memory filled with NaN."""
    assert_round_trip(model_cls, name, SMALLER.get(name, {}), tmp_path, two_towers=True)


def test_shared_weights_travel(tmp_path):
    """CoaT holds some weights under two names; in both towers they stay one."""
    kwargs = {"serial_depths": [1] * 4, "embed_dims": [32, 64, 64, 64]}
    assert_round_trip(MsclForSemanticSegmentation, "coat_lite_tiny", kwargs, tmp_path, two_towers=True)
    loaded = MsclForSemanticSegmentation.from_pretrained(tmp_path)
    names = loaded.backbone._tied_weights_keys
    assert {name.split(".")[1] for name in names} == {"lum", "chroma"}
    weights = dict(loaded.backbone.named_parameters(remove_duplicate=False))
    assert all(weights[copy] is weights[first] for copy, first in names.items())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_gradient_checkpointing(name):
    """Blocks of both towers run twice, and the gradients are the same; both towers have one everywhere that maps depend on."""
    model = MsclForSemanticSegmentation(config_of(name, decoder_dropout=0.0)).eval()
    image, labels = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    calls, gradients = [], []
    for tower in (model.backbone.timm_model.lum, model.backbone.timm_model.chroma):
        block = [m for m in tower.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))][-1]
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    for count in (2, 6):
        model.zero_grad()
        model(image, labels=labels).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        assert len(calls) == count
        model.gradient_checkpointing_enable()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_bfloat16(name, tmp_path):
    """Loaded in bfloat16 the answer is finite and near that of float32, and so it is under autocast."""
    image, model = torch.rand(2, 3, 64, 64), MsclForSemanticSegmentation(config_of(name)).eval()
    model.save_pretrained(tmp_path)
    low = MsclForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        wanted, found = model(image).logits, low(image.bfloat16()).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(image).logits
    for logits in (found, mixed):
        assert logits.isfinite().all() and torch.cosine_similarity(logits.flatten(), wanted.flatten(), dim=0) > 0.95


def test_the_saved_processor_returns_plain_rgb(tmp_path):
    """Images come as RGB in 0..1, so the processor that is saved beside the model subtracts and divides nothing."""
    write_model(MsclForSemanticSegmentation(config_of()), tmp_path)
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    found = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values[0]
    wanted = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vgg16_bn", "efficientnet_b0", "densenet121", "inception_v3", "cs3darknet_focus_s"])
def test_families_without_a_half_width_are_rejected(name):
    """The error is one sentence with the name and the remedy."""
    with pytest.raises(ValueError, match=f"--backbone is '{name}', which has no option .* halves its width.* Choose a family") as error:
        build_config(name, two_towers=True)
    assert "\n" not in str(error.value)


def test_what_two_towers_cannot_take_is_rejected():
    """timm has no weights for them, and they need three channels to split; the flag reaches the configuration."""
    model = MsclForSemanticSegmentation(config_from(NetworkConfig("test_resnet", two_towers=True, decoder_channels=16)))
    assert model.config.two_towers and model.config.image_mean == [0.0] * 3 and model.config.image_std == [1.0] * 3
    load_timm_weights(model, pretrained=False)
    for source in ({"pretrained": True}, {"file": "weights.safetensors"}):
        with pytest.raises(ValueError, match="no weights for two towers of test_resnet"):
            load_timm_weights(model, **source)
    with pytest.raises(ValueError, match="num_channels is 4"):
        config_of(num_channels=4)
