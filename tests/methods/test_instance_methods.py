"""SimCLR, InstDisc, MoCo, BYOL, SimSiam, CMC: golden values, closed forms, stopped gradients, teachers, banks."""

import copy
import math

import harness
import pytest
import torch
import torch.nn.functional as F
from golden import fill, u

from mscl_hf.losses import (
    MultiScaleLoss,
    cosine_to_target,
    global_contrast,
    info_nce,
    instance_nce,
    instance_softmax,
    nce_normalizer,
    nt_xent,
)
from mscl_hf.methods import METHODS, RunSize, create_method
from mscl_hf.methods.teacher import EMATeacher, cosine_momentum
from mscl_hf.models.heads_mscl import unit
from mscl_hf.models.modeling_mscl import MsclForPreTraining

IMAGES = 10


def make(name, seed=0, **options):
    method_cls = METHODS[name]
    torch.manual_seed(seed)
    backbone, bn_views = "resnet18" if method_cls.two_towers else "test_resnet", method_cls.bn_views or "joint"
    config = harness.config(backbone, method_cls.two_towers, heads=[], bn_views=bn_views)
    if "images" in method_cls.__init__.__code__.co_varnames:
        options["images"] = IMAGES
    return method_cls(MsclForPreTraining(config), **options).train()


def batch(seed=0, count=4, size=harness.SIZE):
    generator = torch.Generator().manual_seed(seed)
    names, shape = ("view1", "view2", "image"), (count, 3, size, size)
    views = {name: torch.randint(256, shape, dtype=torch.uint8, generator=generator) for name in names}
    return views | {"index": torch.randperm(IMAGES, generator=generator)[:count]}


def step(method, batch, lr=0.1):
    """The loss of a step of plain gradient descent, and the loop's nudge behind it."""
    loss = method(**batch)["loss"]
    loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= lr * p.grad
                p.grad = None
    method.after_step(0.5)
    return float(loss.detach())


# -- losses ------------------------------------------------------------------------------------------------------------------


def test_golden_values():
    """Numbers from an independent program: NT-Xent, MoCo's InfoNCE, InstDisc's four, BYOL, SimSiam, CMC within the batch."""
    a, b = u(fill((4, 8))), u(fill((4, 8), 0.53, 0.29))
    assert nt_xent(a, b, 0.1).item() == pytest.approx(6.920652246898, abs=1e-9)
    q, k, queue = u(fill((2, 4))), u(fill((2, 4), 0.53, 0.2)), u(fill((5, 4), 0.9, 0.31))
    assert info_nce(q, k, queue, 0.2).item() == pytest.approx(2.093844183873, abs=1e-9)
    assert info_nce(q, k, queue, 0.07).item() == pytest.approx(5.115381827166, abs=1e-9)
    v, bank, own, draws = u(fill((4,)))[None], u(fill((10, 4), 0.71, 0.13)), torch.tensor([2]), torch.tensor([[5, 7, 9]])
    normalizer = nce_normalizer(v, own, bank, draws, 0.07)
    assert normalizer.item() == pytest.approx(2309850.500099, rel=1e-11)
    assert instance_nce(v, own, bank, draws, normalizer, 0.07).item() == pytest.approx(0.560289716188, abs=1e-5)  # which is without eps
    assert instance_softmax(v, own, bank, 0.07).item() == pytest.approx(0.995368936360, abs=1e-9)
    sampled = instance_softmax(v, torch.tensor([0]), bank[[2, 5, 7, 9]], 0.07)
    assert sampled.item() == pytest.approx(0.000382618835, abs=1e-9)
    p1, p2 = fill((2, 4)), fill((2, 4), 0.53, 0.2)
    z1, z2 = fill((2, 4), 0.9, 0.31), fill((2, 4), 0.2, 0.6)
    cosines = cosine_to_target(p1, z2) + cosine_to_target(p2, z1)
    assert (4 - 2 * cosines).item() == pytest.approx(2.358247087227, abs=1e-9)
    assert (-cosines / 2).item() == pytest.approx(-0.410438228193, abs=1e-9)
    light, color = u(fill((2, 4))), u(fill((2, 4), 0.53, 0.2))
    assert 2 * global_contrast(light, color, 0.07, symmetric=True).item() == pytest.approx(0.135458718813, abs=1e-9)


def test_closed_forms():
    """Key = query and an orthogonal queue: log(1 + K e^(-1/t)); one image: NT-Xent 0; an empty queue: 0; parallel and opposite: 1, -1."""
    axes = torch.eye(12, dtype=torch.float64)
    assert info_nce(axes[:2], axes[:2], axes[2:], 0.2).item() == pytest.approx(math.log(1 + 10 * math.exp(-5)), abs=1e-12)
    assert nt_xent(axes[:1], axes[1:2], 0.1).item() == pytest.approx(0, abs=1e-12)
    assert info_nce(axes[:3], axes[3:6], axes[:0], 0.07).item() == pytest.approx(0, abs=1e-12)
    z = torch.randn(3, 5, dtype=torch.float64)
    assert cosine_to_target(2 * z, z).item() == pytest.approx(1) and cosine_to_target(-z, 3 * z).item() == pytest.approx(-1)
    equal = torch.ones(7, 3, dtype=torch.float64) / 3**0.5
    assert instance_softmax(equal[:2], torch.tensor([0, 1]), equal, 0.07).item() == pytest.approx(math.log(7), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_info_nce_and_nt_xent_with_loops(count):
    """Against the formulas with loops, value and gradients; queries see their own key and the negatives, no other query's key; in NT-Xent
    each vector learns as a query and as a key."""
    torch.manual_seed(count)
    a, b, n = (F.normalize(torch.randn(m, 6, dtype=torch.float64), dim=1).requires_grad_() for m in (count, count, 7))
    wanted = sum(torch.stack([a[i] @ b[i], *(n @ a[i])]).div(0.2).logsumexp(0) - a[i] @ b[i] / 0.2 for i in range(count)) / count
    found = info_nce(a, b, n, 0.2)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
    for one, other in zip(torch.autograd.grad(found, (a, b, n)), torch.autograd.grad(wanted, (a, b, n))):
        torch.testing.assert_close(one, other)
    z = [*a, *b]
    terms = []
    for i in range(2 * count):
        others = torch.stack([z[i] @ z[j] for j in range(2 * count) if j != i]) / 0.1
        terms.append(others.logsumexp(0) - z[i] @ z[(i + count) % (2 * count)] / 0.1)
    wanted, found = sum(terms) / len(terms), nt_xent(a, b, 0.1)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-12)
    for one, other in zip(torch.autograd.grad(found, (a, b)), torch.autograd.grad(wanted, (a, b))):
        torch.testing.assert_close(one, other)
    assert nt_xent(b, a, 0.1).item() == pytest.approx(nt_xent(a, b, 0.1).item(), abs=1e-12)


def test_no_gradient_reaches_targets_and_banks():
    """BYOL's and SimSiam's targets stand still, InstDisc's gradient with regard to v is (sum_i p_i m_i - m_y) / t."""
    p, z = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    cosine_to_target(p, z).backward()
    assert p.grad is not None and z.grad is None
    v, bank = (F.normalize(torch.randn(n, 4, dtype=torch.float64), dim=1) for n in (1, 9))
    v.requires_grad_()
    instance_softmax(v, torch.tensor([3]), bank, 0.1).backward()
    share = (bank @ v[0] / 0.1).softmax(0).detach()
    torch.testing.assert_close(v.grad[0], (share @ bank - bank[3]) / 0.1)


# -- state -------------------------------------------------------------------------------------------------------------------


def test_momentum_schedule():
    """BYOL's cosine from 0.996 to 1 at quarters of the run."""
    found = [cosine_momentum(0.996, done) for done in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([0.996, 0.996585786, 0.998, 0.999414214, 1], abs=1e-9)


def test_moco_moves_its_teacher_as_the_release_does():
    """The release moves it in the middle of a step, before the keys: from equal weights the same sequence of keys and losses."""
    ours = make("moco_v2", queue_size=12, ema_momentum=0.9)
    theirs = copy.deepcopy(ours)
    theirs.after_step = lambda done: None
    for number in range(4):
        theirs.teacher.update(theirs.student(), 0.9)
        one, other = step(ours, batch(number)), step(theirs, batch(number))
        assert one == pytest.approx(other, abs=1e-5)
    assert one > 0.1


def test_teacher_of_a_run_with_a_decoder_holds_it():
    """--attach decoder: heads stand behind it, so it is trained, followed and handed on."""
    config = harness.config(heads=[], attach="decoder")
    method = METHODS["moco_v2"](MsclForPreTraining(config), queue_size=8)
    step(method, batch(1))
    method(**batch())["loss"].backward()
    assert all(p.grad is not None for p in method.network.decoder.parameters())
    assert set(method.teacher.parts) == {"backbone", "decoder", "head"}


# -- what tells the methods apart --------------------------------------------------------------------------------------------


def test_simsiam_needs_its_stopped_gradient():
    """Without it the encoder's gradient is another one; the loss lies in -1 .. 1, the predictor's rate stays constant."""
    gradients = []
    for stopped in (True, False):
        method = make("simsiam")
        data = batch()
        z1, z2 = method.encode_views(method.project, data["view1"], data["view2"])
        p1, p2 = method.encode_views(method.predictor, z1, z2)
        targets = (z1.detach(), z2.detach()) if stopped else (z1, z2)
        loss = -sum(F.cosine_similarity(p, z).mean() for p, z in ((p1, targets[1]), (p2, targets[0]))) / 2
        loss.backward()
        gradients.append(next(method.network.backbone.parameters()).grad.clone())
        if stopped:
            found = make("simsiam")
            value = found(**data)["loss"]
            value.backward()
            assert value.item() == pytest.approx(loss.item(), abs=1e-6) and -1 <= value.item() <= 1
            torch.testing.assert_close(next(found.network.backbone.parameters()).grad, gradients[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-5


def test_heads_are_as_published():
    """Layers, norms and widths: what a ResNet-50 (2,048 channels) would get, seen here at the width of the backbone K."""
    k = make("simclr").network.backbone.channels[-1]

    def shape(head):
        return [(type(m).__name__, *m.weight.shape[:1]) if getattr(m, "weight", None) is not None else type(m).__name__ for m in head[2]]

    assert shape(make("simclr").head) == [("Linear", k), ("BatchNorm1d", k), "ReLU", ("Linear", 128), ("BatchNorm1d", 128)]
    assert not make("simclr").head[2][-1].bias.requires_grad and make("simclr").head[2][1].bias.requires_grad
    assert shape(make("moco_v1", queue_size=8).head) == [("Linear", 128)]
    assert shape(make("moco_v2", queue_size=8).head) == [("Linear", k), "ReLU", ("Linear", 128)]
    assert shape(make("byol").projector) == [("Linear", 2 * k), ("BatchNorm1d", 2 * k), "ReLU", ("Linear", 256)]
    simsiam = make("simsiam")
    assert [type(m).__name__ for m in simsiam.projector[2]] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert not simsiam.projector[2][-1].affine and simsiam.projector[2][0].bias is None
    assert [m.out_features for m in simsiam.predictor if isinstance(m, torch.nn.Linear)] == [k // 4, k]
    assert [type(m).__name__ for m in make("instdisc").head[2]] == ["Linear"]


def test_instdisc_uses_the_bank_of_the_step_before():
    """The loss sees the bank as it was; afterwards only the rows of the batch have moved, and towards the new vectors."""
    method, data = make("instdisc"), batch()
    bank = method.instance.bank
    before = bank.rows.clone()
    first = method(**data)["loss"].item()
    assert torch.equal((bank.rows != before).any(1).nonzero()[:, 0], data["index"].sort().values)
    bank.rows.copy_(before)
    assert method(**data)["loss"].item() == pytest.approx(first, abs=1e-4)
    assert method(**data)["loss"].item() < first and not bank.rows.requires_grad


def test_nce_keeps_its_first_normalizer():
    """Z is that of the first batch, for good; in evaluation nothing is kept."""
    method = make("instdisc", bank_loss="nce", nce_draws=50)
    method.eval()
    method(**batch())
    assert method.instance.normalizer == 0
    method.train()
    method(**batch())
    first = method.instance.normalizer.clone()
    method(**batch(1))
    assert first > 0 and method.instance.normalizer == first


def test_proximal_term_pulls_towards_the_remembered_embedding():
    """The loss grows by its weight times the mean squared distance to the rows."""
    data, plain, more = batch(), make("instdisc"), make("instdisc", proximal=30.0)
    rows, vectors = plain.instance.bank.read()[data["index"]], plain.embed(data["image"])
    wanted = 30 * (vectors - rows).square().sum(1).mean().item()
    assert more(**data)["loss"].item() - plain(**data)["loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_cmc_towers_see_lightness_and_color_only():
    """A gray image has constant color: whatever its pixels, the color tower gives the same; swapping the roles keeps the loss."""
    method = make("cmc", bank_loss="batch").eval()
    gray = torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8).expand(-1, 3, -1, -1)
    light, color = method.embed(gray)
    assert (color - color[:1]).abs().max() < 1e-4 and (light - light[:1]).abs().max() > 1e-3
    data = batch()
    a, b = method.embed(data["image"])
    both = [2 * global_contrast(x, y, 0.07, symmetric=True).item() for x, y in ((a, b), (b, a))]
    assert both[0] == pytest.approx(both[1], abs=1e-5) and method(**data)["loss"].item() == pytest.approx(both[0], abs=1e-5)


def test_two_crops_through_joint_or_separate_statistics():
    """--bn-views: one forward of both views, or one each; without batch statistics the two agree."""
    found = {}
    for how in ("joint", "separate"):
        torch.manual_seed(0)
        method = METHODS["simclr"](MsclForPreTraining(harness.config(heads=[], bn_views=how)))
        found[how] = method.train()(**batch())["loss"].item(), method.eval()(**batch())["loss"].item()
    assert abs(found["joint"][0] - found["separate"][0]) > 1e-4
    torch.manual_seed(0)
    joint, separate = (METHODS["simclr"](MsclForPreTraining(harness.config(heads=[], bn_views=how))) for how in ("joint", "separate"))
    separate.load_state_dict(joint.state_dict())
    assert joint.eval()(**batch())["loss"].item() == pytest.approx(separate.eval()(**batch())["loss"].item(), abs=1e-5)


def test_embeddings_that_are_watched_are_unit_or_normalized_later():
    """Each method names the spaces in which a collapse would show."""
    for name in ("simclr", "moco_v2", "byol", "simsiam", "instdisc", "cmc"):
        method = make(name, **({"queue_size": 8} if name.startswith("moco") else {})).eval()
        spaces = method.embeddings(batch()["image"])
        assert len(spaces) >= 2 and all(vectors.shape[0] == 4 for vectors in spaces.values())
        vectors = [v for key, v in spaces.items() if key != "backbone"]
        assert all(torch.allclose(v.norm(dim=-1), torch.ones(4), atol=1e-4) for v in vectors)


def test_unit_and_teacher_take_no_part_in_a_graph():
    """A teacher's output needs no gradient even where its input does."""
    method = make("moco_v2", queue_size=8)
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not unit(method.teacher(image)).requires_grad and isinstance(method.teacher, EMATeacher)


# -- sizes -------------------------------------------------------------------------------------------------------------------


def created(name, scale, **given):
    said = []
    method_cls = METHODS[name]
    config = harness.config("resnet18" if method_cls.two_towers else "test_resnet", method_cls.two_towers, heads=[])
    return create_method(name, method_cls, MsclForPreTraining(config), given, MultiScaleLoss(), scale, said.append), said


def test_queues_and_momenta_fit_small_data_and_short_runs():
    """367 images, 200 steps: whole batches of at most half of the images, a teacher that moves; both are said in words."""
    method, said = created("moco_v2", RunSize(367, 16, 200))
    assert len(method.queue.rows) == 176 and method.ema_momentum == 0.9
    assert any("176" in line and "367" in line and "65536" in line for line in said) and any("0.9" in line for line in said)
    method, said = created("moco_v2", RunSize(367, 16, 200), queue_size=64, ema_momentum=0.99)
    assert len(method.queue.rows) == 64 and method.ema_momentum == 0.99 and not said


def test_published_sizes_at_published_scale():
    """1.28 million images and a million steps: the paper's queue, momentum and temperature, and nothing to say."""
    method, said = created("moco_v1", RunSize(1_281_167, 256, 1_000_000))
    assert len(method.queue.rows) == 65536 and method.ema_momentum == 0.999 and not said
    method, said = created("instdisc", RunSize(60_000, 256, 10))
    assert len(method.instance.bank.rows) == 60_000 and method.instance.temperature == 0.07 and not said
    method, said = created("instdisc", RunSize(37, 16, 10))
    assert method.instance.temperature == 0.1 and len(said) == 1


def test_queues_that_cannot_work_are_rejected_or_named():
    """Shorter than a batch: rejected. Longer than the data: said, with the length that would do."""
    with pytest.raises(ValueError, match="--queue-size is 8; expected at least 16"):
        created("moco_v2", RunSize(367, 16, 200), queue_size=8)
    _, said = created("moco_v2", RunSize(367, 16, 200), queue_size=4096, ema_momentum=0.9)
    assert len(said) == 1 and "11.2 times" in said[0] and "176 avoids" in said[0]
    with pytest.raises(ValueError, match="Leave out --streaming"):
        created("instdisc", RunSize(None, 16, 200))
    assert created("cmc", RunSize(None, 16, 200), bank_loss="batch")[0].banks is None  # which remembers nothing


@pytest.mark.parametrize("name", ["moco_v2", "byol"])
def test_a_teacher_has_the_batch_statistics_of_its_own_batches(name):
    """In training its BatchNorms normalize by the batch, as the student's, and keep running statistics; in evaluation by those."""
    method = make(name, **({"queue_size": 8} if name == "moco_v2" else {}))
    norms = [m for m in method.teacher.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.running_mean.clone() for m in norms]
    method(**batch())
    assert all(m.training and not torch.equal(old, m.running_mean) for old, m in zip(before, norms))
    before = [m.running_mean.clone() for m in norms]
    method.eval()(**batch(1))
    assert all(torch.equal(old, m.running_mean) for old, m in zip(before, norms))


def test_predictors_are_as_published():
    """BYOL's is its projector's twin, SimSiam's a bottleneck; both normalize their hidden layer and not the output."""
    k = make("simsiam").network.backbone.channels[-1]
    for name, hidden, out in (("byol", 2 * k, 256), ("simsiam", k // 4, k)):
        linear, norm, relu, last = make(name).predictor
        assert isinstance(norm, torch.nn.BatchNorm1d) and isinstance(relu, torch.nn.ReLU) and norm.affine
        assert (linear.out_features, norm.num_features, last.out_features) == (hidden, hidden, out) and last.bias is not None


def test_byol_and_moco_are_their_formulas():
    """Which view goes through which network, and in a forward of its own: BYOL's 2 - 2 cos both ways, MoCo's keys of the second view."""
    data = batch()
    for name in ("byol", "moco_v2"):
        method = make(name, **({"queue_size": 8} if name == "moco_v2" else {}))
        with torch.no_grad():
            for p in method.teacher.parameters():
                p.add_(0.02 * torch.randn_like(p))
            if name == "moco_v2":
                method.queue.write(torch.randn(8, 128))
        other = copy.deepcopy(method)

        def taught(view):
            return other.teacher(other.normalize(data[view]))

        if name == "byol":
            pairs = (("view1", "view2"), ("view2", "view1"))
            wanted = sum(2 - 2 * torch.cosine_similarity(other.predictor(other.project(data[v])), taught(w)).mean() for v, w in pairs)
        else:
            wanted = info_nce(other.embed(data["view1"]), unit(taught("view2")), other.queue.read(), 0.2)
        assert method(**data)["loss"].item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["instdisc", "cmc", "moco_v2"])
def test_evaluation_writes_no_memory(name):
    """A loss that is only looked at leaves queues and banks as they are."""
    method = make(name, **({"queue_size": 8} if name == "moco_v2" else {})).eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method(**batch())
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_cmc_matches_each_tower_with_the_other_ones_memory():
    """Lightness is looked up among remembered colors and color among lightnesses; each bank remembers its own tower."""
    method, data = make("cmc"), batch()
    (light, color), index = method.embed(data["image"]), data["index"]
    before = [loss.bank.rows.clone() for loss in method.banks]
    wanted = instance_softmax(light, index, before[1], 0.07) + instance_softmax(color, index, before[0], 0.07)
    assert method(**data)["loss"].item() == pytest.approx(wanted.item(), abs=1e-4)
    for loss, rows, vectors in zip(method.banks, before, (light, color)):
        assert torch.equal((loss.bank.rows != rows).any(1).nonzero()[:, 0], index.sort().values)
        moved = F.normalize(rows[index] + vectors.detach(), dim=1)
        torch.testing.assert_close(loss.bank.rows[index], moved, atol=1e-4, rtol=1e-4)
