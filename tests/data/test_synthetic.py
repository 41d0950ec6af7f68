"""The synthetic scenes: deterministic, exactly labelled, and not solvable by color."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from mscl_hf.config import DataConfig
from mscl_hf.data import load_data, usable
from mscl_hf.data.synthetic import draw_scene

SIZE = (96, 128)


def digest(index, seed=0, split="train"):
    image, mask = draw_scene(seed, split, index, *SIZE)
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


def test_scenes_depend_on_seed_split_and_index_alone():
    """A fresh process that draws another scene first draws the same bits; each of the three keys changes them."""
    code = (
        "import hashlib; from mscl_hf.data.synthetic import draw_scene as d; d(0, 'train', 9, 96, 128); "
        "a, b = d(0, 'train', 3, 96, 128); print(hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert elsewhere == digest(3)
    assert len({digest(3), digest(4), digest(3, seed=1), digest(3, split="val")}) == 4


@pytest.mark.parametrize("split, count", [("train", 512), ("val", 64), ("test", 128)])
def test_splits_read_like_any_data_set(split, count):
    """Sizes, shapes and types are those of the other data sets; every pixel has a class."""
    data = load_data("synthetic", split)
    sample = data.read(count - 1)
    assert len(data) == count and sample.name == f"{split}_{count - 1:05d}"
    assert sample.image.shape == (*SIZE, 3) and sample.image.dtype == np.uint8
    assert sample.mask.shape == SIZE and sample.mask.dtype == np.uint8 and sample.mask.max() < data.num_classes
    assert load_data("synthetic", split, unlabelled=True).read(0).mask is None


def test_every_class_is_common():
    """In 60 scenes every class is in at least a quarter of the scenes and covers at least 0.5 % of the pixels."""
    data = load_data("synthetic", "train", scenes=60)
    masks = np.stack([data.read(i).mask for i in range(60)])
    for train_id, name in enumerate(data.classes):
        there = masks == train_id
        assert there.any((1, 2)).mean() >= 0.25 and there.mean() >= 0.005, name


def test_color_alone_does_not_tell_the_class():
    """The best guess from a pixel's color, learned on 60 scenes, is hardly better than the most common class."""
    data = load_data("synthetic", "train", scenes=90)
    samples = [data.read(i) for i in range(90)]
    cells = [(s.image >> 5).reshape(-1, 3) @ np.array([64, 8, 1]) for s in samples]  # 512 color cells
    ids = [s.mask.ravel() for s in samples]
    counts = np.ones((512, data.num_classes))
    np.add.at(counts, (np.concatenate(cells[:60]), np.concatenate(ids[:60])), 1)
    guess = counts.argmax(1)[np.concatenate(cells[60:])]
    truth = np.concatenate(ids[60:])
    commonest = np.bincount(np.concatenate(ids[:60])).argmax()
    assert (guess == truth).mean() < (truth == commonest).mean() + 0.02


def texture(image, side=12):
    """The mean differences of gray at 1, 2 and 4 px, across and along, in blocks of a scene: (blocks, 6)."""
    gray, columns = image.mean(2), SIZE[1] // side
    steps = [np.abs(np.roll(gray, -distance, axis) - gray)[:, : columns * side] for distance in (1, 2, 4) for axis in (0, 1)]
    return np.log1p([step.reshape(SIZE[0] // side, side, columns, side).mean((1, 3)).ravel() for step in steps]).T


def test_texture_tells_the_class():
    """Ridge regression from six differences of gray in a block, and their products, to the class at its center is right for most blocks
    of other scenes: what a network has to learn is in the picture."""
    samples = [load_data("synthetic", "train").read(i) for i in range(90)]
    x = np.stack([texture(s.image) for s in samples])
    y = np.stack([s.mask[6::12, 6:120:12].ravel() for s in samples])
    x = (x - x[:60].mean((0, 1))) / x[:60].std((0, 1))
    i, j = np.triu_indices(6)
    x = np.concatenate([np.ones_like(x[..., :1]), x, x[..., i] * x[..., j]], -1)
    a, one_hot = x[:60].reshape(-1, x.shape[-1]), np.eye(8)[y[:60].ravel()]
    weights = np.linalg.solve(a.T @ a + 0.01 * len(a) * np.eye(a.shape[1]), a.T @ one_hot)
    guess, truth = (x[60:] @ weights).argmax(-1), y[60:]
    assert (guess == truth).mean() > (truth == np.bincount(y[:60].ravel()).argmax()).mean() + 0.35


def test_masks_follow_the_picture():
    """Exact masks: neighbors across a class border differ more in color than neighbors inside a class."""
    across, inside = [], []
    for index in range(20):
        image, mask = draw_scene(0, "train", index, *SIZE)
        step = np.abs(image[1:].astype(int) - image[:-1]).sum(2)
        border = mask[1:] != mask[:-1]
        across.append(step[border].mean())
        inside.append(step[~border].mean())
    assert np.mean(across) > 1.25 * np.mean(inside)


def test_cached_scenes_cannot_be_changed():
    """A change of one sample does not change later samples."""
    data = load_data("synthetic", "train")
    before = data.read(1).image.copy()
    changed = np.array(data.read(1).image)
    changed[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        draw_scene(0, "train", 1, *SIZE)[0][:] = 0
    assert np.array_equal(data.read(1).image, before)


def test_other_sizes_and_seeds():
    """Scenes have any size from 32x32 px; another scene seed draws other scenes; other values are errors."""
    small = load_data("synthetic", "val", scenes=3, scene_height=48, scene_width=40).read(2)
    assert small.image.shape == (48, 40, 3)
    other = load_data("synthetic", "val", scene_seed=7).read(0)
    assert not np.array_equal(other.image, load_data("synthetic", "val").read(0).image)
    with pytest.raises(ValueError, match="at least 32x32"):
        load_data("synthetic", "val", scene_height=8)


def test_the_log_names_drawn_scenes():
    """A run on synthetic scenes logs it in one line, so that its scores are not mistaken for those of real images."""
    lines = []
    usable(load_data("synthetic", "train", scenes=4).select(range(2)), DataConfig(), lines.append)
    assert lines == ["synthetic/train: 4 synthetic scenes, no files (--dataset synthetic)"]
