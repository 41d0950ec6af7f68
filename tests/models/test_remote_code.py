"""A saved folder opens where mscl_hf is not installed, by the code that travels with it, and gives the same bits."""

import builtins
import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation, pipeline

from mscl_hf import MsclBackbone, MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.models.backbones import build_config
from mscl_hf.models.configuration_mscl import AUTO_MAP
from mscl_hf.sharing.model_folder import write_model

torch.set_num_threads(1)
CODE = {
    f"{name}_mscl.py"
    for name in ("base", "blocks", "checks", "configuration", "cross_entropy", "decoders", "fields", "heads", "modeling", "timm", "towers")
}
SHAPE = {"image_size": 64, "decoder_channels": 16}
CLASSES = {0: "sky", 1: "road", 2: "tree"}
ROPE = {"depth": 2, "embed_dim": 48, "num_heads": 2}  # DINOv3's rotations are buffers outside the checkpoint

# What a user without mscl_hf runs on the folder of the fixture `root`: it leaves report.json and tensors.safetensors there.
FOREIGN_SCRIPT = """
import importlib.util, json, logging, sys
from pathlib import Path

assert importlib.util.find_spec("mscl_hf") is None, "mscl_hf is installed here"
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining,
                          AutoModelForSemanticSegmentation, pipeline)

torch.set_num_threads(1)
root, trust = Path(sys.argv[1]), {"trust_remote_code": True}
image = load_file(root / "image.safetensors")["image"]
said, numbers, report = [], {}, {}
listener = logging.Handler(logging.WARNING)
listener.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(listener)


def rejected(**options):
    try:
        AutoConfig.from_pretrained(root / "cnn", **options)
    except ValueError as error:
        return str(error)


def listed(folder):
    return sorted(path.name for path in folder.glob("*.py"))


def described(model):
    config = model.config
    return [type(model).__name__, type(model).__module__.split(".")[0], config.model_type, config.num_labels, config.label2id]


report["rejected"] = [rejected(), rejected(trust_remote_code=False)]
with torch.no_grad():
    for name in ("cnn", "rope"):
        folder = root / name
        report[f"{name} config"] = type(AutoConfig.from_pretrained(folder, **trust)).__module__.split(".")[0]
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, **trust).eval()
        report[name] = described(model)
        numbers[f"{name} logits"] = model(image).logits
        model.save_pretrained(root / f"{name}_again")
        again = AutoModelForSemanticSegmentation.from_pretrained(root / f"{name}_again", **trust).eval()
        numbers[f"{name} logits again"] = again(image).logits
        backbone = AutoModel.from_pretrained(folder, **trust).eval()
        report[f"{name} backbone"] = described(backbone)
        for number, features in enumerate(backbone(image).feature_maps):
            numbers[f"{name} features {number}"] = features.contiguous()
    pipe = pipeline("image-segmentation", model=str(root / "cnn"), device="cpu", **trust)
    report["pipeline"] = sorted((part["label"], int((torch.frombuffer(part["mask"].tobytes(), dtype=torch.uint8) > 0).sum()))
                                for part in pipe(str(root / "picture.png")))
    processor = AutoImageProcessor.from_pretrained(root / "cnn", **trust)
    numbers["pixels"] = processor(Image.open(root / "picture.png"), return_tensors="pt")["pixel_values"]
    report["complaints"] = said[:]
    towers = AutoModelForPreTraining.from_pretrained(root / "towers", **trust).eval()
    report["towers"] = described(towers)
    embeddings = towers(image)
    for key in ("global_embeds", "local_embeds", "pixel_embeds"):
        numbers[f"towers {key}"] = embeddings[key].contiguous()
    tuned = AutoModelForSemanticSegmentation.from_pretrained(root / "towers", id2label={0: "cat", 1: "dog"}, **trust)
    report["tuned"] = described(tuned)
    tuned.save_pretrained(root / "tuned")
    found = AutoBackbone.from_config(AutoConfig.from_pretrained(root / "towers", **trust), **trust)
    report["AutoBackbone"] = [*described(found)[:2], found.out_features]
for name in ("cnn_again", "rope_again", "tuned"):
    report[f"files of {name}"] = [listed(root / name), json.loads((root / name / "config.json").read_text())["auto_map"]]
save_file(numbers, root / "tensors.safetensors")
(root / "report.json").write_text(json.dumps(report))
"""


def environment_without_mscl_hf(folder: Path) -> Path:
    """A Python of its own with every installed package but this one; the path of its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    (home,) = folder.glob("lib/python*/site-packages")
    sources = {Path(entry).resolve() for entry in (*sys.path, *site.getsitepackages())}
    sources = sorted(source for source in sources if source.name in ("site-packages", "dist-packages") and source.is_dir())
    for part in (part for source in sources for part in source.iterdir()):
        if not part.name.lower().startswith(("mscl", "__editable__", "__pycache__")) and not (home / part.name).exists():
            (home / part.name).symlink_to(part)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three saved models, an image, a picture: a CNN and a transformer with a classifier, and two towers with contrastive heads."""
    root = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    for name, network in {
        "cnn": MsclForSemanticSegmentation(build_config("test_resnet", id2label=CLASSES, base_size=48, **SHAPE)),
        "rope": MsclForSemanticSegmentation(build_config("vit_small_patch16_dinov3", backbone_kwargs=ROPE, id2label=CLASSES, **SHAPE)),
        "towers": MsclForPreTraining(build_config("test_vit", two_towers=True, **SHAPE)),
    }.items():
        if name != "towers":
            torch.nn.init.normal_(network.classifier.weight)  # more than one class appears
        (root / name).mkdir()
        write_model(network, root / name)
    save_file({"image": torch.rand(1, 3, 90, 123)}, root / "image.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)).save(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def foreign_process(root, tmp_path_factory):
    """Return report and numbers of a process without mscl_hf. Its input is closed, so that a prompt is an error."""
    place = tmp_path_factory.mktemp("elsewhere")
    python = environment_without_mscl_hf(place / "environment")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    variables |= {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", FOREIGN_SCRIPT, root]
    done = subprocess.run(
        command, cwd=place, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "report.json").read_text()), load_file(root / "tensors.safetensors")


def test_foreign_code_is_rejected_until_it_is_trusted(foreign_process):
    """By default, and with trust_remote_code=False, the code of the folder is not run; the error names the option."""
    for message in foreign_process[0]["rejected"]:
        assert message is not None and "trust_remote_code=True" in message


def test_auto_classes_open_without_mscl_hf(root, foreign_process):
    """The Auto classes find configuration, backbone, heads and classifier among the files of the folder, labels included."""
    report, labels = foreign_process[0], {name: i for i, name in CLASSES.items()}
    foreign = "transformers_modules"
    assert report["cnn config"] == report["rope config"] == foreign
    for name in ("cnn", "rope"):
        assert report[name] == ["MsclForSemanticSegmentation", foreign, "mscl", 3, labels]
        assert report[f"{name} backbone"] == ["MsclBackbone", foreign, "mscl", 3, labels]
    assert report["towers"][:3] == ["MsclForPreTraining", foreign, "mscl"]
    assert report["tuned"] == ["MsclForSemanticSegmentation", foreign, "mscl", 2, {"cat": 0, "dog": 1}]
    assert report["AutoBackbone"] == ["MsclBackbone", foreign, MsclConfig.from_pretrained(root / "towers").out_features]


@torch.no_grad()
def test_the_numbers_are_those_of_the_package(root, foreign_process):
    """Logits, features and embeddings agree bit for bit with what the installed package computes, buffers and towers included."""
    numbers, image = foreign_process[1], load_file(root / "image.safetensors")["image"]
    for name in ("cnn", "rope"):
        wanted = MsclForSemanticSegmentation.from_pretrained(root / name).eval()(image).logits
        assert torch.equal(numbers[f"{name} logits"], wanted) and torch.equal(numbers[f"{name} logits again"], wanted)
        for number, features in enumerate(MsclBackbone.from_pretrained(root / name).eval()(image).feature_maps):
            assert torch.equal(numbers[f"{name} features {number}"], features)
    embeddings = MsclForPreTraining.from_pretrained(root / "towers").eval()(image)
    for key in ("global_embeds", "local_embeds", "pixel_embeds"):
        assert torch.equal(numbers[f"towers {key}"], embeddings[key])


def test_a_pipeline_opens_it_without_mscl_hf(root, foreign_process):
    """The image-segmentation pipeline gives the same masks as here, and has nothing to complain about."""
    report, numbers = foreign_process
    assert report["complaints"] == []
    pipe = pipeline("image-segmentation", model=str(root / "cnn"), device="cpu")
    parts = pipe(str(root / "picture.png"))
    assert len(parts) > 1
    assert report["pipeline"] == sorted([part["label"], int((np.asarray(part["mask"]) > 0).sum())] for part in parts)
    assert torch.equal(numbers["pixels"], pipe.image_processor(Image.open(root / "picture.png"), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("name", ["cnn_again", "rope_again", "tuned"])
def test_a_folder_saved_without_mscl_hf_is_complete(root, foreign_process, name):
    """A folder saved where mscl_hf is not installed has all files of code, finds its classes in itself, and opens here."""
    files, auto_map = foreign_process[0][f"files of {name}"]
    assert set(files) == CODE == {path.name for path in (root / "cnn").glob("*.py")}
    assert auto_map == AUTO_MAP and all("--" not in reference for reference in auto_map.values())
    for file in files:
        assert (root / name / file).read_text() == (root / "cnn" / file).read_text()
    assert type(AutoModelForSemanticSegmentation.from_pretrained(root / name)) is MsclForSemanticSegmentation


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}], ids=str)
def test_installed_code_comes_first(root, monkeypatch, options):
    """Where mscl_hf is imported, its own classes open the folder without a prompt, with any trust_remote_code."""

    def asked(prompt=""):
        raise AssertionError(f"was asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)
    assert type(AutoConfig.from_pretrained(root / "cnn", **options)) is MsclConfig
    for auto_cls, model_cls in ((AutoModel, MsclBackbone), (AutoModelForPreTraining, MsclForPreTraining)):
        assert type(auto_cls.from_pretrained(root / "towers", **options)) is model_cls
    assert type(pipeline("image-segmentation", model=str(root / "cnn"), device="cpu", **options).model) is MsclForSemanticSegmentation
