"""Images of more than 8 bits: one range for the data set, all bits reach the network, and the range is saved with the model."""

import json
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from harness import TINY, rejected, run
from PIL import Image
from test_files import sixteen_bit_png
from transformers import AutoImageProcessor

from mscl_hf import MsclConfig, MsclForSemanticSegmentation
from mscl_hf.config import DataConfig, ViewConfig
from mscl_hf.data import BadSample, checks, load_data, open_held_out, open_training_data, with_image_range
from mscl_hf.data.cache import with_cache
from mscl_hf.data.dataset import Sample
from mscl_hf.data.image_range import check_values, stored_values
from mscl_hf.data.sampler import SamplingPlan
from mscl_hf.data.training_data import TrainingImages
from mscl_hf.demo.similarity import read_image, similarity_picture, view_of
from mscl_hf.methods import SegmentationTraining
from mscl_hf.models.backbones import build_config
from mscl_hf.transforms.color import SIZE, SLOTS, with_colors
from mscl_hf.transforms.crops import Crop, cut_image
from mscl_hf.transforms.views import TrainView, make_view

pytestmark = pytest.mark.usefixtures("own_caches")

HEIGHT, WIDTH, COUNT = 48, 64, 4
DEPTHS = {"8": (255, np.uint8, None), "8 in 16": (255, np.uint16, (0, 255)), "12 in 16": (4095, np.uint16, (0, 4095)),
          "16": (65535, np.uint16, (0, 65535))}  # fmt: skip


def frame(number):
    """A smooth gray frame (H, W) of shares 0 to 1 that reaches both."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.sin(columns / (5 + number)) + np.cos(rows / (4 + number))
    return (waves - waves.min()) / np.ptp(waves)


def stored(number, depth):
    white, dtype, _ = DEPTHS[depth]
    return np.rint(np.rint(255 * frame(number)) * white / 255).astype(dtype)


def write(root, depth, splits=("train", "val")):
    """images/ and masks/ of the same frames at any depth; class 1 is bright."""
    for split in splits:
        for number in range(COUNT):
            for place, pixels in (("images", stored(number, depth)), ("masks", (frame(number) > 0.6).astype(np.uint8))):
                (root / place / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / place / split / f"{number}.png")
    return root


def write_rows(root, depth):
    """The same as parquet that `datasets` reads, whole and streamed."""
    folder = write(root / "files", depth, ("train",))
    read = [{name: {"bytes": (folder / f"{name}s" / "train" / f"{i}.png").read_bytes(), "path": None} for name in ("image", "mask")}
            for i in range(COUNT)]  # fmt: skip
    features = datasets.Features({"image": datasets.Image(decode=False), "mask": datasets.Image(decode=False)})
    datasets.Dataset.from_list(read, features=features).to_parquet(root / "train-00000-of-00001.parquet")
    return root / "train-00000-of-00001.parquet"


def network_input(options, view):
    """The network's input for two batches, (8, 3, H, W) in levels, by image name."""
    data = open_training_data(options, view, COUNT, 0, log=lambda _: None)
    method = SegmentationTraining(tiny())
    images, names = [], []
    for batch in data.batches(0, 2):
        images.append(method.normalize(batch["image"]) * method.image_std * 255 + method.image_mean * 255)
        names += batch["name"]
    return torch.cat(images), names


def tiny(**options):
    torch.manual_seed(0)
    config = build_config("test_resnet", image_size=32, decoder_channels=16, num_labels=2, **options)
    return MsclForSemanticSegmentation(config).eval()


@pytest.mark.parametrize("way", ["folder", "cached", "rows", "streamed"])
def test_the_network_sees_the_same_frames_in_every_depth(tmp_path, way):
    """8 bits, 8 and 12 bits stored as 16, and full 16 bits: crops, colors and normalization give the same input to rounding, and the range
    that was found is logged in one line."""
    seen, view = {}, TrainView(32, 32, color_strength=0.5)
    for depth, (_, _, wanted) in DEPTHS.items():
        root, said = tmp_path / depth.replace(" ", "_"), []
        if way in ("folder", "cached"):
            options = DataConfig("folder", str(write(root, depth)), num_classes=2, image_cache_gb=float(way == "cached"))
        else:
            root.mkdir()
            options = DataConfig("hf", str(write_rows(root, depth)), num_classes=2, streaming=way == "streamed")
        if way == "streamed":
            options = replace(options, image_range=None if wanted is None else list(wanted))
        options = with_image_range(options, log=said.append)
        assert options.image_range == (None if wanted is None else list(wanted))
        if way != "streamed" and wanted:
            assert len(said) == 1 and f"image range 0 to {wanted[1]}: 4 of 4 images" in said[0] and "--image-range LOW HIGH" in said[0]
        for _ in range(2):  # the second time from the cache
            seen[depth] = network_input(options, view)
    eight, names = seen.pop("8")
    assert eight.std() > 30
    for depth, (levels, same) in seen.items():
        assert same == names, depth
        assert (levels - eight).abs().max() < 3 and (levels - eight).abs().mean() < 0.6, depth  # 8-bit crops are rounded twice
        assert (levels - seen["16"][0]).abs().max() < 0.1, depth


def test_eight_bit_data_keep_their_path(tmp_path):
    """uint8 up to the network, no range, no log line."""
    said = []
    options = with_image_range(DataConfig("folder", str(write(tmp_path, "8")), num_classes=2), log=said.append)
    assert options.image_range is None and said == []
    batch = next(open_training_data(options, TrainView(32, 32), COUNT, 0, said.append).batches(0, 1))
    assert batch["image"].dtype == torch.uint8


def test_all_bits_reach_the_network():
    """A ramp of 12 bits is cropped and normalized with all of its steps, of which 8 bits would keep a sixteenth."""
    ramp = np.arange(4096, dtype=np.float32).reshape(64, 64) * 255 / 4095
    sample = Sample(np.repeat(ramp[:, :, None], 3, 2), None, "ramp")
    crop = cut_image(sample, Crop(0, 0, 64, False), 64)
    assert crop.dtype == torch.float32 and len(crop[0].unique()) == 4096
    nothing = torch.tensor([[1.0, 0, 0] * SLOTS + [0.0] * (SIZE - 3 * SLOTS)])
    colors = with_colors({"image": crop[None], "image_color": nothing})["image"]
    assert colors.dtype == torch.float32 and (colors - crop).abs().max() < 1e-3
    assert len(SegmentationTraining(tiny()).normalize(colors)[0, 0].mul(1e4).round().unique()) > 4000


@pytest.mark.parametrize("kind, preset", [("pair", None), ("two_crop", "simclr"), ("slices", "chaitanya"), ("copy_paste", "moco_v2")])
def test_every_view_takes_such_images(tmp_path, kind, preset):
    """A batch of each, labelled and unlabelled, with two workers as without."""
    data = load_data("folder", "train", write(tmp_path, "12 in 16"), unlabelled=True, image_range=(0, 4095))
    view = make_view(kind, preset, 32, 32, ViewConfig())
    training = TrainingImages(None, with_cache(data, view.short_side, 1.0), view, 0, SamplingPlan((), tuple(range(COUNT)), 4, 0, 0))
    batches = [next(training.batches(0, 1, workers=workers)) for workers in (0, 2)]
    images = [name for name, value in batches[0].items() if isinstance(value, torch.Tensor) and value.ndim == 4]
    assert images
    for name in images:
        assert batches[0][name].dtype == torch.float32 and torch.equal(batches[0][name], batches[1][name])
        assert batches[0][name].min() >= 0 and 100 < batches[0][name].max() <= 255


@pytest.mark.parametrize("white, high", [(200, 255), (255, 255), (256, 1023), (1023, 1023), (3000, 4095), (9000, 16383), (30000, 65535)])
def test_the_range_is_that_of_the_smallest_depth(tmp_path, white, high):
    """Of 8, 10, 12, 14 and 16 bits, over all images, even if only one is bright."""
    root = write(tmp_path, "8 in 16", ("train",))
    pixels = stored(0, "8 in 16")
    pixels[0, :20] = white  # above the share of outliers
    Image.fromarray(pixels).save(root / "images" / "train" / "3.png")
    assert with_image_range(DataConfig("folder", str(root)), log=lambda _: None).image_range == [0, high]
    few = DataConfig("folder", str(root), train_count=1)  # a subset has the range of the whole
    assert with_image_range(few, log=lambda _: None).image_range == [0, high]


def deep_folder(root, frames):
    """A folder of 16-bit images alone."""
    root.mkdir()
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels.astype(np.uint16)).save(root / f"{number}.png")
    return DataConfig(dataset="folder", data_dir=str(root))


@pytest.mark.parametrize(("hot_pixels", "high"), [(3, 4095), (30, 65535)])
def test_a_few_hot_pixels_do_not_make_all_others_dark(tmp_path, hot_pixels, high):
    """Values above all depths but 16 bits count from a share of 0.001 on, here 12 of 12,288 pixels; what is clipped is logged."""
    frames, lines = [4000 * frame(number) for number in range(COUNT)], []
    frames[1].ravel()[:hot_pixels] = 65535
    options = with_image_range(deep_folder(tmp_path / "data", frames), "rest", lines.append)
    assert tuple(options.image_range) == (0, high)
    assert ("above the range and become white" in lines[0]) == (high == 4095)


def test_images_below_the_whole_range_are_an_error(tmp_path):
    """They would all be black."""
    options = deep_folder(tmp_path / "data", [4000 * frame(0)])
    data = load_data("folder", "train", options.data_dir, image_range=(5000, 9000))
    with pytest.raises(ValueError, match="all of their values, 0 to 4000, lie below the image range 5000 to 9000"):
        check_values(data)


def test_unlabelled_images_count_for_the_range(tmp_path):
    """A folder of unlabelled images has the range of the labelled ones."""
    labelled = write(tmp_path / "labelled", "8 in 16")
    further = write(tmp_path / "further", "12 in 16") / "images" / "train"
    options = DataConfig("folder", str(labelled))
    assert with_image_range(options, str(further), lambda _: None).image_range == [0, 4095]


def test_values_that_no_depth_holds_need_a_given_range(tmp_path):
    """Such as Hounsfield units: LOW HIGH maps them, and values beyond are clipped."""
    root = write(tmp_path, "8", ("train",))
    units = np.resize(np.array([-1000, 0, 1000, 3000], np.int32), (HEIGHT, WIDTH))
    for number in range(COUNT):
        (root / "images" / "train" / f"{number}.png").unlink()
        Image.fromarray(units).save(root / "images" / "train" / f"{number}.tif")
    options = DataConfig("folder", str(root), num_classes=2)
    with pytest.raises(ValueError, match="values of -1000 to 3000; expected 0 to 65535 .*--image-range LOW HIGH"):
        with_image_range(options)
    data = load_data("folder", "train", root, image_range=(-1000, 1000))
    assert data.read(0).image[0, :4, 0].tolist() == [0, 127.5, 255, 255]
    said = []
    with_image_range(replace(options, image_range=[-1000, 1000]), log=said.append)
    assert "25.00% of the values are above it and become white" in said[0]


def test_colors_of_16_bits_are_scaled_too(tmp_path):
    """Band by band by one range, of PNG and TIFF."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 3), np.uint16)
    (tmp_path / "x.png").write_bytes(sixteen_bit_png(values))
    options = with_image_range(DataConfig("folder", str(tmp_path)), log=lambda _: None)
    assert options.image_range == [0, 4095]
    image = load_data("folder", "train", tmp_path, image_range=(0, 4095)).read(0).image
    assert np.abs(image - values * (255 / 4095)).max() < 1e-4


def test_a_stream_needs_a_given_range(tmp_path):
    """Its range cannot be derived: one sentence with the flag, before the first step."""
    data = load_data("hf", "train", write_rows(tmp_path, "12 in 16"), num_classes=2, streaming=True)
    with pytest.raises(BadSample, match="holds more than 8 bits and there is no image range; .*--image-range LOW HIGH"):
        next(data.batches(0, 1, [0]))


@pytest.mark.parametrize("given", [["0"], ["5", "5"], ["9", "1"], ["0", "1", "2"]])
def test_what_is_no_range_is_rejected(given):
    with pytest.raises(ValueError, match=f"--image-range is {' '.join(given)}; expected two whole numbers LOW < HIGH"):
        DataConfig(image_range=[int(value) for value in given])


def test_reading_values_has_a_progress_bar(tmp_path, monkeypatch):
    """The bar counts the images that are read, on the main process alone, where stderr is a terminal (disable=None)."""
    shown = []
    monkeypatch.setattr(checks, "progress_bar", lambda results, **options: shown.append(options) or results)
    data = load_data("folder", "train", write(tmp_path, "8"), num_classes=2)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert stored_values(data).images == len(data)
    assert [(options["total"], options["disable"]) for options in shown] == [(len(data), None), (len(data), True)]
    assert shown[0]["desc"] == "reading values of folder/train"


def test_a_range_that_scales_no_image_is_logged(tmp_path):
    """For images of 8 bits the log states only that their values are not scaled: with a range they are read as float32."""
    said = []
    with_image_range(DataConfig("folder", str(write(tmp_path, "8")), image_range=[0, 4095]), log=said.append)
    assert said == ["image range 0 to 4095: no training image holds more than 8 bits; 8-bit values are not scaled by it"]


@pytest.mark.parametrize("value", [[0], [5, 5], ["0", "9"], [0, 2**40], 7, [0.5, 2]])
def test_hostile_ranges_of_a_configuration(value):
    with pytest.raises(ValueError, match="image_range is"):
        MsclConfig(image_range=value)


# the model

SHORT = ("--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 1, "--warmup-steps", 0, "--image-cache-gb", 0)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pre-trained and fine-tuned for a step each on 12 bits stored as 16."""
    root = tmp_path_factory.mktemp("chain")
    data = ("--dataset", "folder", "--data-dir", write(root / "data", "12 in 16"))
    run("pretrain", *data, "--output-dir", root / "pretrained", "--losses", "g+l", *TINY, *SHORT)
    run("finetune", *data, "--num-classes", 2, "--model", root / "pretrained", "--output-dir", root / "tuned", "--probe-batches", 1, *SHORT)
    return root


@pytest.fixture
def evaluated(chain, tmp_path, capsys):
    """Run evaluate.py; returns (results.json, what was printed)."""

    def evaluate(data, *flags):
        run("evaluate_model", "--dataset", "folder", "--data-dir", data, "--split", "val", "--output-dir", tmp_path / "out", *flags)
        return json.loads((tmp_path / "out" / "results.json").read_text()), capsys.readouterr().out

    return evaluate


@pytest.mark.parametrize("stage", ["pretrained", "tuned"])
def test_the_range_is_stored_with_the_model(chain, stage):
    """In config.json, and in the facts of its card."""
    assert json.loads((chain / stage / "config.json").read_text())["image_range"] == [0, 4095]
    assert "| image range | 0 to 4095 |" in (chain / stage / "README.md").read_text()


def test_evaluation_takes_the_range_of_the_model(chain, evaluated):
    """The scores are those of the loop with that range, and a log line names it."""
    results, said = evaluated(chain / "data", "--model", chain / "tuned")
    assert "image range 0 to 4095: 4 of 4 images of folder/val hold more than 8 bits, with values of 0 to 4095\n" in said
    assert json.loads((chain / "tuned" / "results.json").read_text())["mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-9)


@pytest.mark.parametrize("command", ["evaluate_model", "finetune"])
def test_another_range_than_the_model_has_is_an_error(chain, tmp_path, command):
    flags = ("--model", chain / "tuned", "--dataset", "folder", "--data-dir", chain / "data", "--output-dir", tmp_path / "out")
    assert "--image-range is 0 65535; expected 0 4095, with which" in rejected(command, *flags, "--image-range", 0, 65535)


@pytest.mark.parametrize("command", ["evaluate_model", "finetune"])
def test_images_that_do_not_fit_the_range_are_an_error(chain, tmp_path, command):
    """The frames of training stored with 16 bits would be white to a model of 12."""
    flags = ("--model", chain / "tuned", "--dataset", "folder", "--data-dir", write(tmp_path / "data", "16"))
    flags += ("--output-dir", tmp_path / "out", "--num-classes", 2, *(("--split", "val") if command == "evaluate_model" else ()))
    assert "of their values, 0 to 65535, lie above the image range 0 to 4095; expected images stored like" in rejected(command, *flags)


def test_dark_images_are_named(chain, evaluated):
    """8 bits stored as 16 are a sixteenth of a range of 12 bits, which is logged."""
    _, said = evaluated(write(chain / "dark", "8 in 16"), "--model", chain / "tuned")
    assert "they use less than a quarter of the range" in said


def test_evaluation_finds_no_range_of_its_own(chain, tmp_path, capsys):
    """Images of 16 bits for a model of 8 are an error before the network runs, unless a range is given."""
    tiny(id2label={0: "class_0", 1: "class_1"}).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--dataset", "folder", "--data-dir", chain / "data", "--split", "val")
    said = rejected("evaluate_model", *flags, "--output-dir", tmp_path / "out")
    assert "hold more than 8 bits; expected images of 8 bits, as in training. Store them with 8 bits, or give" in said
    run("evaluate_model", *flags, "--output-dir", tmp_path / "out", "--image-range", 0, 4095)
    assert "mean IoU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected images of 8 bits, as in training"):
        open_held_out(DataConfig("folder", str(chain / "data")), lambda _: None, ("class_0", "class_1"))


def test_the_card_tells_what_to_do(chain):
    """Its code, run on a file of 12 bits, gives the pixels of training; without it transformers clips the values at 255."""
    card = (chain / "tuned" / "README.md").read_text()
    lines = re.search(r"### Images of more than 8 bits\n.*?```python\n(.*?)```", card, re.S).group(1)
    processor = AutoImageProcessor.from_pretrained(chain / "tuned", do_resize=False)
    file = chain / "data" / "images" / "val" / "1.png"
    names = {"Image": Image, "processor": processor}
    exec(lines.replace("image.png", str(file)), names)
    config = MsclConfig.from_pretrained(chain / "tuned")
    levels = load_data("folder", "val", chain / "data", unlabelled=True, image_range=tuple(config.image_range)).read(1).image
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    wanted = (torch.from_numpy(levels).permute(2, 0, 1) / 255 - mean) / std
    assert (names["inputs"]["pixel_values"][0] - wanted).abs().max() < 1e-4
    for_pipelines = Image.fromarray(names["levels"].round().astype(np.uint8))
    assert "`segment(Image.fromarray(levels.round().astype(np.uint8)))`" in card
    assert (processor(for_pipelines, return_tensors="pt")["pixel_values"][0] - wanted).abs().max() < 0.6 / 255 / min(config.image_std)
    cut = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert (cut - wanted).abs().mean() > 0.5


def test_the_page_uses_the_range_of_the_model(chain):
    """Like evaluation, at full size and reduced; a model of 8 bits raises a sentence; the picture is only for display."""
    file = chain / "data" / "images" / "val" / "1.png"
    network = MsclForSemanticSegmentation.from_pretrained(chain / "tuned").eval()
    image, _ = read_image(str(file), 1280)
    eight = np.repeat(stored(1, "8")[:, :, None], 3, 2)
    found = view_of(network, image)
    assert (found.mask == view_of(network, eight).mask).mean() > 0.99
    picture = np.asarray(similarity_picture(image, found, 0.5, None))
    assert picture.dtype == np.uint8 and picture.max() > 240
    assert read_image(str(file), 32)[0].shape == (24, 32, 3)
    with pytest.raises(ValueError, match=r"the image holds more than 8 bits and the checkpoint was trained on images of 8 bits"):
        view_of(tiny(), image)


def test_pictures_of_such_images(chain):
    """predictions.png and features.png are drawn, with contrast."""
    for stage, name in (("tuned", "predictions.png"), ("pretrained", "features.png")):
        assert (np.asarray(Image.open(chain / stage / name).convert("L")) < 60).mean() > 0.01
