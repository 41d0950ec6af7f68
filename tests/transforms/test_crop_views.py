"""Random resized crops: boxes match the views, presets match the papers, and pasted views match their masks."""

import math

import numpy as np
import pytest
import torch
from test_views import coordinates

from mscl_hf.config import ViewConfig
from mscl_hf.data import loader
from mscl_hf.data.dataset import BadSample, Sample, SegmentationData, Slice
from mscl_hf.data.loader import Samples
from mscl_hf.data.sampler import SampleIndex, SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.transforms.color import Colors
from mscl_hf.transforms.crops import random_resized_crop
from mscl_hf.transforms.presets import PRESETS, Preset
from mscl_hf.transforms.views import VIEWS, check_view_options, make_view

BARE = Preset(0.2, (None, None))  # no colors: pixels keep what they say of their place


def view(kind, preset=BARE, size=40, width=None, **options):
    return VIEWS[kind](size, size, ViewConfig(**options), width, preset)


def batch_of(kind, count=6, preset=BARE, **given):
    made = view(kind, preset, **given)
    others = [solid(9)] * made.others
    samples = [made(coordinates(), np.random.default_rng(seed), others) for seed in range(count)]
    return made.on_device(loader.stack([{**s, "labelled": False, "name": str(i), "bad": []} for i, s in enumerate(samples)]))


def solid(level, width=50, height=70):
    return Sample(np.full((height, width, 3), level, np.uint8), None, f"solid {level}")


def test_random_resized_crops_have_the_requested_area_and_aspect():
    """Inside the image, at least the least area, ratios within 3/4 .. 4/3 of the view's, both mirrored and not; all of it is reached."""
    rng, crops = np.random.default_rng(0), []
    for _ in range(2000):
        crop = random_resized_crop((160, 120), 0.2, 2.0, rng)
        x0, y0, x1, y1 = crop.box
        assert x0 >= -1e-9 and y0 >= -1e-9 and x1 <= 160 + 1e-9 and y1 <= 120 + 1e-9
        assert 0.2 - 1e-9 <= (x1 - x0) * (y1 - y0) / (160 * 120) <= 1 and 1.5 - 1e-9 <= crop.aspect <= 8 / 3 + 1e-9
        crops.append(crop)
    areas = [crop.side**2 * crop.aspect / (160 * 120) for crop in crops]
    assert min(areas) < 0.21 and 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    assert min(crop.x for crop in crops) < 2 and max(crop.box[2] for crop in crops) > 158


def test_a_crop_that_cannot_have_its_aspect_takes_the_choices():
    """A strip of 400 x 10 px has no crop of half its area near a square: the largest square is taken, without an endless loop."""
    for seed in range(50):
        crop = random_resized_crop((400, 10), 0.5, 1.0, np.random.default_rng(seed))
        assert crop.side == 10 and crop.aspect == 1.0 and 0 <= crop.x <= 390


@pytest.mark.parametrize("width", [None, 64])
def test_two_crops_lie_where_their_boxes_say(width):
    """Red and green of a view are its source coordinates: those of its box, reversed in a mirrored view."""
    batch, seen = batch_of("two_crop", 12, width=width), set()
    assert batch["boxes"].shape == (12, 2, 4)
    for which in (0, 1):
        for image, (x0, y0, x1, y1) in zip(batch[f"view{which + 1}"], batch["boxes"][:, which].tolist()):
            assert image.shape == (3, 40, width or 40)
            seen.add(x0 > x1)
            columns = x0 + (torch.arange(image.shape[2]) + 0.5) / image.shape[2] * (x1 - x0) - 0.5
            rows = y0 + (torch.arange(40) + 0.5) / 40 * (y1 - y0) - 0.5
            for channel, wanted in ((0, columns), (1, rows[:, None])):
                assert (image[channel].float() - wanted)[2:-2, 2:-2].abs().max() < 4
            assert (image[0].float().mean(0) - columns)[2:-2].abs().mean() < 1.2  # steps of the filter, no drift
    assert seen == {True, False}
    assert not torch.equal(batch["boxes"][:, 0], batch["boxes"][:, 1])


def test_pasted_views_keep_the_image_in_place():
    """Inside the rectangle a view equals the crop without anything pasted: no rescaling to the rectangle."""
    made, plain = view("copy_paste"), view("single")
    for seed in range(5):
        sample = made(coordinates(), np.random.default_rng(seed), [solid(9), solid(9)])
        crop = plain(coordinates(), np.random.default_rng(seed))["image"]  # the first crop drawn is the image's
        batch = made.on_device(loader.stack([{**sample, "labelled": False, "name": "", "bad": []}]))
        inside = batch["pasted1"][0]
        assert torch.equal(batch["view1"][0][:, inside], crop[:, inside]) and (batch["view1"][0][:, ~inside] == 9).all()


class Numbered(SegmentationData):
    """Sample i is an image of level 10 i; reading is recorded."""

    def __init__(self, count):
        super().__init__(range(count), (), "numbered", "train")
        object.__setattr__(self, "seen", [])

    def read(self, index):
        self.seen.append(index)
        return solid(10 * index)


def test_pasted_views_take_other_images():
    """Never the image itself, and in time all of the others; the index of a sample is that of its image."""
    data, seen = Numbered(5), set()
    samples = Samples(None, data, view("copy_paste"), seed=0)
    for step in range(40):
        data.seen.clear()
        found = samples[SampleIndex(step, 0, 2, False)]
        assert int(found["index"]) == 2 == data.seen[0] and 2 not in data.seen[1:] and len(data.seen) == 3
        seen |= set(data.seen[1:])
    assert seen == {0, 1, 3, 4}


def test_indices_tell_labelled_and_unlabelled_images_apart():
    """Unlabelled images are numbered behind the labelled ones; a run knows how many there are."""
    data = TrainingImages(Numbered(3), Numbered(4), view("single"), 0, SamplingPlan((0, 1, 2), (0, 1, 2, 3), 4, 2, 0))
    seen = {int(i) for batch in data.batches(0, 12) for i in batch["index"]}
    assert seen == set(range(7)) and data.images == 7


@pytest.mark.parametrize("kind", VIEWS)
def test_views_are_functions_of_their_generator(kind):
    """The same seed gives the same views with all their colors, another seed gives others."""
    made = make_view(kind, "moco_v2" if kind != "pair" else None, 32, 32, ViewConfig())
    one, same, other = (made(coordinates(), np.random.default_rng(seed), [solid(3)] * made.others) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one) and any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", ["two_crop", "single", "copy_paste"])
def test_least_area_reaches_the_crops_and_the_cache(kind):
    """--min-area 1 shows the whole image; smaller areas need more pixels in the cache."""
    whole = view(kind, min_area=1.0)
    assert whole.short_side == math.ceil(40 / math.sqrt(0.75)) < view(kind).short_side < view(kind, min_area=0.05).short_side
    if kind == "two_crop":
        boxes = whole(coordinates(), np.random.default_rng(0))["boxes"]
        assert ((boxes[:, 2:] - boxes[:, :2]).abs().prod(1) > 0.7 * 160 * 120).all()


def test_presets_say_what_their_papers_say():
    """Crops and colors as published, operation by operation; only BYOL's second view is solarized, CMC's have no colors."""
    assert {name: preset.area for name, preset in PRESETS.items() if name != "chaitanya"} == {
        "simclr": 0.08, "moco_v1": 0.2, "moco_v2": 0.2, "byol": 0.08, "cmc": 0.08}  # fmt: skip
    first, second = PRESETS["byol"].colors
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    jitter = {n: (c.brightness, c.contrast, c.saturation, c.hue, c.jitter, c.gray) for n, p in PRESETS.items() if (c := p.colors[0])}
    assert jitter["simclr"] == (0.8, 0.8, 0.8, 0.2, 0.8, 0.2) and jitter["byol"] == (0.4, 0.4, 0.2, 0.1, 0.8, 0.2)
    assert jitter["moco_v1"] == (0.4, 0.4, 0.4, 0.4, 1.0, 0.2) and jitter["moco_v2"] == (0.4, 0.4, 0.4, 0.1, 0.8, 0.2)
    assert PRESETS["cmc"].colors == (None, None) and PRESETS["moco_v1"].colors[0].gray_first


CROPS, PAIR, LOCAL = ("two_crop", "simclr"), ("pair", None), ("pair", "chaitanya")


@pytest.mark.parametrize(("kinds", "options", "says"), [
    ([CROPS], {"geometry": "crops"}, "--geometry is crops.* read --preset, --min-area. Leave it out"),
    ([("single", "cmc")], {"color_strength": 0.5}, "--color-strength is 0.5"),
    ([PAIR], {"min_area": 0.5}, "--min-area is 0.5.* read --geometry, --min-scale"),
    ([PAIR], {"preset": "byol"}, "--preset is byol"),
    ([LOCAL], {"color_strength": 0.5}, "--color-strength is 0.5"),
])  # fmt: skip
def test_options_that_no_view_reads_are_rejected(kinds, options, says):
    """They are not ignored; the message lists the options that are read."""
    with pytest.raises(ValueError, match=says):
        check_view_options(kinds, ViewConfig(**options))


@pytest.mark.parametrize("options", [{"min_area": 0.5}, {"geometry": "none"}, {"min_scale": 0.8}, {"preset": "byol"}])
def test_an_option_that_one_of_two_stages_reads_is_taken(options):
    """A method whose stages have different views has the options of both."""
    check_view_options([("slices", "chaitanya"), LOCAL], ViewConfig(**options))


def test_unknown_presets_are_rejected():
    """The error lists the presets."""
    with pytest.raises(ValueError, match="--preset.*expected one of simclr, moco_v1"):
        ViewConfig(preset="mocov1")
    with pytest.raises(ValueError, match="--min-area is 0"):
        ViewConfig(min_area=0.0)


@pytest.mark.parametrize(("kind", "wanted"), [
    ("two_crop", {"view1"}), ("slices", {"view1"}), ("single", {"image"}), ("copy_paste", {"view1", "other1"}),
])  # fmt: skip
def test_a_presets_first_colors_go_to_the_first_view(kind, wanted):
    """A preset whose second view has no colors distorts the first one (and what is pasted into it), a single view likewise; no other."""
    made = view(kind, Preset(0.2, (Colors(blur=1.0), None)))
    found = made(coordinates(), np.random.default_rng(0), [coordinates()] * made.others)
    assert {name.removesuffix("_color") for name in found if name.endswith("_color")} == wanted


def test_what_stands_in_for_a_bad_file_goes_by_its_own_index():
    """Index, volume and position are those of the sample that replaces a bad file: banks and slices refer to it."""

    class Damaged(Numbered):
        def read(self, index):
            if index == 1:
                raise BadSample("number 1 is broken")
            return super().read(index)

    data = Damaged(4)
    object.__setattr__(data, "slices", tuple(Slice(f"volume{i // 2}", i / 4) for i in range(4)))
    found = Samples(None, data, view("single"), seed=0)[SampleIndex(0, 0, 1, False)]
    assert found["name"] == "solid 20" and found["bad"] == ["number 1 is broken"]
    assert (int(found["index"]), int(found["volume"]), float(found["position"])) == (2, 1, 0.5)
