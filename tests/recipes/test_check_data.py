"""`mscl-data check`: what it prints, all problems at once, and its exit status."""

import shutil

import harness
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("own_caches")


def pair(root, name, ids, seed=0, size=(64, 48)):
    """An image, and a mask of stripes of these ids with as many pixels as given, the rest of the last one."""
    (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / "images" / f"{name}.png")
    flat = np.full(size[0] * size[1], [*ids][-1], np.uint8)
    start = 0
    for id, count in ids.items():
        flat[start : start + count] = id
        start += count
    Image.fromarray(flat.reshape(size[::-1])).save(root / "masks" / f"{name}.png")


def check(root, capsys, tmp_path, *more):
    """The lines printed, and the exit status."""
    status = 0
    capsys.readouterr()
    try:
        harness.run("check_data", "check", "--dataset", "folder", "--data-dir", root, "--output-dir", tmp_path / "out", *more)
    except SystemExit as ended:
        status = ended.code
    return capsys.readouterr().out, status


def test_each_check_holds_out_anew(tmp_path, capsys):
    """An earlier check of other data in the same folder changes nothing."""
    for number in range(20):
        pair(tmp_path / ("first" if number < 10 else "second"), f"{number:02d}", {0: 1500, 1: 1}, number)
    flags = ("--val-fraction", 0.2)
    assert check(tmp_path / "first", capsys, tmp_path, *flags)[1] == 0
    again, status = check(tmp_path / "second", capsys, tmp_path, *flags)
    assert status == 0 and "2 of 10 images are held out" in again
    assert {*(tmp_path / "out" / "val_split.txt").read_text().split()[-2:]} <= {f"{number:02d}" for number in range(10, 20)}


def test_problems_of_drawing_do_not_end_the_check(tmp_path, capsys):
    """A missing mask with --val-fraction is one of the problems; a folder that holds a run is another, and its list is kept."""
    for number in range(6):
        pair(tmp_path / "data", f"{number}", {0: 1500, 1: 1}, number)
    (tmp_path / "data" / "masks" / "3.png").unlink()
    printed, status = check(tmp_path / "data", capsys, tmp_path, "--val-fraction", 0.2)
    assert status == 1 and "problems, for which training is rejected: 1" in printed and "--masked-only" in printed
    for name in ("run.json", "val_split.txt"):
        (tmp_path / "out" / name).write_text("kept")
    printed, status = check(tmp_path / "data", capsys, tmp_path, "--val-fraction", 0.2, "--masked-only")
    assert status == 1 and "which holds a run" in printed and (tmp_path / "out" / "val_split.txt").read_text() == "kept"


def test_what_is_printed(tmp_path, capsys):
    """Images, sizes, classes with shares, numbers of masks and example files; a picture; the next command; status 0."""
    root = tmp_path / "data"
    for number in range(4):
        pair(root, f"train/{number}", {0: 1536, 1: 1536 - 256 * number, 255: 256 * number}, number)
        pair(root, f"val/{number}", {0: 1000, 1: 0}, 10 + number)
    shown, status = check(root, capsys, tmp_path, "--image-size", 48)
    assert status == 0 and "problems, for which training is rejected: none\nsuspicious: none" in shown
    assert "train: 4 images with masks in" in shown and "sizes: 64x48 (4)" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("  class_")]
    assert rows[0][:3] == ["class_0", "57.14%", "4"] and rows[1] == ["class_1", "42.86%", "4", str(root / "masks" / "train" / "0.png")]
    assert "ignored (255)    12.50%        3" in shown and f"next: mscl-pretrain --dataset folder --data-dir {root}" in shown
    assert Image.open(tmp_path / "out" / "samples.png").width > 400


def test_all_problems_at_once(tmp_path, capsys):
    """A mask of another size, a truncated image, a mask of colors, an id without a class and a missing mask: all named, status 1."""
    root = tmp_path / "data"
    for number in range(9):
        pair(root, f"{number}", {0: 1500, 1: 0}, number)
    pair(root, "1", {0: 100, 1: 0}, size=(32, 24))
    pair(root, "2", {0: 100, 1: 0}, size=(30, 40))
    (root / "images" / "3.png").write_bytes((root / "images" / "3.png").read_bytes()[:500])
    Image.new("RGB", (64, 48), (9, 8, 7)).save(root / "masks" / "4.png")
    pair(root, "5", {0: 100, 7: 0})
    (root / "masks" / "6.png").unlink()
    shown, status = check(root, capsys, tmp_path, "--num-classes", 2)
    assert status == 1 and "next:" not in shown
    for text in ("1 of 9 images have no mask", "1.png is 64x48 but its mask", "--resize-masks", "3.png cannot be read as an image",
                 "with colors, and it holds (9, 8, 7)", "holds the ids [7]", "Bring both to one size"):  # fmt: skip
        assert text in shown, text
    assert shown.count("rejected: ") == 1 and int(shown.split("rejected: ")[1].split()[0]) >= 5


def test_suspicious_things(tmp_path, capsys):
    """A rare class, one that is missing in val, an image in two splits, classes smaller than a feature position, and large images."""
    root = tmp_path / "data"
    for number in range(4):
        pair(root, f"train/{number}", {2: 2, 1: 1000, 0: 0}, number)
        pair(root, f"val/{number}", {1: 1000, 0: 0}, 10 + number)
    shutil.copy(root / "images" / "train" / "0.png", root / "images" / "val" / "0.png")
    shown, status = check(root, capsys, tmp_path, "--image-size", 16)
    assert status == 0
    for text in ("1 class(es) have less than 0.1% of the labelled pixels: class_2 0.065%", "1 of 4 images of folder/val are also in",
                 "1 class(es) of train occur in no mask of val: class_2", "class_2 (0 px)"):  # fmt: skip
        assert text in shown, text
    shown, _ = check(root, capsys, tmp_path, "--image-size", 16, "--base-size", 15)
    assert "images have 48 px on the short side (median) and are trained at 15" in shown


def test_masks_that_were_resized(tmp_path, capsys):
    """Named although --num-classes makes their ids classes."""
    root = tmp_path / "data"
    for number in range(3):
        pair(root, f"{number}", {0: 100, 1: 0}, number)
        blocks = np.kron(np.random.default_rng(number).integers(0, 2, (4, 4)) * 100, np.ones((6, 8))).astype(np.uint8)
        Image.fromarray(blocks).resize((64, 48), Image.Resampling.BICUBIC).save(root / "masks" / f"{number}.png")
    shown, status = check(root, capsys, tmp_path, "--num-classes", 255)
    assert status == 1 and "look resized or anti-aliased" in shown


def test_without_masks_and_without_data(tmp_path, capsys):
    """Images alone can be pre-trained on; an unknown folder is one problem."""
    pair(tmp_path / "data", "0", {0: 5, 1: 0})
    shutil.rmtree(tmp_path / "data" / "masks")
    shown, status = check(tmp_path / "data", capsys, tmp_path)
    assert status == 0 and "there are no masks" in shown and "--losses g, l or g+l" in shown
    shown, status = check(tmp_path / "absent", capsys, tmp_path)
    assert status == 1 and "absent, which is not a folder" in shown and "picture" not in shown


def test_the_fraction_that_would_be_held_out(tmp_path, capsys):
    """Its images are written down and examined as the split val."""
    for number in range(5):
        pair(tmp_path / "data", f"{number}", {0: 1500, 1: 0}, number)
    shown, status = check(tmp_path / "data", capsys, tmp_path, "--val-fraction", 0.4, "--image-size", 48)
    assert status == 0 and "val: 5 images" in shown and "sizes: 64x48 (2)" in shown and "suspicious: none" in shown
    assert len((tmp_path / "out" / "val_split.txt").read_text().splitlines()) == 3


CASES = {  # the exit status, and words of the report
    "plain": (0, "class_2"), "rgb_masks": (1, "--class-colors"),
    "jpeg_masks": (1, "is a JPEG"), "gray_12_bit": (0, "image range 0 to 4095"),
    "multi_page_tiff": (1, "is a TIFF of 3 pages"), "binary_0_255_two_classes": (1, "--label-map 255:1"),
    "rgb_masks_without_table": (1, "colors.json"), "nothing_labelled_in_val": (0, "is undefined"), "empty_mask_folder": (0, "no masks"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cases(cases, tmp_path, capsys, case):
    """The report has the stated outcome, and the status that of training."""
    status, text = CASES[case]
    classes = ("--num-classes", 3) if case == "nothing_labelled_in_val" else ()
    shown, found = check(cases / case, capsys, tmp_path, *classes)
    assert found == status and text in shown, shown


@pytest.mark.parametrize("case", ["coco", "labelme"])
def test_cases_of_annotations(cases, tmp_path, capsys, case):
    """Read by their layouts."""
    harness.run("check_data", "--dataset", case, "--data-dir", cases / case, "--output-dir", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "cat" in shown and "dog" in shown and (tmp_path / "out" / "samples.png").is_file()


def test_colors_of_the_case(cases, tmp_path, capsys):
    """With the table, the color that it lacks is one problem; ignored, there is none."""
    table = ("--class-colors", cases / "rgb_masks" / "classes.csv")
    shown, status = check(cases / "rgb_masks", capsys, tmp_path, *table)
    assert status == 1 and "6 of 6 samples of train, such as" in shown and "--ignored-colors 224,224,192" in shown
    shown, status = check(cases / "rgb_masks", capsys, tmp_path, *table, "--ignored-colors", "224,224,192")
    assert status == 0 and "background" in shown
