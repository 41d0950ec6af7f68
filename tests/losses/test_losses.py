"""The three losses: values from an independent implementation, plain loops, closed forms, invariances, gradients."""

import math
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from golden import fill, labels_of, u, unit

from mscl_hf import losses
from mscl_hf.losses import global_contrast, local_contrast, streamed

pixel_contrast = partial(losses.pixel_contrast, scope="within")

Y = [0, 0, 0, 1, 1, 255]
CLOSE = {torch.float64: {"rel": 1e-9, "abs": 1e-9}, torch.float32: {"rel": 1e-4}}


def few_rows_at_once(monkeypatch, cells):
    monkeypatch.setitem(streamed.BYTES_AT_ONCE, "cpu", cells)
    monkeypatch.setattr(streamed, "FEW_ROWS", 1)
    monkeypatch.setattr(streamed, "MANY_ROWS", 1)


G = u(fill((4, 8))), u(fill((4, 8), 0.53, 0.29))
Q = u(fill((2, 4))), u(fill((2, 4), 0.53, 0.2))
L = u(fill((2, 4, 8), 0.41, 0.17)), u(fill((2, 4, 8), 0.31, 0.23))
P = u(fill((1, 6, 8), 0.61, 0.07)), u(fill((1, 6, 8), 0.47, 0.19)), torch.tensor([Y])
# Another image of 4 pixels, filled up with ignored ones, as the partner of the first; it has no anchors of its own.
J = F.pad(u(fill((1, 4, 8), 0.83, 0.05)), (0, 0, 0, 2))
CROSS = P[0].repeat(2, 1, 1), torch.cat([P[1], J]), torch.tensor([Y, [255] * 6]), torch.tensor([Y, [0, 1, 1, 2, 255, 255]])
# Sixteen one-dimensional features equal to their labels, not normalized; the negative labels are ignored.
LIST = torch.tensor([-2.0, -2, -1, -1, *[1] * 4, *[2] * 4, *[3] * 4], dtype=torch.float64).view(1, 16, 1)
LIST_Y = torch.where(LIST[..., 0] < 0, 255, LIST[..., 0]).long()
PER_ANCHOR = (15.6736168421, 8.1579399644, 11.5996373858, 21.3825665283, 14.2007563457)


def one_anchor(a, b, y, i):
    return pixel_contrast(a, b, y.where(torch.arange(6) == i, 255), y).loss


def one_by_one(q, k, queue, temperature):
    return sum(global_contrast(q[i : i + 1], k[i : i + 1], temperature, past=queue) for i in range(len(q))) / len(q)


GOLDENS = {
    "global": (global_contrast, G, {}, 4.811559481438),
    "global symmetric": (global_contrast, G, {"symmetric": True}, 5.341599930138),
    "global literal": (global_contrast, G, {"denominator": "literal"}, 4.831872362245),
    "global ntxent": (global_contrast, G, {"negatives": "ntxent"}, 6.920652246898),
    "local image": (local_contrast, L, {"scope": "image"}, 5.460969155274),
    "local batch": (local_contrast, L, {"scope": "batch"}, 6.386471931454),
    "local others": (local_contrast, L, {"scope": "others"}, 5.234679361214),
    "pixel": (pixel_contrast, P, {}, 14.202903413271),
    "pixel neg": (pixel_contrast, P, {"denominator": "neg"}, 10.626887663358),
    "pixel class": (pixel_contrast, P, {"anchor_weight": "class"}, 14.801029750563),
    "pixel in": (pixel_contrast, P, {"reduction": "in"}, 6.032771249779),
    "pixel cross": (pixel_contrast, CROSS, {"scope": "cross", "partner": torch.tensor([1, 0])}, 12.715339570198),
    "queue": (one_by_one, (*Q, u(fill((5, 4), 0.9, 0.31))), {"temperature": 0.2}, 2.093844183873),
    "queue, colder": (one_by_one, (*Q, u(fill((5, 4), 0.9, 0.31))), {"temperature": 0.07}, 5.115381827166),
    **{f"pixel anchor {i}": (one_anchor, P, {"i": i}, value) for i, value in enumerate(PER_ANCHOR)},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_values(name, dtype):
    """Each variant has the value of an implementation that shares no code with this one."""
    loss, tensors, options, wanted = GOLDENS[name]
    value = loss(*(t.to(dtype) if t.is_floating_point() else t for t in tensors), **options)
    value = value if isinstance(value, torch.Tensor) else value.loss
    assert value.dtype == dtype and value.item() == pytest.approx(wanted, **CLOSE[dtype])


def test_values_of_the_released_pixel_losses():
    """The test constants of Zhao et al.'s release come out: pairs inside one list, negatives of the own image."""
    a, b, y = P
    options = {"denominator": "neg", "temperature": 1.0}
    assert sum(pixel_contrast(x, x, y, denominator="neg").loss for x in (a, b)) == pytest.approx(5.467154422174, abs=1e-9)
    assert pixel_contrast(LIST, LIST, LIST_Y, **options).loss == pytest.approx(2.4503217, abs=1e-7)
    for pair in ((LIST, 2 * LIST), (2 * LIST, LIST)):
        both, labels = torch.cat(pair), LIST_Y.repeat(2, 1)
        assert pixel_contrast(both, both, labels, scope="cross", **options).loss == pytest.approx(5.4602736, abs=1e-7)


def test_closed_forms():
    """All features equal: the log of the number of keys. Orthogonal classes or images: what the temperature leaves."""
    eye, same = torch.eye(4, dtype=torch.float64), torch.ones(3, 5, 1, dtype=torch.float64)
    labels = labels_of(3, 5)
    assert global_contrast(same[:, 0], same[:, 0]) == pytest.approx(math.log(3))
    assert global_contrast(eye, eye) == pytest.approx(math.log(1 + 3 * math.exp(-10)), rel=1e-9)
    for scope, keys in (("batch", 15), ("image", 5), ("others", 11)):
        assert local_contrast(same, same, scope=scope) == pytest.approx(math.log(keys))
    valid = (labels != 255).sum(1).double()
    assert pixel_contrast(same, same, labels).loss == pytest.approx(valid.log().mean().item())
    x, y = eye[None, [0, 0, 0, 1, 1]], torch.tensor([[0, 0, 0, 1, 1]])
    first = pixel_contrast(x, x, torch.tensor([[0, 0, 0, 255, 255]]), y).loss
    assert first == pytest.approx(math.log(3 + 2 * math.exp(-1 / 0.07)), rel=1e-9)


def slow_pixel(a, b, y, z, t, scope, denominator, reduction, anchor_weight, excluded=(), partner=None):
    """The definition with loops: bags of (feature, label, is it of the own copy?), one mean per bag, their mean."""
    images = range(len(a))
    copies = [[(b[i, k], int(z[i, k])) for k in range(b.shape[1]) if z[i, k] != 255] for i in images]
    anchors = [[(a[i, p], int(y[i, p])) for p in range(a.shape[1]) if y[i, p] not in (255, *excluded)] for i in images]
    if scope == "batch":
        bags = [(sum(anchors, []), [(*key, True) for copy in copies for key in copy])]
    else:
        own = [[(*key, True) for key in copy] for copy in copies]
        others = [[(*key, False) for key in copies[partner[i]]] if scope == "cross" else [] for i in images]
        bags = [(anchors[i], own[i] + others[i]) for i in images]
    means = []
    for members, keys in bags:
        by_class = {}
        for feature, label in members:
            positives = [math.exp(feature @ key / t) for key, other, _ in keys if other == label]
            negatives = sum(math.exp(feature @ key / t) for key, other, own in keys if own and other != label)
            if not positives:
                continue
            total = [e + negatives for e in positives] if denominator == "neg" else [sum(positives) + negatives] * len(positives)
            logs = [math.log(d / e) for d, e in zip(total, positives)]
            loss = math.log(total[0] / sum(positives)) if reduction == "in" else sum(logs) / len(logs)
            by_class.setdefault(label, []).append(loss)
        per_class = [sum(v) / len(v) for v in by_class.values()]
        everyone = sum(by_class.values(), [])
        counted = per_class if anchor_weight == "class" else everyone
        if counted:
            means.append(sum(counted) / len(counted))
    return sum(means) / len(means)


@pytest.mark.parametrize("anchor_weight", ["pixel", "class"])
@pytest.mark.parametrize(("denominator", "reduction"), [("all", "out"), ("all", "in"), ("neg", "out")])
@pytest.mark.parametrize("scope", ["within", "cross", "batch"])
def test_pixel_loss_equals_plain_loops(scope, denominator, reduction, anchor_weight):
    """Ignored pixels, label maps that differ between the views, classes left out as anchors, an image without labels."""
    a, b = unit(4, 7, 5), unit(4, 6, 5, seed=1)
    y, z = labels_of(4, 7), labels_of(4, 6, seed=1)
    y[2] = 255
    partner, rule = torch.tensor([2, 0, 3, 1]), (scope, denominator, reduction, anchor_weight)
    names = dict(zip(("scope", "denominator", "reduction", "anchor_weight"), rule))
    for excluded in ((), (1,)):
        wanted = slow_pixel(a, b, y, z, 0.3, *rule, excluded, partner)
        value = pixel_contrast(a, b, y, z, temperature=0.3, partner=partner, exclude_classes=excluded, **names).loss
        assert value.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("denominator", ["all", "literal"])
@pytest.mark.parametrize("scope", ["batch", "image", "others"])
def test_local_loss_equals_plain_loops(scope, denominator):
    """The denominator holds exactly the blocks that the scope names, one direction or both."""
    a, b, t = unit(3, 4, 5), unit(3, 4, 5, seed=1), 0.3
    blocks = [(i, s) for i in range(3) for s in range(4)]

    def allowed(i, s, j, r):
        return (i, s) == (j, r) or {"batch": True, "image": i == j, "others": i != j}[scope]

    def slow(a, b):
        losses = []
        for i, s in blocks:
            terms = {(j, r): a[i, s] @ b[j, r] / t for j, r in blocks if allowed(i, s, j, r)}
            positive = terms[i, s]
            if denominator == "literal":
                terms[i, s] = positive * t
            losses.append(torch.stack(list(terms.values())).exp().sum().log() - positive)
        return torch.stack(losses).mean().item()

    one = local_contrast(a, b, t, scope, denominator)
    both = local_contrast(a, b, t, scope, denominator, symmetric=True)
    assert one.item() == pytest.approx(slow(a, b), rel=1e-9)
    assert both.item() == pytest.approx((slow(a, b) + slow(b, a)) / 2, rel=1e-9)


def test_pixel_loss_does_not_care_for_order_names_or_ignored_pixels():
    """Permuting pixels, renaming classes, changing ignored features: the same loss, and no gradient where ignored."""
    a, b, y = unit(2, 8, 5).requires_grad_(), unit(2, 8, 5, seed=1).requires_grad_(), labels_of(2, 8)
    loss, order, ignored = pixel_contrast(a, b, y).loss, torch.randperm(8), (y == 255)[..., None]
    loss.backward()
    assert ignored.any() and (a.grad[y == 255] == 0).all() and (b.grad[y == 255] == 0).all()
    changed = [torch.where(ignored, 100 * unit(2, 8, 5, seed=9), x) for x in (a, b)]
    renamed = torch.where(y == 255, 255, (y * 7 + 11) % 20)
    for other in (
        pixel_contrast(a[:, order], b[:, order], y[:, order]), pixel_contrast(a, b, renamed), pixel_contrast(*changed, y)
    ):  # fmt: skip
        assert other.loss.item() == pytest.approx(loss.item(), rel=1e-12)


def test_local_loss_depends_on_which_block_is_which():
    """Permuting the blocks of both views changes nothing; permuting those of one view does."""
    a, b, order = unit(3, 4, 5), unit(3, 4, 5, seed=1), [2, 0, 3, 1]
    loss = local_contrast(a, b)
    assert local_contrast(a[:, order], b[:, order]).item() == pytest.approx(loss.item(), rel=1e-12)
    assert abs(local_contrast(a, b[:, order]) - loss) > 1e-3


def test_gradient_of_the_pixel_loss():
    """dL/ds_pk = (softmax_k(s_p) - [k is a positive] / n_p) / |V|, through to the anchors; and against finite differences."""
    a, b, y, t = unit(1, 9, 5).requires_grad_(), unit(1, 9, 5, seed=1), labels_of(1, 9), 0.07
    pixel_contrast(a, b, y, temperature=t).loss.backward()
    v = y[0] != 255
    same = (y[0][v][:, None] == y[0][v][None]).double()
    s = a[0].detach()[v] @ b[0][v].T / t
    wanted = (s.softmax(1) - same / same.sum(1, keepdim=True)) / v.sum() @ b[0][v] / t
    torch.testing.assert_close(a.grad[0][v], wanted, atol=1e-8, rtol=0)
    a, b, y = unit(2, 4, 3).requires_grad_(), unit(2, 4, 3, seed=1).requires_grad_(), torch.tensor([[0, 0, 1, 255], [2, 2, 2, 1]])
    for scope in ("within", "cross", "batch"):
        for options in ({}, {"denominator": "neg"}, {"reduction": "in"}, {"anchor_weight": "class"}):
            assert torch.autograd.gradcheck(lambda a, b: pixel_contrast(a, b, y, scope=scope, temperature=0.5, **options).loss, (a, b))


def test_identities_between_the_losses():
    """Every pixel its own class = the local loss in the image; one block = the global loss; bounds of the pixel loss."""
    a, b, y = unit(3, 6, 5), unit(3, 6, 5, seed=1), labels_of(3, 6)
    alone = pixel_contrast(a, b, torch.arange(6).expand(3, 6), temperature=0.2)
    assert alone.loss.item() == pytest.approx(local_contrast(a, b, scope="image").item(), rel=1e-12) and alone.floor == 0
    assert local_contrast(a[:, :1], b[:, :1], 0.1).item() == pytest.approx(global_contrast(a[:, 0], b[:, 0]).item(), rel=1e-12)
    for scope in ("within", "cross", "batch"):
        assert pixel_contrast(a, b, y, scope=scope, denominator="neg").loss <= pixel_contrast(a, b, y, scope=scope).loss


@pytest.mark.parametrize("anchor_weight", ["pixel", "class"])
@pytest.mark.parametrize("scope", ["within", "batch"])
def test_floor_is_what_perfect_features_reach(scope, anchor_weight):
    """Classes on orthogonal axes give the floor, however unequal classes and numbers of valid pixels are over images."""
    y = torch.full((3, 20), 255)
    y[0, :1], y[1, :20], y[2, 5:14] = 0, 1, torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    x = torch.eye(4, dtype=torch.float64)[y.clamp(max=3)]
    loss, floor = pixel_contrast(x, x, y, scope=scope, anchor_weight=anchor_weight, temperature=0.02)
    assert floor > 1 and loss.item() == pytest.approx(floor.item(), abs=1e-9)


@pytest.mark.parametrize(
    "options", [{"denominator": "neg"}, {"reduction": "in"}, {"scope": "cross"}, {"scope": "batch", "reduction": "in"}]
)
def test_row_blocks_change_nothing(monkeypatch, options):
    """A little memory at a time gives the same value and the same gradient as all at once."""
    found = []
    for cells in (1, 300, 1 << 24):
        a, b = (unit(2, 50, 6, seed=s, dtype=torch.float32).requires_grad_() for s in (0, 1))
        few_rows_at_once(monkeypatch, cells)
        loss = pixel_contrast(a, b, labels_of(2, 50), **options).loss
        loss.backward()
        found.append((loss.detach(), a.grad, b.grad))
    for some in found[:2]:
        for x, whole in zip(some, found[2]):
            torch.testing.assert_close(x, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [300, 1 << 24])
def test_autocast_does_not_reach_the_losses(monkeypatch, cells):
    """Under bfloat16 autocast, value and gradient are float32's."""
    a, b, y = unit(4, 30, 6, dtype=torch.float32).requires_grad_(), unit(4, 30, 6, seed=1, dtype=torch.float32), labels_of(4, 30)
    few_rows_at_once(monkeypatch, cells)
    for loss in every_loss(y):
        plain = loss(a, b)
        wanted = torch.autograd.grad(plain, a)[0]
        with torch.autocast("cpu", torch.bfloat16):
            cast = loss(a, b)
        assert cast.dtype == torch.float32 and torch.equal(cast, plain) and torch.equal(torch.autograd.grad(cast, a)[0], wanted)


def test_tensors_by_keyword_are_treated_as_others():
    """Tensors by name give the value of positional ones, float16 and autocast included."""
    a, b, y = unit(2, 9, 5, dtype=torch.float32).half(), unit(2, 9, 5, seed=1, dtype=torch.float32).half(), labels_of(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(global_contrast(a=a[:, 0], b=b[:, 0]), global_contrast(a[:, 0], b[:, 0]))
        by_name = pixel_contrast(anchors=a, keys=b, labels=y, scope="within").loss
        assert by_name.dtype == torch.float32 and torch.equal(by_name, pixel_contrast(a, b, y, scope="within").loss)


def every_loss(y, **more):
    """The losses as functions of embeddings (B, N, E), in all their forms; more: options that all of them have."""
    for options in ({}, {"negatives": "ntxent"}, {"denominator": "literal"}):
        yield lambda a, b, options=options: global_contrast(a[:, 0], b[:, 0], **options, **more)
    for scope, denominator in product(("batch", "image", "others"), ("all", "literal")):
        yield lambda a, b, scope=scope, denominator=denominator: local_contrast(a, b, scope=scope, denominator=denominator, **more)
    for scope, (denominator, reduction) in product(("within", "cross", "batch"), (("all", "out"), ("all", "in"), ("neg", "out"))):
        options = {"scope": scope, "denominator": denominator, "reduction": reduction}
        yield lambda a, b, options=options: pixel_contrast(a, b, y, **options, **more).loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vectors", ["random", "identical", "zero", "opposite"])
@pytest.mark.parametrize("labels", ["mixed", "one class", "all ignored", "every pixel its own"])
def test_degenerate_batches_stay_finite(dtype, vectors, labels):
    """Whatever the vectors and labels, down to a temperature of 1e-3 and a single image where one suffices: finite values and gradients."""
    y = {"mixed": labels_of(2, 9), "one class": torch.full((2, 9), 4), "all ignored": torch.full((2, 9), 255)}
    y = y.get(labels, torch.arange(18).view(2, 9))
    a, b = unit(2, 9, 5, dtype=torch.float32), unit(2, 9, 5, seed=1, dtype=torch.float32)
    if vectors != "random":
        a = torch.zeros_like(a) if vectors == "zero" else a[:1, :1].expand(2, 9, 5)
        b = -a if vectors == "opposite" else a
    for temperature, images in product((0.07, 1e-3), (2, 1)):
        for number, loss in enumerate(every_loss(y[:images], temperature=temperature)):
            x, z = (v[:images].clone().to(dtype).requires_grad_() for v in (a, b))
            if images == 1 and (number < 3 or number in (7, 8)):
                with pytest.raises(ValueError, match="--batch-size is 1; expected at least 2"):
                    loss(x, z)
                continue
            value = loss(x, z)
            value.backward()
            assert value.isfinite() and x.grad.isfinite().all() and z.grad.isfinite().all(), (number, temperature, images)


def test_bfloat16_embeddings_cost_little_accuracy():
    """Value within 0.2 %, gradient within 3 % of float64's for scattered embeddings before rounding."""
    a, b, y = unit(4, 60, 64), unit(4, 60, 64, seed=1), labels_of(4, 60)
    for number, loss in enumerate(every_loss(y)):
        exact, low = a.clone().requires_grad_(), a.float().requires_grad_()
        wanted, found = loss(exact, b), loss(low.bfloat16(), b.bfloat16())
        assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), rel=2e-3), number
        wanted.backward()
        found.backward()
        assert (low.grad - exact.grad).norm() < 0.03 * exact.grad.norm(), number


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1])
def test_bfloat16_noise_does_not_shrink_with_the_gradient(spread):
    """Near convergence the gradient vanishes and the noise does not: it stays below 1 % of a single similarity's gradient, |k| / t."""
    centers, y = unit(5, 64), torch.arange(200).repeat(2, 1) % 5
    a, b = (u(centers[y] + spread * unit(2, 200, 64, seed=s)) for s in (1, 2))
    exact, low = a.clone().requires_grad_(), a.float().requires_grad_()
    pixel_contrast(exact, b, y).loss.backward()
    pixel_contrast(low.bfloat16(), b.bfloat16(), y).loss.backward()
    noise = (low.grad - exact.grad).norm(dim=2).mean() * 2 * 200  # of an anchor, for a weight of one
    assert noise < 0.01 / 0.07


def test_labels_may_be_bytes_and_keys_must_be_there():
    """Masks are uint8; no key at all is one sentence."""
    a, b, y = unit(2, 9, 5), unit(2, 9, 5, seed=1), labels_of(2, 9)
    assert pixel_contrast(a, b, y.byte()).loss == pixel_contrast(a, b, y).loss
    with pytest.raises(ValueError, match="at least one key"):
        pixel_contrast(a, b[:, :0], y, y[:, :0])


@pytest.mark.parametrize("options", [{}, {"denominator": "neg"}, {"reduction": "in"}, {"scope": "cross"}, {"anchor_weight": "class"}])
def test_images_without_labels_contribute_nothing(options):
    """Beside a labelled image they change neither value nor gradient; alone they give zero with a graph, never NaN."""
    a, b = unit(3, 6, 5).requires_grad_(), unit(3, 6, 5, seed=1)
    y = labels_of(3, 6)
    y[1:] = 255
    loss = pixel_contrast(a, b, y, **options).loss
    loss.backward()
    first = pixel_contrast(a[:1], b[:1], y[:1], **{**options, "scope": "within"}).loss
    assert loss.item() == pytest.approx(first.item(), rel=1e-9) and (a.grad[1:] == 0).all() and a.grad[0].abs().sum() > 0
    a.grad = None
    nothing = pixel_contrast(a, b, torch.full_like(y, 255), **options)
    nothing.loss.backward()
    assert nothing.loss == nothing.floor == 0 and (a.grad == 0).all()


def test_literal_denominator_is_no_probability():
    """The printed denominator goes below -5 on perfect positives; the plain one never below 0."""
    eye = torch.eye(4)
    assert global_contrast(eye, eye, denominator="literal") < -5 and local_contrast(eye[None], eye[None], 0.1, "batch", "literal") < -5
    assert global_contrast(eye, eye, 0.01) >= 0 and local_contrast(eye[None], eye[None], 0.01) >= 0
