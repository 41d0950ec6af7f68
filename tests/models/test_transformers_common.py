"""transformers' own tests of models and of backbones, on each of our classes.

They are no part of the installed package. To run them:

    pip download --no-binary :all: --no-deps transformers==$(python -c "import transformers; print(transformers.__version__)")
    tar xzf transformers-*.tar.gz
    TRANSFORMERS_SOURCE=$(ls -d transformers-*/) python -m pytest tests/models/test_transformers_common.py

A checkout of the same release does as well. Tests of text generation and of exporters are left out: the archive does not hold them.
"""

import contextlib
import copy
import functools
import importlib
import os
import re
import sys
import types
import unittest
from itertools import product
from pathlib import Path

import pytest
import transformers

from mscl_hf import MsclBackbone, MsclConfig, MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.models.backbones import build_config

if "TRANSFORMERS_SOURCE" not in os.environ:
    pytest.skip("set TRANSFORMERS_SOURCE to the unpacked sources of transformers, see this file", allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests import parameterized: pip install parameterized")
SOURCE = Path(os.environ["TRANSFORMERS_SOURCE"])
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
SIZE, CLASSES = 64, 3
BACKBONES = {"Cnn": "test_resnet", "Vit": "test_vit"}
MODELS = (MsclBackbone, MsclForPreTraining, MsclForSemanticSegmentation)

# Tests that do not apply: (names of tests, names of test classes, why). Each of them must fail: one that passes is out of date.
BOTH, LOSSLESS = "Test(Cnn|Vit)Mscl", "Test(Cnn|Vit)Mscl(Backbone|ForPreTraining)$"
NOT_APPLICABLE = [
    (
        "test_gradient_checkpointing_enable_disable|test_training_gradient_checkpointing(_use_reentrant_(true|false))?", BOTH,
        "it looks for GradientCheckpointingLayer; timm's models checkpoint their blocks themselves",
    ),
    ("test_model_get_set_embeddings", BOTH, "an image has no embeddings of tokens"),
    (
        "test_model_weights_reload_no_missing_tied_weights|test_can_init_all_missing_weights", BOTH,
        "it loads no weights at all; ours raise where weights are missing",
    ),
    ("test_correct_missing_keys", "Test(Cnn|Vit)MsclForSem", "it opens a backbone as a segmentation model; ours wants the classes named"),
    ("test_training", LOSSLESS, "the loss of pre-training is the method's, and a backbone has none"),
    ("test_retain_grad_hidden_states_attentions", "TestCnnMsclBackbone", "a backbone's first output is a tuple of maps"),
    (
        "test_retain_grad_hidden_states_attentions", "TestVitMscl",
        "timm returns normalized copies of a ViT's intermediate tokens, which lie beside the path of the gradient",
    ),
    ("test_config", "Test(Cnn|Vit)StagesOf", "it expects the names of stages of transformers; ours are timm's"),
]  # fmt: skip


def release(source: Path) -> str:
    return re.search(r'^__version__ = "(.+)"', (source / "src" / "transformers" / "__init__.py").read_text(), re.M)[1]


def common(name: str) -> types.ModuleType:
    """A file of transformers' tests, as a module of a package of another name than our own folder of tests."""
    package = "transformers_tests"
    for module, attributes in {
        package: {"__path__": [str(SOURCE / "tests")]},
        **{f"{package}.{file.partition('.')[0]}": {"__path__": []} for file in LEFT_OUT},
        **{f"{package}.{file}": {mixin: type(mixin, (), {})} for file, mixin in LEFT_OUT.items()},
    }.items():
        sys.modules.setdefault(module, types.ModuleType(module)).__dict__.update(attributes)
    return importlib.import_module(f"{package}.{name}")


MODEL, STAGES = common("test_modeling_common"), common("test_backbone_common")
MODEL._config_zero_init = copy.deepcopy  # it sets fields with _range and _std in their names, which in our configuration are of images


class Inputs:
    """What transformers' tests ask of a tester: a configuration, inputs and their sizes."""

    batch_size, num_channels, image_size, is_training = 3, 3, SIZE, True

    def __init__(self, backbone: str):
        self.backbone = backbone
        config = self.get_config()
        self.num_hidden_layers, self.expected_num_hidden_layers = 1, len(config.stage_names)  # the first is looked up, and not used
        # The last two sides of the first map, which are the tokens and the width of a language model.
        stride = MsclBackbone(config).timm_model.feature_info[0]["reduction"]
        self.seq_length = self.hidden_size = SIZE // stride

    def get_config(self) -> MsclConfig:
        return build_config(self.backbone, image_size=SIZE, decoder_channels=16, num_labels=CLASSES)

    def prepare_config_and_inputs_for_common(self) -> tuple[MsclConfig, dict]:
        return self.get_config(), {"pixel_values": MODEL.floats_tensor([self.batch_size, self.num_channels, SIZE, SIZE])}


def expected_failure(test, reason: str):
    """A test of its own, so that the mark does not reach other classes."""
    @functools.wraps(test)
    def run(self):
        self.subTest = lambda *_, **__: contextlib.nullcontext()  # or a failure inside one would be reported beside the test
        test(self)

    return pytest.mark.xfail(reason=reason, strict=True)(run)


def make(name: str, backbone: str, model: type, mixin: type) -> type:
    """A class of tests: those of `mixin` on `model`."""
    fields = {
        "all_model_classes": (model,), "config_class": MsclConfig, "has_attentions": False, "test_resize_embeddings": False,
        "test_can_init_all_missing_weights_before_2023": True, "setUp": lambda self: setattr(self, "model_tester", Inputs(backbone)),
    }  # fmt: skip
    for tests, classes, reason in NOT_APPLICABLE:
        if re.match(classes, name):
            names = [test for test in dir(mixin) if re.fullmatch(tests, test)]
            assert names, f"{tests} names no test of {mixin.__name__}"
            fields |= {test: expected_failure(getattr(mixin, test), reason) for test in names}
    return type(name, (mixin, unittest.TestCase), fields)


def test_the_sources_are_those_of_the_installed_release():
    assert release(SOURCE) == transformers.__version__, "give TRANSFORMERS_SOURCE the sources of the installed release"


for (family, backbone), model in product(BACKBONES.items(), MODELS):
    name = f"Test{family}{model.__name__}"
    globals()[name] = make(name, backbone, model, MODEL.ModelTesterMixin)
for family, backbone in BACKBONES.items():
    name = f"Test{family}StagesOfMsclBackbone"
    globals()[name] = make(name, backbone, MsclBackbone, STAGES.BackboneTesterMixin)
