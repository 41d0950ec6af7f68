"""Masks in many formats: read as the intended ids, or one error with a remedy."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image
from test_data import labels, picture, save, stored_rows
from test_files import sixteen_bit_png

from mscl_hf.data import BadSample, check_data, load_data
from mscl_hf.data.image_io import decode
from mscl_hf.data.pixels import index_array, rgb_array

pytestmark = pytest.mark.usefixtures("own_caches")

IDS = np.resize(np.array([0, 1, 2, 255], np.uint8), (6, 8))


def folder(root, store, suffix="png", count=3):
    """`count` pairs; store(path): writes a mask."""
    for number in range(count):
        save(picture(number), root / "images" / f"{number}.png")
        (root / "masks").mkdir(exist_ok=True)
        store(root / "masks" / f"{number}.{suffix}")
    return root


def saved_rows(root, mask):
    """A data set of `datasets` whose masks are these encoded bytes."""
    rows = stored_rows(3).remove_columns("mask").add_column("mask", [{"bytes": mask, "path": None}] * 3)
    rows.cast_column("mask", datasets.Image()).save_to_disk(root)
    return root


def reads(root, mask):
    """How a mask file is read: in a folder with and without classes, whole from rows, and streamed."""
    pairs = folder(root / "folder", lambda path: path.write_bytes(mask))
    rows = saved_rows(root / "rows", mask)
    return {
        "folder": lambda: load_data("folder", "train", pairs).read(0).mask,
        "named classes": lambda: load_data("folder", "train", pairs, num_classes=3).read(0).mask,
        "rows": lambda: load_data("hf", "train", rows).read(0).mask,
        "streamed": lambda: next(load_data("hf", "train", rows, num_classes=3, streaming=True).batches(0, 1, [0]))[0][0].mask,
    }


def encoded(tmp_path, mask, suffix, **options):
    mask.save(tmp_path / f"mask.{suffix}", **options)
    return (tmp_path / f"mask.{suffix}").read_bytes()


def banded(ids, *others):
    return Image.fromarray(np.stack([ids, *others], axis=2))


OPAQUE = np.full_like(IDS, 255)
FORMS = {
    "RGB": (banded(IDS, IDS, IDS), "png"),
    "RGBA": (banded(IDS, IDS, IDS, OPAQUE), "png"),
    "LA": (Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(OPAQUE)]), "png"),
    "palette": (Image.fromarray(IDS).convert("P"), "png"),
    "GIF": (Image.fromarray(IDS), "gif"),
    "16-bit": (Image.fromarray(IDS.astype(np.uint16)), "png"),
    "16-bit TIFF": (Image.fromarray(IDS.astype(np.uint16)), "tif"),
    "RGB TIFF": (banded(IDS, IDS, IDS), "tif"),
    "lossless WebP": (banded(IDS, IDS, IDS), "webp"),
    "BMP": (banded(IDS, IDS, IDS), "bmp"),
}


@pytest.mark.parametrize("form", FORMS)
def test_gray_in_any_lossless_form_is_read_as_ids(tmp_path, form):
    """R = G = B, opaque alpha, palette, GIF, 16 bits: the ids of the gray mask, however the mask is read."""
    mask, suffix = FORMS[form]
    data = encoded(tmp_path, mask, suffix, **({"lossless": True} if suffix == "webp" else {}))
    for way, read in reads(tmp_path, data).items():
        assert np.array_equal(read(), IDS), way


def test_gray_stored_as_16_bit_colors_is_read_as_ids(tmp_path):
    """RGB and RGBA of 16 bits, and gray with alpha, for which Pillow itself has 8 bits only."""
    wide = IDS.astype(np.uint16)
    opaque = np.full_like(wide, 65535)
    for bands in ([wide] * 3, [wide] * 3 + [opaque], [wide, opaque]):
        path = save_bytes(tmp_path / f"{len(bands)}", sixteen_bit_png(np.stack(bands, axis=2)))
        assert np.array_equal(load_data("folder", "train", path, num_classes=3).read(0).mask, IDS)


def save_bytes(root, mask):
    return folder(root, lambda path: path.write_bytes(mask), count=1)


@pytest.mark.parametrize("bits", [2, 4])
def test_ids_of_gray_masks_of_few_bits_are_not_multiplied(tmp_path, bits):
    """Pillow shows gray of 2 and 4 bits multiplied by 85 and 17, and PGM with a maximum of 20 by 12.75: the stored ids are read."""
    ids = np.resize(np.array([0, 1, 2], np.uint8), (6, 8))
    few = sixteen_bit_png(ids, bits)
    assert np.array_equal(load_data("folder", "train", save_bytes(tmp_path / "png", few)).read(0).mask, ids)
    plain = b"P5 8 6 %d\n" % (20 if bits == 2 else 1000)
    pgm = plain + (ids.tobytes() if bits == 2 else ids.astype(">u2").tobytes())
    root = folder(tmp_path / "pgm", lambda path: path.write_bytes(pgm), "pgm")
    assert np.array_equal(load_data("folder", "train", root).read(0).mask, ids)


LOSSY = {
    "JPEG": ("jpg", {}, "is a JPEG, which changes ids"),
    "WebP": ("webp", {}, "is a lossy WebP, which changes ids"),
    "WebP with alpha": ("webp", {}, "is a lossy WebP, which changes ids"),
    "TIFF": ("tif", {"compression": "jpeg"}, "is a TIFF with JPEG compression, which changes ids"),
}


@pytest.mark.parametrize("form", LOSSY)
def test_lossy_masks_are_rejected(tmp_path, form):
    """By the content of the file, whatever its name (here: .png), with the remedy; before training, however the mask is read."""
    suffix, options, message = LOSSY[form]
    mask = banded(IDS, IDS, IDS, np.arange(48, dtype=np.uint8).reshape(6, 8)) if "alpha" in form else Image.fromarray(IDS)
    for way, read in reads(tmp_path, encoded(tmp_path, mask, suffix, **options)).items():
        with pytest.raises(BadSample, match=f"mask.*{message} along edges; expected a lossless format. Export the masks again.*PNG"):
            read()
        assert way


def test_one_lossy_mask_among_many_is_left_to_the_check(tmp_path):
    """It counts as one bad image, which --max-bad-images allows, and the classes are still inferred."""
    root = folder(tmp_path, lambda path: Image.fromarray(IDS).save(path), count=5)
    Image.fromarray(IDS).save(root / "masks" / "2.png", "JPEG")
    good, bad = check_data(load_data("folder", "train", root), max_bad_images=1)
    assert good == [0, 1, 3, 4] and "2.png is a JPEG" in bad[0]


def test_masks_of_colors_are_one_error_with_the_colors(tmp_path):
    """It names a file, the mode, and the colors of all masks with their shares, the most common ones first; the remedy exists."""
    colors = np.zeros((6, 8, 3), np.uint8)
    colors[:3] = 128, 0, 0
    root = folder(tmp_path, lambda path: Image.fromarray(colors).save(path), count=2)
    colors[:] = 0, 0, 128
    Image.fromarray(colors).save(root / "masks" / "1.png")
    shares = r"\(0, 0, 128\) 50.0%, \(0, 0, 0\) 25.0%, \(128, 0, 0\) 25.0%"
    with pytest.raises(BadSample, match=rf"masks/0.png has mode RGB with colors, and the 2 masks read hold {shares}; .*--class-colors"):
        load_data("folder", "train", root)
    with pytest.raises(BadSample, match=r"masks/1.png has mode RGB with colors, and it holds \(0, 0, 128\) 100.0%"):
        load_data("folder", "train", root, num_classes=3).read(1)


def test_at_most_a_dozen_colors_are_listed(tmp_path):
    """Such as photos that were read as masks."""
    root = folder(tmp_path, lambda path: picture(7).save(path), count=1)
    color = r"\(\d+, \d+, \d+\) 2.1%"
    with pytest.raises(BadSample, match=f"mode RGB with colors, and it holds ({color}, ){{11}}{color} and others"):
        load_data("folder", "train", root)


def test_gif_masks_of_colors_are_rejected(tmp_path):
    """Colors of a GIF are numbered anew in every file, so an index means different classes in different files."""
    mask = Image.fromarray(np.resize(np.array([0, 2], np.uint8), (6, 8)))
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    data = encoded(tmp_path, mask, "gif")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "mask.gif")))) == {0, 1}  # id 2 is lost
    for way, read in reads(tmp_path, data).items():
        with pytest.raises(BadSample, match=r"has mode P of GIF with colors, and .*\(0, 128, 0\) 50.0%"):
            read()
        assert way


def test_alpha_that_is_not_opaque_is_rejected(tmp_path):
    """Transparent pixels have no id."""
    half = Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(IDS)])
    with pytest.raises(BadSample, match="0.png has an alpha band that is not opaque everywhere; .*Store it as gray or palette"):
        load_data("folder", "train", folder(tmp_path, half.save))


@pytest.mark.parametrize("ids, remedy", [((0, 127, 255), "127:1"), ((0, 3, 200), "3:1,200:2"), ((1, 2), "1:0,2:1"), ((0, 1, 3), "3:2")])
def test_ids_with_gaps_are_listed(tmp_path, ids, remedy):
    """No class is made for an id that no mask holds; the suggested label map helps, and so does a number of classes."""
    root = folder(tmp_path, labels(ids).save)
    listed = ", ".join(map(str, ids))
    with pytest.raises(ValueError, match=rf'the ids {listed} .*expected 0, 1, 2.*--label-map "{remedy}".*--num-classes or --classes'):
        load_data("folder", "train", root)
    data = load_data("folder", "train", root, label_map=remedy)
    assert data.num_classes == len(set(ids) - {255}) and check_data(data)[1] == []
    assert load_data("folder", "train", root, num_classes=201).num_classes == 201
    rows = save(labels(ids), tmp_path / "mask.png").read_bytes()
    with pytest.raises(ValueError, match=f"the ids {listed} "):
        load_data("hf", "train", saved_rows(tmp_path / "rows", rows))


def test_ids_with_gaps_behind_a_label_map(tmp_path):
    """The message names the stored ids and what the label map makes of them."""
    with pytest.raises(ValueError, match=r"the ids 0, 7, which are class ids 0, 3 by --label-map .*Give --label-map \"7:1\" instead"):
        load_data("folder", "train", folder(tmp_path, labels((0, 7)).save), label_map="7:3")


@pytest.mark.parametrize("bits, compression", [(1, 1), (1, 4), (2, 1), (4, 1), (8, 1), (8, 32946)])
def test_tiff_in_which_zero_is_white(tmp_path, bits, compression):
    """Its masks give the stored ids, which Pillow inverts and scales; its images stay as Pillow shows them."""
    ids = np.resize(np.array([0, 1, 1, 0] if bits == 1 else [0, 1, 2, 0], np.uint8), (8, 8))
    path = tmp_path / "mask.tif"
    path.write_bytes(white_is_zero(ids, bits, compression))
    opened = Image.open(path)
    assert opened.tag_v2[262] == 0 and np.asarray(opened).max() == (1 if bits == 1 else 255)
    assert np.array_equal(index_array(decode(path), str), ids)
    gray = np.rint(255 - ids * (255 / (2**bits - 1))).astype(np.uint8)
    assert np.array_equal(rgb_array(decode(path), str)[:, :, 0], gray)


def white_is_zero(ids, bits, compression):
    """A TIFF of stored ids (8, 8) uint8 with PhotometricInterpretation 0; compression 4 is CCITT fax, 32946 deflate, 1 none."""
    rows = np.unpackbits(ids[:, :, None], axis=2)[:, :, -bits:].reshape(8, -1)
    data = np.packbits(rows, axis=1).tobytes()
    if compression == 4:  # Pillow inverts what it writes too
        file = io.BytesIO()
        Image.fromarray(ids == 0).save(file, "TIFF", compression="group4", tiffinfo={262: 0})
        return file.getvalue()
    data = zlib.compress(data) if compression == 32946 else data
    tags = {256: 8, 257: 8, 258: bits, 259: compression, 262: 0, 273: 8, 277: 1, 278: 8, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    place = 8 + len(data) + len(data) % 2
    return struct.pack("<2sHI", b"II", 42, place) + data.ljust(place - 8, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)
