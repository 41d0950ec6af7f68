"""Contrast of slices of volumes and of regions of a slice: losses against plain loops, what the stages train, what they need to know."""

import itertools
import math
from types import SimpleNamespace

import harness
import numpy as np
import pytest
import torch
from golden import unit
from PIL import Image
from tiny import losses_of_training

from mscl_hf.config import ViewConfig
from mscl_hf.data import load_data
from mscl_hf.data.dataset import Slice
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.losses import nt_xent, region_contrast, slice_contrast
from mscl_hf.losses.slices import REGIONS, near_regions, region_patches
from mscl_hf.methods.chaitanya import ChaitanyaGlobal, ChaitanyaGlobalLocal
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.transforms.views import make_view

T = 0.1
PARTITION, VOLUME = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 0, 0, 1, 1])


def images(count=4, size=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def slices(count=6):
    return {"image": images(count, seed=2), "view1": images(count), "view2": images(count, seed=1)}


PLACES = {"volume": VOLUME, "position": PARTITION / 4 + 0.1}


def method(method_cls, *options, **fields):
    torch.manual_seed(0)
    return method_cls(MsclForPreTraining(harness.config(**{"heads": [], **fields})), *options)


def second_stage(**fields):
    """A map of 8 x 8 cells out of 32 px."""
    return method(ChaitanyaGlobalLocal, decoder_type="mla", backbone_kwargs={"output_stride": 8}, **fields)


# The first stage


def slow_slices(versions, partition, volume, t, across):
    """The mean over ordered pairs of -log( e_ab / (e_ab + sum of the negatives) ), pair by pair."""
    rows = list(itertools.product(range(len(versions)), range(versions.shape[1])))
    losses = []
    for a in rows:
        negatives = sum(math.exp(versions[a] @ versions[n] / t) for n in rows if partition[n[0]] != partition[a[0]])
        for b in rows:
            itself = a[0] == b[0] and a != b
            partner = a[0] != b[0] and partition[a[0]] == partition[b[0]] and volume[a[0]] != volume[b[0]] and a[1] == b[1]
            if itself or (across and partner):
                e = math.exp(versions[a] @ versions[b] / t)
                losses.append(-math.log(e / (e + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("versions", [2, 3])
def test_slice_contrast_equals_plain_loops(versions, across):
    """Partitions of one, two and three slices, two of them of one volume: neither positive nor negative of each other."""
    x = unit(6, versions, 5).requires_grad_()
    wanted = slow_slices(x.detach(), PARTITION, VOLUME, 0.3, across)
    loss = slice_contrast(x, PARTITION, VOLUME, 0.3, across)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: slice_contrast(x, PARTITION, VOLUME, 0.3, across), x)


def test_a_copy_in_the_same_partition_is_no_negative():
    """Two unlike slices, then a copy of the first beside it: in the same partition its anchors lose nothing, in another one they do."""
    a, b = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 2, 2)  # two versions of each
    batch, volume, e = torch.stack([a, b, a]), torch.arange(3), math.exp(-1)
    alone, doubled = math.log(1 + 2 * e), math.log(1 + 4 * e)  # with one unlike slice as negatives, and with two
    assert slice_contrast(batch[:2], torch.tensor([0, 1]), volume[:2], 1.0).item() == pytest.approx(alone)
    found = slice_contrast(batch, torch.tensor([0, 1, 0]), volume, 1.0).item()
    assert found == pytest.approx((2 * alone + doubled) / 3)
    found = slice_contrast(batch, torch.tensor([0, 1, 2]), volume, 1.0).item()
    assert found == pytest.approx((2 * math.log(1 + 2 * e + 2) + doubled) / 3)


def test_a_batch_of_one_partition_has_nothing_to_contrast():
    """No negatives: zero, and a gradient of zeros."""
    x = unit(3, 2, 4).requires_grad_()
    loss = slice_contrast(x, torch.zeros(3, dtype=torch.long), torch.arange(3))
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


def test_gr_is_simclrs_loss():
    """Variant GR is NT-Xent of the two augmented views' embeddings, and needs neither volume nor position."""
    stage, views = method(ChaitanyaGlobal).eval(), slices()
    wanted = nt_xent(stage.embed(views["view1"]), stage.embed(views["view2"]), T)
    torch.testing.assert_close(stage(**views)["loss"], wanted)
    assert stage.variant == "GR"


@pytest.mark.parametrize("bn_views", ["joint", "separate"])
@pytest.mark.parametrize("variant, names", [("GD-", ("image", "view1", "view2")), ("GD", ("image", "view1"))])
def test_the_variants_contrast_their_versions(variant, names, bn_views):
    """GD- takes the slice and both copies, GD the slice and one copy, and partitions are quarters of the volume."""
    stage, views = method(ChaitanyaGlobal, variant, bn_views=bn_views).eval(), slices()
    versions = torch.stack([stage.embed(views[name]) for name in names], 1).double()
    wanted = slow_slices(versions.detach(), PARTITION, VOLUME, T, variant == "GD")
    assert stage(**views, **PLACES)["loss"].item() == pytest.approx(wanted, rel=1e-4)
    moved = {**PLACES, "position": (PARTITION / 4 + 0.1).flip(0)}
    assert abs(stage(**views, **moved)["loss"].item() - wanted) > 1e-4
    assert stage._partition(torch.tensor([0.0, 0.249, 0.25, 0.999, 1.0])).tolist() == [0, 0, 1, 3, 3]


@pytest.mark.parametrize("variant", ["GR", "GD-", "GD"])
def test_the_first_stage_learns(variant):
    """Thirty steps on one batch bring the loss down; the head has no bias."""
    stage = method(ChaitanyaGlobal, variant)
    losses = losses_of_training(stage, slices() | PLACES, 30)
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, _ in stage.head.named_parameters() if "bias" in name] == []
    assert stage.embeddings(images())["projection"].shape == (4, 128)


def data_of(*parts, view=None):
    labelled, unlabelled = (*parts, None, None)[:2]
    return SimpleNamespace(images=0, sources=[part for part in (labelled, unlabelled) if part], view=view)


def part(*places):
    return SimpleNamespace(slices=tuple(Slice(*place) for place in places) or None)


@pytest.mark.parametrize(
    "variant, data, message",
    [
        ("GD", data_of(), "expected images with a volume"),
        ("GD-", data_of(part()), "expected images with a volume.*--variant GR"),
        ("GD-", data_of(part(("a", 0.1), ("a", 0.9)), part()), "expected images with a volume"),
        ("GD-", data_of(part(("a", 0.1), ("b", 0.2))), "2 slices are of 1 partitions and 2 volumes; expected at least 2 and 1"),
        ("GD", data_of(part(("a", 0.1), ("a", 0.9))), "2 slices are of 2 partitions and 1 volumes; expected at least 2 and 2"),
    ],
)
def test_missing_places_are_rejected(variant, data, message):
    """GD and GD- never fall back: data that does not place every slice, or has nothing to contrast, is an error; GR takes any."""
    with pytest.raises(ValueError, match=message):
        method(ChaitanyaGlobal, variant).check_data(data)
    method(ChaitanyaGlobal).check_data(data)
    method(ChaitanyaGlobal, "GD").check_data(data_of(part(("a", 0.1), ("b", 0.9)), part(("c", 0.5))))


def test_wrong_options_are_rejected():
    """An unknown variant, a single partition, a batch without places."""
    with pytest.raises(ValueError, match="--variant is LD; .*GR, GD-, GD"):
        method(ChaitanyaGlobal, "LD")
    with pytest.raises(ValueError, match="--partitions is 1"):
        method(ChaitanyaGlobal, "GD", T, 1)
    with pytest.raises(ValueError, match="--variant is GD; expected batches with volume and position"):
        method(ChaitanyaGlobal, "GD")(**slices())


@pytest.fixture
def folder(tmp_path):
    """Two volumes of six slices, 48 x 32 px."""
    for number, (volume, place) in enumerate(itertools.product("ab", range(6))):
        (tmp_path / volume).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / volume / f"{place}.png")
    return load_data("folder", "train", tmp_path)


def test_slices_from_a_folder_reach_the_loss(folder):
    """From files to a step: the numbers of the volumes and the positions of a batch are those of its images, and GD takes them."""
    view = make_view("slices", "chaitanya", 32, 32, ViewConfig())
    data = TrainingImages(None, folder, view, 0, SamplingPlan((), tuple(range(12)), 8, 0, 0))
    stage = method(ChaitanyaGlobal, "GD")
    stage.check_data(data)
    batch = next(data.batches(0, 1))
    assert [f"{'ab'[v]}/{int(p * 6)}" for v, p in zip(batch["volume"], batch["position"])] == batch["name"]
    loss = stage(**batch)["loss"]
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in (*stage.head.parameters(), *stage.network.backbone.parameters()))


def test_the_undistorted_slice(folder):
    """Beside two augmented crops, the middle of the image as large as the view's shape lets it be: no color changed, no pixel scaled
    where the sizes agree."""
    sample = folder.read(0)
    views = make_view("slices", "chaitanya", 32, 32, ViewConfig())(sample, np.random.default_rng(0))
    assert torch.equal(views["image"], torch.tensor(sample.image[:, 8:40]).permute(2, 0, 1))
    assert {name.split("_")[0] for name in views if "_" in name} == {"view1", "view2"}
    wide = make_view("slices", "chaitanya", 16, 16, ViewConfig(), image_width=48)(sample, np.random.default_rng(0))
    assert torch.equal(wide["image"], torch.tensor(sample.image[8:24]).permute(2, 0, 1))


# The second stage


def slow_regions(a, b, t):
    """The definition with loops: for each view as the anchor, each image and region, its 10 negatives one by one."""
    places = [(r / 4, c / 4) for r in (0, 2, 4) for c in (0, 2, 4)] + [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    losses = []
    for own, other in ((a, b), (b, a)):
        for image, (r, place) in itertools.product(range(len(a)), enumerate(places)):
            distances = sorted((math.dist(place, p), n) for n, p in enumerate(places) if n != r)
            near = [n for _, n in distances[:5]]
            negatives = [view[image, n] for n in near for view in (own, other)]
            assert len(negatives) == 10
            e = math.exp(own[image, r] @ other[image, r] / t)
            losses.append(-math.log(e / (e + sum(math.exp(own[image, r] @ n / t) for n in negatives))))
    return sum(losses) / len(losses)


def test_region_contrast_equals_plain_loops():
    """Both views as anchors, the five nearest regions of both maps as negatives; and the gradient."""
    a, b = unit(3, 13, 6), unit(3, 13, 6, seed=1)
    assert region_contrast(a, b, 0.3).item() == pytest.approx(slow_regions(a, b, 0.3), rel=1e-9)
    assert region_contrast(b, a, 0.3) == pytest.approx(region_contrast(a, b, 0.3).item(), rel=1e-12)
    a, b = unit(1, 13, 2).requires_grad_(), unit(1, 13, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: region_contrast(a, b, 0.5), (a, b))


def test_near_regions():
    """Five others for each: of a corner its quarter, its two edges and the next ones by index; of the center the four quarters first."""
    near = near_regions()
    assert near.sum(1).tolist() == [5] * 13 and not near.diagonal().any()
    assert near[0].nonzero().flatten().tolist() == [1, 3, 4, 9, 10]
    assert near[4].nonzero().flatten().tolist() == [1, 9, 10, 11, 12]


@pytest.mark.parametrize("height, width", [(7, 7), (8, 12), (16, 7)])
def test_regions_are_where_they_should_be(height, width):
    """A map of its own cell numbers: 13 different patches of 3 x 3, in the corners, on the edges, in the center and the quarters."""
    cells = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    patches = region_patches(cells)
    assert patches.shape == (1, 13, 9) and len({tuple(p.tolist()) for p in patches[0]}) == 13
    for (row, column), patch in zip(REGIONS, patches[0]):
        center = 1 + row / 4 * (height - 3), 1 + column / 4 * (width - 3)
        found = patch[4].item() // width, patch[4].item() % width
        assert math.dist(center, found) <= math.sqrt(0.5) and patch[8] - patch[0] == 2 * width + 2
    assert patches[0, 8, 8] == height * width - 1 and patches[0, 0, 0] == 0


def test_the_second_stage_trains_the_decoder_alone():
    """Steps in train mode, the whole method's train mode included: backbone weights and batch statistics stay to the last bit, it gets no
    gradient, the decoder and the head move, and the loss falls."""
    stage = second_stage().train()
    before = {name: value.clone() for name, value in stage.network.state_dict().items()}
    losses = losses_of_training(stage, {"image": images(), "enhanced": (images().float() * 0.8).byte()}, 30, weight_decay=0.01)
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in stage.network.backbone.parameters())
    assert all(p.grad is not None for part in (stage.network.decoder, stage.project, stage.head) for p in part.parameters())
    for name, value in stage.network.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == name.startswith("decoder.") or "num_batches" in name, name
        assert not (changed and name.startswith("backbone."))


@pytest.mark.parametrize("attach", ["ancestor", "backbone", "decoder"])
def test_the_second_stage_stands_on_the_decoder(attach):
    """Wherever heads sit otherwise; the first stage goes before it, on the same network, and the map must have 7 cells."""
    stage = second_stage(attach=attach)
    assert list(stage.parts()) == ["backbone", "decoder"] and stage.embed(images(2)).shape == (2, 13, 128)
    assert stage.first_stage is ChaitanyaGlobal and stage.min_positions == 7
    assert stage.embeddings(images(2))["regions"].shape == (2, 13, 128)


def test_both_views_must_show_one_crop():
    """Geometry crops is rejected at the start; shared and none pass."""
    for geometry in ("shared", "none", "crops"):
        view = make_view("pair", "chaitanya", 32, 32, ViewConfig(geometry=geometry))
        if geometry == "crops":
            with pytest.raises(ValueError, match="--geometry is crops; expected shared or none"):
                second_stage().check_data(data_of(view=view))
        else:
            second_stage().check_data(data_of(view=view))
