"""The networks: transfer of weights, Auto classes, image sizes, strides, initialization, heads, Trainer."""

import copy
import json
import shutil
from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from transformers import AutoModelForSemanticSegmentation

from mscl_hf import MsclBackbone, MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.models.backbones import build_config
from mscl_hf.models.configuration_mscl import HEADS
from mscl_hf.models.heads_mscl import LocalHead, unit
from mscl_hf.models.normalization import normalize
from mscl_hf.models.timm_weights import load_timm_weights
from mscl_hf.transforms.crops import Crop
from mscl_hf.transforms.views import _shared_part

torch.set_num_threads(1)
SMALLER = {
    "vit": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "swin": {"embed_dim": 24, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
}


def config_of(name="test_resnet", **options):
    kwargs = SMALLER.get(name.split("_")[0], {})
    return build_config(name, backbone_kwargs=kwargs, **{"image_size": 64, "decoder_channels": 16, "num_labels": 3, **options})


@pytest.fixture
def pretrained(tmp_path):
    """A saved pre-training model, and its folder."""
    model = MsclForPreTraining(config_of())
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("part", ["backbone.timm_model.layer1", "backbone.timm_model.bn1.running_var", "decoder.fuse"])
def test_a_checkpoint_without_a_weight_is_rejected(pretrained, part):
    """Missing weights or statistics of backbone or decoder raise, in every class that has them."""
    _, folder = pretrained
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith(part)}, folder / "model.safetensors", {"format": "pt"})
    for model_cls in (MsclForPreTraining, MsclForSemanticSegmentation, *([MsclBackbone] if "timm" in part else [])):
        with pytest.raises(ValueError, match="lacks .* weights .* made for another"):
            model_cls.from_pretrained(folder)


@pytest.mark.parametrize("size", [(90, 123), (64, 64), (33, 200)])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_small_patch14_dinov2", "swin_tiny_patch4_window7_224", "test_coatnet"])
def test_any_image_size(name, size):
    """Logits at feature resolution, a loss at the labels' own size, embeddings of unit length, for images of any size."""
    labels = torch.randint(3, (2, *size))
    labels[:, :3] = 255
    out = MsclForSemanticSegmentation(config_of(name))(torch.randn(2, 3, *size), labels=labels)
    wanted = F.cross_entropy(F.interpolate(out.logits, size=size, mode="bilinear"), labels, ignore_index=255)
    assert out.logits.shape[:2] == (2, 3) and out.loss.isfinite() and out.loss >= wanted - 1e-5
    embeds = MsclForPreTraining(config_of(name, local_grid=3))(torch.randn(2, 3, *size))
    assert embeds.global_embeds.shape == (2, 128) and embeds.local_embeds.shape[-1] == 128
    for e, axis in ((embeds.global_embeds, 1), (embeds.local_embeds, 2), (embeds.pixel_embeds, 1)):
        torch.testing.assert_close(e.norm(dim=axis), torch.ones_like(e.norm(dim=axis)))


@pytest.mark.parametrize(("name", "image_size"), [("vit_tiny_r_s16_p8_224", 224), ("vitamin_small_224", 64)])
def test_families_that_take_some_sizes_only(name, image_size):
    """Where a few sizes happen to pass, the rule that was found must hold for all; maps have the channels they announce."""
    backbone = MsclBackbone(build_config(name, image_size=image_size)).eval()
    for size in ((90, 123), (224, 224), (97, 50), (225, 251), (113, 177)):
        with torch.no_grad():
            maps = backbone(torch.randn(1, 3, *size)).feature_maps
        assert [m.shape[1] for m in maps] == backbone.channels


def test_nothing_labelled_gives_zero_with_a_graph():
    """A batch of ignored pixels only: no NaN, and every parameter that takes part still has a gradient."""
    model = MsclForSemanticSegmentation(config_of())
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss == 0 and (model.classifier.weight.grad == 0).all()


STRIDED = [("test_resnet", False), ("test_resnet", True), ("regnetx_002", False), ("test_efficientnet", False)]


@pytest.mark.parametrize(("name", "two_towers", "stride"), [*((*net, s) for net in STRIDED for s in (8, 16, 32)), ("test_vit", False, 16)])
def test_output_stride_is_honored(name, two_towers, stride):
    """The last map of a 64 px image has 64 / stride positions a side, and `strides` reports it."""
    backbone = MsclBackbone(config_of(name, output_stride=stride, two_towers=two_towers)).eval()
    assert backbone(torch.randn(1, 3, 64, 64)).feature_maps[-1].shape[-1] == 64 // stride == 64 // backbone.strides[-1]


def test_output_stride_by_default():
    """16 where the family can, its own where it cannot."""
    assert [MsclBackbone(config_of(n)).strides[-1] for n in ("test_resnet", "mobilenetv3_small_050", "test_vit")] == [16, 32, 16]


REJECTED = {
    "stride not offered": (dict(backbone="test_vit", output_stride=8), "--output-stride is 8; expected 16 for 'test_vit'"),
    "stride not offered by swin": (dict(backbone="swin_tiny_patch4_window7_224", output_stride=16), "--output-stride is 16; expected 32"),
    "no stride": (dict(backbone="test_resnet", output_stride=5), "--output-stride is 5; expected 8, 16 or 32"),
    "typing error": (dict(backbone="resnet1x8"), "--backbone is 'resnet1x8'.* Did you mean .*resnet18"),
    "decoder": (dict(backbone="test_resnet", decoder_type="unet"), "--decoder is 'unet'; expected auto, deeplabv3, fcn, mla"),
    "unknown option": (dict(backbone="test_resnet", decoder="linear"), "decoder is not a field of MsclConfig. Did you mean decoder_type"),
    "attachment": (dict(backbone="test_resnet", attach="head"), "--attach is 'head'; expected ancestor, backbone, decoder"),
    "tag": (dict(backbone="resnet18.no_such_tag"), "resnet18.no_such_tag"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_impossible_networks_are_rejected(case):
    """The error is one line with the option and the remedy."""
    options, message = REJECTED[case]
    with pytest.raises(ValueError, match=message) as error:
        build_config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_small_patch16_dinov3", "test_convnext"])
def test_own_initialization(name):
    """timm's weights start as timm starts them; convolutions of ours as He et al., the classifier small, biases zero."""
    config = config_of(name, decoder_channels=64, num_labels=50)
    torch.manual_seed(5)
    model = MsclForSemanticSegmentation(config)
    torch.manual_seed(5)
    alone = timm.create_model(name, num_classes=0, **config.backbone_kwargs)
    found = model.backbone.timm_model.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in alone.state_dict().items())
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1) and (model.classifier.bias == 0).all()
    for layer in (m for part in (model.decoder, model.auxiliary_head) for m in part.modules() if isinstance(m, torch.nn.Conv2d)):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        if not getattr(layer, "_is_classifier", False) and layer.weight.numel() > 1000:
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    heads = MsclForPreTraining(config)
    assert all((p == 0).all() for part in (heads.global_head, heads.local_head) for n, p in part.named_parameters() if n.endswith("bias"))


RECOMPUTED = {  # with dropout and stochastic depth where the family has them
    "test_resnet": {"drop_path_rate": 0.5},
    "test_efficientnet": {"drop_path_rate": 0.5},  # BatchNormAct2d
    "levit_128s": {},  # BatchNorm1d
    "test_vit": {"drop_path_rate": 0.5, "proj_drop_rate": 0.2},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": SMALLER["swin"] | {"drop_path_rate": 0.5},
}
SWITCHES = {
    "transformers": MsclForSemanticSegmentation.activation_checkpointing_enable,
    "deprecated name": lambda model: model.gradient_checkpointing_enable({"use_reentrant": True}),
    "timm": lambda model: model.backbone.timm_model.set_grad_checkpointing(),
    "before SyncBatchNorm": lambda model: (model.activation_checkpointing_enable(), convert_sync_batchnorm(model)),
}


def count_calls(network) -> list:
    """A list that grows with each call of a convolution or linear layer of the backbone."""
    calls = []
    for layer in network.backbone.timm_model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_pre_hook(lambda *_: calls.append(1))  # before: recomputation stops once it has what it needs
    return calls


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize(("name", "switch"), [*product(RECOMPUTED, ["transformers"]), *product(["test_resnet"], list(SWITCHES)[1:])])
def test_gradient_checkpointing_changes_no_number(name, switch):
    """Two training steps with recomputed blocks: losses, every gradient and every buffer are those of the plain network, bit for bit."""
    config = build_config(name, backbone_kwargs=RECOMPUTED[name], image_size=64, decoder_channels=16, num_labels=3)
    model = MsclForSemanticSegmentation(config)
    recomputed, calls, losses = copy.deepcopy(model), {}, []
    SWITCHES[switch](recomputed)
    for network in (model, recomputed):
        calls[network] = count_calls(network)
        torch.manual_seed(1)
        for _ in range(2):
            loss = network.train()(torch.randn(2, 3, 64, 64), labels=torch.randint(3, (2, 64, 64))).loss
            loss.backward()
            losses.append(loss.detach())
    assert len(calls[recomputed]) > len(calls[model]) and losses[:2] == losses[2:]
    wanted = dict(model.named_buffers()) | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = dict(recomputed.named_buffers()) | {name: p.grad for name, p in recomputed.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and [key for key, value in wanted.items() if not torch.equal(value, found[key])] == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_gradient_checkpointing_of_a_compiled_backbone():
    """torch.compile recomputes, too, and updates running statistics once, whether or not an eager pass came before."""
    model = MsclForSemanticSegmentation(config_of(decoder_dropout=0.0)).train()
    compiled = copy.deepcopy(model)
    compiled.activation_checkpointing_enable()
    image, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    for eager in (True, False):
        if not eager:
            compiled.backbone.compile(backend="aot_eager")
        for network in (model, compiled):
            network(image, labels=labels).loss.backward()
        for value, found in zip(model.buffers(), compiled.buffers()):
            torch.testing.assert_close(found, value)


@pytest.mark.parametrize("option", ["every_n_layers", "offload"])
def test_options_of_gradient_checkpointing_that_timm_does_not_have(option):
    """transformers' options that would do nothing raise ValueError."""
    with pytest.raises(ValueError, match=f"{option} is"):
        MsclBackbone(config_of()).activation_checkpointing_enable(**{option: 2})


@pytest.mark.parametrize("name", ["test_resnet", "vit_small_patch16_dinov3"])
def test_bfloat16(name, tmp_path):
    """Loaded in bfloat16, the model answers near its float32 self, with logits and unit embeddings in float32."""
    image = torch.randn(1, 3, 64, 64)
    for model_cls, answer in ((MsclForSemanticSegmentation, "logits"), (MsclForPreTraining, "global_embeds")):
        model = model_cls(config_of(name)).eval()
        model.save_pretrained(tmp_path)
        low = model_cls.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        wanted, found = getattr(model(image), answer), getattr(low(image.bfloat16()), answer)
        assert low.dtype == torch.bfloat16 and found.dtype == torch.float32
        assert F.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > 0.95


def test_timm_weights_from_a_file(tmp_path):
    """The backbone takes them over, classifier or not, and heads stay as they are; files that do not fit raise."""
    torch.manual_seed(9)
    source, file = timm.create_model("test_resnet"), tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    model = MsclForSemanticSegmentation(config_of())
    decoder = model.decoder.fuse[0].weight.clone()
    load_timm_weights(model, file=str(file))
    found = model.backbone.timm_model.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in source.state_dict().items() if key in found)
    assert set(source.state_dict()) - set(found) == {"fc.weight", "fc.bias"} and torch.equal(model.decoder.fuse[0].weight, decoder)
    with pytest.raises(ValueError, match="--backbone-weights is .*none.safetensors, which does not exist"):
        load_timm_weights(model, file=str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match="holds no weights that fit timm's test_vit"):
        load_timm_weights(MsclForSemanticSegmentation(config_of("test_vit")), file=str(file))


def test_weights_are_loaded_on_request_only(monkeypatch):
    """pretrained=False without a file does not call timm."""
    model = MsclForPreTraining(config_of())
    monkeypatch.setattr(timm, "create_model", None)
    load_timm_weights(model, pretrained=False)


@pytest.mark.parametrize("attach", ["ancestor", "backbone", "decoder"])
def test_where_the_heads_sit(attach):
    """Which parts a head's loss trains: the decoder only through heads that are attached to it."""
    trained = {"ancestor": ("pixel",), "backbone": (), "decoder": HEADS}[attach]
    model = MsclForPreTraining(config_of(attach=attach, decoder_channels=16))
    for head in HEADS:
        name = f"{head}_embeds"
        model.zero_grad()
        out = model(torch.randn(2, 3, 64, 64), heads=(head,))
        assert [key for key in out if key.endswith("embeds")] == [name]
        out[name][..., 0].sum().backward()
        assert all((p.grad is not None) == (head in trained) for p in model.decoder.parameters())
        assert model.backbone.timm_model.conv1[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("heads", [[], ["global"], ["local", "pixel"]])
def test_heads_by_name(heads, pretrained):
    """Heads that the configuration does not name are not built nor computed, and a checkpoint that has them opens all the same."""
    _, folder = pretrained
    model, info = MsclForPreTraining.from_pretrained(folder, heads=heads, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.heads == heads
    built = [head for head in HEADS if getattr(model, f"{head}_head") is not None]
    out = model(torch.randn(2, 3, 64, 64))
    computed = [key.removesuffix("_embeds") for key in out if key.endswith("_embeds")]
    assert built == computed == heads and len(out.feature_maps) == 2
    model.save_pretrained(folder)
    assert MsclForPreTraining.from_pretrained(folder).config.heads == heads


def test_heads_that_do_not_exist():
    """A head that was not built, or is unknown, raises; by default there are all three."""
    with pytest.raises(ValueError, match=r"heads has \['pixel'\]; expected some of \['global'\]"):
        MsclForPreTraining(config_of(heads=["global"]))(torch.randn(2, 3, 64, 64), heads=("global", "pixel"))
    with pytest.raises(ValueError, match="heads has x; expected some of global, local, pixel"):
        config_of(heads=["global", "x"])
    assert config_of().heads == MsclConfig().heads == list(HEADS)


def test_pixel_head_sees_only_the_images_it_is_given():
    """Chosen images in the order given, as if alone; maps are resized to a height of pixel_grid, their shape kept."""
    model, image = MsclForPreTraining(config_of(pixel_grid=3)).eval(), torch.randn(3, 3, 64, 48)
    whole = model(image).pixel_embeds
    assert whole.shape == (3, 256, 3, 2)
    torch.testing.assert_close(model(image, pixel_images=torch.tensor([2, 0])).pixel_embeds, whole[[2, 0]])


def test_local_head_pools_before_or_after():
    """One linear layer: pooling first or last is the same function. With two layers it is not."""
    features = torch.randn(2, 6, 12, 8)
    for layers, same in ((1, True), (2, False)):
        head = LocalHead(6, 5, grid=4, layers=layers)
        after = unit(F.adaptive_avg_pool2d(head.layers(features), 4).flatten(2).transpose(1, 2))
        assert torch.allclose(head(features), after, atol=1e-6) is same


def test_layers_of_the_local_head_have_weights_of_their_own(tmp_path):
    """With three layers no two share a weight, and such a model is saved and opened."""
    model = MsclForPreTraining(config_of(local_layers=3))
    convolutions = [layer for layer in model.local_head.layers if isinstance(layer, torch.nn.Conv2d)]
    assert len({id(p) for layer in convolutions for p in layer.parameters()}) == 6
    assert not torch.equal(convolutions[0].weight, convolutions[1].weight)
    model.save_pretrained(tmp_path)
    opened = MsclForPreTraining.from_pretrained(tmp_path).local_head.state_dict()
    assert all(torch.equal(value, opened[key]) for key, value in model.local_head.state_dict().items())


def test_local_head_boxes():
    """The whole box is sampled at the centers of positions; a box from right to left gives the mirrored blocks."""
    head, features = LocalHead(6, 5, grid=4, layers=1), torch.randn(2, 6, 4, 4)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    blocks = head(features, boxes)
    torch.testing.assert_close(blocks, head(features))
    flipped = head(features, boxes[:, [2, 1, 0, 3]]).view(2, 4, 4, 5)
    torch.testing.assert_close(flipped, blocks.view(2, 4, 4, 5).flip(2))
    quarter = head(features, torch.tensor([[0.25, 0.5, 0.5, 0.75]] * 2))  # inside one cell's neighborhood, nearest is cell (2, 1)
    assert F.cosine_similarity(quarter.mean(1), blocks.view(2, 4, 4, 5)[:, 2, 1]).min() > 0.5


@pytest.mark.parametrize("flips", list(product([False, True], repeat=2)))
def test_shared_crops_meet_at_the_same_places(flips):
    """Block s of one crop and block s of the other show the same place of the source, mirrored or not."""
    crops = Crop(10.0, 5.0, 80.0, flips[0]), Crop(34.0, 21.0, 64.0, flips[1])
    boxes = torch.tensor(_shared_part(*crops, (200, 200)), dtype=torch.float32)

    def coordinates(crop, cells=16):
        """A feature map that holds the source coordinates of the centers of its positions: (1, 2, cells, cells)."""
        steps = crop.side * (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(crop.y + steps, crop.x + (steps.flip(0) if crop.flip else steps), indexing="ij")
        return torch.stack([x, y])[None]

    head = LocalHead(2, 2, grid=5, layers=1)
    first, second = (head._sample(coordinates(crop), box[None], 5) for crop, box in zip(crops, boxes))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)
    assert first[0, 0].min() > 34 and first[0, 0].max() < 90 and first[0, 1].min() > 21 and first[0, 1].max() < 85


def test_configuration_is_plain_json(tmp_path):
    """Every field of a built configuration is restored from a file; fields that are not given have defaults."""
    config = config_of("vit_small_patch14_dinov2", contrast={"losses": "global+pixel", "pixel_temperature": 0.1}, base_size=0)
    config.save_pretrained(tmp_path)
    found, wanted = MsclConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    assert {k for k in wanted if found[k] != wanted[k]} <= {"_name_or_path"} and config.base_size == 0
    assert json.loads((tmp_path / "config.json").read_text())["contrast"] == {"losses": "global+pixel", "pixel_temperature": 0.1}
    assert MsclConfig().out_indices == [-2, -1] and MsclConfig(image_size=96).base_size == 96


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": None}, {"backbone": "tést"}, {"backbone_kwargs": {"num_classes": 5}},
        {"backbone": "hf-hub:someone/x"}, {"backbone": "local-dir:/somewhere"}, {"backbone": "../x"},
        {"backbone_kwargs": {"checkpoint_path": "weights.pth"}}, {"backbone_kwargs": {"pretrained": True}},
        {"backbone_kwargs": {"pretrained_cfg_overlay": {"url": "https://example.org/x"}}}, {"backbone_kwargs": {"cache_dir": "x"}},
    ],
)  # fmt: skip
def test_an_untrusted_configuration_opens_nothing(fields, monkeypatch):
    """Names and options that would make timm read files or download models are rejected before timm is called."""
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(ValueError, match="plain timm name"):
        MsclBackbone(MsclConfig(**fields))


def test_label_sets_that_are_none():
    """Ids with gaps, duplicate names and a single class raise ValueError."""
    for names in ({0: "a", 2: "b"}, {1: "a", 2: "b"}, {0: "a", 1: "a"}, {"x": "a", "y": "b"}, {0: "a", 1: None}, {0: 0, 1: 1}):
        with pytest.raises(ValueError, match="id2label is .* every class 0, 1, 2"):
            MsclConfig(id2label=names)
    with pytest.raises(ValueError, match="expected at least 2"):
        MsclForSemanticSegmentation(config_of(num_labels=1))


def test_a_pre_training_checkpoint_asks_for_its_classes(pretrained):
    """Opened as a segmentation model without a label set, it is rejected: its classifier would be random."""
    model, folder = pretrained
    model.config.id2label = MsclConfig().id2label
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="is pre-trained and has no classifier.*name the classes"):
        MsclForSemanticSegmentation.from_pretrained(folder)
    for auto_cls in (MsclForSemanticSegmentation, AutoModelForSemanticSegmentation):
        assert auto_cls.from_pretrained(folder, id2label={0: "road", 1: "car"}).config.label2id == {"road": 0, "car": 1}
        assert auto_cls.from_pretrained(folder, num_labels=2).config.num_labels == 2
        with pytest.raises(ValueError, match="is pre-trained"):
            auto_cls.from_pretrained(folder)
    assert "labels_given" not in MsclConfig.from_pretrained(folder, num_labels=2).to_json_string(use_diff=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_normalization_does_not_change_its_argument(dtype):
    """(image / 255 - mean) / std, of the type of mean whatever the image is, bit for bit, in its memory order; the image is unchanged."""
    image = torch.randint(0, 256, (2, 5, 7, 3), generator=torch.Generator().manual_seed(0)).to(dtype).permute(0, 3, 1, 2)
    before, mean, std = image.clone(), torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    normalized = normalize(image, mean, std)
    assert torch.equal(normalized, (before.float() / 255 - mean) / std) and normalized.dtype == torch.float32
    assert torch.equal(image, before) and normalized.is_contiguous(memory_format=torch.channels_last)
    precise = normalize(image, mean.double(), std.double())
    assert torch.equal(precise, (before.float() / 255 - mean.double()) / std.double()) and precise.dtype == torch.float64
