"""Exports: equal outputs in timm, SMP, torchvision, ONNX Runtime and torch.export, or an error in one or two sentences."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from hub_metadata import card_problems
from huggingface_hub import ModelCard
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from mscl_hf import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.export import EXPORTS, export, graphs, open_network, state_dicts, timm_folder
from mscl_hf.export.card import export_card
from mscl_hf.models.backbones import build_config

ROOT = Path(__file__).resolve().parents[2]
LABELS = {0: "sky", 1: "road", 2: "car"}
SWIN = {"backbone_kwargs": {"embed_dim": 24, "depths": (2, 2, 2, 2)}}  # the family's smallest that still shifts its windows
SHALLOW = {"backbone_kwargs": {"depth": 2}}
DINOV3 = {"backbone_kwargs": {"embed_dim": 96, "num_heads": 3, "depth": 2}}


@torch.no_grad()
def checkpoint(folder: Path, backbone: str, network_cls: type = MsclForSemanticSegmentation, **options) -> str:
    """Save a network in which no weight, bias or statistic has its initial value; return the folder."""
    torch.manual_seed(0)
    labels = {} if network_cls is MsclForPreTraining else {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    options = {"image_size": 64, "decoder_channels": 16, "decoder_rates": [1, 2, 3], "image_mean": [0.4, 0.5, 0.6]} | labels | options
    network = network_cls(build_config(backbone, **options))
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dim() <= 1 and value.is_floating_point():
            value.add_(torch.randn(value.shape) * 0.1)
        if "gamma" in name:  # the small initial layer scale would hide errors in the blocks
            value.add_(1)
    network.save_pretrained(folder)
    return str(folder)


def images(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def segmented(model: str, pixels: torch.Tensor) -> torch.Tensor:
    """Return this project's logits, upsampled to the size of the images: the reference."""
    network = MsclForSemanticSegmentation.from_pretrained(model).eval()
    return F.interpolate(network(pixels).logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)


def close(output: torch.Tensor, expected: torch.Tensor, bound: float) -> bool:
    return output.shape == expected.shape and float((output - expected).abs().max()) <= bound * float(expected.abs().max())


def one_sentence(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 400


# -- timm --------------------------------------------------------------------------------------------------------------------


FAMILIES = [
    ("test_resnet", {}), ("test_vit", {"image_size": 100}), ("vit_small_patch16_dinov3", DINOV3), ("swin_tiny_patch4_window7_224", SWIN),
    ("resnet18", {"output_stride": 8}), ("test_resnet", {"num_channels": 4, "image_mean": [0.5] * 4, "image_std": [0.5] * 4}),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("backbone, options", FAMILIES, ids=["cnn", "vit", "dinov3", "swin", "stride8", "4channels"])
def test_timm_gives_equal_features_bit_for_bit(tmp_path, backbone, options):
    """timm's model has equal features, bit for bit: single maps, all features and features_only; num_classes adds a new classifier."""
    model = checkpoint(tmp_path / "model", backbone, **options)
    export(model, "timm", tmp_path / "out")
    name = f"local-dir:{tmp_path / 'out'}"
    ours, theirs = MsclBackbone.from_pretrained(model).eval(), timm.create_model(name, pretrained=True).eval()
    config, settings = ours.config, json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    pixels = images(2, *settings["input_size"][1:], config.num_channels)
    assert torch.equal(theirs.forward_features(pixels), ours.timm_model.forward_features(pixels))
    tapped = theirs.forward_intermediates(pixels, indices=ours.taps, norm=config.norm_features, intermediates_only=True)
    assert all(map(torch.equal, tapped, ours(pixels).feature_maps))
    classifier = timm.create_model(name, pretrained=True, num_classes=5).eval()
    assert classifier(pixels).shape == (2, 5)
    assert torch.equal(classifier.forward_features(pixels), theirs.forward_features(pixels))
    assert [settings[key] for key in ("mean", "std", "interpolation")] == [config.image_mean, config.image_std, "bilinear"]
    assert not {"tag", "license", "origin_url", "paper_ids"} & set(settings)  # of the weights that timm would download
    # transformers keeps the memory alignment of the file, which changes the rounding of kernels.
    assert close(AutoModel.from_pretrained(tmp_path / "out").eval()(pixels).last_hidden_state, theirs.forward_features(pixels), 1e-5)


def test_timm_card_keeps_the_license(tmp_path):
    """The card has library, tags and the license on the card of the model, if any."""
    model = checkpoint(tmp_path / "model", "test_resnet")
    export(model, "timm", tmp_path / "none")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    export(model, "timm", tmp_path / "mit")
    assert ModelCard.load(tmp_path / "none" / "README.md").data.license is None
    data = ModelCard.load(tmp_path / "mit" / "README.md").data
    assert (data.license, data.library_name) == ("mit", "timm") and {"timm", "mscl_hf"} <= set(data.tags)


@pytest.mark.parametrize("to", EXPORTS)
def test_every_export_has_a_card(tmp_path, to):
    """Valid by the Hub's rules, with classes, license and stages of the model; names of classes are escaped."""
    config = build_config("test_resnet", image_size=64, id2label={0: "a|b", 1: "<b>"})
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    text = str(export_card(config, str(tmp_path), to, to != "timm", "summary of the export"))
    assert card_problems(text) == ([], []) and "license: mit" in text and "summary of the export" in text and "Not recorded." in text
    assert (r"a\|b, &lt;b&gt;" in text) == (to != "timm") and "<b>" not in text
    compile(text.split("```python\n")[1].split("```")[0], "example", "exec")


def test_other_features_in_timm_raise(tmp_path, monkeypatch):
    """A wrong weight is detected, and no folder is written."""
    model = checkpoint(tmp_path / "model", "test_resnet")
    save = timm_folder.save_file

    def changed(state, *rest, **options):
        save({name: value * 1.001 if name == "conv1.0.weight" else value for name, value in state.items()}, *rest, **options)

    monkeypatch.setattr(timm_folder, "save_file", changed)
    with pytest.raises(ValueError, match="computes other features .* Nothing was written") as error:
        export(model, "timm", tmp_path / "out")
    assert one_sentence(error) and [path.name for path in tmp_path.iterdir()] == ["model"]


# -- segmentation_models_pytorch, torchvision --------------------------------------------------------------------------------


def loaded(out: Path) -> torch.nn.Module:
    return runpy.run_path(str(out / "load.py"))["model"].eval()


WHOLE = [("smp", "test_resnet", {}), ("torchvision", "resnet18", {"output_stride": 8}), ("torchvision", "resnet18", {"output_stride": 32})]
WHOLE += [pytest.param(*case, marks=pytest.mark.slow) for case in (
    ("smp", "resnet50", {"output_stride": 8}), ("torchvision", "resnet50", {"output_stride": 8}),
    ("torchvision", "resnet50", {"output_stride": 16, "decoder_channels": 256}), ("torchvision", "resnet34", {"output_stride": 16}),
    ("torchvision", "resnext50_32x4d", {}), ("smp", "convnext_atto", {}), ("smp", "efficientnet_b0", {}),
)]  # fmt: skip


@pytest.mark.parametrize("library, backbone, options", WHOLE)
def test_the_whole_network_is_the_same(tmp_path, library, backbone, options):
    """The model of the library, built by load.py, gives the logits of this project at the size of the images. Basic blocks are dilated as
    in timm, which torchvision itself does not do; SMP renames the stages of ConvNeXt and EfficientNet."""
    pytest.importorskip("segmentation_models_pytorch")
    model = checkpoint(tmp_path / "model", backbone, **options)
    assert "the whole network" in export(model, library, tmp_path / "out")
    pixels = images(2, 96, 160)
    with torch.no_grad():
        output = loaded(tmp_path / "out")(pixels)
    assert close(output if library == "smp" else output["out"], segmented(model, pixels), 1e-5)
    metadata = json.loads((tmp_path / "out" / "model.json").read_text())
    assert metadata["labels"] == list(LABELS.values()) and metadata["image_mean"] == [0.4, 0.5, 0.6]
    if library == "torchvision":
        auxiliary = open_network(model).both_logits(pixels)[1]
        assert close(output["aux"], F.interpolate(auxiliary, size=pixels.shape[-2:], mode="bilinear", align_corners=False).detach(), 1e-5)
    if options == {"output_stride": 8} and backbone == "resnet18":  # load.py runs in another process and folder
        shutil.move(tmp_path / "out", tmp_path / "elsewhere")
        done = subprocess.run([sys.executable, "load.py"], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "DeepLabV3" in done.stdout, done.stderr


def swapped(network) -> dict:
    """Return the exported decoder with two branches exchanged."""
    output = PYRAMID(network)
    change = {"convs.1.": "convs.2.", "convs.2.": "convs.1."}
    return {change.get(key[:8], key[:8]) + key[8:]: value for key, value in output.items()}


def without_bias(network) -> dict:
    """Return the exported decoder without the bias of the pooled branch."""
    return {key: torch.zeros_like(value) if key == "convs.4.2.bias" else value for key, value in PYRAMID(network).items()}


PYRAMID = state_dicts._pyramid


@pytest.mark.parametrize("changed", [swapped, without_bias])
@pytest.mark.parametrize("library, backbone", [("smp", "test_resnet"), ("torchvision", "resnet18")])
def test_a_wrong_mapping_raises(tmp_path, monkeypatch, library, backbone, changed):
    """Exchanged or missing weights are detected by the outputs, and nothing is written."""
    pytest.importorskip("segmentation_models_pytorch")
    model = checkpoint(tmp_path / "model", backbone)
    monkeypatch.setattr(state_dicts, "_pyramid", changed)
    with pytest.raises(ValueError, match="The relative difference between .* is .*; expected at most 1e-05. Nothing was written") as error:
        export(model, library, tmp_path / "out")
    assert one_sentence(error) and [path.name for path in tmp_path.iterdir()] == ["model"]


@torch.no_grad()
@pytest.mark.parametrize("backbone, options", [
    ("test_resnet", {"decoder_type": "fcn"}), ("test_resnet", {"output_stride": 32}), ("test_vit", {}),
])  # fmt: skip
def test_smp_with_the_encoder_alone(tmp_path, backbone, options):
    """Where SMP has no such decoder, the encoder is exported, and the summary has the reason."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = checkpoint(tmp_path / "model", backbone, **options)
    assert "only the backbone (" in export(model, "smp", tmp_path / "out")
    pixels, ours = images(2, 64, 64), MsclBackbone.from_pretrained(model).eval().timm_model
    maps = loaded(tmp_path / "out")(pixels)
    maps = maps[0] if backbone == "test_vit" else maps
    assert close(maps[-1], ours.forward_intermediates(pixels, intermediates_only=True)[-1], 1e-6)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(key.startswith("encoder.") for key in weights)
    if "decoder_type" in options:  # the encoder works under another decoder of SMP
        unet = smp.Unet("tu-test_resnet", encoder_weights=None)
        left = unet.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys and not any(key.startswith("encoder.") for key in left.missing_keys)


@torch.no_grad()
def test_torchvision_with_the_backbone_alone(tmp_path):
    """A pre-trained model has no classifier: the backbone is exported as torchvision's ResNet."""
    model = checkpoint(tmp_path / "model", "resnet18", MsclForPreTraining, heads=[])
    assert "no classifier" in export(model, "torchvision", tmp_path / "out")
    pixels, ours = images(2, 64, 64), MsclBackbone.from_pretrained(model).eval().timm_model
    assert close(loaded(tmp_path / "out")(pixels), ours.forward_features(pixels).mean((2, 3)), 1e-5)


# -- graphs ------------------------------------------------------------------------------------------------------------------


SIZES_HERE = ((1, 96, 96), (4, 97, 131), (2, 72, 200))  # 72 lies halfway between two multiples of 16


def onnx_of(out: Path):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    return session, lambda pixels: torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])


def check_onnx(tmp_path: Path, backbone: str, size=None, **options) -> None:
    model = checkpoint(tmp_path / "model", backbone, **options)
    export(model, "onnx", tmp_path / "out", size=size)
    session, run = onnx_of(tmp_path / "out")
    for batch, height, width in SIZES_HERE if size is None else [(1, *size), (4, *size)]:
        pixels = images(batch, height, width)
        assert close(run(pixels), segmented(model, pixels), 1e-4), (batch, height, width)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["labels"] == list(LABELS.values()) and metadata["image_mean"] == [0.4, 0.5, 0.6]
    assert session.get_inputs()[0].shape == ["batch", 3, *(size or ("height", "width"))]
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("backbone, options", [("test_resnet", {}), ("test_vit", SHALLOW)], ids=["cnn", "vit"])
def test_onnx_gives_the_same_logits_at_any_size(tmp_path, backbone, options):
    """ONNX Runtime, at batches and sizes that the export did not compare, is within 1e-4; the file has labels and statistics."""
    pytest.importorskip("onnxscript")
    check_onnx(tmp_path, backbone, **options)


@pytest.mark.slow
@pytest.mark.parametrize("backbone, size, options", [
    ("vit_small_patch16_dinov3", None, DINOV3), ("convnext_atto", None, {}), ("resnet50d", None, {"output_stride": 8}),
    ("swin_tiny_patch4_window7_224", (96, 97), SWIN), ("test_vit", None, SHALLOW | {"decoder_type": "dpt"}),
    ("test_resnet", None, {"decoder_type": "linear"}),
])  # fmt: skip
def test_onnx_of_other_families(tmp_path, backbone, size, options):
    """Rotary positions, "same" padding and shifted windows; Swin at one size, because tracing it for any size takes minutes."""
    pytest.importorskip("onnxscript")
    check_onnx(tmp_path, backbone, size, **options)


needs_newer_torch = pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="needs the torch of the export extra")


@torch.no_grad()
@needs_newer_torch
@pytest.mark.parametrize("backbone, options", [("test_resnet", {}), ("test_vit", SHALLOW)], ids=["cnn", "vit"])
def test_torch_export_gives_the_same_logits_at_any_size(tmp_path, backbone, options):
    """The saved program runs without this package, at batches and sizes that the export did not compare."""
    model = checkpoint(tmp_path / "model", backbone, **options)
    assert "images of any size whose feature map has at least 2 x 2 positions" in export(model, "torch", tmp_path / "out")
    metadata = {"model.json": ""}
    program = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=metadata).module()
    for batch, height, width in SIZES_HERE:
        pixels = images(batch, height, width)
        assert close(program(pixels), segmented(model, pixels), 1e-5), (batch, height, width)
    assert json.loads(metadata["model.json"])["labels"] == list(LABELS.values())
    with pytest.raises(AssertionError, match="Guard failed"):
        program(images(2, 16, 64))


@torch.no_grad()
def test_a_graph_of_one_size(tmp_path):
    """--height and --width fix the images, not the batch."""
    model = checkpoint(tmp_path / "model", "test_vit", **SHALLOW)
    assert "images of 48 x 80 px" in export(model, "torch", tmp_path / "out", size=(48, 80))
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert close(program(images(5, 48, 80)), segmented(model, images(5, 48, 80)), 1e-5)
    with pytest.raises(AssertionError):
        program(images(2, 64, 64))


@needs_newer_torch
def test_a_wrong_graph_raises(tmp_path, monkeypatch):
    """A graph with logits that differ raises, and the message has the difference."""
    model, trace = checkpoint(tmp_path / "model", "test_resnet"), graphs._trace_torch

    def changed(segmenter, *rest):
        other = MsclForSemanticSegmentation.from_pretrained(model).eval()
        other.classifier.weight.data *= 1.01
        return trace(graphs.Segmenter(other), *rest)

    monkeypatch.setattr(graphs, "_trace_torch", changed)
    with pytest.raises(ValueError, match=r"model is \d\.\de-0\d; expected at most 0.0001. Nothing") as error:
        export(model, "torch", tmp_path / "out")
    assert one_sentence(error) and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_graph_bound_to_its_example_raises(tmp_path, monkeypatch, to):
    """Without the replaced functions of timm, DINOv3's graph is right at the size of the example only, which is detected."""
    model = checkpoint(tmp_path / "model", "vit_small_patch16_dinov3", **DINOV3)
    monkeypatch.setattr(graphs, "_same_padding", graphs.padding.get_same_padding)
    monkeypatch.setattr(graphs.torch, "sym_float", float)
    with pytest.raises(ValueError, match="for 1 images of 64 x 64 px") as error:
        export(model, to, tmp_path / "out")
    assert one_sentence(error) and not (tmp_path / "out").exists()


def test_the_nearest_size_in_integers_is_that_of_round():
    """The traceable formula gives the size of the formula with round(), for every side, also halfway between two multiples."""
    for multiple in (1, 7, 14, 16, 32):
        backbone = SimpleNamespace(config=SimpleNamespace(size_multiple=multiple, fixed_size=None))
        for side in range(1, 150):
            expected = max(multiple, round(side / multiple) * multiple)
            assert MsclBackbone.input_size(backbone, (side, 64 * multiple)) == (expected, 64 * multiple), (side, multiple)


# -- errors ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        tuned=checkpoint(folder / "tuned", "test_resnet"),
        pretrained=checkpoint(folder / "pretrained", "test_resnet", MsclForPreTraining),
        towers=checkpoint(folder / "towers", "test_resnet", two_towers=True, image_mean=[0.0] * 3, image_std=[1.0] * 3),
    )


@pytest.mark.parametrize("model, to, options, match", [
    ("towers", "timm", {}, "two towers"), ("towers", "smp", {}, "two towers"), ("towers", "torchvision", {}, "two towers"),
    ("pretrained", "onnx", {}, "pre-trained and has no classifier"), ("pretrained", "torch", {}, "pre-trained and has no classifier"),
    ("tuned", "torchvision", {}, "--to is torchvision, which has no test_resnet"), ("tuned", "keras", {}, "expected one of timm, smp"),
    ("tuned", "timm", {"size": (64, 64)}, "Leave them out"), ("tuned", "onnx", {"backbone_only": True}, "Leave it out"),
])  # fmt: skip
def test_impossible_exports_raise(tmp_path, models, model, to, options, match):
    """With one message, before anything is written."""
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=match) as error:
        export(getattr(models, model), to, tmp_path / "out", **options)
    assert one_sentence(error) and not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, models, monkeypatch):
    """Without the optional packages the message has the command that installs them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--to is smp, .* pip install segmentation-models-pytorch"):
        export(models.tuned, "smp", tmp_path / "out")
    with pytest.raises(ValueError, match="pip install onnx onnxscript onnxruntime"):
        export(models.tuned, "onnx", tmp_path / "out")


@pytest.mark.parametrize("options", [{"x=print(1))#": 1}, {"output_stride": 16, "a b": 2}])
def test_a_configuration_cannot_add_code(options):
    """load.py is executed; an untrusted config.json adds only names and values to it."""
    with pytest.raises(ValueError, match="expected the name of a timm model"):
        state_dicts.load_scripts.check_names(SimpleNamespace(backbone="resnet18", backbone_kwargs=options))


def test_the_command(tmp_path, models, monkeypatch):
    """mscl-export writes a folder, does not change one that is not empty, and reports errors in one message with status 1."""
    script, out = ROOT / "hub" / "export.py", tmp_path / "out"
    words = [str(script), "--model", models.tuned, "--to", "timm", "--output-dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "bit for bit" in done.stdout, done.stderr
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    main = runpy.run_path(str(script))["main"]
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit, match="^error: --to and --output-dir are missing"):
        main()
    for more, expected in (([], "--output-dir is .*; expected a new or empty folder"), (["--height", "64"], "expected both or neither")):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit, match=expected):
            main()
