"""One contract for every method of the registry: it learns, is finite in bfloat16, resumes exactly, and what it hands on fits."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import harness
import numpy as np
import pytest
import tiny
import torch
from same_run import differences

from mscl_hf.config import ContrastConfig, FinetuningLossConfig, MethodConfig, PretrainRun, SemiSupervisedConfig, ViewConfig
from mscl_hf.config.fields import choices_of
from mscl_hf.losses.affinity import IGNORE_MODES
from mscl_hf.losses.copy_paste import AXES
from mscl_hf.losses.info_nce import DENOMINATORS, GLOBAL_NEGATIVES, LOCAL_SCOPES
from mscl_hf.losses.labels import LABEL_DOWNSAMPLING, PIXEL_SAMPLES
from mscl_hf.losses.pixel_contrast import ANCHOR_WEIGHTS, REDUCTIONS, SCOPES
from mscl_hf.losses.pixel_contrast import DENOMINATORS as PIXEL_DENOMINATORS
from mscl_hf.losses.pixel_propagation import EMPTY
from mscl_hf.methods import METHODS, markdown, option_table, stages_of, table
from mscl_hf.methods.chaitanya import VERSIONS
from mscl_hf.methods.creation import defaults_of
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES
from mscl_hf.methods.instdisc import BANK_LOSSES
from mscl_hf.methods.memory import MemoryBank, Queue
from mscl_hf.methods.semi_supervised import SEMI_SUPERVISED
from mscl_hf.methods.teacher import EMATeacherMethod, cosine_momentum
from mscl_hf.methods.zhao import VARIANTS as ZHAO_VARIANTS
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.training.setup import freeze_unreached
from mscl_hf.transforms.presets import PRESETS
from mscl_hf.transforms.views import VIEWS

TRAINED = [name for name, method_cls in METHODS.items() if method_cls.trains]
BACKBONES = ("resnet18", "vit_tiny_patch16_224")
# What costs little more on tiny networks of the two families is shown on those in every run, and on the real ones with --runslow.
TINY_FIRST = ("test_resnet", "test_vit", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES))


def fixed_batch(name, backbone):
    return next(harness.method_data(name, backbone).batches(0, 1))


def memories(method):
    """What remembers embeddings of other batches."""
    return [buffer for part in method.modules() if isinstance(part, (Queue, MemoryBank)) for buffer in part.buffers()]


def fill_queues(method, name, backbone):
    for batch in harness.method_data(name, backbone, seed=5).batches(0, 2):
        method(**batch)


def descend(method, batch, steps, precision=torch.float32, lr=0.02, until=lambda losses: False):
    """The losses of steps on one batch against one memory: what queues and banks learn in a step is taken back."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    kept = [buffer.clone() for buffer in memories(method)]
    losses = []
    for number in range(steps):
        torch.manual_seed(0)  # the same dropout, partners, draws
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = method(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step((number + 1) / steps)
        for buffer, value in zip(memories(method), kept):
            buffer.copy_(value)
        losses.append(float(loss.detach()))
        if until(losses):
            break
    return losses


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", TRAINED)
def test_fifty_steps_bring_the_loss_down(name, backbone):
    """On a convolutional network and a transformer: on a fixed batch five losses in a row lie clearly below the first one."""
    method = harness.pretraining_method(name, backbone).train()
    fill_queues(method, name, backbone)

    def learnt(losses):
        return len(losses) > 5 and max(losses[-5:]) < losses[0] - 0.05 * max(1, abs(losses[0]))

    losses = descend(method, fixed_batch(name, backbone), 50, until=learnt)
    assert np.isfinite(losses).all() and learnt(losses), losses


@pytest.mark.parametrize("backbone", TINY_FIRST)
@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_stays_finite(name, backbone):
    """Losses and gradients under autocast, near those in float32 at the start."""
    first = {}
    for precision in (torch.float32, torch.bfloat16):
        method = harness.pretraining_method(name, backbone).train()
        fill_queues(method, name, backbone)
        losses = descend(method, fixed_batch(name, backbone), 6, precision)
        assert np.isfinite(losses).all() and all(p.isfinite().all() for p in method.parameters())
        first[precision] = losses[0]
    assert first[torch.bfloat16] == pytest.approx(first[torch.float32], abs=0.15, rel=0.05)


@pytest.mark.parametrize("backbone", TINY_FIRST[:1] + TINY_FIRST[2:])
@pytest.mark.parametrize("name", TRAINED)
def test_every_method_resumes_bit_for_bit(tmp_path, name, backbone):
    """Stopped by a signal after step 3 of 6 and continued: weights, optimizer, teachers, queues, banks and the log are the same."""
    data = harness.method_data(name, backbone)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    harness.train(harness.pretraining_method(name, backbone), data, whole)
    interrupted = harness.pretraining_method(name, backbone)
    after_step = interrupted.after_step
    harness.stop_after(interrupted, 3, 6)
    send = interrupted.after_step
    interrupted.after_step = lambda done: (after_step(done), send(done))
    with pytest.raises(SystemExit):
        harness.train(interrupted, data, stopped)
    harness.train(harness.pretraining_method(name, backbone, seed=9), data, stopped)
    assert differences(stopped, whole) == []


@pytest.mark.parametrize("backbone", TINY_FIRST)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_handed_on_fits(tmp_path, name, backbone):
    """A segmentation model opens the folder: no backbone or decoder key is missing or unexpected, and its weights are those trained."""
    method = harness.pretraining_method(name, backbone)
    for parameter in method.parameters():
        parameter.data.add_(0.01)
    method.network.save_pretrained(tmp_path)
    model, found = MsclForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert not found["unexpected_keys"] and not found["mismatched_keys"]
    assert all(key.startswith(("classifier.", "auxiliary_head.")) for key in found["missing_keys"])
    for part in ("backbone", "decoder"):
        trained, opened = (getattr(network, part).state_dict() for network in (method.network, model))
        assert trained.keys() == opened.keys() and all(torch.equal(trained[key], opened[key]) for key in trained)
    size = model.config.image_size
    assert model(torch.randn(2, 3, size, size)).logits.shape[:2] == (2, 5)


@pytest.mark.parametrize("backbone", TINY_FIRST)
@pytest.mark.parametrize("name", TRAINED)
def test_no_parameter_waits_for_a_gradient(name, backbone):
    """What the loss does not reach is taken out of training before the first step, and it is what the table does not name: DDP waits for
    every other parameter, in every step."""
    method, batch = harness.pretraining_method(name, backbone), fixed_batch(name, backbone)
    freeze_unreached(method, batch, harness.fresh_accelerator())
    method(**batch)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    trained = {n.split(".")[1] for n, p in method.named_parameters() if n.startswith("network.") and p.requires_grad}
    for part in ("backbone", "decoder"):
        first = part in trained or (part == "backbone" and METHODS[name].first_stage is not None)
        assert first == (part in METHODS[name].trained_parts), part


TEACHERS = [(name, {}) for name, method_cls in METHODS.items() if issubclass(method_cls, EMATeacherMethod)]


@pytest.mark.parametrize(("name", "options"), [*TEACHERS, ("pixpro", {"instance_weight": 1.0})])
def test_the_teacher_counts_and_follows(name, options):
    """Each part of a teacher changes the loss and gets no gradient. After a step it is momentum * teacher + (1 - momentum) * student; in
    BYOL, PixPro and PixContrast the momentum rises to 1 along half a cosine."""
    method = harness.pretraining_method(name, ema_momentum=0.9, **options)
    tiny.check_teacher(method, fixed_batch(name, "test_resnet"))
    for done in (0.25, 1.0):
        tiny.check_follows(method, cosine_momentum(0.9, done) if name in ("byol", "pixpro", "pixcontrast") else 0.9, done)


@pytest.mark.parametrize(("name", "options"), TEACHERS)
def test_check_of_the_teacher_can_fail(name, options):
    """A method whose keys come from a teacher that does not change what it computes is detected."""
    method = harness.pretraining_method(name, **options)
    kept = {key: value.clone() for key, value in method.teacher.state_dict().items()}

    def forget(*_):
        method.teacher.load_state_dict(kept)

    method.register_forward_pre_hook(forget)
    with pytest.raises(AssertionError):
        tiny.check_teacher(method, fixed_batch(name, "test_resnet"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_row(name):
    """All columns of the table are set, the views exist, and the last stage has the name."""
    method_cls = METHODS[name]
    assert all(isinstance(getattr(method_cls, key), str) for key in ("title", "paper", "views", "reads_masks", "trained_parts", "state"))
    assert method_cls.views in VIEWS and (method_cls.preset is None) == (method_cls.reads_masks != "no" or not method_cls.trains)
    assert method_cls.__doc__ and stages_of(name)[-1] is method_cls


def test_every_option_of_a_method_is_a_flag():
    """What a constructor takes can be given on the command line, and every flag is read by a method."""
    read = {option for method_cls in METHODS.values() for option in defaults_of(method_cls)} - {"images", "queue_size"}
    assert read == {f.name for f in fields(MethodConfig)} and "queue_size" in {f.name for f in fields(ContrastConfig)}


@pytest.mark.parametrize("section, option, names", [
    (PretrainRun, "method", METHODS), (FinetuningLossConfig, "loss", FINETUNING_LOSSES), (ViewConfig, "preset", PRESETS),
    (ContrastConfig, "negatives", GLOBAL_NEGATIVES), (ContrastConfig, "local_scope", LOCAL_SCOPES), (ContrastConfig, "pixel_scope", SCOPES),
    (ContrastConfig, "denominator", DENOMINATORS), (ContrastConfig, "pixel_denominator", PIXEL_DENOMINATORS),
    (ContrastConfig, "pixel_reduction", REDUCTIONS), (ContrastConfig, "anchor_weight", ANCHOR_WEIGHTS),
    (ContrastConfig, "pixel_sample", PIXEL_SAMPLES), (ContrastConfig, "label_downsampling", LABEL_DOWNSAMPLING),
    (MethodConfig, "variant", (*ZHAO_VARIANTS, *VERSIONS)), (MethodConfig, "dense_axis", AXES), (MethodConfig, "match_empty", EMPTY),
    (SemiSupervisedConfig, "semi_supervised", ("none", *SEMI_SUPERVISED)),
    (MethodConfig, "bank_loss", (*BANK_LOSSES, "batch")), (FinetuningLossConfig, "affinity_ignore", IGNORE_MODES),
])  # fmt: skip
def test_choices_of_the_configuration_are_those_of_the_code(section, option, names):
    """A name that a `Literal` lacks cannot be given on the command line; one that the code lacks is rejected at the start."""
    assert choices_of(get_type_hints(section)[option]) == tuple(names)
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is 'no such'; expected one of {', '.join(map(re.escape, names))}"):
        section(**{option: "no such"})


def test_docs_carry_the_tables():
    """docs/methods.md has the tables of the registry, word for word, and no method is missing."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    assert f"\n\n{markdown(table())}\n\n" in page and f"\n\n{markdown(option_table())}\n\n" in page
    assert [row[0] for row in table()[1:]] == list(METHODS) and all(all(row) for row in table())


@pytest.mark.parametrize("name", METHODS)
def test_only_what_needs_masks_reads_them(name):
    """By name, and for mscl by its losses."""
    method_cls = METHODS[name]
    assert method_cls.uses_labels(ContrastConfig(losses="g+l")) is (method_cls.reads_masks == "yes")
    assert method_cls.uses_labels(ContrastConfig(losses="g+p")) is (method_cls.reads_masks != "no")
