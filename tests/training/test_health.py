"""Health checks: closed forms, warnings about collapse only, and training that does not depend on them."""

import json
import math

import harness
import pytest
import torch
import torch.nn.functional as F

from mscl_hf.training import checkpoint_folder, health
from mscl_hf.training.health import HealthCheck, draw_features, effective_rank, embedding_spaces, spread, warnings_of
from mscl_hf.training.log import read_log, write_log
from mscl_hf.training.loop import check_untrained
from mscl_hf.training.summary import read_checks


def on_the_sphere(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("dim", [2, 5, 16])
def test_effective_rank_counts_equal_directions(dim):
    """Plus and minus each of k axes have rank k, in any number of dimensions and after a rotation."""
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(1)))[0]
    for k in range(1, dim + 1):
        axes = torch.eye(dim)[:k]
        vectors = torch.cat([axes, -axes])
        assert effective_rank(vectors) == pytest.approx(k, rel=1e-4)
        assert effective_rank(vectors @ turn) == pytest.approx(k, rel=1e-4)


def test_effective_rank_of_one_point_and_of_a_line():
    """Equal vectors and two opposite points have rank 1; unequal axes follow the closed form of their entropy."""
    assert effective_rank(torch.ones(10, 4) / 2) == pytest.approx(1)
    line = F.normalize(torch.ones(1, 4), dim=1)
    assert effective_rank(torch.cat([line, -line])) == pytest.approx(1, abs=1e-3)
    a, b = 3.0, 1.0  # singular values in this ratio: p = 3/4 and 1/4
    vectors = torch.tensor([[a, 0], [-a, 0], [0, b], [0, -b]])
    assert effective_rank(vectors) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-4)


def test_effective_rank_ignores_a_shift():
    """A common offset of all embeddings has no effect."""
    vectors = on_the_sphere(500, 8)
    assert effective_rank(vectors + 10) == pytest.approx(effective_rank(vectors), rel=1e-3)


@pytest.mark.parametrize("dim", [4, 64])
def test_spread_is_one_all_over_the_sphere_and_zero_in_a_point(dim):
    """Uniform unit vectors have variance 1/D in each dimension."""
    assert spread(on_the_sphere(20000, dim)) == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, dim) / dim**0.5) == 0
    half = torch.zeros(1000, dim)
    half[:500, 0], half[500:, 0] = 1, -1  # one dimension of D varies, with deviation 1
    assert spread(half) == pytest.approx(dim**0.5 / dim, rel=1e-2)


def test_warnings_fire_on_collapse_and_only_then():
    """A point, a line and a tiny cloud give a warning that names the space; a healthy cloud gives none."""

    def warnings(vectors):
        return warnings_of({"effective_rank_pixel": effective_rank(vectors), "spread_pixel": spread(vectors), "probe_mean_iou": 0.0})

    healthy = on_the_sphere(512, 16)
    assert warnings(healthy) == []
    axis = F.normalize(torch.ones(1, 16), dim=1)
    tiny = F.normalize(axis + 1e-3 * healthy, dim=1)
    assert [("nearly equal" in s, "pixel" in s) for s in warnings(tiny)] == [(True, True)]
    line = axis * torch.tensor([1.0, -1.0]).repeat(256)[:, None]
    assert len(warnings(line)) == 1 and "collapse to a line" in warnings(line)[0]
    assert len(warnings(axis.expand(512, -1))) == 2


def test_warnings_about_a_falling_probe_and_a_lost_gradient():
    """A probe clearly below its best and a vanishing or exploding gradient give warnings; small changes do not."""
    assert warnings_of({"probe_mean_iou": 0.19, "grad_norm": 2.0}, best_probe=0.2) == []
    assert "fell to 0.100 from 0.200" in warnings_of({"probe_mean_iou": 0.1}, best_probe=0.2)[0]
    assert "stalled" in warnings_of({"grad_norm": 1e-9})[0]
    assert "diverge" in warnings_of({"grad_norm": 1e5})[0]


def test_the_check_remembers_its_best_probe(monkeypatch):
    """The second call warns that the probe fell."""
    probes, sentences = iter((0.5, 0.1)), []
    monkeypatch.setattr(HealthCheck, "_probe", lambda *_: next(probes))
    health_check = check(warn=sentences.append)
    method = harness.pretraining()
    assert [health_check(method, step)["probe_mean_iou"] for step in (1, 2)] == [0.5, 0.1]
    assert any("step 2" in sentence and "fell to" in sentence for sentence in sentences)


def check(images=None, **more) -> HealthCheck:
    return HealthCheck(harness.scenes(4), harness.scenes(4, seed=5), images or harness.scenes(), 32, 32, **more)


def test_row_has_every_space_that_trains():
    """Backbone and heads."""
    method = harness.pretraining().eval()
    with torch.no_grad():
        assert set(check()(method, 1)) == {"probe_mean_iou"} | {
            f"{what}_{space}" for what in ("effective_rank", "spread") for space in ("backbone", "global", "local", "pixel")
        }


def test_few_images_give_no_warning():
    """Two images span one direction with any network: their global embeddings are not measured."""
    sentences = []
    method = harness.pretraining().eval()
    with torch.no_grad():
        row = check(harness.scenes().select([0, 1]), warn=sentences.append)(method, 1)
    assert "effective_rank_global" not in row and "effective_rank_local" in row
    assert not [sentence for sentence in sentences if "global" in sentence]


def test_warning_names_the_step_and_the_space():
    """A constant global head gives a warning."""
    sentences = []
    method = harness.pretraining().eval()
    with torch.no_grad():
        method.network.global_head.layers[2].weight.zero_()
        method.network.global_head.layers[2].bias.fill_(1.0)
        row = check(warn=sentences.append)(method, 30)
    assert row["spread_global"] == pytest.approx(0, abs=1e-5)
    assert [s for s in sentences if s.startswith("step 30: the global embeddings")]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_health_checks_change_no_bit_of_training(tmp_path, stage):
    """A check after each step that also draws random numbers leaves all weights and losses equal."""
    health = check()

    def health_check(method, step, row):
        torch.rand(7)
        return health(method, step, row) if stage == "pretrain" else {"norm": float(sum(p.norm() for p in method.parameters()))}

    rows = {}
    for name, given in (("without", {}), ("with", {"health_check": health_check, "health_steps": 1})):
        method = harness.pretraining() if stage == "pretrain" else harness.finetuning()
        harness.train(method, harness.training_data(stage), tmp_path / name, max_steps=4, logging_steps=1, **given)
        rows[name] = [(row["loss"], row["grad_norm"]) for row in read_log(tmp_path / name / "log.jsonl") if "loss" in row]
    assert rows["with"] == rows["without"]
    files = [(checkpoint_folder.complete(tmp_path / name)[-1] / "method.safetensors").read_bytes() for name in rows]
    assert files[0] == files[1]


def test_every_line_is_json_that_others_can_read(tmp_path):
    """The log has no NaN and no Infinity, which strict JSON parsers reject."""
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, check(), 2)

    def forbid(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=forbid) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe_mean_iou" in row] == [2, 4, 6]


def test_what_was_learnt_is_read_from_the_log(tmp_path):
    """The first and the last check of all stages; a collapse is named, and a run without masks has no probe."""
    assert read_checks(tmp_path).in_sentences() == [] and read_checks(tmp_path).probe is None
    space = {"effective_rank_local": 40.0, "spread_local": 0.8}
    (tmp_path / "stage1").mkdir()
    write_log(tmp_path / "stage1", [{"step": 0, "probe_mean_iou": 0.1, **space}, {"step": 3, "loss": 2.0}])
    write_log(tmp_path, [{"step": 6, "loss": 1.0}, {"step": 6, "probe_mean_iou": 0.3, **space}])
    learnt = read_checks(tmp_path)
    assert learnt.probe == (0.1, 0.3)
    assert learnt.in_sentences() == [
        "linear probe mean IoU: 0.100 before training, 0.300 after it",
        "health: effective rank and spread of the embeddings are local 40 and 0.80: no collapse.",
    ]
    write_log(tmp_path, [{"step": 6, **space, "spread_local": 0.01}])
    (sentence,) = read_checks(tmp_path).in_sentences()
    assert "local 40 and 0.01: the local embeddings are nearly equal" in sentence


def test_the_check_before_training_is_step_0_and_warns_of_nothing(tmp_path):
    """Random features are measured in the same way, and training starts from the same weights; a resumed run measures nothing before."""
    sentences = []
    health = check()
    health.warn = sentences.append
    method = harness.pretraining()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    check_untrained(health, method, tmp_path, harness.fresh_accelerator())
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items()) and method.training
    (row,) = read_log(tmp_path / "log.jsonl")
    assert row["step"] == 0 and "probe_mean_iou" in row and sentences == [] and health.best_probe == 0
    harness.train(method, harness.training_data(), tmp_path, health, 3)
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if "probe_mean_iou" in row] == [0, 3, 6]
    check_untrained(health, method, tmp_path, harness.fresh_accelerator())
    assert read_log(tmp_path / "log.jsonl") == rows


@pytest.mark.parametrize("losses, decodes", [("global+local+pixel", True), ("global+local", False)])
def test_the_picture_shows_the_last_part_that_is_trained(tmp_path, monkeypatch, losses, decodes):
    """The map of the decoder where a loss reads it, else that of the backbone; of squares at the base size, not of training crops."""
    drawn = []
    monkeypatch.setattr(health, "feature_maps_sheet", lambda images, masks, maps, *rest: drawn.append((images, masks, maps)))
    method = harness.train(harness.pretraining(contrast={"losses": losses}, base_size=48), harness.training_data(), tmp_path, max_steps=1)
    draw_features(method, harness.scenes(3), tmp_path, count=2)
    ((images, masks, maps),) = drawn
    network = method.network
    assert len(images) == len(masks) == len(maps) == 2 and images[0].shape == (48, 48, 3) and masks[0].shape == (48, 48)
    pixels = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images])
    with torch.no_grad():
        stages = network.backbone(method.normalize(pixels)).feature_maps
        expected = network.decoder(list(stages)) if decodes else stages[-1]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


def test_only_heads_of_the_loss_are_measured():
    """Also before the first step, when nothing is frozen yet."""
    pixels = torch.rand(2, 3, 64, 64) * 255
    for losses in ("global+local+pixel", "local+pixel", "global"):
        method = harness.pretraining(contrast={"losses": losses}).eval()
        assert embedding_spaces(method, pixels).keys() == {"backbone", *losses.split("+")}
