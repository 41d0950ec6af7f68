"""transformers' interface of a model class: files, initialization, outputs, labels, backbones, devices, pipelines."""

import copy
import functools
import inspect
import io
import json
import logging
import re
import subprocess
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import infer_auto_device_map, init_empty_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from test_families import poison
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from mscl_hf import MsclBackbone, MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.data.pixels import rgb_array
from mscl_hf.models.backbones import build_config
from mscl_hf.records.files import hub_folder
from mscl_hf.sharing.model_folder import write_model

torch.set_num_threads(1)
SWIN, DINOV3 = "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3"  # a rule of sizes; buffers outside the checkpoint in both
SMALLER = {
    SWIN: {"embed_dim": 24, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    DINOV3: {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "coat_tiny": {"embed_dims": [32, 32, 32, 32], "serial_depths": [1, 1, 1, 1], "parallel_depth": 1},
}
NAMES = ("test_resnet", "test_vit", SWIN)
AUTO_CLASSES = {
    MsclBackbone: AutoModel,
    MsclForPreTraining: AutoModelForPreTraining,
    MsclForSemanticSegmentation: AutoModelForSemanticSegmentation,
}
EVERY = pytest.mark.parametrize(
    ("model_cls", "name"), list(product(AUTO_CLASSES, NAMES)), ids=lambda value: getattr(value, "__name__", value)
)
EMBEDDINGS = ("global_embeds", "local_embeds", "pixel_embeds")


def config_of(name="test_resnet", **options):
    return copy.deepcopy(plain_config(name)) if not options else built_config(name, **options)


@functools.cache
def plain_config(name):
    return built_config(name)


def built_config(name, **options):
    kwargs = SMALLER.get(name, {})
    labels = {} if "id2label" in options else {"num_labels": 3}
    return build_config(name, **{"backbone_kwargs": kwargs, "image_size": 64, "decoder_channels": 16, **labels, **options})


def images(count=2, height=64, width=64):
    return torch.randn(count, 3, height, width)


def answers(out) -> list[torch.Tensor]:
    """Return the logits, embeddings or feature maps of an output."""
    if "logits" in out:
        return [out.logits]
    return [out[key] for key in EMBEDDINGS] if "global_embeds" in out else list(out.feature_maps)


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def backbone_of(model) -> MsclBackbone:
    return getattr(model, "backbone", model)


# -- files ------------------------------------------------------------------------------------------------------------------


@EVERY
@torch.no_grad()
def test_saved_in_shards_and_saved_again(model_cls, name, tmp_path):
    """A folder of many shards, and what is saved after loading it, hold the same model, bit for bit."""
    model, image = model_cls(config_of(name)).eval(), images(1, 90, 70)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    second = model_cls.from_pretrained(tmp_path / "shards").eval()
    second.save_pretrained(tmp_path / "whole")
    third = AUTO_CLASSES[model_cls].from_pretrained(tmp_path / "whole").eval()
    for loaded in (second, third):
        assert type(loaded) is model_cls and same(list(model.state_dict().values()), list(loaded.state_dict().values()))
        assert same(answers(model(image)), answers(loaded(image)))


@EVERY
def test_what_a_folder_says_of_itself(model_cls, name, tmp_path):
    """The class that was saved, the files of its code, and how to find each class in them."""
    model_cls(config_of(name)).save_pretrained(tmp_path)
    config = MsclConfig.from_pretrained(tmp_path)
    assert config.architectures == [model_cls.__name__] and config.auto_map[model_cls._auto_class] == f"modeling_mscl.{model_cls.__name__}"
    assert model_cls._auto_class == AUTO_CLASSES[model_cls].__name__ and config.auto_map["AutoConfig"] == "configuration_mscl.MsclConfig"
    for reference in config.auto_map.values():
        file, _, name = reference.partition(".")
        assert re.search(rf"^class {name}\b", (tmp_path / f"{file}.py").read_text(), re.M)
    wanted = {module for file in tmp_path.glob("*.py") for module in re.findall(r"^from \.(\w+) import", file.read_text(), re.M)}
    assert wanted <= {file.stem for file in tmp_path.glob("*.py")}


SAVED_BEFORE = """{
  "architectures": ["MsclForSemanticSegmentation"], "attach": "ancestor", "auxiliary_loss_weight": 0.4, "backbone": "test_resnet",
  "backbone_kwargs": {"output_stride": 16}, "base_size": 64, "bn_views": "joint", "contrast": {}, "decoder": "fcn", "decoder_channels": 16,
  "decoder_dropout": 0.1, "decoder_rates": [1, 1, 2], "dtype": "float32", "id2label": {"0": "road", "1": "car"}, "image_size": 64,
  "label2id": {"road": 0, "car": 1}, "model_type": "mscl", "out_indices": [2, 3], "transformers_version": "5.0.0"
}"""


def test_the_decoder_field_of_earlier_versions(tmp_path):
    """A config.json that names the decoder `decoder` opens; what is saved again has `decoder_type` alone."""
    (tmp_path / "config.json").write_text(SAVED_BEFORE)
    from_dict = MsclConfig.from_dict(json.loads(SAVED_BEFORE))
    for opened in (MsclConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path), from_dict):
        assert opened.decoder_type == "fcn" and not hasattr(opened, "decoder")
        assert "decoder" not in opened.to_dict() and json.loads(opened.to_json_string(use_diff=False))["decoder_type"] == "fcn"
    model = MsclForSemanticSegmentation(opened)
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["decoder_type"] == "fcn" and "decoder" not in saved
    assert type(MsclForSemanticSegmentation.from_pretrained(tmp_path / "again").decoder).__name__ == "FCNDecoder"


def test_no_field_is_a_text_configuration():
    """transformers takes some names of fields for configurations inside a configuration."""
    config = config_of()
    assert config.get_text_config() is config and config.get_text_config(decoder=True) is config
    assert config.get_text_config(encoder=True) is config


def test_a_configuration_saved_alone_brings_its_code(tmp_path):
    """What AutoConfig needs to open it anywhere."""
    config_of().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "checks_mscl.py", "configuration_mscl.py", "fields_mscl.py"}


@torch.no_grad()
def test_weights_used_twice(tmp_path):
    """CoaT uses its position encodings in several blocks: they are saved once, and are still one tensor after loading."""
    model, image = MsclForSemanticSegmentation(config_of("coat_tiny")).eval(), images(1)
    tied = model.backbone._tied_weights_keys
    assert tied and tied == MsclForSemanticSegmentation(config_of("coat_tiny")).backbone._tied_weights_keys
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    poison()
    loaded, info = MsclForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for target, source in tied.items():
        assert f"backbone.{source}" in saved and f"backbone.{target}" not in saved
        assert loaded.backbone.get_parameter(target) is loaded.backbone.get_parameter(source)
    assert same(answers(model(image)), answers(loaded.eval()(image)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    """Saved in half precision, dtype="auto" and no dtype at all open it so; float32 can be asked for; logits are always float32."""
    MsclForSemanticSegmentation(config_of()).to(dtype).save_pretrained(tmp_path)
    for asked, got in (({}, dtype), ({"dtype": "auto"}, dtype), ({"dtype": torch.float32}, torch.float32)):
        model = MsclForSemanticSegmentation.from_pretrained(tmp_path, **asked).eval()
        assert {p.dtype for p in model.parameters()} == {got} and model.config.dtype == got
        logits = model(images(1).to(got)).logits
        assert logits.dtype == torch.float32 and logits.isfinite().all()


# -- initialization -----------------------------------------------------------------------------------------------------------


@EVERY
def test_built_from_a_configuration(model_cls, name):
    """The Auto classes, AutoBackbone among them, build the same network as the class, in memory filled with NaN too."""
    config = config_of(name)
    for auto_cls in (AUTO_CLASSES[model_cls], *([AutoBackbone] if model_cls is MsclBackbone else [])):
        torch.manual_seed(3)
        wanted = model_cls(config).state_dict()
        poison()
        torch.manual_seed(3)
        built = auto_cls.from_config(config)
        assert type(built) is model_cls and same(list(wanted.values()), list(built.state_dict().values()))
        assert all(tensor.isfinite().all() for tensor in (*built.parameters(), *built.buffers()))


@pytest.mark.parametrize("name", [*NAMES, DINOV3])
def test_new_parts_are_initialized_when_loading(name, tmp_path):
    """What a checkpoint lacks starts as it does in a new network, in memory filled with NaN: the same spread and constants."""
    MsclForPreTraining(config_of(name, heads=[])).save_pretrained(tmp_path / "bare")
    for model_cls, heads in ((MsclForSemanticSegmentation, ("classifier.", "auxiliary_head.")),
                        (MsclForPreTraining, ("global_head.", "local_head.", "pixel_head."))):  # fmt: skip
        torch.manual_seed(0)
        wanted = model_cls(config_of(name)).state_dict()
        poison()
        loaded, info = model_cls.from_pretrained(tmp_path / "bare", heads=["global", "local", "pixel"], output_loading_info=True)
        found = loaded.state_dict()
        new = {key for key in found if key.startswith(heads)}
        assert new == set(info["missing_keys"]) and found.keys() == wanted.keys()
        assert_initialized(new, found, wanted)
        loaded.save_pretrained(tmp_path / "back")  # a fine-tuned model can be pre-trained further
        back = MsclForPreTraining.from_pretrained(tmp_path / "back").state_dict()
        assert all(torch.equal(back[key], value) for key, value in found.items() if key.startswith(("backbone.", "decoder.")))


def assert_initialized(keys, found, wanted):
    """The same spread, the same constants, as in another new network."""
    for key in keys:
        if wanted[key].is_floating_point() and wanted[key].std() > 0:
            spread = float(wanted[key].detach().std())
            error = max(0.15, 5 / (2 * found[key].numel()) ** 0.5)  # five times that of a sample's standard deviation
            assert float(found[key].detach().std()) == pytest.approx(spread, rel=error), key
            assert found[key].abs().max() < 8 * spread, key
        else:
            assert torch.equal(found[key], wanted[key]), key


@EVERY
@pytest.mark.parametrize("empty", [lambda: torch.device("meta"), init_empty_weights], ids=["torch", "accelerate"])
def test_memory_after_construction(model_cls, name, empty):
    """Built on the meta device, given memory, then initialized: timm's weights and buffers, too, are those of a new network."""
    torch.manual_seed(0)
    wanted = model_cls(config_of(name))
    with empty():
        model = model_cls(config_of(name))
    poison()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    tensors = [dict((*network.named_parameters(), *network.named_buffers())) for network in (model, wanted)]
    assert tensors[0].keys() == tensors[1].keys()
    assert_initialized(tensors[0], *tensors)


def test_a_backbone_that_a_foreign_checkpoint_lacks(tmp_path):
    """UperNet's weights without those of its backbone: the backbone starts as timm's does, not with what lay in memory."""
    config = UperNetConfig(backbone_config=config_of(), hidden_size=16, use_auxiliary_head=False)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path)
    without(tmp_path, "backbone.")
    poison()
    backbone = UperNetForSemanticSegmentation.from_pretrained(tmp_path).backbone.state_dict()
    assert_initialized(backbone, backbone, MsclBackbone(config_of()).state_dict())


@EVERY
def test_initialization_leaves_what_is_loaded(model_cls, name):
    """Initializing again changes all parameters of ours that are not marked as loaded, none that are, and none of timm's."""
    model = model_cls(config_of(name))
    parameters = dict(model.named_parameters())
    for number, parameter in enumerate(parameters.values()):  # weights without their biases, and the other way round
        parameter._is_hf_initialized = number % 2 == 0
        parameter.data += 1
    before = {key: value.clone() for key, value in parameters.items()}
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
    changed = {key for key, value in before.items() if not torch.equal(value, parameters[key])}
    loaded = set(list(parameters)[::2])
    assert changed == {key for key in parameters if not key.startswith(("backbone.", "timm_model."))} - loaded


# -- outputs ------------------------------------------------------------------------------------------------------------------


@EVERY
def test_signature(model_cls, name):
    """Pixels come first and are the only main input; nothing of text is claimed."""
    model = model_cls(config_of(name))
    assert list(inspect.signature(model.forward).parameters)[0] == model_cls.main_input_name == "pixel_values"
    assert not model.can_generate() and model_cls.config_class is MsclConfig and model_cls.input_modalities == ("image",)
    assert backbone_of(model) is model.base_model


@EVERY
@torch.no_grad()
def test_eval_mode_is_deterministic_and_copies_are_whole(model_cls, name):
    """The same image twice, and a deep copy, give the same bits; training the copy leaves the model alone."""
    model, image = model_cls(config_of(name)).eval(), images(1)
    wanted = answers(model(image))
    assert same(wanted, answers(model(image)))
    twin = copy.deepcopy(model)
    assert same(wanted, answers(twin(image)))
    for parameter in twin.parameters():
        parameter.add_(1)
    assert same(wanted, answers(model(image))) and not same(wanted, answers(twin(image)))


@EVERY
@torch.no_grad()
def test_an_image_alone_is_as_in_a_batch(model_cls, name):
    """In eval mode no image sees the others."""
    model, batch = model_cls(config_of(name)).eval(), images(3, 64, 96)
    together = answers(model(batch))
    for place in range(3):
        for whole, alone in zip(together, answers(model(batch[place : place + 1]))):
            torch.testing.assert_close(alone[0], whole[place], atol=1e-5, rtol=1e-4)


@EVERY
@torch.no_grad()
def test_hidden_states(model_cls, name):
    """With the argument or the field of the configuration, the output has the maps of all stages as timm computes them."""
    model, image = model_cls(config_of(name)).eval(), images(1)
    backbone, plain = backbone_of(model), model(image)
    asked = model(image, output_hidden_states=True)
    assert plain.hidden_states is None and same(answers(plain), answers(asked))
    maps = backbone.timm_model.forward_intermediates(image, norm=True, output_fmt="NCHW", intermediates_only=True)
    assert same(asked.hidden_states, maps) and len(maps) == len(backbone.stage_names)
    assert [m.shape[1] for m in maps] == backbone.num_features == list(backbone.out_feature_channels.values())
    tapped = backbone(image, output_hidden_states=True)
    assert [[m is stage for stage in tapped.hidden_states].index(True) for m in tapped.feature_maps] == backbone.taps
    model.config.output_hidden_states = True
    assert same(model(image).hidden_states, maps) and model(image, output_hidden_states=False).hidden_states is None


@EVERY
@torch.no_grad()
def test_tuples(model_cls, name):
    """return_dict=False, by argument or configuration, gives the same values in the same order without names."""
    model, image = model_cls(config_of(name)).eval(), images(2)
    more = {"labels": torch.randint(3, (2, 64, 64))} if model_cls is MsclForSemanticSegmentation else {}

    def flat(values):
        return [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]

    for options in (more, more | {"output_hidden_states": True}):
        wanted = model(image, **options).to_tuple()
        found = model(image, **options, return_dict=False)
        assert type(found) is tuple and len(found) == len(wanted) and same(flat(found), flat(wanted))
        model.config.return_dict = False
        assert type(model(image, **options)) is tuple and same(flat(model(image, **options)), flat(wanted))
        assert same(answers(model(image, **options, return_dict=True)), answers(model(image, return_dict=True)))
        model.config.return_dict = True


@EVERY
def test_training_reaches_every_weight(model_cls, name):
    """A loss in training mode, and a finite gradient for every parameter; retained, also for the maps that were tapped."""
    model = model_cls(config_of(name)).train()
    assert model.training and all(module.training for module in model.modules())
    if model_cls is MsclForSemanticSegmentation:
        loss = model(images(), labels=torch.randint(3, (2, 64, 64))).loss
    else:
        loss = sum((value * torch.randn_like(value)).sum() for value in answers(model(images())))
    loss.backward()
    assert loss.isfinite() and [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    model.eval()
    out = backbone_of(model)(images(), output_hidden_states=True)
    for tapped in out.feature_maps:
        tapped.retain_grad()
    sum(tapped.square().sum() for tapped in out.feature_maps).backward()
    assert all(tapped.grad.abs().sum() > 0 for tapped in out.feature_maps) and not any(module.training for module in model.modules())


@pytest.mark.parametrize(("model_cls", "towers"), [(MsclBackbone, 1), (MsclForPreTraining, 2), (MsclForSemanticSegmentation, 1)])
def test_activation_checkpointing_on_and_off(model_cls, towers):
    """By transformers' present name for it: blocks run again in the backward pass while it is on, once when it is off again."""
    model, calls = model_cls(config_of("test_vit", two_towers=towers == 2)).train(), []
    for module in backbone_of(model).timm_model.modules():
        if type(module).__name__ == "VisionTransformer":
            module.blocks[0].attn.qkv.register_forward_pre_hook(lambda *_: calls.append(1))
    switches = {"disable": towers, "enable": 2 * towers}
    for switch in ("disable", "enable", "disable"):
        counted = switches[switch]
        getattr(model, f"activation_checkpointing_{switch}")()
        calls.clear()
        sum(value.square().sum() for value in answers(model(torch.rand(2, 3, 64, 64)))).backward()
        assert len(calls) == counted and model.is_activation_checkpointing == (counted > towers)


@pytest.mark.parametrize("training", [pytest.param(False, id="inference"), pytest.param(True, id="training", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_compiled_whole_for_any_size(name, training):
    """torch.compile traces logits, loss and gradients without a break; one graph serves all sizes that need no resizing, except where a
    ViT trains. A batch without labels gives loss 0, as in eager mode."""
    kwargs = {"depth": 1, "embed_dim": 32, "num_heads": 2} if name == "test_vit" else {}
    config = built_config(name, decoder_dropout=0.0, **({"backbone_kwargs": kwargs} if kwargs else {}))
    model = MsclForSemanticSegmentation(config).train(training)
    twin, counters = copy.deepcopy(model), torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(twin, backend="aot_eager" if training else "eager", fullgraph=True, dynamic=True)
    for height, width in ((64, 96), (96, 64), (80, 112)):
        image, labels = images(2, height, width), torch.randint(3, (2, height, width))
        labels[:, :8] = 255
        with torch.set_grad_enabled(training):
            wanted, found = (network(image, labels=labels) for network in (model, compiled))
        torch.testing.assert_close(found.loss, wanted.loss)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-4)
        if training:
            for network, out in ((model, wanted), (twin, found)):
                network.zero_grad()
                out.loss.backward()
            for (key, p), q in zip(model.named_parameters(), twin.parameters()):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None:
                    torch.testing.assert_close(q.grad, p.grad, atol=1e-5, rtol=1e-3, msg=key)
    assert counters["stats"]["unique_graphs"] == (3 if name == "test_vit" and training else 1)
    with torch.set_grad_enabled(training):
        assert compiled(image, labels=torch.full_like(labels, 255)).loss == 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace", "ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", SWIN])
@torch.no_grad()
def test_traced_by_torchscript(name, size):
    """torch.jit.trace records the network; the program gives the same logits for images of other sizes, resized for the family or not."""
    model = MsclForSemanticSegmentation(config_of(name, return_dict=False)).eval()
    program = torch.jit.trace(model, images(1, *size), check_trace=False)
    for image in (images(2, *size), images(2, 96, 64), images(1, 70, 90)):
        torch.testing.assert_close(program(image)[0], model(image)[0], atol=1e-5, rtol=1e-4)


@EVERY
def test_a_misspelled_argument(model_cls, name):
    """An argument that no forward pass has raises TypeError with those that it has; transformers' own keywords are accepted."""
    model = model_cls(config_of(name)).eval()
    with pytest.raises(TypeError, match=rf"{model_cls.__name__}.forward has no argument 'label'; expected pixel_values, "
                       rf"{'labels, ' if model_cls is MsclForSemanticSegmentation else ''}"):  # fmt: skip
        model(images(), label=torch.randint(3, (2, 64, 64)))
    model(images(), output_attentions=False, num_items_in_batch=2)


# -- labels and foreign weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """A pre-training checkpoint, and one fine-tuned for three classes."""
    MsclForPreTraining(config_of()).save_pretrained(tmp_path / "pretrained")
    tuned = MsclForSemanticSegmentation(config_of(id2label={0: "sky", 1: "road", 2: "tree"}))
    tuned.save_pretrained(tmp_path / "tuned")
    return tmp_path


def without(folder, *prefixes):
    """Take weights out of a saved model."""
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith(prefixes)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("auto_cls", [MsclForSemanticSegmentation, AutoModelForSemanticSegmentation])
def test_a_label_set_is_given_in_one_call(folders, auto_cls):
    """A pre-training checkpoint takes id2label, or num_labels, alone; everything that follows from it follows, in the saved folder too."""
    model = auto_cls.from_pretrained(folders / "pretrained", id2label={0: "cat", 1: "dog", 2: "cow", 3: "hen"})
    model.save_pretrained(folders / "out")
    for config in (model.config, MsclConfig.from_pretrained(folders / "out")):
        assert config.num_labels == 4 and config.id2label[3] == "hen" and config.label2id == {"cat": 0, "dog": 1, "cow": 2, "hen": 3}
    assert len(model.classifier.weight) == len(model.auxiliary_head[1].weight) == model(images(1)).logits.shape[1] == 4
    config = auto_cls.from_pretrained(folders / "pretrained", num_labels=6).config
    assert len(config.id2label) == len(config.label2id) == 6


def test_another_label_set_for_a_fine_tuned_model(folders):
    """Other names for as many classes keep the classifier; another number raises without ignore_mismatched_sizes."""
    tuned = MsclForSemanticSegmentation.from_pretrained(folders / "tuned")
    assert tuned.config.label2id == {"sky": 0, "road": 1, "tree": 2}
    renamed = MsclForSemanticSegmentation.from_pretrained(folders / "tuned", id2label={0: "a", 1: "b", 2: "c"})
    assert torch.equal(renamed.classifier.weight, tuned.classifier.weight) and renamed.config.label2id == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MsclForSemanticSegmentation.from_pretrained(folders / "tuned", num_labels=5)
    poison()
    new, info = MsclForSemanticSegmentation.from_pretrained(
        folders / "tuned", num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key.split(".")[0] for key, *_ in info["mismatched_keys"]} == {"classifier", "auxiliary_head"}
    assert new.classifier.weight.shape[0] == 5 and 0.003 < new.classifier.weight.std() < 0.03 and (new.classifier.bias == 0).all()
    assert torch.equal(new.decoder.fuse[0].weight, tuned.decoder.fuse[0].weight)


@pytest.mark.parametrize("model_cls", [MsclForSemanticSegmentation, MsclForPreTraining])
def test_a_backbone_that_was_saved_alone(folders, model_cls, caplog):
    """It gets a new decoder and new heads, which is logged; a segmenter's classes must be named, as those of its configuration have no
    classifier. Half a decoder is damage."""
    tuned = MsclForSemanticSegmentation.from_pretrained(folders / "tuned")
    tuned.backbone.save_pretrained(folders / "backbone")
    if model_cls is MsclForSemanticSegmentation:
        with pytest.raises(ValueError, match="is a backbone alone and has no classifier.*name the classes"):
            model_cls.from_pretrained(folders / "backbone")
    poison()
    model = model_cls.from_pretrained(folders / "backbone", num_labels=5)
    assert f"holds a backbone alone: the decoder and the heads of {model_cls.__name__} are new" in caplog.text
    assert model.config.num_labels == 5 and same([*model.backbone.state_dict().values()], [*tuned.backbone.state_dict().values()])
    wanted, found = model_cls(config_of(num_labels=5)).state_dict(), model.state_dict()
    assert_initialized([key for key in wanted if not key.startswith("backbone.")], found, wanted)
    save_file({"decoder.fuse.0.weight": model.decoder.fuse[0].weight, **load_file(folders / "backbone" / "model.safetensors")},
              folders / "backbone" / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        model_cls.from_pretrained(folders / "backbone", num_labels=5)


@pytest.mark.parametrize(("part", "folder", "model_cls"), [
    ("classifier.", "tuned", MsclForSemanticSegmentation),
    ("classifier.bias", "tuned", MsclForSemanticSegmentation),
    ("auxiliary_head.0.1.running_mean", "tuned", MsclForSemanticSegmentation),
    ("local_head.layers.0.weight", "pretrained", MsclForPreTraining),
])  # fmt: skip
def test_missing_heads_raise(folders, part, folder, model_cls):
    """A fine-tuned model without its classifier, or any head with a hole, is damaged; it does not open with noise in that place."""
    without(folders / folder, part)
    with pytest.raises(ValueError, match=rf"lacks \d+ weights of {model_cls.__name__} \(first: {part[:10]}"):
        model_cls.from_pretrained(folders / folder)


def test_a_whole_head_may_be_absent(folders):
    """Training aids that a checkpoint never had start anew: the auxiliary head, or one contrastive head of three."""
    without(folders / "tuned", "auxiliary_head.")
    assert MsclForSemanticSegmentation.from_pretrained(folders / "tuned").auxiliary_head is not None
    without(folders / "pretrained", "local_head.")
    assert MsclForPreTraining.from_pretrained(folders / "pretrained").local_head is not None


@pytest.mark.parametrize(
    "options", [{"decoder_channels": 24}, {"decoder_type": "fcn"}, {"num_channels": 1}, {"backbone": "resnet18"}], ids=str
)
def test_another_network_is_rejected(folders, options):
    """Weights of another decoder or backbone are never replaced by noise, not even with ignore_mismatched_sizes."""
    for model_cls in (MsclForSemanticSegmentation, MsclForPreTraining):
        with pytest.raises(ValueError, match=rf"lacks \d+ weights of {model_cls.__name__}.* another backbone or decoder"):
            model_cls.from_pretrained(folders / "tuned", ignore_mismatched_sizes=True, **options)


# -- a backbone for other people's decoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_by_name_and_by_index(name):
    """Named, numbered from either end, or chosen after construction: the same maps; the configuration survives a round trip."""
    names = config_of(name).stage_names
    first, last = names[-2], names[-1]
    image, found = images(1), []
    for choice in ({"out_features": [first, last]}, {"out_indices": [-2, -1]}, {"out_indices": (len(names) - 2, len(names) - 1)}):
        torch.manual_seed(0)
        fields = config_of(name).to_dict() | {"out_features": None, "out_indices": None} | choice
        backbone = AutoBackbone.from_config(MsclConfig.from_dict(MsclConfig.from_dict(fields).to_dict())).eval()
        assert backbone.out_features == [first, last] and backbone.channels == [backbone.out_feature_channels[n] for n in (first, last)]
        assert backbone.taps == [len(names) - 2, len(names) - 1]
        found.append(backbone(image).feature_maps)
    assert same(found[0], found[1]) and same(found[0], found[2]) and [m.shape[1] for m in found[0]] == backbone.channels
    everything = backbone(image, output_hidden_states=True).hidden_states
    for change in ({"out_features": [names[0], last]}, {"out_indices": [0, -1]}):
        setattr(backbone, *next(iter(change.items())))
        assert backbone.out_features == [names[0], last] and len(backbone.channels) == len(backbone.strides) == 2
        maps = backbone.forward_with_filtered_kwargs(image, output_hidden_states=False, output_attentions=True).feature_maps
        assert same(maps, [everything[0], everything[-1]])
    backbone.out_features = None
    assert backbone.out_features == [last] and same(backbone(image).feature_maps, everything[-1:])


def test_stages_have_names_before_there_is_a_network():
    """A built configuration names its stages; a hand-written one gets the names with the network, and its choice is checked then."""
    assert config_of().out_features == ["layer3", "layer4"] and config_of().stage_names == ["act1", "layer1", "layer2", "layer3", "layer4"]
    backbone = MsclBackbone(MsclConfig(backbone="test_resnet", out_features=["layer1", "layer4"]))
    assert backbone.config.out_indices == [1, 4] and backbone.stage_names == config_of().stage_names


@pytest.mark.parametrize(("choice", "message"), [
    ({"out_features": ["layer9"]}, "subset of stage_names.*layer4"),
    ({"out_indices": [1, 9]}, "valid indices for stage_names"),
    ({"out_features": ["layer4", "layer3"]}, "same order as stage_names"),
    ({"out_indices": [3, 3]}, "must not contain any duplicates"),
    ({"out_features": ["layer3"], "out_indices": [4]}, "correspond to the same stages"),
])  # fmt: skip
def test_stages_that_do_not_exist(choice, message):
    """Wrong names, indices and orders raise, when the stages are known and, without them, when the network is built."""
    for named in (True, False):
        with pytest.raises(ValueError, match=message):
            MsclBackbone(MsclConfig(backbone="test_resnet", stage_names=config_of().stage_names if named else None, **choice))
    with pytest.raises(ValueError, match=message):
        backbone = MsclBackbone(config_of())
        backbone.config.set_output_features_output_indices(choice.get("out_features"), choice.get("out_indices"))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", DINOV3])
def test_a_backbone_of_a_foreign_decoder(name, tmp_path):
    """UperNet takes the configuration as its backbone_config, trains through it, and is restored from its folder."""
    backbone = config_of(name, out_indices=[-4, -3, -2, -1] if name != DINOV3 else [0, 1])
    pools = {"pool_scales": [1, 2], "hidden_size": 16, "use_auxiliary_head": False}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=3, **pools))
    assert type(model.backbone) is MsclBackbone
    alone = MsclBackbone(backbone).timm_model.state_dict()
    spreads = [(key, value, alone[key]) for key, value in model.backbone.timm_model.state_dict().items() if value.dim() > 1]
    assert all(float(own.std()) == pytest.approx(float(timms.std()), rel=0.5) for _, own, timms in spreads if own.numel() > 500)
    model(images(), labels=torch.randint(3, (2, 64, 64))).loss.backward()
    assert [key for key, p in model.backbone.named_parameters() if p.grad is None] == []
    model.eval().save_pretrained(tmp_path)
    poison()
    loaded, image = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval(), images(1, 90, 70)
    assert type(loaded.config.backbone_config) is MsclConfig and loaded.backbone.out_features == model.backbone.out_features
    torch.testing.assert_close(loaded(image).logits, model(image).logits)


def test_weights_of_a_checkpoint_reach_a_foreign_decoder(tmp_path):
    """The backbone of a pre-trained folder, given to UperNet's: the weights are those of the folder."""
    pretrained = MsclForPreTraining(config_of())
    pretrained.save_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path)
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone.config, hidden_size=16, use_auxiliary_head=False))
    model.backbone.load_state_dict(backbone.state_dict())
    assert same(list(model.backbone.state_dict().values()), list(pretrained.backbone.state_dict().values()))


# -- devices ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cpu", "auto", {"": "cpu"}], ids=str)
@torch.no_grad()
def test_device_map(where, tmp_path):
    """A device map, given or found, loads the same model."""
    model, image = MsclForSemanticSegmentation(config_of("test_vit")).eval(), images(1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, device_map=where).eval()
    assert {p.device.type for p in loaded.parameters()} == {"cpu"} and same(answers(model(image)), answers(loaded(image)))


@torch.no_grad()
def test_a_decoder_may_lie_on_disk(tmp_path):
    """Accelerate's hooks bring weights in when they are needed: the same logits with decoder and classifier left on disk."""
    model, image = MsclForSemanticSegmentation(config_of("test_vit")).eval(), images(1)
    model.save_pretrained(tmp_path)
    places = {"backbone": "cpu", "decoder": "disk", "dropout": "cpu", "classifier": "disk", "auxiliary_head": "cpu"}
    loaded = MsclForSemanticSegmentation.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload").eval()
    assert {p.device.type for p in loaded.decoder.parameters()} == {"meta"} and same(answers(model(image)), answers(loaded(image)))


@EVERY
@torch.no_grad()
def test_the_backbone_may_lie_on_disk(model_cls, name, tmp_path):
    """Weights beside timm's blocks, such as position tables, are brought in, too: the same output as with all weights in memory."""
    model, image = model_cls(config_of(name, **({"two_towers": True} if name == SWIN else {}))).eval(), images(1)
    model.save_pretrained(tmp_path)
    places = {key: "disk" if key in ("backbone", "timm_model") else "cpu" for key, _ in model.named_children()}
    loaded = model_cls.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload").eval()
    assert any(p.is_meta for p in loaded.parameters()) and same(answers(model(image)), answers(loaded(image)))


@pytest.mark.parametrize("version", [1, 2])
def test_fsdp_by_the_transformer_policy(version, tmp_path):
    """Two processes, wrapped as accelerate wraps any transformers model: the losses of two steps are those of the whole network."""
    worker = Path(__file__).parents[1] / "distributed" / "fsdp_worker.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(worker), str(version), str(tmp_path / "x")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for losses in torch.load(tmp_path / "x").values():
        assert losses["sharded"] == pytest.approx(losses["plain"], rel=1e-5) and losses["plain"][0] != losses["plain"][1]


@EVERY
def test_classes_that_are_not_split_are_in_the_model(model_cls, name):
    """Every class of _no_split_modules is in the model, and is called in a forward pass; a deep copy calls its own."""
    model = copy.deepcopy(model_cls(config_of(name))).eval()
    called = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: called.add(type(module).__name__))
    with torch.no_grad():
        model(images(1))
    assert model._no_split_modules and set(model._no_split_modules) <= called


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_timm_model_answers_as_timms(name, tmp_path):
    """Called by itself it gives timm's features, also as a copy and after unpickling the whole model."""
    model, image = MsclBackbone(config_of(name)).eval(), images(1)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        features = type(model.timm_model).forward(model.timm_model, image)
        for same in (model, copy.deepcopy(model), again):
            assert torch.equal(same.timm_model(image), features)
        for a, b in zip(again(image).feature_maps, model(image).feature_maps):
            assert torch.equal(a, b)


@EVERY
def test_device_maps_do_not_split_backbones(model_cls, name):
    """However little fits on a device, no device map cuts through a backbone or a decoder: what they add up must lie together."""
    model = model_cls(config_of(name, **({"two_towers": True} if name == "test_vit" else {})))
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    for share in (0.3, 0.6, 0.9):
        memory = {0: int(share * total), 1: int(share * total), "cpu": 2 * total}
        found = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=model._no_split_modules)
        assert not [place for place in found if re.search(r"(^|\.)(timm_model|decoder)\.", place)]


# -- pipelines and processors ---------------------------------------------------------------------------------------------------


@contextmanager
def complaints():
    """What libraries log at WARNING or above, and transformers' load report among it."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(f"{record.name}: {record.getMessage()}")
    loggers = [logging.getLogger(name) for name in (None, "transformers", "timm", "huggingface_hub", "accelerate")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders as a run leaves them, of models that name their classes: images at the base size of 48 px, and at their own."""
    root, names = tmp_path_factory.mktemp("published"), {0: "sky", 1: "road", 2: "tree"}
    for folder, base_size in (("base", 48), ("native", 0)):
        torch.manual_seed(1)
        network = MsclForSemanticSegmentation(config_of(id2label=names, base_size=base_size, image_mean=[0.4] * 3))
        torch.nn.init.normal_(network.classifier.weight)  # more than one class appears
        (root / folder).mkdir()
        write_model(network, root / folder)
    return root


def pictures(*sizes):
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)) for i, (w, h) in enumerate(sizes)]


def test_a_pipeline_opens_a_published_folder_without_complaint(published):
    """Images of different sizes in one call: masks of each image's own size, one a class, which share out its pixels; nothing is logged."""
    batch = pictures((64, 48), (100, 70), (33, 90))
    with complaints() as said:
        pipe = pipeline("image-segmentation", model=str(published / "base"), device="cpu")
        answer = pipe(batch)
    assert said == [] and type(pipe.model) is MsclForSemanticSegmentation
    assert len({segment["label"] for segments in answer for segment in segments}) > 1
    for image, segments in zip(batch, answer):
        assert {segment["mask"].size for segment in segments} == {image.size}
        assert {segment["label"] for segment in segments} <= {"sky", "road", "tree"}
        assert (sum(np.asarray(segment["mask"]).astype(int) for segment in segments) == 255).all()


def test_complaints_would_be_heard(tmp_path):
    """The check above can fail: a class that the pipeline does not know, and a new classifier, are logged."""
    MsclForPreTraining(config_of()).save_pretrained(tmp_path)
    with complaints() as said:
        model = MsclForSemanticSegmentation.from_pretrained(tmp_path)
        stranger = type("Stranger", (MsclForSemanticSegmentation,), {})
        model.__class__ = stranger
        pipeline("image-segmentation", model=model, image_processor=AutoImageProcessor.from_pretrained(publish_processor(tmp_path)))
    assert any("Stranger' is not supported" in line for line in said) and any("classifier" in line for line in said)


def publish_processor(folder):
    write_model(MsclForSemanticSegmentation(config_of()), folder)
    return folder


@pytest.mark.parametrize("folder", ["base", "native"])
@torch.no_grad()
def test_processor_of_a_published_folder(published, folder):
    """AutoImageProcessor brings the short side to the base size, or leaves it, normalizes as the configuration says, survives being
    saved again, and turns logits into class ids at the given size."""
    processor = AutoImageProcessor.from_pretrained(published / folder)
    processor.save_pretrained(published / folder / "again")
    again = AutoImageProcessor.from_pretrained(published / folder / "again")
    assert type(again) is type(processor) and again.to_dict() == processor.to_dict()
    model = AutoModelForSemanticSegmentation.from_pretrained(published / folder).eval()
    config, image = model.config, pictures((100, 70))[0]
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == ((48, 68) if folder == "base" else (70, 100))
    plain = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 - config.image_mean[0]) / torch.tensor(
        config.image_std
    ).view(3, 1, 1)
    plain = F.interpolate(plain, size=pixels.shape[-2:], mode="bilinear", antialias=True)
    torch.testing.assert_close(pixels, plain, atol=1e-5 if folder == "native" else 0.02, rtol=0)
    out = model(pixels)
    for target in ((70, 100), (31, 17)):
        (found,) = processor.post_process_semantic_segmentation(out, target_sizes=[target])
        assert torch.equal(found, F.interpolate(out.logits, size=target, mode="bilinear").argmax(1)[0])


def picture_of(mode: str) -> Image.Image:
    """Read from a file, as users have them. mode: Pillow's; "P[3]" with a transparent color, "P[]" with a transparency for each color."""
    picture, options = pictures((64, 48))[0], {}
    if "[" in mode:
        options = {"transparency": bytes(range(256)) if mode == "P[]" else (1, 2, 3) if mode == "RGB[3]" else 3}
        picture.putpixel((0, 0), (1, 2, 3))
    elif mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(np.tile(np.uint8([0, 128, 255, 255]), (48, 16))))
    file, mode = io.BytesIO(), mode.partition("[")[0]
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    picture.save(file, "TIFF" if mode in ("CMYK", "LAB", "PA") else "PNG", **options)
    return Image.open(file)


MODES = ("1", "L", "P", "RGB", "CMYK", "LAB", "P[3]", "L[3]", "RGB[3]", "P[]", "LA", "RGBA", "PA")


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode(published, mode, backend):
    """The processor takes them all. The card's call, and a pipeline, give the network the pixels that training reads."""
    processor = AutoImageProcessor.from_pretrained(published / "base", backend=backend)
    pipe = pipeline("image-segmentation", model=str(published / "base"), image_processor=processor, device="cpu")
    read = processor(rgb_array(picture_of(mode), str), return_tensors="pt")["pixel_values"]
    assert torch.equal(pipe.preprocess(picture_of(mode))["pixel_values"], read)
    assert torch.equal(processor(picture_of(mode).convert("RGB"), return_tensors="pt")["pixel_values"], read)
    alone = processor(picture_of(mode), return_tensors="pt")["pixel_values"]
    assert torch.equal(alone, read) or mode in ("P[]", "LA", "RGBA", "PA")  # which it puts on white
    assert '(Image.open("image.jpg").convert("RGB"), return_tensors="pt")' in (hub_folder() / "model_card.md").read_text()
