"""Semi-supervised fine-tuning against its formulas: teacher, views, losses, and the limits that are plain fine-tuning."""

import copy
import math

import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mscl_hf.config import FinetuningLossConfig, SemiSupervisedConfig
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.losses import mean_over_valid, pixel_contrast, regional_contrast, summed_binary_cross_entropy, summed_squared_difference
from mscl_hf.methods import RunSize, SegmentationTraining, create_training
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES
from mscl_hf.methods.semi_supervised import SEMI_SUPERVISED, Targets, channel_factors, cutmix
from mscl_hf.methods.teacher import rising_momentum
from mscl_hf.models.cross_entropy_mscl import summed_cross_entropy
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.training.pseudo_labels import PseudoLabelCheck
from mscl_hf.transforms.unlabelled_view import SemiSupervisedView, cutmix_box
from mscl_hf.transforms.views import TrainView

SIZE, BATCH, STEPS = harness.SIZE, harness.BATCH, 6
RANDOM = np.random.default_rng


def training(name="fixmatch", seed=0, backbone="test_resnet", loss="ce", dropout=0.3, **options):
    """A semi-supervised method on a new network; confidence_threshold 0 unless given, since a new network is not confident."""
    torch.manual_seed(seed)
    network = MsclForSemanticSegmentation(harness.config(backbone, decoder_dropout=dropout, num_labels=8))
    given = {"unlabelled": "rest", "semi_supervised": name, "confidence_threshold": 0.0} if name != "none" else {}
    config = SemiSupervisedConfig(**given | options)
    return create_training(network, FinetuningLossConfig(loss=loss), None, config, RunSize(16, BATCH, STEPS), lambda text: None)


def semi_data(name="fixmatch", seed=0, unlabelled=8, added=BATCH, cutmix=0.5):
    """Batches of BATCH labelled and `added` unlabelled scenes."""
    view = SemiSupervisedView(SIZE, SIZE, strong_views=SEMI_SUPERVISED[name].strong_views, cutmix=cutmix)
    plan = SamplingPlan(tuple(range(harness.SCENES)), tuple(range(unlabelled)), BATCH + added, BATCH, seed)
    return TrainingImages(harness.scenes(), harness.scenes(unlabelled, unlabelled=True, seed=1), view, seed, plan)


def first_batch(name="fixmatch", **options):
    return next(semi_data(name, **options).batches(0, 1))


# -- data -----------------------------------------------------------------------------------------------------------------------


def test_labelled_samples_are_those_of_plain_fine_tuning():
    """Unlabelled images beside them change no labelled sample, crop or color."""
    plain = TrainingImages(
        harness.scenes(), None, TrainView(SIZE, SIZE), 0, SamplingPlan(tuple(range(harness.SCENES)), (), BATCH, BATCH, 0)
    )
    for ours, theirs in zip(semi_data().batches(0, 4), plain.batches(0, 4)):
        assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["mask"], theirs["mask"])
        assert ours["name"][:BATCH] == theirs["name"]


def test_views_of_an_unlabelled_image_share_one_crop():
    """Without color changes the strong views are the weak one; padding is where the crop leaves the image."""
    view = SemiSupervisedView(SIZE, SIZE, strong_views=2, cutmix=0.0, scales=(0.4, 0.5))
    sample = harness.scenes(1, unlabelled=True).read(0)
    views = view(sample, RANDOM(0))
    assert not views["inside"].all() and (torch.tensor([124, 116, 104]) == views["weak"][:, ~views["inside"]].T).all()
    assert views["boxes"].tolist() == [[0, 0, 0, 0]] * 2
    for number in "12":
        views[f"strong{number}_color"] = torch.tensor([1.0, 0, 0] * 7 + [0, 0, 0])
    batch = view.on_device({key: value[None] for key, value in views.items()})
    assert torch.equal(batch["strong1"], batch["weak"]) and torch.equal(batch["strong2"], batch["weak"])
    first, second = (first_batch("unimatch")[f"strong{number}"] for number in "12")
    assert (first != second).any()


def test_rectangles_have_the_published_sizes():
    """Areas of 0.02 to 0.4, aspect ratios of 0.3 to 1/0.3, inside of the view."""
    rng, sides = RANDOM(0), (96, 128)
    boxes = np.array([cutmix_box(*sides, rng) for _ in range(2000)])
    high, wide = (boxes[:, 2:] - boxes[:, :2]).T
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 128).all()
    share = high * wide / (96 * 128)
    assert 0.017 < share.min() < 0.03 and 0.35 < share.max() <= 0.4
    assert 0.27 < (high / wide).min() < 0.4 and 2.5 < (high / wide).max() < 3.7


def test_cutmix_pastes_image_labels_confidence_and_padding_alike():
    """Each pixel of the rectangle is the partner's in everything that belongs to a view; the partner is half of the batch away."""
    torch.manual_seed(0)
    boxes = torch.tensor([[0, 0, 2, 3], [1, 1, 4, 4], [0, 0, 0, 0], [2, 0, 4, 4]])
    image, labels = torch.rand(4, 3, 4, 4), torch.randint(8, (4, 4, 4))
    targets = Targets(labels, torch.rand(4, 4, 4), torch.rand(4, 4, 4) < 0.5, torch.rand(4, 8, 4, 4))
    for values, mixed in zip((image, *targets), (cutmix(image, boxes), *targets.mixed(boxes))):
        expected = values.clone()
        for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
            expected[i, ..., top:bottom, left:right] = values[(i + 2) % 4, ..., top:bottom, left:right]
        assert torch.equal(mixed, expected)


def test_labelled_images_alone_are_the_same_batches():
    """The classifier is fitted without decoding an unlabelled image."""
    alone = semi_data().labelled_alone()
    for ours, theirs in zip(alone.batches(0, 4), semi_data().batches(0, 4), strict=True):
        assert torch.equal(ours["image"], theirs["image"]) and "weak" not in ours and ours["name"] == theirs["name"][:BATCH]


# -- losses ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_losses_are_their_formulas(sigmoid):
    """Loops over pixels; the divisor counts all pixels that are not padding, not only the confident ones."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(5, (2, 3, 4))
    valid = torch.rand(2, 3, 4) < 0.7
    kept, probabilities = valid & (torch.rand(2, 3, 4) < 0.5), torch.rand(2, 5, 3, 4, dtype=torch.float64)
    cross_entropy = squared = 0.0
    for b, i, j in kept.nonzero().tolist():
        scores, label = logits[b, :, i, j], labels[b, i, j]
        p = scores.sigmoid() if sigmoid else scores.softmax(0)
        is_class = torch.arange(5) == label
        cross_entropy += -(torch.where(is_class, p, 1 - p).log().sum() if sigmoid else p[label].log())
        squared += (p - probabilities[b, :, i, j]).square().sum()
    assert 0 < kept.sum() < valid.sum()
    summed = summed_binary_cross_entropy if sigmoid else summed_cross_entropy
    torch.testing.assert_close(mean_over_valid(summed(logits, labels, kept), valid), cross_entropy / valid.sum())
    torch.testing.assert_close(summed_squared_difference(logits, probabilities, kept, sigmoid), squared)
    assert summed(logits, labels, valid & False) == 0


def test_contrast_leaves_out_the_pixel_itself():
    """With exclude_self the loss is the formula over all other pixels, in value and gradient."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(2, 9, 6, dtype=torch.float64), dim=2).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 1, 1, 2, 255, 3, 0], [0, 1, 1, 255, 2, 2, 2, 0, 4]])  # classes 3 and 4 have one pixel
    value = pixel_contrast(z, z, labels, scope="batch", temperature=0.3, exclude_self=True)
    flat, classes, terms, floors = z.flatten(0, 1), labels.flatten(), [], []
    for p in range(len(flat)):
        others = [q for q in range(len(flat)) if q != p and classes[q] != 255]
        positives = [q for q in others if classes[q] == classes[p]]
        if classes[p] != 255 and positives:
            scores = {q: flat[p] @ flat[q] / 0.3 for q in others}
            terms.append(torch.stack(list(scores.values())).logsumexp(0) - sum(scores[q] for q in positives) / len(positives))
            floors.append(math.log(len(positives)))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(value.loss, expected)
    torch.testing.assert_close(float(value.floor), sum(floors) / len(floors))
    torch.testing.assert_close(*(torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (value.loss, expected)))


def test_regional_contrast_is_its_formula():
    """Loops over classes and hard pixels: the mean of the class against the expected sum over 512 drawn pixels of other classes."""
    torch.manual_seed(0)
    z = F.normalize(torch.randn(2, 9, 6, dtype=torch.float64), dim=2).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 1, 1, 2, 255, 3, 0], [0, 1, 1, 255, 2, 2, 2, 0, 5]])  # class 3 has no hard pixel
    is_hard = torch.rand(2, 9) < 0.6
    is_hard[0, 7], is_hard[1, 8] = False, True
    loss, t = regional_contrast(z, labels, is_hard, temperature=0.4), 0.4
    flat, classes, hard, per_class = z.flatten(0, 1), labels.flatten(), is_hard.flatten(), []
    keys = flat.detach()
    means = {c: F.normalize(keys[classes == c].mean(0), dim=0) for c in (0, 1, 2, 3, 5)}
    for c in means:
        others = [d for d in means if d != c]
        chances = torch.stack([means[c] @ means[d] / t for d in others]).softmax(0)
        terms = []
        for p in ((classes == c) & hard).nonzero()[:, 0].tolist():
            positive = (flat[p] @ means[c] / t).exp()
            negatives = sum(512 * chance * (keys[classes == d] @ flat[p] / t).exp().mean() for chance, d in zip(chances, others))
            terms.append(-(positive / (positive + negatives)).log())
        per_class += [torch.stack(terms).mean()] if terms else []
    expected = torch.stack(per_class).mean()
    assert len(per_class) == 4
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, z, retain_graph=True)[0] for value in (loss, expected)))
    assert regional_contrast(z, labels.clamp(max=0), is_hard) == 0  # one class


def test_regional_contrast_is_near_that_of_drawn_negatives():
    """The loss with 512 negatives drawn as released, classes by similarity and pixels uniformly, has the same mean to 1 %."""
    torch.manual_seed(1)
    z, labels = F.normalize(torch.randn(1, 60, 4, dtype=torch.float64), dim=2), torch.randint(4, (1, 60))
    ours = regional_contrast(z, labels, torch.ones(1, 60, dtype=torch.bool))
    means = torch.stack([F.normalize(z[labels == c].mean(0), dim=0) for c in range(4)])
    drawn = []
    for c in range(4):
        others = [d for d in range(4) if d != c]
        chances = (means[others] @ means[c] / 0.5).softmax(0)
        for p in z[labels == c]:
            of_class = torch.tensor(others)[chances.multinomial(512, replacement=True)]
            members = [(labels[0] == d).nonzero()[:, 0] for d in range(4)]
            negatives = torch.stack([z[0, members[d][torch.randint(len(members[d]), ())]] for d in of_class.tolist()])
            scores = torch.cat([means[c][None], negatives]) @ p / 0.5
            drawn.append((c, scores.logsumexp(0) - scores[0]))
    expected = torch.stack([torch.stack([value for c, value in drawn if c == d]).mean() for d in range(4)]).mean()
    assert float(ours) == pytest.approx(float(expected), rel=0.01)


# -- the teacher ----------------------------------------------------------------------------------------------------------------


def test_teacher_follows_its_schedule():
    """theta' <- a theta' + (1 - a) theta with a = min(1 - 1/n, limit) after step n, statistics of BatchNorm too; counts are copied."""
    method = training(ema_momentum=0.7)
    expected = {name: value.clone().double() for name, value in method.network.state_dict().items()}
    torch.manual_seed(1)
    for n in range(1, STEPS + 1):
        with torch.no_grad():
            for value in (*method.network.parameters(), *method.network.buffers()):
                value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        method.after_step(n / STEPS)
        a = min(1 - 1 / n, 0.7)
        for name, value in method.network.state_dict().items():
            expected[name] = a * expected[name] + (1 - a) * value if value.is_floating_point() else value.clone()
    assert any("running_mean" in name for name in expected)
    for name, value in method.teacher.network.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), atol=1e-4, rtol=1e-5, msg=name)
    assert [rising_momentum(0.9, n) for n in (1, 2, 4, 100)] == [0, 0.5, 0.75, 0.9]


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_no_gradient_reaches_the_teacher(name):
    """Its parameters have no gradient, it is in evaluation mode, and its statistics are those of before the step."""
    method = training(name).train()
    assert method.training and not any(part.training for part in method.teacher.modules())
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    method(**first_batch(name))["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters()) and any(p.grad is not None for p in method.network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())


def test_momentum_of_zero_is_the_network_itself(tmp_path):
    """UniMatch's teacher: after each step a copy of the network."""
    method = training("unimatch")
    harness.train(method, semi_data("unimatch"), tmp_path)
    for mine, other in zip(method.network.state_dict().values(), method.teacher.network.state_dict().values()):
        assert torch.equal(mine, other)


def test_complementary_factors_sum_to_two():
    """Factors are 0 or 2, a view and its complement sum to 2, about half of the images are exempt, and each depends on its seed alone."""
    factors = torch.cat(channel_factors(torch.arange(400), [5, 8], exempt=0.5), 1)
    exempt = (factors == 1).all(1)
    assert 0.4 < exempt.float().mean() < 0.6 and set(factors[~exempt].unique().tolist()) == {0.0, 2.0}
    assert 0.9 < factors[~exempt].mean() < 1.1
    assert torch.equal(torch.cat(channel_factors(torch.arange(7, 9), [5, 8], exempt=0.5), 1), factors[7:9])
    first, _, third = channel_factors(torch.arange(9), [8, 5, 8])  # maps of one width, as all maps of a ViT
    assert torch.equal(first, third)
    seen = []
    method = training("unimatch_v2").train()
    method.network.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    maps = []
    method.network.backbone.register_forward_hook(lambda module, args, out: maps.append(out.feature_maps))
    method(**first_batch("unimatch_v2"))
    for feature_map, dropped in zip(maps[1], seen[1]):
        first, second = (dropped / torch.where(feature_map == 0, 1, feature_map)).chunk(2)
        both = (first + second)[(feature_map.chunk(2)[0] != 0) & (feature_map.chunk(2)[1] != 0)]
        torch.testing.assert_close(both, torch.full_like(both, 2.0))


# -- limits ---------------------------------------------------------------------------------------------------------------------


def gradients(method, batch):
    torch.manual_seed(3)
    terms = method.train()(**batch)
    terms["loss"].backward()
    return terms["loss"].detach(), {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", FINETUNING_LOSSES)
def test_without_unlabelled_images_or_weight_it_is_plain_fine_tuning(loss):
    """Loss and gradients of a labelled batch, and of any batch with weight 0, are those of SegmentationTraining bit for bit."""
    batch = first_batch()
    labelled = {key: batch[key] for key in ("image", "mask")}
    expected = gradients(training("none", loss=loss), labelled)
    for actual in (gradients(training(loss=loss), labelled), gradients(training(loss=loss, unlabelled_weight=0.0), batch)):
        assert torch.equal(actual[0], expected[0]) and actual[1].keys() == expected[1].keys()
        assert all(torch.equal(gradient, expected[1][name]) for name, gradient in actual[1].items())


def test_thresholds_of_classes_follow_their_confidence():
    """The threshold of a class is t m_c / max m, where m_c averages the mean probability of its pixels over the steps; a class that does
    not occur keeps its mean, and padding does not count."""
    method, expected = training(class_thresholds=True, confidence_threshold=0.9, ema_momentum=0.5), torch.ones(8)
    torch.manual_seed(0)
    for step in range(3):
        method.fraction_done = step / STEPS
        targets = Targets(torch.randint(step, 6, (2, 5, 5)), torch.rand(2, 5, 5), torch.rand(2, 5, 5) < 0.8)
        method.follow_confidence(targets)
        momentum = min(1 - 1 / max(1, step), 0.5)
        for label in range(8):
            where = (targets.labels == label) & targets.inside
            if where.any():
                expected[label] = momentum * expected[label] + (1 - momentum) * targets.confidence[where].mean()
    torch.testing.assert_close(method.class_confidence, expected)
    thresholds = 0.9 * expected / expected.max()
    assert torch.equal(method.is_kept(targets), targets.inside & (targets.confidence >= thresholds[targets.labels]))
    assert thresholds.max() == thresholds[6:].min() == pytest.approx(0.9) and thresholds[:6].max() < 0.7
    method.train()(**first_batch())
    assert "class_confidence" in method.state_dict() and "class_thresholds" in method.facts()["semi-supervised options"]
    assert "class_confidence" not in training().state_dict()


def test_weight_of_one_is_half_of_the_published_sum():
    """The loss is (L_labelled + w L_unlabelled) / (1 + w), and no confident pixel leaves L_labelled / (1 + w)."""
    for weight in (1.0, 0.25):
        terms = training(unlabelled_weight=weight).train()(**first_batch())
        assert terms["loss_unlabelled"] > 0 and terms["kept_share"] == 1
        torch.testing.assert_close(terms["loss"].detach(), (terms["loss_labelled"] + weight * terms["loss_unlabelled"]) / (1 + weight))
    terms = training(confidence_threshold=1.0).train()(**first_batch())
    assert terms["loss_unlabelled"] == 0 and terms["kept_share"] == 0


def test_weight_rises_along_the_ramp():
    """By exp(-5 (1 - x)^2) to its value at the end of the ramp."""
    method = training(unlabelled_weight=2.0, unlabelled_ramp=0.5)
    values = []
    for method.fraction_done in (0.0, 0.25, 0.5, 0.9):
        values.append(method.weight())
    assert values == pytest.approx([2 * math.exp(-5), 2 * math.exp(-1.25), 2, 2])


def test_loss_is_the_mean_over_views():
    """Of unimatch: mean of the strong views and of the weak view with perturbed features, 1/4, 1/4 and 1/2; without CutMix, by hand."""
    method, batch = training("unimatch", dropout=0.0).eval(), first_batch("unimatch", cutmix=0.0)
    terms = method(**batch)
    network = method.network
    with torch.no_grad():
        resized = {"size": (SIZE, SIZE), "mode": "bilinear", "align_corners": False}
        p = F.interpolate(method.teacher.network(method.normalize(batch["weak"])).logits, **resized).softmax(1)

        def of(maps):
            logits = F.interpolate(network.classifier(network.decoder(list(maps))), **resized)
            return (F.cross_entropy(logits, p.argmax(1), reduction="none") * batch["inside"]).sum() / batch["inside"].sum()

        weak, strong1, strong2 = (network.backbone(method.normalize(batch[key])).feature_maps for key in ("weak", "strong1", "strong2"))
        factors = channel_factors(batch["draws"], network.backbone.channels)
        perturbed = [m * f[:, :, None, None] for m, f in zip(weak, factors)]
        expected = of(strong1) / 4 + of(strong2) / 4 + of(perturbed) / 2
    torch.testing.assert_close(terms["loss_unlabelled"], expected)


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
@pytest.mark.parametrize("backbone, loss", [("test_resnet", "bce+rmi"), ("test_vit", "ce+dice"), ("test_convnext", "ce")])
def test_every_method_trains_with_other_losses_and_backbones(name, backbone, loss, tmp_path):
    """Loss, teacher and network stay finite, with the contrast of pixels beside them, and the network changes."""
    method = training(name, backbone=backbone, loss=loss, pixel_contrast=0.1)
    before = copy.deepcopy(method.network.state_dict())
    harness.train(method, semi_data(name), tmp_path, max_steps=2, learning_rate=1e-3, optim="adamw", gradient_accumulation_steps=2,
                  mixed_precision="bf16")  # fmt: skip
    assert any(not torch.equal(value, before[key]) for key, value in method.network.state_dict().items())
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_targets_need_the_probabilities_of_one_image_at_a_time():
    """No tensor has the probabilities of all images; the targets are those of all images at once."""
    method, batch, logits = training(), first_batch(), torch.randn(BATCH, 150, 5, 5)
    method.teacher.forward = lambda image: logits
    with harness.TensorSizes() as mode:
        targets = method.targets(batch["weak"], batch["inside"])
    assert max(mode.sizes) == 150 * SIZE * SIZE
    confidence, labels = F.interpolate(logits, size=(SIZE, SIZE), mode="bilinear").softmax(1).max(1)
    torch.testing.assert_close(targets.confidence, confidence)
    assert torch.equal(targets.labels, labels)


def test_contrast_uses_masks_and_confident_predictions():
    """Its labels are the masks, and the teacher's labels of the first strong view, 255 where it is not confident."""
    method, seen = training(pixel_contrast=0.5, dropout=0.0).train(), []
    method.contrast.register_forward_pre_hook(lambda module, args: seen.append(args))
    batch = first_batch()
    threshold = float(method.targets(batch["weak"], batch["inside"]).confidence.median())
    method.method = method.method._replace(confidence_threshold=threshold)
    terms = method(**batch)
    features, _, labels = seen[0]
    assert len(features) == len(labels) == 2 * BATCH and torch.equal(labels[:BATCH], batch["mask"].long())
    mixed = method.targets(batch["weak"], batch["inside"]).mixed(batch["boxes"][:, 0])
    assert torch.equal(labels[BATCH:], torch.where(mixed.inside & (mixed.confidence >= threshold), mixed.labels, 255))
    assert 0.2 < (labels[BATCH:] == 255).float().mean() < 0.8
    method.contrast.sampling = "reco"
    assert torch.equal(method.contrast_labels(mixed), torch.where(mixed.inside & (mixed.confidence >= 0.7), mixed.labels, 255))
    combined = (terms["loss_labelled"] + terms["loss_unlabelled"]) / 2
    torch.testing.assert_close(terms["loss"].detach(), combined + 0.5 * terms["loss_pixel"])


@pytest.mark.parametrize("sampling", ["all", "reco"])
def test_contrast_beside_plain_fine_tuning(sampling):
    """--pixel-contrast adds a contrast of the labelled pixels to the plain loss."""
    batch = {key: value for key, value in first_batch().items() if key in ("image", "mask")}
    plain, with_contrast = training("none").eval(), training("none", pixel_contrast=0.3, contrast_sampling=sampling).eval()
    assert isinstance(with_contrast, SegmentationTraining)
    terms = with_contrast(**batch)
    torch.testing.assert_close(terms["loss"].detach(), plain(**batch)["loss"].detach() + 0.3 * terms["loss_pixel"])


# -- checks ---------------------------------------------------------------------------------------------------------------------


def test_warnings_are_in_words():
    """One warning each: no pixel is kept, every pixel is kept, a class is absent from three checks in a row."""
    warnings, method = [], training(confidence_threshold=1.0).eval()
    checks = PseudoLabelCheck(harness.scenes(4, unlabelled=True), dict.fromkeys("abcdefgh", 0.125), SIZE, SIZE, warnings.append)
    for step in (1, 2):
        assert checks(method, step, {}) == {"pseudo_label_share": 0.0, "pseudo_label_classes": 0}
    (sentence,) = warnings
    reach = "0.0% of the unlabelled pixels reach --confidence-threshold 1"
    assert sentence.startswith(f"step 1: {reach}, so these images hardly affect training.")
    warnings.clear()
    method.method = method.method._replace(confidence_threshold=1e-6)
    assert checks(method, 3, {})["pseudo_label_share"] == 1.0 and "excludes hardly a pixel" in warnings[0]
    checks.absent.clear()
    checks.shares |= {"c": 0.0005}  # too rare to be missed
    always, sometimes = np.array([5, 0, 0, 3, 0, 0, 0, 1]), np.array([5, 0, 0, 3, 0, 7, 0, 0])
    said = [checks._warnings(0.5, counts, 0.9) for counts in (always, sometimes, always, always, always, always)]
    assert [len(sentences) for sentences in said] == [0, 0, 1, 0, 1, 0]
    start = "in 3 checks in a row, the teacher labelled no pixel confidently as one of"
    assert said[2][0].startswith(f"{start} 3 of 8 classes (b, e, g).") and said[4][0].startswith(f"{start} 1 of 8 classes (f).")


@pytest.mark.parametrize(("scores", "highest"), [
    ((0.1, 0.3, 0.2, 0.3, 0.25), 0.3), ((0.3, 0.25, 0.24, 0.23, 0.22, 0.21), 0.3), ((0.1, 0.3, 0.2, 0.25, 0.31), None),
])  # fmt: skip
def test_a_teacher_that_does_not_improve(scores, highest):
    """One warning after three evaluations without a rise, also where the first one was the highest."""
    warnings = []
    checks = PseudoLabelCheck(harness.scenes(1, unlabelled=True), {"a": 1.0}, SIZE, SIZE, warnings.append)
    for score in scores:
        checks.add_score(score)
    start = f"the teacher's mean IoU on the held-out masks has not risen for 3 evaluations (highest: {highest or 0:.4f})."
    assert [sentence.startswith(start) for sentence in warnings] == [True] * (highest is not None)
