"""Files of images that hold more or less than one image of gray or RGB: bands, pages, frames, thumbnails, 16-bit colors."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import TiffImagePlugin
from test_data import labels, picture, save, stored_rows

from mscl_hf.data import BadSample, load_data
from mscl_hf.data.files import list_images, unique_names, visible_files
from mscl_hf.data.folder_names import subfolders
from mscl_hf.data.image_io import decode
from mscl_hf.demo.similarity import read_image

pytestmark = pytest.mark.usefixtures("own_caches")

RGB, GRAY, CMYK = 2, 1, 5  # photometric interpretations


def sixteen_bit_png(values, bits=16):
    """A PNG (H, W) or (H, W, bands) of 16 bits, or a gray one of fewer, which Pillow does not write."""
    height, width = values.shape[:2]
    kind = {2: 4, 3: 2, 4: 6}[values.shape[2]] if values.ndim == 3 else 0
    lines = [row.astype(">u2").tobytes() for row in values]
    if bits < 8:
        packed = values.reshape(height, -1, 8 // bits).astype(int) @ (1 << np.arange(8 - bits, -1, -bits))
        lines = [row.astype(np.uint8).tobytes() for row in packed]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels, photometric, extra=None, planar=False, order="<", subfile=None, following=()):
    """An uncompressed TIFF of pixels (H, W, bands), page after page. extra: ExtraSamples. following: (pixels, NewSubfileType) of pages."""
    content, links = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4), [4]
    for values, kind in ((pixels, subfile), *following):
        height, width, bands = values.shape
        stored = values.transpose(2, 0, 1) if planar else values
        size = values.dtype.itemsize
        start = len(content)
        content += stored.astype(values.dtype.newbyteorder(order)).tobytes()
        bits_at = len(content)
        content += struct.pack(f"{order}{bands}H", *[8 * size] * bands)
        parts_at, each = len(content), height * width * size
        strips = [(start + band * each, each) for band in range(bands)] if planar else [(start, each * bands)]
        for column in zip(*strips):
            content += struct.pack(f"{order}{len(strips)}I", *column)
        content += b"\0" * (len(content) % 2)
        one = len(strips) == 1

        def short(value, second=0):
            return struct.pack(f"{order}HH", value, second)

        def long(value):
            return struct.pack(f"{order}I", value)

        tags = {
            256: (4, 1, long(width)), 257: (4, 1, long(height)), 259: (3, 1, short(1)), 262: (3, 1, short(photometric)),
            258: (3, bands, long(bits_at) if bands > 2 else short(8 * size, 8 * size * (bands - 1))),
            273: (4, len(strips), long(strips[0][0] if one else parts_at)), 277: (3, 1, short(bands)), 278: (4, 1, long(height)),
            279: (4, len(strips), long(strips[0][1] if one else parts_at + 4 * len(strips))), 284: (3, 1, short(2 if planar else 1)),
        }  # fmt: skip
        if kind is not None:
            tags[254] = (4, 1, long(kind))
        if extra:
            tags[338] = (3, len(extra), short(*extra))
        content = content[: links[-1]] + struct.pack(f"{order}I", len(content)) + content[links[-1] + 4 :]
        content += struct.pack(f"{order}H", len(tags))
        for tag, (form, count, value) in sorted(tags.items()):
            content += struct.pack(f"{order}HHI", tag, form, count) + value
        links.append(len(content))
        content += bytes(4)
    return content


def noise(bands, dtype=np.uint8, height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, bands), dtype, endpoint=True)


def readers(root, content):
    """Ways to read a file, as image and as mask: in a folder (as .png: the content decides), from rows, streamed, by mscl-demo."""
    root.mkdir()
    (root / "file.png").write_bytes(content)
    for number in range(2):
        save(picture(number), root / "a" / "images" / f"{number}.png")
        save(labels([0, 1]), root / "b" / "masks" / f"{number}.png")
        for place in (root / "a" / "masks", root / "b" / "images"):
            place.mkdir(exist_ok=True)
            (place / f"{number}.png").write_bytes(content)
    rows = stored_rows(2).remove_columns("image").add_column("image", [{"bytes": content, "path": None}] * 2)
    rows.cast_column("image", datasets.Image()).save_to_disk(root / "rows")
    return {
        "image of a folder": lambda: load_data("folder", "train", root / "b", num_classes=2).read(0),
        "mask of a folder": lambda: load_data("folder", "train", root / "a", num_classes=2).read(0),
        "mask, classes sought": lambda: load_data("folder", "train", root / "a"),
        "rows": lambda: load_data("hf", "train", root / "rows", num_classes=3).read(0),
        "stream": lambda: next(load_data("hf", "train", root / "rows", num_classes=3, streaming=True).batches(0, 1, [0])),
        "page": lambda: read_image(str(root / "file.png"), 1280),
    }


REJECTED = {
    "2 bands": (tiff(noise(2), GRAY), r"is a TIFF of 2 bands \(gray, no band declared as alpha\); expected 1 .* 3 \(RGB\)"),
    "4 bands of gray": (tiff(noise(4), GRAY), "is a TIFF of 4 bands"),
    "5 bands": (tiff(noise(5), GRAY), "is a TIFF of 5 bands"),
    "8 bands": (tiff(noise(8), GRAY), "is a TIFF of 8 bands"),
    "8 bands of 16 bits": (tiff(noise(8, np.uint16), GRAY), "is a TIFF of 8 bands"),
    "RGB and another": (tiff(noise(4), RGB, (0,)), r"is a TIFF of 4 bands \(RGB, no band declared as alpha\)"),
    "RGB and another, not declared": (tiff(noise(4), RGB), "is a TIFF of 4 bands"),
    "RGB and two others": (tiff(noise(5), RGB, (0, 0)), "is a TIFF of 5 bands"),
    "RGBA and another": (tiff(noise(5), RGB, (2, 0)), "is a TIFF of 5 bands"),
    "RGB and another, band by band": (tiff(noise(4), RGB, (0,), planar=True), "is a TIFF of 4 bands"),
    "CMYK and another": (tiff(noise(5), CMYK, (0,)), "is a TIFF of 5 bands"),
    "big-endian": (tiff(noise(5), RGB, (0, 0), order=">"), "is a TIFF of 5 bands"),
    "64-bit": (tiff(noise(1, np.uint64), GRAY), r"is a TIFF of 1 band\(s\) of 64 bits .*which Pillow cannot read; expected 8-bit"),
    "16-bit colors, band by band": (tiff(noise(3, np.uint16), RGB, planar=True), "is a TIFF of 16 bits that stores one band after another"),
    "three pages": (tiff(noise(1), GRAY, following=[(noise(1), None), (noise(1), 0)]), "is a TIFF of 3 pages; expected one image"),
}


def animation(form):
    frames = [picture(number) for number in range(3)]
    file = BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


for name in ("GIF", "PNG", "WEBP"):
    REJECTED[f"animated {name}"] = animation(name), f"is an animated {name} of 3 frames; expected one image"


@pytest.mark.parametrize("name", REJECTED)
def test_files_of_which_a_part_would_be_lost_are_rejected(tmp_path, name, capfd):
    """Bands and pages are never lost silently, as image or mask, from a folder, rows, a stream or mscl-demo; nothing else is printed."""
    content, message = REJECTED[name]
    for way, read in readers(tmp_path / "data", content).items():
        with pytest.raises(ValueError, match=message) as raised:
            read()
        assert "none of JPEG" not in str(raised.value) and str(raised.value).count(". ") <= 1, way
        assert way == "page" or isinstance(raised.value, BadSample)
    assert "samples per pixel" not in capfd.readouterr().err


ACCEPTED = {
    "gray": (tiff(noise(1), GRAY), "L"),
    "gray and alpha": (tiff(noise(2), GRAY, (2,)), "LA"),
    "RGB": (tiff(noise(3), RGB), "RGB"),
    "RGB, band by band": (tiff(noise(3), RGB, planar=True), "RGB"),
    "RGBA": (tiff(noise(4), RGB, (2,)), "RGBA"),
    "RGBA, band by band": (tiff(noise(4), RGB, (2,), planar=True), "RGBA"),
    "CMYK": (tiff(noise(4), CMYK), "CMYK"),
    "big-endian": (tiff(noise(3), RGB, order=">"), "RGB"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_tiffs_of_known_bands_are_read_whole(name):
    """Gray, RGB, both with a declared alpha band, and CMYK."""
    content, mode = ACCEPTED[name]
    found = decode(None, content)
    bands = noise(len(found.getbands()))
    assert found.mode == mode and np.array_equal(np.asarray(found).reshape(bands.shape), bands)


@pytest.mark.parametrize("kind", [1, 5, 4])
def test_thumbnails_and_reduced_copies_are_no_pages(kind):
    """Pages that NewSubfileType declares as reduced, or as a transparency mask, behind the image or in front of it."""
    small = noise(1, height=3, width=4)
    for content in (
        tiff(noise(1), GRAY, following=[(small, kind), (small[:2], kind)]),
        tiff(small, GRAY, subfile=kind, following=[(noise(1), 0), (small[:2], kind)]),
    ):
        assert np.array_equal(np.asarray(decode(None, content)), noise(1)[:, :, 0])


def test_a_chain_of_pages_that_ends_in_itself():
    """Its pages are counted once."""
    content = bytearray(tiff(noise(1), GRAY))
    content[-4:] = content[4:8]  # the next page is the first one
    assert np.array_equal(np.asarray(decode(None, bytes(content))), noise(1)[:, :, 0])


@pytest.mark.parametrize("form", ["TIFF", "PNG", "GIF", "WEBP"])
def test_one_frame_saved_as_a_sequence_is_an_image(form):
    """A file that could hold several and holds one."""
    file = BytesIO()
    picture().save(file, form, save_all=True)
    assert decode(None, file.getvalue()).size == (8, 6)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_png_colors_of_16_bits_keep_them(bands):
    """Pillow has no mode for them, and reads the high bytes."""
    values = noise(bands, np.uint16)
    assert np.array_equal(decode(None, sixteen_bit_png(values)), values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands, extra", [(3, None), (4, (2,))])
def test_tiff_colors_of_16_bits_keep_them(tmp_path, order, bands, extra):
    """In either byte order, uncompressed and compressed, from bytes and from a file."""
    values = noise(bands, np.uint16)
    plain = tiff(values, RGB, extra, order=order)
    (tmp_path / "x.tif").write_bytes(plain)
    assert np.array_equal(decode(None, plain), values) and np.array_equal(decode(tmp_path / "x.tif"), values)
    TiffImagePlugin.READ_LIBTIFF = True  # as compressed files are read
    try:
        assert np.array_equal(decode(None, plain), values)
    finally:
        TiffImagePlugin.READ_LIBTIFF = False


def test_damaged_tiffs_are_bad_samples(tmp_path):
    """Truncated anywhere, or with any byte changed: an image, or one error with a sentence."""
    whole = tiff(noise(3, height=2, width=2), RGB, following=[(noise(3, height=2, width=2), 1)])
    rng = np.random.default_rng(0)
    spoiled = [whole[:end] for end in range(0, len(whole), 7)]
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(4, len(whole))] = rng.integers(256)
        spoiled.append(bytes(content))
    save(picture(), tmp_path / "x.png")
    data = load_data("folder", "train", tmp_path)
    for content in spoiled:
        (tmp_path / "x.png").write_bytes(content)
        try:
            data.read(0)
        except BadSample as error:
            assert str(tmp_path / "x.png") in str(error)


def test_a_tiff_that_ends_early_is_called_damaged(tmp_path):
    """It is not reported as a format that Pillow cannot read."""
    (tmp_path / "x.png").write_bytes(tiff(noise(3), RGB)[:160])
    with pytest.raises(BadSample, match=r"x.png cannot be read as an image \(it is a damaged TIFF without the tags of its image\)"):
        load_data("folder", "train", tmp_path).read(0)


def test_a_link_to_itself_is_a_broken_file(tmp_path):
    """It is listed as a broken link, which the check of the data reports, and hides nothing else."""
    (tmp_path / "a.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.png").touch()
    assert [path.name for path in list_images(tmp_path).images] == ["a.png", "b.png", "loop.png"]
    assert subfolders(tmp_path) == ["inner"]


@pytest.mark.parametrize("folder", [Path("."), Path("/"), Path("/data/images"), Path("images")], ids=str)
def test_names_are_paths_below_the_folder(folder):
    """Without their suffix, and with it where two files differ in nothing else; a folder with a dot in its name keeps it."""
    images = [folder / name for name in ("a.png", "b.c/a.png", "twice.jpg", "twice.png", "b.c/no_suffix")]
    assert unique_names(images, folder) == ["a", "b.c/a", "twice.jpg", "twice.png", "b.c/no_suffix"]


@pytest.mark.parametrize(("folder", "image"), [("images", "images2/a.png"), (".", "/a.png"), ("/data", "data/a.png"), ("/data", "/a.png")])
def test_an_image_outside_of_the_folder_has_no_name(folder, image):
    with pytest.raises(ValueError, match=f"the image {image} lies outside of the folder {folder}"):
        unique_names([Path(folder) / "b.png", Path(image)], Path(folder))


def test_files_are_listed_by_name(tmp_path):
    """Files are listed before those of sub-folders, each in the order of their names; hidden files and named pipes are not listed."""
    for name in ("b.png", "a.png", "inner/c.png", ".hidden.png", "@eaDir/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    assert [str(path.relative_to(tmp_path)) for path in visible_files(tmp_path)] == ["a.png", "b.png", "inner/c.png"]
