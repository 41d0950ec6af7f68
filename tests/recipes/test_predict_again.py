"""mscl-predict again: broken files, what an earlier run has written, rejected options, several processes, signals."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import load_recipe, rejected, run
from PIL import Image
from test_predict import NAMES, mask_files, rows_of, save_model, save_scenes, statuses

from mscl_hf.data.synthetic import draw_scene
from mscl_hf.evaluation import PredictionPipeline
from mscl_hf.models.loading import open_model
from mscl_hf.models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.records.files import replacing


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_broken_files_are_skipped_and_predicted_later(tmp_path, model, capsys):
    """They are named, the others are predicted, and the exit status is an error; the same command predicts them when they are repaired."""
    images, out = save_scenes(tmp_path / "photos", "a.png", "b.png", "c.png", "d.png"), tmp_path / "out"
    intact = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(intact[:500])
    (images / "d.png").write_text("no image")
    flags = ("--model", model, "--images", images, "--output-dir", out)
    message = rejected("predict", *flags)
    assert message.startswith("2 of 4 images were not predicted: ") and "b.png" in message and "d.png" in message
    printed = capsys.readouterr().out
    assert printed.count("skipped: ") == 2 and "b.png cannot be read" in printed
    assert mask_files(out) == ["a.png", "c.png"] and len(rows_of(out / "predictions.csv")) == 2
    assert [Path(row["image"]).name for row in rows_of(out / "failed.csv")] == ["b.png", "d.png"]
    (images / "b.png").write_bytes(intact)
    (images / "d.png").unlink()
    before = (out / "masks" / "a.png").stat().st_mtime_ns
    assert statuses(*flags) is None and "2 of 3 images were predicted before" in capsys.readouterr().out
    assert (out / "masks" / "a.png").stat().st_mtime_ns == before
    assert mask_files(out) == ["a.png", "b.png", "c.png"] and not (out / "failed.csv").exists()
    assert [Path(row["image"]).name for row in rows_of(out / "predictions.csv")] == ["a.png", "b.png", "c.png"]


def test_only_what_is_missing_is_predicted(tmp_path, model):
    """Also images that changed, masks that are damaged, and outputs that were not asked for before; the table is the same."""
    images, out = save_scenes(tmp_path / "photos", *(f"{letter}.png" for letter in "abcde")), tmp_path / "out"
    flags = ("--model", model, "--images", images, "--output-dir", out)
    result = predict(*flags, "--overlays")
    assert result.skipped == 0 and len(result.images) == 5 and result.classes == NAMES and not result.failed
    table = (out / "predictions.csv").read_text()
    times = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    (out / "masks" / "b.png").unlink()
    (out / "overlays" / "c.png").unlink()
    (out / "masks" / "d.png").write_bytes((out / "masks" / "d.png").read_bytes()[:100])
    os.utime(images / "e.png")
    result = predict(*flags, "--overlays")
    assert result.skipped == 1 and len(result.images) == 5 and (out / "predictions.csv").read_text() == table
    assert [path.name for path in times if path.stat().st_mtime_ns == times[path]] == ["a.png"]
    assert predict(*flags).skipped == 5
    assert predict(*flags, "--confidence").skipped == 0 and (out / "confidence" / "a.png").is_file()
    save_scenes(images, "a.png", "f.png")
    assert predict(*flags).skipped == 4  # a.png was written anew


def predict(*flags):
    """Call predict() of the recipe, as from Python."""
    recipe, results = load_recipe("predict"), []
    run("predict", *flags, predict=lambda config, call=recipe.predict: results.append(call(config)) or results[0])
    return results[0]


@pytest.mark.parametrize(("changes", "words"), [
    (("--flip",), "--flip: false -> true"), (("--base-size", 32), "--base-size: as in training -> 32"),
    (("--images", "b"), "--images"), (("--model", "other"), "--model"),
])  # fmt: skip
def test_another_model_or_other_options_are_rejected(tmp_path, model, monkeypatch, changes, words):
    """Masks of two models or options are never mixed in one folder; the message names the option and the remedy."""
    monkeypatch.chdir(tmp_path)
    save_scenes(tmp_path / "a", "a.png")
    save_scenes(tmp_path / "b", "a.png")
    save_model(tmp_path / "other", seed=1)
    run("predict", "--model", model, "--images", "a", "--output-dir", "out")
    mask = (tmp_path / "out" / "masks" / "a.png").read_bytes()
    message = rejected("predict", "--model", model, "--images", "a", "--output-dir", "out", *changes)
    assert words in message and "give another --output-dir" in message and "resume" not in message
    assert (tmp_path / "out" / "masks" / "a.png").read_bytes() == mask


def test_new_weights_in_the_same_folder_are_rejected(tmp_path):
    """Models are compared by their contents."""
    images, out = save_scenes(tmp_path / "photos", "a.png"), tmp_path / "out"
    flags = ("--model", save_model(tmp_path / "model"), "--images", images, "--output-dir", out)
    run("predict", *flags)
    save_model(tmp_path / "model", seed=1)
    assert "the contents of" in rejected("predict", *flags)


def test_an_output_folder_inside_the_images(tmp_path, model):
    """Its pictures are never predicted, also when the command runs again."""
    images = save_scenes(tmp_path / "photos", "a.jpg", "a.png", "b/a.jpg")
    flags = ("--model", model, "--images", images, "--output-dir", images / "out", "--overlays", "--confidence")
    for _ in range(2):
        run("predict", *flags)
        assert mask_files(images / "out") == ["a.jpg.png", "a.png.png", "b/a.png"]
    message = rejected("predict", "--model", model, "--images", images, "--output-dir", images)
    assert "is not empty and holds no run" in message


def test_wrong_models_and_images(tmp_path, model):
    """A pre-trained model, one with too many classes, one that returns NaN, no images, images that do not exist."""
    images, out = save_scenes(tmp_path / "photos", "a.png"), tmp_path / "out"
    flags = ("--images", images, "--output-dir", out)
    pretrained = save_model(tmp_path / "pretrained", network_cls=MsclForPreTraining)
    assert "which has no trained classifier" in rejected("predict", "--model", pretrained, *flags)
    many = save_model(tmp_path / "many", names=[f"class {i}" for i in range(256)])
    assert "--model has 256 classes; expected at most 255" in rejected("predict", "--model", many, *flags)
    network = open_model(MsclForSemanticSegmentation, str(model))
    torch.nn.init.constant_(network.classifier.bias, float("nan"))
    network.save_pretrained(tmp_path / "broken")
    assert "returns NaN or infinity" in rejected("predict", "--model", tmp_path / "broken", *flags)
    assert "--images is missing" in rejected("predict", "--model", model, "--output-dir", tmp_path / "none")
    assert "does not exist" in rejected("predict", "--model", model, "--images", "nowhere", "--output-dir", tmp_path / "none")
    assert "Give --images" in rejected("predict", "--model", model, "--input", images)
    assert "one at a time" in rejected("predict", "--model", model, "--batch-size", 4)
    assert "--image-range is 5; expected two whole numbers" in rejected("predict", "--model", model, *flags, "--image-range", 5)


def test_images_of_more_than_8_bits(tmp_path):
    """The range of the model scales them, and another --image-range is rejected."""
    model, images = save_model(tmp_path / "model", image_range=[0, 4095]), tmp_path / "photos"
    images.mkdir()
    gray = draw_scene(0, "val", 0, 48, 64)[0][:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 16).save(images / "deep.png")
    Image.fromarray((gray.astype(np.float32) * 16 * 255 / 4095).round().astype(np.uint8)).save(images / "flat.png")
    run("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "out")
    deep, flat = (np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png")) for name in ("deep", "flat"))
    assert (deep == flat).mean() > 0.95
    message = rejected("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "b", "--image-range", 0, 65535)
    assert "--image-range is 0 65535; expected 0 4095" in message


def test_an_image_that_is_too_large_for_the_network_at_once(tmp_path, model, monkeypatch):
    """It is skipped with the option that predicts it."""
    images = save_scenes(tmp_path / "photos", "a.png")
    monkeypatch.setattr("mscl_hf.evaluation.prediction.MAX_WHOLE", 1000)
    assert "1 of 1 images were not predicted" in rejected("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "out")
    assert "a.png would be 85 x 64 px for the network" in rows_of(tmp_path / "out" / "failed.csv")[0]["reason"]
    flags = ("--mode", "slide", "--window", 32, "--output-dir", tmp_path / "slide")
    run("predict", "--model", model, "--images", images, *flags)


def test_too_little_memory_on_the_gpu(tmp_path, model, monkeypatch):
    """The command ends with the options that need less."""
    def fails(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("mscl_hf.evaluation.prediction.predict_ids", fails)
    images = save_scenes(tmp_path / "photos", "a.png")
    message = rejected("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "out")
    assert "a.png needs more memory than the GPU has. Give --eval-batch-size 1; if that is not enough, --mode slide or a smaller" in message


def test_files_are_written_atomically(tmp_path):
    """An error while a file is written leaves neither the file nor a temporary one, and keeps an earlier one."""
    path = tmp_path / "sub" / "mask.png"
    for content in (None, "earlier"):
        with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
        assert (path.read_text() if path.exists() else None) == content
        assert [file.name for file in path.parent.iterdir()] == ["mask.png"] * (content is not None)
        with replacing(path) as temporary:
            temporary.write_text("earlier")


def test_two_processes_write_the_files_of_one(tmp_path, model, recipe):
    """Each image is predicted once, the table is whole, and a broken image on the second process ends the command with an error."""
    images = save_scenes(tmp_path / "photos", *(f"{letter}.png" for letter in "abcdefg"))
    (images / "d.png").write_text("no image")
    outputs = []
    for processes in (1, 2):
        out = tmp_path / f"of{processes}"
        done = recipe("predict", "--model", model, "--images", images, "--output-dir", out, "--overlays", processes=processes, check=False)
        assert done.returncode == 1, done.stderr[-2000:]
        assert "1 of 7 images were not predicted" in done.stderr and done.stdout.count("skipped: ") == 1
        assert done.stdout.count("predicted: 6 of 7 images") == 1
        outputs.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".png", ".csv")})
    assert outputs[0] == outputs[1] and len(outputs[0]) == 6 + 6 + 4  # masks, overlays, tables and legend
    shutil.rmtree(tmp_path / "of2" / "masks")
    save_scenes(tmp_path / "repaired", "a.png", "b.png", "c.png", "d.png")
    shutil.copy(tmp_path / "repaired" / "d.png", images / "d.png")
    done = recipe("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "of2", "--overlays", processes=2)
    assert len(rows_of(tmp_path / "of2" / "predictions.csv")) == 7 and not (tmp_path / "of2" / "failed.csv").exists()


def test_a_stopped_command_continues(tmp_path, model):
    """SIGTERM between two images ends it with status 75; the first is written, and the same command then predicts the others only."""
    images, out = save_scenes(tmp_path / "photos", "a.png", "b.png", "c.png"), tmp_path / "out"
    flags, calls = ("--model", model, "--images", images, "--output-dir", out), []
    whole = PredictionPipeline._predict

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionPipeline, "_predict", stops)
        assert statuses(*flags) == 75
    assert mask_files(out) == ["a.png"] and not (out / "predictions.csv").exists()
    assert predict(*flags).skipped == 1 and len(rows_of(out / "predictions.csv")) == 3
