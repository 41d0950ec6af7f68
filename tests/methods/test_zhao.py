"""Pixel contrast within images, across two, over the batch: the published losses as methods, and the released ones."""

import math

import harness
import pytest
import torch
from golden import labels_of, unit
from test_losses import LIST, LIST_Y, P, few_rows_at_once
from tiny import losses_of_training

from mscl_hf.losses import MultiScaleLoss, ReleasedPixelLoss, listed_pixel_contrast, pixel_contrast, released_pixel_contrast
from mscl_hf.methods.mscl import MSCL
from mscl_hf.methods.zhao import ZhaoBatch, ZhaoCross, ZhaoWithin
from mscl_hf.models.modeling_mscl import MsclForPreTraining


def network(**fields):
    torch.manual_seed(0)
    return MsclForPreTraining(harness.config(**fields))


def some_batch(**views):
    return next(harness.training_data(**views).batches(0, 1))


def released(scope, **options):
    return ReleasedPixelLoss(losses="pixel", pixel_scope=scope, **options)


def value(loss, a, b, y, z=None):
    return loss({"pixel": a}, {"pixel": b}, y, z)["loss"]


def slow_list(pixels, labels, image_of, t, anchor_weight="pixel", excluded=()):
    """The definition with loops: anchors, positives (an anchor is its own) and negatives of the anchor's image out of one list."""
    valid = [p for p in range(len(labels)) if labels[p] != 255]
    by_class = {}
    for p in valid:
        if int(labels[p]) in excluded:
            continue
        e = {q: math.exp(pixels[p] @ pixels[q] / t) for q in valid}
        negatives = sum(e[q] for q in valid if labels[q] != labels[p] and image_of[q] == image_of[p])
        losses = [math.log((e[q] + negatives) / e[q]) for q in valid if labels[q] == labels[p]]
        by_class.setdefault(int(labels[p]), []).append(sum(losses) / len(losses))
    groups = list(by_class.values()) if anchor_weight == "class" else [sum(by_class.values(), [])]
    means = [sum(group) / len(group) for group in groups if group]
    return sum(means) / len(means) if means else None


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


def test_values_of_the_release():
    """The golden value of the within loss, and the constants that the release tests itself with: no feature is brought to unit length."""
    assert value(released("within"), *P) == pytest.approx(5.467154422174, abs=1e-9)
    assert listed_pixel_contrast(LIST, LIST_Y, temperature=1.0) == pytest.approx(2.4503217, abs=1e-7)
    plain = {"pixel_temperature": 1.0}
    assert value(released("within", **plain), LIST, LIST, LIST_Y) == pytest.approx(2 * 2.4503217, abs=1e-6)
    for pair in ((LIST, 2 * LIST), (2 * LIST, LIST)):
        assert value(released("cross", **plain), *pair, LIST_Y) == pytest.approx(5.4602736, abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"anchor_weight": "class"}, {"exclude_classes": [1]}])
def test_released_losses_equal_plain_loops(options):
    """Label maps and numbers of pixels that differ between the views, ignored pixels, and an image without any label, which counts for
    nothing in the lists of its own."""
    a, b, y, z = unit(4, 7, 5), unit(4, 6, 5, seed=1), labels_of(4, 7), labels_of(4, 6, seed=1)
    y[2] = z[2] = 255
    weight, excluded = options.get("anchor_weight", "pixel"), tuple(options.get("exclude_classes", ()))
    wanted = sum(mean(slow_list(v[i], w[i], [0] * 7, 0.3, weight, excluded) for i in range(4)) for v, w in ((a, y), (b, z)))
    assert value(released("within", pixel_temperature=0.3, **options), a, b, y, z).item() == pytest.approx(wanted, rel=1e-9)
    torch.manual_seed(5)
    partner = torch.randperm(4)
    torch.manual_seed(5)
    found = value(released("cross", pixel_temperature=0.3, **options), a, b, y, z)
    lists = [(torch.cat([a[i], b[j]]), torch.cat([y[i], z[j]])) for i, j in enumerate(partner.tolist())]
    wanted = mean(slow_list(v, w, [0] * 7 + [1] * 6, 0.3, weight, excluded) for v, w in lists)
    assert found.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("scope", ["within", "cross"])
def test_released_losses_do_not_care_for_order_names_or_ignored_pixels(scope):
    """Permuting pixels, renaming classes, changing ignored features: the same loss, and exactly no gradient where ignored."""
    a, b, y, order = unit(1, 9, 5).requires_grad_(), unit(1, 9, 5, seed=1).requires_grad_(), labels_of(1, 9), torch.randperm(9)
    loss, ignored = value(released(scope), a, b, y), (y == 255)[..., None]
    loss.backward()
    assert ignored.any() and (a.grad[y == 255] == 0).all() and (b.grad[y == 255] == 0).all() and a.grad.abs().sum() > 0
    changed = [torch.where(ignored, 9 * unit(1, 9, 5, seed=3), x) for x in (a, b)]
    renamed = torch.where(y == 255, 255, (y * 7 + 11) % 20)
    for other in (
        value(released(scope), a[:, order], b[:, order], y[:, order]), value(released(scope), a, b, renamed),
        value(released(scope), *changed, y),
    ):  # fmt: skip
        assert other.item() == pytest.approx(loss.item(), rel=1e-12)


def test_released_gradients(monkeypatch):
    """Against finite differences, and a little memory at a time as all at once."""
    a, y = unit(2, 5, 3).requires_grad_(), torch.tensor([[0, 0, 1, 255, 1], [2, 2, 2, 1, 0]])
    image_of = torch.tensor([0, 0, 1, 1, 1])
    for options in ({}, {"anchor_weight": "class"}):
        assert torch.autograd.gradcheck(lambda x: listed_pixel_contrast(x, y, image_of, temperature=0.5, **options), a)
    whole = torch.autograd.grad(listed_pixel_contrast(a, y, image_of), a)[0]
    few_rows_at_once(monkeypatch, 1)
    torch.testing.assert_close(torch.autograd.grad(listed_pixel_contrast(a, y, image_of), a)[0], whole)


@pytest.mark.parametrize("labelled", [0, 2])
@pytest.mark.parametrize("scope", ["within", "cross"])
def test_released_losses_without_labels_are_zero_with_a_graph(scope, labelled):
    """No labelled image in a batch, or only ignored pixels: zero, and a gradient of zeros instead of NaN."""
    a, b = (unit(labelled, 6, 4, seed=s).requires_grad_() for s in (0, 1))
    loss = value(released(scope), a, b, torch.full((labelled, 6), 255))
    loss.backward()
    assert loss == 0 and (a.grad == 0).all() and (b.grad == 0).all()


@pytest.mark.parametrize("method_cls", [ZhaoWithin, ZhaoCross, ZhaoBatch])
def test_published_methods_are_mscls_pixel_loss(method_cls):
    """With the options that mscl reads, and mscl's losses=p with the scope, the same network gives the same loss."""
    options = {"pixel_temperature": 0.2, "label_downsampling": "majority", "exclude_classes": [0], "pixel_sample": "all"}
    batch, found = some_batch(), []
    for method in (
        method_cls(network(), MultiScaleLoss(**options)),
        MSCL(network(), MultiScaleLoss(losses="pixel", pixel_scope=method_cls.scope, **options)),
    ):  # fmt: skip
        torch.manual_seed(0)
        found.append(method.eval()(**batch)["loss"])
    assert found[0] == found[1] and found[0] > 0


@pytest.mark.parametrize("method_cls", [ZhaoWithin, ZhaoCross])
def test_released_methods_learn_with_the_pixel_head_alone(method_cls):
    """A network that has the pixel head only: thirty steps bring the released loss down, in sampled pixels of crops of their own too."""
    loss = MultiScaleLoss(pixel_sample="class", pixel_count=8)
    method = method_cls(network(heads=["pixel"]), loss, "released")
    losses = losses_of_training(method, some_batch(geometry="crops"), 30)
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in method.network.pixel_head.parameters())


def test_the_record_of_the_released_loss_names_its_denominator():
    """The options of the method, which are saved with the model, have the denominator that is computed; unknown options are rejected."""
    assert ZhaoWithin(network(), variant="released").loss.pixel_denominator == "neg"
    x, y = unit(1, 4, 5), labels_of(1, 4)
    for name in ("denominator", "anchor_wieght"):
        with pytest.raises(TypeError, match=name):
            released_pixel_contrast(x, x, y, scope="within", **{name: "class"})


def test_the_variants_differ():
    """The published loss never goes below the mean log of the number of positives; the released one has no such floor."""
    y, x = torch.tensor([[0, 0, 1, 1]]), torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]][None]
    published = pixel_contrast(x, x, y, scope="within").loss
    assert published == pytest.approx(math.log(2), abs=1e-5) and value(released("within"), x, x, y) < 1e-5


@pytest.mark.parametrize(
    "method_cls, variant, contrast, message",
    [
        (ZhaoBatch, "released", {}, "--variant is released; expected published with --method zhao_batch"),
        (ZhaoWithin, "relased", {}, "--variant is relased; expected published or released"),
        (ZhaoWithin, "published", {"losses": "g+p"}, "--losses is global.pixel; expected pixel"),
        (ZhaoWithin, "published", {"pixel_scope": "batch"}, "--pixel-scope is batch; expected within"),
        (ZhaoCross, "published", {"pixel_scope": "within"}, "--pixel-scope is within; expected cross"),
        (ZhaoCross, "released", {"pixel_reduction": "in"}, "--pixel-reduction is in; expected out"),
        (ZhaoCross, "released", {"symmetric": True}, "--symmetric is True; expected False"),
    ],
)
def test_what_does_not_fit_is_rejected(method_cls, variant, contrast, message):
    """One sentence with what came and what to do."""
    with pytest.raises(ValueError, match=message):
        method_cls(network(), MultiScaleLoss(**contrast), variant)
