"""Views: masks match images, boxes match crops, randomness comes from one generator; and the sampler."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from mscl_hf.config import ViewConfig
from mscl_hf.data.dataset import Sample, SegmentationData
from mscl_hf.data.sampler import BatchSampler, SampleIndex, SamplingPlan, sample_rng
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.losses import labels_at
from mscl_hf.transforms.color import SIZE, Colors, distort_color, draw_color
from mscl_hf.transforms.crops import Crop, central_crop, cut, random_crop
from mscl_hf.transforms.presets import PRESETS
from mscl_hf.transforms.views import PairView, TrainView

GRAY = torch.tensor([124, 116, 104])


def coordinates(width=160, height=120):
    """An image whose red is x and green is y (in steps of a pixel), and a mask of vertical stripes of 16 px: x // 16."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 200)], -1).astype(np.uint8)
    return Sample(image, (x // 16).astype(np.uint8), "coordinates")


def source_x(image):
    return image[0].float()


def inside(image):
    """Pixels that show only the image, without the border where image and padding are mixed."""
    return image[2] == 200


def pixel_source(crop, size):
    """Source coordinates of the pixel centers of a view, from the definition of a crop alone."""
    centers = (torch.arange(size) + 0.5) / size * crop.side - 0.5
    x, y = crop.x + centers, crop.y + centers
    return (x.flip(0) if crop.flip else x)[None, :].expand(size, size), y[:, None].expand(size, size)


@pytest.mark.parametrize("crop", [
    Crop(20.0, 10.0, 64.0, False), Crop(20.0, 10.0, 64.0, True), Crop(33.3, 17.7, 90.0, True),
    Crop(-30.0, -12.5, 128.0, False), Crop(-30.0, -12.5, 128.0, True), Crop(100.0, 40.0, 100.0, True), Crop(40.0, 30.0, 16.0, False),
])  # fmt: skip
def test_cut_puts_every_pixel_where_the_crop_says(crop):
    """Colors and labels are within a pixel of their position; outside of the image is gray, and ignored."""
    sample = coordinates()
    image, mask = cut(sample, crop, 64)
    assert image.shape == (3, 64, 64) and mask.shape == (64, 64) and image.dtype == mask.dtype == torch.uint8
    x, y = pixel_source(crop, 64)
    step = max(1.0, crop.side / 64)
    there = (x > step) & (x < 159 - step) & (y > step) & (y < 119 - step)
    assert there.any() and inside(image)[there].all()
    assert (image[0].float() - x)[there].abs().max() <= 1 + step / 2 and (image[1].float() - y)[there].abs().max() <= 1 + step / 2
    away_from_borders = there & ((x + 0.5) % 16 > step + 1) & ((x + 0.5) % 16 < 15 - step)
    assert torch.equal(mask[away_from_borders].long(), ((x + 0.5) // 16).long()[away_from_borders])
    outside = (x < -step - 1) | (x > 160 + step) | (y < -step - 1) | (y > 120 + step)
    assert (mask[outside] == 255).all() and (image[:, outside] == GRAY[:, None]).all()
    assert torch.equal(mask == 255, (image == GRAY[:, None, None]).all(0))


def test_random_crops_keep_the_mask_on_the_image():
    """At any scale, position and flip, the label of a pixel is that of its color."""
    sample, rng, flips = coordinates(), np.random.default_rng(0), 0
    for _ in range(60):
        crop = random_crop((160, 120), 48, 48, (0.5, 2.0), rng)
        flips += crop.flip
        image, mask = cut(sample, crop, 48)
        red = source_x(image)
        certain = inside(image) & (mask != 255) & ((red + 0.5) % 16 > 4) & ((red + 0.5) % 16 < 12)
        assert certain.any() and torch.equal(mask[certain].long(), (red[certain] // 16).long())
        assert 60 <= crop.side <= 240  # 48 px at a short side of 48 px, halved to doubled
        covered = min(crop.x + crop.side, 160) - max(crop.x, 0), min(crop.y + crop.side, 120) - max(crop.y, 0)
        assert covered == pytest.approx((min(crop.side, 160), min(crop.side, 120)))  # slides, but never leaves image on the table
    assert 15 < flips < 45
    assert random_crop((160, 120), 48, 0, (1.0, 1.0), rng).side == 48 and central_crop((160, 120), 48, 60) == Crop(32, 12, 96, False)


def pair(geometry, seed=0, sample=None, **options):
    view = PairView(48, 48, ViewConfig(geometry=geometry, **{"color_strength": 0.0, "blur": 0.0, **options}))
    return complete(view, sample or coordinates(), np.random.default_rng(seed))


def complete(view, sample, rng):
    """A view of one sample with its colors."""
    batch = view.on_device({name: value[None] for name, value in view(sample, rng).items()})
    return {name: value[0] for name, value in batch.items()}


@pytest.mark.parametrize("geometry", ["shared", "none"])
def test_one_geometry_for_both_views(geometry):
    """A marker is at the same position in the image, its copy and both masks; colors change neither a mask nor the image."""
    plain, distorted = pair(geometry), pair(geometry, color_strength=1.0, blur=1.0)
    assert torch.equal(plain["image"], plain["enhanced"]) and torch.equal(plain["mask"], plain["enhanced_mask"])
    assert torch.equal(distorted["image"], plain["image"]) and torch.equal(distorted["enhanced_mask"], plain["mask"])
    assert not torch.equal(distorted["enhanced"], plain["enhanced"])
    assert "boxes" not in plain  # the whole of both
    both = pair(geometry, color_strength=1.0, blur=1.0, augment_both=True)
    assert not torch.equal(both["image"], plain["image"]) and not torch.equal(both["image"], both["enhanced"])
    seen = {pair(geometry, seed)["image"].numpy().tobytes() for seed in range(8)}
    assert len(seen) == (1 if geometry == "none" else 8)


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 3.0)])
def test_crops_share_what_their_boxes_say(scales):
    """The same fraction of both boxes shows the same source point, mirrored or not; the overlap is large enough and inside the image."""
    mirrored = 0
    for seed in range(40):
        found = pair("crops", seed, min_scale=scales[0], max_scale=scales[1], min_overlap=0.25)
        for fraction in (0.2, 0.5, 0.8):
            points = []
            for view, (x0, y0, x1, y1) in zip(("image", "enhanced"), found["boxes"]):
                column, row = (int(torch.clamp(48 * (a + fraction * (b - a)), 0, 47)) for a, b in ((x0, x1), (y0, y1)))
                points.append(found[view][:, row, column].float())
            assert all(point[2] == 200 for point in points)  # none is gray padding
            assert (points[0] - points[1]).abs().max() <= 8  # a view's pixel covers up to 5 px of the source
        sides = (found["boxes"][:, 2:] - found["boxes"][:, :2]).abs()
        if not any((found[mask] == 255).any() for mask in ("mask", "enhanced_mask")):
            assert (sides.prod(1) >= 0.25 - 1e-5).all()
        assert found["boxes"].min() >= -1e-6 and found["boxes"].max() <= 1 + 1e-6
        mirrored += bool((found["boxes"][:, 0] > found["boxes"][:, 2]).any())
    assert mirrored > 8


@pytest.mark.parametrize("geometry", ["shared", "crops", "none"])
def test_views_that_are_wider_than_high(geometry):
    """Height and width are right and nothing is stretched: red is x, green is y, a level a pixel; boxes show the same position."""
    view = PairView(40, 60, ViewConfig(geometry, min_scale=0.8, max_scale=1.5, color_strength=0.0, blur=0.0), image_width=64)
    for seed in range(10):
        found = complete(view, coordinates(), np.random.default_rng(seed))
        assert found["image"].shape == found["enhanced"].shape == (3, 40, 64) and found["mask"].shape == (40, 64)
        for name in ("image", "enhanced"):
            there = inside(found[name])
            x, y = (found[name][channel].float() for channel in (0, 1))
            across = (x[:, 1:] - x[:, :-1]).abs()[there[:, 1:] & there[:, :-1]].mean()
            down = (y[1:] - y[:-1]).abs()[there[1:] & there[:-1]].mean()
            assert across == pytest.approx(down.item(), abs=0.05) and down > 1
        (x0, y0, x1, y1), (u0, v0, u1, v1) = found.get("boxes", [(0.0, 0.0, 1.0, 1.0)] * 2)
        center, other = (((x0 + x1) / 2, (y0 + y1) / 2), ((u0 + u1) / 2, (v0 + v1) / 2))
        points = [found[n][:, int(v * 40), int(u * 64)].float() for n, (u, v) in (("image", center), ("enhanced", other))]
        assert (points[0] - points[1]).abs().max() <= 6
    wide = TrainView(40, 60, image_width=64)(coordinates(), np.random.default_rng(0))
    assert wide["image"].shape == (3, 40, 64) and wide["mask"].shape == (40, 64)


def test_views_depend_on_the_generator_alone():
    """Equal seeds give bit-equal views, other seeds other views; global random states are neither read nor changed."""
    sample = coordinates()
    for view in (PairView(32, 32, ViewConfig("crops")), TrainView(32, 32)):
        state = torch.get_rng_state(), np.random.get_state()[1].copy()
        first = complete(view, sample, np.random.default_rng(3))
        assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
        torch.manual_seed(99)
        again, other = (complete(view, sample, np.random.default_rng(n)) for n in (3, 4))
        assert all(torch.equal(first[key], again[key]) for key in first) and not torch.equal(first["image"], other["image"])


def test_color_moves_no_pixel():
    """A gray ramp keeps its order under any jitter of gray, so that pixel correspondences are one to one."""
    ramp = torch.arange(256).repeat(3, 16, 1).to(torch.uint8)
    changed = 0
    for seed in range(30):
        out = distort_color(ramp[None], draw_color(Colors.simclr(1.0, 0.0), np.random.default_rng(seed))[None])[0]
        assert out.shape == ramp.shape and out.dtype == torch.uint8 and (out[:, :1] == out).all()
        assert (out[:, 0].int().diff(dim=1) >= 0).all()
        changed += not torch.equal(out, ramp)
    assert 15 < changed < 30  # eight in ten are jittered
    assert torch.equal(distort_color(ramp[None], draw_color(Colors.simclr(0.0, 0.0), np.random.default_rng(0))[None])[0], ramp)


def one_by_one(image, colors, rng):
    """Distort one image by torchvision's operations, in the order of the preset."""
    x = image.float() / 255

    def gray(x):
        return tv.rgb_to_grayscale(x, num_output_channels=3) if colors.gray and rng.random() < colors.gray else x

    x = gray(x) if colors.gray_first else x
    if colors.jitter and rng.random() < colors.jitter:
        spans = (colors.brightness, colors.contrast, colors.saturation)
        factors = rng.uniform([max(0, 1 - span) for span in spans], [1 + span for span in spans])
        shift = float(np.clip(rng.uniform(-colors.hue, colors.hue), -0.5, 0.5))
        for which in rng.permutation(4):
            name = ("brightness", "contrast", "saturation", "hue")[which]
            x = getattr(tv, f"adjust_{name}")(x, shift if which == 3 else float(factors[which]))
    x = x if colors.gray_first else gray(x)
    if rng.random() < colors.blur:
        kernel = max(3, round(0.1 * min(x.shape[-2:])) // 2 * 2 + 1)
        x = tv.gaussian_blur(x, [kernel, kernel], [float(rng.uniform(0.1, 2.0))] * 2)
    if colors.solarize and rng.random() < colors.solarize:
        x = tv.solarize(x, 0.5)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


DISTORTIONS = {f"simclr {s}": (Colors.simclr(s, 0.5), size) for s, size in ((1.0, (32, 32)), (0.3, (40, 24)), (2.5, (9, 9)))}
DISTORTIONS |= {f"{name} {k}": (c, (24, 24)) for name, preset in PRESETS.items() for k, c in enumerate(preset.colors) if c is not None}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_batch_of_colors_is_torchvisions_one_by_one(name):
    """All orders of jitter, gray, blur, solarization: the same levels to rounding, and exactly the same in any batch."""
    colors, size = DISTORTIONS[name]
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (200, 3, *size), dtype=np.uint8))
    images[:4] = torch.tensor([0, 255, 7, 100])[:, None, None, None]
    drawn = torch.stack([draw_color(colors, np.random.default_rng(seed)) for seed in range(200)])
    assert drawn.shape == (200, SIZE)
    found = distort_color(images, drawn)
    wanted = torch.stack([one_by_one(image, colors, np.random.default_rng(seed)) for seed, image in enumerate(images)])
    off = (found.int() - wanted.int()).abs()
    # Near the threshold of solarization, rounding decides.
    off = torch.where((found.int() - (255 - wanted.int())).abs() <= 1, 0, off) if colors.solarize else off
    assert off.max() <= 1 and (off > 0).float().mean() < 1e-3
    assert torch.equal(torch.cat([distort_color(images[i : i + 7], drawn[i : i + 7]) for i in range(0, 200, 7)]), found)


@pytest.mark.parametrize("options", [
    {"geometry": "crop"}, {"min_scale": 0.0}, {"min_scale": 2.0, "max_scale": 1.0}, {"min_overlap": 0.0}, {"min_overlap": 1.5},
])  # fmt: skip
def test_impossible_views_are_rejected(options):
    """An error before the first step, instead of showing the same crop twice."""
    with pytest.raises(ValueError):
        ViewConfig(**options)


def slow_labels(mask, h, w, how):
    """Loops over positions: the pixel under the center, or the votes of its pixels."""
    height, width, out = len(mask), len(mask[0]), []
    for i in range(h):
        for j in range(w):
            if how == "center":
                out.append(int(mask[int((i + 0.5) * height / h)][int((j + 0.5) * width / w)]))
                continue
            cell = [int(mask[y][x]) for y in range(height) for x in range(width) if y * h // height == i and x * w // width == j]
            votes = Counter(label for label in cell if label != 255)
            best = min(votes, key=lambda label: (-votes[label], label), default=255)
            out.append(best if how == "majority" or (votes and votes[best] >= 0.75 * len(cell)) else 255)
    return out


@pytest.mark.parametrize("how", ["center", "majority", "pure"])
@pytest.mark.parametrize("shape", [(16, 16, 4, 4), (15, 22, 4, 5), (13, 9, 13, 9), (32, 32, 1, 1), (5, 6, 8, 8)])
def test_labels_at_feature_resolution(how, shape):
    """center, majority and pure equal loops over positions, with ignored pixels and ties."""
    height, width, h, w = shape
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.integers(0, 3, (height, width)), np.ones((1, 1))), np.where(rng.random((height, width)) < 0.6, 255, 254)]
    masks += [np.tile([[0, 1]], (height, width))[:, :width], np.where(rng.random((height, width)) < 0.85, 7, 255)]
    masks = np.stack(masks).astype(np.uint8)
    found = labels_at(torch.from_numpy(masks), (h, w), how)
    assert found.dtype == torch.int64 and found.tolist() == [slow_labels(mask, h, w, how) for mask in masks]


def order(labelled=range(10), unlabelled=range(100, 125), batch=8, share=4, seed=0):
    return SamplingPlan(tuple(labelled), tuple(unlabelled), batch, share, seed)


def test_an_epoch_shows_a_sample_once_and_no_batch_shows_it_twice():
    """Each part's epoch is as many whole batches as there are samples for, in another order each time, by seed; over the epochs all
    samples come up. A batch larger than the data repeats each sample as evenly as can be."""
    for labelled, indices, count in ((True, range(10), 8), (False, range(100, 125), 24)):
        drawn = [t.index for step in range(60) for t in order().batch(step) if t.labelled == labelled]
        epochs = [drawn[start : start + count] for start in range(0, len(drawn), count)]
        assert all(len(set(epoch)) == count for epoch in epochs) and set(drawn) == set(indices)
        assert len({tuple(e) for e in epochs}) == len(epochs) == 240 // count
    assert order(seed=1).batch(0) != order().batch(0) == order().batch(0)
    for step in range(3):
        times = Counter(t.index for t in order(range(3), (), 8, 8).batch(step))
        assert sorted(times.values()) == [2, 3, 3]


def test_uneven_worlds_and_missing_parts_are_rejected():
    """An error before the first step names the options."""
    order().check_world(4)
    for broken, world in ((order(), 3), (order(share=3), 2), (order(batch=9, share=4), 2)):
        with pytest.raises(ValueError, match=f"--batch-size.*expected multiples of {world}.*--labelled-share"):
            broken.check_world(world)
    for parts in ({"labelled": ()}, {"unlabelled": ()}):
        with pytest.raises(ValueError, match="--labelled-share or --unlabelled"):
            order(**parts)
    assert len(BatchSampler(order(), 3, 7)) == len(list(BatchSampler(order(), 3, 7))) == 4


class Rows:
    """Rows drawn on demand, which raise an error if a hidden mask is read."""

    def __init__(self, count, masks):
        self.count, self.masks = count, masks

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        class Row(dict):
            def __getitem__(row, key):
                if key == "mask" and not self.masks:
                    raise AssertionError("an unlabelled sample opened its mask")
                return super().__getitem__(key)

            def get(row, key, default=None):
                return row[key] if key in row else default

        sample = coordinates(60 + index, 50)
        return Row(image=Image.fromarray(sample.image), mask=Image.fromarray(sample.mask), name=f"{self.masks}{index}")


def training_data(seed=0):
    labelled = SegmentationData(Rows(6, True), tuple("abcdefgh"), "drawn", "train")
    unlabelled = SegmentationData(Rows(9, False), (), "drawn", "train")
    mixed = SamplingPlan(tuple(range(6)), tuple(range(9)), 4, 2, seed)
    return TrainingImages(labelled, unlabelled, PairView(32, 32, ViewConfig("crops")), seed, mixed)


def same(a, b):
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_batches_do_not_depend_on_workers_ranks_or_where_a_run_starts():
    """Two and eight workers give the batches of none; two processes have the parts of one; a run resumed at 3 has the same batches."""
    whole = list(training_data().batches(0, 5))
    for workers in (2, 8):
        assert all(same(a, b) for a, b in zip(whole, training_data().batches(0, 5, workers=workers), strict=True))
    assert all(same(a, b) for a, b in zip(whole[3:], training_data().batches(3, 5), strict=True))
    for rank in range(2):
        for batch, part in zip(whole, training_data().batches(0, 5, rank, 2), strict=True):
            places = [rank, 2 + rank]
            assert torch.equal(part["image"], batch["image"][places]) and part["name"] == [batch["name"][i] for i in places]
            assert part["labelled"].tolist() == [0]
    assert not same(whole[0], next(iter(training_data(seed=1).batches(0, 1))))


def test_unlabelled_samples_never_open_a_mask():
    """Their masks raise an error on access; their part of the batch is ignored, the labelled part is not."""
    for batch in training_data().batches(0, 6):
        assert batch["labelled"].tolist() == [0, 1] and batch["bad"] == []
        assert (batch["mask"][2:] == 255).all() and (batch["mask"][:2] != 255).flatten(1).any(1).all()
    with pytest.raises(AssertionError, match="opened its mask"):
        SegmentationData(Rows(1, False), tuple("ab"), "drawn", "train").read(0)


def test_every_visit_of_a_sample_draws_anew():
    """The generator of a sample changes with step, slot, index and seed."""
    tickets = [SampleIndex(0, 0, 0, True), SampleIndex(1, 0, 0, True), SampleIndex(0, 1, 0, True), SampleIndex(0, 0, 1, True)]
    drawn = {sample_rng(seed, t).random() for t in tickets for seed in (0, 1)}
    assert len(drawn) == 8 and sample_rng(0, tickets[0]).random() in drawn
