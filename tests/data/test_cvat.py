"""CVAT for images 1.1: the pixels of pycocotools, the order of the layers, or one sentence."""

import harness
import numpy as np
import pytest
from pycocotools import mask as coco_masks
from test_data import picture, save

from mscl_hf.data import UnknownSplit, check_data, load_data

pytestmark = pytest.mark.usefixtures("own_caches")

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>{}</labels></task></meta>'
LABELS = "".join(f"<label><name>{name}</name><color>#fa3253</color></label>" for name in ("cat", "dog", "__ignore__"))
SHAPES = """
<polygon label="cat" z_order="1" points="2.5,3.0;30.0,4.25;20.0,25.0"/><box label="dog" z_order="0" xtl="10" ytl="8" xbr="35.5" ybr="20"/>
<box label="__ignore__" z_order="2" xtl="0" ytl="0" xbr="4" ybr="4"/>
<mask label="dog" z_order="3" left="20" top="21" width="6" height="3" rle="1, 4, 3, 2, 8"/>
<ellipse label="dog" z_order="3" cx="10" cy="22" rx="5" ry="3" rotation="90"/>
"""


def write(root, images, labels=LABELS, folder="images"):
    """annotations.xml and the images. images: {name: (attributes, shapes)}."""
    text = HEAD.format(labels)
    for number, (name, (attributes, shapes)) in enumerate(images.items()):
        save(picture(number, 30, 40), root / folder / name)
        text += f'<image id="{number}" name="{name}" width="40" height="30"{attributes}>{shapes}</image>'
    root.mkdir(exist_ok=True)
    (root / "annotations.xml").write_text(text + "</annotations>")
    return root


def polygon(points):
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([points], 30, 40))).astype(bool)


def test_pixels_and_layers(tmp_path):
    """By z_order, then in the order of the file; an image without shapes is background."""
    data = load_data("cvat", "train", write(tmp_path, {"a.jpg": ("", SHAPES), "b.jpg": ("", "")}))
    expected = np.zeros((30, 40), np.uint8)
    expected[polygon([10, 8, 35.5, 8, 35.5, 20, 10, 20])] = 2
    expected[polygon([2.5, 3, 30, 4.25, 20, 25])] = 1
    expected[polygon([0, 0, 4, 0, 4, 4, 0, 4])] = 255
    expected[21:24, 20:26].flat[[1, 2, 3, 4, 8, 9]] = 2
    mask = data.read(0).mask
    y, x = np.mgrid[:30, :40] + 0.5
    ellipse = ((x - 10) / 3) ** 2 + ((y - 22) / 5) ** 2 < 1
    assert data.classes == ("background", "cat", "dog") and check_data(data)[1] == [] and not data.read(1).mask.any()
    near = ((x - 10) / 4.2) ** 2 + ((y - 22) / 6.2) ** 2 < 1
    assert np.array_equal(mask[~near], expected[~near]) and (mask[ellipse] == 2).mean() > 0.9
    assert "1 images have no shapes and are background" in data.note


def test_subsets_are_splits(tmp_path):
    """Train, Validation and Test, with images in folders of these names; without subsets all is train; --classes orders the labels."""
    images = {f"{number}.jpg": (f' subset="{subset}"', SHAPES) for number, subset in enumerate(("Train", "Train", "Validation"))}
    root = write(tmp_path / "data", images)
    for number, subset in enumerate(("Train", "Train", "Validation")):
        save(picture(number, 30, 40), root / "images" / subset / f"{number}.jpg")
        (root / "images" / f"{number}.jpg").unlink()
    assert [len(load_data("cvat", split, root)) for split in ("train", "val")] == [2, 1]
    with pytest.raises(UnknownSplit, match="train, validation"):
        load_data("cvat", "test", root)
    data = load_data("cvat", "val", root, classes=["dog", "cat"])
    assert data.classes == ("background", "dog", "cat") and load_data("cvat", "val", root, unlabelled=True).names == data.names == ["2"]


BAD = {
    '<polyline label="cat" points="1,2;3,4"/>': "has a polyline, which has no area", '<box label="bird"/>': "has the label 'bird'",
    '<polygon label="cat" points="1,2;3,4"/>': "has 2 points; expected 3", '<polygon label="cat" points="x"/>': "expected x, y in px",
    '<box label="cat" xtl="1" ytl="?" xbr="2" ybr="3"/>': "has ytl '[?]'; expected a number",
    '<mask label="cat" left="38" top="0" width="6" height="1" rle="6"/>': "do not fit the image",
    '<mask label="cat" left="0" top="0" width="6" height="1" rle="1,2"/>': "do not fit the image",
    "<polygon": "cannot be read as XML", '<polygon label="cat" points="0,0;1e9,0;3,4"/>': "expected x, y in px",
}  # fmt: skip


@pytest.mark.parametrize("shape", BAD)
def test_faults_are_named_before_the_first_step(tmp_path, shape):
    """File, image and remedy in one sentence."""
    with pytest.raises(ValueError, match=BAD[shape]) as caught:
        load_data("cvat", "train", write(tmp_path, {"a.jpg": ("", shape)}))
    assert "annotations.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_entities_and_videos_are_rejected(tmp_path):
    """Entities can grow without bounds; tracks have another format."""
    write(tmp_path, {"a.jpg": ("", SHAPES)})
    text = (tmp_path / "annotations.xml").read_text()
    for changed, message in (
        (text.replace("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>'), "document type"),
        (text.replace("</annotations>", '<track id="0"/></annotations>'), "tracks of a video"), ("<a/>", "the root 'a'"),
    ):  # fmt: skip
        (tmp_path / "annotations.xml").write_text(changed)
        with pytest.raises(ValueError, match=message):
            load_data("cvat", "train", tmp_path)


def test_from_export_to_evaluation(tmp_path):
    """Without a converter."""
    root = write(tmp_path / "data", {f"{number}.jpg": ("", SHAPES) for number in range(6)})
    flags = ("--dataset", "cvat", "--data-dir", root)
    short = ("--val-fraction", 0.34, "--batch-size", 2, "--max-steps", 1, "--warmup-steps", 0, "--dataloader-num-workers", 0)
    harness.run("pretrain", *harness.TINY, *flags, *short, "--method", "none", "--output-dir", tmp_path / "start")
    harness.run("finetune", "--model", tmp_path / "start", *flags, *short, "--output-dir", tmp_path / "tuned")
    harness.run("evaluate_model", "--model", tmp_path / "tuned", *flags, "--split", "val", "--output-dir", tmp_path / "scores")
    assert (tmp_path / "scores" / "predictions.png").is_file()
