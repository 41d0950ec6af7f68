"""The image cache: it returns what decoding returns, whatever happens to the files, the folder or the process."""

import errno
import multiprocessing
import os
import resource
import time
import warnings
from contextlib import suppress
from dataclasses import replace

import harness
import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image
from test_data import STORED, folder, labels, picture, save
from test_recipes import write_folder

from mscl_hf.config import DataConfig, ViewConfig
from mscl_hf.data import BadSample, check_data, load_data
from mscl_hf.data import cache as cache_module
from mscl_hf.data.cache import cache_folder, make_room, with_cache
from mscl_hf.data.dataset import SegmentationData
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.training.log import read_log
from mscl_hf.transforms.views import PairView

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def opened(monkeypatch):
    """Files, or buffers of embedded bytes, that Pillow opened."""
    seen, really = [], PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file, *rest, **more: seen.append(str(file)) or really(file, *rest, **more))
    return seen


def mixed(root, image_range=None):
    """Files of all forms: upside down, palette, gray, transparent, with a range also 16-bit; masks of stored ids 0, 7 and 9, as palette,
    gray and 16-bit."""
    turned = Image.Exif()
    turned[0x0112] = 6  # shown as 9x12 (width x height)
    save(picture(0, 9, 12), root / "images" / "exif.jpg", exif=turned)
    save(picture(1, 20, 31).quantize(16), root / "images" / "palette.png")
    sixteen = np.random.default_rng(2).integers(0, 65536, (33, 18), np.uint16)
    save(Image.fromarray(sixteen if image_range else sixteen.astype(np.uint8)), root / "images" / "sixteen.png")
    save(picture(3, 12, 40, "L"), root / "images" / "gray.png")
    save(picture(4, 6, 6, "RGBA"), root / "images" / "clear.png")
    for name, height, width in (("exif", 12, 9), ("palette", 20, 31), ("sixteen", 33, 18), ("gray", 12, 40), ("clear", 6, 6)):
        mask = labels(np.random.default_rng(5).choice([0, 7, 9, 255], height * width), height, width)
        if name == "palette":
            mask = mask.convert("P")
        save(Image.fromarray(np.asarray(mask, np.uint16)) if name == "sixteen" else mask, root / "masks" / f"{name}.png")
    return load_data("folder", "train", root, label_map="7:1,9:255", num_classes=2, image_range=image_range)


def kept(data, side=0, gb=1.0):
    return with_cache(data, side, gb, log=lambda _: pytest.fail("nothing to say"))


def same(found, wanted):
    """Sample by sample: image, mask and name, types included."""
    assert len(found) == len(wanted) > 0
    for index in range(len(wanted)):
        one, other = found.read(index), wanted.read(index)
        assert one.name == other.name and (one.mask is None) == (other.mask is None)
        for a, b in zip(one[:2], other[:2]):
            assert a is b is None or (a.dtype == b.dtype and np.array_equal(a, b))
    return True


def entries(pattern="*.npy"):
    return sorted(cache_folder().glob(f"*/{pattern}"))


@pytest.mark.parametrize("image_range", [None, (0, 65535)])
@pytest.mark.parametrize("side", [0, 10, 1000])
def test_every_kind_of_file_reads_as_without_the_cache(tmp_path, side, image_range):
    """Decoded and cached, in this run and in the next one; with an image range as float32."""
    data = mixed(tmp_path, image_range)
    assert {data.read(index).image.dtype.name for index in range(5)} == {"float32" if image_range else "uint8"}
    plain = kept(data, side, gb=0)
    assert not cache_folder().exists()
    assert same(kept(data, side), plain) and len(entries()) == 10 and same(kept(data, side), plain) and not entries("*.part")
    assert side == 10 or same(plain, data)
    read = kept(data, side)
    assert same(read, plain) and same(read, plain)


@pytest.mark.parametrize("store", STORED)
def test_the_second_run_opens_no_file(tmp_path, opened, store):
    """Embedded bytes and paths alike; unlabelled data open no mask at all and share the images with labelled ones."""
    stored = store(tmp_path)
    data, bare = load_data("hf", "train", stored, num_classes=3), load_data("hf", "train", stored, unlabelled=True)
    assert same(kept(data), data) and len(entries()) == 12
    again, unlabelled = kept(data), kept(bare)
    opened.clear()
    assert [again.read(i).name for i in range(6)] == [unlabelled.read(i).name for i in range(6)] and opened == []
    assert same(unlabelled, bare) and len(entries()) == 12


def test_only_large_images_are_made_smaller(tmp_path):
    """The short side becomes short_side, the other side in proportion; the mask is resized too and gets no new labels."""
    data = mixed(tmp_path)
    for index, sample in enumerate(data.read(i) for i in range(len(data))):
        found, (height, width) = kept(data, 10).read(index), sample.mask.shape
        scale = min(1, 10 / min(height, width))
        assert found.mask.shape == found.image.shape[:2] == (round(height * scale), round(width * scale))
        assert set(np.unique(found.mask)) <= set(np.unique(sample.mask)) and (scale < 1 or np.array_equal(found.image, sample.image))


def test_batches_are_the_same_with_any_number_of_workers(tmp_path, monkeypatch):
    """Labelled and unlabelled halves, without a cache, with an empty one that workers fill, and with a full one."""
    images = load_data("folder", "train", write_folder(tmp_path / "data", splits=("train",), count=10), unlabelled=True)
    data = load_data("folder", "train", tmp_path / "data", num_classes=8).select([7, 2, 5, 0])

    def batches(gb, workers):
        parts = [with_cache(part, 40, gb) for part in (data, images.select([1, 9, 3, 4, 8, 6]))]
        order = SamplingPlan(tuple(range(4)), tuple(range(6)), 4, 2, 0)
        return list(TrainingImages(*parts, PairView(32, 32, ViewConfig("crops")), 0, order).batches(0, 5, workers=workers))

    wanted = batches(0, 0)
    assert not cache_folder().exists()
    for workers in (0, 2, 8):
        monkeypatch.setenv("MSCL_HF_CACHE", str(tmp_path / f"cache{workers}"))
        for _ in range(2):
            for found, batch in zip(batches(1, workers), wanted, strict=True):
                assert found.keys() == batch.keys() and found["name"] == batch["name"] and found["bad"] == []
                assert all(torch.equal(found[key], value) for key, value in batch.items() if isinstance(value, torch.Tensor))
            assert len(entries()) == 14


def test_what_decides_the_pixels_decides_the_entry(tmp_path):
    """Another file of the same size or time, short side, label table or number of classes has another entry."""
    data = load_data("folder", "train", folder(tmp_path), num_classes=3)
    assert same(kept(data), data)
    for path, image, step in (("images/1.png", picture(99), 1), ("masks/2.png", labels([1, 2, 0]), 0)):
        before = os.stat(tmp_path / path)
        image.save(tmp_path / path)  # an image of the same size and another time, a mask the other way
        os.utime(tmp_path / path, ns=(0, before.st_mtime_ns + step))
        assert (os.stat(tmp_path / path).st_size == before.st_size) == bool(step)
    assert same(kept(data), data)
    swapped = replace(data, label_table=np.array([2, 1, 0] + [255] * 253, np.uint8))
    for variant, side in ((data, 4), (swapped, 0), (swapped, 4), (data, 0)):
        assert same(kept(variant, side), with_cache(variant, side, 0))
    with pytest.raises(BadSample, match=r"0\.png holds the ids \[2\]"):
        kept(replace(data, classes=("a", "b"))).read(0)


def test_a_kept_mask_is_not_taken_for_an_image_of_another_size(tmp_path):
    """Image and mask are cached, but were never read together: different sizes are an error as without the cache."""
    data = load_data("folder", "train", folder(tmp_path), num_classes=3)
    assert same(kept(data, 4), with_cache(data, 4, 0))
    save(picture(0, 12, 16), tmp_path / "images" / "0.png")
    kept(load_data("folder", "train", tmp_path, unlabelled=True), 4).read(0)
    for _ in range(2):
        with pytest.raises(BadSample, match="is 16x12 but its mask"):
            kept(data, 4).read(0)


def test_chosen_rows_are_the_right_ones(tmp_path):
    """The cached paths of rows are not used for a selection of rows."""
    data = load_data("folder", "train", folder(tmp_path, count=6), num_classes=3)
    read = kept(data)
    for chosen in ([5, 1, 3], [2], [4, 4, 0]):
        assert same(read, data) and same(read.select(chosen), data.select(chosen))
    assert same(read.select([5, 1, 3]).select([2, 0]), data.select([3, 5]))
    with pytest.raises(IndexError):
        read.select([5, 1]).read(2)


HEADER = b"\x93NUMPY\x01\x00v\x00"
DAMAGES = {
    "truncated": lambda content: content[:-1], "header only": lambda content: content[:128], "half a header": lambda content: content[:50],
    "empty": lambda content: b"", "zeros": lambda content: bytes(len(content)), "text": lambda content: b"no array" * 40,
    "zip": lambda content: b"PK\x03\x04" + content, "open bracket": lambda content: HEADER + b"{(".ljust(117) + b"\n" + content[128:],
    "objects": lambda content: content.replace(b"'|u1'", b"'|O' "), "too long": lambda content: content.replace(b"(6,", b"(9,"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entries_are_written_anew(tmp_path, damage):
    """No error is raised, the samples are right, and afterwards the entries are right."""
    data = load_data("folder", "train", folder(tmp_path), num_classes=3)
    assert same(kept(data), data)
    whole = {path: path.read_bytes() for path in entries()}
    for path, content in whole.items():
        path.write_bytes(DAMAGES[damage](content))
        assert path.read_bytes() != content
    assert same(kept(data), data) and {path: path.read_bytes() for path in entries()} == whole


def test_bad_files_are_never_kept(tmp_path):
    """A truncated image and a wrong label are reported both times, by reading and by the check, among good files."""
    data = load_data("folder", "train", folder(tmp_path), num_classes=3)
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "1.png").read_bytes()[:90])
    save(labels([0, 5]), tmp_path / "masks" / "2.png")
    for _ in range(2):
        for index, says in ((1, r"images/1\.png cannot be read"), (2, r"masks/2\.png holds the ids \[5\]")):
            with pytest.raises(BadSample, match=says):
                kept(data).read(index)
        good, bad = check_data(kept(data), max_bad_images=2)
        assert good == [0, 3] and "images/1.png" in bad[0] and "masks/2.png" in bad[1] and len(entries()) == 4
        assert same(kept(data).select(good), data.select(good))
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(BadSample, match=r"images/3\.png"):
        kept(data).read(3)


def test_drawn_scenes_are_not_kept():
    """They are no files: nothing is written, and they are resized like other images."""
    data = harness.scenes(2)
    assert kept(data, 24).read(1).image.shape == (24, 32, 3) and same(kept(data, 100), data) and not cache_folder().exists()


# processes and disks


def forked(function):
    """Call the function in another process, like a worker."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def large(root, count=3, side=1200):
    for i in range(count):
        save(picture(i, side, side), root / "images" / f"{i}.bmp")
        save(labels([i, 1], side, side), root / "masks" / f"{i}.bmp")
    return load_data("folder", "train", root, num_classes=3)


def test_a_process_killed_in_mid_write_leaves_nothing_wrong(tmp_path):
    """SIGKILL while a file is written, several times into one folder: readable entries are right; partial files are deleted later."""
    data, left = large(tmp_path), set()
    for attempt in range(40):
        process = forked(lambda: check_data(kept(data), workers=1))
        while process.is_alive() and not set(entries("*.part")) - left:
            time.sleep(0)
        process.kill()
        process.join()
        left |= set(entries("*.part"))
        for path in entries():
            with suppress(ValueError, EOFError):
                assert np.load(path, mmap_mode="r").nbytes + 128 == path.stat().st_size
        if len(left) >= 4 or attempt == 39:
            break
        for path in entries()[1:]:
            path.unlink()
    assert len(left) >= 4
    assert same(kept(data), data) and same(kept(data), data) and len(entries()) == 6
    assert set(entries("*.part")) == left  # they may belong to a run that goes on
    for path in left:
        os.utime(path, (0, time.time() - 7200))
    assert same(kept(data), data) and not entries("*.part") and len(entries()) == 6


def test_two_processes_fill_one_folder(tmp_path):
    """At the same time, while entries are deleted: both read right samples, and the remaining entries are right."""
    data = load_data("folder", "train", folder(tmp_path, count=40), num_classes=3)

    def fill():
        for _ in range(3):
            assert same(kept(data), data)
            check_data(kept(data))

    both = [forked(fill), forked(fill)]
    while any(process.is_alive() for process in both):
        make_room(cache_folder(), 10_000)
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and not entries("*.part")
    assert same(kept(data), data) and len(entries()) == 80


def as_a_full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def as_a_file():
    cache_folder().parent.mkdir()
    cache_folder().write_text("no folder")


@pytest.mark.parametrize("trouble", [as_a_full_disk, as_a_file])
def test_a_folder_that_takes_nothing_costs_a_warning(tmp_path, trouble):
    """One warning for all files; the samples are right, and no partial file remains."""
    data = large(tmp_path, side=100)

    def attempt():
        trouble()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            for _ in range(2):
                check_data(kept(data))
                assert same(kept(data), data)
        assert len(said) == 1 and str(cache_folder()) in str(said[0].message) and "decoded each time" in str(said[0].message)

    process = forked(attempt)
    process.join()
    assert process.exitcode == 0 and entries("*") == []


# how much is kept


def test_the_oldest_give_way(tmp_path):
    """At most the limit remains, no more entries than necessary are deleted, and no files that the cache did not write."""
    data = load_data("folder", "train", folder(tmp_path), num_classes=3)
    assert same(kept(data), data)
    by_age = entries()[::-1]
    sizes = [path.stat().st_size for path in by_age]
    for age, path in enumerate(by_age):
        os.utime(path, (0, time.time() - age))
    foreign = [cache_folder() / "ab" / "notes.txt", cache_folder() / "photos" / "1.npy"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
    for limit in (10_000, 1200, 700, 0):
        make_room(cache_folder(), limit)
        left = [path for path in by_age if path.exists()]
        assert left == by_age[: len(left)] and sum(sizes[: len(left)]) <= limit
        assert left == by_age or sum(sizes[: len(left) + 1]) > limit
    assert all(path.exists() for path in foreign)


def test_a_data_set_keeps_its_own_entries(tmp_path, opened):
    """A run deletes entries of other data, even if its own are the oldest and fill most of the limit."""
    mine, others = (load_data("folder", "train", folder(tmp_path / name, count), num_classes=3) for name, count in (("a", 8), ("b", 4)))
    limit = 8.1 * 192e-9  # 8 samples of 144 + 48 bytes; the headers of files, 128 bytes, are not counted
    assert same(kept(mine), mine) and same(kept(others), others) and len(entries()) == 24
    again = kept(mine, gb=limit)
    opened.clear()
    assert same(again, again) and opened == [] and len(entries()) == 16


def test_files_are_looked_at_only_if_room_is_needed(tmp_path, monkeypatch):
    """Opening many images that fit beside what is stored does not read the state of each file."""
    data = load_data("folder", "train", folder(tmp_path, 8), num_classes=3)
    assert same(kept(data), data)
    looked = []
    monkeypatch.setattr(cache_module, "_identity", lambda stored: looked.append(stored) or b"")
    kept(data)
    assert looked == []
    kept(data, gb=8.1 * 192e-9)
    assert len(looked) == 16


def test_too_large_a_data_set_is_decoded_each_time(tmp_path):
    """One log line names the option; nothing is written, and no entries of other data are deleted."""
    small, data = (load_data("folder", "train", folder(tmp_path / str(count), count), num_classes=3) for count in (2, 9))
    assert same(kept(small), small)
    said = []
    assert same(with_cache(data, 0, 8.9 * 192e-9, said.append), data) and len(entries()) == 4
    assert len(said) == 1 and "--image-cache-gb" in said[0] and "decoded each time" in said[0] and "\n" not in said[0]


def test_an_impossible_limit_is_rejected():
    """0 is no cache; negative limits, and values that are no numbers, are errors."""
    assert DataConfig(image_cache_gb=0).image_cache_gb == 0
    for limit in (-1, -0.001, float("nan")):
        with pytest.raises(ValueError, match="--image-cache-gb"):
            DataConfig(image_cache_gb=limit)


def test_a_run_learns_the_same_with_and_without(tmp_path):
    """The log of a pre-training with unlabelled images is equal without a cache, with an empty one and with a full one."""
    root, logs = write_folder(tmp_path / "data", splits=("train",)), []
    flags = ("--dataset", "folder", "--data-dir", root, "--num-classes", 8, "--val-split", "none", "--train-count", 3, "--max-steps", 3)
    for number, gb in enumerate((0, 1, 1)):
        more = ("--unlabelled", "rest", "--image-cache-gb", gb, "--output-dir", tmp_path / str(number))
        harness.run("pretrain", *harness.TINY, *harness.SHORT, *flags, *more, pictures=False)
        rows = read_log(tmp_path / str(number) / "log.jsonl")
        logs.append([{name: value for name, value in row.items() if name.startswith("loss")} for row in rows if "loss" in row])
        assert len(entries()) == (9 if gb else 0)
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) == 3 and logs[0][0]["loss"] > 0


def test_a_check_reads_only_files_that_are_new_or_changed(tmp_path, monkeypatch):
    """An image whose decoded array is stored could be decoded; the check does not even load the array. A changed file is read again."""
    for number in range(5):
        save(picture(number, 9, 12), tmp_path / "images" / f"{number}.png")
    seen, really = [], SegmentationData.read

    def check():
        data = kept(load_data("folder", "train", tmp_path, unlabelled=True))
        seen.clear()  # the size of the cache is estimated from a few images
        monkeypatch.setattr(SegmentationData, "read", lambda self, index: seen.append(index) or really(self, index))
        monkeypatch.setattr(cache_module, "_load", lambda path: None)
        try:
            return check_data(data, max_bad_images=1), sorted(seen)
        finally:
            monkeypatch.undo()
            monkeypatch.setenv("MSCL_HF_CACHE", str(tmp_path / "cache"))

    every = [0, 1, 2, 3, 4]
    assert check() == ((every, []), every)
    assert check() == ((every, []), [])
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    (good, bad), read = check()
    assert good == [0, 1, 2, 4] and "3.png" in bad[0] and read == [3]


def test_a_check_survives_a_cache_that_cannot_be_searched(tmp_path, monkeypatch):
    """A folder of another user, or of a server that does not answer: the images are decoded."""
    save(picture(0, 9, 12), tmp_path / "images" / "0.png")
    data, really = kept(load_data("folder", "train", tmp_path, unlabelled=True)), os.stat

    def stat(path, *rest, **more):
        if str(path).startswith(str(data.folder)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, *rest, **more)

    assert check_data(data) == ([0], []) and data.is_cached(0)
    monkeypatch.setattr(os, "stat", stat)
    assert check_data(data) == ([0], []) and not data.is_cached(0)
