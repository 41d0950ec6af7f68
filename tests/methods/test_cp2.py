"""CP2: the pasted views, the loss of foreground pixels, and the method around them."""

import itertools
import math

import numpy as np
import pytest
import torch
from golden import fill, u, unit
from tiny import SIZE, batch_for, hold_still, losses_of_training, network

from mscl_hf.config import ViewConfig
from mscl_hf.data.dataset import Sample
from mscl_hf.losses import foreground_contrast, foreground_mean
from mscl_hf.methods.cp2 import CP2
from mscl_hf.transforms.crop_views import CopyPasteView, random_rectangle
from mscl_hf.transforms.presets import PRESETS, Preset

GOLDEN = u(fill((1, 4, 3))), u(fill((1, 4, 3), 0.53, 0.2)), torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 0]]).bool()


def example():
    """Three images of 5 and 6 positions; the last one's key has no foreground."""
    q_mask, k_mask = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 0, 0, 1], [1] * 6, [0] * 6])
    return unit(3, 5, 4), unit(3, 6, 4, seed=1), q_mask.bool(), k_mask.bool()


def cp2(**options) -> CP2:
    return CP2(network(), **{"embed_dim": 16, "queue_size": 32, **options})


def by_loops(queries, keys, q_mask, k_mask, temperature, axis):
    """Over images the mean, over pairs of foreground positions the mean, of -log of the pair's share along the axis."""
    means = []
    for q, k, of_q, of_k in zip(queries, keys, q_mask, k_mask):
        scores, terms = (q @ k.T / temperature).tolist(), []
        for x, y in itertools.product(range(len(q)), range(len(k))):
            rivals = scores[x] if axis == "key" else [row[y] for row in scores]
            if of_q[x] and of_k[y]:
                terms.append(math.log(sum(map(math.exp, rivals))) - scores[x][y])
        means += [sum(terms) / len(terms)] if terms else []
    return sum(means) / len(means)


@pytest.mark.parametrize("axis, value", [("key", 2.221112038782), ("query", 1.907992032397)])
def test_golden_loss(axis, value):
    """The value of an independent implementation, for either axis of the softmax."""
    assert float(foreground_contrast(*GOLDEN, 1.0, axis)) == pytest.approx(value, abs=1e-9)


def test_golden_mean():
    """The pooled query of an independent implementation; zero, and no NaN in the gradient, where there is no foreground."""
    wanted = torch.tensor([[0.5500254398, 0.6113940305, 0.5689194627]], dtype=torch.float64)
    torch.testing.assert_close(foreground_mean(GOLDEN[0], GOLDEN[2]), wanted, atol=1e-9, rtol=0)
    x = unit(1, 4, 3).requires_grad_()
    foreground_mean(x, torch.zeros(1, 4, dtype=torch.bool)).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("axis", ["key", "query"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_equals_loops(axis, temperature):
    """Mean over the pairs of an image, then over the images that have any; the right gradient on both sides."""
    q, k, *masks = example()
    assert float(foreground_contrast(q, k, *masks, temperature, axis)) == pytest.approx(by_loops(q, k, *masks, temperature, axis), abs=1e-9)
    q.requires_grad_(), k.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: foreground_contrast(a, b, *masks, temperature, axis), (q, k))


def test_background_counts_in_the_denominator_only():
    """Softmax over the key: a background query does not matter at all, a background key through the log-sum-exp alone."""
    q, k, q_mask, k_mask = example()
    other_q, other_k = q.clone(), k.clone()
    other_q[~q_mask], other_k[~k_mask] = unit(int((~q_mask).sum()), 4, seed=2), unit(int((~k_mask).sum()), 4, seed=3)
    before = foreground_contrast(q, k, q_mask, k_mask)
    assert torch.equal(foreground_contrast(other_q, k, q_mask, k_mask), before)
    change = [
        float((a @ new.T).logsumexp(1)[of_q].mean() - (a @ old.T).logsumexp(1)[of_q].mean())
        for a, old, new, of_q in zip(q[:2], k, other_k, q_mask)
    ]
    difference = float(foreground_contrast(q, other_k, q_mask, k_mask) - before)
    assert difference == pytest.approx(sum(change) / 2, abs=1e-12) and abs(difference) > 1e-3
    swapped = foreground_contrast(q, other_k, q_mask, k_mask, 1.0, "query")
    assert torch.equal(swapped, foreground_contrast(q, k, q_mask, k_mask, 1.0, "query"))


@pytest.mark.parametrize("axis", ["key", "query"])
def test_without_foreground_zero(axis):
    """A batch without foreground in either view has the loss zero and the gradient zero, not NaN, in bfloat16 too."""
    q, k = unit(2, 5, 4).float().requires_grad_(), unit(2, 6, 4).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = foreground_contrast(q, k, torch.zeros(2, 5).bool(), torch.ones(2, 6).bool(), 1.0, axis)
    loss.backward()
    assert float(loss.detach()) == 0 and not q.grad.any() and not k.grad.any()


def test_autocast_does_not_lower_the_loss():
    """Within bfloat16 autocast the value is that of float32, to the last bit."""
    q, k, *masks = (x.float() if x.is_floating_point() else x for x in example())
    wanted = foreground_contrast(q, k, *masks, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(foreground_contrast(q, k, *masks, 0.2), wanted)


def test_unknown_axis_is_rejected():
    """An unknown axis raises, with the known ones in the sentence."""
    with pytest.raises(ValueError, match="key, query"):
        foreground_contrast(*GOLDEN, 1.0, "both")


@pytest.mark.parametrize("height, width", [(224, 224), (64, 128), (33, 17), (4, 4)])
def test_rectangles(height, width):
    """Inside the view, 0.5 to 0.8 of its area, 0.8 to 1.25 times as wide as its aspect makes it high (within a px), and not always in the
    same place."""
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        top, left, bottom, right = random_rectangle(height, width, rng).tolist()
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        high, wide = bottom - top, right - left
        assert 0.5 <= high * wide / (height * width) <= 0.8
        assert (wide - 0.5) / width / ((high + 0.5) / height) <= 1.25 and (wide + 0.5) / width / ((high - 0.5) / height) >= 0.8
        seen.add((top == 0, left == 0, bottom == height, right == width))
    assert len(seen) > 4


def gray(value: int) -> Sample:
    return Sample(np.full((90, 120, 3), value, np.uint8), None, str(value))


def test_pasted_views_show_the_image_inside_and_another_outside():
    """Of images of one gray each: inside the mask, which is the rectangle drawn, the first one's, outside the second or third one's, to the
    last pixel."""
    view = CopyPasteView(48, 48, ViewConfig(), 64, Preset(0.2, (None, None)))
    samples = [view(gray(200), np.random.default_rng(i), [gray(50), gray(100)]) for i in range(5)]
    drawn = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
    batch = view.on_device(drawn)
    assert sorted(batch) == ["pasted1", "pasted2", "view1", "view2"]
    for name, other in (("1", 50), ("2", 100)):
        mask, pixels = batch[f"pasted{name}"], batch[f"view{name}"]
        assert mask.dtype == torch.bool and mask.shape == (5, 48, 64) and pixels.dtype == torch.uint8
        assert torch.equal(pixels, torch.where(mask, 200, other)[:, None].expand(-1, 3, -1, -1).to(torch.uint8))
        for one, (top, left, bottom, right) in zip(mask, drawn[f"pasted{name}"].tolist()):
            assert one[top:bottom, left:right].all() and one.sum() == (bottom - top) * (right - left)
        share = mask.flatten(1).float().mean(1)
        assert (share >= 0.5).all() and (share <= 0.8).all()
    assert not torch.equal(batch["pasted1"], batch["pasted2"])


def test_colors_come_before_pasting():
    """Each part of a pasted view is, to the last bit, what the same colors make of its image alone."""
    view, rng = CopyPasteView(48, 48, ViewConfig(), None, PRESETS["moco_v2"]), np.random.default_rng(0)
    noise = [Sample(rng.integers(0, 256, (60, 60, 3)).astype(np.uint8), None, str(i)) for i in range(3)]
    samples = [view(noise[0], np.random.default_rng(i), noise[1:]) for i in range(4)]
    batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
    whole = {"everything": torch.tensor([[0, 0, 48, 48]] * 4), "nothing": torch.tensor([[0, 0, 0, 0]] * 4)}
    parts = {name: view.on_device(batch | {"pasted1": box, "pasted2": box}) for name, box in whole.items()}
    done = view.on_device(batch)
    for name in ("1", "2"):
        inside = done[f"pasted{name}"][:, None]
        wanted = torch.where(inside, parts["everything"][f"view{name}"], parts["nothing"][f"view{name}"])
        assert torch.equal(done[f"view{name}"], wanted)
        assert not torch.equal(parts["everything"][f"view{name}"], batch[f"view{name}"])  # colors were at work


@torch.no_grad()
def test_method_equals_loops():
    """Both losses, written out from the modules: masks at the centers of the cells, pooled vectors against the queue, pixels in pairs."""
    method = cp2(dense_weight=0.3, dense_temperature=0.5).eval()
    for parameter in method.teacher.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.05)
    hold_still(method.queue)
    batch = batch_for(method)
    vectors_of, masks = [], []
    for name, parts in (("1", method.student()), ("2", method.teacher.parts)):
        maps = parts["backbone"](method.normalize(batch[f"view{name}"])).feature_maps
        vectors_of.append(u(parts["head"](parts["decoder"](list(maps))).flatten(2).transpose(1, 2)))
        centers = [int((i + 0.5) * SIZE / 4) for i in range(4)]
        masks.append(torch.stack([torch.stack([m[r, c] for r in centers for c in centers]) for m in batch[f"pasted{name}"]]))
    dense = by_loops(*vectors_of, *masks, 0.5, "key")
    q, k = (u((x * mask[..., None]).sum(1)) for x, mask in zip(vectors_of, masks))
    scores = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.read().T], dim=1) / 0.2
    instance = float((scores.logsumexp(1) - scores[:, 0]).mean())
    terms = method(**batch)
    assert float(terms["loss_dense"]) == pytest.approx(dense, rel=1e-4)
    assert float(terms["loss_instance"]) == pytest.approx(instance, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(instance + 0.3 * dense, rel=1e-4)


@torch.no_grad()
def test_what_the_queue_holds():
    """The teacher's pooled keys, written after they were used: with an empty queue there is no instance loss. Evaluation writes nothing."""
    method = cp2()
    batch = batch_for(method)
    method.eval()(**batch)
    assert int(method.queue.filled) == 0
    terms = method.train()(**batch)
    assert float(terms["loss_instance"]) == pytest.approx(0, abs=1e-6) and float(terms["loss_dense"]) > 0.1
    features = method.teacher(method.normalize(batch["view2"]))
    mask = batch["pasted2"][:, SIZE // 8 :: SIZE // 4, SIZE // 8 :: SIZE // 4].flatten(1)
    keys = (u(features.flatten(2).transpose(1, 2)) * mask[..., None]).sum(1)
    torch.testing.assert_close(method.queue.read(), u(keys))
    assert float(method(**batch)["loss_instance"]) > 0.1


def test_backbone_and_decoder_are_trained():
    """Both get a gradient wherever the network's own heads would sit, and both have a teacher."""
    method = cp2()
    hold_still(method.queue)
    method(**batch_for(method))["loss"].backward()
    assert method.network.config.attach != "decoder" and {"backbone", "decoder", "head"} == set(method.teacher.parts)
    for part in (method.network.backbone, method.network.decoder):
        assert sum(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) > 5
    assert method.head[0].in_channels == method.head[0].out_channels == 16


@pytest.mark.parametrize("autocast", [False, True])
def test_learns_a_batch(autocast):
    """Against negatives that are held still, twenty steps bring both losses down, in bfloat16 too."""
    method = cp2(ema_momentum=0.9)
    hold_still(method.queue)
    batch = batch_for(method)
    before = {name: float(value.detach()) for name, value in method(**batch).items()}
    found = losses_of_training(method, batch, 20, autocast=autocast)
    after = {name: float(value.detach()) for name, value in method(**batch).items()}
    assert all(map(math.isfinite, found)) and all(after[name] < before[name] - 0.02 for name in before), (before, after)
