"""Small runs inside the test process: recipes by their main(), and the loop alone on synthetic scenes with the smallest timm models."""

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import os
import signal
import sys
import tempfile
import typing
from pathlib import Path
from unittest import mock

import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from mscl_hf import data, evaluation, methods, models, records, sharing, training, transforms
from mscl_hf.config import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig, TrainingConfig, ViewConfig
from mscl_hf.data import load_data
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingData, TrainingImages
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.methods import METHODS, MSCL, RunSize, SegmentationTraining, create_method
from mscl_hf.models import backbones
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.training import run as training_run
from mscl_hf.training.loop import fit
from mscl_hf.transforms.views import PairView, TrainView, make_view

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
SIZE, BATCH, SCENES = 32, 4, 8
TINY = ("--backbone", "test_resnet", "--image-size", SIZE, "--decoder-channels", 16)
SHORT = ("--batch-size", BATCH, "--dataloader-num-workers", 0, "--train-count", SCENES, "--logging-steps", 1, "--warmup-steps", 1)


UNCHECKED = dict.fromkeys(("check_token", "check_can_push"), lambda hub: None)  # patches for a run that pushes without a Hub
CONFIGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate_model": EvaluateConfig, "predict": PredictConfig}


@functools.cache
def load_recipe(name: str):
    """The recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked_once(function):
    """The function, whose answer to the same arguments is computed once."""
    answers = {}

    @functools.wraps(function)
    def inner(*arguments):
        key = repr(arguments)
        if key not in answers:
            answers[key] = function(*arguments)
        return copy.deepcopy(answers[key])

    return inner


BY_TRIAL = {name: asked_once(getattr(backbones, name)) for name in ("_stride_kwargs", "_size_rule")}  # by building timm's model


def run(name: str, *arguments, pictures: bool = True, **patches) -> None:
    """Run the recipe's main() with these flags. pictures=False: train only, write no model and draw nothing.

    patches: names that the recipe uses, of its own or of a package, and what replaces them.
    """
    module = load_recipe(name)
    if not pictures:
        patches |= {part: mock.Mock() for part in ("write_model", "write_card", "draw_training", "draw_features")}
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.ExitStack() as stack:
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        stack.enter_context(mock.patch.object(sys, "argv", [name, *map(str, arguments)]))
        stack.enter_context(mock.patch.multiple(backbones, **BY_TRIAL))
        for part, stand_in in patches.items():
            stack.enter_context(mock.patch.object(owner(module, part), part, stand_in))
        module.main()


def sections(recipe: str) -> list[type]:
    """The dataclasses that hold the options of a recipe."""
    hints = typing.get_type_hints(CONFIGS[recipe])
    return [hints[f.name] for f in dataclasses.fields(CONFIGS[recipe])]


def owner(recipe, name: str):
    """The recipe's module where it defines a name itself, else the package that it takes it from."""
    if name in vars(recipe):
        return recipe
    if name == "commit":
        return training_run
    packages = (data, evaluation, methods, models, records, sharing, training, transforms)
    return next(package for package in packages if name in package.__all__)


def rejected(name: str, *arguments, **patches) -> str:
    """The one sentence with which the recipe rejects these flags."""
    try:
        run(name, *arguments, **patches)
    except SystemExit as ended:
        message = ended.code
    else:
        raise AssertionError(f"{name} {arguments} was not rejected")
    assert isinstance(message, str) and message.startswith("error: "), message
    sentence = message.removeprefix("error: ")
    assert "\n" not in sentence and "Traceback" not in sentence, sentence
    return sentence


def fresh_accelerator(**options) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, **options)


@functools.cache
def _config(backbone: str, two_towers: bool):
    return build_config(backbone, image_size=SIZE, decoder_channels=16, two_towers=two_towers)


def config(backbone: str = "test_resnet", two_towers: bool = False, **fields):
    """A new MsclConfig; what timm is asked for is asked once."""
    made = copy.deepcopy(_config(backbone, two_towers))
    for name, value in fields.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


def pretraining(seed: int = 0, backbone: str = "test_resnet", contrast: dict | None = None, **fields) -> MSCL:
    torch.manual_seed(seed)
    return MSCL(MsclForPreTraining(config(backbone, **fields)), MultiScaleLoss(**contrast or {}))


def method_size(name: str, backbone: str = "test_resnet") -> dict:
    """Image size and stride at which a method's map has the cells it needs, and not many more."""
    if METHODS[name].min_positions <= 2:
        return {"image_size": SIZE if backbone.startswith("test") else 64}
    return {"image_size": 112} if "vit" in backbone else {"image_size": 56, "output_stride": 8}


@functools.cache
def weights_file() -> str:
    """A safetensors file with weights of test_resnet."""
    file = Path(tempfile.mkdtemp()) / "test_resnet.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    return str(file)


def needed_options(name: str) -> dict[str, str]:
    """The options without which a method does not start."""
    return {"teacher": "test_resnet", "teacher_weights": weights_file()} if name == "distill" else {}


def needed_flags(name: str) -> tuple[str, ...]:
    """The flags without which pre-training by a method does not start."""
    options = needed_options(name) | ({"backbone_weights": weights_file()} if name == "imagenet" else {})
    return tuple(word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", value))


def pretraining_method(name: str, backbone: str = "test_resnet", seed: int = 0, batch: int = BATCH, **given):
    """Any method of the registry on a new network, its options fitted to the synthetic scenes."""
    kind = METHODS[name]
    if kind.two_towers and backbone == "test_vit":
        backbone = "vit_tiny_patch16_224"
    torch.manual_seed(seed)
    options = {"heads": list(kind.heads), "bn_views": kind.bn_views or "joint", "two_towers": kind.two_towers}
    made = build_config(backbone, decoder_channels=16, **options, **method_size(name, backbone))
    scale = RunSize(SCENES, batch, 6)
    given = needed_options(name) | given
    return create_method(name, kind, MsclForPreTraining(made), given, MultiScaleLoss(), scale, lambda text: None)


def method_data(name: str, backbone: str = "test_resnet", seed: int = 0, batch: int = BATCH) -> TrainingData:
    """Batches of synthetic scenes as the method wants them."""
    kind, size = METHODS[name], method_size(name, backbone)["image_size"]
    view = make_view(kind.views, kind.preset, size, size, ViewConfig())
    if kind.reads_masks == "no":
        return TrainingImages(None, scenes(unlabelled=True), view, seed, SamplingPlan((), tuple(range(SCENES)), batch, 0, seed))
    return TrainingImages(scenes(), None, view, seed, SamplingPlan(tuple(range(SCENES)), (), batch, batch, seed))


def finetuning(seed: int = 0, backbone: str = "test_resnet", dropout: float = 0.3) -> SegmentationTraining:
    torch.manual_seed(seed)
    return SegmentationTraining(MsclForSemanticSegmentation(config(backbone, decoder_dropout=dropout, num_labels=8)))


@functools.cache
def scenes(count: int = SCENES, unlabelled: bool = False, seed: int = 0):
    return load_data("synthetic", "train", unlabelled=unlabelled, scenes=count, scene_seed=seed, scene_height=48, scene_width=64)


def training_data(
    stage: str = "pretrain", seed: int = 0, labelled: int = SCENES, unlabelled: int = 0, batch: int = BATCH, **views
) -> TrainingData:
    """Batches of synthetic scenes; with unlabelled images, half of each batch is labelled."""
    view = PairView(SIZE, SIZE, ViewConfig(**views)) if stage == "pretrain" else TrainView(SIZE, SIZE)
    first = scenes(labelled) if labelled else None
    second = scenes(unlabelled, unlabelled=True, seed=1) if unlabelled else None
    count = batch // 2 if labelled and unlabelled else batch if labelled else 0
    return TrainingImages(first, second, view, seed, SamplingPlan(tuple(range(labelled)), tuple(range(unlabelled)), batch, count, seed))


def options(**given) -> TrainingConfig:
    defaults = {"max_steps": 6, "batch_size": BATCH, "dataloader_num_workers": 0, "save_steps": 0, "logging_steps": 3}
    made = TrainingConfig(**{**defaults, "warmup_steps": 2, "learning_rate": 0.02, **given})
    return made.for_backbone(has_batch_norm=True, has_weights=False, log=lambda text: None)


def stop_after(method, step: int, max_steps: int) -> None:
    """A SIGTERM reaches this process at the end of an optimizer step."""

    def send(done: float) -> None:
        if round(done * max_steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    method.after_step = send


def train(method, data, out: Path, health_check=None, health_steps: int = 0, **given):
    """Call `fit` without a recipe; returns the method."""
    out.mkdir(exist_ok=True)
    fit(method, data, options(**given), out, fresh_accelerator(), health_check=health_check, health_steps=health_steps)
    return method


class TensorSizes(TorchDispatchMode):
    """Within it, the number of values of every tensor that torch's operations return, in `sizes`."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        self.sizes += [x.numel() for x in results if isinstance(x, torch.Tensor)]
        return result
