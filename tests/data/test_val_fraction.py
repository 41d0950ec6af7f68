"""--val-fraction: stratified, seeded, written down, and the same in all commands."""

import harness
import numpy as np
import pytest
from PIL import Image
from test_data import picture, save

from mscl_hf.config import DataConfig
from mscl_hf.data import load_data, open_held_out, open_training_data, with_val_split
from mscl_hf.data.splits import open_held_out_split, open_split
from mscl_hf.data.val_fraction import drawn_names, read_names
from mscl_hf.transforms.views import TrainView

pytestmark = pytest.mark.usefixtures("own_caches")


def folder(root, classes):
    """A pair for each set of class ids."""
    for number, ids in enumerate(classes):
        save(picture(number, 8, 8), root / "images" / f"{number:02d}.png")
        mask = np.zeros((8, 8), np.uint8)
        for row, id in enumerate(sorted(ids)):
            mask[row] = id
        save(Image.fromarray(mask), root / "masks" / f"{number:02d}.png")
    return root


def fifty(root):
    """Class 1 in every second image, class 2 in every fifth, class 3 in five, class 4 in one."""
    ids = [{0, *([1] if i % 2 == 0 else []), *([2] if i % 5 == 0 else []),
           *([3] if i in (7, 17, 27, 37, 47) else []), *([4] if i == 9 else [])} for i in range(50)]  # fmt: skip
    return ids, folder(root, ids)


def test_classes_keep_their_proportions(tmp_path):
    """Each class has its share of held-out images to one image, for any seed; a class of one image stays in training."""
    ids, root = fifty(tmp_path)
    data = load_data("folder", "train", root, num_classes=5)
    drawn = [drawn_names(data, 0.2, seed) for seed in range(5)]
    assert len(set(map(tuple, drawn))) == 5 and drawn == [drawn_names(data, 0.2, seed) for seed in range(5)]
    for names in drawn:
        assert len(names) == 10
        for class_id, count in {1: 25, 2: 10, 3: 5, 4: 1}.items():
            held_out = sum(class_id in ids[int(name)] for name in names)
            assert abs(held_out - 0.2 * count) < 1.01 and (class_id != 4 or held_out == 0) and (class_id != 3 or held_out == 1)


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (10, 0.25, 2), (7, 0.34, 2)])
def test_both_parts_have_images(tmp_path, count, fraction, expected):
    """The rounded number, at least one in each part."""
    data = load_data("folder", "train", folder(tmp_path, [{0, 1}] * count))
    assert len(drawn_names(data, fraction, 0)) == expected


def test_the_parts_are_disjoint_also_without_labels(tmp_path):
    """Training, the unlabelled rest and the held-out part have no image in common and are all images."""
    _, root = fifty(tmp_path / "data")
    options = DataConfig(dataset="folder", data_dir=str(root), num_classes=5, val_fraction=0.2, train_count=10)
    options = with_val_split(options, tmp_path / "run", None, lambda line: None)
    view = TrainView(8, 8)
    data = open_training_data(options, view, 4, 0, lambda line: None, unlabelled="rest")
    held_out = open_held_out(options, lambda line: None)
    names = [set(part.names) for part in (data.labelled, data.unlabelled, held_out)]
    assert [len(part) for part in names] == [10, 30, 10] and len(set.union(*names)) == 50
    assert held_out.split == "val" and read_names(tmp_path / "run" / "val_split.txt") == held_out.names


def test_the_list_decides_and_not_the_draw(tmp_path):
    """A resumed run and one that starts from the model hold out the same images, with more images and another seed."""
    _, root = fifty(tmp_path / "data")
    options = DataConfig(dataset="folder", data_dir=str(root), num_classes=5, val_fraction=0.2)
    first = with_val_split(options, tmp_path / "first", None, lambda line: None)
    listed = read_names(first.val_split)
    save(picture(99, 8, 8), root / "images" / "99.png")
    save(Image.new("L", (8, 8)), root / "masks" / "99.png")
    for out, model in (("first", None), ("second", str(tmp_path / "first"))):
        lines = []
        again = with_val_split(DataConfig(**vars(options) | {"subset_seed": 3}), tmp_path / out, model, lines.append)
        assert read_names(again.val_split) == listed and "held out as in" in lines[0]
        assert len(open_split(again, "train")) == 41
    evaluated = open_held_out_split(options, "val", (), str(tmp_path / "second" / "val_split.txt"))
    trained_on = open_held_out_split(options, "train", (), str(tmp_path / "second" / "val_split.txt"))
    assert evaluated.names == listed and not {*trained_on.names} & {*listed}


def test_a_run_from_the_model_holds_out_the_same_without_the_option(tmp_path):
    """Where its data has all images of the list and the options name no other; else they are left as they are."""
    _, root = fifty(tmp_path / "data")
    options = DataConfig(dataset="folder", data_dir=str(root), num_classes=5)
    first = with_val_split(DataConfig(**vars(options) | {"val_fraction": 0.2}), tmp_path / "first", None, lambda line: None)
    tuned = with_val_split(options, tmp_path / "tuned", str(tmp_path / "first"), lambda line: None)
    assert read_names(tuned.val_split) == read_names(first.val_split) and len(open_split(tuned, "train")) == 40
    assert tuned.val_split == str(tmp_path / "tuned" / "val_split.txt")
    other = folder(tmp_path / "other", [{0, 1}] * 4)
    for number in range(4):
        for kind in ("images", "masks"):
            (other / kind / f"{number:02d}.png").rename(other / kind / f"other{number}.png")
    others = DataConfig(dataset="folder", data_dir=str(other))
    for unchanged in (others, DataConfig(**vars(options) | {"val_split": "none"})):
        assert with_val_split(unchanged, tmp_path / "more", str(tmp_path / "first"), lambda line: None) == unchanged
    assert with_val_split(options, tmp_path / "more", str(tmp_path / "data"), lambda line: None) == options
    halved = DataConfig(**vars(others) | {"val_fraction": 0.5})
    drawn = with_val_split(halved, tmp_path / "drawn", str(tmp_path / "first"), lambda line: None)
    assert len(open_held_out(drawn, lambda line: None)) == len(open_split(drawn, "train")) == 2
    (root / "images" / f"{read_names(first.val_split)[0]}.png").unlink()
    kept = with_val_split(options, tmp_path / "kept", str(tmp_path / "first"), lambda line: None)
    with pytest.raises(ValueError, match="lists 1 of 10 images that folder/train does not have"):
        open_held_out(kept, lambda line: None)


def test_a_list_of_ones_own(tmp_path):
    """--val-split FILE.txt; a name that the data does not have is an error."""
    root = folder(tmp_path / "data", [{0, 1}] * 4)
    (tmp_path / "mine.txt").write_text("# held out\n01\n\n03\n")
    options = DataConfig(dataset="folder", data_dir=str(root), val_split=str(tmp_path / "mine.txt"))
    assert open_held_out(options, lambda line: None).names == ["01", "03"] and open_split(options, "train").names == ["00", "02"]
    for text, message in (("absent", "1 of 1 images that folder/train does not have: absent"), ("#", "names no image")):
        (tmp_path / "mine.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_held_out(options, lambda line: None)


def test_contradictions(tmp_path):
    """A split that exists, a named split, a stream and a single image are errors, before anything is written."""
    split = {"images": "images/val", "masks": "masks/val"}
    root = folder(tmp_path / "data", [{0, 1}] * 4)
    one = folder(tmp_path / "one", [{0, 1}])
    with_val = folder(tmp_path / "two", [{0, 1}])
    for name in split:
        for part in ("train", "val"):
            save(Image.open(with_val / name / "00.png"), with_val / name / part / "00.png")
        (with_val / name / "00.png").unlink()
    for data_dir, more, message in (
        (with_val, {}, "the data has the split 'val'"), (root, {"val_split": "test"}, "--val-split test is given"),
        (root, {"streaming": True}, "--streaming is given"), (one, {}, "has 1 image"),
    ):  # fmt: skip
        options = DataConfig(dataset="folder", data_dir=str(data_dir), num_classes=2, val_fraction=0.5, **more)
        with pytest.raises(ValueError, match=message):
            with_val_split(options, tmp_path / "run", None, lambda line: None)
    assert not (tmp_path / "run" / "val_split.txt").exists()
    message = harness.rejected("pretrain", "--dataset", "folder", "--data-dir", root, "--val-fraction", 1, "--output-dir", tmp_path / "out")
    assert "--val-fraction is 1.0; expected above 0 and below 1" in message
