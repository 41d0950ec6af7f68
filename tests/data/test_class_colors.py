"""Masks of colors: a table in any of its forms gives the ids of the id masks bit for bit, or one sentence."""

import json
from pathlib import Path

import datasets
import harness
import numpy as np
import pytest
from fuzz import TEXT, fuzzed, stated
from hypothesis import strategies as st
from PIL import Image
from test_data import labels, picture, save

from mscl_hf.config import DataConfig
from mscl_hf.data import UnknownSplit, check_data, label_fields, load_data, with_colors_of_model
from mscl_hf.data.class_colors import color_table, read_colors
from mscl_hf.models import MsclConfig

pytestmark = pytest.mark.usefixtures("own_caches")

COLORS = {"sky": (0, 0, 0), "road": (128, 64, 128), "car, blue": (0, 0, 142)}
VOID = (224, 224, 192)
FORMS = {
    "plain.csv": 'sky,0,0,0\nroad,128,64,128\n"car, blue",0,0,142\n',
    "header.csv": '\ufeffname, r, g, b\nsky, 0, 0, 0\nroad, 128, 64, 128\n"car, blue", 0, 0, 142\n',
    "columns.csv": "Red;Green;Blue;Class\n0;0;0;sky\n128;64;128;road\n0;0;142;car, blue\n",
    "object.json": json.dumps(COLORS),
    "list.json": json.dumps([{"name": name, "color": color} for name, color in COLORS.items()]),
    "bands.json": json.dumps([{"name": name, "r": r, "g": g, "b": b} for name, (r, g, b) in COLORS.items()]),
    "hex.json": json.dumps({"classes": [{"title": name, "color": f"#{bytes(color).hex()}"} for name, color in COLORS.items()]}),
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:0,0,0::\nroad:128,64,128::\ncar, blue:0,0,142::\n",
}
IDS = np.resize(np.array([0, 1, 2, 1], np.uint8), (6, 8))


def colored(ids, void=None):
    """(H, W, 3) uint8: the ids in their colors; where `void`, a color without a class."""
    colors = np.array([*COLORS.values()], np.uint8)[ids]
    if void is not None:
        colors[void] = VOID
    return colors


def folder(root, mode="RGB", count=3, void=None):
    for number in range(count):
        save(picture(number), root / "images" / f"{number}.png")
        mask = Image.fromarray(colored(IDS, void))
        save(mask.quantize(8) if mode == "P" else mask.convert(mode), root / "masks" / f"{number}.png")
    return root


@pytest.mark.parametrize("form", FORMS)
def test_tables_in_every_form(tmp_path, form):
    """CSV with and without a header, JSON of objects and lists, hexadecimal colors, label maps: the classes in their order."""
    (tmp_path / form).write_text(FORMS[form], encoding="utf-8")
    assert read_colors(tmp_path / form) == list(COLORS.items())
    data = load_data("folder", "train", folder(tmp_path / "data"), class_colors=tmp_path / form)
    assert data.classes == tuple(COLORS) and all(np.array_equal(data.read(index).mask, IDS) for index in range(3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors_are_read_however_they_are_stored(tmp_path, mode):
    """RGB, with opaque alpha, and the colors of a palette, whatever its indices; from a folder, a list, rows and a stream."""
    root = folder(tmp_path / "data", mode)
    (tmp_path / "data" / "list.csv").write_text("image,mask\n" + "".join(f"images/{i}.png,masks/{i}.png\n" for i in range(3)))
    rows = datasets.Dataset.from_dict({part: [str(root / part / f"{i}.png") for i in range(3)] for part in ("images", "masks")})
    rows.cast_column("images", datasets.Image()).cast_column("masks", datasets.Image()).save_to_disk(tmp_path / "rows")
    for data in (
        load_data("folder", "train", root, class_colors=COLORS),
        load_data("list", "train", root / "list.csv", class_colors=COLORS),
        load_data("hf", "train", tmp_path / "rows", class_colors=COLORS),
    ):
        assert data.classes == tuple(COLORS) and all(np.array_equal(data.read(i).mask, IDS) for i in range(3))
        assert check_data(data)[1] == []
    stream = load_data("hf", "train", tmp_path / "rows", class_colors=COLORS, streaming=True)
    assert np.array_equal(next(stream.batches(0, 1, [0]))[0][0].mask, IDS)


def test_colors_without_a_class(tmp_path):
    """An error with their shares and both remedies; ignored by the option, and by the name __ignore__; no other pixel changes."""
    void = np.zeros_like(IDS, bool)
    void[0] = True
    root = folder(tmp_path, void=void)
    data = load_data("folder", "train", root, class_colors=COLORS)
    with pytest.raises(ValueError, match=r"does not name: \(224, 224, 192\) 16.7%. .*--ignored-colors 224,224,192"):
        check_data(data)
    expected = np.where(void, 255, IDS)
    for options in ({"ignored_colors": ["224,224,192"]}, {"class_colors": COLORS | {"__ignore__": VOID}}):
        data = load_data("folder", "train", root, **{"class_colors": COLORS} | options)
        assert data.classes == tuple(COLORS) and np.array_equal(data.read(0).mask, expected)


def test_unknown_colors_of_all_masks_are_named(tmp_path):
    """Not only those of the first mask."""
    root = folder(tmp_path)
    for number, color in ((0, (1, 2, 3)), (1, (4, 5, 6))):
        save(Image.new("RGB", (8, 6), color), root / "masks" / f"{number}.png")
    with pytest.raises(ValueError, match="2 of the 3 samples .*for all of them: .*--ignored-colors 1,2,3 4,5,6, or give --max-bad-images"):
        check_data(load_data("folder", "train", root, class_colors=COLORS))


def test_anti_aliased_masks_of_colors_are_rejected(tmp_path):
    """With and without a table, by their many colors; never matched to the nearest one."""
    root = folder(tmp_path, count=2)
    for number in range(2):
        blocks = np.kron(np.random.default_rng(number).integers(0, 3, (5, 5)), np.ones((4, 4), int))
        save(Image.fromarray(colored(blocks)).resize((47, 47), Image.Resampling.BICUBIC), root / "masks" / f"{number}.png")
        save(picture(number, 47, 47), root / "images" / f"{number}.png")
    for options in ({}, {"class_colors": COLORS}):
        with pytest.raises(ValueError, match="anti-aliasing"):
            check_data(load_data("folder", "train", root, **options))


def test_the_suggested_table_can_be_used(tmp_path):
    """The error without a table holds one that, saved as a file, reads the masks."""
    root = folder(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_data("folder", "train", root)
    text = str(caught.value)
    (tmp_path / "colors.json").write_text(text[text.index("{") : text.index("}") + 1])
    data = load_data("folder", "train", root, class_colors=tmp_path / "colors.json")
    assert data.num_classes == 3 and check_data(data)[1] == []


BAD = {
    "sky,0,0,300": "line 1 of .*expected R,G,B", "sky,0,0": "line 1 of .*no name with three numbers", "": "is empty",
    "a,1,2,3\nb,1,2,3": "have the color", "{": "not valid JSON", "[{}]": "no name in entry 1", "{}": "names no color",
    '{"a": [1, 2]}': "expected R,G,B", '{"a": [1, 2, true]}': "expected R,G,B", '{"": [1, 2, 3]}': "with the name ''",
    "name,x,y,z\na,1,2,3": "has the columns", "__ignore__,1,2,3": "with 0 classes",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_tables_that_cannot_be_read(tmp_path, text):
    """One sentence that names the line or entry."""
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        color_table(tmp_path / "table.csv")
    assert "\n" not in str(caught.value)


@fuzzed(text=st.one_of(TEXT, st.binary(max_size=40)))
def test_random_tables(tmp_path_factory, text):
    """A table of at least one class, or one sentence."""
    path = tmp_path_factory.mktemp("colors") / "table"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    with stated():
        table = color_table(path)
        assert table.classes and all(id < len(table.classes) or id == 255 for id in table.ids.values())


def test_options_that_contradict_a_table(tmp_path):
    """Label maps, other names, colors to ignore without a table, and a file that does not exist."""
    root = folder(tmp_path)
    cases = (
        ({"class_colors": COLORS, "label_map": "1:0"}, "with --label-map"), ({"class_colors": COLORS, "reduce_labels": True}, "Leave out"),
        ({"class_colors": COLORS, "classes": ["a", "b", "c"]}, "expected the same names"),
        ({"ignored_colors": ["1,2,3"]}, "without --class-colors"), ({"class_colors": "absent.csv"}, "not a file"),
        ({"class_colors": COLORS, "ignored_colors": ["0,0,0"]}, "'sky' and '__ignore__'"),
    )  # fmt: skip
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load_data("folder", "train", root, **options)


def test_colors_of_model_and_options():
    """Taken from the model and logged; an equal table stays; a color of another class is an error; ids may still be read."""
    options, lines = DataConfig(dataset="folder", class_colors=json.dumps(COLORS), ignored_colors=["224,224,192"]), []
    fields = label_fields(options)["class_colors"]
    assert fields == {"0,0,0": 0, "128,64,128": 1, "0,0,142": 2, "224,224,192": 255}
    assert MsclConfig(class_colors=fields).class_colors == fields
    taken = with_colors_of_model(DataConfig(dataset="folder"), fields, list(COLORS), lines.append)
    assert label_fields(taken)["class_colors"] == fields and "as in the model's training" in lines[0]
    assert with_colors_of_model(options, fields, list(COLORS), lines.append) == options and len(lines) == 1
    by_ids = DataConfig(dataset="folder", label_map="7:1")
    assert with_colors_of_model(by_ids, fields, list(COLORS), lines.append) == by_ids
    other = DataConfig(dataset="folder", class_colors=json.dumps({"sky": [128, 64, 128]}))
    with pytest.raises(ValueError, match="128,64,128 is 'sky'; expected 'road', as in the model's training"):
        with_colors_of_model(other, fields, list(COLORS))


@pytest.mark.parametrize("value", [{"1,2": 0}, {"1,2,256": 0}, {"1,2,3": 256}, {"a": 1}])
def test_colors_of_an_untrusted_configuration(value):
    """Only colors and ids."""
    with pytest.raises(ValueError, match="class_colors"):
        MsclConfig(class_colors=value)


@pytest.mark.parametrize("size", [(16, 12), (4, 3), (24, 18)])
def test_masks_of_another_size_are_resized_when_asked(tmp_path, size):
    """By nearest neighbor, to the image's size; without the option the error names it; another aspect is always an error."""
    ids = np.resize(np.array([0, 1, 1, 2], np.uint8), (size[1], size[0]))
    save(picture(0, 6, 8), tmp_path / "images" / "0.png")
    save(Image.fromarray(ids), tmp_path / "masks" / "0.png")
    with pytest.raises(ValueError, match="Give --resize-masks"):
        check_data(load_data("folder", "train", tmp_path))
    data = load_data("folder", "train", tmp_path, resize_masks=True)
    assert np.array_equal(data.read(0).mask, np.asarray(Image.fromarray(ids).resize((8, 6), Image.Resampling.NEAREST)))
    save(labels([0, 1, 2], 6, 12), tmp_path / "masks" / "0.png")
    with pytest.raises(ValueError, match="Bring both to one size"):
        check_data(load_data("folder", "train", tmp_path, resize_masks=True))


def test_a_model_keeps_the_table_of_its_training(tmp_path, capsys):
    """fine-tune with a table, evaluate without: the same masks, logged, with the result of the id masks."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for number in range(4):
            ids = np.kron(np.random.default_rng(number).integers(0, 3, (6, 8)), np.ones((8, 8), int))
            save(picture(number, 48, 64), root / "images" / split / f"{number}.png")
            save(Image.fromarray(colored(ids)), root / "masks" / split / f"{number}.png")
            save(Image.fromarray(ids.astype(np.uint8)), root / "ids" / split / f"{number}.png")
    (tmp_path / "classes.csv").write_text(FORMS["plain.csv"])
    flags = ("--dataset", "folder", "--data-dir", root)
    short = ("--batch-size", 2, "--max-steps", 1, "--warmup-steps", 0, "--dataloader-num-workers", 0)
    table = ("--class-colors", tmp_path / "classes.csv")
    harness.run("pretrain", *harness.TINY, *short, "--method", "none", *flags, *table, "--output-dir", tmp_path / "start")
    harness.run("finetune", "--model", tmp_path / "start", *flags, *table, *short, "--output-dir", tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["class_colors"] == {"0,0,0": 0, "128,64,128": 1, "0,0,142": 2}
    scores = {}
    capsys.readouterr()
    ids = ("--mask-dir", root / "ids", "--label-map", "0:0")
    for name, more in {"colors": (), "table": table, "ids": ids}.items():
        harness.run("evaluate_model", "--model", tmp_path / "tuned", *flags, *more, "--split", "val", "--output-dir", tmp_path / name)
        scores[name] = json.loads((tmp_path / name / "results.json").read_text())["per_class_iou"]
        assert ("as in the model's training: --class-colors" in capsys.readouterr().out) == (name == "colors")
    assert scores["colors"] == scores["table"] == scores["ids"]


def test_the_case_of_colors(cases):
    """The ids of the plain masks bit for bit."""
    plain = load_data("folder", "train", cases / "plain")
    table = Path(cases / "rgb_masks" / "classes.csv")
    data = load_data("folder", "train", cases / "rgb_masks", class_colors=table, ignored_colors=["224,224,192"])
    assert len(data) == 6 and all(np.array_equal(data.read(i).mask, plain.read(i).mask) for i in range(6))
    with pytest.raises(ValueError, match=r"\(224, 224, 192\) .*--ignored-colors 224,224,192"):
        check_data(load_data("folder", "train", cases / "rgb_masks", class_colors=table))


def cvat_export(root, splits):
    """"Segmentation mask 1.1" of CVAT. splits: {name of a list: numbers of its images}."""
    for numbers in splits.values():
        for number in numbers:
            save(picture(number), root / "JPEGImages" / f"{number}.jpg")
            save(Image.fromarray(colored(IDS)), root / "SegmentationClass" / f"{number}.png")
            save(Image.fromarray(colored(IDS)), root / "SegmentationObject" / f"{number}.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, numbers in splits.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{number}\n" for number in numbers))
    (root / "labelmap.txt").write_text(FORMS["labelmap.txt"])
    return root


def test_segmentation_masks_of_cvat(tmp_path):
    """The export as it is: its label map is the table, which the error without it names; its lists are the splits."""
    root = cvat_export(tmp_path / "one", {"default": range(3)})
    with pytest.raises(ValueError, match=f"palette or gray.. Give --class-colors {root}/labelmap.txt"):
        load_data("folder", "train", root)
    data = load_data("folder", "train", root, class_colors=root / "labelmap.txt")
    assert data.classes == tuple(COLORS) and len(data) == 3 and check_data(data)[1] == []
    with pytest.raises(UnknownSplit):
        load_data("folder", "val", root, class_colors=root / "labelmap.txt")
    root = cvat_export(tmp_path / "two", {"Train": range(3), "Validation": range(3, 5)})
    for split, names in (("train", ["0", "1", "2"]), ("val", ["3", "4"])):
        data = load_data("folder", split, root, class_colors=root / "labelmap.txt")
        assert data.names == names == load_data("folder", split, root, unlabelled=True).names and np.array_equal(data.read(0).mask, IDS)
    (root / "JPEGImages" / "4.jpg").unlink()
    with pytest.raises(ValueError, match="Validation.txt lists 1 images that .* does not hold: 4"):
        load_data("folder", "val", root, class_colors=root / "labelmap.txt")
