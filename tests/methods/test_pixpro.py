"""PixPro and PixContrast: which cells belong together, the propagation, both losses, and the methods around them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from golden import fill, u, unit
from tiny import batch_for, network

from mscl_hf.losses import cosine_to_target, match_positions, matched_contrast, pixel_consistency, propagate
from mscl_hf.methods.pixpro import PixContrast, PixPro

MASKS = {
    "the same": ((0, 0, 1, 1), (0, 0, 1, 1), ["1000", "0100", "0010", "0001"]),
    "mirrored": ((0, 0, 1, 1), (1, 0, 0, 1), ["0100", "1000", "0001", "0010"]),
    "disjoint": ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), ["0000"] * 4),
    "shifted by a cell": ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), ["0000", "0000", "0000", "1000"]),
}


def random_match(images=3, count=5, seed=0):
    """With an image that has no match at all, and a cell without one."""
    match = torch.rand(images, count, count, generator=torch.Generator().manual_seed(seed)) < 0.4
    match[1], match[0, 2] = False, False
    return match


def pairs_of(match):
    return [tuple(row) for row in match.nonzero().tolist()]


@pytest.mark.parametrize("name", MASKS)
def test_golden_masks(name):
    """Masks of 2 x 2 cells that were worked out by hand; neighbors lie at 0.7071 of a diagonal, just outside."""
    first, second, rows = MASKS[name]
    match = match_positions(torch.tensor([[first, second]], dtype=torch.float64), (2, 2))
    assert ["".join(str(int(cell)) for cell in row) for row in match[0]] == rows


@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
@pytest.mark.parametrize("radius", [0.7, 1.5])
def test_match_equals_loops(size, radius):
    """Cell by cell: centers nearer than radius times the longer diagonal, in px, for boxes of any shape and direction."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(6, 2, 4, generator=generator, dtype=torch.float64) * 100
    boxes[:, :, 3] = boxes[:, :, 1] + 40 + boxes[:, :, 3]  # y grows; x may go either way
    match, (h, w) = match_positions(boxes, size, radius), size
    for image, i, j in itertools.product(range(6), range(h * w), range(h * w)):
        centers, diagonals = [], []
        for (x0, y0, x1, y1), cell in zip(boxes[image].tolist(), (i, j)):
            centers.append((x0 + (cell % w + 0.5) * (x1 - x0) / w, y0 + (cell // w + 0.5) * (y1 - y0) / h))
            diagonals.append(math.hypot((x1 - x0) / w, (y1 - y0) / h))
        assert bool(match[image, i, j]) == (math.dist(*centers) < radius * max(diagonals))
    assert match.any() and not match.all()


def test_a_mirrored_box_permutes_the_columns():
    """Mirroring the second view exchanges the columns of its cells, row by row, and nothing else."""
    boxes = torch.tensor([[[10.0, 20, 110, 90], [40, 10, 140, 100]]])
    mirrored = boxes.clone()
    mirrored[:, 1] = boxes[:, 1, [2, 1, 0, 3]]
    plain, flipped = (match_positions(b, (4, 5)).view(1, 20, 4, 5) for b in (boxes, mirrored))
    assert plain.any() and torch.equal(flipped, plain.flip(3)) and not torch.equal(flipped, plain)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_propagation_equals_loops(gamma):
    """y_i is the unit vector of the sum of all values, each weighed by max(cos, 0) to the power of gamma."""
    x, values = unit(2, 6, 3), unit(2, 6, 3, seed=1)
    found = propagate(x, values, gamma)
    for image, i in itertools.product(range(2), range(6)):
        total = sum(max(float(x[image, i] @ x[image, j]), 0) ** gamma * values[image, j] for j in range(6))
        torch.testing.assert_close(found[image, i], total / total.norm())


def test_sharp_propagation_is_none():
    """A large gamma leaves each cell alone with its value, and so do features at right angles whatever gamma is."""
    x, values = unit(2, 6, 8), unit(2, 6, 8, seed=1)
    torch.testing.assert_close(propagate(x, values, 400.0), values)
    assert (propagate(x, values, 1.0) - values).abs().max() > 0.1
    apart = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    torch.testing.assert_close(propagate(apart, values, 1.0), values)


def test_gradient_flows_through_attention_and_values():
    """Both ways into the propagation carry a gradient of their own, the right one."""
    x, values = unit(1, 4, 3).requires_grad_(), unit(1, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(propagate, (x, values))
    for gradient in torch.autograd.grad(propagate(x, values)[..., 0].sum(), (x, values)):
        assert gradient.abs().max() > 1e-2


def test_golden_consistency():
    """One direction on identical boxes, no transformation: the value of an independent implementation, which divides by 4 + 1e-6 pairs as
    the release does."""
    x, key = (u(fill((3, 2, 2), *ab).flatten(1).T[None]) for ab in ((), (0.53, 0.2)))
    match = match_positions(torch.tensor([[[0.0, 0, 1, 1]] * 2]), (2, 2))
    assert float(pixel_consistency(propagate(x, x), key, match)) == pytest.approx(-0.284054838731 * (4 + 1e-6) / 4, abs=1e-9)


@pytest.mark.parametrize("empty", ["skip", "zero"])
def test_consistency_equals_loops(empty):
    """Mean over the matched pairs of an image, then over images: those with a match, or all; no gradient to the targets."""
    y, z, match = unit(3, 5, 4).requires_grad_(), unit(3, 5, 4, seed=1).requires_grad_(), random_match()
    means = []
    for image in range(3):
        scores = [float(y[image, i].detach() @ z[image, j].detach()) for b, i, j in pairs_of(match) if b == image]
        means += [sum(scores) / len(scores)] if scores else [0.0] if empty == "zero" else []
    loss = pixel_consistency(y, z, match, empty)
    assert float(loss.detach()) == pytest.approx(-sum(means) / len(means), abs=1e-12) and len(means) == (3 if empty == "zero" else 2)
    loss.backward()
    assert z.grad is None and y.grad[0].abs().max() > 0 and not y.grad[1].any() and not y.grad[0, 2].any()


@pytest.mark.parametrize("empty", ["skip", "zero"])
def test_matched_contrast_equals_loops(empty):
    """-log of the matched share of all cells, for each cell with a match; mean over the cells of an image, then over images."""
    x, z, match = unit(3, 5, 4).requires_grad_(), unit(3, 5, 4, seed=1), random_match(seed=2)
    means = []
    for image in range(3):
        terms = []
        for i in range(5):
            scores = [math.exp(float(x[image, i].detach() @ z[image, j]) / 0.3) for j in range(5)]
            if match[image, i].any():
                terms.append(-math.log(sum(s for j, s in enumerate(scores) if match[image, i, j]) / sum(scores)))
        means += [sum(terms) / len(terms)] if terms else [0.0] if empty == "zero" else []
    loss = matched_contrast(x, z, match, 0.3, empty)
    assert float(loss.detach()) == pytest.approx(sum(means) / len(means), abs=1e-9) and len(means) == (3 if empty == "zero" else 2)
    loss.backward()
    assert x.grad[0].abs().max() > 0 and not x.grad[1].any() and not x.grad[0, 2].any()
    assert torch.autograd.gradcheck(lambda a, b: matched_contrast(a, b, match, 0.3), (x, z.requires_grad_()))


@pytest.mark.parametrize("loss", [pixel_consistency, matched_contrast])
def test_disjoint_crops_give_zero(loss):
    """A batch of crops that share nothing has the loss zero and the gradient zero, not NaN, in bfloat16 too."""
    match = match_positions(torch.tensor([[[0.0, 0, 50, 50], [50, 50, 100, 100]]] * 2), (3, 3))
    assert not match.any()
    x = unit(2, 9, 4).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(propagate(x, x), x.detach(), match)
    value.backward()
    assert float(value.detach()) == 0 and not x.grad.any()


def test_autocast_does_not_lower_the_losses():
    """Within bfloat16 autocast the values are those of float32, to the last bit."""
    x, z, match = unit(3, 5, 4).float(), unit(3, 5, 4, seed=1).float(), random_match()

    def values():
        y = propagate(x, z)
        return torch.stack([pixel_consistency(y, z, match), matched_contrast(y, z, match)])

    wanted = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(values(), wanted)


def test_unknown_name_is_rejected():
    """An unknown way to count empty pairs raises, with the known ones in the sentence."""
    with pytest.raises(ValueError, match="skip, zero"):
        pixel_consistency(unit(1, 2, 3), unit(1, 2, 3), torch.ones(1, 2, 2, dtype=torch.bool), "ignore")


@pytest.mark.parametrize("method_cls", [PixPro, PixContrast])
def test_method_equals_its_parts(method_cls):
    """The loss is that of both directions, the other view's from the teacher: written out once more from the modules."""
    method = method_cls(network(bn_views="separate"), embed_dim=16).eval()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    batch = batch_for(method)
    match, loss = match_positions(batch["boxes"], (4, 4)), 0.0
    assert 0 < match.sum() < match.numel()
    for own, other, mask in (("view1", "view2", match), ("view2", "view1", match.transpose(1, 2))):
        x = method.head(method.network.backbone(method.normalize(batch[own])).feature_maps[-1]).flatten(2).transpose(1, 2)
        z = method.teacher(method.normalize(batch[other])).flatten(2).transpose(1, 2)
        if method_cls is PixPro:
            weight, bias = method.transform[0].weight[:, :, 0, 0], method.transform[0].bias
            loss = loss + pixel_consistency(propagate(u(x), u(x @ weight.T + bias)), u(z), mask)
        else:
            loss = loss + matched_contrast(u(x), u(z), mask, 0.3) / 2
    torch.testing.assert_close(method(**batch)["loss"], loss)


@pytest.mark.parametrize("method_cls", [PixPro, PixContrast])
def test_which_view_is_first_does_not_matter(method_cls):
    """Exchanging the views, and their boxes, leaves the loss as it is."""
    method = method_cls(network(bn_views="separate"), embed_dim=16)
    batch = batch_for(method)
    other = batch | {"view1": batch["view2"], "view2": batch["view1"], "boxes": batch["boxes"].flip(1)}
    torch.testing.assert_close(method(**batch)["loss"], method(**other)["loss"])


def test_crops_without_overlap_teach_nothing():
    """With disjoint crops PixPro's loss and every gradient of it are zero."""
    method = PixPro(network(), embed_dim=16)
    batch = batch_for(method) | {"boxes": torch.tensor([[[0.0, 0, 50, 50], [50, 50, 100, 100]]] * 4)}
    terms = method(**batch)
    terms["loss"].backward()
    assert float(terms["loss"].detach()) == 0 and float(terms["matched_images"]) == 0
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients and not any(g.any() for g in gradients)


def test_instance_branch():
    """Off, it has no weights; on, it adds its weight times the cosines of predicted and target vectors, averaged over the map."""
    assert not [n for n, _ in PixPro(network(), embed_dim=16).named_parameters() if "instance" in n or "predictor" in n]
    method = PixPro(network(bn_views="separate"), embed_dim=16, instance_weight=0.5).eval()
    batch, instance = batch_for(method), 0.0
    for own, other in (("view1", "view2"), ("view2", "view1")):
        features = method.network.backbone(method.normalize(batch[own])).feature_maps[-1]
        target = method.teacher.parts["instance"](method.teacher.features(method.normalize(batch[other])))
        instance -= cosine_to_target(method.predictor(method.instance_head(features)).mean((2, 3)), target.mean((2, 3)))
    terms = method(**batch)
    torch.testing.assert_close(terms["loss_instance"], instance.detach())
    torch.testing.assert_close(terms["loss"], terms["loss_pixel"] + 0.5 * instance)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_layers_of_the_transformation(layers):
    """So many convolutions; without any, what is propagated are the projections themselves."""
    method = PixPro(network(), embed_dim=16, ppm_layers=layers)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in method.transform) == layers
    if not layers:
        features = torch.randn(2, method.channels(), 4, 4)
        x = F.normalize(method.head(features).flatten(2).transpose(1, 2), dim=2)
        torch.testing.assert_close(method.predict(features), propagate(x, x))


def test_widths():
    """The hidden layer is twice as wide as the backbone."""
    method = PixContrast(network())
    assert method.head[0].out_channels == 2 * method.channels() and method.head[-1].out_channels == 256


def test_decoder_is_trained_where_the_head_stands_on_it():
    """With --attach decoder it is part of student and teacher, and gets a gradient."""
    method = PixPro(network(attach="decoder"), embed_dim=16)
    assert "decoder" in method.teacher.parts and method.head[0].in_channels == 16
    method(**batch_for(method))["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in method.network.decoder.parameters())
