"""Real photographs in the formats of annotation tools: from an export to the scores of a model, without a converter."""

import json

import contourpy
import harness
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from mscl_hf.data import load_data
from mscl_hf.data.layouts import CAMVID_CLASSES, VOC_CLASSES

pytestmark = pytest.mark.usefixtures("own_caches")

COUNT = 6
PALETTE = np.random.default_rng(0).permutation(256**3)[: len(CAMVID_CLASSES)]
CAMVID_COLORS = np.stack([PALETTE >> 16, PALETTE >> 8 & 255, PALETTE & 255], axis=1).astype(np.uint8)


def samples(real_data, dataset):
    """(name, image, ids) of a few images, at half their size."""
    data = load_data(dataset, "train", real_data if dataset == "camvid" else real_data / "VOCdevkit")
    for index in range(COUNT):
        image, mask, name = data.read(index * len(data) // COUNT)
        yield name, Image.fromarray(image).reduce(2), mask[::2, ::2][: (image.shape[0] + 1) // 2, : (image.shape[1] + 1) // 2]


def area(line):
    """Signed area of an outline; that of a hole has the other sign."""
    x, y = line.T
    return (x * np.roll(y, 1) - y * np.roll(x, 1)).sum() / 2


def polygons(region):
    """Outer outlines of a region (H, W) bool, in pixels."""
    outlines = contourpy.contour_generator(z=np.pad(region.astype(float), 1)).lines(0.5)
    outer = np.sign(max(map(area, outlines), key=abs))
    return [line - 1 for line in outlines if len(line) > 3 and area(line) * outer > 0]


def as_roboflow(real_data, root):
    """VOC 2012 as COCO's JSON in train/ and valid/: RLE, and crowds where VOC ignores; category ids with gaps."""
    expected = {}
    for number, (name, image, ids) in enumerate(samples(real_data, "voc2012")):
        split = root / ("valid" if number % 3 == 2 else "train")
        split.mkdir(parents=True, exist_ok=True)
        image.save(split / f"{name}.jpg")
        expected[name] = ids
        file = split / "_annotations.coco.json"
        categories = [{"id": 3 * i, "name": name} for i, name in enumerate(VOC_CLASSES) if i]
        content = json.loads(file.read_text()) if file.is_file() else {"images": [], "annotations": [], "categories": categories}
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "height": ids.shape[0], "width": ids.shape[1]})
        for id in np.setdiff1d(ids, [0]).tolist():
            runs = coco_masks.encode(np.asfortranarray(ids == id, dtype=np.uint8))
            segmentation = {"size": [*ids.shape], "counts": runs["counts"].decode()}
            content["annotations"].append({"id": len(content["annotations"]), "image_id": number, "category_id": 3 * id if id < 255 else 3,
                                           "iscrowd": int(id == 255), "segmentation": segmentation})  # fmt: skip
        file.write_text(json.dumps(content))
    return ("--dataset", "coco", "--data-dir", root), VOC_CLASSES, expected, 1.0


def as_cvat_masks(real_data, root):
    """CamVid as "Segmentation mask 1.1" of CVAT: colors, a label map, a list for each split."""
    expected, lists = {}, {"Train": [], "Validation": []}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, (name, image, ids) in enumerate(samples(real_data, "camvid")):
        image.save(root / "JPEGImages" / f"{name}.jpg")
        colors = np.vstack([CAMVID_COLORS, np.full((256 - len(CAMVID_COLORS), 3), 1, np.uint8)])[ids]
        Image.fromarray(colors).save(root / "SegmentationClass" / f"{name}.png")
        expected[name] = ids
        lists["Validation" if number % 3 == 2 else "Train"].append(name)
    for name, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(names) + "\n")
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in zip(CAMVID_CLASSES, CAMVID_COLORS.tolist())]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    flags = ("--dataset", "folder", "--data-dir", root, "--class-colors", root / "labelmap.txt", "--ignored-colors", "1,1,1")
    return flags, CAMVID_CLASSES, expected, 1.0


def as_labelme(real_data, root):
    """VOC 2012 as Labelme's JSON: outlines of all areas, the largest first, and __ignore__ where VOC ignores."""
    expected = {}
    for number, (name, image, ids) in enumerate(samples(real_data, "voc2012")):
        split = root / ("val" if number % 3 == 2 else "train")
        split.mkdir(parents=True, exist_ok=True)
        image.save(split / f"{name}.jpg")
        labels = {0: "_background_", 255: "__ignore__"} | dict(enumerate(VOC_CLASSES[1:], 1))
        lines = [(labels[id], line) for id in np.unique(ids).tolist() for line in polygons(ids == id)]
        lines.sort(key=lambda of: -abs(area(of[1])))
        shapes = [{"label": label, "shape_type": "polygon", "points": line.tolist()} for label, line in lines]
        content = {"imagePath": f"{name}.jpg", "imageData": None, "imageHeight": ids.shape[0], "imageWidth": ids.shape[1], "shapes": shapes}
        (split / f"{name}.json").write_text(json.dumps(content))
        expected[name] = ids
    names = root / "labels.txt"
    names.write_text("\n".join(["__ignore__", "_background_", *VOC_CLASSES[1:]]))
    return ("--dataset", "labelme", "--data-dir", root, "--classes", names), ["_background_", *VOC_CLASSES[1:]], expected, 0.9


@pytest.mark.parametrize("export", [as_roboflow, as_cvat_masks, as_labelme])
def test_from_an_export_to_scores(real_data, tmp_path, capsys, export):
    """The masks are those of the source (those of outlines nearly), and check, pretrain, finetune and evaluate run on them."""
    flags, classes, expected, agreement = export(real_data, tmp_path / "data")
    options = {name.removeprefix("--").replace("-", "_"): value for name, value in zip(flags[2::2], flags[3::2])}
    options |= {"ignored_colors": [options["ignored_colors"]]} if "ignored_colors" in options else {}
    for split in ("train", "val"):
        data = load_data(flags[1], split, **options)
        assert list(data.classes) == list(classes)
        for index, name in enumerate(data.names):
            assert (data.read(index).mask == expected[name]).mean() >= agreement, name
    with_status = harness.run("check_data", "check", *flags, "--output-dir", tmp_path / "check")
    assert with_status is None and "rejected: none" in capsys.readouterr().out
    short = ("--batch-size", 2, "--max-steps", 2, "--warmup-steps", 0, "--dataloader-num-workers", 0)
    harness.run("pretrain", *harness.TINY, *flags, *short, "--output-dir", tmp_path / "start")
    harness.run("finetune", "--model", tmp_path / "start", *flags, *short, "--output-dir", tmp_path / "tuned")
    evaluated = flags[:4] if export is not as_labelme else flags
    harness.run("evaluate_model", "--model", tmp_path / "tuned", *evaluated, "--split", "val", "--output-dir", tmp_path / "scores")
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["num_images"] == 2 and list(results["per_class_iou"]) == list(classes)
