"""The fine-tuning losses: values from an independent implementation, plain loops, invariances, mechanisms, the contract of the table."""

import json
import math
from itertools import product

import harness
import pytest
import torch
import torch.nn.functional as F
import yaml
from golden import fill, labels_of
from safetensors.torch import load_file
from same_run import differences, final_state
from test_losses import CLOSE
from test_resume import STEPS

from mscl_hf.config import FinetuningLossConfig
from mscl_hf.losses import (
    adaptive_affinity,
    affinity,
    affinity_decay,
    dice_loss,
    hard_pixel_cross_entropy,
    labels_at,
    one_versus_rest,
    region_mutual_information,
)
from mscl_hf.losses.affinity import MIN_PROBABILITY, SIZES
from mscl_hf.methods import SegmentationTraining, finetuning_losses
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES, Predicted, check_options, loss_terms
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.probe import logistic_regression, start_classifier
from mscl_hf.training.setup import build_optimizer

CLASSES = 8
LINE = torch.tensor([[0.8, 0.6], [0.2, 0.4]], dtype=torch.float64).log().view(1, 2, 1, 2)  # logits of two pixels side by side
SAME, EDGE = torch.tensor([[[0, 0]]]), torch.tensor([[[0, 1]]])
SQUARE = 2 * fill((4, 4, 3), 0.9, 0.3).permute(2, 0, 1)[None], torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 1], [2, 2, 255, 1], [2, 2, 0, 0]]])
EQUAL = torch.zeros(2, 2, 3, dtype=torch.float64)
SCORES, SHAPE = fill((1, 2, 8, 8), 0.7, 0.02), torch.zeros(1, 8, 8, dtype=torch.long)
SHAPE[:, 2:6, 3:7] = 1
TRUTH = F.one_hot(SHAPE, 2).permute(0, 3, 1, 2).double()


def rmi(p, y, **options):
    return region_mutual_information(p, y, **{"pool": 1, **options}).loss


def edge(*given, loss=affinity, **options):
    return loss(*given, **options).edge


def same(*given, loss=affinity, **options):
    return loss(*given, **options).same


OPPOSITE = torch.tensor([[-90.0, 90], [90, -90]], dtype=torch.float64).view(1, 2, 1, 2)  # certain of one class, certain of the other

GOLDENS = {
    "pair, one class": (same, (LINE, SAME), {}, 0.098082925301),
    "pair, one class, edge": (edge, (LINE, SAME), {}, 0),
    "pair, two classes": (edge, (LINE, EDGE), {}, 2.901917074699),
    "pair, two classes, rest": (same, (LINE, EDGE), {}, 0),
    "pair, beyond the map": (edge, (LINE, EDGE), {"size": 2}, 0),
    "adaptive, one class": (same, (LINE, SAME, EQUAL), {"loss": adaptive_affinity}, 0.032694308434),
    "adaptive, two classes": (edge, (LINE, EDGE, EQUAL), {"loss": adaptive_affinity}, 0.967305691566),
    "square, edge": (edge, SQUARE, {}, 2.507826811053),
    "square, rest": (same, SQUARE, {}, 0.441042621673),
    "square, edge, size 3": (edge, SQUARE, {"size": 3}, 2.729502626104),
    "square, rest, size 3": (same, SQUARE, {"size": 3}, 0.276227653467),
    "clipped": (same, (OPPOSITE, SAME), {}, 9.209419337939),
    "rmi": (rmi, (SCORES.sigmoid(), SHAPE), {}, 0.793157161727),
    "rmi, perfect": (rmi, (TRUTH, SHAPE), {}, -6.907972911512),
    "rmi, constant": (rmi, (torch.full_like(TRUTH, 0.3), SHAPE), {}, 1.238097538739),
    "bce": (one_versus_rest, (SCORES, SHAPE), {}, 1.672277335901),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_values(name, dtype):
    """Each term has the value of an implementation that shares no code with this one."""
    loss, given, options, wanted = GOLDENS[name]
    value = loss(*(t.to(dtype) if t.is_floating_point() else t for t in given), **options)
    assert value.item() == pytest.approx(wanted, **CLOSE[dtype])


@pytest.mark.parametrize("scale", [0.3, -1.0])
def test_rmi_of_single_pixels_has_a_closed_form(scale):
    """R = 1 and P = aY + b: half the log of S alpha / (a^2 S + alpha) + alpha per class, S the scatter of Y."""
    alpha = 5e-4
    p = scale * TRUTH + 0.2
    scatter = (TRUTH - TRUTH.mean((2, 3), keepdim=True)).square().sum((2, 3))
    wanted = (0.5 * (scatter * alpha / (scale**2 * scatter + alpha) + alpha).log()).sum()
    assert rmi(p, SHAPE, radius=1) == pytest.approx(wanted.item(), rel=1e-9)


# -- slow references -----------------------------------------------------------------------------------------------------------


def batch(seed=0, images=2, classes=3, height=5, width=6, ignored=0.2, dtype=torch.float64):
    logits = 2 * torch.randn(images, classes, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return logits, labels_of(images, height, width, classes=classes, ignored=ignored, seed=seed)


def slow_pairs(y, size, mode):
    """All (image, i, j) that count, by the definition."""
    images, height, width = y.shape

    def good(n, row, column):
        return 0 <= row < height and 0 <= column < width and y[n, row, column] != 255

    for n, row, column, down, right in product(range(images), range(height), range(width), (-size, 0, size), (-size, 0, size)):
        counts = (down or right) and good(n, row, column) and good(n, row + down, column + right)
        if counts and (mode == "pair" or good(n, row - down, column - right)):
            yield n, (row, column), (row + down, column + right)


def slow_affinity(logits, y, size, margin, mode, edge_weight, same_weight):
    p = logits.softmax(1).tolist()
    found = {True: [], False: []}
    for n, i, j in slow_pairs(y, size, mode):
        own, other = int(y[n][i]), int(y[n][j])
        for c in range(len(p[n])):
            a, b = p[n][c][i[0]][i[1]], p[n][c][j[0]][j[1]]
            a, b, not_a, not_b = (max(x, MIN_PROBABILITY) for x in (a, b, 1 - a, 1 - b))
            kl = b * math.log(b / a) + not_b * math.log(not_b / not_a)
            apart = (own == c) != (other == c)
            found[apart].append(edge_weight[own] * max(0.0, margin - kl) if apart else same_weight[own] * kl)
    return [sum(found[apart]) / max(1, len(found[apart])) for apart in (True, False)]


@pytest.mark.parametrize(
    "size, mode, margin", [(1, "pair", 3.0), (2, "pair", 0.7), (3, "pair", 3.0), (1, "released", 3.0), (2, "released", 0.7)]
)
def test_affinity_equals_the_loops(size, mode, margin):
    """Every pair of neighbors, every class, weighted by the class of the first pixel."""
    logits, y = batch()
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = affinity(logits, y, size, margin, mode, *weights)
    assert [x.item() for x in found] == pytest.approx(slow_affinity(logits, y, size, margin, mode, *weights.tolist()), rel=1e-9)
    assert found.same > 0 and (found.edge > 0 or mode == "released")


def test_adaptive_affinity_is_the_weighted_sum_over_sizes():
    """A softmax over sizes for each class, one for edges and one for the rest."""
    logits, y = batch(height=8, width=7)
    sizes = fill((2, 3, 3), 1.3)
    weights = sizes.softmax(2).tolist()
    slow = [slow_affinity(logits, y, s, 3.0, "pair", *([row[k] for row in weights[w]] for w in (0, 1))) for k, s in enumerate(SIZES)]
    found = adaptive_affinity(logits, y, sizes)
    assert [x.item() for x in found] == pytest.approx([sum(part) for part in zip(*slow)], rel=1e-9)


def slow_rmi(p, y, radius, alpha, pool, stride, padding):
    images, classes, height, width = p.shape
    total = 0.0

    def pooled(pixel):
        """The mean over each pooling window, what lies outside being zero."""
        rows, columns = ((length + 2 * padding - pool) // stride + 1 for length in (height, width))
        out = torch.zeros(rows, columns, dtype=torch.float64)
        for r, c, dr, dc in product(range(rows), range(columns), range(pool), range(pool)):
            row, column = r * stride - padding + dr, c * stride - padding + dc
            if 0 <= row < height and 0 <= column < width:
                out[r, c] += pixel(row, column) / pool**2
        return out

    def vectors(grid):
        places = product(range(grid.shape[0] - radius + 1), range(grid.shape[1] - radius + 1))
        return torch.stack([grid[r : r + radius, c : c + radius].flatten() for r, c in places])  # (n, d)

    for n, k in product(range(images), range(classes)):
        a = vectors(pooled(lambda r, c, n=n, k=k: float(y[n, r, c] == k)))
        b = vectors(pooled(lambda r, c, n=n, k=k: float(p[n, k, r, c]) if y[n, r, c] != 255 else 0.0))
        a, b = a - a.mean(0), b - b.mean(0)
        unit = torch.eye(radius**2, dtype=torch.float64)
        rest = a.T @ a - a.T @ b @ torch.linalg.inv(b.T @ b + alpha * unit) @ b.T @ a
        total += 0.5 * torch.logdet(rest + alpha * unit).item() / radius**2 / images
    return total


@pytest.mark.parametrize(
    "radius, alpha, pool, stride, padding", [(3, 5e-4, 1, 1, 0), (3, 5e-4, 2, 2, 1), (2, 0.1, 4, 4, 2), (2, 5e-4, 3, 2, 0)]
)
def test_rmi_equals_the_loops(radius, alpha, pool, stride, padding):
    """Pooling with zeros around, windows, scatter matrices and log-determinants, image by image and class by class."""
    logits, y = batch(height=13, width=11)
    value = region_mutual_information(logits.sigmoid(), y, radius, alpha, pool, stride, padding)
    assert value.loss == pytest.approx(slow_rmi(logits.sigmoid(), y, radius, alpha, pool, stride, padding), rel=1e-8)
    assert value.retries == 0


def test_rmi_pools_as_published():
    """Left alone, the stride is the window and the padding half of it."""
    logits, y = batch(height=16, width=16)
    assert region_mutual_information(logits.sigmoid(), y).loss == rmi(logits.sigmoid(), y, pool=4, stride=4, padding=2)


def labelled(logits, y):
    """(probabilities over the classes, own class) of each labelled pixel."""
    for n, row, column in product(*map(range, y.shape)):
        if y[n, row, column] != 255:
            yield logits[n, :, row, column].softmax(0).tolist(), int(y[n, row, column])


def test_binary_cross_entropy_and_dice_equal_the_loops():
    """One against the rest: over the number of labelled pixels + 1. Dice: squares below, classes without a pixel left out."""
    logits, y = batch(classes=4)
    y[y == 3] = 0
    pixels = list(labelled(logits, y))
    overlaps = []
    for c in range(3):
        both, squares = (sum(f(p[c], own == c) for p, own in pixels) for f in (lambda p, t: p * t, lambda p, t: p * p + t))
        overlaps.append(2 * both / squares)
    assert dice_loss(logits, y) == pytest.approx(1 - sum(overlaps) / 3, rel=1e-9)
    bce = 0.0
    for n, c, row, column in product(*map(range, logits.shape)):
        if y[n, row, column] != 255:
            p = 1 / (1 + math.exp(-logits[n, c, row, column]))
            bce -= math.log(p if y[n, row, column] == c else 1 - p)
    assert one_versus_rest(logits, y) == pytest.approx(bce / (len(pixels) + 1), rel=1e-9)


@pytest.mark.parametrize("probability, share", [(0.7, 1 / 16), (0.01, 0.4), (0.3, 1e-9), (1.0, 0.5)])
def test_hard_pixels_equal_the_loops(probability, share):
    """Those at most so probable count, and at least so large a share; with probability 1 it is plain cross-entropy."""
    logits, y = batch()
    losses = sorted((-math.log(p[own]) for p, own in labelled(logits, y)), reverse=True)
    least = math.ceil(share * len(losses))
    kept = [loss for rank, loss in enumerate(losses) if rank < least or math.exp(-loss) <= probability]
    assert hard_pixel_cross_entropy(logits, y, probability, share) == pytest.approx(sum(kept) / len(kept), rel=1e-9)
    if probability == 1:
        assert len(kept) == len(losses)


# -- invariances and mechanisms ------------------------------------------------------------------------------------------------


FUNCTIONS = {
    "affinity": lambda x, y: sum(affinity(x, y)),
    "affinity released": lambda x, y: sum(affinity(x, y, 2, ignore_mode="released")),
    "aaf": lambda x, y: sum(adaptive_affinity(x, y, x.new_zeros(2, x.shape[1], 3))),
    "rmi": lambda x, y: region_mutual_information(x.sigmoid(), y).loss,
    "bce": one_versus_rest,
    "dice": dice_loss,
    "ohem": hard_pixel_cross_entropy,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ignored_pixels_count_for_nothing(name):
    """Their gradient is exactly zero, whatever they predict the value is the same, and the other pixels do get a gradient."""
    logits, y = batch(height=12, width=12, dtype=torch.float32)
    hidden = (y == 255)[:, None].expand_as(logits)
    logits.requires_grad_()
    value = FUNCTIONS[name](logits, y)
    value.backward()
    assert (logits.grad[hidden] == 0).all() and logits.grad[~hidden].abs().sum() > 0
    other = logits.detach().where(~hidden, 50 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)))
    assert FUNCTIONS[name](other, y) == value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_labelled_is_finite_with_a_graph(name):
    """A batch of ignored pixels only: finite, and a gradient of zero, not None and not NaN."""
    logits, y = batch(height=12, width=12, dtype=torch.float32)
    logits.requires_grad_()
    value = FUNCTIONS[name](logits, torch.full_like(y, 255))
    value.backward()
    assert value.isfinite() and (logits.grad == 0).all()


@pytest.mark.parametrize("turn", ["left to right", "upside down", "quarter", "half"])
@pytest.mark.parametrize("mode", ["pair", "released"])
def test_affinity_does_not_mind_turning(mode, turn):
    """Flips and rotations of predictions and labels together leave both means as they are."""
    turned = {
        "left to right": lambda x: x.flip(-1),
        "upside down": lambda x: x.flip(-2),
        "quarter": lambda x: x.rot90(1, (-2, -1)),
        "half": lambda x: x.rot90(2, (-2, -1)),
    }[turn]
    logits, y = batch(height=7, width=7)
    for size in SIZES:
        before, after = affinity(logits, y, size, ignore_mode=mode), affinity(turned(logits), turned(y), size, ignore_mode=mode)
        assert [x.item() for x in after] == pytest.approx([x.item() for x in before], rel=1e-9)


def test_released_mode_excludes_a_superset():
    """It keeps none of the pairs that the default drops and fewer than it; a map of two windows has none left."""
    logits, y = batch(height=6, width=6)
    for size in (1, 2):
        assert set(slow_pairs(y, size, "released")) < set(slow_pairs(y, size, "pair"))
    assert sum(affinity(logits, y, 3, ignore_mode="released")) == 0 < sum(affinity(logits, y, 3))


def test_no_edge_is_zero_and_so_is_a_map_of_one_pixel():
    """One class only: the edge term is 0 where a mean over nothing would be NaN, and its gradient is 0."""
    for side in (1, 5):
        logits = batch(height=side, width=side)[0].requires_grad_()
        sizes = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
        found = adaptive_affinity(logits, torch.zeros(2, side, side, dtype=torch.long), sizes)
        sum(found).backward()
        assert found.edge == 0 and logits.grad.isfinite().all() and (sizes.grad[0] == 0).all()
        assert (found.same > 0) == (side > 1)


def test_sizes_ascend():
    """One step of a descending optimizer: a class's weight of its worst predicted size grows, that of the best falls, the loss rises; the
    network's gradient keeps its sign."""
    logits, y = batch(height=8, width=8)
    sizes = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    before = sum(adaptive_affinity(logits, y, sizes))
    before.backward()
    stepped = (sizes - 0.1 * sizes.grad).detach()
    assert sum(adaptive_affinity(logits, y, stepped)) > before
    for part, c in product((0, 1), range(3)):
        own = torch.eye(3, dtype=torch.float64)[c]  # the terms of this class alone, size by size
        losses = [affinity(logits, y, s, edge_weight=own, same_weight=own)[part].item() for s in SIZES]
        weights = stepped[part, c].softmax(0)
        assert weights.argmax() == max(range(3), key=losses.__getitem__) and weights.argmin() == min(range(3), key=losses.__getitem__)
        assert weights.max() > 1 / 3 > weights.min()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(sum(adaptive_affinity(logits, y, sizes)), logits)
    assert sum(adaptive_affinity(logits.detach() - 0.1 * gradient, y, sizes)) < before


def test_decay():
    """1 at the start, a tenth at the end."""
    assert [affinity_decay(t) for t in (0, 0.5, 1)] == pytest.approx([1, 10**-0.5, 0.1])


def test_rmi_sees_variation_only():
    """A constant added to the probabilities changes nothing, a factor does."""
    p = SCORES.sigmoid()
    assert rmi(p + 0.37, SHAPE) == pytest.approx(rmi(p, SHAPE).item(), rel=1e-9)
    assert abs(rmi(0.5 * p, SHAPE) - rmi(p, SHAPE)) > 1e-3


def test_rmi_is_least_for_the_truth():
    """Any perturbation of a perfect prediction, small or large, costs."""
    best = rmi(TRUTH, SHAPE)
    for seed, size in product(range(5), (1e-3, 0.03, 0.3)):
        noise = torch.randn(TRUTH.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert rmi((TRUTH + size * noise).clamp(0, 1), SHAPE) > best


def test_rmi_of_an_absent_class():
    """Half the log of alpha, whatever is predicted, and no gradient."""
    p = SCORES.sigmoid().requires_grad_()
    value = rmi(p, torch.full_like(SHAPE, 1))  # class 0 is absent, class 1 everywhere: both maps are constant
    value.backward()
    assert value.item() == pytest.approx(2 * 0.5 * math.log(5e-4)) and p.grad.abs().max() < 1e-9


def test_rmi_runs_in_float64_under_autocast():
    """float32 probabilities inside bfloat16 autocast: a float64 value, the same as outside."""
    p = SCORES.sigmoid().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = rmi(p, SHAPE)
    assert inside.dtype == torch.float64 and inside == rmi(p, SHAPE)


def test_rmi_tries_again_with_a_larger_alpha():
    """Singular matrices and an alpha below rounding: factorized at last, counted, finite with a finite gradient; NaN stays NaN."""
    p = TRUTH.clone().requires_grad_()
    found = region_mutual_information(p, SHAPE, alpha=1e-25, pool=1)
    found.loss.backward()
    assert found.retries > 0 and found.loss.isfinite() and p.grad.isfinite().all()
    assert rmi(torch.full_like(TRUTH, math.nan), SHAPE).isnan()


def test_shapes_and_names_are_rejected():
    """Labels of another size, an unknown mode, sizes that do not fit, a window larger than the map: one sentence each."""
    logits, y = batch()
    for loss in (affinity, dice_loss, one_versus_rest, region_mutual_information):
        with pytest.raises(ValueError, match=r"expected \(B, K, H, W\) and \(B, H, W\)"):
            loss(logits, y[:, 1:])
    for call, words in (
        (lambda: affinity(logits, y, ignore_mode="both"), "pair, released"),
        (lambda: affinity(logits, y, 0), "at least 1"),
        (lambda: adaptive_affinity(logits, y, torch.zeros(2, 3, 2)), r"\(2, 3, 3\)"),
        (lambda: region_mutual_information(logits, y), "--rmi-pool"),
        (lambda: hard_pixel_cross_entropy(logits, y, share=0), r"\(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# -- the table, the method, the recipe -----------------------------------------------------------------------------------------


def tuning(loss: str, seed: int = 0, dropout: float = 0.3, **options) -> SegmentationTraining:
    torch.manual_seed(seed)
    network = MsclForSemanticSegmentation(harness.config(decoder_dropout=dropout, num_labels=CLASSES))
    return SegmentationTraining(network, FinetuningLossConfig(loss, **options))


def fixed_batch() -> dict:
    """Four synthetic scenes, enlarged so that windows of every size fit into the network's map."""
    given = next(iter(harness.training_data("finetune").batches(0, 1)))
    return given | {key: given[key].repeat_interleave(4, -1).repeat_interleave(4, -2) for key in ("image", "mask")}


def every_parameter(method):
    return [p for p in method.parameters() if p.requires_grad]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FINETUNING_LOSSES)
def test_thirty_steps_on_one_batch_bring_the_loss_down(name, precision):
    """Every loss of the table is learnt on a fixed batch, and stays finite in bfloat16."""
    method, given = tuning(name, dropout=0).train(), fixed_batch()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            terms = method(**given)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 5.0)
        assert all(value.isfinite() for value in terms.values()) and all(p.grad.isfinite().all() for p in every_parameter(method))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(terms["loss"].item())
    assert sum(losses[-5:]) / 5 < losses[0] - 0.1 * abs(losses[0])


def test_cross_entropy_is_what_the_model_computes():
    """"ce", which is the default, is the model's own loss to the last bit: cross-entropy of both heads at the labels' size."""
    given, method = fixed_batch(), tuning("ce", dropout=0).train()
    labels = given["mask"].long()
    value = method(**given)
    logits, auxiliary = method.network.both_logits(method.normalize(given["image"]))
    full, side = (F.interpolate(x, size=labels.shape[-2:], mode="bilinear", align_corners=False) for x in (logits, auxiliary))
    wanted = F.cross_entropy(full, labels, ignore_index=255) + 0.4 * F.cross_entropy(side, labels, ignore_index=255)
    assert set(value) == {"loss"} and value["loss"] == method.network(method.normalize(given["image"]), labels=labels).loss
    torch.testing.assert_close(value["loss"], wanted)
    assert SegmentationTraining(method.network).loss_config.loss == "ce"


@pytest.mark.parametrize("name", FINETUNING_LOSSES)
def test_unlabelled_batch_reaches_every_parameter(name):
    """A first batch without a label must not take anything out of training: finite, and a gradient for all that trains otherwise."""
    method, given = tuning(name).train(), fixed_batch()
    reached = []
    for mask in (given["mask"], torch.full_like(given["mask"], 255)):
        value = method(**(given | {"mask": mask}))
        value["loss"].backward()
        assert all(x.isfinite() for x in value.values())
        reached.append({n for n, p in method.named_parameters() if p.grad is not None})
        method.zero_grad()
    assert reached[0] == reached[1] and ("size_logits" in reached[0]) == (name == "ce+aaf")


def expected(method, given, extra) -> torch.Tensor:
    """Terms and weights of the loss, from the functions."""
    labels = given["mask"].long()
    logits, auxiliary = method.network.both_logits(method.normalize(given["image"]))
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    small = labels_at(labels, logits.shape[-2:]).view(-1, *logits.shape[-2:])
    return extra(logits, small, full, labels) + 0.4 * method.network.cross_entropy(auxiliary, labels)


SUMS = {
    "ce+affinity": (
        {"affinity_edge": 2.0, "affinity_margin": 1.0, "affinity_ignore": "released"}, {"ce", "affinity"},
        lambda x, y, full, labels: F.cross_entropy(full, labels, ignore_index=255)
        + 0.1 * (affinity(x, y, 1, 1.0, "released").edge * 2 + affinity(x, y, 1, 1.0, "released").same),
    ),
    "ce+aaf": (
        {"affinity_same": 0.5}, {"ce", "aaf"},
        lambda x, y, full, labels: F.cross_entropy(full, labels, ignore_index=255)
        + 0.1 * sum(a * b for a, b in zip((1, 0.5), adaptive_affinity(x, y, torch.zeros(2, CLASSES, 3)))),
    ),
    "bce+rmi": (
        {"rmi_lam": 0.2, "rmi_radius": 2, "rmi_pool": 3}, {"bce", "rmi"},
        lambda x, y, full, labels: 0.2 * one_versus_rest(full, labels)
        + 0.8 * region_mutual_information(full.sigmoid(), labels, 2, pool=3).loss,
    ),
    "ce+dice": (
        {"dice_weight": 3.0}, {"ce", "dice"},
        lambda x, y, full, labels: F.cross_entropy(full, labels, ignore_index=255) + 3 * dice_loss(full, labels),
    ),
    "ohem": (
        {"ohem_probability": 0.1, "ohem_share": 0.3}, {"ohem"},
        lambda x, y, full, labels: hard_pixel_cross_entropy(full, labels, 0.1, 0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_loss_is_the_sum_of_its_terms(name):
    """Every option arrives, the auxiliary head has cross-entropy, affinity ends at a tenth; each term is logged, without a graph."""
    options, terms, extra = SUMS[name]
    method, given = tuning(name, dropout=0, **options).train(), fixed_batch()
    method.fraction_done = 1.0
    value = method(**given)
    assert value["loss"].item() == pytest.approx(expected(method, given, extra).item(), rel=1e-5)
    assert {key for key in value if key.startswith("loss_")} == {f"loss_{term}" for term in terms | {"auxiliary"}}
    assert not any(x.requires_grad for key, x in value.items() if key != "loss")
    if "affinity" in name or "aaf" in name:
        method.fraction_done = 0.0
        raw = float(value["loss_affinity" if "affinity" in name else "loss_aaf"])
        assert raw > 0 and (method(**given)["loss"] - value["loss"]).item() == pytest.approx(0.9 * raw, rel=1e-3)


def test_size_weights_are_learnt_upwards_and_not_decayed():
    """Through the method: they start equal, one step raises the loss as a function of them alone; their weight decay is zero."""
    method, given = tuning("ce+aaf", dropout=0).train(), fixed_batch()
    optimizer = build_optimizer(method, harness.options(weight_decay=0.5))
    group = next(g for g in optimizer.param_groups if any(p is method.size_logits for p in g["params"]))
    assert group["weight_decay"] == 0 and (method.size_logits == 0).all()
    before = method(**given)
    before["loss"].backward()
    with torch.no_grad():
        method.size_logits -= 10 * method.size_logits.grad
    assert method.size_logits.abs().max() > 0 and method(**given)["loss"] > before["loss"]


def test_adaptive_affinity_resumes_exactly(tmp_path):
    """SIGTERM after step 3, then a resumed run: weights, size weights, optimizer and log equal those of an undisturbed run."""
    data, options = harness.training_data("finetune"), {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1}
    harness.train(tuning("ce+aaf"), data, tmp_path / "straight", **options)
    method = tuning("ce+aaf")
    harness.stop_after(method, 3, STEPS)
    with pytest.raises(SystemExit):
        harness.train(method, data, tmp_path / "stopped", **options)
    resumed = tuning("ce+aaf", seed=99)
    resumed.size_logits.data.fill_(7.0)
    harness.train(resumed, data, tmp_path / "stopped", **options)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []
    assert final_state(tmp_path / "straight")["method/size_logits"].abs().max() > 0


def test_progress_reaches_the_loss(tmp_path):
    """The loop tells the share of training done before each step: the decay follows it."""
    seen = []
    method = tuning("ce+affinity")
    whole = method.forward
    method.forward = lambda **given: seen.append(method.fraction_done) or whole(**given)
    harness.train(method, harness.training_data("finetune"), tmp_path, max_steps=4)
    assert seen[-4:] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"loss": "ce+aff"}, ("'ce+aff'", "ce+affinity", "ohem")),
        ({"loss": "ce", "rmi_lam": 0.3}, ("--rmi-lam", "bce+rmi")),
        ({"loss": "bce+rmi", "affinity_margin": 2.0}, ("--affinity-margin", "ce+affinity or ce+aaf")),
        ({"loss": "bce+rmi", "rmi_lam": 1.5}, ("--rmi-lam is 1.5", "at most 1")),
        ({"loss": "bce+rmi", "rmi_pool": 0}, ("--rmi-pool", "at least 1")),
        ({"loss": "ce+aaf", "affinity_margin": math.nan}, ("--affinity-margin is nan", "above 0")),
        ({"loss": "ce+aaf", "affinity_ignore": "both"}, ("--affinity-ignore", "pair, released")),
        ({"loss": "ce+dice", "dice_weight": -1.0}, ("--dice-weight", "at least 0")),
        ({"loss": "ohem", "ohem_share": 0.0}, ("--ohem-share", "above 0")),
    ],
)
def test_bad_names_and_options_are_rejected(given, words):
    """An unknown loss, an option that the loss does not read, a value out of range: one sentence, by the name of the flag."""
    with pytest.raises(ValueError) as rejected:
        check_options(FinetuningLossConfig(**given))
    assert all(word in str(rejected.value) for word in words) and "\n" not in str(rejected.value)


@pytest.mark.parametrize("name", FINETUNING_LOSSES)
def test_every_loss_has_its_row(name):
    """What --list-losses prints is there, and the options named are options."""
    row = FINETUNING_LOSSES[name]
    assert row.title and row.paper and row.adds and (row.year or name == "ce")
    assert set(row.options) <= {f for f in FinetuningLossConfig.__dataclass_fields__ if f != "loss"}


def test_recipe_fine_tunes_by_name(tmp_path):
    """--loss and its options reach the run and its record; a crop too small for RMI's windows is rejected before the first step."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--output-dir", tmp_path / "none", pictures=True)
    short = ("--model", tmp_path / "none", *harness.SHORT, "--max-steps", 2, "--val-split", "none", "--probe-batches", 1)
    harness.run("finetune", *short, "--loss", "ce+aaf", "--affinity-margin", 2, "--output-dir", tmp_path / "aaf", pictures=False)
    record = json.loads((tmp_path / "aaf" / "run.json").read_text())
    assert (record["loss"], record["affinity_margin"], record["rmi_lam"]) == ("ce+aaf", 2.0, None)
    rows = [json.loads(line) for line in (tmp_path / "aaf" / "log.jsonl").read_text().splitlines()]
    assert all({"loss_ce", "loss_aaf", "loss_auxiliary"} <= row.keys() for row in rows)
    assert "size_logits" in load_file(checkpoint_folder.complete(tmp_path / "aaf")[-1] / "method.safetensors")
    message = harness.rejected("finetune", *short, "--loss", "bce+rmi", "--rmi-pool", 32, "--output-dir", tmp_path / "rmi")
    assert "--rmi-pool" in message and not checkpoint_folder.complete(tmp_path / "rmi")


def test_the_classifier_of_a_sigmoid_loss_starts_one_against_the_rest():
    """Its regression ends where the gradient of the binary cross-entropies is zero, and the method decides which of the two is fitted."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (300,), generator=generator)
    x = F.one_hot(y, 3).float() + torch.randn(300, 3, generator=generator)
    weight, bias = (value.double().requires_grad_() for value in logistic_regression(x, y, 4, penalty=0.01, sigmoid=True))
    logits, loss = F.linear(x.double(), weight, bias), 0.01 * (weight.square().sum() + bias.square().sum())
    for c in range(4):
        loss = loss - (torch.where(y == c, logits[:, c], -logits[:, c]).sigmoid().log()).mean()
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    fitted = []
    for name in ("ce", "ohem", "bce+rmi"):
        method = tuning(name)
        start_classifier(method, harness.training_data("finetune"), 1)
        fitted.append(method.network.classifier.bias.detach())
    assert torch.equal(fitted[0], fitted[1]) and not torch.allclose(fitted[0], fitted[2], atol=0.1)
    assert fitted[2].mean() < fitted[0].mean() - 0.5  # each class is rarer than all others together; a softmax does not know


def test_comparison_of_losses_differs_in_the_loss_only():
    """The specification has a cell for every loss, all from one pre-training, with the settings of `none` in compare_camvid."""
    folder = harness.ROOT / "recipes" / "benchmarks" / "configs"
    spec, other = (yaml.safe_load((folder / f"compare_{name}.yaml").read_text()) for name in ("losses_camvid", "camvid"))
    assert [cell.get("finetune", {}).get("loss", "ce") for cell in spec["cells"].values()] == list(FINETUNING_LOSSES)
    assert all(cell.get("from") == "ce" and set(cell["finetune"]) == {"loss"} for name, cell in spec["cells"].items() if name != "ce")
    assert all(spec[key] == other[key] for key in ("dataset", "seeds", "common", "finetune", "evaluate")) and spec["baseline"] == "ce"
    assert spec["pretrain"]["method"] == "none" and not spec["cells"]["ce"]


def saved_numbers(function) -> int:
    """How many numbers a function keeps for its backward pass, each counted once."""
    counts = {}

    def keep(x):
        counts[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = function()
    assert value.requires_grad
    return sum(counts.values())


def loss_value(name, logits, labels):
    sizes = torch.zeros(2, logits.shape[1], len(SIZES)) if FINETUNING_LOSSES[name].learns_sizes else None
    terms, _ = loss_terms(FinetuningLossConfig(loss=name), Predicted(logits, labels, 0.5, sizes))
    return sum(weight * value for weight, value in terms.values())


@pytest.mark.parametrize(("name", "most"), [("ce+affinity", 14), ("ce+aaf", 42), ("bce+rmi", 1)])
def test_the_memory_of_affinity_and_rmi_is_that_of_few_maps(name, most):
    """Affinity keeps some maps of the logits' size and not those of its 8 or 24 neighbors, RMI no map at the labels' size."""
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 40, 24, 24, requires_grad=True), torch.randint(0, 40, (1, 96, 96))
    assert saved_numbers(lambda: loss_value(name, logits, labels)) < most * logits.numel()


@pytest.mark.parametrize("name", ["ce+dice", "ohem"])
def test_dice_and_ohem_keep_no_logits_of_the_labels_size(name):
    """What they keep for the backward pass is less than one map of 40 classes at the size of the labels."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 40, 24, 24, requires_grad=True), torch.randint(0, 40, (2, 96, 96))
    assert saved_numbers(lambda: loss_value(name, logits, labels)) < 2 * logits.numel() + 6 * labels.numel() < 40 * 96 * 96


@pytest.mark.parametrize("name", ["ce+dice", "ohem"])
def test_dice_and_ohem_of_images_in_parts_are_those_of_all(monkeypatch, name):
    """One, two or all images at once: the same value and gradient, also with an image without labels."""
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7, 10, 12, dtype=torch.float64, requires_grad=True), torch.randint(0, 7, (5, 40, 48))
    labels[3], labels[0, :9] = 255, 255
    values = []
    for images in (1, 2, 5):
        monkeypatch.setattr(finetuning_losses, "BYTES_AT_ONCE", images * 7 * 40 * 48 * 8)
        value = loss_value(name, logits, labels)
        values.append((value, *torch.autograd.grad(value, logits)))
    for value, gradient in values:
        torch.testing.assert_close(value, values[0][0])
        torch.testing.assert_close(gradient, values[0][1])


def test_rmi_of_classes_in_parts_is_that_of_all(monkeypatch):
    """The number of classes at once changes neither the value nor the gradient."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, 10, 12, dtype=torch.float64, requires_grad=True), torch.randint(0, 7, (2, 40, 48))
    labels[:, :5] = 255
    full = F.interpolate(logits, size=(40, 48), mode="bilinear")
    wanted = 0.5 * one_versus_rest(full, labels) + 0.5 * region_mutual_information(full.sigmoid(), labels).loss
    (wanted_grad,) = torch.autograd.grad(wanted, logits)
    for count in (1, 3, 7):
        monkeypatch.setattr(finetuning_losses, "CLASSES_AT_ONCE", count)
        value = loss_value("bce+rmi", logits, labels)
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], wanted_grad)
