"""The labels of the masks decide what can be trained and measured: too few classes end a run before its first step, gaps are warnings that
stay with the figures, and how masks are read belongs to the model."""

import json
from functools import partialmethod
from pathlib import Path

import datasets
import harness
import numpy as np
import pytest
from PIL import Image
from test_data import stored_rows
from test_recipes import BRIEF, no_sleep, write_folder  # noqa: F401 (a fixture)

from mscl_hf import MsclConfig
from mscl_hf.config import DataConfig
from mscl_hf.data import BadSample, check_data, label_checks, label_fields, label_warnings, load_data, with_labels_of_model
from mscl_hf.data.cache import with_cache
from mscl_hf.data.dataset import LabelCounts
from mscl_hf.data.label_checks import compared_rows, shared_images
from mscl_hf.data.label_map import make_table
from mscl_hf.data.splits import open_held_out, open_split, usable
from mscl_hf.data.stream import SegmentationStream
from mscl_hf.models.loading import open_segmenter

QUIET = {"draw_training": lambda *_: None}


def mask_of(ids, dtype=np.uint8) -> np.ndarray:
    """(48, 64), the ids in stripes of equal width."""
    return np.broadcast_to(np.array(ids, dtype)[np.arange(64) * len(ids) // 64], (48, 64)).copy()


def write_masks(root: Path, dtype=np.uint8, **ids_of_splits) -> Path:
    """images/SPLIT and masks/SPLIT with four images each. ids_of_splits: the ids in every mask of the split."""
    for number, (split, ids) in enumerate(ids_of_splits.items()):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([number, i]).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            pixels[..., 0] = mask_of(ids, np.int64) % 251
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask_of(ids, dtype)).save(root / "masks" / split / f"{i}.png")
    return root


def write_parquet(root: Path, **ids_of_splits) -> Path:
    """The same data as parquet files."""
    write_masks(root / "files", **ids_of_splits)
    for split in ids_of_splits:
        columns = {c: [str(root / "files" / f"{c}s" / split / f"{i}.png") for i in range(4)] for c in ("image", "mask")}
        rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
        (root / "parquet").mkdir(exist_ok=True)
        rows.to_parquet(root / "parquet" / f"{split}-00000-of-00001.parquet")
    return root / "parquet"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A network to start from."""
    out = tmp_path_factory.mktemp("start") / "model"
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", out, **QUIET,
                draw_features=lambda *_: None)  # fmt: skip
    return out


def folder_flags(root: Path, *more) -> tuple:
    return ("--dataset", "folder", "--data-dir", root, *BRIEF, *more)


TOO_FEW = {
    "0 and 255, names": ((0, 255), ("--classes", "background", "car"), ("only 'background' is labelled", "--label-map 255:1")),
    "0 and 255, a number": ((0, 255), ("--num-classes", 2), ("255 is the ignored label", "--label-map 255:1")),
    "0 and 255, nothing given": ((0, 255), (), ("255 is the ignored label", "--label-map 255:1")),
    "0 and 255, reduced": ((0, 255), ("--reduce-labels",), ("they hold the ids 0, 255", "--reduce-labels does not ignore")),
    "0 and 255, reduced, a number": ((0, 255), ("--reduce-labels", "--num-classes", 2),
                                     ("no pixel is labelled", "Leave out --reduce-labels", "--label-map 255:1")),
    "0 and 1, reduced": ((0, 1), ("--reduce-labels",), ("only 'class_0' is labelled", "Leave out --reduce-labels")),
    "0 and 1, reduced, names": ((0, 1), ("--reduce-labels", "--classes", "a", "b"), ("only 'a' is labelled", "Leave out --reduce-labels")),
    "255 alone": ((255,), ("--num-classes", 2), ("hold the ids 255", "no pixel is labelled")),
    "255 alone, nothing given": ((255,), (), ("the classes cannot be inferred from the masks: they hold the ids 255, and 255 is the",)),
    "one id": ((1,), ("--num-classes", 3), ("only 'class_1' is labelled", "Give more masks")),
    "everything mapped away": ((0, 1), ("--label-map", "0:255,1:255", "--num-classes", 2),
                               ("no pixel is labelled", "--label-map is 0:255,1:255", "Correct --label-map")),
    "both mapped to one": ((0, 7), ("--label-map", "7:0", "--num-classes", 2), ("only 'class_0' is labelled", "Correct --label-map")),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_FEW)
def test_masks_that_leave_fewer_than_two_classes(tmp_path, start, case):
    """With one class every prediction is right: an error names the ids, the cause and the flag, before anything is written."""
    ids, flags, says = TOO_FEW[case]
    data = folder_flags(write_masks(tmp_path / "data", train=ids), "--val-split", "none", *flags)
    for recipe, more in (("finetune", ("--model", start)), ("pretrain", harness.TINY)):
        message = harness.rejected(recipe, *more, *data, "--output-dir", tmp_path / recipe)
        assert all(part in message for part in says), message
        assert {path.name for path in (tmp_path / recipe).iterdir()} == {"run.json", ".lock"}
    # Runs that read no masks are not affected.
    if case == "255 alone":
        harness.run("pretrain", *harness.TINY, *data, "--losses", "g+l", "--output-dir", tmp_path / "g", pictures=False)


def test_black_and_white_masks_with_the_suggested_label_map(tmp_path, start, capsys):
    """Both classes are trained and scored."""
    root = write_masks(tmp_path / "data", train=(0, 255), val=(0, 255))
    flags = ("--model", start, *folder_flags(root, "--classes", "background", "car", "--label-map", "255:1"))
    harness.run("finetune", *flags, "--output-dir", tmp_path / "out", **QUIET)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert f"mean IoU on val: {results['mean_iou']:.4f} (over 2 of 2 classes)" in capsys.readouterr().out
    assert set(results["per_class_iou"]) == {"background", "car"} and None not in results["per_class_iou"].values()


@pytest.fixture
def short_start(monkeypatch):
    """Only the first two rows of a stream are examined."""
    monkeypatch.setattr(SegmentationStream, "first_rows", partialmethod(SegmentationStream.first_rows, limit=2))


@pytest.mark.usefixtures("no_sleep")
@pytest.mark.parametrize("streaming", [(), ("--streaming",)])
def test_stored_and_streamed_masks_are_counted_too(tmp_path, start, streaming):
    """Unmapped 255 ends the run; all rows of a short stream are counted."""
    data = ("--dataset", "hf", "--data-dir", write_parquet(tmp_path / "data", train=(0, 255)), "--num-classes", 2, *BRIEF, *streaming)
    message = harness.rejected("finetune", "--model", start, *data, "--val-split", "none", "--output-dir", tmp_path / "out")
    assert "the 4 masks" in message or not streaming
    assert "hold the ids 0, 255" in message and message.endswith("give --label-map 255:1.")


@pytest.mark.usefixtures("no_sleep", "short_start")
def test_first_rows_of_a_stream_that_255_explains(tmp_path, start):
    """Unmapped 255 ends the run; 255:255 in the label map allows it."""
    data = ("--dataset", "hf", "--data-dir", write_parquet(tmp_path / "data", train=(0, 255)), "--num-classes", 2, *BRIEF, "--streaming")
    flags = ("--model", start, *data, "--val-split", "none", "--output-dir", tmp_path / "out")
    message = harness.rejected("finetune", *flags)
    assert "the first 2 masks" in message and "if it is to be ignored, give --label-map 255:255" in message
    harness.run("finetune", *flags, "--label-map", "255:255", pictures=False)


@pytest.mark.usefixtures("no_sleep", "short_start")
def test_first_rows_of_one_class_are_a_warning(tmp_path, start, capsys):
    """Other rows may hold more classes; if all held-out masks hold that class too, the run ends before its first step."""
    data = ("--dataset", "hf", "--data-dir", write_parquet(tmp_path / "data", train=(0,), validation=(0,)), "--num-classes", 2)
    flags = ("--model", start, *data, "--streaming", *BRIEF, "--output-dir", tmp_path / "out")
    harness.run("finetune", *flags, "--val-split", "none", pictures=False)
    assert "warning: 1 of 2 classes occur in none of the first 2 masks of parquet/train: class_1" in capsys.readouterr().out
    message = harness.rejected("finetune", *flags[:-1], tmp_path / "other")
    assert "the first 2 masks of parquet/train and all of parquet/validation hold only the class 'class_0'" in message


@pytest.mark.usefixtures("no_sleep")
def test_a_stream_of_one_class_is_an_error(tmp_path, start):
    """A stream that was read to its end is treated like data that is not streamed."""
    root = write_parquet(tmp_path / "data", train=(0,))
    data = ("--dataset", "hf", "--data-dir", root, "--num-classes", 2, "--streaming", *BRIEF, "--val-split", "none")
    message = harness.rejected("finetune", "--model", start, *data, "--output-dir", tmp_path / "out")
    assert "the 4 masks of parquet/train hold the ids 0, and only 'class_0' is labelled" in message
    stream = load_data("hf", "train", root, num_classes=2, streaming=True)
    assert [(len(rows), complete) for rows, complete in map(stream.first_rows, (3, 4, 5))] == [(3, False), (4, True), (4, True)]


def test_small_objects_that_vanish_at_the_training_size(tmp_path, start, capsys):
    """A class that vanishes at the training size is no error and not missing in the data: a warning names the size."""
    for names, missing in (((), None), (("--num-classes", 4), "class_3")):
        root = write_masks(tmp_path / f"{len(names)}", train=(0,))
        for i, mask in enumerate(sorted((root / "masks" / "train").iterdir())):
            pixels = mask_of((0,))
            pixels[0, i], pixels[0, 40] = 1, 2  # of the rows 0 to 2, nearest neighbor keeps the middle one
            Image.fromarray(pixels).save(mask)
        flags = folder_flags(root, "--val-split", "none", "--base-size", 16, "--max-scale", 1, *names)
        harness.run("finetune", "--model", start, *flags, "--output-dir", tmp_path / f"out{len(names)}", pictures=False)
        shown = capsys.readouterr().out
        assert "warning: 2 of" in shown
        assert "are resized to 16 px on the short side: class_1, class_2; a larger --base-size keeps them" in shown
        assert "occur in none of the 4 masks of folder/train: class_3" in shown if missing else "occur in none" not in shown


def test_warnings_stay_with_the_figures(tmp_path, start, capsys):
    """Classes without a training mask, one class held out, an unused entry of the label map, an image in two splits: logged once, and kept
    in results.json, provenance.json and the card; the mean is over the classes that occur, and their number stands beside it."""
    root = write_masks(tmp_path / "data", train=(0, 1, 9), val=(1,))
    (root / "images" / "val" / "2.png").write_bytes((root / "images" / "train" / "3.png").read_bytes())
    names = ("--classes", "sky", "road", "tree", "car", "--label-map", "9:2,8:3")
    harness.run("finetune", "--model", start, *folder_flags(root, *names), "--output-dir", tmp_path / "out")
    wanted = [
        "1 of 4 classes occur in none of the 4 masks of folder/train: car",
        "only the class road is labelled in folder/val, so that the mean IoU on it compares no classes",
        "--label-map has entries whose stored id is in none of 8 masks: 8:3",
        "1 of 4 images of folder/val are also in folder/train, byte for byte: 2",
    ]
    shown = capsys.readouterr().out
    assert all(shown.count(f"warning: {sentence}\n") == 1 for sentence in wanted) and shown.count("warning:") == 4
    results, record = (json.loads((tmp_path / "out" / name).read_text()) for name in ("results.json", "provenance.json"))
    assert results["warnings"] == record["stages"][-1]["warnings"] == wanted
    scored, card = results["classes_scored"], (tmp_path / "out" / "README.md").read_text()
    assert scored == sum(iou is not None for iou in results["per_class_iou"].values()) < results["num_classes"] == 4
    assert f"mean IoU on val: {results['mean_iou']:.4f} (over {scored} of 4 classes)\n" in shown
    assert f"| mean IoU over {scored} of 4 classes |" in card and record["evaluations"][0]["classes_scored"] == scored
    assert all(sentence.split(":")[0][1:] in card for sentence in wanted)
    never = results["never_labelled_classes"]
    assert not never or f"never labelled, with IoU 0 each: {', '.join(never)}" in shown


def test_palettes_that_differ_are_a_warning(tmp_path):
    """An id with different colors is likely to be different classes; colors of ids that do not occur are not compared."""
    root = write_masks(tmp_path, train=(0, 1, 2))
    options = DataConfig(dataset="folder", data_dir=str(root))
    for changed, count in ((7, 0), (2, 1)):
        for i in range(4):
            mask, colors = Image.fromarray(mask_of((0, 1, 2))), np.arange(768) // 3
            mask.putpalette(np.where((colors == changed) & (i == 3), 99, colors).tolist())
            mask.save(root / "masks" / "train" / f"{i}.png")
        warnings = label_warnings([usable(open_split(options, "train"), options)], None, options)
        assert len(warnings) == count
    stated = "palette masks of folder/train give the id 2 different colors: (2, 2, 2) in "
    assert stated in warnings[0] and "0.png, (99, 99, 99) in " in warnings[0] and "3.png; ids are read, not colors" in warnings[0]


def test_nothing_is_warned_of_where_nothing_is_amiss(tmp_path, start, capsys):
    """All classes in both splits, no image twice."""
    root = write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    harness.run("finetune", "--model", start, *folder_flags(root), "--output-dir", tmp_path / "out", **QUIET)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "warning" not in capsys.readouterr().out and results["warnings"] == []
    assert results["classes_scored"] == results["num_classes"] == 2


def test_held_out_masks_without_a_label(tmp_path, start, capsys):
    """All 255: the mean is undefined, with a warning before training; null, status 0, a model with pictures and a card, never 0 or 1."""
    root = write_masks(tmp_path / "data", train=(0, 1), val=(255,))
    harness.run("finetune", "--model", start, *folder_flags(root), "--output-dir", tmp_path / "out")
    shown = capsys.readouterr().out
    said = shown.index("warning: no pixel of folder/val is labelled, so that the mean IoU on it is undefined")
    assert said < shown.index("fine-tuned model:") < shown.index("mean IoU on val: undefined, because no pixel is labelled")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [results[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "classes_scored")] == [None, None, None, 0]
    assert {"model.safetensors", "predictions.png", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "| - | - | - |" in (tmp_path / "out" / "README.md").read_text()
    measure = ("--model", tmp_path / "out", "--dataset", "folder", "--data-dir", root, "--split", "val")
    harness.run("evaluate_model", *measure, "--output-dir", tmp_path / "measured")
    assert "mean IoU on val: undefined" in capsys.readouterr().out
    assert json.loads((tmp_path / "measured" / "results.json").read_text())["mean_iou"] is None


def test_pretraining_warns_too(tmp_path, capsys):
    """About labels that it reads, and about images in two splits; the record and the card have the warnings."""
    root = write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    (root / "images" / "val" / "1.png").write_bytes((root / "images" / "train" / "1.png").read_bytes())
    for losses, count in (("g+p", 2), ("g", 1)):
        out = tmp_path / losses
        harness.run("pretrain", *harness.TINY, *folder_flags(root, "--num-classes", 3), "--losses", losses, "--output-dir", out, **QUIET)
        shown, record = capsys.readouterr().out, json.loads((out / "provenance.json").read_text())
        assert shown.count("warning:") == count == len(record["stages"][0]["warnings"])
        assert ("1 of 3 classes occur in none of the 4 masks of folder/train: class_2" in shown) == (count == 2)
        assert "are also in folder/train, byte for byte: 1" in shown and "byte for byte" in (out / "README.md").read_text()


# the label map of training


def test_evaluation_reads_masks_as_training_did(tmp_path, start, capsys):
    """The label map is in config.json; without a flag it is used, and the figures are those of the fine-tuning. A map that contradicts it
    is rejected, one of other ids is a warning."""
    root = write_masks(tmp_path / "data", train=(0, 9, 2), val=(0, 9, 2))
    data = ("--dataset", "folder", "--data-dir", root)
    harness.run("finetune", "--model", start, *folder_flags(root, "--label-map", "9:1"), "--output-dir", tmp_path / "tuned", **QUIET)
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["label_map"] == {"9": 1}
    measure = ("--model", tmp_path / "tuned", *data, "--split", "val")
    capsys.readouterr()
    harness.run("evaluate_model", *measure, "--output-dir", tmp_path / "same")
    shown = capsys.readouterr().out
    results, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("tuned", "same"))
    assert again["per_class_iou"] == results["per_class_iou"] and again["config"]["label_map"] == "9:1"
    assert "the masks are read as in the model's training: --label-map 9:1" in shown
    assert f"mean IoU on val: {again['mean_iou']:.4f} (over 3 of 3 classes)" in shown
    for flags in (("--label-map", "9:2"), ("--reduce-labels",)):
        message = harness.rejected("evaluate_model", *measure, *flags, "--output-dir", tmp_path / "other")
        assert "expected --label-map 9:1, as in the model's training" in message
    harness.run("evaluate_model", *measure, "--label-map", "9:1,7:2", "--output-dir", tmp_path / "more")
    warning = "warning: the masks are read by --label-map 9:1,7:2, and those of the model's training by --label-map 9:1"
    assert warning in capsys.readouterr().out


def test_reduced_labels_belong_to_the_model(tmp_path, start):
    """Likewise."""
    root = write_masks(tmp_path / "data", train=(0, 1, 2), val=(0, 1, 2))
    harness.run("finetune", "--model", start, *folder_flags(root, "--reduce-labels"), "--output-dir", tmp_path / "tuned", **QUIET)
    measure = ("--model", tmp_path / "tuned", "--dataset", "folder", "--data-dir", root, "--split", "val")
    harness.run("evaluate_model", *measure, "--output-dir", tmp_path / "same")
    results, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("tuned", "same"))
    assert again["per_class_iou"] == results["per_class_iou"] and again["config"]["reduce_labels"] is True
    assert "expected --reduce-labels, as in the model's training" in harness.rejected(
        "evaluate_model", *measure, "--label-map", "1:1", "--output-dir", tmp_path / "other"
    )
    # Fine-tuned further on masks that are read as they are, it keeps nothing of it.
    harness.run("finetune", "--model", tmp_path / "tuned", *folder_flags(root), "--output-dir", tmp_path / "next", **QUIET)
    assert (tmp_path / "next" / "config.json").is_file()
    assert MsclConfig.from_pretrained(tmp_path / "next").reduce_labels is False


def test_maps_of_model_and_options():
    """Equal in another order, of other data sets, and of data sets with labels of their own."""
    options = DataConfig(dataset="folder", label_map="7:1,9:2")
    assert with_labels_of_model(options, {"9": 2, "7": 1}, False) == (options, [])
    assert label_fields(options) == {"label_map": {"7": 1, "9": 2}, "reduce_labels": False, "class_colors": None}
    assert with_labels_of_model(DataConfig(dataset="camvid"), {"9": 2}, False)[0].label_map is None
    assert with_labels_of_model(DataConfig(dataset="hf"), {"9": 2}, False)[0].label_map == "9:2"
    assert with_labels_of_model(options, None, False)[1]


@pytest.mark.parametrize("value", [{"a": 1}, {"1": 300}, {"1": "2"}, {"1": -1}, [1], "1:2"])
def test_label_map_of_an_untrusted_configuration(value):
    """Ids or None."""
    with pytest.raises(ValueError, match="label_map"):
        MsclConfig(label_map=value)


def test_label_map_in_a_file_of_options(tmp_path, start):
    """YAML 1.1 reads 255:1 as a number to base 60; here it is a label map."""
    root = write_masks(tmp_path / "data", train=(0, 255))
    (tmp_path / "run.yaml").write_text("label_map: 255:1\n")
    flags = ("--model", start, *folder_flags(root, "--val-split", "none"), "--output-dir", tmp_path / "out")
    harness.run("finetune", "--config", tmp_path / "run.yaml", *flags, **QUIET)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_map"] == {"255": 1}


def test_ids_of_sixteen_bits_can_be_mapped(tmp_path):
    """65535 to ignored, 300 to a class; another large id is still an error that names it."""
    write_masks(tmp_path, np.uint16, train=(0, 1, 300, 65535))
    data = load_data("folder", "train", tmp_path, label_map="300:2,65535:255")
    assert data.classes == ("class_0", "class_1", "class_2")
    mask = data.read(0).mask
    assert mask.dtype == np.uint8 and mask[0, [0, 16, 32, 48]].tolist() == [0, 1, 2, 255]
    kept = with_cache(data, 0, 1.0)
    assert all(np.array_equal(kept.read(0).mask, mask) for _ in range(2))
    with pytest.raises(BadSample, match=r"\[65535\]"):
        load_data("folder", "train", tmp_path, label_map="300:2", num_classes=3).read(0)
    with pytest.raises(ValueError, match="65535"):
        load_data("folder", "train", tmp_path, label_map="300:2")
    for wrong in ("65536:1", "300:256", "1"):
        with pytest.raises(ValueError, match="0..65535"):
            make_table(wrong)


# other classes


def test_other_classes_of_the_same_number_get_a_new_classifier(tmp_path, start, capsys):
    """{background, car} tuned on {tree, sky}, and the same names in another order: new, logged and fitted; the same names go on."""
    root = write_masks(tmp_path / "data", train=(0, 1))
    flags = folder_flags(root, "--val-split", "none")
    tuned = tmp_path / "tuned"
    harness.run(
        "finetune", "--model", start, *flags, "--classes", "background", "car", "--learning-rate", 1, "--output-dir", tuned, **QUIET
    )
    for names in (("tree", "sky"), ("car", "background"), ("background", "car")):
        capsys.readouterr()
        harness.run("finetune", "--model", tuned, *flags, "--classes", *names, "--output-dir", tmp_path / "_".join(names), pictures=False)
        shown, is_new = capsys.readouterr().out, names != ("background", "car")
        assert (f"was trained on the classes background, car; the data has {', '.join(names)}" in shown) == is_new
        assert ("new classifier, fitted alone" in shown) == is_new
        network, new = open_segmenter(str(tuned), names)
        trained = open_segmenter(str(tuned), ("background", "car"))[0]
        for layer, before in ((network.classifier, trained.classifier), (network.auxiliary_head[-1], trained.auxiliary_head[-1])):
            assert new == is_new == (not np.array_equal(layer.weight.detach(), before.weight.detach()))
            assert not is_new or float(layer.weight.detach().std()) < 0.02 and not layer.bias.any()


# the parts


def test_labels_are_counted_while_masks_are_checked(tmp_path):
    """Pixels and images of each class, ignored pixels, how many of how many; bad rows count for nothing, and selections are not counted."""
    root = write_masks(tmp_path, train=(0, 1, 255, 255))
    Image.fromarray(mask_of((2,))).save(root / "masks" / "train" / "0.png")
    (root / "masks" / "train" / "3.png").write_text("no mask")
    options = DataConfig(dataset="folder", data_dir=str(root), num_classes=4, max_bad_images=1)
    data = usable(open_split(options, "train"), options, lambda text: None)
    labels, size = data.labels, 48 * 64
    assert labels.pixels.tolist() == [size // 2, size // 2, size, 0] and labels.images.tolist() == [2, 2, 1, 0]
    assert (labels.ignored, labels.read, labels.total, labels.present) == (size, 3, 3, [0, 1, 2])
    assert data.select([0]).labels is None and len(data) == 3
    some = LabelCounts(4, 4)
    check_data(load_data("folder", "train", root, num_classes=4), 1, decode_at_most=2, labels=some)
    assert some.read == 2


def test_images_in_two_splits_are_found_by_their_bytes(tmp_path):
    """Also under other names; equal names, sizes and first bytes are not enough, and drawn images are not compared."""
    root = write_masks(tmp_path / "a", train=(0, 1), val=(0, 1))
    train, val = (load_data("folder", split, root, unlabelled=True) for split in ("train", "val"))
    assert shared_images(train, val) == []
    (root / "images" / "val" / "3.png").write_bytes((root / "images" / "train" / "0.png").read_bytes())
    assert shared_images(train, val) == ["3"] and shared_images(val, train) == ["0"]
    head = (root / "images" / "train" / "1.png").read_bytes()
    (root / "images" / "train" / "1.png").write_bytes(head + b"0" * 70_000 + b"1")
    (root / "images" / "val" / "1.png").write_bytes(head + b"0" * 70_000 + b"2")
    assert shared_images(train, val) == ["3"]
    stored = write_parquet(tmp_path / "b", train=(0, 1), val=(0, 1))
    rows = [load_data("hf", split, stored, unlabelled=True) for split in ("train", "val")]
    assert shared_images(*rows) == [] and len(shared_images(rows[0], rows[0])) == 4
    drawn = load_data("synthetic", "train", scenes=4)
    assert shared_images(drawn, drawn) == []


def test_ids_above_254_name_the_label_map(tmp_path):
    """Masks of 0 and 300 cannot give their classes; with the label map that the error names they do. Ids of 32 bits have none."""
    message = r"the classes cannot be inferred from the masks: they hold the ids {} in 4 of 4 .*; expected ids in 0..254. {};"
    root = write_masks(tmp_path / "16", np.uint16, train=(0, 300))
    with pytest.raises(ValueError, match=message.format(r"0, 300 \(300", r'Give --label-map "300:1" \(N:255 ignores an id\)')):
        load_data("folder", "train", root)
    assert load_data("folder", "train", root, label_map="300:1").num_classes == 2
    for path in (root / "masks").glob("*/*.png"):
        Image.fromarray(mask_of((0, 70_000), np.int32)).save(path.with_suffix(".tif"))
        path.unlink()
    with pytest.raises(ValueError, match=message.format(r"0, 70000 \(70000", "Correct the masks")):
        load_data("folder", "train", root)


@pytest.mark.parametrize(("layout", "limit"), [("folder", "MOST_FILES"), ("hf", "MOST_STORED")])
def test_the_search_for_shared_images_is_limited(tmp_path, monkeypatch, layout, limit):
    """Of larger splits, evenly spaced rows are compared, and the warning states how many."""
    monkeypatch.setattr(label_checks, limit, 2)
    if layout == "folder":
        write_masks(tmp_path, train=(0, 1))
    else:
        stored_rows(4).save_to_disk(tmp_path)
    data = load_data(layout, "train", tmp_path, unlabelled=True)
    assert compared_rows(data) == [0, 2] and shared_images(data, data) == [data.names[0], data.names[2]]
    (warning,) = label_warnings([data], data, DataConfig(layout, str(tmp_path)))
    where = f"of 4 images of {data.name}/train"
    assert warning.startswith(f"2 {where} are also in") and warning.count(f"; 2 {where} were compared") == 2


def test_no_warning_without_held_out_masks(tmp_path):
    """For training data alone only its missing classes are reported."""
    options = DataConfig(dataset="folder", data_dir=str(write_masks(tmp_path, train=(0, 1))))
    data = usable(open_split(options, "train"), options)
    assert label_warnings([None, data], open_held_out(options, lambda text: None), options) == []
