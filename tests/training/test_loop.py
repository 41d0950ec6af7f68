"""The training loop: schedule, optimizer, accumulation, clipping, faults, seeds, and what does not train."""

import math
import shutil

import harness
import pytest
import test_semi_supervised as semi
import torch
from safetensors.torch import load_file
from torch import nn

from mscl_hf.config import TrainingConfig
from mscl_hf.data import training_data
from mscl_hf.training import checkpoint_folder, loop, setup
from mscl_hf.training.log import read_log
from mscl_hf.training.progress import NonFinite
from mscl_hf.training.setup import build_optimizer, freeze_unreached, lr_at


def batches(stage: str = "pretrain", count: int = 1, **data) -> list[dict]:
    return list(harness.training_data(stage, **data).batches(0, count))


def snapshot(method) -> dict:
    return {name: value.clone() for name, value in method.state_dict().items()}


def moved(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# -- learning rate and optimizer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("polynomial", 0.5**0.9)])
def test_learning_rate_rises_linearly_and_falls_as_named(schedule, middle):
    """Warm-up k/w of the peak, the peak at its end, the closed form half-way, nearly zero in the last step, monotone on both sides."""
    given = TrainingConfig(max_steps=110, warmup_steps=10, learning_rate=0.4, lr_scheduler_type=schedule)
    rates = [lr_at(step, given) for step in range(110)]
    assert rates[:10] == pytest.approx([0.4 * (k + 1) / 10 for k in range(10)])
    assert rates[10] == pytest.approx(0.4) and rates[60] == pytest.approx(0.4 * middle)
    assert 0 < rates[-1] < 0.01 and all(a > b for a, b in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_runs_reach_a_learning_rate(steps):
    """Warm-up takes at most half of the steps, and all rates are above zero."""
    rates = [lr_at(step, TrainingConfig(max_steps=steps, warmup_steps=20, learning_rate=1.0)) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1


def test_logged_rate_is_the_one_that_was_used(tmp_path):
    """log.jsonl holds lr_at(step), and the optimizer's groups carry it, heads scaled."""
    method = harness.pretraining()
    harness.train(method, harness.training_data(), tmp_path, logging_steps=1)
    given = harness.options()
    assert [row["lr"] for row in read_log(tmp_path / "log.jsonl")] == [lr_at(step, given) for step in range(6)]


def test_biases_and_norms_do_not_decay_and_heads_have_their_own_rate():
    """With a gradient of zero, one step shrinks every matrix by lr * decay (heads: by their scaled lr) and moves nothing else."""
    method = harness.pretraining()
    given = harness.options(weight_decay=0.1, learning_rate=0.5, head_lr_scale=0.2)
    optimizer = build_optimizer(method, given)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = given.learning_rate * group["lr_scale"]
    optimizer.step()
    for name, parameter in method.named_parameters():
        rate = 0.5 if name.startswith(("network.backbone.", "network.decoder.")) else 0.1
        factor = 1 - rate * 0.1 if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_every_trainable_parameter_is_in_exactly_one_group():
    """Each trainable parameter is in one group."""
    for optim in ("sgd", "adamw"):
        method = harness.finetuning()
        next(method.parameters()).requires_grad_(False)
        grouped = [id(p) for group in build_optimizer(method, harness.options(optim=optim)).param_groups for p in group["params"]]
        wanted = [id(p) for p in method.parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(wanted)


# -- one optimizer step ------------------------------------------------------------------------------------------------------


def test_accumulated_gradient_is_the_mean_of_the_halves(tmp_path, monkeypatch):
    """Compare with one backward for each batch, whose gradients are added and halved; logged terms are means too."""
    first, second = batches(count=2)
    method, reference = harness.pretraining(), harness.pretraining()
    values, gradients, clip = [], {}, loop.clip_gradients
    for batch in (first, second):
        terms = reference.train()(**batch)
        terms["loss"].backward()
        values.append(float(terms["loss"].detach()))

    def record(model, limit):
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return clip(model, limit)

    monkeypatch.setattr(loop, "clip_gradients", record)
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "channels_last": False}
    harness.train(method, harness.training_data(), tmp_path, **options)
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(sum(values) / 2, rel=1e-6)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad / 2, rtol=1e-5, atol=1e-7, msg=name)


def test_accumulation_reads_as_many_batches(tmp_path, monkeypatch):
    """n optimizer steps with accumulation 2 see the forward passes 0 .. 2n - 1, in order, once each."""
    seen = []
    to_device = training_data.to_device
    monkeypatch.setattr(training_data, "to_device", lambda batch, device: seen.append(batch["name"]) or to_device(batch, device))
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, max_steps=3, gradient_accumulation_steps=2)
    assert seen[1:] == [batch["name"] for batch in batches(count=6)]  # the first one is for freeze_unreached


def test_clipping_bounds_the_norm_and_reports_the_unclipped_one():
    """After clipping the norm is the limit; 0 = no clipping; a small gradient is left alone."""
    model = nn.Linear(3, 1)
    for limit, wanted in ((1.0, 1.0), (0.0, 20.0), (50.0, 20.0)):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)  # four entries: norm 20
        assert loop.clip_gradients(model, limit) == pytest.approx(20.0)
        after = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
        assert after == pytest.approx(wanted, rel=1e-4)


def test_training_lowers_the_loss(tmp_path):
    """A few steps lower the loss on a fixed batch: the sign of the update is right."""
    method = harness.finetuning(dropout=0.0)
    batch = batches("finetune")[0]
    harness.train(method, harness.training_data("finetune", labelled=4), tmp_path, max_steps=40, learning_rate=0.05)
    fresh = harness.finetuning(dropout=0.0)
    with torch.no_grad():
        assert method.train()(**batch)["loss"] < 0.8 * fresh.train()(**batch)["loss"]


# -- faults ------------------------------------------------------------------------------------------------------------------


def poison(method, at: int, value: float) -> None:
    """Multiply the loss of optimizer step `at` (from 1) by a value; one forward pass precedes the first step."""
    forward, calls = method.forward, []

    def poisoned(**batch):
        calls.append(batch["name"])
        terms = forward(**batch)
        return {**terms, "loss": terms["loss"] * value} if len(calls) == at + 1 else terms

    method.forward = poisoned
    method.calls = calls


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_step_is_saved_as_if_it_had_not_been(tmp_path, value):
    """The message names the step and the samples. The step before is saved: weights, batch statistics and queue are those of a run that
    ended there without a fault, and the parameters are those saved."""
    contrast = {"losses": "g+l+p", "queue_size": 6}
    method = harness.pretraining(contrast=contrast)
    poison(method, 3, value)
    with pytest.raises(NonFinite, match=r"step 3 .*process 0") as raised:
        harness.train(method, harness.training_data(), tmp_path / "bad", save_steps=0)
    assert len(method.calls) == 4 and all(name in str(raised.value) for name in method.calls[-1]) and "\n" not in str(raised.value)
    healthy = harness.pretraining(contrast=contrast)
    harness.train(healthy, harness.training_data(), tmp_path / "good", save_steps=2, save_total_limit=9)
    assert [folder.name for folder in checkpoint_folder.complete(tmp_path / "bad")] == ["step-00000002"]
    left = load_file(tmp_path / "bad" / "checkpoints" / "step-00000002" / "method.safetensors")
    right = load_file(tmp_path / "good" / "checkpoints" / "step-00000002" / "method.safetensors")
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert all(torch.equal(left[name], p) for name, p in method.named_parameters())


def test_sync_batch_norm_keeps_the_activations_inside_timm_norms():
    """In evaluation, without synchronization, the converted network gives the outputs of the original."""
    network = harness.pretraining(backbone="test_efficientnet").network.eval()
    pixels = torch.randn(2, 3, 32, 32)
    before = network(pixels).pixel_embeds
    converted = setup.convert_sync_batchnorm(network)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert torch.equal(converted.eval()(pixels).pixel_embeds, before)


def test_non_finite_gradient_of_a_finite_loss_stops_too(tmp_path):
    """The gradient norm is checked as well as the loss."""
    method = harness.pretraining()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    weight = method.network.global_head.layers[0].weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFinite, match=r"step 1 .*gradient norm (nan|inf)"):
        harness.train(method, harness.training_data(), tmp_path)
    assert all(torch.equal(before[name], p) for name, p in method.named_parameters())


def test_batch_too_small_for_contrast_or_indivisible_is_rejected():
    """One image has no negatives, and an odd batch cannot be divided over two processes: errors before the first step."""
    data = harness.training_data(batch=1)
    with pytest.raises(ValueError, match="--batch-size is 1; expected at least 2"):
        setup.check_batch(harness.pretraining(), data, harness.options(batch_size=1), 1)
    setup.check_batch(harness.pretraining(contrast={"losses": "l+p"}), data, harness.options(batch_size=1), 1)
    setup.check_batch(harness.finetuning(), data, harness.options(batch_size=1), 1)
    with pytest.raises(ValueError, match="--batch-size is 5; expected a multiple of 2"):
        setup.check_batch(harness.pretraining(), harness.training_data(batch=5), harness.options(batch_size=5), 2)
    half = harness.training_data(batch=6, unlabelled=4)  # 3 labelled images a batch
    with pytest.raises(ValueError, match="--batch-size is 6 with 3 labelled images; expected multiples of 2"):
        setup.check_batch(harness.pretraining(), half, harness.options(batch_size=6), 2)


def test_bad_images_are_counted_once_and_limited(tmp_path):
    """A bad file counts once; above the limit the run ends with its name and a checkpoint."""
    data = harness.training_data()
    plain = data.loader

    def loader(first, *rest):
        for step, batch in enumerate(plain(first, *rest), first):
            yield batch | {"bad": ["a.png broken"] if step < 3 else ["b.png broken"]}

    object.__setattr__(data, "loader", loader)
    with pytest.raises(ValueError, match=r"--max-bad-images is 1 and 2 image.*b\.png broken.*step 4 with --resume"):
        harness.fit(harness.pretraining(), data, harness.options(max_steps=6), tmp_path, harness.fresh_accelerator(), max_bad_images=1)
    assert [folder.name for folder in checkpoint_folder.complete(tmp_path)] == ["step-00000004"]


# -- what does not train -----------------------------------------------------------------------------------------------------

REACHED = {  # heads sit behind the backbone, the decoder belongs to the pixel loss alone
    "g": {"backbone", "global_head"},
    "l": {"backbone", "local_head"},
    "p": {"backbone", "decoder", "pixel_head"},
    "g+l": {"backbone", "global_head", "local_head"},
    "g+l+p": {"backbone", "decoder", "global_head", "local_head", "pixel_head"},
}


@pytest.mark.parametrize("losses", REACHED)
def test_only_what_the_loss_reaches_trains(tmp_path, losses):
    """All other parts keep their initial bits despite weight decay, and are not in the optimizer."""
    method = harness.pretraining(contrast={"losses": losses})
    before = snapshot(method)
    harness.train(method, harness.training_data(), tmp_path, max_steps=2, weight_decay=0.5)
    changed = {name.split(".")[1] for name in moved(before, snapshot(method))}
    assert changed == REACHED[losses]
    training = {name.split(".")[1] for name, p in method.named_parameters() if p.requires_grad}
    assert training == REACHED[losses]


@pytest.mark.parametrize("queue", [0, 6])
def test_looking_at_what_the_loss_reaches_leaves_no_trace(queue):
    """Weights, batch statistics, queue and random state are unchanged, and no gradient remains."""
    method = harness.pretraining(contrast={"losses": "g", "queue_size": queue})
    before, batch = snapshot(method), batches()[0]
    torch.manual_seed(5)
    unreached = freeze_unreached(method, batch, harness.fresh_accelerator())
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert not moved(before, snapshot(method))
    assert all(p.grad is None for p in method.parameters())
    assert unreached and all(name.startswith(("network.decoder.", "network.local_head.", "network.pixel_head.")) for name in unreached)


def test_everything_trains_where_the_loss_reaches_everything(tmp_path):
    """In fine-tuning all parameters train."""
    method = harness.finetuning()
    before = snapshot(method)
    harness.train(method, harness.training_data("finetune"), tmp_path, max_steps=6, learning_rate=0.2)
    assert {name for name, _ in method.named_parameters()} <= moved(before, snapshot(method))


# -- seeds -------------------------------------------------------------------------------------------------------------------

RUN = (*harness.TINY, *harness.SHORT, "--val-split", "none")


def weights(out) -> dict:
    tensors = load_file(out / "model.safetensors")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return tensors


def pretrained(out, *more) -> dict:
    harness.run("pretrain", *RUN, "--output-dir", out, *more, draw_training=lambda *_: None, draw_features=lambda *_: None)
    return weights(out)


def test_same_seed_same_weights_other_seed_others(tmp_path):
    """Both recipes give equal bits for equal seeds."""
    first, again, other = (pretrained(tmp_path / n, "--max-steps", 2, "--seed", seed) for n, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert not moved(first, again) and len(moved(first, other)) > 10
    quick = {"draw_training": lambda *_: None}
    for name, seed in (("d", 3), ("e", 3), ("f", 4)):
        harness.run("finetune", "--model", tmp_path / "a", *harness.SHORT, "--val-split", "none", "--max-steps", 2, "--seed", seed,
                    "--output-dir", tmp_path / name, **quick)  # fmt: skip
    first, again, other = (weights(tmp_path / name) for name in "def")
    assert not moved(first, again) and len(moved(first, other)) > 10


def test_none_is_where_every_method_starts(tmp_path):
    """--method none saves the initial backbone and decoder of mscl with the same seed."""
    start = pretrained(tmp_path / "none", "--method", "none", "--seed", 7)
    taken = {}

    def no_training(method, *rest, **more):
        taken.update(snapshot(method.network))
        return method

    harness.run("pretrain", *RUN, "--output-dir", tmp_path / "mscl", "--seed", 7, "--max-steps", 2, pictures=False, fit=no_training)
    assert {key.split(".")[0] for key in start} == {"backbone", "decoder"}
    taken = {key: value for key, value in taken.items() if key in start}
    assert not moved(start, taken)
    assert not (tmp_path / "none" / "checkpoints").exists()
    trained = pretrained(tmp_path / "trained", "--seed", 7, "--max-steps", 2)
    assert len(moved(start, {key: trained[key] for key in start})) > 10


# -- unlabelled images -------------------------------------------------------------------------------------------------------


def test_unlabelled_images_take_part_in_global_and_local_loss_only():
    """Their masks have no effect, the pixel head does not get them, and the other two losses depend on their pixels."""
    method = harness.pretraining().train()
    batch = batches(unlabelled=6)[0]
    assert batch["labelled"].tolist() == [0, 1]
    sizes = []
    method.network.pixel_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    terms = method(**batch)
    assert sizes == [4]  # two labelled images, two views
    scrambled = {**batch, "mask": batch["mask"].clone(), "enhanced_mask": batch["enhanced_mask"].clone()}
    for key in ("mask", "enhanced_mask"):
        scrambled[key][2:] = torch.randint(0, 8, scrambled[key][2:].shape, dtype=torch.uint8)
    again = method(**scrambled)
    assert all(torch.equal(again[name], value) for name, value in terms.items())
    repainted = {**batch, "enhanced": batch["enhanced"].clone()}
    repainted["enhanced"][3] = 255 - repainted["enhanced"][3]
    method.eval()  # batch statistics would carry the change to all images
    before, after = method(**batch), method(**repainted)
    assert before["loss_pixel"] == after["loss_pixel"]
    assert before["loss_global"] != after["loss_global"] and before["loss_local"] != after["loss_local"]


# -- precision and memory ----------------------------------------------------------------------------------------------------


def test_bf16_trains_close_to_fp32_and_saves_fp32(tmp_path):
    """The first loss agrees to bf16's precision, it is not the same number, and the published weights are float32."""
    rows = {}
    for precision in ("no", "bf16"):
        pretrained(tmp_path / precision, "--max-steps", 1, "--mixed-precision", precision)
        (rows[precision],) = (row["loss"] for row in read_log(tmp_path / precision / "log.jsonl") if "loss" in row)
        assert {value.dtype for value in load_file(tmp_path / precision / "model.safetensors").values()} <= {torch.float32, torch.int64}
    assert rows["bf16"] == pytest.approx(rows["no"], rel=0.05) and rows["bf16"] != rows["no"]


def test_memory_options_change_no_number(tmp_path):
    """Channels-last gives the same losses, gradients and buffers to rounding; recomputed activations give the same ones, bit for bit."""
    rows, states = [], []
    for number, given in enumerate(({}, {"channels_last": False}, {"gradient_checkpointing": True})):
        out = tmp_path / str(number)
        method = harness.train(harness.pretraining(), harness.training_data(), out, max_steps=2, logging_steps=1, **given)
        rows.append([(row["loss"], row["grad_norm"]) for row in read_log(out / "log.jsonl")])
        states.append(dict(method.named_buffers()) | dict(method.named_parameters()))
    for a, b in zip(rows[0], rows[1]):
        assert a == pytest.approx(b, rel=1e-3)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-3, msg=key)
        assert torch.equal(states[2][key], value), key
    assert rows[0] == rows[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_learns_the_same(tmp_path, monkeypatch):
    """Losses and health checks are equal up to rounding, checkpoint keys are equal, and a missing compiler is an error."""
    logs, keys = [], []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        method = harness.pretraining(contrast={"losses": "g+p"})
        check = lambda method, step, row: {"checked": float(method.network(torch.ones(2, 3, 32, 32)).global_embeds.sum())}  # noqa: E731
        options = {"max_steps": 3, "logging_steps": 1, "torch_compile": compiled}
        harness.train(method, harness.training_data(), out, check, 2, **options)
        logs.append([row.get("loss", row.get("checked")) for row in read_log(out / "log.jsonl")])
        keys.append(list(method.state_dict()))
    assert logs[0] == pytest.approx(logs[1], rel=1e-2) and keys[0] == keys[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--torch-compile needs a C.. compiler"):
        harness.train(harness.pretraining(), harness.training_data(), tmp_path / "none", torch_compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("name", "parts"), [("fixmatch", 4), ("moco_v2", 3), ("distill", 3)])  # the latter two have one more backbone
def test_teachers_are_compiled_too(tmp_path, name, parts):
    """Losses are equal up to rounding, and the teacher ends as an ordinary module with equal weights."""
    logs, teachers = [], []
    for compiled in (False, True):
        if name == "fixmatch":
            method, data = semi.training(dropout=0.0), semi.semi_data()
        else:
            method, data = harness.pretraining_method(name), harness.method_data(name)
        assert len(setup._compiled_parts(method)) == parts
        harness.train(method, data, tmp_path / str(compiled), max_steps=3, logging_steps=1, torch_compile=compiled)
        assert all(part._compiled_call_impl is None for part in method.modules())
        logs.append([row["loss"] for row in read_log(tmp_path / str(compiled) / "log.jsonl")])
        teachers.append(method.teacher.state_dict())
    assert logs[0] == pytest.approx(logs[1], rel=1e-2)
    for key, value in teachers[0].items():
        torch.testing.assert_close(teachers[1][key], value, rtol=1e-2, atol=1e-2, msg=key)


def test_the_loop_nudges_a_method_after_its_weights_have_moved(tmp_path):
    """Step n of 6: forward sees progress n/6; after_step gets (n+1)/6 and the weights with which the next forward begins."""
    method = harness.pretraining_method("byol")
    weight, before, after = next(method.network.backbone.parameters()), [], []
    method.register_forward_pre_hook(lambda *_: before.append((method.fraction_done, weight.detach().clone())))
    method.after_step = lambda done: after.append((done, weight.detach().clone()))
    harness.train(method, harness.method_data("byol"), tmp_path)
    before = before[-6:]  # the first was to see what trains
    assert [progress for progress, _ in before] == pytest.approx([n / 6 for n in range(6)])
    assert [done for done, _ in after] == pytest.approx([(n + 1) / 6 for n in range(6)])
    for (_, old), (_, new) in zip(before, after):
        assert not torch.equal(old, new)
    for (_, new), (_, following) in zip(after, before[1:]):
        assert torch.equal(new, following)


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_lars_adapts_the_rates_of_matrices_only(decay):
    """Its first step: a matrix moves by lr * 0.001 |w| / (|g| + decay |w|) * (g + decay w), a bias or a norm's weight by lr * g."""
    method = harness.pretraining()
    given = harness.options(optim="lars", learning_rate=0.5, weight_decay=decay)
    optimizer = build_optimizer(method, given)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    for name in before:
        method.get_parameter(name).grad = torch.full_like(before[name], 0.3)
    optimizer.step()
    for name, w in before.items():
        g, rate = torch.full_like(w, 0.3), 1.0
        if w.dim() > 1:
            rate, g = 0.001 * w.norm() / (g.norm() + decay * w.norm()), g + decay * w
        torch.testing.assert_close(method.get_parameter(name).detach(), w - 0.5 * rate * g, atol=1e-6, rtol=1e-4)


def test_the_rate_of_simsiams_predictor_stays_constant(tmp_path, monkeypatch):
    """In the last step its parameters, and no others, have the full rate; --head-lr-scale scales it as that of the other head."""
    rates = {}

    def build(method, options):
        optimizer, names = build_optimizer(method, options), {id(p): name for name, p in method.named_parameters()}
        optimizer.register_step_pre_hook(lambda o, *_: rates.update({names[id(p)]: g["lr"] for g in o.param_groups for p in g["params"]}))
        return optimizer

    monkeypatch.setattr(setup, "build_optimizer", build)
    harness.train(harness.pretraining_method("simsiam"), harness.method_data("simsiam"), tmp_path, learning_rate=0.02, head_lr_scale=0.5)
    last = lr_at(5, harness.options(learning_rate=0.02))
    parts = {"network": last, "projector": 0.5 * last, "predictor": 0.5 * 0.02}
    assert {name.split(".")[0] for name in rates} == parts.keys()
    assert rates == {name: pytest.approx(parts[name.split(".")[0]]) for name in rates}


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_one_image_per_process_cannot_be_normalized(name, monkeypatch):
    """BatchNorm in a head needs two images of each process on CPUs; on GPUs the processes share their statistics."""
    method = harness.pretraining_method(name, batch=2)
    data = harness.method_data(name, batch=2)
    given = harness.options(batch_size=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setup.check_batch(method, data, given, 1)
    with pytest.raises(ValueError, match="--batch-size is 2; expected at least 4"):
        setup.check_batch(method, data, given, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    setup.check_batch(method, data, given, 2)


@pytest.mark.parametrize(("name", "wanted"), [
    ("byol", set()), ("moco_v2", {"queue.rows", "queue.pointer", "queue.filled"}), ("instdisc", {"instance.bank.rows"}),
    ("cmc", {"banks.0.bank.rows", "banks.1.bank.rows"}),
])  # fmt: skip
def test_memories_alone_stay_out_of_ddps_broadcasts(name, wanted):
    """Memories are equal on all processes; batch statistics, also of the teacher, are broadcast."""
    method = harness.pretraining_method(name, "resnet18" if name == "cmc" else "test_resnet")
    setup.exclude_memories_from_broadcast(method)
    assert set(method._ddp_params_and_buffers_to_ignore) == wanted <= dict(method.named_buffers()).keys()
