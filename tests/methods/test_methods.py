"""The paper's method as a module: it learns, transformers' Trainer trains it; its queue."""

import harness
import numpy as np
import pytest
import torch
from tiny import losses_of_training
from transformers import Trainer, TrainingArguments

from mscl_hf.config import ViewConfig
from mscl_hf.data import load_data, loader
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.methods import MSCL, MethodCallback
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.transforms.views import PairView

SIZE = 32


def network(**options) -> MsclForPreTraining:
    torch.manual_seed(0)
    return MsclForPreTraining(build_config("test_resnet", image_size=SIZE, decoder_channels=16, **options))


def pairs(count: int = 4, geometry: str = "shared") -> list[dict]:
    data, view = load_data("synthetic", "train"), PairView(SIZE, SIZE, ViewConfig(geometry=geometry))
    return [{**view(data.read(i), np.random.default_rng(i)), "labelled": True, "name": str(i), "bad": []} for i in range(count)]


def stack(samples: list[dict]) -> dict:
    return PairView.on_device(loader.stack(samples))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", ["shared", "crops"])
def test_fifty_steps_on_one_batch_bring_the_loss_down(geometry, precision):
    """A fixed batch is learnt with either geometry, in either precision."""
    method, batch = MSCL(network()), stack(pairs(geometry=geometry))
    losses = losses_of_training(method, batch, 50, autocast=precision == torch.bfloat16)
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.9 * losses[0]


def test_transformers_trainer_trains_a_method(tmp_path):
    """A method's forward names its views, so Trainer runs it like any model, and its weights move."""
    method = MSCL(network(), MultiScaleLoss())
    weight = next(method.network.backbone.parameters())
    before = weight.detach().clone()
    options = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(method, options, train_dataset=pairs(8), data_collator=stack)
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(before, weight)


@pytest.mark.parametrize("name", ["byol", "moco_v2", "densecl"])
def test_trainer_moves_a_methods_teacher_with_its_callback(tmp_path, name):
    """Without it the teacher would stand still; with it, it follows, and progress is kept."""
    method = harness.pretraining_method(name)
    before = [p.clone() for p in method.teacher.parameters()]
    options = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
    )
    batch = next(harness.method_data(name).batches(0, 1))
    samples = [{key: value[i] for key, value in batch.items() if key.startswith(("view", "boxes"))} for i in range(4)] * 4
    Trainer(method, options, train_dataset=samples, callbacks=[MethodCallback()]).train()
    assert method.fraction_done == 0.75
    assert sum(not torch.equal(old, new) for old, new in zip(before, method.teacher.parameters())) > len(before) / 2


def test_layers_that_are_frozen_for_the_first_steps_under_trainer(tmp_path):
    """They are in Trainer's optimizer, and move after these steps only."""
    method = harness.finetuning()
    method.freeze("backbone", 2, 4)
    weight, seen = method.network.backbone.timm_model.conv1[0].weight, []
    after = method.after_step
    method.after_step = lambda done: (after(done), seen.append(weight.detach().clone()))
    options = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    batch = next(harness.training_data("finetune").batches(0, 1))
    samples = [{key: batch[key][i] for key in ("image", "mask")} for i in range(4)] * 4
    Trainer(method, options, train_dataset=samples, callbacks=[MethodCallback()]).train()
    assert [torch.equal(one, other) for one, other in zip(seen, seen[1:])] == [True, False, False]


def test_queue_adds_negatives_of_the_past_only():
    """The current copies are not among their own negatives: the first step equals one without a queue, the second does not."""
    batch, losses = stack(pairs()), {}
    for length in (0, 8):
        method = MSCL(network(), MultiScaleLoss(losses="global", queue_size=length)).train()
        losses[length] = [float(method(**batch)["loss"].detach()) for _ in range(2)]
    assert losses[0][0] == losses[8][0] and losses[8][1] > losses[0][1] + 0.1
