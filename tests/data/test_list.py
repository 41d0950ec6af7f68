"""`--dataset list`: a file with a line for each image."""

import json

import numpy as np
import pytest
from test_data import labels, picture, save

from mscl_hf.data import UnknownSplit, check_data, load_data

pytestmark = pytest.mark.usefixtures("own_caches")


def files(root, count=4):
    for number in range(count):
        save(picture(number), root / "photos" / f"{number}.jpg")
        save(labels([0, 1, 2]), root / "ids" / f"m{number}.png")
    return [{"image": f"photos/{n}.jpg", "mask": f"ids/m{n}.png", "split": "train" if n < 3 else "valid"} for n in range(count)]


def as_csv(rows, path):
    path.write_text("image,mask,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))


def as_semicolons(rows, path):
    path.write_text("\ufeffFile_Name;Label;Subset\n" + "".join(";".join(row.values()) + "\n" for row in rows), encoding="utf-8")


def as_json(rows, path):
    path.write_text(json.dumps(rows))


def as_lines(rows, path):
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("write", [as_csv, as_semicolons, as_json, as_lines])
def test_lists_in_every_form(tmp_path, write):
    """CSV with commas or semicolons, a JSON list, an object a line: paths relative to the file, splits with their synonyms."""
    write(files(tmp_path), tmp_path / "data")
    train, val = (load_data("list", split, tmp_path / "data") for split in ("train", "val"))
    assert len(train) == 3 and len(val) == 1 and val.names == ["photos/3"] and train.num_classes == 3
    assert check_data(train)[1] == [] and np.array_equal(train.read(1).mask, np.asarray(labels([0, 1, 2])))
    assert len(load_data("list", "train", tmp_path / "data", unlabelled=True)) == 3
    with pytest.raises(UnknownSplit, match="train, valid"):
        load_data("list", "test", tmp_path / "data")


def test_without_splits_and_masks(tmp_path):
    """All images are the split train; those without a mask are unlabelled; without any mask the data is."""
    rows = [{"image": row["image"], "mask": row["mask"] if number else ""} for number, row in enumerate(files(tmp_path))]
    as_json(rows, tmp_path / "list.json")
    data = load_data("list", "train", tmp_path / "list.json")
    assert len(data) == 3 and "1 images without a mask are left out" in data.note
    assert len(load_data("list", "train", tmp_path / "list.json", unlabelled=True)) == 4
    as_json([{"image": row["image"]} for row in rows], tmp_path / "list.json")
    assert not load_data("list", "train", tmp_path / "list.json").labelled


BAD = {
    "picture,mask\n0.jpg,0.png": "with the columns picture, mask; expected", "image,mask\n,0.png": "no image in line 2", "": "columns none",
    "image\nabsent.jpg": "1 image files that do not exist below", "[1]": "other things than objects", "[": "not valid JSON",
    "image,mask\nphotos/0.jpg,absent.png": "1 mask files that do not exist", "image\nphotos/0.jpg\nphotos/0.jpg": "more than once",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_lists_that_cannot_be_read(tmp_path, text):
    """One sentence with the file."""
    files(tmp_path)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        load_data("list", "train", tmp_path / "list.csv")
    assert "list.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_list(tmp_path):
    """And neither is a missing file."""
    for path in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(ValueError, match="which is not a file; expected a CSV file"):
            load_data("list", "train", path)
