"""Data sets: layouts, unusable files, nested subsets, streams."""

import json
import pickle
import shutil
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mscl_hf.config import ViewConfig
from mscl_hf.data import BadSample, check_data, choose_subset, load_data
from mscl_hf.data.cache import with_cache
from mscl_hf.data.folder_names import UnknownSplit
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.transforms.views import PairView

pytestmark = pytest.mark.usefixtures("own_caches")


def picture(seed=0, height=6, width=8, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def labels(ids, height=6, width=8):
    return Image.fromarray(np.resize(np.array(ids, np.uint8), (height, width)))


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def folder(root, count=4, ids=(0, 1, 2), split=""):
    """images/ and masks/ of `count` pairs, under a split folder or not."""
    for i in range(count):
        save(picture(i), root / "images" / split / f"{i}.png")
        save(labels(ids), root / "masks" / split / f"{i}.png")
    return root


# Layouts


@pytest.mark.parametrize("split, count", [("train", 367), ("val", 101), ("test", 233)])
def test_camvid_has_its_counts_classes_and_sequences(real_data, split, count):
    """The real CamVid reads as 11 classes in 480x360, with the published number of frames and the sequence of each."""
    data = load_data("camvid", split, real_data / "CamVid")
    assert (len(data), data.num_classes, data.classes[3]) == (count, 11, "road")
    sample = data.read(count // 2)
    assert sample.image.shape == (360, 480, 3) and sample.mask.shape == (360, 480)
    assert set(np.unique(sample.mask)) <= {*range(11), 255}
    assert set(data.groups) <= {"0016E5", "0006R0", "0001TP", "Seq05VD"}
    assert data.groups[0] == sample.name.split("_")[0] or len(set(data.groups)) > 1


@pytest.mark.parametrize("split, count", [("train", 437), ("val", 445), ("trainaug", 2137)])
def test_voc_is_found_from_any_of_its_three_folders(real_data, split, count):
    """VOC's folder, the devkit and the devkit's parent are the same data; palette masks give ids, void stays 255."""
    roots = [real_data, real_data / "VOCdevkit", real_data / "VOCdevkit" / "VOC2012"]
    first, *others = [load_data("voc2012", split, root) for root in roots]
    assert (len(first), first.num_classes) == (count, 21)
    for data in others:
        assert np.array_equal(data.read(0).mask, first.read(0).mask)
    seen = set().union(*(np.unique(first.read(i).mask) for i in range(20)))
    assert {0, 12} & seen and seen <= {*range(21), 255}


def test_trainaug_takes_the_added_labels(real_data):
    """train and trainaug share images, but trainaug's masks come from SegmentationClassAug."""
    rows = load_data("voc2012", "trainaug", real_data).rows.with_format("arrow")
    assert "/SegmentationClassAug/" in rows[0]["mask"][0].as_py()["path"]


def test_camvid_with_the_tutorials_own_paths(tmp_path):
    """Lines such as /SegNet/CamVid/train/x.png are found below the data folder; 11 is void as well as 255."""
    save(picture(), tmp_path / "train" / "0001TP_1.png")
    save(labels([0, 10, 11, 255]), tmp_path / "trainannot" / "0001TP_1.png")
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/0001TP_1.png /SegNet/CamVid/trainannot/0001TP_1.png\n")
    data = load_data("camvid", "train", tmp_path)
    assert data.read(0).mask.ravel()[:4].tolist() == [0, 10, 255, 255] and data.groups == ("0001TP",)


def test_cityscapes_ids_become_the_19_train_ids(tmp_path):
    """labelIds 7, 8, 33 are road 0, sidewalk 1, bicycle 18; 0..6 and others are ignored; an id beyond 33 is an error."""
    for city, ids in (("ulm", [7, 8, 33, 0, 6, 29]), ("bonn", [7, 34])):
        save(picture(), tmp_path / "leftImg8bit" / "train" / city / f"{city}_000_leftImg8bit.png")
        save(labels(ids), tmp_path / "gtFine" / "train" / city / f"{city}_000_gtFine_labelIds.png")
    data = load_data("cityscapes", "train", tmp_path)
    assert data.groups == ("bonn", "ulm") and data.num_classes == 19
    assert data.read(1).mask.ravel()[:6].tolist() == [0, 1, 18, 255, 255, 255]
    with pytest.raises(BadSample, match=r"bonn_000_gtFine_labelIds.png.*\[34\]"):
        data.read(0)


def test_the_cityscapes_test_split_has_only_images(tmp_path):
    """Its masks are not public: loading with masks is an error, without masks it works."""
    save(picture(), tmp_path / "leftImg8bit" / "test" / "ulm" / "ulm_000_leftImg8bit.png")
    with pytest.raises(ValueError, match="no masks. Use 'val'"):
        load_data("cityscapes", "test", tmp_path)
    assert load_data("cityscapes", "test", tmp_path, unlabelled=True).read(0).mask is None


def test_ade20k_ids_go_down_by_one(tmp_path):
    """Stored 0 is ignored, stored 1 is wall (train id 0), stored 150 is flag (149); val means validation."""
    save(picture(), tmp_path / "images" / "validation" / "ADE_val_1.jpg")
    save(labels([0, 1, 150]), tmp_path / "annotations" / "validation" / "ADE_val_1.png")
    data = load_data("ade20k", "val", tmp_path)
    assert data.read(0).mask.ravel()[:3].tolist() == [255, 0, 149]
    assert (len(data.classes), data.classes[0], data.classes[149]) == (150, "wall", "flag")


def test_a_folder_with_and_without_splits(tmp_path):
    """images/ and masks/ match by stem, whatever the suffix; folders of splits are used if they exist."""
    folder(tmp_path / "flat", count=3)
    save(picture(9), tmp_path / "flat" / "images" / "sub" / "deep.jpg")
    save(labels([3]), tmp_path / "flat" / "masks" / "sub" / "deep.png")
    data = load_data("folder", "train", tmp_path / "flat")
    assert data.classes == tuple(f"class_{i}" for i in range(4))
    assert [data.read(i).name for i in range(4)] == ["0", "1", "2", "sub/deep"]
    folder(tmp_path / "split", split="train")
    folder(tmp_path / "split", count=2, split="val")
    assert [len(load_data("folder", split, tmp_path / "split")) for split in ("train", "val")] == [4, 2]
    with pytest.raises(ValueError, match=r"'test'.*train.*val"):
        load_data("folder", "test", tmp_path / "split")


def test_separate_folders_and_class_names(tmp_path):
    """image_dir, mask_dir, mask_suffix and a file of class names describe any pair of folders."""
    save(picture(), tmp_path / "a" / "x.jpg")
    save(labels([0, 1]), tmp_path / "b" / "x_mask.png")
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    options = {"image_dir": tmp_path / "a", "mask_dir": tmp_path / "b", "mask_suffix": "_mask"}
    for classes in (tmp_path / "names.txt", ["sky", "road"], "sky, road"):
        data = load_data("folder", "train", classes=classes, **options)
        assert data.classes == ("sky", "road") and data.read(0).mask.ravel()[:2].tolist() == [0, 1]


def test_images_alone_are_unlabelled_data(tmp_path):
    """A folder of images in any depth and any suffix case is unlabelled data with unique names."""
    for name in ("a.JPG", "b/a.png", "b/a.jpeg", ".hidden.png", "__MACOSX/a.png"):
        save(picture(), tmp_path / name)
    data = load_data("folder", "train", tmp_path)
    assert not data.labelled and data.read(0).mask is None
    assert sorted(data.rows["name"]) == ["a", "b/a.jpeg", "b/a.png"]


def test_unlabelled_never_opens_a_mask(tmp_path):
    """With unlabelled=True broken and missing masks do not matter."""
    folder(tmp_path)
    (tmp_path / "masks" / "0.png").write_bytes(b"broken")
    (tmp_path / "masks" / "1.png").unlink()
    data = load_data("folder", "train", tmp_path, unlabelled=True)
    assert check_data(data) == ([0, 1, 2, 3], []) and data.classes == ()


def test_black_and_white_masks_are_not_taken_for_ignored(tmp_path):
    """Masks of 0 and 255 would be one class and ignored pixels: an error, and the label map 255:1 helps."""
    folder(tmp_path, ids=(0, 255))
    with pytest.raises(ValueError, match="255:1"):
        load_data("folder", "train", tmp_path)
    data = load_data("folder", "train", tmp_path, label_map="255:1")
    assert data.num_classes == 2 and data.read(0).mask.max() == 1


# Slices of volumes


def volumes(root, names):
    """images/ and masks/ of slices by name; the mask of b/2.png is missing."""
    for i, name in enumerate(names):
        save(picture(i), root / "images" / f"{name}.png")
        if name != "b/2":
            save(labels([i]), root / "masks" / f"{name}.png")
    return root


def test_sub_folders_are_volumes_in_the_order_of_their_names(tmp_path):
    """The i-th of n slices lies at (i + 0.5) / n, slice 10 behind slice 9; a mask that is missing, a selection and the cache of decoded
    images change neither volume nor position, and no group appears."""
    volumes(tmp_path, ["a/10", "a/9", "b/1", "b/2", "b/deep/1", "b/3", "b/4"])
    images = load_data("folder", "train", tmp_path, unlabelled=True)
    wanted = {"a/9": ("a", 0.25), "a/10": ("a", 0.75), "b/deep/1": ("b/deep", 0.5)}
    wanted |= {f"b/{i + 1}": ("b", (i + 0.5) / 4) for i in range(4)}
    assert dict(zip(images.names, images.slices)) == wanted and images.groups is None
    masked = load_data("folder", "train", tmp_path, masked_only=True, num_classes=7)
    assert dict(zip(masked.names, masked.slices)) == {name: place for name, place in wanted.items() if name != "b/2"}
    for kept in (with_cache(masked, 4, 1.0).select([5, 0]), with_cache(masked.select([5, 0]), 0, 0)):
        assert [wanted[name] for name in kept.names] == list(kept.slices) and len(kept.slices) == 2


def test_an_image_outside_of_the_sub_folders_belongs_to_no_volume(tmp_path):
    """Then the data has no volumes."""
    assert load_data("folder", "train", volumes(tmp_path, ["a/1", "b", "b/1"]), unlabelled=True).slices is None
    assert load_data("synthetic", "val").slices is None


def test_camvid_sequences_are_volumes(real_data):
    """Frames in their order, from near 0 to near 1 in each sequence."""
    data = load_data("camvid", "train", real_data / "CamVid")
    assert tuple(place.volume for place in data.slices) == data.groups
    for sequence in set(data.groups):
        placed = sorted((place.position, name) for place, name in zip(data.slices, data.names) if place.volume == sequence)
        assert [name for _, name in placed] == sorted(name for name in data.names if name.startswith(sequence))
        assert 0 < placed[0][0] < 0.02 and 0.98 < placed[-1][0] < 1


def test_stored_columns_place_the_slices(tmp_path):
    """Columns volume and position, any rising numbers; without one of them, or with a gap in it, there are no volumes."""
    stored_rows(volume=[1, 1, 2, 2, 2, 2], position=[7.5, -1.0, 40.0, 10.0, 20.0, 30.0]).save_to_disk(tmp_path / "both")
    data = load_data("hf", "train", tmp_path / "both", num_classes=3)
    assert data.slices == (("1", 0.75), ("1", 0.25), ("2", 0.875), ("2", 0.125), ("2", 0.375), ("2", 0.625))
    assert data.read(3).mask.max() == 0 and set(data.rows.column_names) == {"image", "mask", "name"}
    stored_rows(volume=list("aabbbb")).save_to_disk(tmp_path / "one")
    stored_rows(volume=list("aabbbb"), position=[1, 2, 3, None, 5, 6]).save_to_disk(tmp_path / "gap")
    for name in ("one", "gap"):
        assert load_data("hf", "train", tmp_path / name, num_classes=3).slices is None


def test_batches_say_where_their_slices_are_from(tmp_path):
    """volume and position are those of each image, a volume has one number over labelled and unlabelled images; where a part of the images
    belongs to none, neither is there."""
    volumes(tmp_path, ["a/1", "a/2", "b/1", "b/3"])
    images = load_data("folder", "train", tmp_path, unlabelled=True)
    first, second = load_data("folder", "train", tmp_path, num_classes=4).select([2, 0]), images.select([3, 1])
    data = TrainingImages(first, second, PairView(32, 32, ViewConfig()), 0, SamplingPlan((0, 1), (0, 1), 4, 2, 0))
    (batch,) = data.batches(0, 1)
    assert (batch["volume"].dtype, batch["position"].dtype) == (torch.int64, torch.float32)
    found = {name: (int(v), float(p)) for name, v, p in zip(batch["name"], batch["volume"], batch["position"])}
    assert found == {"a/1": (0, 0.25), "a/2": (0, 0.75), "b/1": (1, 0.25), "b/3": (1, 0.75)}
    part = replace(data, labelled=replace(first, slices=None))
    assert not {"volume", "position"} & set(next(part.batches(0, 1)))


# Datasets of Hugging Face


def stored_rows(count=6, **columns):
    rows = {"image": [picture(i) for i in range(count)], "mask": [labels([i % 3]) for i in range(count)], **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())


def as_parquet_file(root):
    stored_rows().to_parquet(root / "part.parquet")
    return root / "part.parquet"


def as_parquet_folder(root):
    (root / "data").mkdir()
    stored_rows().to_parquet(root / "data" / "train-00000-of-00001.parquet")
    stored_rows(2).to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    return root / "data"


def as_image_folder(root):
    lines = []
    for i in range(6):
        save(picture(i), root / "pictures" / "train" / f"{i}.png")
        save(labels([i % 3]), root / "pictures" / "train" / "m" / f"{i}_mask.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "mask_file_name": f"m/{i}_mask.png"}))
    (root / "pictures" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    return root / "pictures"


def as_saved(root):
    datasets.DatasetDict(train=stored_rows()).save_to_disk(root / "saved")
    return root / "saved"


STORED = [as_parquet_file, as_parquet_folder, as_image_folder, as_saved]


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_stored_form_gives_the_same_samples(tmp_path, store, streaming):
    """A parquet file, a parquet folder, an image folder and a saved data set, whole or streamed, hold the same pixels."""
    data = load_data("hf", "train", store(tmp_path), streaming=streaming, num_classes=3)
    if streaming:
        samples = sorted((sample for sample, _ in next(data.batches(0, 6, range(6)))), key=lambda sample: sample.name)
    else:
        samples = [data.read(i) for i in range(len(data))]
    assert len(samples) == 6 and len({s.name for s in samples}) == 6
    for i, sample in enumerate(samples):
        assert np.array_equal(sample.image, np.asarray(picture(i))) and np.array_equal(sample.mask, np.asarray(labels([i % 3])))


def test_classes_are_found_in_stored_masks_but_not_in_a_stream(tmp_path):
    """Without names the ids in the masks are the classes; a stream needs names."""
    assert load_data("hf", "train", as_saved(tmp_path)).classes == ("class_0", "class_1", "class_2")
    with pytest.raises(ValueError, match="--num-classes"):
        load_data("hf", "train", tmp_path / "saved", streaming=True)


def test_class_names_from_a_column_of_labels(tmp_path):
    """`classes` may be a ClassLabel column, whose names are used."""
    rows = stored_rows(kind=[0, 1, 2, 0, 1, 2]).cast_column("kind", datasets.ClassLabel(names=["sky", "road", "car"]))
    rows.save_to_disk(tmp_path / "named")
    assert load_data("hf", "train", tmp_path / "named", classes="kind", streaming=True).classes == ("sky", "road", "car")


def test_columns_are_recognized_or_named(tmp_path):
    """pixel_values and label are recognized by name; two candidates or none are an error that names the columns."""
    stored_rows().rename_columns({"image": "pixel_values", "mask": "label"}).save_to_disk(tmp_path / "a")
    assert load_data("hf", "train", tmp_path / "a").read(5).mask.max() == 2
    rows = stored_rows().rename_column("mask", "weird")
    rows.save_to_disk(tmp_path / "b")
    with pytest.raises(ValueError, match=r"masks.*weird.*--mask-column"):
        load_data("hf", "train", tmp_path / "b")
    assert load_data("hf", "train", tmp_path / "b", mask_column="weird").num_classes == 3
    stored_rows(img=[picture(i) for i in range(6)]).save_to_disk(tmp_path / "c")
    with pytest.raises(ValueError, match=r"image, img may each.*--image-column"):
        load_data("hf", "train", tmp_path / "c")


def test_hf_names_its_splits_and_what_cannot_be_opened(tmp_path):
    """val is validation; an unknown split lists the available ones; an unreachable name is an error."""
    root = as_parquet_folder(tmp_path)
    assert len(load_data("hf", "val", root)) == 2
    with pytest.raises(ValueError, match=r"'test'.*train, validation"):
        load_data("hf", "test", root)
    with pytest.raises(ValueError, match="--data-dir is nobody/nothing"):
        load_data("hf", "train", "nobody/nothing")


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("streaming", [False, True])
def test_hf_paths_are_no_patterns(tmp_path, store, streaming, monkeypatch):
    """*, ?, and [1] in a path, of the data set or of the current folder, are names of folders and match nothing else."""
    (tmp_path / "plain" / "x").mkdir(parents=True)
    place = store(tmp_path / "plain" / "x").rename(tmp_path / "plain" / ("scans.parquet" if store is as_parquet_file else "scans"))
    for name in ("a[1]", "what?*", "whatever"):
        shutil.copytree(tmp_path / "plain", tmp_path / name)
    for folder in ("a[1]", "what?*"):
        monkeypatch.chdir(tmp_path / folder)
        for path in (tmp_path / folder / place.name, place.name):
            data = load_data("hf", "train", path, streaming=streaming, num_classes=3)
            samples = [s for s, _ in next(data.batches(0, 6, range(6)))] if streaming else [data.read(i) for i in range(len(data))]
            assert len(samples) == len({sample.name for sample in samples}) == 6
            assert streaming or all(f"/{folder}/" in str(data.stored(i)["image"]["path"]) for i in range(6)) or store is not as_image_folder


def test_hf_path_of_a_pattern_with_a_card(tmp_path):
    """A card with data files in such a path is an error that names the card."""
    (tmp_path / "a[1]").mkdir()
    root = as_parquet_folder(tmp_path / "a[1]")
    (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n")
    with pytest.raises(ValueError, match=r"README.md names data files.*Rename the folder"):
        load_data("hf", "train", root)


def test_saved_split_valid_is_the_held_out_one(tmp_path):
    """valid, val and validation mean the same."""
    datasets.DatasetDict({"train": stored_rows(), "valid": stored_rows(2)}).save_to_disk(tmp_path / "saved")
    assert [len(load_data("hf", split, tmp_path / "saved")) for split in ("val", "validation", "valid")] == [2, 2, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_with_a_byte_order_mark(tmp_path, encoding):
    """Class names and lists of files, as editors of Windows save them."""
    folder(tmp_path)
    (tmp_path / "names.txt").write_text("Straße\ncar\nsky\n", encoding=encoding)
    assert load_data("folder", "train", tmp_path, classes=tmp_path / "names.txt").classes == ("Straße", "car", "sky")
    root = tmp_path / "camvid"
    save(picture(), root / "train" / "é.png")
    save(labels([0, 11]), root / "trainannot" / "é.png")
    (root / "train.txt").write_text("/SegNet/CamVid/train/é.png /SegNet/CamVid/trainannot/é.png\n", encoding=encoding)
    assert load_data("camvid", "train", root).read(0).name == "é"
    voc = tmp_path / "VOC2012"
    save(picture(), voc / "JPEGImages" / "a.jpg")
    save(labels([0, 20]), voc / "SegmentationClass" / "a.png")
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n", encoding=encoding)
    assert load_data("voc2012", "train", tmp_path).names == ["a"]


def test_text_files_of_another_encoding_are_named(tmp_path):
    """Other encodings: the error names the file."""
    folder(tmp_path)
    (tmp_path / "names.txt").write_text("Straße\ncar\nsky\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"names\.txt.* is neither UTF-8"):
        load_data("folder", "train", tmp_path, classes=tmp_path / "names.txt")
    save(picture(), tmp_path / "train" / "0.png")
    (tmp_path / "train.txt").write_text("train/é.png annot/é.png\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"train\.txt is neither UTF-8"):
        load_data("camvid", "train", tmp_path)


def test_hf_reduces_labels(tmp_path):
    """reduce_labels: stored 0 is ignored and ids go down by one, so three ids are two classes."""
    data = load_data("hf", "train", as_saved(tmp_path), reduce_labels=True)
    assert data.num_classes == 2 and [data.read(i).mask[0, 0] for i in range(3)] == [255, 0, 1]


# File formats


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "RGB"])
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    """Images of any mode are (H, W, 3) uint8."""
    suffix = "tif" if mode == "CMYK" else "png"
    save(picture().convert(mode), tmp_path / f"x.{suffix}")
    image = load_data("folder", "train", tmp_path).read(0).image
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    """16-bit gray 0, 257, 32896, 65535 are 0, 1, 128, 255 in all three channels by the full range; without a range they are not read."""
    values = np.resize(np.array([0, 257, 32896, 65535], np.uint16), (6, 8))
    save(Image.fromarray(values), tmp_path / "x.png")
    image = load_data("folder", "train", tmp_path, image_range=(0, 65535)).read(0).image
    assert image[0, :4].tolist() == [[v] * 3 for v in (0, 1, 128, 255)] and image.dtype == np.float32
    with pytest.raises(BadSample, match=r"x\.png holds more than 8 bits.*--image-range LOW HIGH"):
        load_data("folder", "train", tmp_path).read(0)


@pytest.mark.parametrize("how", ["palette", "gray", "16-bit", "1-bit"])
def test_masks_are_read_as_ids_never_as_colors(tmp_path, how):
    """A palette mask gives its indices whatever its colors; gray, 16-bit and 1-bit masks give their values."""
    ids = np.resize(np.array([0, 1]), (6, 8))
    mask = Image.fromarray(ids.astype(np.uint16 if how == "16-bit" else np.uint8))
    if how == "palette":
        mask.putpalette([200, 30, 30, 7, 7, 7])
    if how == "1-bit":
        mask = Image.fromarray(ids.astype(bool))
    save(picture(), tmp_path / "images" / "x.jpg")
    save(mask, tmp_path / "masks" / "x.png")
    assert np.array_equal(load_data("folder", "train", tmp_path, num_classes=2).read(0).mask, ids)


def test_exif_orientation_turns_image_and_mask_alike(tmp_path):
    """An image stored on its side with an orientation tag fits the upright mask, and a mask's own tag counts too."""
    upright = picture(height=6, width=8)
    tag = Image.Exif()
    tag[0x0112] = 6  # stored turned by 90 degrees: viewers turn it back clockwise
    save(upright.rotate(90, expand=True), tmp_path / "images" / "x.png", exif=tag)
    save(labels([0, 1, 2]), tmp_path / "masks" / "x.png")
    data = load_data("folder", "train", tmp_path)
    assert np.array_equal(data.read(0).image, np.asarray(upright))
    save(labels([0, 1, 2]).rotate(90, expand=True), tmp_path / "masks" / "x.png", exif=tag)
    assert np.array_equal(data.read(0).mask, np.asarray(labels([0, 1, 2])))


def test_a_large_split_is_checked_at_evenly_spaced_rows(tmp_path):
    """decode_at_most limits the work; rows that were not read count as usable."""
    folder(tmp_path, count=10)
    (tmp_path / "images" / "2.png").write_bytes(b"")
    data = load_data("folder", "train", tmp_path, num_classes=3)
    assert check_data(data, decode_at_most=5, max_bad_images=1)[0] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert check_data(data, decode_at_most=2) == (list(range(10)), [])


def test_all_bad_is_an_error_however_many_are_allowed(tmp_path):
    """A run without a usable sample does not start."""
    folder(tmp_path, count=2)
    for i in range(2):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    with pytest.raises(BadSample, match="2 of the 2"):
        check_data(load_data("folder", "train", tmp_path, num_classes=3), max_bad_images=99)


# Wrong arguments


def test_unknown_options_offer_the_near_ones(tmp_path):
    """A misspelled option is an error."""
    with pytest.raises(ValueError, match=r"num_clases.*Did you mean num_classes"):
        load_data("folder", "train", tmp_path, num_clases=3)


def test_an_unknown_split_lists_those_of_the_data(tmp_path):
    """Drawn, in folders with and without splits, in parquet files and saved: the error has the split and the names that exist."""
    folder(tmp_path / "split", split="train")
    folder(tmp_path / "split", split="valid")
    places = {
        ("synthetic", None): ("train", "val", "test"),
        ("folder", folder(tmp_path / "whole")): ("train",),
        ("folder", tmp_path / "split"): ("train", "valid"),
        ("hf", as_parquet_folder(tmp_path)): ("train", "validation"),
        ("hf", as_saved(tmp_path)): ("train",),
    }
    for (layout, place), available in places.items():
        with pytest.raises(UnknownSplit, match="split is 'dev'") as caught:
            load_data(layout, "dev", place)
        assert (caught.value.split, caught.value.available) == ("dev", available)


def test_missing_splits_name_the_ones_there(real_data):
    """CamVid and VOC list the splits of their folders."""
    with pytest.raises(ValueError, match="'dev'.*test, train, val"):
        load_data("camvid", "dev", real_data / "CamVid")
    with pytest.raises(ValueError, match="'test'.*train, trainaug, trainval, val"):
        load_data("voc2012", "test", real_data)


def test_a_folder_without_images_says_what_it_looked_for(tmp_path):
    """The error names the folder and the file endings."""
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(ValueError, match=r"no images.*\.jpg \.jpeg \.png"):
        load_data("folder", "train", tmp_path)


def test_images_without_masks_are_counted_and_named(tmp_path):
    """The first three images without a mask are named and the rest counted; masked_only leaves them out."""
    folder(tmp_path, count=6)
    for i in range(5):
        (tmp_path / "masks" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"5 of 6 images have no mask: .*0.png, .*1.png, .*2.png and 2 more"):
        load_data("folder", "train", tmp_path)
    assert load_data("folder", "train", tmp_path, masked_only=True).rows["name"][:] == ["5"]


def test_two_masks_for_one_image_are_not_guessed_between(tmp_path):
    """x.png and x.bmp among the masks are an error."""
    folder(tmp_path, count=1)
    shutil.copy(tmp_path / "masks" / "0.png", tmp_path / "masks" / "0.bmp")
    with pytest.raises(ValueError, match="two masks"):
        load_data("folder", "train", tmp_path)


# Subsets


def test_subsets_are_nested_and_complete():
    """For one seed 10 % is part of 20 %, which is part of 50 %; both parts are all rows once; seeds differ."""
    tenth, fifth, half = (choose_subset(367, fraction=f, seed=4) for f in (0.1, 0.2, 0.5))
    assert set(tenth[0]) < set(fifth[0]) < set(half[0])
    assert sorted(tenth[0] + tenth[1]) == list(range(367))
    assert choose_subset(367, count=37, seed=4) == tenth and choose_subset(367, count=37, seed=5) != tenth
    assert choose_subset(5) == ([0, 1, 2, 3, 4], [])


def test_every_prefix_keeps_the_groups_shares():
    """With CamVid's sequence sizes every subset has each group's share to within one and a half rows."""
    groups = ["a"] * 204 + ["b"] * 101 + ["c"] * 62
    for seed in range(5):
        for count in range(1, 368, 7):
            taken = Counter(groups[i] for i in choose_subset(367, count=count, seed=seed, groups=groups)[0])
            assert all(abs(taken[g] - groups.count(g) * count / 367) < 1.5 for g in "abc"), (seed, count, taken)


def test_small_groups_are_not_left_out_for_large_ones():
    """Of one hundred single rows and one hundred pairs, a third of the subset are single rows on average over seeds."""
    groups = [f"single{i}" for i in range(100)] + [f"pair{i // 2}" for i in range(200)]
    share = np.mean([sum(i < 100 for i in choose_subset(300, count=30, seed=s, groups=groups)[0]) for s in range(40)])
    assert abs(share - 10) < 2


@pytest.mark.parametrize("fraction, total, size", [(0.1, 367, 37), (0.145, 100, 15), (0.5, 5, 3), (0.001, 10, 1), (1.0, 7, 7)])
def test_fractions_round_half_up(fraction, total, size):
    """A fraction is rounded half up in decimal arithmetic, and is at least one row."""
    assert len(choose_subset(total, fraction=fraction)[0]) == size


@pytest.mark.parametrize("wrong", [{"fraction": 0}, {"fraction": 1.2}, {"count": 0}, {"count": 11}, {"fraction": 0.1, "count": 1}])
def test_impossible_subsets_are_rejected(wrong):
    """Out of range, or both options: an error."""
    with pytest.raises(ValueError, match="--train-(fraction|count)"):
        choose_subset(10, **wrong)


def test_data_travels_to_workers(tmp_path):
    """Pickled data reads the same sample, as workers need it; select keeps rows and groups together."""
    data = load_data("folder", "train", folder(tmp_path))
    assert np.array_equal(pickle.loads(pickle.dumps(data)).read(3).image, data.read(3).image)  # noqa: S301
    drawn = load_data("synthetic", "val").select([5, 2]).select([1])
    assert len(drawn) == 1 and drawn.read(0).name == "val_00002"
    with pytest.raises(IndexError):
        drawn.read(1)
