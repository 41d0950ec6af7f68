"""The three scales together: seven subsets, every option, bad names, batches with nothing to contrast."""

from functools import partial

import pytest
import torch
from golden import labels_of, unit

from mscl_hf import losses as loss_functions
from mscl_hf.config import parse_losses
from mscl_hf.config.contrast import SUBSETS
from mscl_hf.losses import MultiScaleLoss, global_contrast, labels_at, local_contrast, sample_pixels

pixel_contrast = partial(loss_functions.pixel_contrast, scope="within")


def embeddings(seed):
    return {"global": unit(4, 5, seed=seed), "local": unit(4, 4, 5, seed=seed + 1), "pixel": unit(3, 6, 5, seed=seed + 2)}


@pytest.mark.parametrize("losses", SUBSETS)
def test_every_subset_is_the_weighted_sum_of_its_terms(losses):
    """Seven names; each computes its own terms only, and needs labels exactly when it holds p."""
    image, enhanced, labels = embeddings(0), embeddings(5), labels_of(3, 6)
    loss = MultiScaleLoss(losses, global_weight=2, local_weight=0.5, pixel_weight=3, pixel_scope="within")
    heads = losses.split("+")
    image, enhanced = ({h: x[h].requires_grad_() for h in heads} for x in (image, enhanced))
    if "pixel" in heads:
        with pytest.raises(ValueError, match="no masks"):
            loss(image, enhanced, None)
    terms = loss(image, enhanced, labels if "pixel" in heads else None)
    pixel = pixel_contrast(image["pixel"], enhanced["pixel"], labels) if "pixel" in heads else None
    single = {
        "global": lambda: global_contrast(image["global"], enhanced["global"]),
        "local": lambda: local_contrast(image["local"], enhanced["local"]),
        "pixel": lambda: pixel.loss,
    }
    assert terms["loss"].item() == pytest.approx(sum({"global": 2, "local": 0.5, "pixel": 3}[h] * single[h]().item() for h in heads))
    assert set(terms) == {"loss", *(f"loss_{h}" for h in heads), *(("floor_pixel", "excess_pixel") if pixel else ())}
    assert terms["loss"].requires_grad and not any(v.requires_grad for k, v in terms.items() if k != "loss")
    if pixel:
        assert terms["floor_pixel"] == pixel.floor and terms["excess_pixel"] == pixel.loss - pixel.floor


def test_weights_are_small_beside_the_pixel_loss_only():
    """By default g and l weigh a tenth of p, and all of themselves without it; a given weight is kept."""
    made = {losses: MultiScaleLoss(losses) for losses in SUBSETS}
    weights = {losses: (loss.global_weight, loss.local_weight, loss.pixel_weight) for losses, loss in made.items()}
    assert weights == {losses: (0.1, 0.1, 1.0) if "pixel" in losses else (1.0, 1.0, 1.0) for losses in SUBSETS}
    assert MultiScaleLoss("g", global_weight=0.1).global_weight == 0.1 and MultiScaleLoss("g+p", global_weight=0.0).global_weight == 0


OPTIONS = [
    ("global", "global_temperature", 0.3, {"temperature": 0.3}),
    ("global", "negatives", "ntxent", {"negatives": "ntxent"}),
    ("global", "denominator", "literal", {"denominator": "literal"}),
    ("global", "symmetric", True, {"symmetric": True}),
    ("local", "local_temperature", 0.3, {"temperature": 0.3}),
    ("local", "local_scope", "image", {"scope": "image"}),
    ("local", "local_scope", "others", {"scope": "others"}),
    ("local", "denominator", "literal", {"denominator": "literal"}),
    ("local", "symmetric", True, {"symmetric": True}),
    ("pixel", "pixel_temperature", 0.3, {"temperature": 0.3}),
    ("pixel", "pixel_scope", "batch", {"scope": "batch"}),
    ("pixel", "pixel_denominator", "neg", {"denominator": "neg"}),
    ("pixel", "pixel_reduction", "in", {"reduction": "in"}),
    ("pixel", "anchor_weight", "class", {"anchor_weight": "class"}),
    ("pixel", "exclude_classes", [0], {"exclude_classes": (0,)}),
]


@pytest.mark.parametrize(("head", "name", "value", "meaning"), OPTIONS)
def test_options_reach_their_loss(head, name, value, meaning):
    """Each option changes its own loss to what the function returns with it."""
    image, enhanced, labels = embeddings(0), embeddings(5), labels_of(3, 6)
    plain = {"losses": head, "global_weight": 1, "local_weight": 1, "pixel_scope": "within"}
    found = MultiScaleLoss(**plain | {name: value})(image, enhanced, labels)["loss"].item()
    function = {"global": global_contrast, "local": local_contrast, "pixel": lambda a, b, **o: pixel_contrast(a, b, labels, **o).loss}[head]
    assert found == pytest.approx(function(image[head], enhanced[head], **meaning).item(), rel=1e-12)
    assert found != pytest.approx(MultiScaleLoss(**plain)(image, enhanced, labels)["loss"].item(), rel=1e-6)


def test_symmetric_pixel_loss_and_cross_partner():
    """Symmetric: both directions, each with the labels of its view. Cross: a random partner among the labelled images."""
    (a, b), y, z = (embeddings(s)["pixel"] for s in (0, 5)), labels_of(3, 6), labels_of(3, 6, seed=4)
    both = MultiScaleLoss("p", symmetric=True, pixel_scope="within")({"pixel": a}, {"pixel": b}, y, z)
    there, back = pixel_contrast(a, b, y, z), pixel_contrast(b, a, z, y)
    assert both["loss"].item() == pytest.approx((there.loss + back.loss).item() / 2)
    assert both["floor_pixel"].item() == pytest.approx((there.floor + back.floor).item() / 2)
    torch.manual_seed(3)
    found = {round(MultiScaleLoss("p", pixel_scope="cross")({"pixel": a}, {"pixel": b}, y)["loss"].item(), 9) for _ in range(40)}
    options = ([1, 2, 0], [2, 0, 1])  # no image is its own partner
    assert found == {round(pixel_contrast(a, b, y, scope="cross", partner=torch.tensor(o)).loss.item(), 9) for o in options}


def test_names_of_losses():
    """Any order is read; repeats, empty names, capitals and unknown letters are rejected with the seven names."""
    assert [parse_losses(s) for s in ("g", "p+g", "l+p+g")] == [("global",), ("global", "pixel"), ("global", "local", "pixel")]
    assert len(SUBSETS) == 7 and all("+".join(parse_losses(losses)) == losses for losses in SUBSETS)
    for bad in ("", "x", "g+", "g+g", "g,l", "G", "g+l+p+x", "glp"):
        with pytest.raises(ValueError, match=r"--losses is .* global\+local\+pixel"):
            parse_losses(bad)


@pytest.mark.parametrize(("scale", "temperature"), [("global", 0), ("local", -1), ("pixel", float("nan"))])
def test_bad_temperatures_are_rejected_before_the_first_step(scale, temperature):
    """Creating the loss names the flag and what is expected."""
    with pytest.raises(ValueError, match=f"--{scale}-temperature is .*above 0"):
        MultiScaleLoss(**{f"{scale}_temperature": temperature})


@pytest.mark.parametrize("scope", ["within", "cross", "batch"])
def test_a_batch_without_labelled_image(scope):
    """No image at all for the pixel head: zero with a graph, so that every process of a run has a gradient."""
    a, b = unit(0, 6, 5).requires_grad_(), unit(0, 6, 5)
    terms = MultiScaleLoss("p", pixel_scope=scope)({"pixel": a}, {"pixel": b}, labels_of(0, 6))
    terms["loss"].backward()
    assert terms["loss"] == terms["floor_pixel"] == 0 and a.grad.shape == (0, 6, 5)


def test_contrast_needs_something_to_contrast_with():
    """One image: g, and l among other images, are rejected; the other terms run; `min_batch` says so beforehand."""
    one, two = unit(1, 4, 5), unit(1, 4, 5, seed=1)
    for rejected in (lambda: global_contrast(one[:, 0], two[:, 0]), lambda: local_contrast(one, two, scope="others")):
        with pytest.raises(ValueError, match="at least 2 images"):
            rejected()
    assert local_contrast(one, two).isfinite() and pixel_contrast(one, two, labels_of(1, 4)).loss.isfinite()
    cases = {"g": 2, "l": 1, "p": 1, "g+l+p": 2, "l+p": 1}
    assert {losses: MultiScaleLoss(losses).min_batch for losses in cases} == cases
    assert MultiScaleLoss("l", local_scope="others").min_batch == 2


def test_the_queue_adds_negatives_and_stands_alone():
    """Old copies stand in every denominator, in all directions the same; options that they do not fit are rejected."""
    image, enhanced, past = embeddings(0), embeddings(5), unit(9, 5, seed=20)
    found = MultiScaleLoss("g", queue_size=9)(image, enhanced, None, past=past)["loss"]
    logits = image["global"] @ torch.cat([enhanced["global"], past]).T / 0.1
    assert found.item() == pytest.approx((logits.logsumexp(1) - logits.diagonal()).mean().item(), rel=1e-12)
    for options in ({"queue_size": -1}, {"queue_size": 8, "symmetric": True}, {"queue_size": 8, "negatives": "ntxent"}, {"pixel_count": 0},
                    {"pixel_count": 8}, {"pixel_denominator": "neg", "pixel_reduction": "in"}):
        with pytest.raises(ValueError):
            MultiScaleLoss("g", **options)


@pytest.mark.parametrize("options", [{"denominator": "literal"}, {"past": torch.eye(5, dtype=torch.float64)}])
def test_ntxent_rejects_what_it_would_ignore(options):
    """The literal denominator and a queue raise ValueError with NT-Xent; it is symmetric without the option."""
    image, enhanced = embeddings(0)["global"], embeddings(5)["global"]
    with pytest.raises(ValueError, match="--negatives is ntxent; expected others"):
        global_contrast(image, enhanced, negatives="ntxent", **options)
    with pytest.raises(ValueError, match="--negatives is ntxent; expected others"):
        MultiScaleLoss("g+l", negatives="ntxent", denominator="literal")
    values = [global_contrast(image, enhanced, negatives="ntxent", symmetric=symmetric) for symmetric in (False, True)]
    assert values[0] == values[1] == pytest.approx(global_contrast(enhanced, image, negatives="ntxent").item())


@pytest.mark.parametrize("how", ["random", "class"])
def test_pixel_samples(how):
    """No pixel twice, its own label; random takes labelled pixels first, class so many of each class and no more."""
    labels = torch.cat([labels_of(3, 60), torch.full((1, 60), 255)])
    labels[0, :] = torch.tensor([0] * 50 + [1] * 3 + [255] * 7)
    torch.manual_seed(0)
    seen = []
    for _ in range(20):
        places, chosen = sample_pixels(labels, how, 10)
        assert places.shape == chosen.shape and all(len(set(row.tolist())) == len(row) for row in places)
        counted = chosen != 255
        assert torch.equal(labels.gather(1, places)[counted], chosen[counted]) and (how == "class" or places.shape == (4, 10))
        for image in range(4):
            kept, there = ((x[image][x[image] != 255]).bincount(minlength=3) for x in (chosen, labels))
            assert torch.equal(kept, there.clamp(max=10)) if how == "class" else kept.sum() == there.sum().clamp(max=10)
        seen.append(places[0][counted[0]])
    assert len(torch.cat(seen).unique()) > 45  # chance reaches every pixel


def test_unknown_ways_to_reduce_labels_are_rejected():
    """A misspelled way to reduce masks or to draw pixels raises ValueError."""
    with pytest.raises(ValueError, match="--label-downsampling is 'centre'; expected one of center, majority, pure"):
        labels_at(torch.zeros(1, 4, 4), (2, 2), "centre")
    with pytest.raises(ValueError, match="--pixel-sample is 'classes'; expected one of random, class"):
        sample_pixels(labels_of(1, 4), "classes", 2)


def test_loss_precision_lowers_the_products_only():
    """bf16: float32 losses a little off float64's, gradients for float32 embeddings; an unknown name is rejected."""
    image, enhanced, labels = embeddings(0), embeddings(5), labels_of(3, 6)
    exact = MultiScaleLoss()(image, enhanced, labels)
    image = {head: x.float().requires_grad_() for head, x in image.items()}
    found = MultiScaleLoss(loss_precision="bf16")(image, enhanced, labels)
    found["loss"].backward()
    for name, value in exact.items():
        assert found[name].dtype == torch.float32 and found[name].item() == pytest.approx(value.item(), rel=1e-2, abs=1e-2)
        assert name.startswith("floor") or found[name].item() != value.float().item()
    assert all(x.grad.dtype == torch.float32 and x.grad.any() for x in image.values())
    with pytest.raises(ValueError, match="--loss-precision is 'fp8'"):
        MultiScaleLoss(loss_precision="fp8")
