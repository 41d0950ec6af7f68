"""Without names, the classes are the ids of the masks; ids that are no classes are an error with the file and a remedy."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mscl_hf.data import BadSample, check_data, load_data
from mscl_hf.data.class_inference import between_neighbors, infer_classes
from mscl_hf.data.files import open_masks
from mscl_hf.data.label_map import class_names, make_table, parse_label_map

DATA = ROOT.parent / "shared" / "data"


def disks(ids, size=96, seed=0) -> np.ndarray:
    """(size, size) uint8, a disk of each id but the first on a ground of that."""
    generator, (y, x) = np.random.default_rng(seed), np.ogrid[:size, :size]
    mask = np.full((size, size), ids[0], np.uint8)
    for id in ids[1:]:
        row, column = generator.integers(size // 4, 3 * size // 4, 2)
        mask[(y - row) ** 2 + (x - column) ** 2 < (size // 6) ** 2] = id
    return mask


def resampled(ids: np.ndarray, resample: Image.Resampling, factor: float = 0.6) -> Image.Image:
    image = Image.fromarray(ids)
    return image.resize((round(image.width * factor), round(image.height * factor)), resample)


def named(masks) -> list[tuple[str, Image.Image]]:
    return [(f"{number}.png", mask if isinstance(mask, Image.Image) else Image.fromarray(mask)) for number, mask in enumerate(masks)]


@pytest.mark.parametrize("ids", [(0, 255), (0, 100, 200), (0, 20), (0, 40, 80, 120), (255, 0, 90)])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX])
def test_interpolated_ids_are_no_classes(ids, resample):
    """Masks resized with interpolation, with or without gaps between their ids; nearest neighbor keeps the ids."""
    for factor in (0.6, 1.7):
        masks = [resampled(disks(ids, seed=seed), resample, factor) for seed in range(20)]
        if resample is Image.Resampling.BOX and factor > 1:
            continue  # equal to nearest neighbor
        with pytest.raises(ValueError, match=r"the masks were resized or anti-aliased: .*\(most in \d+.png\).*nearest-neighbor"):
            infer_classes(named(masks), None)
        kept = [resampled(disks((0, 1, 2), seed=seed), Image.Resampling.NEAREST, factor) for seed in range(3)]
        assert len(infer_classes(named(kept), None)) == 3


def test_many_and_thin_classes_are_classes():
    """150 classes, borders between background and object, lines one pixel wide, ramps of one row."""
    many = [np.sort(np.random.default_rng(seed).integers(0, 150, (8, 8))).astype(np.uint8).repeat(6, 0).repeat(6, 1) for seed in range(40)]
    assert len(infer_classes(named([*many, np.arange(150, dtype=np.uint8).reshape(10, 15).repeat(3, 0).repeat(3, 1)]), None)) == 150
    border = 2 * (disks((0, 2)) > 0).astype(np.uint8)
    border[between_neighbors(np.where(border, 2, 0)) | (border != np.roll(border, 1, 0))] = 1
    assert len(infer_classes(named([border]), None)) == 3
    lines = np.full((60, 60), 255, np.uint8)
    lines[::6] = np.arange(10)[:, None]
    assert len(infer_classes(named([lines]), None)) == 10
    assert len(infer_classes(named([np.arange(12, dtype=np.uint8)[None]]), None)) == 12


@pytest.mark.parametrize("pattern, classes", [("CamVid/trainannot/*.png", 12), ("VOCdevkit/VOC2012/SegmentationClass/*.png", None)])
def test_real_masks_are_not_taken_for_interpolated_ones(pattern, classes):
    """All together, and the first ones alone: their ids, or ids with gaps."""
    masks = sorted(DATA.glob(pattern))
    if not masks:
        pytest.skip(f"no {DATA / pattern}")
    for some in (masks, *([mask] for mask in masks[:20])):
        try:
            count = len(infer_classes(open_masks(some), None))
            assert classes is None or count <= classes
        except ValueError as error:
            assert "without gaps" in str(error)


def test_a_rare_id_is_named_with_its_mask():
    """A rare id is corrected or ignored, not made a class."""
    masks = [disks((0, 1, 2, 255), seed=seed) for seed in range(6)]
    masks[3][5, 5] = 77
    stated = r'77 in 1 of 6 masks \(3.png\), 0.0018 % of the pixels; .*Correct the masks, or ignore these pixels by --label-map "77:255"'
    with pytest.raises(ValueError, match=stated):
        infer_classes(named(masks), None)


def test_gaps_beside_the_ignored_label():
    """255 is ignored, and the message gives the entry that makes it a class; no label map is given for many ids."""
    with pytest.raises(ValueError, match=r'--label-map "127:1" if these are all classes \(with "255:2" if 255 is a class too\)'):
        infer_classes(named([disks((0, 127, 255))]), None)
    with pytest.raises(ValueError, match=r"a --label-map that numbers the ids") as caught:
        infer_classes(named([np.arange(0, 96, 4, dtype=np.uint8).repeat(4)[None].repeat(96, 0)]), None)
    assert '--label-map "' not in str(caught.value)


@pytest.mark.parametrize(("label_map", "reduce", "corrected"), [
    ("100:3,200:255", False, "100:1,200:255"), ({20: 5, 100: 5}, False, "20:1,100:1,200:2"), (None, True, "0:255,100:0,200:1"),
])  # fmt: skip
def test_a_map_that_leaves_gaps_is_corrected(label_map, reduce, corrected):
    """The message has the whole map; masks that are read by it have the classes 0, 1, ..."""
    ids = (0, 20, 100, 200) if isinstance(label_map, dict) else (0, 100, 200)
    with pytest.raises(ValueError, match=f'Give --label-map "{corrected}" instead'):
        infer_classes(named([disks(ids)]), make_table(label_map, reduce))
    assert infer_classes(named([disks(ids)]), make_table(corrected))


def test_ids_that_no_class_can_have():
    """A void id of 16 bits, ids of instances, and nothing but 255."""
    ids = disks((0, 1, 2)).astype(np.int32)
    ids[:3] = 65535
    with pytest.raises(ValueError, match=r'65535 in 1 of 1 masks \(0.png\), .*--label-map "65535:255"'):
        infer_classes(named([ids]), None)
    instances = np.arange(96 * 96, dtype=np.int32).reshape(96, 96) // 32 + 1000
    with pytest.raises(ValueError, match=r"1000 in 1 of 1 masks \(0.png\).*if they are instance ids, store the class") as caught:
        infer_classes(named([instances]), None)
    assert '--label-map "' not in str(caught.value)
    with pytest.raises(ValueError, match=r"255 is the ignored label; .*Give --label-map 255:1"):
        infer_classes(named([np.full((9, 9), 255, np.uint8)]), None)


@pytest.mark.parametrize("content, line", [("a\n\nb\n", 2), ("# all classes\na\n# animals\n \nb", 4), ("a,,b", 2)])
def test_a_blank_between_class_names_is_an_error(tmp_path, content, line):
    """It would shift the ids of all names after it; the message names the line, or the entry of a list."""
    path = tmp_path / "names.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"--classes: (line|entry) {line}.* is blank"):
        class_names(content if "," in content else path, None)


def test_comments_in_a_file_of_class_names(tmp_path):
    """Lines that start with # and blank lines around the names are no classes."""
    path = tmp_path / "names.txt"
    path.write_text("\n# my classes\nbackground\n  # animals\ncat \nC#\n\n\n")
    assert class_names(path, None) == ("background", "cat", "C#")


def test_a_label_map_that_names_an_id_twice():
    """It is ambiguous, so it is an error."""
    with pytest.raises(ValueError, match="--label-map is '2:1,2:2' and repeats the id 2"):
        parse_label_map("2:1,2:2")


@pytest.mark.parametrize("options, known", [({"classes": "a b c"}, "1 class(es), 'a b c'"), ({"num_classes": 2}, "2 class(es)")])
def test_too_few_classes_for_all_masks(tmp_path, options, known):
    """The error gives the number of classes and how names are separated; it does not suggest to skip all samples."""
    for number in range(3):
        for folder, pixels in (("images", disks((9, 99, 50), seed=number)), ("masks", disks((0, 1, 2), seed=number))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    with pytest.raises(BadSample) as caught:
        check_data(load_data("folder", "train", tmp_path, **options))
    assert "ids up to 2" in str(caught.value) and known in str(caught.value) and "--max-bad-images N" not in str(caught.value)
    assert "give --num-classes 3, or as many names to --classes, separated by spaces or commas" in str(caught.value)
    Image.fromarray(disks((0, 0, 0))).save(tmp_path / "masks" / "0.png")
    with pytest.raises(BadSample, match="--max-bad-images N with N >= 2 to leave them out"):
        check_data(load_data("folder", "train", tmp_path, **options))
    Image.fromarray(disks((0, 1, 77))).save(tmp_path / "masks" / "0.png")
    with pytest.raises(BadSample) as caught:
        check_data(load_data("folder", "train", tmp_path, num_classes=3))
    assert "[77]" in str(caught.value) and "--num-classes" not in str(caught.value)  # a stray id asks for no 78 classes
