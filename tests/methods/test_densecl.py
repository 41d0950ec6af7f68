"""DenseCL: the match by the backbone's features, the dense loss, its queue, and the method around them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from golden import fill, u, unit
from tiny import batch_for, hold_still, losses_of_training, network

from mscl_hf.losses import dense_contrast, local_contrast, nearest_positions
from mscl_hf.methods.densecl import DenseCL


def densecl(**options) -> DenseCL:
    return DenseCL(network(), **{"embed_dim": 16, "queue_size": 32, **options})


def by_loops(anchors, keys, match, negatives, temperature):
    """The mean over all places of -log of the positive's share among it and the negatives."""
    terms = []
    for image, s in itertools.product(range(len(anchors)), range(anchors.shape[1])):
        scores = [float(anchors[image, s] @ key) / temperature for key in (keys[image, match[image, s]], *negatives)]
        terms.append(math.log(sum(map(math.exp, scores))) - scores[0])
    return sum(terms) / len(terms)


def test_goldens():
    """Match and dense loss of an independent implementation."""
    match = nearest_positions(fill((1, 4, 5), 0.3, 0.2), fill((1, 4, 5), 0.6, 0.1))
    assert match.tolist() == [[0, 2, 3, 2]]
    r, t, queue = u(fill((1, 4, 3))), u(fill((1, 4, 3), 0.53, 0.2)), u(fill((5, 3), 0.9, 0.31))
    assert float(dense_contrast(r, t, match, queue, 0.2)) == pytest.approx(5.168288071218, abs=1e-9)


def test_match_is_by_angle_and_within_the_image():
    """The largest cosine in the same image's other view: neither a longer vector nor another image's draws it away; no gradient."""
    first, second = unit(3, 4, 5) * 3, unit(3, 6, 5, seed=1)
    second[:, 2] *= 100
    first.requires_grad_()
    match = nearest_positions(first, second)
    for image, s in itertools.product(range(3), range(4)):
        cosines = [float(F.cosine_similarity(first[image, s].detach(), second[image, t], dim=0)) for t in range(6)]
        assert int(match[image, s]) == max(range(6), key=cosines.__getitem__)
    assert not match.is_floating_point() and not torch.equal(match, (first.detach() @ second.transpose(1, 2)).argmax(2))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_dense_contrast_equals_loops(temperature):
    """Each place against its positive and the negatives, and nothing else of its image or of others; the right gradient."""
    anchors, keys, negatives = unit(2, 4, 3), unit(2, 5, 3, seed=1), unit(7, 3, seed=2)
    match = torch.tensor([[0, 4, 4, 1], [2, 2, 0, 3]])
    found = dense_contrast(anchors, keys, match, negatives, temperature)
    assert float(found) == pytest.approx(by_loops(anchors, keys, match, negatives, temperature), abs=1e-9)
    assert torch.autograd.gradcheck(lambda a: dense_contrast(a, keys, match, negatives, temperature), anchors.requires_grad_())


def test_without_negatives_there_is_nothing_to_learn():
    """While the queue is empty the dense loss is zero, and so is its gradient, in bfloat16 too."""
    x = unit(2, 4, 3).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dense_contrast(x, unit(2, 4, 3, seed=1).float(), torch.zeros(2, 4, dtype=torch.long), torch.zeros(0, 3), 0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6) and x.grad.abs().max() < 1e-6


def test_order_of_the_keys_places_does_not_matter():
    """Permuting the places of the key view, features and embeddings alike, leaves DenseCL's loss; that of the same blocks changes."""
    features, embeds = (unit(2, 9, 6), unit(2, 9, 6, seed=1)), (unit(2, 9, 4, seed=2), unit(2, 9, 4, seed=3))
    negatives = unit(8, 4, seed=5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))

    def dense(places):
        return dense_contrast(embeds[0], embeds[1][:, places], nearest_positions(features[0], features[1][:, places]), negatives)

    torch.testing.assert_close(dense(order), dense(torch.arange(9)), rtol=0, atol=1e-12)
    blocks = [float(local_contrast(embeds[0], embeds[1][:, places])) for places in (order, torch.arange(9))]
    assert abs(blocks[0] - blocks[1]) > 0.1


def expected(method: DenseCL, batch: dict, by_projection: bool = False) -> tuple[float, float]:
    """Global and dense loss of the method, by loops; by_projection: with the match that the dense embeddings would give."""
    teacher, views = method.teacher.parts, (method.normalize(batch["view1"]), method.normalize(batch["view2"]))
    first, second = method.network.backbone(views[0]).feature_maps[-1], teacher["backbone"](views[1]).feature_maps[-1]
    q, k = u(method.head(first)), u(teacher["head"](second))
    places = [x.flatten(2).transpose(1, 2) for x in (first, second)]
    dense = [u(x.flatten(2).transpose(1, 2)) for x in (method.dense_head(first), teacher["dense"](second))]
    matched = dense if by_projection else [u(x) for x in places]
    match = (matched[0] @ matched[1].transpose(1, 2)).argmax(2)
    whole = by_loops(q[:, None], k[:, None], torch.zeros(len(q), 1, dtype=torch.long), method.queue.read(), 0.2)
    return whole, by_loops(*dense, match, method.dense_queue.read(), 0.2)


@torch.no_grad()
def test_method_equals_loops_and_matches_by_the_backbone():
    """Both losses, written out from the modules: negatives are the queues, the match is that of the backbone's maps. The match of the dense
    embeddings differs here, and would give another loss."""
    method = densecl(dense_weight=0.3).eval()
    for parameter in itertools.chain(method.dense_head.parameters(), method.teacher.parameters()):
        parameter.add_(torch.randn(parameter.shape) * 0.05)
    hold_still(method.queue, method.dense_queue)
    batch, terms = batch_for(method), method(**batch_for(method))
    whole, dense = expected(method, batch)
    assert float(terms["loss_global"]) == pytest.approx(whole, rel=1e-4)
    assert float(terms["loss_dense"]) == pytest.approx(dense, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(0.7 * whole + 0.3 * dense, rel=1e-4)
    assert abs(expected(method, batch, by_projection=True)[1] - dense) > 1e-3


@torch.no_grad()
def test_what_the_queues_hold():
    """The first holds the teacher's keys of the images, the second their dense keys, averaged before they are brought to unit length. The
    keys of a batch are not among its own negatives. Evaluation writes nothing."""
    method = densecl()
    batch = batch_for(method)
    method.eval()(**batch)
    assert int(method.queue.filled) == int(method.dense_queue.filled) == 0
    terms = method.train()(**batch)
    assert float(terms["loss"]) == pytest.approx(0, abs=1e-6)
    features = method.teacher.train().features(method.normalize(batch["view2"]))
    dense = method.teacher.parts["dense"](features).flatten(2)
    torch.testing.assert_close(method.queue.read(), u(method.teacher.parts["head"](features)))
    torch.testing.assert_close(method.dense_queue.read(), u(dense.mean(2)))
    assert not torch.allclose(method.dense_queue.read(), u(F.normalize(dense, dim=1).mean(2)), atol=1e-4)
    assert float(method(**batch)["loss"]) > 0.1


def test_warm_up_leaves_the_dense_loss_out():
    """For the first share of training the loss is the global one alone, and the dense head still gets a gradient: zero. Then both count."""
    method = densecl(dense_warmup=0.25, dense_weight=0.4)
    batch = batch_for(method)
    hold_still(method.queue, method.dense_queue)
    for progress, share in ((0.0, 0.0), (0.24, 0.0), (0.25, 0.4), (1.0, 0.4)):
        method.fraction_done = progress
        method.zero_grad()
        terms = method(**batch)
        terms["loss"].backward()
        torch.testing.assert_close(terms["loss"].detach(), (1 - share) * terms["loss_global"] + share * terms["loss_dense"])
        gradient = method.dense_head[0].weight.grad
        assert gradient is not None and bool(gradient.any()) is (share > 0)


def test_grid_pools_what_is_matched_and_what_is_contrasted():
    """grid 2 makes four places of a map of 4 x 4, for the match and for the dense head alike; a larger one changes nothing."""
    method, features = densecl(grid=2), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(method.on_grid(features), F.avg_pool2d(features, 2))
    batch = batch_for(method)
    _, places, dense_keys = method.keys(batch["view2"])
    assert places.shape[-2:] == dense_keys.shape[-2:] == (2, 2)
    assert method.embeddings(batch["view1"])["dense"].shape == (4, 4, 16)
    assert torch.isfinite(method(**batch)["loss"])
    assert torch.equal(densecl(grid=9).on_grid(features), features)


@pytest.mark.parametrize("autocast", [False, True])
def test_learns_a_batch(autocast):
    """Against negatives that are held still, twenty steps bring both losses down, in bfloat16 too."""
    method = densecl(ema_momentum=0.9)
    hold_still(method.queue, method.dense_queue)
    batch = batch_for(method)
    before = {name: float(value.detach()) for name, value in method(**batch).items()}
    found = losses_of_training(method, batch, 20, autocast=autocast)
    after = {name: float(value.detach()) for name, value in method(**batch).items()}
    assert all(map(math.isfinite, found)) and all(after[name] < 0.7 * before[name] for name in before)


def test_widths_and_limits():
    """Hidden layers are as wide as the backbone; no head has a BatchNorm; a share outside 0 .. 1 is rejected."""
    method = DenseCL(network(), queue_size=8)
    channels = method.channels()
    assert method.head[2][0].out_features == method.dense_head[0].out_channels == channels and method.queue.rows.shape == (8, 128)
    assert not [name for head in (method.head, method.dense_head) for name, _ in head.named_buffers()]
    with pytest.raises(ValueError, match=r"--dense-weight is 1.5; expected .*\[0, 1\]"):
        densecl(dense_weight=1.5)
