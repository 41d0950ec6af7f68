"""Untrusted images and folders: nothing is unpacked, no image takes more memory than Pillow allows, links are followed as documented."""

import gzip
import inspect
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import datasets
import harness
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image, ImageFile
from test_recipes import write_folder, write_parquet
from transformers import pipeline

from mscl_hf import MsclForSemanticSegmentation
from mscl_hf.data import BadSample, check_data, load_data
from mscl_hf.data.image_file import pixel_limit
from mscl_hf.demo.similarity import read_image
from mscl_hf.sharing.model_folder import write_model

FOLDERS = ("folder", "camvid", "voc2012", "cityscapes", "ade20k", "hf")


def zipped(file: Path) -> Path:
    """An archive with a name that climbs, a link, and a member that is a thousand times as large unpacked."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../evil.txt", "evil")
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(10_000_000))
    return file


def tarred(file: Path, mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        member = tarfile.TarInfo("../evil.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    return file


@pytest.mark.parametrize("dataset", FOLDERS)
def test_an_archive_is_no_data_folder(tmp_path, dataset):
    """--data-dir FILE.zip, .tar and .tar.gz: one sentence with the advice to unpack it, and nothing is written."""
    for file in (zipped(tmp_path / "data.zip"), tarred(tmp_path / "data.tar"), tarred(tmp_path / "data.tar.gz", "w:gz")):
        before = sorted(tmp_path.iterdir())
        flags = (*harness.TINY, *harness.SHORT, "--max-steps", 1, "--dataset", dataset, "--data-dir", file)
        message = harness.rejected("pretrain", *flags, "--output-dir", tmp_path / "out")
        assert f"{file} is an archive" in message and "Unpack it" in message
        assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "out"} and not (tmp_path.parent / "evil.txt").exists()


def test_an_archive_in_a_folder_is_not_unpacked(tmp_path, monkeypatch):
    """`datasets` would read a ZIP file in an image folder; such a folder is rejected before, by the content of the file."""
    monkeypatch.setattr(datasets, "load_dataset", None)
    for number, name in enumerate(("train.zip", "more/notes.txt", "data.csv")):
        folder = tmp_path / str(number)
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        zipped(folder / name)
        with pytest.raises(ValueError, match=re.escape(f"{folder / name} is an archive")):
            load_data("hf", "train", folder)
    assert [path.name for path in tmp_path.rglob("evil*")] == []
    with pytest.raises(ValueError, match="is an archive"):
        load_data("folder", "train", zipped(tmp_path / "unlabelled.zip"), unlabelled=True)


def test_archives_are_recognized_as_by_datasets(tmp_path):
    """Every file that `datasets` would unpack, whatever its first bytes and its name, and no image: one named as an image alone
    is one to it too, which cannot be read."""
    old = io.BytesIO()
    with tarfile.open(fileobj=old, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    old = bytearray(old.getvalue())
    old[257:265] = bytes(8)  # as tar wrote before POSIX: no magic
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 8 * 32 + sum(old[156:512]))
    archives = {"junk.bin": b"12345678" + zipped(tmp_path / "a.zip").read_bytes(), "spanned.bin": b"PK\x07\x08" + bytes(100),
                "v7": bytes(old), "rows.json.png": gzip.compress(b"{}"),
                "rows.jsonl": gzip.compress(b"{}"), "rows.csv": lzma.compress(b"a")}  # fmt: skip
    for number, (name, content) in enumerate(archives.items()):
        folder = write_folder(tmp_path / str(number), masks=False, splits=("train",), count=2)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{folder / name} is an archive")):
            load_data("hf", "train", folder, unlabelled=True)
    for name in ("notes.txt", "scan.001.png", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else (folder / "images" / "train" / "0.png").read_bytes())
    (folder / "rows.csv").unlink()
    zipped(folder / "images" / "train" / "1.png")
    with pytest.raises(BadSample, match="1.png cannot be read as an image"):
        check_data(load_data("hf", "train", folder, unlabelled=True))


def test_the_sources_unpack_nothing():
    """No archive is opened for reading in the package, the recipes and the Hub files; `is_zipfile` only tests, mode "w" writes."""
    unpacks = r"zipfile|tarfile|unpack_archive|extractall|\.extract\(|ExtractManager|gzip\.|lzma|bz2"
    for place in ("mscl_hf", "recipes", "hub"):
        for path in (ROOT / place).rglob("*.py"):
            reads_none = r"^(from zipfile import is_zipfile|import zipfile)$|\bis_zipfile\(path\)|zipfile\.(ZipFile\(file, \"w\"|ZIP_)"
            assert not re.search(unpacks, re.sub(reads_none, "", path.read_text(), flags=re.MULTILINE)), path


def test_links_in_a_data_folder(tmp_path):
    """A link to a file is read as that file, an image or a bad sample; a link to a folder is not entered."""
    root = write_folder(tmp_path / "data", splits=("train",))
    elsewhere = write_folder(tmp_path / "elsewhere", splits=("train",), masks=False)
    (root / "images" / "train" / "0.png").unlink()
    (root / "images" / "train" / "0.png").symlink_to(elsewhere / "images" / "train" / "0.png")
    (root / "images" / "train" / "more").symlink_to(elsewhere / "images" / "train")
    data = load_data("folder", "train", root, num_classes=8)
    assert len(data) == 6 and data.read(0).image.shape == (48, 64, 3)
    (tmp_path / "secret.txt").write_text("secret")
    (root / "images" / "train" / "1.png").unlink()
    (root / "images" / "train" / "1.png").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(BadSample, match="1.png cannot be read as an image") as caught:
        check_data(load_data("folder", "train", root, num_classes=8))
    assert "secret\n" not in str(caught.value)


# bombs


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header states side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def camvid(root: Path) -> Path:
    for part, value in (("train", 0), ("trainannot", 1)):
        (root / part).mkdir(parents=True)
        for name in "01":
            Image.fromarray(np.full((48, 64), value, np.uint8)).save(root / part / f"{name}.png")
    (root / "train.txt").write_text("".join(f"/SegNet/CamVid/train/{name}.png /SegNet/CamVid/trainannot/{name}.png\n" for name in "01"))
    return root


def voc(root: Path) -> Path:
    for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / part).mkdir(parents=True)
        for name in "01":
            Image.fromarray(np.full((48, 64), 1, np.uint8)).save(root / part / f"{name}.{suffix}")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n1\n")
    return root


SOURCES = {
    "folder": (lambda root: write_folder(root, splits=("train",)), "images/train/1.png", "masks/train/1.png"),
    "camvid": (camvid, "train/1.png", "trainannot/1.png"),
    "voc2012": (voc, "JPEGImages/1.jpg", "SegmentationClass/1.png"),
}


@pytest.mark.parametrize("dataset", SOURCES)
def test_a_bomb_in_a_folder_is_a_bad_sample(tmp_path, dataset):
    """Reported by the check before the first step, as an image and as a mask, and skipped if the user allows it."""
    make, *places = SOURCES[dataset]
    for number, place in enumerate(places):
        root = make(tmp_path / str(number))
        (root / place).write_bytes(bomb())
        data = load_data(dataset, "train", root, **({"num_classes": 8} if dataset == "folder" else {}))
        with pytest.raises(BadSample, match=f"{re.escape(str(root / place))} cannot be read as an image .*decompression bomb"):
            check_data(data)
        assert len(check_data(data, max_bad_images=1)[0]) == len(data) - 1
        brief = ("--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 1, "--val-split", "none")
        data_flags = ("--dataset", dataset, "--data-dir", root, "--output-dir", tmp_path / f"out{number}")
        message = harness.rejected("pretrain", *harness.TINY, *brief, *data_flags)
        assert "decompression bomb" in message


def with_row(root: Path, column: str, stored: dict) -> Path:
    """The parquet folder with another value in row 1 of its training split."""
    file = next(root.glob("train*"))
    rows = datasets.Dataset.from_parquet(str(file))
    for name in ("image", "mask"):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    changed = [{**row, column: stored} if number == 1 else row for number, row in enumerate(rows)]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    table = datasets.Dataset.from_list(changed, features=features).with_format("arrow")[:]
    pq.write_table(table, file)  # to_parquet would fetch what the row names
    return root


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_bomb_in_a_parquet_file_or_a_stream(tmp_path, column):
    """Stored and streamed rows: the row is reported, or skipped and counted."""
    root = with_row(write_parquet(tmp_path / "data", count=3), column, {"bytes": bomb(), "path": None})
    with pytest.raises(BadSample, match=f"the {column} of row 1 .*decompression bomb"):
        check_data(load_data("hf", "train", root, num_classes=8))
    batch = next(load_data("hf", "train", root, num_classes=8, streaming=True).batches(0, 3, range(3)))
    bad = [message for _, messages in batch for message in messages]
    assert len(batch) == 3 and len(bad) == 1 and "decompression bomb" in bad[0]


def test_a_bomb_given_to_a_page_or_a_pipeline(tmp_path):
    """mscl-demo raises one sentence; transformers' pipeline raises Pillow's error."""
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(ValueError, match="bomb.png cannot be read .*decompression bomb"):
        read_image(str(tmp_path / "bomb.png"), 1280)
    write_model(MsclForSemanticSegmentation(harness.config(num_labels=3)), tmp_path, size=(32, 32))
    with pytest.raises(Image.DecompressionBombError):
        pipeline("image-segmentation", model=str(tmp_path))(str(tmp_path / "bomb.png"))


def test_pillows_limits_stay_on():
    """No import turns them off: a truncated file is an error, and so are 180 million pixels. Only `pixel_limit` sets one, for a time."""
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3
    for place in ("mscl_hf", "recipes", "hub"):
        for path in (ROOT / place).rglob("*.py"):
            text = path.read_text().replace(inspect.getsource(pixel_limit), "")
            assert not re.search(r"LOAD_TRUNCATED_IMAGES|MAX_IMAGE_PIXELS *=|SAFEBLOCK", text), path
