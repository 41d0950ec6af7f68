"""Distillation: its formula, any two strides and sizes, a teacher that stays as it is and out of everything that is saved."""

import copy
import json

import harness
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mscl_hf.losses import similarity_divergence
from mscl_hf.methods.distill import TOKEN_LOSSES, Distill
from mscl_hf.methods.heads import flatten_positions
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.models.normalization import normalize


def distill(backbone="test_resnet", size=harness.SIZE, attach="backbone", **options) -> Distill:
    torch.manual_seed(0)
    network = MsclForPreTraining(build_config(backbone, decoder_channels=16, image_size=size, heads=[], attach=attach))
    return Distill(network, **harness.needed_options("distill") | {"queue_size": 8} | options)


def image(count=4, size=harness.SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("exclude_self", [False, True])
def test_divergence_against_a_loop(exclude_self):
    """Row by row and key by key, for two dimensions and several sets; zero where student and teacher are equal."""
    torch.manual_seed(0)
    student, teacher = F.normalize(torch.randn(2, 3, 5).double(), dim=2), F.normalize(torch.randn(2, 3, 7).double(), dim=2)
    expected = 0.0
    for own, other in zip(student, teacher):
        for n in range(3):
            keys = [m for m in range(3) if m != n or not exclude_self]
            p = torch.tensor([float(torch.exp(other[n] @ other[m] / 0.1)) for m in keys])
            q = torch.tensor([float(torch.exp(own[n] @ own[m] / 0.1)) for m in keys])
            p, q = p / p.sum(), q / q.sum()
            expected += float((p * (p / q).log()).sum()) / 6
    value = similarity_divergence(student, teacher, student, teacher, 0.1, exclude_self)
    assert float(value) == pytest.approx(expected, rel=1e-5) and expected > 0.01
    assert float(similarity_divergence(teacher, teacher, teacher, teacher, 0.1, exclude_self)) == pytest.approx(0, abs=1e-12)
    teacher.requires_grad_()
    student.requires_grad_()
    similarity_divergence(student, teacher, student, teacher, 0.1, exclude_self).backward()
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None and student.grad.abs().max() > 0


@pytest.mark.parametrize(("token_loss", "attach"), [("relations", "backbone"), ("cosine", "backbone"), ("cosine", "decoder")])
def test_loss_is_the_formula(token_loss, attach):
    """Two maps of the backbones, and the output of the decoder where it is attached; a queue that holds the vectors of an earlier batch."""
    method = distill(token_loss=token_loss, attach=attach).train()
    method(image(size=40))
    queue = method.queue.read().clone()
    network = copy.deepcopy(method.network).train()
    terms = method(image())
    targets = list(method.teacher(normalize(image(), method.teacher_mean, method.teacher_std)).feature_maps)
    own = list(network.backbone(method.normalize(image())).feature_maps)
    assert len(own) == len(targets) == 2
    if attach == "decoder":
        own, targets = [*own, network.decoder(own)], [*targets, targets[-1]]
    targets = [F.batch_norm(target, None, None, training=True) for target in targets]  # mean 0 and deviation 1
    own = [projection(each) for projection, each in zip(method.projections, own, strict=True)]
    own = [F.interpolate(a, size=b.shape[-2:], mode="bilinear", align_corners=False, antialias=True) for a, b in zip(own, targets)]
    vectors, of_teacher = (F.normalize(maps[-1].mean((2, 3)), dim=1) for maps in (own, targets))
    keys = torch.cat([of_teacher, queue])
    p, q = (of_teacher @ keys.T / 0.07).softmax(1), (vectors @ keys.T / 0.07).softmax(1)
    torch.testing.assert_close(terms["loss_image"], (p * (p / q).log()).sum(1).mean(), rtol=1e-4, atol=1e-5)
    expected = 0.0
    for a, b in zip(own, targets):
        student, target = (F.normalize(flatten_positions(values), dim=2) for values in (a, b))
        if token_loss == "cosine":
            expected += 1 - (student * target).sum(2).mean()
            continue
        others = ~torch.eye(target.shape[1], dtype=torch.bool)
        logs = [(x @ x.mT / 0.07)[:, others].view(4, len(others), -1).log_softmax(2) for x in (target, student)]
        expected += (logs[0].exp() * (logs[0] - logs[1])).sum(2).mean()
    torch.testing.assert_close(terms["loss_tokens"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss"], terms["loss_image"] + terms["loss_tokens"])
    torch.testing.assert_close(method.queue.read()[4:], of_teacher)  # the second batch; the queue holds two


def test_what_all_vectors_of_the_teacher_share_changes_nothing():
    """A vector that is added to all of the teacher's vectors: the same targets."""
    method = distill().double().eval()
    pixels, forward = image().double(), method.teacher.forward
    before = method.teacher_maps(pixels)

    def shifted(*arguments):
        outputs = forward(*arguments)
        outputs.feature_maps = tuple(values + torch.arange(values.shape[1])[:, None, None] for values in outputs.feature_maps)
        return outputs

    method.teacher.forward = shifted
    torch.testing.assert_close(method.teacher_maps(pixels), before)
    assert all(target.std() > 0.5 for target in before)


def test_a_student_with_the_features_of_its_teacher_has_no_loss():
    """The teacher's own network and the standardization as projection: every term is zero, in evaluation mode."""
    method = distill().eval()
    method.network.backbone.timm_model.load_state_dict(method.teacher.timm_model.state_dict())
    maps = method.teacher(normalize(image(), method.teacher_mean, method.teacher_std)).feature_maps
    with torch.no_grad():
        for projection, values in zip(method.projections, maps):
            values = values.transpose(0, 1).flatten(1)
            deviation = (values.var(1, correction=0) + 1e-5).sqrt()
            projection.weight.copy_(torch.diag(1 / deviation)[:, :, None, None])
            projection.bias.copy_(-values.mean(1) / deviation)
    for token_loss in TOKEN_LOSSES:
        method.token_loss = token_loss
        assert float(method.eval()(image())["loss"].detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 32), ("resnet10t", 48), ("test_convnext", 64)])
def test_any_two_strides_and_sizes(backbone, size):
    """Maps of other strides and channels than the teacher's: a finite loss, whose gradient reaches the first layer."""
    method = distill(backbone, size).train()
    loss = method(image(size=size))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    first = next(method.network.backbone.parameters())
    assert first.grad.abs().max() > 0


def test_the_teacher_stays_as_it_is(tmp_path):
    """After training, its weights and statistics are the file's; it is in no checkpoint, parameter list or state."""
    method = distill()
    harness.train(method, harness.method_data("distill"), tmp_path, save_steps=2)
    weights = load_file(harness.weights_file())
    assert all(torch.equal(value, weights[key]) for key, value in method.teacher.timm_model.state_dict().items())
    assert not method.teacher.training and not any(p.requires_grad for p in method.teacher.parameters())
    teacher = {id(p) for p in method.teacher.parameters()}
    assert not teacher & {id(p) for p in method.parameters()}
    saved = load_file(next(tmp_path.glob("checkpoints/*/method.safetensors")))
    assert {key.split(".")[0] for key in saved} == {"network", "projections", "queue"}


def test_the_teacher_follows_to_other_types():
    method = distill().double()
    assert {p.dtype for p in method.teacher.parameters()} == {torch.float64}
    method.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(method(image())["loss"])


def test_card_names_the_teacher_and_its_license(tmp_path):
    """The published files name model, file and license, without a folder of this machine, and hold no weight of the teacher."""
    out = tmp_path / "out"
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--max-steps", 1, "--method", "distill", *harness.needed_flags("distill"),
                "--output-dir", out, draw_training=lambda *_: None, draw_features=lambda *_: None)  # fmt: skip
    card, config = (out / "README.md").read_text().replace("\\", ""), json.loads((out / "config.json").read_text())
    assert "| teacher | test_resnet, weights test_resnet.safetensors |" in card
    assert "| license of timm's weights for the teacher | apache-2.0 |" in card
    assert config["contrast"]["teacher"] == "test_resnet" and "teacher_weights" not in config["contrast"]
    folder = str(harness.weights_file()).rsplit("/", 1)[0]
    assert not any(folder in file.read_text() for file in out.glob("*.json*") if file.name != "run.json") and folder not in card
    assert not any("teacher" in key or "projection" in key for key in load_file(out / "model.safetensors"))


@pytest.mark.parametrize(("flags", "message"), [
    ((), "--method distill needs a teacher"),
    (("--teacher", "resnet1"), "--teacher is 'resnet1'; expected a model of timm"),
    (("--teacher", "test_resnet"), "--teacher is test_resnet without weights; expected --teacher-weights FILE"),
    (("--teacher", "test_resnet", "--teacher-weights", "FILE", "--teacher-pretrained"), "are both given; expected one of them"),
    (("--teacher", "test_resnet", "--teacher-weights", "w.pth"), "--teacher-weights is w.pth; expected a .safetensors file"),
    (("--teacher", "test_resnet", "--teacher-weights", "w.safetensors"), "--teacher-weights is w.safetensors, which does not exist"),
    (("--teacher", "test_vit", "--teacher-weights", "FILE"), "holds no weights that fit timm's test_vit"),
])  # fmt: skip
def test_teachers_that_cannot_teach(tmp_path, flags, message):
    flags = [harness.weights_file() if flag == "FILE" else flag for flag in flags]
    assert message in harness.rejected("pretrain", *harness.TINY, *harness.SHORT, "--method", "distill", *flags,
                                       "--output-dir", tmp_path / "out")  # fmt: skip


def test_other_methods_read_no_teacher(tmp_path):
    said = harness.rejected("pretrain", *harness.TINY, "--method", "simclr", "--teacher", "test_resnet", "--output-dir", tmp_path / "out")
    assert "--teacher is not an option of --method simclr" in said


def test_a_teacher_is_compared_by_its_weights(tmp_path):
    """A resumed run accepts the same weights at another path, and rejects others."""
    flags = (*harness.TINY, *harness.SHORT, "--max-steps", 1, "--method", "distill", "--teacher", "test_resnet", "--output-dir",
             tmp_path / "out", "--resume")  # fmt: skip
    weights = load_file(harness.weights_file())
    save_file(weights, tmp_path / "same.safetensors")
    save_file({key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}, tmp_path / "other.safetensors")
    harness.run("pretrain", *flags, "--teacher-weights", harness.weights_file(), pictures=False)
    harness.run("pretrain", *flags, "--teacher-weights", tmp_path / "same.safetensors", pictures=False)
    assert "--teacher-weights" in harness.rejected("pretrain", *flags, "--teacher-weights", tmp_path / "other.safetensors")


def test_images_of_other_bands(tmp_path):
    """The first layer of the teacher is adapted by timm, and its images have the statistics of the student's."""
    torch.manual_seed(0)
    bands = {"num_channels": 4, "image_mean": [0.2] * 4, "image_std": [0.3] * 4}
    config = build_config("test_resnet", decoder_channels=16, image_size=32, heads=[], **bands)
    method = Distill(MsclForPreTraining(config), **harness.needed_options("distill"), queue_size=8)
    assert next(method.teacher.parameters()).shape[1] == 4 and torch.equal(method.teacher_mean, method.image_mean)
    assert torch.isfinite(method(torch.rand(2, 4, 32, 32) * 255)["loss"])


def test_large_grids_are_sampled(monkeypatch):
    """Above MOST_POSITIONS, the loss is that of as many positions, the same of student and teacher."""
    method = distill(token_loss="relations")
    student, teacher = (F.normalize(torch.randn(2, 9, 5), dim=2) for _ in range(2))
    monkeypatch.setattr("mscl_hf.methods.distill.MOST_POSITIONS", 4)
    torch.manual_seed(3)
    chosen = torch.randperm(9)[:4]
    torch.manual_seed(3)
    parts = student[:, chosen], teacher[:, chosen]
    expected = similarity_divergence(*parts, *parts, exclude_self=True)
    torch.testing.assert_close(method.loss_of_tokens(student, teacher), expected)
