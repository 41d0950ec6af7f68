"""Annotations in COCO's JSON: the pixels of pycocotools, splits as tools export them, or one sentence."""

import itertools
import json

import harness
import numpy as np
import pytest
from fuzz import fuzzed, stated
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from test_data import picture, save

from mscl_hf.config import DataConfig
from mscl_hf.data import UnknownSplit, check_data, load_data
from mscl_hf.data.coco_shapes import checked_segmentation, draw_mask, run_lengths
from mscl_hf.data.shapes import encoded
from mscl_hf.data.splits import open_split

pytestmark = pytest.mark.usefixtures("own_caches")

CATEGORIES = [{"id": 40, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "bird"}]
CLASS_IDS = {17: 1, 40: 2, 90: 3}


def annotations(count=3, height=30, width=40, seed=0, first=0):
    """COCO's content with polygons, both kinds of RLE, crowds and overlaps; the last image has no annotation."""
    rng = np.random.default_rng(seed)
    images = [{"id": 7 + i, "file_name": f"{first + i}.jpg", "height": height, "width": width} for i in range(count)]
    found = []
    for number in range(6 * (count - 1)):
        polygon = (rng.uniform(0, 1, (rng.integers(3, 7), 2)) * (width, height)).round(2).ravel().tolist()
        segmentation = [polygon, [1, 1, 9, 1, 9, 8.5]] if number % 4 == 0 else [polygon]
        if number % 4 > 1:
            runs = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
            segmentation = {"size": [height, width], "counts": runs["counts"].decode()}
            if number % 4 == 2:
                flat = coco_masks.decode(runs).ravel(order="F")
                lengths = [len(list(run)) for _, run in itertools.groupby(flat.tolist())]
                segmentation["counts"] = [0] * int(flat[0]) + lengths  # the first run is of zeros
        found.append({"id": number, "image_id": images[number % (count - 1)]["id"], "category_id": (17, 40, 90)[number % 3],
                      "iscrowd": int(number % 5 == 4), "segmentation": segmentation, "area": 1.0})  # fmt: skip
    return {"images": images, "annotations": found, "categories": CATEGORIES}


def write(folder, content, name="annotations.json", image_dir=""):
    """The annotation file, and an image for each that it lists."""
    for number, entry in enumerate(content["images"]):
        save(picture(number, entry["height"], entry["width"]), folder / image_dir / entry["file_name"])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def reference(file, image_id):
    """The mask by pycocotools' own annToMask, the larger area first."""
    coco = COCO(file)
    entry = coco.imgs[image_id]
    mask = np.zeros((entry["height"], entry["width"]), np.uint8)
    drawn = [(coco.annToMask(annotation), annotation) for annotation in coco.imgToAnns[image_id]]
    for region, annotation in sorted(drawn, key=lambda item: -int(item[0].sum())):
        mask[region > 0] = 255 if annotation["iscrowd"] else CLASS_IDS[annotation["category_id"]]
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_those_of_pycocotools(tmp_path, seed):
    """Polygons of one and several parts, RLE compressed and not, crowds, overlaps, an image without annotation."""
    content = annotations(seed=seed)
    file = write(tmp_path, content)
    data = load_data("coco", "train", tmp_path)
    assert data.classes == ("background", "cat", "dog", "bird") and check_data(data)[1] == []
    assert [len(np.unique(data.read(i).mask)) > 2 for i in range(3)] == [True, True, False] and not data.read(2).mask.any()
    for index, entry in enumerate(content["images"]):
        assert np.array_equal(data.read(index).mask, reference(file, entry["id"]))
        assert np.array_equal(data.read_mask(index), data.read(index).mask)


def roboflow(root):
    for number, split in enumerate(("train", "valid", "test")):
        content = annotations(seed=number, first=10 * number)
        content["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}, *({**c, "supercategory": "pets"} for c in CATEGORIES)]
        write(root / split, content, "_annotations.coco.json")


def coco(root):
    for number, split in enumerate(("train", "val")):
        write(root, annotations(seed=number, first=10 * number), f"annotations/instances_{split}2017.json", f"{split}2017")
        (root / "annotations" / f"captions_{split}2017.json").write_text("{}")


def beside_images(root):
    for number, split in enumerate(("train", "val")):
        write(root, annotations(seed=number, first=10 * number), f"{split}.json", f"images/{split}")


@pytest.mark.parametrize("export", [roboflow, coco, beside_images])
def test_splits_as_they_are_exported(tmp_path, export):
    """Roboflow, whose additional category is left out; COCO, whose captions are not read; JSON files named after the splits."""
    export(tmp_path)
    for number, split in enumerate(("train", "val")):
        data = load_data("coco", split, tmp_path)
        assert data.classes == ("background", "cat", "dog", "bird") and data.names == [f"{10 * number + i}" for i in range(3)]
        assert check_data(data)[1] == [] and load_data("coco", split, tmp_path, unlabelled=True).names == data.names
    with pytest.raises(UnknownSplit, match="(train, val|val, test|test, train)"):
        load_data("coco", "other", tmp_path)


def test_a_single_file_is_the_training_split(tmp_path):
    """As CVAT exports it; val is told how to get one; --annotations and --image-dir name any file and folder."""
    write(tmp_path, annotations(), "annotations/instances_default.json", "images/default")
    assert len(load_data("coco", "train", tmp_path)) == 3
    with pytest.raises(UnknownSplit, match="--val-fraction"):
        load_data("coco", "val", tmp_path)
    file = write(tmp_path / "elsewhere", annotations(), "labels.json", "pictures")
    options = DataConfig(dataset="coco", annotations=str(file), image_dir=str(file.parent / "pictures"))
    assert len(open_split(options, "train")) == 3


def test_classes_may_be_ordered(tmp_path):
    """By --classes, with the background in front; a category without a class is an error."""
    write(tmp_path, annotations())
    plain = load_data("coco", "train", tmp_path)
    data = load_data("coco", "train", tmp_path, classes=["bird", "dog", "cat"])
    assert data.classes == ("background", "bird", "dog", "cat")
    swapped = np.arange(256, dtype=np.uint8)
    swapped[[1, 3]] = [3, 1]
    assert all(np.array_equal(data.read(i).mask, swapped[plain.read(i).mask]) for i in range(3))
    with pytest.raises(ValueError, match="annotation .* is of 'bird', which --classes does not name"):
        load_data("coco", "train", tmp_path, classes=["cat", "dog"])


def changed(**change):
    content = annotations()
    content["annotations"][0] |= change
    return content


BAD = {
    "no list of images": ({"annotations": [], "categories": []}, "no list of 'images'"),
    "only boxes": (changed(segmentation=[]), r"1 of 12 annotations without a segmentation \(only boxes\?\), the first is annotation 0"),
    "an odd polygon": (changed(segmentation=[[1, 2, 3]]), "a polygon that is no list of x, y"),
    "a list as a category": (changed(category_id=[1]), "whose id is no number or text"),
    "points far away": (changed(segmentation=[[0, 0, 1e9, 0, 5, 5]]), "expected x, y in px"),
    "runs of another size": (changed(segmentation={"size": [3, 4], "counts": [12]}), "another size than its image"),
    "runs that do not add up": (changed(segmentation={"size": [30, 40], "counts": [12]}), "do not add up to 40x30 px"),
    "damaged runs": (changed(segmentation={"size": [30, 40], "counts": "~~~"}), "do not add up"),
    "an unknown category": (changed(category_id=5), "annotations of the categories 5"),
    "no category": (changed(category_id=None), r"no image_id or category_id in annotations\[0\]"),
    "no size": ({**annotations(), "images": [{"id": 7 + i, "file_name": f"{i}.jpg"} for i in range(3)]}, "has the size NonexNone"),
    "no JSON": ("{", "cannot be read as JSON"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_faults_are_named_before_the_first_step(tmp_path, fault):
    """File, entry and remedy in one sentence."""
    content, message = BAD[fault]
    write(tmp_path, annotations())
    (tmp_path / "annotations.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_data("coco", "train", tmp_path)
    assert "annotations.json" in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_do_not_exist(tmp_path):
    """All of them are counted; names that leave the folder are looked for by their last part only."""
    content = annotations()
    write(tmp_path / "inside", content, image_dir="images")
    for entry in content["images"]:
        entry["file_name"] = f"../../outside/{entry['file_name']}"
    (tmp_path / "inside" / "annotations.json").write_text(json.dumps(content))
    assert check_data(load_data("coco", "train", tmp_path / "inside"))[1] == []
    (tmp_path / "inside" / "images" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="1 of the 3 images that it lists do not exist in .*--image-dir"):
        load_data("coco", "train", tmp_path / "inside")


def test_an_image_of_another_size_than_its_annotations(tmp_path):
    """Named with both sizes; resized when asked, as an export for smaller images is."""
    write(tmp_path, annotations())
    for number in range(3):
        save(picture(number, 15, 20), tmp_path / f"{number}.jpg")
    with pytest.raises(ValueError, match="is 20x15 but its mask .*image 0.jpg is 40x30 .*--resize-masks"):
        check_data(load_data("coco", "train", tmp_path))
    assert check_data(load_data("coco", "train", tmp_path, resize_masks=True))[1] == []


def test_run_lengths_of_compressed_runs():
    """Equal to those of the mask, for masks of long and short runs."""
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 9), (60, 50), (700, 3)):
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        counts = coco_masks.encode(mask)["counts"].decode()
        flat = mask.ravel(order="F").tolist()
        assert run_lengths(counts) == [0] * flat[0] + [len(list(run)) for _, run in itertools.groupby(flat)]


SEGMENTATIONS = st.one_of(
    st.lists(st.lists(st.one_of(st.integers(-5, 20), st.floats()), max_size=8), max_size=3),
    st.fixed_dictionaries({"size": st.just([6, 8]), "counts": st.one_of(st.text(max_size=12), st.lists(st.integers(-3, 60), max_size=5))}),
)


@fuzzed(segmentation=SEGMENTATIONS)
def test_random_segmentations(segmentation):
    """Drawn by pycocotools, which reads memory without a check, or one sentence."""
    with stated():
        checked = checked_segmentation(segmentation, (6, 8), "annotation 1")
        if checked:
            assert draw_mask(encoded((6, 8), [[1, checked]])).shape == (6, 8)


def test_roboflow_export_from_pretraining_to_evaluation(tmp_path, capsys):
    """Without a converter: pre-train, fine-tune and evaluate on the export."""
    for number, split in enumerate(("train", "valid")):
        content = annotations(4, 48, 64, number, 10 * number)
        write(tmp_path / split, content, "_annotations.coco.json")
    flags = ("--dataset", "coco", "--data-dir", tmp_path, "--batch-size", 2, "--max-steps", 1, "--warmup-steps", 0,
             "--dataloader-num-workers", 0)  # fmt: skip
    harness.run("pretrain", *harness.TINY, *flags, "--unlabelled", "rest", "--train-count", 2, "--output-dir", tmp_path / "start")
    harness.run("finetune", "--model", tmp_path / "start", *flags, "--output-dir", tmp_path / "tuned")
    harness.run("evaluate_model", "--model", tmp_path / "tuned", *flags[:4], "--split", "val", "--output-dir", tmp_path / "scores")
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert list(results["per_class_iou"]) == ["background", "cat", "dog", "bird"] and results["num_images"] == 4
    assert "4 classes inferred from the annotations (background, cat, dog, bird)" in capsys.readouterr().out


def test_the_case_of_coco(cases):
    """Ids 17 and 18, RLE, two parts, a crowd, overlaps; image 05 is background."""
    data = load_data("coco", "train", cases / "coco")
    coco = COCO(cases / "coco" / "annotations.json")
    assert data.classes == ("background", "cat", "dog") and not data.read(5).mask.any()
    for index, image_id in enumerate(coco.getImgIds()):
        mask = np.zeros((90, 120), np.uint8)
        drawn = [(coco.annToMask(annotation), annotation) for annotation in coco.imgToAnns[image_id]]
        for region, annotation in sorted(drawn, key=lambda item: -int(item[0].sum())):
            mask[region > 0] = 255 if annotation["iscrowd"] else annotation["category_id"] - 16
        assert np.array_equal(data.read(index).mask, mask)
        assert Image.open(cases / "coco" / "images" / f"{index:02d}.jpg").size == (120, 90)


def test_all_faulty_annotations_are_named(tmp_path):
    """The first with its fault, the others by their ids."""
    content = annotations()
    for number in (2, 5, 9):
        content["annotations"][number]["segmentation"] = [[1, 2, 3]]
    write(tmp_path, content)
    with pytest.raises(ValueError, match="annotation 2 has a polygon .*; 2 more are wrong: .*annotation 5, .*annotation 9"):
        load_data("coco", "train", tmp_path)
