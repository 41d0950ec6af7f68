"""Untrusted rows, cards and pictures open no address, no file outside the folder, and no other program."""

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import ROOT
from PIL import EpsImagePlugin, Image, ImageOps
from test_recipes import write_folder, write_parquet
from test_untrusted_data import with_row, zipped

from mscl_hf.config import DataConfig
from mscl_hf.data import BadSample, check_data, load_data, open_held_out, open_whole_split
from mscl_hf.data.image_io import FORMATS, decode
from mscl_hf.demo.similarity import read_image

ADDRESSES = (
    "http:/127.0.0.1:{port}/x.png", "http://127.0.0.1:{port}/x.png", "HTTP://127.0.0.1:{port}/x.png", " http://127.0.0.1:{port}/x.png",
    "file:///etc/hostname", "hf://datasets/a/b/x.png", "github://a:b@main/x.png", "zip://a.png::{folder}/a.zip",
    "zip://a.png::http://127.0.0.1:{port}/a.zip", "x.png::http://127.0.0.1:{port}/x.png", "az://a/x.png", "gdrive://a/x.png",
    "jupyter://127.0.0.1:{port}/x.png", "s3://a/x.png", "simplecache::http://127.0.0.1:{port}/x.png", "data:image/png;base64,AAAA",
)  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    """(port, requests) of a local server; every attempt to connect is one of the requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        connect, find = socket.socket.connect, socket.getaddrinfo
        monkeypatch.setattr(socket.socket, "connect", lambda self, place: asked.append(place) or connect(self, place))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: asked.append(a[0]) or find(*a, **o))
        yield running.server_port, asked
        running.shutdown()
        thread.join()


def test_the_server_sees_what_a_row_would_have_asked(server):
    """`datasets` itself sends a request to decode such a row: the tests below can fail."""
    port, asked = server
    with contextlib.suppress(Exception):
        datasets.Image().decode_example({"bytes": None, "path": f"http:/127.0.0.1:{port}/x.png"})
    assert "/x.png" in asked


def readers(root: Path) -> dict:
    """How a parquet folder is read: whole, streamed, as the split of an evaluation, as the held-out one."""

    def streamed(name):
        return DataConfig("hf", str(root), val_split=name, num_classes=8, streaming=True, max_bad_images=1)

    def batch():
        found = next(load_data("hf", "train", root, num_classes=8, streaming=True).batches(0, 3, range(3)))
        return [message for _, messages in found for message in messages]

    def held_out():
        said = []
        open_held_out(streamed("train"), said.append)
        return said

    return {
        "whole": lambda: check_data(load_data("hf", "train", root, num_classes=8), 1)[1],
        "classes sought": lambda: check_data(load_data("hf", "train", root), 1)[1],
        "streamed": batch,
        "evaluation": lambda: check_data(open_whole_split(streamed(None), "train"), 1)[1],
        "held out": held_out,
    }


@pytest.mark.parametrize("column", ["image", "mask"])
def test_rows_fetch_nothing(tmp_path, column, server):
    """A row with the address of an image is a bad sample however it is read, and no request is sent."""
    port, asked = server
    with_archive = zipped(tmp_path / "a.zip")
    for number, form in enumerate(ADDRESSES):
        address = form.format(port=port, folder=with_archive.parent)
        root = with_row(write_parquet(tmp_path / str(number), count=3), column, {"bytes": None, "path": address})
        for name, read in readers(root).items():
            bad = read()
            assert len(bad) == 1 and f"{address} cannot be read as an image" in bad[0], (name, address, bad)
            if re.match("[a-zA-Z]{2,}:", address):
                assert "it is an address and addresses are not read: give data that holds its images" in bad[0]
    assert asked == []


def test_rows_of_json_and_arrow_fetch_nothing(tmp_path, server):
    """Likewise rows in other formats, which `datasets` streams itself."""
    port, asked = server
    rows = [{column: {"bytes": None, "path": f"http:/127.0.0.1:{port}/{column}.png"} for column in ("image", "mask")}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": stored, "mask": stored})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    for root in (tmp_path / "rows.jsonl", tmp_path / "saved"):
        with pytest.raises(BadSample, match="it is an address"):
            check_data(load_data("hf", "train", root, num_classes=8))
        with pytest.raises(BadSample, match="it is an address"):
            next(load_data("hf", "train", root, num_classes=8, streaming=True).batches(0, 3, range(3)))
    assert asked == []


def test_files_of_any_name_are_read(tmp_path):
    """Colons below a folder are no address, and neither is the drive of Windows."""
    root = write_folder(tmp_path / "12:30::45", splits=("train",))
    assert check_data(load_data("folder", "train", root, num_classes=8))[1] == []
    with pytest.raises(FileNotFoundError):
        decode("C:\\pictures\\x.png")


# cards

STRAYS = ("http://127.0.0.1:{port}/x.parquet", "hf://datasets/a/b/x.parquet", "zip://x.parquet::http://127.0.0.1:{port}/a.zip",
          "{outside}/*.parquet", "../outside/*.parquet", "*/../../outside/*", "link/*.parquet")  # fmt: skip
FORMS = (
    "configs:\n- config_name: default\n  data_files: '{}'\n",
    "configs:\n- config_name: default\n  data_files:\n  - train*\n  - '{}'\n",
    "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{}'\n",
    "configs:\n- config_name: other\n  data_files: train*\n- config_name: default\n  data_files:\n  - split: train\n    path: ['{}']\n",
    "configs:\n- config_name: default\n  data_dir: '{}'\n",
)


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_cards_name_files_of_their_folder(tmp_path, card, server):
    """A folder whose card names data files elsewhere, by an address or a path, is rejected before any file is opened."""
    port, asked = server
    outside, root = write_parquet(tmp_path / "outside", count=3), write_parquet(tmp_path / "data", count=3)
    (root / "link").symlink_to(outside)
    for stray in (text.format(port=port, outside=outside) for text in STRAYS):
        for form in FORMS:
            header = form.format(stray)
            (root / card).write_text(f"---\n{header}---\n" if card == "README.md" else header)
            for streaming in (False, True):
                with pytest.raises(ValueError, match=f"{card} names data files .* outside of {re.escape(str(root))}. Correct it"):
                    load_data("hf", "train", root, num_classes=8, streaming=streaming)
    assert asked == []


def test_cards_of_the_hub_are_read(tmp_path):
    """A card written by `push_to_hub` is read; a file that is no card is one sentence."""
    root = write_parquet(tmp_path / "data", count=3)
    (root / "parts").mkdir()
    for file in root.glob("train*"):
        file.rename(root / "parts" / file.name)
    next(root.glob("validation*")).unlink()
    pushed = ("configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: parts/train-*\n", "license: mit\n",
              "configs:\n- config_name: default\n  data_dir: parts\n",
              "dataset_info:\n  splits:\n  - name: train\n    num_examples: 3\n    num_bytes: 1\n")  # fmt: skip
    for header in pushed:
        (root / "README.md").write_text(f"---\n{header}---\n# Data\n")
        assert len(load_data("hf", "train", root, num_classes=8)) == 3, header
    for header in ("configs: [", "configs: 3\n", "configs: [3]\n", "configs:\n- data_files: [[[[[[a]]]]]]\n", "[]\n"):
        (root / "README.md").write_text(f"---\n{header}\n---\n")
        with pytest.raises(ValueError, match="README.md cannot be read as the card of a data set"):
            load_data("hf", "train", root, num_classes=8)


def test_saved_folders_fetch_nothing(tmp_path, server):
    """Wrong paths in the files of `save_to_disk` are one sentence, without a request."""
    port, asked = server
    rows = datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features({"image": datasets.Image()}))
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path)
    state = json.loads((tmp_path / "train" / "state.json").read_text())
    false = [{}, [], *({**state, "_data_files": files} for files in ([], 3, [{}], [{"filename": f"http://127.0.0.1:{port}/x.arrow"}]))]
    for noted in false:
        (tmp_path / "train" / "state.json").write_text(json.dumps(noted))
        with pytest.raises(ValueError, match="`datasets` cannot open"):
            load_data("hf", "train", tmp_path, unlabelled=True)
    for split in (
        "x::http://127.0.0.1:{}/a",
        "http://127.0.0.1:{}/a",
        "/simplecache::http://127.0.0.1:{}/a",
        "/zip://x::http://127.0.0.1:{}/a",
    ):
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [split.format(port)]}))
        with pytest.raises(ValueError, match="`datasets` cannot open"):
            load_data("hf", "train", tmp_path, unlabelled=True)
    assert asked == []


# formats

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghost(tmp_path, monkeypatch):
    """The file that a `gs` in the path leaves when it is run."""
    ran = tmp_path / "bin" / "ran"
    ran.parent.mkdir()
    (ran.parent / "gs").write_text(f"#!/bin/sh\necho 10.0\necho ran >> {ran}\n")
    (ran.parent / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(ran.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return ran


def test_pillow_itself_would_run_ghostscript(tmp_path, ghost):
    """So that the next test can fail."""
    (tmp_path / "x.png").write_bytes(EPS)
    with contextlib.suppress(OSError):
        Image.open(tmp_path / "x.png").load()
    assert ghost.exists()


@pytest.mark.parametrize("column", ["image", "mask"])
def test_no_picture_runs_another_program(tmp_path, column, ghost):
    """EPS named .png, in a folder, rows, streams, the image cache and mscl-demo: rejected, and no `gs` is run."""
    reason = f"it is none of {', '.join(FORMATS)}"
    root = with_row(write_parquet(tmp_path / "rows", count=3), column, {"bytes": EPS, "path": None})
    for name, read in readers(root).items():
        bad = read()
        assert len(bad) == 1 and f"the {column} of row" in bad[0] and reason in bad[0], (name, bad)
    folder = write_folder(tmp_path / "folder", splits=("train",))
    (folder / f"{column}s" / "train" / "1.png").write_bytes(EPS)
    for classes in (8, None):  # None: they are sought in the masks
        with pytest.raises(BadSample, match=f"1.png cannot be read as an image .{reason}"):
            check_data(load_data("folder", "train", folder, num_classes=classes))
    with pytest.raises(ValueError, match=f"1.png cannot be read .{reason}.. Choose another image"):
        read_image(str(folder / f"{column}s" / "train" / "1.png"), 1280)
    assert not ghost.exists()


def test_images_are_opened_in_one_place():
    """In the package and its Hub files, only `decode` has Pillow or `datasets` open an image."""
    opened = re.compile(r"Image\.open\(|decode_example|Image\(decode=True\)|imread|read_file\(|decode_image")
    found = [path.name for place in ("mscl_hf", "hub") for path in (ROOT / place).rglob("*.py") if opened.search(path.read_text())]
    assert found == ["image_io.py"]


@pytest.mark.parametrize("form", [*FORMATS, "MPO"])
def test_decoding_is_that_of_datasets(tmp_path, form):
    """Of each format, from bytes and from a file, turned by its EXIF or not: the pixels and mode that `datasets` gives."""
    rng = np.random.default_rng(0)
    mode, more = "RGB", {}
    picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    if form == "GIF":
        mode = "P"
    if form == "MPO":
        more = {"save_all": True, "append_images": [ImageOps.flip(picture)]}
    for orientation in (None, 1, 6):
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.file"
        picture.convert(mode).save(file, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF", "MPO") else {}), **more)
        wanted = datasets.Image().decode_example({"bytes": None, "path": str(file)})
        for found in (decode(file), decode(None, file.read_bytes()), decode(str(file), None)):
            assert found.mode == wanted.mode and found.size == wanted.size
            assert (np.asarray(found) == np.asarray(wanted)).all()
