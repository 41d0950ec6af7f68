"""Small data sets from bug reports: they are read as intended, or rejected with a remedy."""

from pathlib import Path

import numpy as np
import pytest

from mscl_hf.config import DataConfig
from mscl_hf.data import check_data, label_warnings, load_data, open_held_out, with_image_range

READ = {"plain": 6, "gif_masks": 6, "gray_alpha_masks": 6, "rgb_ids": 6, "suffix_beside": 6, "beside_each_other": 6, "split_above": 4}
REJECTED = {
    "jpeg_masks": ({}, "is a JPEG"), "rgb_masks_without_table": ({}, r"with colors, and the 6 masks read hold \(0, 0, 0\)"),
    "binary_0_255_two_classes": ({}, "--label-map 255:1"), "multi_page_tiff": ({"num_classes": 3}, "00.tif is a TIFF of 3 pages"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_cases_are_read(cases, case):
    """Without flags, with masks and without; GIF, gray with alpha and R = G = B hold the ids of the plain masks."""
    data, plain = (load_data("folder", "train", cases / name) for name in (case, "plain"))
    assert len(data) == len(load_data("folder", "train", cases / case, unlabelled=True)) == READ[case] and check_data(data)[1] == []
    if case in ("gif_masks", "gray_alpha_masks", "rgb_ids"):
        assert data.classes == plain.classes
        assert all(np.array_equal(data.read(index).mask, plain.read(index).mask) for index in range(len(plain)))


@pytest.mark.parametrize("case", REJECTED)
def test_cases_are_rejected(cases, case):
    """By the check, before training."""
    options, message = REJECTED[case]
    with pytest.raises(ValueError, match=message):
        check_data(load_data("folder", "train", cases / case, **options))


def test_the_case_of_12_bits(cases):
    """The range is found, and the images use it."""
    said = []
    options = with_image_range(DataConfig("folder", str(cases / "gray_12_bit")), log=said.append)
    assert options.image_range == [0, 4095] and "6 of 6 images" in said[0]
    data = load_data("folder", "train", cases / "gray_12_bit", image_range=(0, 4095))
    assert check_data(data)[1] == [] and max(data.read(index).image.max() for index in range(6)) > 250


def test_the_case_of_an_empty_mask_folder(cases):
    """Images without masks, and why."""
    data = load_data("folder", "train", cases / "empty_mask_folder")
    assert len(data) == 6 and not data.labelled and "masks holds no file" in data.note


def test_the_case_of_an_unlabelled_held_out_split(cases):
    """All labels are 255: a warning says that the mean IoU is undefined."""
    options, lines = DataConfig("folder", str(cases / "nothing_labelled_in_val"), num_classes=3), []
    held_out = open_held_out(options, lines.append)
    assert len(held_out) == 2 and "the mean IoU on it is undefined" in label_warnings([], held_out, options)[0]


def test_every_case_is_tested(cases):
    """In this file or in that of its format."""
    own = {"rgb_masks": "test_class_colors", "coco": "test_coco", "labelme": "test_labelme"}
    here = {"gray_12_bit", "empty_mask_folder", "nothing_labelled_in_val"}
    assert {path.name for path in cases.iterdir() if path.is_dir()} == {*READ, *REJECTED, *own, *here}
    for case, file in own.items():
        assert f'cases / "{case}"' in Path(__file__).with_name(f"{file}.py").read_text()
