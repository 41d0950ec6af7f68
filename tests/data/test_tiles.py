"""--tile: huge images are trained on in tiles, and measured whole."""

import json

import numpy as np
import pytest
import torch
from harness import TINY, rejected, run
from PIL import Image
from safetensors.torch import load_file

from mscl_hf.config import DataConfig
from mscl_hf.data import load_data, open_training_data, size_warnings
from mscl_hf.data.cache import with_cache
from mscl_hf.data.tiles import tile_boxes, tiled
from mscl_hf.evaluation import evaluate
from mscl_hf.transforms.views import TrainView

HEIGHT, WIDTH = 70, 100


def silent(*_) -> None:
    """Log nothing."""


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (HEIGHT, WIDTH, 3) and a mask of two classes."""
    rng = np.random.default_rng(seed)
    mask = np.repeat(np.repeat(rng.integers(0, 2, (7, 10), np.uint8), 10, 0), 10, 1)
    return (60 + 120 * mask[:, :, None] + rng.integers(0, 60, (HEIGHT, WIDTH, 3))).astype(np.uint8), mask


@pytest.fixture
def places(tmp_path, own_caches):
    for split, count in (("train", 2), ("val", 2)):
        for number in range(count):
            for kind, array in zip(("images", "masks"), picture(number + 10 * (split == "val"))):
                (tmp_path / "data" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "data" / kind / split / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("size", [16, 32, 100, 200])
@pytest.mark.parametrize("overlap", [0, 5, 15])
@pytest.mark.parametrize("shape", [(70, 100), (16, 16), (1, 300), (33, 32)])
def test_tiles_cover_each_pixel(shape, size, overlap):
    """Each pixel is in a tile, tiles are as large as asked or as the image, lie in it, and neighbors overlap by at least the overlap."""
    covered = np.zeros(shape, int)
    boxes = tile_boxes(*shape, size, overlap)
    for x0, y0, x1, y1 in boxes:
        assert (y1 - y0, x1 - x0) == (min(size, shape[0]), min(size, shape[1])) and min(x0, y0) >= 0 and y1 <= shape[0] and x1 <= shape[1]
        covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1 or overlap and covered.min() > 1
    assert len(set(boxes)) == len(boxes)
    for axis in (0, 1):
        starts = sorted({box[axis] for box in boxes})
        assert all(b - a <= size - overlap for a, b in zip(starts, starts[1:]))


def test_a_tile_is_its_part_of_the_image(places):
    """Image, mask and a name of its own; selected rows keep their tiles."""
    data = tiled(with_cache(load_data("folder", "train", places / "data", num_classes=2), 0, 1.0, silent), (32, 8), silent)
    boxes = tile_boxes(HEIGHT, WIDTH, 32, 8)
    assert len(data) == 2 * len(boxes) == len(set(data.names))
    for rows in (data, data.select([3, len(boxes) + 1])):
        for index, (x0, y0, x1, y1) in enumerate(rows.boxes):
            image, mask, name = rows.read(index)
            whole, whole_mask = picture(0 if name.startswith("0 ") else 1)
            assert np.array_equal(image, whole[y0:y1, x0:x1]) and np.array_equal(mask, whole_mask[y0:y1, x0:x1])
            assert name == rows.names[index] == f"{name[0]} x{x0} y{y0}"


def test_a_sample_reads_only_its_tile(places, monkeypatch):
    """Each file is decoded once; a tile is a part of a memory-mapped array."""
    data = tiled(with_cache(load_data("folder", "train", places / "data", num_classes=2), 0, 1.0, silent), (32, 8), silent)
    monkeypatch.setattr("mscl_hf.data.dataset.decode", lambda *_: pytest.fail("decoded again"))
    for index in range(len(data)):
        image = data.read(index).image
        assert isinstance(image, np.memmap) and image.base is not None


def test_batches_hold_tiles(places):
    """As many samples as tiles: their masks are counted, and a batch draws different ones."""
    options = DataConfig("folder", str(places / "data"), num_classes=2, tile=[32, 8])
    images = open_training_data(options, TrainView(32, 0, (1.0, 1.0)), 24, 0, silent)
    count = 2 * len(tile_boxes(HEIGHT, WIDTH, 32, 8))
    assert images.images == count == images.labelled.labels.read and count == 24
    (batch,) = images.batches(0, 1)
    assert len(set(batch["name"])) == 24 and not images.repeats()
    assert not size_warnings([images.labelled], 32, 0, 16)
    (warning,) = size_warnings([images.labelled], 8, 0, 16)
    assert "have 32 px on the short side (median)" in warning and "--base-size" not in warning


def test_one_tile_an_image_gives_the_same_weights(places):
    """Tiles that hold the whole image change no weight."""
    weights = []
    for name, flags in (("whole", ("--base-size", 0)), ("tile", ("--tile", 100, 10))):
        train(places, name, *flags)
        weights.append(load_file(places / name / "model.safetensors"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


STEPS = ("--batch-size", 2, "--dataloader-num-workers", 0, "--warmup-steps", 0, "--max-steps", 2)


def train(places, name: str, *flags) -> None:
    data = ("--dataset", "folder", "--data-dir", places / "data", *flags)
    quiet = {"draw_training": silent, "draw_features": silent}
    model = places / f"{name}_pretrained"
    run("pretrain", *data, *TINY, *STEPS, "--losses", "p", "--geometry", "shared", "--output-dir", model, **quiet)
    run("finetune", *data, *STEPS, "--num-classes", 2, "--model", model, "--output-dir", places / name, **quiet)


def test_held_out_images_are_measured_whole(places, capsys):
    """By windows of the size of the tiles, so that each pixel counts once; mscl-evaluate as the log proposes gives the same score."""
    train(places, "tuned", "--tile", 48, 16)
    said = capsys.readouterr().out
    results = json.loads((places / "tuned" / "results.json").read_text())
    assert sum(results["per_class_pixels"].values()) == 2 * HEIGHT * WIDTH and results["num_images"] == 2
    assert {key: results["inference"][key] for key in ("mode", "window", "stride", "base_size")} == {
        "mode": "slide", "window": 48, "stride": 32, "base_size": 0,
    }  # fmt: skip
    assert "--mode slide --window 48 --stride 32" in said and "2 images in 12 tiles of at most 48 px that overlap by at least 16 px" in said
    assert "| tiles | 48 px, overlapping by 16 px |" in (places / "tuned" / "README.md").read_text()
    flags = ("--dataset", "folder", "--data-dir", places / "data", "--split", "val", "--model", places / "tuned", "--mode", "slide")
    run("evaluate_model", *flags, "--window", 48, "--stride", 32, "--output-dir", places / "scores")
    assert json.loads((places / "scores" / "results.json").read_text())["mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-9)


def test_pictures_of_huge_images_are_drawn_reduced(places, monkeypatch):
    """Image, mask and prediction have one size, at most that of the picture; smaller images are unchanged."""
    image, mask = picture(0)
    assert all(a is b for a, b in zip(evaluate._for_picture(image, mask, None), (image, mask, None)))
    monkeypatch.setattr(evaluate, "LONGEST_SIDE", 50)
    small, small_mask, ids, none = evaluate._for_picture(image, mask, mask.astype(np.int64), None)
    assert small.shape == (35, 50, 3) and np.array_equal(small_mask, mask[1::2, 1::2]) and np.array_equal(ids, small_mask) and none is None


def test_an_unreadable_image_is_reported_once(places):
    (places / "data" / "images" / "train" / "1.png").write_bytes(b"no image")
    options = DataConfig("folder", str(places / "data"), num_classes=2, tile=[32, 8], max_bad_images=1)
    log = []
    images = open_training_data(options, TrainView(32, 0, (1.0, 1.0)), 4, 0, log.append)
    assert images.images == 12 and sum("skipped: " in line for line in log) == 1


WRONG = {
    "one number": (("--tile", 64), "--tile is 64; expected SIZE OVERLAP in px, 0 <= OVERLAP < SIZE"),
    "overlap as large as the tile": (("--tile", 64, 64), "--tile is 64 64; expected SIZE OVERLAP"),
    "a negative overlap": (("--tile", 64, -1), "--tile is 64 -1; expected SIZE OVERLAP"),
    "another scale": (("--tile", 64, 8, "--base-size", 96), "--base-size is 96; expected 0 with --tile"),
    "no cache": (("--tile", 64, 8, "--image-cache-gb", 0), "the images of folder/train are not cached, but tiles are read from the cache"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tiles_are_one_sentence(places, name):
    flags, message = WRONG[name]
    data = ("--dataset", "folder", "--data-dir", places / "data")
    assert message in rejected("pretrain", *data, *TINY, *STEPS, *flags, "--output-dir", places / "out")
