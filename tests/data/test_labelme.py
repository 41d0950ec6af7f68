"""JSON files of Labelme beside their images: its own pixels, or one sentence."""

import base64
import io
import json
import math

import harness
import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_data import picture, save

from mscl_hf.data import UnknownSplit, check_data, load_data

pytestmark = pytest.mark.usefixtures("own_caches")

SHAPES = [
    ("dog", "polygon", [[2, 2], [30, 4], [20, 25]]), ("cat", "rectangle", [[25, 20], [10, 8]]), ("cat", "circle", [[30, 12], [36, 12]]),
    ("__ignore__", "linestrip", [[0, 0], [10, 28], [39, 28]]), ("dog", "line", [[5, 29], [39, 20]]), ("bird", "point", [[33, 25]]),
    ("_background_", "polygon", [[12, 10], [18, 10], [18, 16]]), ("bird", None, [[0.5, 20.25], [6, 20], [6, 29.5]]),
]  # fmt: skip
CLASS_IDS = {"_background_": 0, "bird": 1, "cat": 2, "dog": 3, "__ignore__": 255}


def shape_to_mask(size, points, shape_type):
    """Labelme's own function (labelme/utils/shape.py), for the shapes above."""
    mask = Image.new("1", size[::-1])
    draw, xy = ImageDraw.Draw(mask), [tuple(point) for point in points]
    if shape_type == "circle":
        (cx, cy), (px, py) = xy
        d = math.sqrt((cx - px) ** 2 + (cy - py) ** 2)
        draw.ellipse([cx - d, cy - d, cx + d, cy + d], outline=1, fill=1)
    elif shape_type == "rectangle":
        draw.rectangle([min(xy)[0], min(y for _, y in xy), max(xy)[0], max(y for _, y in xy)], outline=1, fill=1)
    elif shape_type in ("line", "linestrip"):
        draw.line(xy=xy, fill=1, width=10)
    elif shape_type == "point":
        (cx, cy), r = xy[0], 5
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], outline=1, fill=1)
    else:
        draw.polygon(xy=xy, outline=1, fill=1)
    return np.asarray(mask)


def write(folder, count=3, shapes=SHAPES, **fields):
    """Images, and a JSON file for all but the last."""
    for number in range(count):
        save(picture(number, 30, 40), folder / f"{number}.jpg")
        content = {
            "version": "5.5.0", "flags": {}, "imagePath": f"{number}.jpg", "imageData": None, "imageHeight": 30, "imageWidth": 40,
            "shapes": [{"label": name, "shape_type": kind, "points": points, "group_id": None} for name, kind, points in shapes],
        }  # fmt: skip
        if number < count - 1:
            (folder / f"{number}.json").write_text(json.dumps(content | fields))
    return folder


def test_shapes_are_drawn_as_labelme_does(tmp_path):
    """Each shape by Labelme's function, later ones on top; the union by label; the image without a file is left out, and unlabelled."""
    data = load_data("labelme", "train", write(tmp_path))
    expected = np.zeros((30, 40), np.uint8)
    for name, kind, points in SHAPES:
        expected[shape_to_mask((30, 40), points, kind)] = CLASS_IDS[name]
    assert data.classes == ("background", "bird", "cat", "dog") and data.names == ["0", "1"] and check_data(data)[1] == []
    assert np.array_equal(data.read(0).mask, expected) and set(np.unique(expected)) == {0, 1, 2, 3, 255}
    assert "1 images without a JSON file are left out" in data.note
    assert load_data("labelme", "train", tmp_path, unlabelled=True).names == ["0", "1", "2"]


def test_masks_of_pixels(tmp_path):
    """Shapes of type mask: a PNG in base64 within its box."""
    file, region = io.BytesIO(), np.random.default_rng(0).random((6, 9)) < 0.5
    Image.fromarray(region).save(file, "PNG")
    write(tmp_path, shapes=[])
    shape = {"label": "cat", "shape_type": "mask", "points": [[4, 3], [12, 8]], "mask": base64.b64encode(file.getvalue()).decode()}
    for number in range(2):
        content = json.loads((tmp_path / f"{number}.json").read_text())
        (tmp_path / f"{number}.json").write_text(json.dumps(content | {"shapes": [shape]}))
    mask = load_data("labelme", "train", tmp_path).read(0).mask
    assert np.array_equal(mask[3:9, 4:13] == 1, region) and (mask == 1).sum() == region.sum()


def test_the_embedded_image_is_not_read(tmp_path):
    """The file beside is; the size is that of the image if the JSON file has none; paths of Windows are read by their last part."""
    write(tmp_path, imageData="not an image", imageHeight=None, imageWidth=None, imagePath="..\\pictures\\0.jpg")
    assert load_data("labelme", "train", tmp_path).read(0).mask.shape == (30, 40)


def test_splits_and_classes(tmp_path):
    """Folders train and val; --classes orders the labels, as Labelme's own list does with __ignore__ and _background_ in front."""
    for split in ("train", "val"):
        write(tmp_path / split)
    names = ["__ignore__", "_background_", "dog", "cat", "bird"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    for split in ("train", "val"):
        data = load_data("labelme", split, tmp_path, classes=tmp_path / "labels.txt")
        assert data.classes == ("_background_", "dog", "cat", "bird") and check_data(data)[1] == []
    with pytest.raises(UnknownSplit):
        load_data("labelme", "test", tmp_path)
    with pytest.raises(ValueError, match="has the label 'bird'; expected one of background, dog, cat. Add it to --classes"):
        load_data("labelme", "train", tmp_path, classes=["dog", "cat"])


BAD = {
    "no shapes": ({"shapes": None}, "has no shapes and imagePath"), "no label": ({"shapes": [{}]}, r"no label in shapes\[0\]"),
    "no image": ({"imagePath": "absent.png"}, "do not exist"),
    "another shape": ({"shapes": [{"label": "a", "shape_type": "star", "points": []}]}, "is a 'star'; expected one of"),
    "too few points": ({"shapes": [{"label": "a", "points": [[1, 2]]}]}, "is a polygon of 1 points; expected 3"),
    "points of text": ({"shapes": [{"label": "a", "points": [["x", 2]] * 3}]}, "expected x, y in px"),
    "points far away": ({"shapes": [{"label": "a", "points": [[0, 0], [1e7, 0], [3, 3]]}]}, "expected x, y in px"),
    "no mask": ({"shapes": [{"label": "a", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "?"}]}, "no PNG in base64"),
    "a size of text": ({"imageHeight": "x"}, "has the size"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_faults_are_named_before_the_first_step(tmp_path, fault):
    """File, shape and remedy in one sentence."""
    fields, message = BAD[fault]
    write(tmp_path)
    content = json.loads((tmp_path / "0.json").read_text()) | fields
    if fault == "no image":
        (tmp_path / "0.jpg").unlink()
    (tmp_path / "0.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_data("labelme", "train", tmp_path)
    assert "\n" not in str(caught.value)


def test_from_pretraining_to_evaluation(tmp_path):
    """A flat folder with --val-fraction: the same images are held out in all three commands."""
    write(tmp_path / "data", 7)
    flags = ("--dataset", "labelme", "--data-dir", tmp_path / "data")
    short = ("--val-fraction", 0.34, "--batch-size", 2, "--max-steps", 1, "--warmup-steps", 0, "--dataloader-num-workers", 0)
    harness.run("pretrain", *harness.TINY, *flags, *short, "--unlabelled", "rest", "--output-dir", tmp_path / "start")
    harness.run("finetune", "--model", tmp_path / "start", *flags, *short, "--subset-seed", 5, "--output-dir", tmp_path / "tuned")
    harness.run("evaluate_model", "--model", tmp_path / "tuned", *flags, "--split", "val", "--output-dir", tmp_path / "scores")
    lists = [(tmp_path / name / "val_split.txt").read_text() for name in ("start", "tuned")]
    tuned, scored = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("tuned", "scores"))
    assert lists[0] == lists[1] and tuned["num_images"] == scored["num_images"] == len(lists[0].splitlines()) - 1 == 2
    assert tuned["per_class_iou"] == scored["per_class_iou"]


def test_the_case_of_labelme(cases):
    """Polygon and rectangle, the later one on top."""
    data = load_data("labelme", "train", cases / "labelme")
    expected = np.zeros((90, 120), np.uint8)
    expected[shape_to_mask((90, 120), [[20, 20], [80, 25], [70, 70], [25, 60]], "polygon")] = 1
    expected[40:81, 60:101] = 2
    assert data.classes == ("background", "cat", "dog") and all(np.array_equal(data.read(i).mask, expected) for i in range(3))
