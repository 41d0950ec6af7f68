"""Training in fp16: the loss is scaled, a step that overflows leaves no trace but a smaller scale, and a resumed run is the same."""

import math

import harness
import pytest
import test_semi_supervised as semi
import torch
from safetensors.torch import load_file
from same_run import differences, logged

from mscl_hf.methods import METHODS
from mscl_hf.methods.semi_supervised import SEMI_SUPERVISED
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.loop import fit
from mscl_hf.training.loss_scaling import MAX_SKIPPED
from mscl_hf.training.progress import NonFinite
from mscl_hf.training.setup import make_accelerator

STEPS = 6
ADAMW = {"optim": "adamw", "learning_rate": 1e-3}


def train(method, data, out, scale: float = 2.0**10, **given):
    """Call `fit` in fp16. scale: of the first step; with the usual one, 2^16, the gradients of some of these networks overflow."""
    out.mkdir(exist_ok=True)
    harness.fresh_accelerator()
    accelerator = make_accelerator("fp16")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    options = harness.options(mixed_precision="fp16", **{"max_steps": STEPS, "logging_steps": 1, **given})
    fit(method, data, options, out, accelerator)
    return method


def overflow_at(method, *steps: int, max_steps: int = STEPS):
    """Let the gradient be infinite in these steps, counted from 1; return the method."""
    forward = method.forward

    def overflowing(**batch):
        losses = forward(**batch)
        if round(method.fraction_done * max_steps) + 1 in steps:
            losses["loss"].register_hook(lambda gradient: gradient * math.inf)
        return losses

    method.forward = overflowing
    return method


@pytest.mark.parametrize("stage, backbone", [("pretrain", "test_resnet"), ("finetune", "test_resnet"), ("finetune", "test_vit")])
def test_stopped_and_resumed_equals_straight(tmp_path, stage, backbone):
    """A CNN and a ViT compute in fp16; the scale and the count of skipped steps go on in a resumed run, bit for bit."""
    options = {"save_steps": STEPS, "gradient_accumulation_steps": 2} | (ADAMW if backbone == "test_vit" else {})

    def made(**more):
        method = (harness.pretraining if stage == "pretrain" else harness.finetuning)(backbone=backbone, **more)
        return overflow_at(method, 2, 5)

    seen = set()
    method = made()
    method.network.decoder.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    train(method, harness.training_data(stage), tmp_path / "straight", **options)
    assert torch.float16 in seen
    method = made()
    harness.stop_after(method, 3, STEPS)
    with pytest.raises(SystemExit):
        train(method, harness.training_data(stage), tmp_path / "stopped", **options)
    train(made(seed=99), harness.training_data(stage), tmp_path / "stopped", **options)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []
    rows = logged(tmp_path / "straight")
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0, 0, 1, 0]
    assert [row.get("grad_scale") for row in rows] == [2.0**10, None, 2.0**9, 2.0**9, None, 2.0**8]
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("name", ["moco_v2", "instdisc", "byol"])
def test_an_overflow_leaves_no_trace(tmp_path, name):
    """Weights, batch statistics, EMA teacher, queue and memory bank after a skipped step are those before it."""
    train(overflow_at(harness.pretraining_method(name), 3), harness.method_data(name), tmp_path, save_steps=1, save_total_limit=9)
    states = {}
    for folder in checkpoint_folder.complete(tmp_path):
        parts = {part: load_file(folder / f"{part}.safetensors") for part in ("method", "optimizer")}
        states[checkpoint_folder.step_of(folder)] = parts
    before, after, trained = states[2], states[3], states[4]
    for part in ("method", "optimizer"):
        assert all(torch.equal(value, after[part][key]) for key, value in before[part].items())
    assert any(not torch.equal(value, trained["method"][key]) for key, value in before["method"].items())


def test_means_of_the_log_leave_out_skipped_steps(tmp_path):
    """A line over three steps, one of them skipped, averages the other two, also across a stop."""
    train(overflow_at(harness.finetuning(), 2), harness.training_data("finetune"), tmp_path / "steps")
    rows = logged(tmp_path / "steps")
    method = overflow_at(harness.finetuning(), 2)
    harness.stop_after(method, 1, STEPS)
    with pytest.raises(SystemExit):
        train(method, harness.training_data("finetune"), tmp_path / "lines", logging_steps=3)
    train(overflow_at(harness.finetuning(), 2), harness.training_data("finetune"), tmp_path / "lines", logging_steps=3)
    first, second = logged(tmp_path / "lines")
    assert first["loss"] == (rows[0]["loss"] + rows[2]["loss"]) / 2 and first["skipped_steps"] == 1
    assert second["lr"] == pytest.approx(sum(row["lr"] for row in rows[3:]) / 3) and second["skipped_steps"] == 0


def test_too_many_skipped_steps_in_a_row(tmp_path):
    """The run ends with a sentence that names another precision, and the state before the last step is saved."""
    steps = MAX_SKIPPED + 5
    method = overflow_at(harness.finetuning(), *range(2, steps + 1), max_steps=steps)
    with pytest.raises(NonFinite, match=f"number {MAX_SKIPPED} of such steps in a row. In a new run, give --mixed-precision bf16 or no"):
        train(method, harness.training_data("finetune"), tmp_path, max_steps=steps)
    assert checkpoint_folder.completed_steps(tmp_path) == MAX_SKIPPED


def test_other_precisions_do_not_skip(tmp_path):
    """In fp32 a gradient that is not finite still ends the run."""
    with pytest.raises(NonFinite, match="Lower --learning-rate"):
        harness.train(overflow_at(harness.finetuning(), 3), harness.training_data("finetune"), tmp_path)


def test_fp16_equals_fp32_up_to_rounding(tmp_path):
    """The loss scale cancels: after the first step both precisions have nearly the same weights."""
    half = train(harness.finetuning(dropout=0.0), harness.training_data("finetune"), tmp_path / "fp16", max_steps=1, warmup_steps=0)
    full = harness.train(
        harness.finetuning(dropout=0.0), harness.training_data("finetune"), tmp_path / "fp32", max_steps=1, warmup_steps=0
    )
    start = harness.finetuning(dropout=0.0)
    moved = {name: value - dict(start.named_parameters())[name] for name, value in full.named_parameters()}
    for name, value in half.named_parameters():
        error = (value - dict(full.named_parameters())[name]).norm()
        assert error <= 0.1 * moved[name].norm() + 1e-4, name


@pytest.mark.parametrize("name", [name for name, method_cls in METHODS.items() if method_cls.trains])
def test_every_method_trains_in_fp16(tmp_path, name):
    """Losses are finite, and after a few halvings of the first scale the gradients are too."""
    train(harness.pretraining_method(name), harness.method_data(name), tmp_path, 2.0**16, max_steps=8)
    assert 0 in [row["skipped_steps"] for row in logged(tmp_path)]


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_semi_supervised_fine_tuning_in_fp16(tmp_path, name):
    """Losses are finite; a skipped step leaves the network as it was, and the teacher follows the others."""
    method = overflow_at(semi.training(name, pixel_contrast=0.1), 3)
    start = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    train(method, semi.semi_data(name), tmp_path)
    rows = logged(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert any(not torch.equal(value, method.teacher.state_dict()[key]) for key, value in start.items())


def test_sharding_is_rejected():
    """Scales of shards could differ."""
    with pytest.raises(ValueError, match="--mixed-precision is fp16 with --shard"):
        harness.options(mixed_precision="fp16", shard=True)
