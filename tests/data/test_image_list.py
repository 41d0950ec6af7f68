"""Images to predict: which files they are, what their outputs are called, and how EXIF orientation and pixel limits are handled."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mscl_hf.data.dataset import BadSample
from mscl_hf.data.image_file import pixel_limit, read_image_file, upright_view
from mscl_hf.data.image_list import list_inputs, output_names

LIMIT = 10**6


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) // 12, (16, 1))).save(path)
    return path


def listed(*inputs, out: Path) -> dict[str, str]:
    """{name of the output: name of the file}"""
    images = list_inputs([str(text) for text in inputs], out)
    assert images.paths == sorted(images.paths) and len(set(images.names)) == len(images.names)
    return {name: path.name for name, path in zip(images.names, images.paths)}


def test_folders_files_and_patterns(tmp_path):
    """A folder with its sub-folders, single files, and patterns; names begin below the folder, or before the first wildcard."""
    for name in ("a.jpg", "b/c.png", "b/d/e.tif", ".hidden/f.jpg"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    assert listed(tmp_path / "in", out=out) == {"a": "a.jpg", "b/c": "c.png", "b/d/e": "e.tif"}
    assert listed(tmp_path / "in" / "b" / "c.png", out=out) == {"c": "c.png"}
    assert listed(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b" / "c.png", out=out) == {"a": "a.jpg", "b/c": "c.png"}
    assert listed(f"{tmp_path}/in/b/*.png", out=out) == {"c": "c.png"}
    assert listed(f"{tmp_path}/in/**/*", out=out) == {"a": "a.jpg", "b/c": "c.png", "b/d/e": "e.tif"}
    assert listed(f"{tmp_path}/in/b", f"{tmp_path}/in/b/c.png", out=out) == {"c": "c.png", "d/e": "e.tif"}  # each file once


def test_relative_paths(tmp_path, monkeypatch):
    """In the current folder too, where a pattern has no fixed part."""
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b" / "a.jpg", 1)
    monkeypatch.chdir(tmp_path)
    assert listed("*.jpg", out=Path("out")) == {"a": "a.jpg"}
    assert listed(".", out=Path("out")) == {"a": "a.jpg", "b/a": "a.jpg"}
    assert listed("a.jpg", "b", out=Path("out")) == {"a": "a.jpg", "b/a": "a.jpg"}


def test_outputs_and_masks_are_no_images(tmp_path):
    """Masks beside images, the output folder and outputs of other runs are left out, in folders and in patterns, with a note."""
    photo(tmp_path / "data" / "images" / "a.png")
    mask(tmp_path / "data" / "masks" / "a.png")
    photo(tmp_path / "data" / "images" / "out" / "overlays" / "a.png")
    photo(tmp_path / "data" / "images" / "old" / "overlays" / "a.png")
    (tmp_path / "data" / "images" / "old" / "run.json").write_text('{"output_dir": "old"}')
    out = tmp_path / "data" / "images" / "out"
    for text in (str(tmp_path / "data"), f"{tmp_path}/data/**/*.png"):
        images = list_inputs([text], out)
        assert [path.relative_to(tmp_path).as_posix() for path in images.paths] == ["data/images/a.png"], text
        assert any("1 mask(s) are left out" in note for note in images.notes)
        assert any("1 image(s) in the output folder" in note for note in images.notes)
    assert listed(tmp_path / "data" / "masks" / "a.png", out=out) == {"a": "a.png"}  # a file that is named is predicted


def test_names_are_apart(tmp_path):
    """Files that differ in their suffix or in upper and lower case only get outputs of different names; others are rejected."""
    for seed, name in enumerate(("a.jpg", "a.png", "B.jpg", "b.png", "c.d.jpg")):
        photo(tmp_path / name, seed)
    names = listed(tmp_path, out=tmp_path / "out")
    assert names == {"a.jpg": "a.jpg", "a.png": "a.png", "B.jpg": "B.jpg", "b.png": "b.png", "c.d": "c.d.jpg"}
    three = output_names([Path("x/a.jpg"), Path("x/a.jpg.png"), Path("x/a.png")], Path("x"))
    assert three == ["a.jpg", "a.jpg.png", "a.png"]
    with pytest.raises(ValueError, match="x/a.jpg and x/A.jpg would have one output.*Rename one"):
        output_names([Path("x/a.jpg"), Path("x/A.jpg")], Path("x"))


@pytest.mark.parametrize(("inputs", "words"), [
    ([], "--images is missing"),
    (["nowhere"], "--images is nowhere, which does not exist.*Correct the path"),
    (["*.jpg"], r"--images is \*.jpg, which matches no images.*Correct the pattern"),
    (["empty"], "empty holds no images"),
    (["run"], "--images is run, which holds the output of a run.*Give another folder"),
    (["out/a.png"], "--images is out/a.png, which holds no images to predict; out/a.png: 1 image.s. in the output folder"),
])  # fmt: skip
def test_wrong_inputs(tmp_path, monkeypatch, inputs, words):
    """The message names the option, its value and what to do."""
    (tmp_path / "empty").mkdir()
    photo(tmp_path / "out" / "a.png")
    photo(tmp_path / "run" / "a.png")
    (tmp_path / "run" / "run.json").write_text('{"output_dir": "run"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        list_inputs(inputs, Path("out"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation(tmp_path, orientation, suffix):
    """The levels are those that Pillow turns upright, and what is written into the view lies in the array as in the file."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    image = read_image_file(path, None, LIMIT)
    with Image.open(path) as opened:
        assert (image.levels == np.asarray(ImageOps.exif_transpose(opened))).all()
    assert image.orientation == orientation
    stored = np.zeros_like(pixels)
    upright_view(stored, image.orientation)[:] = image.levels
    assert (stored == pixels).all()


def test_pixel_limit(tmp_path):
    """An image of more pixels is rejected with the option that raises the limit, and one of as many is read, without Pillow's warning."""
    path = photo(tmp_path / "a.png", size=(25, 15))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadSample, match="a.png has more than 374 px, the limit. Give a larger --max-pixels"):
        read_image_file(path, None, 374)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image_file(path, None, 375).levels.shape == (15, 25, 3)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(RuntimeError), pixel_limit(5):
        raise RuntimeError
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_than_8_bits(tmp_path):
    """They are scaled from the range; without one, and where most values lie outside of it, the file is rejected."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 10).save(path)
    levels = read_image_file(path, (0, 4095), LIMIT).levels
    assert levels.dtype == np.float32 and levels[19, 19, 0] == pytest.approx(3990 * 255 / 4095)
    with pytest.raises(BadSample, match="deep.png holds more than 8 bits.*--image-range LOW HIGH"):
        read_image_file(path, None, LIMIT)
    with pytest.raises(BadSample, match="deep.png holds values of 0 to 3990, and the image range is 0 to 255"):
        read_image_file(path, (0, 255), LIMIT)


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty. Replace it, or remove it"), (b"text", "cannot be read as an image .it is none of"),
    (b"version https://git-lfs", "is a Git LFS pointer"), (None, "cannot be read as an image .*truncated"),
])  # fmt: skip
def test_broken_files(tmp_path, content, words):
    """The message names the file and a remedy that this command has."""
    path = photo(tmp_path / "a.png", size=(200, 200))
    path.write_bytes(path.read_bytes()[:20000] if content is None else content)
    with pytest.raises(BadSample, match=f"a.png {words}") as error:
        read_image_file(path, None, LIMIT)
    assert "--max-bad-images" not in str(error.value)
