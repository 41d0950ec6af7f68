"""Folders in many layouts: images and masks are found, no mask is read as an image, and errors name the flags."""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_files import sixteen_bit_png

from mscl_hf.config import DataConfig, ViewConfig
from mscl_hf.data import OTHER_METHODS, BadSample, check_data, load_data, open_held_out, open_training_data
from mscl_hf.data.image_io import IMAGE_SUFFIXES
from mscl_hf.data.layouts import remembered_splits
from mscl_hf.data.mask_files import FORMATS
from mscl_hf.transforms.views import make_view

VIEW = make_view("pair", None, 32, 32, ViewConfig())


def write(root: Path, *names: str) -> Path:
    """Files by their names: JPEG photos, and PNG or other lossless files as masks of three ids, unless they lie in a folder of images."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        folders = {part.lower() for part in path.relative_to(root).parts[:-1]}
        if path.suffix.lower() in (".jpg", ".jpeg") or folders & {"images", "rgb"} and not folders & {"masks", "labels"}:
            image = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        else:
            image = np.resize(np.arange(3, dtype=np.uint8), (48, 64))
        Image.fromarray(image).save(path)
    return root


def both(root: Path | None, split: str = "train", **options) -> tuple[list[str], list[str]]:
    """Names of the labelled data, which are checked to be read without fault, and of the unlabelled."""
    data, images = (load_data("folder", split, root, unlabelled=unlabelled, **options) for unlabelled in (False, True))
    assert data.labelled and check_data(data)[1] == [] and len(np.unique(data.read(0).mask)) < 5
    assert not images.labelled
    return data.names, images.names


def error(root: Path | None, split: str = "train", **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_data("folder", split, root, **options)
    return str(caught.value)


def pretrained_on(root: Path, uses_labels: bool = False, **options):
    lines: list[str] = []
    data = DataConfig(dataset="folder", data_dir=str(root), image_cache_gb=0, **options)
    return open_training_data(data, VIEW, 2, 0, lines.append, uses_labels=uses_labels, advice=OTHER_METHODS), lines


READ = {
    "suffix beside, split": (("train/00.jpg", "train/00_mask.png", "train/01.jpg", "train/01_mask.png"), ["00", "01"]),
    "another word, upper case": (("A 1.JPG", "A 1-Labels.PNG", "B.JPEG", "B-Labels.PNG"), ["A 1", "B"]),
    "whole names": (("00.jpg", "00.jpg.png", "01.jpg", "01.jpg.png"), ["00", "01"]),
    "a prefix": (("00.jpg", "mask_00.png", "01.jpg", "mask_01.png"), ["00", "01"]),
    "images with a suffix": (("train/7_sat.jpg", "train/7_mask.png", "train/8_sat.jpg", "train/8_mask.png"), ["7_sat", "8_sat"]),
    "images with a prefix": (("img_7.jpg", "mask_7.png", "img_8.jpg", "mask_8.png"), ["img_7", "img_8"]),
    "a folder for each image": (("7/image.jpg", "7/mask.png", "8/photo.jpg", "8/label.png"), ["7/image", "8/photo"]),
    "brackets and blanks": (("images/[1] *a?.jpg", "masks/[1] *a?.png"), ["[1] *a?"]),
    "one folder": (("00.jpg", "00.png", "01.jpg", "01.png"), ["00", "01"]),
    "one folder of classes": (("cat/00.jpg", "cat/00.png", "dog/00.jpg", "dog/00.png"), ["cat/00", "dog/00"]),
    "split above": (("train/images/00.jpg", "train/labels/00.png", "valid/images/1.jpg", "valid/labels/1.png"), ["00"]),
    "split above, capitals": (("Train/Images/00.jpg", "Train/Masks/00.png"), ["00"]),
    "split below labels": (("images/training/00.jpg", "annotations/training/00.png", "images/val/1.jpg"), ["00"]),
    "split beside masks": (("train/00.jpg", "val/1.jpg", "masks/train/00.png", "masks/val/1.png"), ["00"]),
    "split in the name of masks": (("train/0.jpg", "train_masks/0.png", "val/1.jpg", "val_masks/1.png"), ["0"]),
    "CamVid without lists": (("train/0.jpg", "trainannot/0.png", "val/1.jpg", "valannot/1.png"), ["0"]),
    "masks in the folder of images": (("images/00.jpg", "images/masks/00.png"), ["00"]),
    "masks in the folder of the split": (("train/00.jpg", "train/mask/00.png", "train/01.jpg", "train/mask/01.png"), ["00", "01"]),
    "masks in the data folder": (("a/00.jpg", "b/00.jpg", "masks/a/00.png", "masks/b/00.png"), ["a/00", "b/00"]),
    "dots": (("images/a.b.jpg", "images/a.c.jpg", "masks/a.b.png", "masks/a.c.png"), ["a.b", "a.c"]),
    "whole names in masks": (("images/00.jpg", "images/01.JPG", "masks/00.jpg.png", "masks/01.JPG.png"), ["00", "01"]),
    "one stem in two folders": (("images/a/0.jpg", "images/b/0.jpg", "masks/a/0.png", "masks/b/0.png"), ["a/0", "b/0"]),
    "GIF": (("0.jpg", "0.gif", "1.jpg", "1.gif"), ["0", "1"]),
    "VOC's names": (("JPEGImages/00.jpg", "SegmentationClass/00.png"), ["00"]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_layouts_are_read(tmp_path, case):
    """Images and masks are paired without flags, masks are no images, and files of operating systems are ignored."""
    files, names = READ[case]
    write(tmp_path, *files)
    for litter in ("Thumbs.db", "._00.jpg", ".DS_Store", "@eaDir/00.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._00.png"):
        (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / litter).write_bytes(b"litter")
    assert both(tmp_path) == (names, names)


def test_a_command_lists_a_split_once(tmp_path):
    """Within a command, the same split is listed once, other arguments list again; outside of it, new files are seen."""
    root = write(tmp_path, "train/00.jpg", "train/00_mask.png")
    with remembered_splits():
        first = load_data("folder", "train", root)
        write(root, "train/01.jpg", "train/01_mask.png")
        again = load_data("folder", "train", root, image_range=(0, 255))
        assert first.names == again.names == ["00"] and again.image_range == (0, 255) and first.image_range is None
        assert load_data("folder", "train", root, unlabelled=True).names == ["00", "01"]
        assert load_data("folder", "train", root, classes=["a", "b", "c"]).names == ["00", "01"]
    assert load_data("folder", "train", root).names == ["00", "01"]


def test_accents_match_however_they_are_composed(tmp_path):
    """A name from macOS, with a separate accent, matches the same name from other systems."""
    apart, composed = (unicodedata.normalize(form, "Bäume 1") for form in ("NFD", "NFC"))
    write(tmp_path / "two", f"images/{apart}.jpg", f"masks/{composed}.png")
    write(tmp_path / "one", f"{composed}.jpg", f"{apart}_mask.png")
    assert both(tmp_path / "two") == ([apart], [apart]) and both(tmp_path / "one") == ([composed], [composed])


def test_valid_is_the_held_out_split(tmp_path):
    """The default `val` also finds valid/ and validation/; an exact name comes first."""
    write(tmp_path, "train/images/0.jpg", "train/labels/0.png", "valid/images/1.jpg", "valid/labels/1.png")
    assert open_held_out(DataConfig(dataset="folder", data_dir=str(tmp_path)), print).names == ["1"]
    write(tmp_path, "val/images/2.jpg", "val/labels/2.png")
    assert load_data("folder", "val", tmp_path).names == ["2"] and load_data("folder", "valid", tmp_path).names == ["1"]


def test_images_alone_keep_their_names(tmp_path):
    """Without masks, sub-folders named image, mask or label are classes like others, and what is cut from a name stays its part."""
    write(tmp_path / "faces", "mask/1.jpg", "no_mask/1.jpg", "label/2.jpg", "face/1.jpg")
    assert load_data("folder", "train", tmp_path / "faces").names == ["face/1", "label/2", "mask/1", "no_mask/1"]
    write(tmp_path / "photos", "train/images/man_mask.jpg", "train/images/woman_L.jpg", "train/images/woman_R.jpg")
    write(tmp_path / "photos", "train/images/mask_1.jpg", "train/images/mask_2.jpg", "train/images/mask.jpg")
    names = ["man_mask", "mask", "mask_1", "mask_2", "woman_L", "woman_R"]
    assert load_data("folder", "train", tmp_path / "photos").names == [f"images/{name}" for name in names]


def test_pictures_of_one_name_are_both_images(tmp_path):
    """A JPEG and a PNG of one name that are both photos, and a PNG photo among pairs of image and mask."""
    write(tmp_path / "photos", "0.jpg", "images.jpg")
    noise = Image.fromarray(np.random.default_rng(9).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "photos" / "0.png")
    assert load_data("folder", "train", tmp_path / "photos").names == ["0.jpg", "0.png", "images"]
    write(tmp_path / "mixed", "0.jpg", "0.png")
    noise.save(tmp_path / "mixed" / "photo.png")
    assert load_data("folder", "train", tmp_path / "mixed", unlabelled=True).names == ["0", "photo"]
    assert load_data("folder", "train", tmp_path / "mixed", masked_only=True).names == ["0"]


@pytest.mark.parametrize("names", [("0.jpg", "0_L.jpg"), ("0.png", "0-target.png"), ("gas.jpg", "gasmask.jpg"), ("0.png", "semantic_0.png"),
                                   ("0.jpg", "0_mask.png", "gas.jpg", "gasmask.jpg")])  # fmt: skip
def test_photos_with_names_of_masks_are_images(tmp_path, names):
    """Photos whose names add L, target, semantic or mask to that of another photo stay images, also beside masks of another naming."""
    write(tmp_path, *names)
    for number, name in enumerate(names):
        if name.endswith(".png") and "_mask" not in name:
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    data, _ = pretrained_on(tmp_path)
    assert sorted(data.unlabelled.names) == sorted(Path(name).stem for name in names if "_mask" not in name)


@pytest.mark.parametrize("name", ["{}_L.png", "{}-target.png", "{}mask.png", "semantic_{}.png"])
def test_masks_with_names_of_photos_are_masks(tmp_path, name):
    """Files of such names that look like masks are masks; some that do are an error, unless they are given as masks."""
    write(tmp_path, "0.jpg", name.format(0), "1.jpg", name.format(1), name.format(2))
    assert load_data("folder", "train", tmp_path, unlabelled=True).names == ["0", "1"]
    assert load_data("folder", "train", tmp_path).names == ["0", "1"]
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / name.format(1))
    assert f"--image-dir {tmp_path} --mask-dir {tmp_path}" in error(tmp_path)
    data = load_data("folder", "train", None, image_dir=tmp_path, mask_dir=tmp_path, unlabelled=True)
    assert data.names == ["0", "1"]


MASKS_AMONG_IMAGES = {
    "folders of each patient": ("p1/images/0.jpg", "p1/masks/0.png", "p2/images/0.jpg", "p2/masks/0.png"),
    "a suffix": ("train/0.jpg", "train/0_mask.png", "train/1.jpg", "train/1_mask.png"),
    "a suffix, one image gone": ("0.jpg", "0_mask.png", "1.jpg", "1_mask.png", "2_mask.png"),
    "an ending, one image gone": ("0.jpg", "0.png", "1.jpg", "1.png", "2.png"),
    "a folder of another name": ("rgb/0.jpg", "rgb/1.jpg", "masks_png/0.png", "masks_png/1_mask.png"),
    "two masks": ("0.jpg", "0.png", "0.tif", "1.jpg", "1.png", "1.tif"),
    "masks below": ("0.jpg", "1.jpg", "gt/0.png", "gt/1.png"),
}


@pytest.mark.parametrize("case", MASKS_AMONG_IMAGES)
def test_masks_are_never_pretrained_on(tmp_path, case):
    """Losses without labels read the two images alone, as the data folder and as --unlabelled DIR, and the log counts the masks."""
    write(tmp_path, *MASKS_AMONG_IMAGES[case])
    data, lines = pretrained_on(tmp_path)
    assert len(data.unlabelled) == 2 and all(data.unlabelled.read(i).image.std() > 50 for i in range(2))
    files = len(MASKS_AMONG_IMAGES[case])
    note = f"{files - 2} of {files} image files are masks and are left out"
    assert any(f"2 images in {tmp_path}" in line and note in line for line in lines)


def test_unlabelled_folder_with_masks(tmp_path):
    """--unlabelled DIR leaves out the masks in DIR."""
    write(tmp_path / "more", "0.jpg", "0_mask.png", "1.jpg", "1_mask.png")
    options = DataConfig(dataset="folder", data_dir=str(write(tmp_path / "own", "images/0.jpg", "masks/0.png")), image_cache_gb=0)
    data = open_training_data(options, VIEW, 2, 0, lambda line: None, unlabelled=str(tmp_path / "more"))
    assert data.unlabelled.names == ["0", "1"]


def test_one_folder_by_flags(tmp_path, monkeypatch):
    """--image-dir and --mask-dir of one folder, with a suffix or without, however the paths are written."""
    write(tmp_path / "a", "0.jpg", "0_roi.png", "1.jpg", "1_roi.png")
    write(tmp_path / "b", "0.jpg", "0.png")
    for folder, suffix, names in (("a", "_roi", ["0", "1"]), ("b", "", ["0"])):
        assert both(None, image_dir=tmp_path / folder, mask_dir=tmp_path / folder, mask_suffix=suffix) == (names, names)
    assert both(tmp_path / "a", mask_suffix="_roi")[0] == ["0", "1"]
    monkeypatch.chdir(tmp_path / "b")
    assert both(None, image_dir=".", mask_dir=tmp_path / "a" / ".." / "b")[1] == ["0"] and both(Path("."))[0] == ["0"]


UNMATCHED = {
    "a suffix": (("images/0.jpg", "images/1.jpg", "masks/0_roi.png", "masks/1_roi.png"),
                 ("masks/0.png", "0_roi.png, 1_roi.png", "Give --mask-suffix=_roi")),
    "L of CamVid": (("images/0.jpg", "masks/0_L.png"), ("masks/0.png", "holds 0_L.png", "Give --mask-suffix=_L")),
    "another suffix": (("images/0.jpg", "masks/0-mask.png"), ("Give --mask-suffix=-mask",)),
    "a prefix": (("images/0.jpg", "masks/mask_0.png"), ("masks/0.png", "holds mask_0.png", "Give the masks the names of their images")),
    "other folders": (("images/a/0.jpg", "images/b/1.jpg", "masks/0.png", "masks/1.png"), ("holds 0.png, 1.png", "the names of")),
    "one folder more": (("images/all/0.jpg", "masks/0.png"), ("Give --image-dir {}/images/all --mask-dir {}/masks",)),
    "some": (("images/0.jpg", "images/1.jpg", "masks/0.png"), ("1 of 2", "holds no other file", "--masked-only")),
    "two candidates": (("images/0.jpg", "labels/0.png", "gt/0.png"), ("gt", "labels", "--mask-dir")),
    "folders of patients": (("p1/images/0.jpg", "p1/masks/0.png", "p2/images/0.jpg", "p2/masks/0.png"),
                            ("no masks", "--image-dir {}/p1/images --mask-dir {}/p1/masks")),
}  # fmt: skip


@pytest.mark.parametrize("case", UNMATCHED)
def test_masks_that_do_not_match(tmp_path, case):
    """The error names the expected file, the existing files, and flags; with these flags the data is read."""
    files, parts = UNMATCHED[case]
    write(tmp_path, *files)
    with pytest.raises(ValueError) as caught:
        pretrained_on(tmp_path, uses_labels=True)
    message = str(caught.value)
    assert all(part.format(tmp_path, tmp_path) in message for part in parts), message
    flags = dict(re.findall(r"--(image-dir|mask-dir|mask-suffix)[= ](\S+?)(?=[ ).]|$)", message))
    if message.endswith(tuple(flags.values())) and flags:
        assert both(tmp_path, **{name.replace("-", "_"): value for name, value in flags.items()})


def test_the_folder_of_images_itself(tmp_path):
    """--data-dir DIR/images has no masks, and the error names DIR."""
    write(tmp_path, "images/0.jpg", "masks/0.png")
    with pytest.raises(ValueError, match=re.escape(f"give --data-dir {tmp_path}")):
        pretrained_on(tmp_path / "images", uses_labels=True)


@pytest.mark.parametrize("name", [".keep", "0.npy"])
def test_an_empty_folder_of_masks(tmp_path, name):
    """Fine-tuning and losses with labels name the folder and what to do; losses without labels run."""
    write(tmp_path, "images/0.jpg", "images/1.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / name).write_bytes(b"")
    assert len(pretrained_on(tmp_path)[0].unlabelled) == 2
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "masks")) + r" holds (no file|0.npy).*--losses g, l or g\+l"):
        pretrained_on(tmp_path, uses_labels=True)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "masks"))):
        open_training_data(DataConfig(dataset="folder", data_dir=str(tmp_path)), VIEW, 2, 0, lambda line: None)


@pytest.mark.parametrize("names", [["annotations.json"], ["annotations/instances.json"], ["images/0.json", "images/1.json"]])
def test_annotations_in_json(tmp_path, names):
    """The polygons of COCO and Labelme are read by other layouts: the error names the files and both flags."""
    write(tmp_path, "images/0.jpg", "images/1.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError) as caught:
        open_training_data(DataConfig(dataset="folder", data_dir=str(tmp_path)), VIEW, 2, 0, lambda line: None)
    assert f"{tmp_path} holds {', '.join(names)}; give --dataset coco or --dataset labelme if these are" in str(caught.value)
    assert "if not, export masks as PNG" in str(caught.value)


def test_a_folder_of_pairs_that_are_partly_masks(tmp_path):
    """If some files of one name look like masks, an error gives the flags; with these, all of them are masks."""
    write(tmp_path, "0.jpg", "0.png", "1.jpg")
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    assert f"--image-dir {tmp_path} --mask-dir {tmp_path}" in error(tmp_path)
    data = load_data("folder", "train", None, image_dir=tmp_path, mask_dir=tmp_path, unlabelled=True)
    assert data.names == ["0", "1"]


# Links


def test_linked_folders_are_counted_and_named(tmp_path):
    """A sub-folder that is a link is not entered, and the log names it with its target and the way to read it; so for masks."""
    write(tmp_path / "data", "images/a/0.jpg", "masks/a/0.png")
    write(tmp_path / "disk", "b/1.jpg")
    (tmp_path / "data" / "images" / "b").symlink_to(tmp_path / "disk" / "b")
    data = load_data("folder", "train", tmp_path / "data")
    assert len(data) == 1 and f"1 linked folder(s) are not entered: {tmp_path}/data/images/b -> {tmp_path}/disk/b" in data.note
    write(tmp_path / "data", "images/c/2.jpg")
    (tmp_path / "data" / "masks" / "c").symlink_to(tmp_path / "disk" / "b")
    assert f"{tmp_path}/data/masks/c -> {tmp_path}/disk/b" in error(tmp_path / "data")
    assert "replace the link with the folder" in data.note and any("linked folder" in line for line in pretrained_on(tmp_path / "data")[1])


def test_links_that_are_read(tmp_path):
    """images/, masks/ and a split may be links themselves; links to each other end no run."""
    write(tmp_path / "disk", "i/0.jpg", "m/0.png")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "train").symlink_to(tmp_path / "disk" / "i")
    (tmp_path / "data" / "masks").symlink_to(tmp_path / "disk" / "m")
    (tmp_path / "disk" / "i" / "again").symlink_to(tmp_path / "data" / "images")
    assert both(tmp_path / "data") == (["0"], ["0"])


def test_broken_links_are_bad_images(tmp_path):
    """A broken link to a file is reported by the check of the data."""
    write(tmp_path, "0.jpg")
    (tmp_path / "1.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(BadSample, match=r"1\.jpg cannot be read"):
        check_data(load_data("folder", "train", tmp_path))


def test_unreadable_folders_are_errors(tmp_path, monkeypatch):
    """A folder without permission to read is named. Root may read all, so that the system's answer is made here."""
    write(tmp_path, "a/0.jpg", "b/1.jpg")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert f"{tmp_path / 'b'} cannot be read (Permission denied)" in error(tmp_path)


# Formats and the log


def test_every_format_has_a_rank():
    """Of two files of one name, each format may be the image or the mask."""
    assert set(FORMATS) == set(IMAGE_SUFFIXES)


def test_images_of_16_bits_are_no_masks(tmp_path):
    """A PNG of 16-bit colors beside a JPEG of its name is a photo, and may itself have a mask."""
    write(tmp_path / "two", "0.jpg")
    write(tmp_path / "one", "0.bmp", "0_mask.png")
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    for folder in ("two", "one"):
        (tmp_path / folder / "0.png").write_bytes(sixteen_bit_png(deep))
    (tmp_path / "one" / "0.bmp").unlink()
    assert load_data("folder", "train", tmp_path / "two").names == ["0.jpg", "0.png"]
    assert both(tmp_path / "one", image_range=(0, 65535)) == (["0"], ["0"])


def test_the_log_names_what_was_found_and_the_cache(tmp_path, monkeypatch):
    """Number and place of images and masks once, and place and limit of the cache of decoded images once."""
    monkeypatch.setenv("MSCL_HF_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "data", "images/0.jpg", "images/1.jpg", "masks/0.png", "masks/1.png")
    lines: list[str] = []
    options = DataConfig(dataset="folder", data_dir=str(root), train_count=1, image_cache_gb=2)
    open_training_data(options, VIEW, 2, 0, lines.append, unlabelled="rest")
    assert [line for line in lines if "images" in line and str(root) in line] == [
        f"folder/train: 2 images with masks in {root}/images; masks in {root}/masks"
    ]
    (line,) = (line for line in lines if str(tmp_path / "cache") in line)
    assert "up to 2 GB" in line and "--image-cache-gb 0" in line and "MSCL_HF_CACHE" in line


# The layouts of the small cases


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", ["folders", "beside", "split above"])
def test_hf_reads_no_mask_files_as_images(tmp_path, case, streaming):
    """`datasets` reads every file of a folder as an image: if some are masks, the error names --dataset folder."""
    names = {
        "folders": ("images/train/0.jpg", "masks/train/0.png", "images/train/1.jpg", "masks/train/1.png"),
        "beside": ("0.jpg", "0_mask.png", "1.jpg", "1_mask.png"),
        "split above": ("train/images/0.jpg", "train/masks/0.png", "train/images/1.jpg", "train/masks/1.png"),
    }
    write(tmp_path / "data", *names[case])
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for root, unlabelled in (("data", True), ("data", False), ("link", True)):
        with pytest.raises(ValueError, match="2 of them are masks. Give --dataset folder"):
            load_data("hf", "train", tmp_path / root, unlabelled=unlabelled, streaming=streaming)


def test_hf_reads_a_folder_of_images_alone(tmp_path):
    """Folders of classes without masks stay images."""
    write(tmp_path, "train/cat/0.jpg", "train/dog/1.jpg")
    assert len(load_data("hf", "train", tmp_path, unlabelled=True)) == 2


def test_splits_with_a_number_are_splits(tmp_path):
    """train2017 and val2017, as COCO has them, are two splits, above images/ or below; train_1 and train_2 alone are volumes of one."""
    write(tmp_path / "a", "images/train2017/0.jpg", "masks/train2017/0.png", "images/val2017/1.jpg", "masks/val2017/1.png")
    write(tmp_path / "b", "Train_2017/images/0.jpg", "Train_2017/masks/0.png", "val_2017/images/1.jpg", "val_2017/masks/1.png")
    for root in (tmp_path / "a", tmp_path / "b"):
        assert both(root) == (["0"], ["0"]) and both(root, "val") == (["1"], ["1"])
    write(tmp_path / "c", "images/train_1/0.jpg", "masks/train_1/0.png", "images/train_2/1.jpg", "masks/train_2/1.png")
    assert both(tmp_path / "c")[0] == ["train_1/0", "train_2/1"]
    write(tmp_path / "d", "images/train2014/0.jpg", "images/train2017/1.jpg", "images/val2017/2.jpg")
    assert "train2014, train2017, val2017" in error(tmp_path / "d", unlabelled=True)
    assert load_data("folder", "train2017", tmp_path / "d", unlabelled=True).names == ["1"]


def test_folders_that_are_merged_are_named(tmp_path):
    """Sub-folders that are no splits are read as one, and the log names them."""
    write(tmp_path, "images/trn/0.jpg", "masks/trn/0.png", "images/tst/1.jpg", "masks/tst/1.png")
    for unlabelled in (False, True):
        assert "2 sub-folders are read together: trn, tst" in load_data("folder", "train", tmp_path, unlabelled=unlabelled).note


def test_output_of_a_run_in_the_data_folder_is_no_data(tmp_path):
    """Pictures that a run writes into a sub-folder of its data are not used, and the log names the folder."""
    write(tmp_path, "0.jpg", "0.png", "1.jpg", "1.png", "out/training.jpg", "out/stage1/features.jpg", "model/predictions.jpg")
    (tmp_path / "out" / "run.json").write_text('{"output_dir": "out"}')
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mscl"}')
    assert both(tmp_path) == (["0", "1"], ["0", "1"])
    note = load_data("folder", "train", tmp_path).note
    assert f"2 folder(s) with the output of a run are not entered: {tmp_path}/model, {tmp_path}/out" in note
    write(tmp_path / "microscope", "a/0.jpg", "b/1.jpg")
    (tmp_path / "microscope" / "a" / "run.json").write_text('{"exposure": 3}')
    assert load_data("folder", "train", tmp_path / "microscope", unlabelled=True).names == ["a/0", "b/1"]


def test_images_in_other_formats_are_counted_and_named(tmp_path):
    """Photos in unsupported formats and arrays are not read, and the log names them."""
    write(tmp_path, "images/0.jpg", "masks/0.png")
    for name in ("IMG_1.HEIC", "2.jfif", "3.npy"):
        (tmp_path / "images" / name).write_bytes(b"x")
    files = "3 file(s) in formats that are not read: 2.jfif, 3.npy, IMG_1.HEIC; convert them to PNG"
    assert files in load_data("folder", "train", tmp_path).note
    (tmp_path / "images" / "0.jpg").unlink()
    assert files in error(tmp_path)


ADVICE = {
    "a held-out split without masks": ("val", {}, ("images/train/0.jpg", "masks/train/0.png", "images/val/1.jpg"),
                                       "expected {}/masks/val/1.png", "or train with --val-split none"),
    "overlays beside masks": ("train", {}, ("0.jpg", "0_mask.png", "0_overlay.png", "1.jpg", "1_mask.png", "1_overlay.png"),
                              "expected {}/0_overlay_mask.png", "remove these images"),
    "a suffix that no mask has": ("train", {"mask_suffix": "_mask"}, ("images/0.jpg", "masks/0.png"),
                                  "expected {}/masks/0_mask.png, and {}/masks holds 0.png", "Leave out --mask-suffix"),
    "another suffix": ("train", {"mask_suffix": "_mask"}, ("images/0.jpg", "masks/0_gt.png"), "0_mask.png", "Give --mask-suffix=_gt"),
    "half": ("train", {}, ("images/0.jpg", "images/1.jpg", "masks/0.png"), "1 of 2", "mscl-pretrain --unlabelled rest"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_advice_for_missing_masks(tmp_path, case):
    """The expected file would be read, and the suggested option helps."""
    split, options, files, expected, advice = ADVICE[case]
    write(tmp_path, *files)
    message = error(tmp_path, split, **options)
    assert expected.format(tmp_path, tmp_path) in message and advice in message, message
