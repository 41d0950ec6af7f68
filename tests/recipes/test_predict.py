"""mscl-predict: its files, the scores of its masks, resuming, broken files, several processes."""

import contextlib
import csv
import json
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import run
from PIL import Image, ImageOps

from mscl_hf.config import InferenceConfig, PredictConfig
from mscl_hf.data.image_file import pixel_limit
from mscl_hf.data.synthetic import draw_scene
from mscl_hf.evaluation import MeanIoU, image_prediction, prediction_files
from mscl_hf.evaluation.inference import predict_logits
from mscl_hf.models.backbones import build_config
from mscl_hf.models.loading import open_model
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from mscl_hf.models.normalization import image_statistics, normalize
from mscl_hf.visual.palette import class_colors

NAMES = ("mask", "<b>wood</b>", "river, sea")


def save_model(folder: Path, names=NAMES, network_cls=MsclForSemanticSegmentation, seed: int = 0, **fields) -> Path:
    """Save a random network that predicts several classes."""
    config = build_config("test_resnet", image_size=64, decoder_channels=16, num_labels=len(names))
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    network = network_cls(config).eval()
    if network_cls is MsclForSemanticSegmentation:
        network.classifier.weight.data.normal_()
        with torch.no_grad():  # the mean logit becomes 0 for every class, so that each class occurs
            pixels = torch.tensor(draw_scene(0, "val", 0, 64, 85)[0]).permute(2, 0, 1)[None]
            network.classifier.bias -= network(normalize(pixels, *image_statistics(config))).logits.mean(dim=(0, 2, 3))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def save_scenes(folder: Path, *names: str, size: tuple[int, int] = (48, 64), **options) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(0, "val", seed, *size)[0]).save(folder / name, **options)
    return folder


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logits_of(model: Path, file: Path, **options) -> torch.Tensor:
    """Slow reference: the logits of an upright image, by the public function."""
    network = open_model(MsclForSemanticSegmentation, str(model)).eval()
    with Image.open(file) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    mean, std = (np.float32(values) for values in (network.config.image_mean, network.config.image_std))
    normalized = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(2, 0, 1)[None]
    return predict_logits(network, normalized, pixels.shape[:2], InferenceConfig(base_size=64, **options))[0]


def statuses(*flags) -> str | int | None:
    """The exit status of the command: its message, or None."""
    try:
        run("predict", *flags)
    except SystemExit as ended:
        return ended.code
    return None


def mask_files(out: Path) -> list[str]:
    return sorted(path.relative_to(out / "masks").as_posix() for path in (out / "masks").rglob("*") if path.is_file())


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": [0.75, 1.0]}, {"mode": "slide", "window": 40, "stride": 24}])
def test_files_of_an_image(tmp_path, model, options):
    """Mask, overlay, confidence, probabilities and both tables, against the logits of the same options."""
    images, out = save_scenes(tmp_path / "photos", "a.png", "sub/b.png"), tmp_path / "out"
    flags = []
    for name, value in options.items():
        flags += [f"--{name}", *(value if isinstance(value, list) else [] if value is True else [value])]
    run("predict", "--model", model, "--images", images, "--output-dir", out, "--overlays", "--confidence", "--probabilities", *flags)
    colors, rows = class_colors(NAMES), rows_of(out / "predictions.csv")
    assert [row["image"] for row in rows] == [str(images / "a.png"), str(images / "sub" / "b.png")]
    for name, row in zip(("a", "sub/b"), rows):
        logits = logits_of(model, images / f"{name}.png", **options)
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (64, 48)
            ids, rgb = np.asarray(mask), np.asarray(mask.convert("RGB"))
        assert (ids == logits.argmax(0).numpy()).mean() > 0.999 and (options or len(np.unique(ids)) > 1)
        assert (rgb == colors[ids]).all()
        with np.load(out / "probabilities" / f"{name}.npz") as stored:
            probabilities = stored["probabilities"]
        assert probabilities.dtype == np.float16 and probabilities.shape == (48, 64, 3)
        np.testing.assert_allclose(probabilities.transpose(2, 0, 1), logits.softmax(0).numpy(), atol=1e-3)
        confidence = np.asarray(Image.open(out / "confidence" / f"{name}.png"))
        np.testing.assert_allclose(confidence / 255, logits.softmax(0).amax(0).numpy(), atol=3e-3)
        overlay, image = (np.asarray(Image.open(file)).astype(float) for file in (out / "overlays" / f"{name}.png", images / f"{name}.png"))
        assert np.abs(overlay - (0.5 * (image / 2 + 64) + 0.5 * colors[ids])).max() <= 1
        assert row["mask"] == f"masks/{name}.png" and (row["width"], row["height"]) == ("64", "48")
        shares = [float(row[f"share_{class_name}"]) for class_name in NAMES]
        assert shares == [round((ids == i).mean(), 6) for i in range(3)]
    assert [(row["id"], row["name"]) for row in rows_of(out / "classes.csv")] == [(str(i), name) for i, name in enumerate(NAMES)]
    assert [row["color"] for row in rows_of(out / "classes.csv")] == ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7, 8])
def test_the_mask_fits_the_file(tmp_path, model, orientation):
    """The network sees the image upright; mask, confidence and probabilities have the file's size, pixel order and orientation."""
    images, out = tmp_path / "photos", tmp_path / "out"
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_scenes(images, "a.png", exif=exif)
    run("predict", "--model", model, "--images", images, "--output-dir", out, "--overlays", "--confidence", "--probabilities")
    logits = logits_of(model, images / "a.png")
    for kind, expected in (("masks", logits.argmax(0).numpy()), ("confidence", (logits.softmax(0).amax(0) * 255).round().numpy())):
        with Image.open(out / kind / "a.png") as picture:
            assert picture.size == (64, 48) and picture.getexif().get(0x0112, 1) == orientation
            turned = np.asarray(ImageOps.exif_transpose(picture)).astype(int)
        assert turned.shape == expected.shape and (np.abs(turned - expected) <= (kind == "confidence")).mean() > 0.999
    with Image.open(out / "masks" / "a.png") as mask, np.load(out / "probabilities" / "a.npz") as stored:
        assert (stored["probabilities"].argmax(2) == np.asarray(mask)).mean() > 0.99
    with Image.open(out / "overlays" / "a.png") as overlay:
        assert overlay.size == ((48, 64) if orientation >= 5 else (64, 48)) and overlay.getexif().get(0x0112, 1) == 1


def test_large_images_are_predicted_in_bands(tmp_path, model, monkeypatch):
    """Beyond the limit of a map, the files are those of the whole map."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = save_scenes(tmp_path / "photos", "a.png", size=(60, 90), exif=exif)
    flags = ("--images", images, "--mode", "slide", "--window", 40, "--base-size", 0, "--confidence", "--probabilities", "--overlays")
    run("predict", "--model", model, *flags, "--output-dir", tmp_path / "whole")
    monkeypatch.setattr("mscl_hf.evaluation.prediction.MAX_MAP", 1)
    monkeypatch.setattr("mscl_hf.evaluation.bands.BAND", 500)
    monkeypatch.setattr(prediction_files, "PIXELS_AT_ONCE", 500)
    run("predict", "--model", model, *flags, "--output-dir", tmp_path / "bands")
    for kind in ("masks", "confidence", "overlays"):
        assert (tmp_path / "whole" / kind / "a.png").read_bytes() == (tmp_path / "bands" / kind / "a.png").read_bytes(), kind
    first, second = (np.load(tmp_path / name / "probabilities" / "a.npz")["probabilities"] for name in ("whole", "bands"))
    assert (first == second).all()


def camvid_part(source: Path, folder: Path, step: int) -> Path:
    """Return a copy of CamVid whose splits have every step-th image."""
    for split in ("train", "val", "test"):
        lines = (source / f"{split}.txt").read_text().splitlines()[::step]
        for name in (split, f"{split}annot"):
            (folder / name).mkdir(parents=True)
        for line in lines:
            for name in (split, f"{split}annot"):
                for file in (source / name).glob(f"{Path(line.split()[0]).stem}*"):
                    shutil.copy(file, folder / name / file.name)
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def scored(out: Path, masks: list[Path], true_masks: list[np.ndarray], classes: int) -> dict:
    metric = MeanIoU()
    for path, truth in zip(masks, true_masks, strict=True):
        metric.add_batch(predictions=[np.asarray(Image.open(path))], references=[truth])
    return metric.compute(num_labels=classes, ignore_index=255)


@pytest.mark.parametrize("flags", [
    (), ("--flip", "--scales", 0.75, 1.25), ("--mode", "slide", "--window", 160),
    ("--mode", "slide", "--window", 160, "--window-weights", "uniform", "--base-size", 240, "--mixed-precision", "bf16"),
], ids=str)  # fmt: skip
def test_masks_have_the_scores_of_the_evaluation(tmp_path, real_data, flags):
    """The mean IoU of the masks of CamVid's test images is that of mscl-evaluate with the same options, digit for digit."""
    from mscl_hf.data import load_data

    folder = camvid_part(real_data / "CamVid", tmp_path / "CamVid", 16)
    data = load_data("camvid", "test", folder)
    model, out = save_model(tmp_path / "model", names=data.classes), tmp_path / "predict"
    run("evaluate_model", "--model", model, "--dataset", "camvid", "--data-dir", folder, "--output-dir", tmp_path / "scores",
        "--pictures", 0, *flags)  # fmt: skip
    run("predict", "--model", model, "--images", folder / "test", "--output-dir", out, *flags)
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    samples = {Path(name).stem: data.read(i).mask for i, name in enumerate(data.names)}
    masks = sorted((out / "masks").iterdir())
    metrics = scored(out, masks, [samples[path.stem] for path in masks], data.num_classes)
    assert len(masks) == len(data) > 10
    assert metrics["mean_iou"] == results["mean_iou_all_classes"] and metrics["overall_accuracy"] == results["overall_accuracy"]
    assert list(metrics["per_category_iou"]) == list(results["per_class_iou"].values())


@pytest.mark.slow
def test_memory_of_a_large_image(tmp_path, recipe):
    """12,000 x 8,000 px and 20 classes by windows: the process needs less than 3.5 GiB, where the whole map alone has 7.2 GiB."""
    images, out = tmp_path / "photos", tmp_path / "out"
    images.mkdir()
    Image.fromarray(np.tile(draw_scene(0, "val", 0, 500, 500)[0], (16, 24, 1))).save(images / "large.jpg")
    model = save_model(tmp_path / "model", names=[f"class {i}" for i in range(20)])
    flags = ("--mode", "slide", "--window", 512, "--base-size", 0, "--overlays", "--confidence")
    recipe("predict", "--model", model, "--images", images, "--output-dir", out, *flags, timeout=1200)
    with pixel_limit(10**8), Image.open(out / "masks" / "large.png") as mask:
        assert mask.size == (12000, 8000)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3.5 * 2**20  # KiB


def test_configuration_is_complete():
    """Defaults make a configuration, so that other commands can list the options of this one."""
    config = PredictConfig()
    assert config.run.images == [] and config.inference == InferenceConfig()


def test_threads_share_the_pixel_limit(tmp_path, model, monkeypatch):
    """With two threads that decode at the same time, every image below --max-pixels is predicted, and Pillow's limit is restored."""
    before, both = Image.MAX_IMAGE_PIXELS, threading.Barrier(2)
    read = image_prediction.read_image_file

    def meeting(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.5)
        return read(*arguments)

    monkeypatch.setattr(image_prediction, "read_image_file", meeting)
    images = save_scenes(tmp_path / "photos", *(f"{number}.png" for number in range(12)))
    run("predict", "--model", model, "--images", images, "--output-dir", tmp_path / "out", "--max-pixels", 10**4)
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 12 and before == Image.MAX_IMAGE_PIXELS
