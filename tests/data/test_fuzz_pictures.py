"""Random pictures, intact and damaged, and all views of them: read or rejected, and the mask stays on its image."""

import io
import struct

import numpy as np
import torch
from fuzz import AMOUNTS, fuzzed, stated
from hypothesis import example
from hypothesis import strategies as st
from PIL import Image

from mscl_hf.config import CropConfig, ViewConfig
from mscl_hf.data.checks import check_data
from mscl_hf.data.dataset import Sample, SegmentationData
from mscl_hf.data.files import file_rows
from mscl_hf.data.loader import stack
from mscl_hf.transforms.presets import PRESETS
from mscl_hf.transforms.views import VIEWS, TrainView, make_view

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "PA", "I", "I;16", "F", "YCbCr", "LAB", "HSV")
TRANSPARENT = {"1": (0, 255), "L": (0, 255, 40000), "RGB": ((1, 2, 3), (0, 0, 40000)), "P": (0, 200, b"\x00\x10", b"")}  # as files say it
FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "GIF", "WEBP", "PPM")
SIDES = st.one_of(st.integers(1, 20), st.sampled_from([3, 64, 500]))
SIZES = st.one_of(st.tuples(SIDES, SIDES), st.sampled_from([(1, 1), (3, 500), (500, 3), (1, 500)]))


@st.composite
def pictures(draw, sizes=SIZES):
    """A picture of any mode and EXIF orientation, with few or many values."""
    (width, height), mode = draw(sizes), draw(st.sampled_from(MODES))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    high = draw(st.sampled_from([1, 2, 5, 255, 256, 40000]))
    values = rng.integers(0, high, (height, width))
    if draw(st.booleans()):
        values[rng.random(values.shape) < 0.1] = 255
    if mode in ("I", "I;16", "F"):
        kinds = {"I": np.int32, "I;16": np.uint16, "F": np.float32}
        picture = Image.fromarray((values - (mode == "I") * draw(st.integers(0, 1))).astype(kinds[mode]))
    elif mode == "P":
        picture = Image.fromarray(values.astype(np.uint8)).convert("P")
        picture.putpalette(list(range(256)) * 3)
    else:
        picture = Image.fromarray(values.astype(np.uint8)).convert("RGB" if mode in ("LAB", "HSV", "YCbCr", "CMYK") else mode)
        picture = picture.convert(mode)
    if draw(st.booleans()):
        picture.getexif()[0x0112] = draw(st.one_of(st.integers(0, 9), st.text(max_size=2)))
    if mode in TRANSPARENT and draw(st.integers(0, 4)) == 0:
        picture.info["transparency"] = draw(st.sampled_from(TRANSPARENT[mode]))
    return picture


class DrawnRows:
    """Rows in memory."""

    def __init__(self, rows):
        self.rows = rows
        self.names = [row["name"] for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def select(self, indices):
        return DrawnRows([self.rows[i] for i in indices])


def check_sample(sample: Sample, data: SegmentationData) -> None:
    assert sample.image.dtype == np.uint8 and sample.image.ndim == 3 and sample.image.shape[2] == 3
    if data.classes:
        assert sample.mask.dtype == np.uint8 and sample.mask.shape == sample.image.shape[:2]
        assert set(np.unique(sample.mask)) <= {*range(data.num_classes), 255}


TABLES = st.one_of(st.none(), st.integers(0, 9).map(lambda seed: np.random.default_rng(seed).permutation(256).astype(np.uint8)))


@fuzzed(image=pictures(), mask=st.one_of(st.none(), pictures()), same=st.booleans(), classes=st.sampled_from([0, 1, 2, 255]), table=TABLES)
def test_pictures_in_memory(image, mask, same, classes, table):
    """Read as RGB and train ids, or BadSample."""
    if same and mask is not None:
        mask = mask.resize(image.size)
    rows = DrawnRows([{"image": image, "mask": mask, "name": "a"}])
    data = SegmentationData(rows, tuple(map(str, range(classes))), "drawn", "train", table)
    with stated() as said:
        check_sample(data.read(0), data)
    with stated() as checked:
        assert check_data(data, 0, workers=1) == ([0], [])
    assert bool(said) == bool(checked)


@st.composite
def files(draw):
    """The bytes of a picture's file: whole, cut off, with bytes changed, or no picture at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=64))
    picture, target = draw(pictures(st.tuples(st.integers(1, 20), st.integers(1, 20)))), io.BytesIO()
    picture.info.clear()
    exif = draw(st.one_of(st.just(picture.getexif()), st.binary(max_size=40).map(lambda junk: b"Exif\x00\x00MM\x00*" + junk)))
    try:
        picture.save(target, draw(st.sampled_from(FORMATS)), exif=exif)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, struct.error):  # what a format cannot hold
        (picture.convert("RGB") if picture.mode == "LAB" else picture).convert("L").save(target, "PNG")
    data = bytearray(target.getvalue())
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@fuzzed(cost=2, image=files(), mask=files(), classes=st.sampled_from([0, 2, 255]))
def test_damaged_files(tmp_path_factory, image, mask, classes):
    """A good row is read, a random one is read or reported, and the check agrees with reading."""
    root = tmp_path_factory.getbasetemp() / "drawn_files"
    root.mkdir(exist_ok=True)
    (root / "image").write_bytes(image)
    (root / "mask").write_bytes(mask)
    Image.new("L", (4, 4)).save(root / "good.png")
    rows = file_rows(["good", "drawn"], [root / "good.png", root / "image"], [root / "good.png", root / "mask"])
    data = SegmentationData(rows, tuple(map(str, range(classes))), "drawn", "train")
    check_sample(data.read(0), data)
    with stated() as said:
        check_sample(data.read(1), data)
    usable, bad = check_data(data, 1, workers=1)
    assert bad == said and usable == [0, 1][: 2 - len(bad)]
    if bad:
        assert str(root) in bad[0]


# views

SHARES = st.one_of(st.floats(0.01, 1), st.sampled_from([0.0, 1e-300, 1e-6, 1.0, 2.0]))
SCALES = st.lists(AMOUNTS, min_size=2, max_size=2).map(sorted).map(lambda pair: dict(zip(("min_scale", "max_scale"), pair)))


@st.composite
def view_options(draw) -> dict:
    """Options of the views, with extremes."""
    kinds = {"geometry": st.sampled_from(("shared", "crops", "none")), "min_overlap": SHARES, "color_strength": AMOUNTS, "blur": SHARES}
    kinds |= {"augment_both": st.booleans(), "preset": st.sampled_from(sorted(PRESETS)), "min_area": SHARES}
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), max_size=3, unique=True))
    return {name: draw(kinds[name]) for name in chosen} | draw(st.one_of(st.just({}), SCALES))


SHAPES = st.fixed_dictionaries({
    "image_size": st.sampled_from([16, 17, 32, 50]), "base_size": st.one_of(st.sampled_from([0, 1, 32, 1000]), st.integers(0, 64)),
    "image_width": st.sampled_from([None, 16, 33, 64]),
})  # fmt: skip

SEEDS = st.integers(0, 99)
PLAIN = {"image_size": 16, "base_size": 32, "image_width": None}


def places(width: int, height: int, across: bool) -> Sample:
    """An image whose red is x and whose green is y, in parts of 254, and a mask of the one or the other."""
    y, x = np.mgrid[:height, :width]
    red, green = (np.round(254 * at / max(1, side - 1)) for at, side in ((x, width), (y, height)))
    image = np.stack([red, green, np.full_like(red, 200)], -1).astype(np.uint8)
    return Sample(image, (red if across else green).astype(np.uint8), "places")


def check_alignment(image, mask, sample: Sample, across: bool) -> None:
    """Labels are labels of the sample, and the label of each pixel is that of its color, within a pixel of the coarser of view and image;
    what is padding is gray and ignored, and nothing else is."""
    padding = (image == torch.tensor([124, 116, 104])[:, None, None]).all(0)
    assert torch.equal(mask == 255, padding) and (image[2][~padding] == 200).all()
    assert set(mask[~padding].tolist()) <= set(np.unique(sample.mask).tolist())
    side = sample.image.shape[1] if across else sample.image.shape[0]
    of_a_pixel = 254 / max(1, side - 1)
    shown = mask[~padding].float()
    step = (float(shown.max() - shown.min()) + of_a_pixel) / max(1, sum((~padding).any(0 if across else 1)).item()) if len(shown) else 0
    assert (image[0 if across else 1][~padding].float() - shown).abs().le(max(of_a_pixel, step) + 1.01).all()


def check_box(image, box, size) -> None:
    """The center of a view shows the center of its box, within a pixel of the coarser of view and image."""
    for channel, low, high, side, pixels in zip((0, 1), box, box[2:], size, image.shape[:0:-1]):
        of_a_pixel = 254 / max(1, side - 1)
        wanted = min(max((low + high) / 2 - 0.5, 0), side - 1) * of_a_pixel if side > 1 else 0
        assert abs(float(image[channel].float().mean()) - wanted) <= of_a_pixel * max(1, abs(high - low) / pixels) + 1.01


@example(kind="pair", options={"preset": "cmc"}, shape=PLAIN, size=(9, 9), across=True, seed=0)
@example(kind="pair", options={"min_scale": 1e-300, "max_scale": 1e300}, shape=PLAIN, size=(9, 9), across=True, seed=0)
@example(kind="pair", options={"color_strength": 1e300}, shape=PLAIN, size=(9, 9), across=True, seed=0)
@fuzzed(kind=st.sampled_from(sorted(VIEWS)), options=view_options(), shape=SHAPES, size=SIZES, across=st.booleans(), seed=SEEDS)
def test_views(kind, options, shape, size, across, seed):
    """Options are rejected, or every view of every image has its shape, a mask that matches, and colors of the image."""
    sample = places(*size, across)
    with stated():
        preset = None if kind == "pair" else "simclr"
        view = make_view(kind, preset, shape["image_size"], shape["base_size"], ViewConfig(**options), shape["image_width"])
        assert view.short_side >= 0
        drawn = view(sample, np.random.default_rng(seed), [sample] * view.others)
        for name in ("", "enhanced_"):
            if f"{name}mask" in drawn:
                check_alignment(drawn[name[:-1] or "image"], drawn[f"{name}mask"], sample, across)
        if kind in ("two_crop", "slices"):
            for name, box in zip(("view1", "view2"), drawn["boxes"].tolist()):
                check_box(drawn[name], box, size)
        batch = view.on_device(stack([{**drawn, "labelled": True, "name": "a", "bad": []}] * 2))
        wanted = (2, 3, shape["image_size"], shape["image_width"] or shape["image_size"])
        images = [value for value in batch.values() if torch.is_tensor(value) and value.dim() == 4]
        assert images and all(image.shape == wanted and image.dtype == torch.uint8 for image in images)
        if "boxes" in batch:
            assert batch["boxes"].isfinite().all()


@example(scales={"min_scale": 1.0, "max_scale": 1.7e308}, color_strength=0.0, shape=PLAIN, size=(9, 9), across=True, seed=0)
@example(scales={"min_scale": 1.0, "max_scale": 1.0}, color_strength=1e300, shape=PLAIN, size=(9, 9), across=True, seed=0)
@fuzzed(scales=SCALES, color_strength=AMOUNTS, shape=SHAPES, size=SIZES, across=st.booleans(), seed=SEEDS)
def test_finetuning_view(scales, color_strength, shape, size, across, seed):
    """The views of fine-tuning, likewise."""
    sample = places(*size, across)
    with stated():
        crops = CropConfig(**scales, color_strength=color_strength, **shape)
        view = TrainView(crops.image_size, crops.base_size, (crops.min_scale, crops.max_scale), crops.color_strength, crops.image_width)
        drawn = view(sample, np.random.default_rng(seed))
        check_alignment(drawn["image"], drawn["mask"], sample, across)
