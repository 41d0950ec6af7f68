"""What save_pretrained writes, from_pretrained opens; what it would reject is rejected before anything is written."""

import inspect
import json
import re

import harness
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, TorchAoConfig, dynamic_module_utils, modeling_utils, pipeline, trainer
from transformers.integrations import peft as peft_integration
from transformers.pipelines import base as pipelines
from transformers.quantizers import auto as quantizer_choice
from transformers.quantizers import base as quantizers

from mscl_hf import MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.models.checks_mscl import OF_TRANSFORMERS
from mscl_hf.sharing.model_folder import write_model

PIPELINE = {"my-task": {"impl": "my_pipeline.MyPipeline", "pt": ["AutoModelForSemanticSegmentation"], "type": "image"}}
# Every field of transformers that a model may have, with a value that is not the default.
VALUES = {
    "chunk_size_feed_forward": 1, "custom_pipelines": PIPELINE, "finetuning_task": "x", "is_encoder_decoder": True,
    "output_hidden_states": True, "problem_type": "multi_label_classification", "pruned_heads": {}, "return_dict": False,
    "task_specific_params": {"x": [1]}, "tie_word_embeddings": False, "torchscript": True,
}  # fmt: skip
# Those that transformers fills in when it saves or opens a model, or reads under an old name.
FILLED = {
    "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype", "gradient_checkpointing", "id2label", "label2id", "model_type",
    "name_or_path", "num_labels", "output_attentions", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
NOT_WRITTEN = {"_attn_implementation", "_experts_implementation", "_is_quantized", "distributed_config"}  # transformers leaves these out
REJECTED = {"fusion_config": {"x": {}}, "quantization_config": {"quant_method": "x"}, "my_note": "x", "decoder": "fcn"}


def model() -> MsclForSemanticSegmentation:
    return MsclForSemanticSegmentation(harness.config(id2label={0: "sky", 1: "road"}, label2id={"sky": 0, "road": 1}))


def test_every_field_of_transformers_is_in_these_tables():
    """Fields of PreTrainedConfig, and those that transformers' code sets on a model's configuration, in this release."""
    assert set(VALUES) | FILLED == OF_TRANSFORMERS
    written = set()
    for module in (modeling_utils, trainer, pipelines, quantizers, quantizer_choice, dynamic_module_utils, peft_integration):
        written |= set(re.findall(r"(?:\bmodel\.|model_to_save\.|self\.|\s_?)config\.(\w+) = ", inspect.getsource(module)))
    assert {name.removesuffix("_internal") for name in written} <= OF_TRANSFORMERS | NOT_WRITTEN | set(REJECTED)


@pytest.mark.parametrize("name", VALUES)
def test_fields_of_transformers_open_again(tmp_path, name):
    """They are kept, and what is saved after opening is the same file."""
    network = model()
    setattr(network.config, name, VALUES[name])
    network.save_pretrained(tmp_path / "first")
    opened = MsclForSemanticSegmentation.from_pretrained(tmp_path / "first")
    assert getattr(opened.config, name) == VALUES[name]
    opened.save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "config.json").read_text() == (tmp_path / "first" / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_transformers_fills_in_opens_again(tmp_path, dtype, attention):
    """Type, attention, class and name: of a model that was opened with options of from_pretrained. Old names of fields are read."""
    model().to(dtype).save_pretrained(tmp_path / "first")
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    old = {"torch_dtype": config.pop("dtype"), "_commit_hash": "0" * 40, "num_labels": 2, "use_cache": True}
    old |= {"output_hidden_states": None, "return_dict": None}
    (tmp_path / "first" / "config.json").write_text(json.dumps(config | old))
    options = {"attn_implementation": attention, "output_attentions": attention == "eager", "dtype": "auto"}
    opened = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "first", **options)
    opened.save_pretrained(tmp_path / "second")
    again = MsclForSemanticSegmentation.from_pretrained(tmp_path / "second", dtype="auto")
    assert again.dtype == dtype and again.config.output_attentions == (attention == "eager")


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("model_cls", [MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation])
def test_fields_that_would_not_open_are_rejected_on_saving(tmp_path, model_cls, name):
    """In a sentence that names the field, before anything is written; so for a configuration alone."""
    network = model_cls(harness.config())
    setattr(network.config, name, REJECTED[name])
    for save in (network.save_pretrained, network.config.save_pretrained):
        with pytest.raises(ValueError, match=name):
            save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    delattr(network.config, name)
    network.save_pretrained(tmp_path / "model")
    assert type(model_cls.from_pretrained(tmp_path / "model")) is model_cls


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", "large"), ("decoder_rates", object()), ("id2label", {0: "sky", 1: "sky"}), ("backbone_kwargs", {"a": [[[[[1]]]]]}),
     ("id2label", {0: "sky", 1: "x" * 2**22}), ("auxiliary_loss_weight", float("nan")), ("out_indices", [99])],
)  # fmt: skip
def test_values_that_would_not_open_are_rejected_on_saving(tmp_path, name, value):
    """A field of the package that was set to what from_pretrained rejects."""
    network = model()
    with pytest.raises((ValueError, TypeError)):
        setattr(network.config, name, value)
        network.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_field_that_transformers_acts_on_is_not_read(tmp_path):
    """`transformers_weights` names another file: saving drops it, opening rejects it."""
    network = model()
    network.config.transformers_weights = "other.safetensors"
    with pytest.raises(ValueError, match="transformers_weights"):
        network.save_pretrained(tmp_path)


def test_a_pipeline_opens_a_folder_that_names_another_pipeline(tmp_path):
    """`custom_pipelines` is kept, and the code that it names is not run."""
    network = model()
    network.config.custom_pipelines = PIPELINE
    write_model(network, tmp_path)
    segment = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    segment.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["custom_pipelines"] == PIPELINE
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("my-task", model=str(tmp_path / "again"))


def test_quantized_models(tmp_path):
    """Opened with a quantization, or quantized in place, a model computes and is not saved: the sentence says when to save it."""
    quantization = pytest.importorskip("torchao.quantization")
    network = MsclForSemanticSegmentation(harness.config("test_vit")).eval()
    network.save_pretrained(tmp_path / "whole")
    options = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    opened = MsclForSemanticSegmentation.from_pretrained(tmp_path / "whole", **options).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(opened(images).logits, network(images).logits, atol=1e-2)
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    for quantized in (opened, network):
        with pytest.raises(ValueError, match="save the model before it is quantized"):
            quantized.save_pretrained(tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()
