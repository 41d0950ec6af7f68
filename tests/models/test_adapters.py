"""Adapters that PEFT has saved: on a model, in place of a model, in a pipeline; what is no adapter of a model is rejected."""

import json
import shutil
from pathlib import Path

import harness
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from mscl_hf import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.sharing.model_folder import image_processor, write_model

peft = pytest.importorskip("peft")
LAYERS = {"test_vit": ["qkv", "fc1"], "test_resnet": r".*(downsample\.1|fuse\.0)"}  # tokens by linear layers, maps by convolutions
NAMES = {"id2label": {0: "sky", 1: "road", 2: "tree"}, "label2id": {"sky": 0, "road": 1, "tree": 2}}


def adapted(model: Path, out: Path, layers, **options) -> torch.Tensor:
    """Logits for `images` of a model with a drawn adapter and a new classifier, which are saved in `out` by PEFT."""
    lora = peft.LoraConfig(r=4, target_modules=layers, modules_to_save=["classifier"], init_lora_weights=False, **options)
    network = peft.get_peft_model(AutoModelForSemanticSegmentation.from_pretrained(model), lora).eval()
    torch.nn.init.normal_(network.base_model.model.classifier.modules_to_save.default.weight)
    network.save_pretrained(out)
    with torch.no_grad():
        return network(pixel_values=images()).logits


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images()).logits


@pytest.fixture(scope="module", params=LAYERS)
def folders(request, tmp_path_factory):
    """A fine-tuned model, an adapter of it, and its logits with the adapter."""
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    network = MsclForSemanticSegmentation(harness.config(request.param, **NAMES))
    (root / "model").mkdir()
    write_model(network, root / "model")
    expected = adapted(root / "model", root / "adapter", LAYERS[request.param])
    assert not torch.allclose(expected, logits(network), atol=0.1)
    return root / "model", root / "adapter", expected


def test_an_adapter_is_added_to_a_model(folders):
    """load_adapter gives the model that was saved; without the adapter it is the one before."""
    model, adapter, expected = folders
    network = MsclForSemanticSegmentation.from_pretrained(model)
    before = logits(network)
    info = network.load_adapter(str(adapter))
    assert not (info.missing_keys or info.unexpected_keys) and torch.equal(logits(network), expected)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(MsclForSemanticSegmentation.from_pretrained(model), adapter)), expected)
    assert torch.equal(logits(MsclForSemanticSegmentation.from_pretrained(model)), before)


@pytest.mark.parametrize("model_cls", [AutoModelForSemanticSegmentation, MsclForSemanticSegmentation])
def test_an_adapter_in_place_of_a_model(folders, model_cls):
    """from_pretrained opens the model that the adapter names, and adds the adapter."""
    _, adapter, expected = folders
    network, info = model_cls.from_pretrained(adapter, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"]) and torch.equal(logits(network), expected)


def test_an_adapter_in_a_pipeline(folders, tmp_path):
    """The pipeline of an adapter shows what that of the merged model shows."""
    model, adapter, _ = folders
    merged = peft.PeftModel.from_pretrained(MsclForSemanticSegmentation.from_pretrained(model), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path)
    image_processor(merged.config).save_pretrained(tmp_path)
    image = Image.effect_noise((70, 50), 80).convert("RGB")
    answers = [pipeline("image-segmentation", model=str(place), device="cpu")(image) for place in (adapter, tmp_path)]
    (labels, masks), (merged_labels, merged_masks) = ([[part[key] for part in answer] for key in ("label", "mask")] for answer in answers)
    assert labels == merged_labels and [mask.tobytes() for mask in masks] == [mask.tobytes() for mask in merged_masks]


def changed(adapter: Path, out: Path, **fields) -> str:
    shutil.copytree(adapter, out)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | fields))
    return str(out)


def test_what_is_no_adapter_of_a_model_is_rejected(folders, tmp_path):
    """The error names the problem: an empty folder, no model named, other adapters named, an adapter beside a model."""
    model, adapter, _ = folders
    (tmp_path / "empty").mkdir()
    beside = shutil.copytree(model, tmp_path / "beside")
    shutil.copy(adapter / "adapter_config.json", beside)
    nameless = changed(adapter, tmp_path / "nameless", base_model_name_or_path="")
    other = changed(adapter, tmp_path / "other", peft_type="XLORA")
    network = MsclForSemanticSegmentation.from_pretrained(model)
    for call, place, words in (
        (network.load_adapter, tmp_path / "empty", "no adapter_config.json"), (network.load_adapter, other, "XLORA"),
        (MsclForSemanticSegmentation.from_pretrained, nameless, "base_model_name_or_path"),
        (MsclForSemanticSegmentation.from_pretrained, beside, "beside a whole model"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as error:
            call(str(place))
        assert "\n" not in str(error.value)
    assert torch.equal(logits(network), logits(MsclForSemanticSegmentation.from_pretrained(model)))


def test_an_adapter_of_another_network_is_rejected(folders, tmp_path):
    """The sentence counts the weights that do not fit."""
    model, adapter, _ = folders
    wider = MsclForSemanticSegmentation(harness.config(decoder_channels=24))
    wider.save_pretrained(tmp_path / "wider")
    adapted(tmp_path / "wider", tmp_path / "adapter", r".*fuse\.0")
    with pytest.raises(ValueError, match=r"another network: \d+ weights of it"):
        MsclForSemanticSegmentation.from_pretrained(model).load_adapter(str(tmp_path / "adapter"))


def test_a_pickled_adapter_stays_closed(folders, tmp_path):
    """transformers would open adapter_model.bin; it is rejected, whichever way it is named."""
    model, adapter, _ = folders
    place = Path(changed(adapter, tmp_path / "pickled"))
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    calls = (MsclForSemanticSegmentation.from_pretrained(model).load_adapter, MsclForSemanticSegmentation.from_pretrained,
             AutoModelForSemanticSegmentation.from_pretrained)  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="no adapter_model.safetensors"):
            call(str(place))


def test_an_adapter_brings_no_classifier(tmp_path):
    """A pre-trained model and an adapter without a classifier make no segmentation network until the classes are named."""
    torch.manual_seed(0)
    MsclForPreTraining(harness.config("test_vit")).save_pretrained(tmp_path / "model")
    network = peft.get_peft_model(MsclForPreTraining.from_pretrained(tmp_path / "model"), peft.LoraConfig(target_modules=["qkv"]))
    network.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="has no classifier"):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "adapter")
    named = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "adapter", id2label=NAMES["id2label"])
    assert logits(named).shape[1] == 3


def test_an_adapter_without_peft(folders, monkeypatch):
    """Where peft is missing the sentence says so."""
    monkeypatch.setattr("mscl_hf.models.checks_mscl.is_peft_available", lambda: False)
    with pytest.raises(ValueError, match="pip install peft"):
        MsclForSemanticSegmentation.from_pretrained(folders[1])
