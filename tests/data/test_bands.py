"""Images of other than three channels: chosen bands of TIFF and PNG, from the file to the card."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from harness import SHORT, rejected, run
from PIL import Image
from safetensors.torch import load_file
from test_files import GRAY, RGB, noise, tiff

from mscl_hf.config import DataConfig, PredictConfig
from mscl_hf.data import BadSample, band_statistics_of, load_data, with_image_range
from mscl_hf.data.dataset import Sample
from mscl_hf.data.image_file import read_image_file
from mscl_hf.data.image_io import DECODE_ERRORS, decode, read_header
from mscl_hf.data.pixels import displayed, resized, rgb_array
from mscl_hf.models.backbones import build_config
from mscl_hf.models.configuration_mscl import MsclConfig
from mscl_hf.models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.models.timm_weights import load_timm_weights
from mscl_hf.transforms.color import Colors, distort_color, draw_color
from mscl_hf.transforms.crops import Crop, cut_image

SIDE = 64
NETWORK = ("--backbone", "test_resnet", "--image-size", SIDE, "--decoder-channels", 16)  # maps of 4 x 4 positions


def silent(*_) -> None:
    """Log nothing."""


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 4) uint8 whose first three bands are noise and whose fourth shows the mask (SIDE, SIDE) of a rectangle."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.integers(0, 3, 2) * SIDE // 4
    mask[top : top + SIDE // 2, left : left + SIDE // 2] = 1
    image = rng.integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    image[:, :, 3] = 40 + 150 * mask + rng.integers(0, 20, mask.shape, np.uint8)
    return image, mask


def write_scenes(root, save, count: int = 6):
    """Write the splits train and val. save(path without suffix, image) writes an image."""
    for split, first in (("train", 0), ("val", 100)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(first + number)
            save(root / "images" / split / str(number), image)
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    return root


def save_png(path, image) -> None:
    Image.fromarray(image).save(path.with_suffix(".png"))


def save_rgb(path, image) -> None:
    Image.fromarray(image[:, :, :3].copy()).save(path.with_suffix(".png"))


def save_tiff(path, image) -> None:
    path.with_suffix(".tif").write_bytes(tiff(image, GRAY))


# files

TIFFS = {
    "2 bands": (tiff(noise(2), GRAY), noise(2)),
    "8 bands of 16 bits": (tiff(noise(8, np.uint16), GRAY), noise(8, np.uint16)),
    "RGB and two others": (tiff(noise(5), RGB, (0, 0)), noise(5)),
    "RGB and another, band by band": (tiff(noise(4), RGB, (0,), planar=True), noise(4)),
    "16-bit colors, band by band": (tiff(noise(3, np.uint16), RGB, planar=True), noise(3, np.uint16)),
    "big-endian": (tiff(noise(5), RGB, (0, 0), order=">"), noise(5)),
    "a page for each band": (tiff(noise(1), GRAY, following=[(noise(1, seed=1), 0), (noise(1, seed=2), 0)]),
                             np.concatenate([noise(1, seed=seed) for seed in range(3)], 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIFFS)
def test_all_bands_of_a_tiff_are_read_as_stored(name):
    """Values, header, and any choice and order of bands; 16-bit values are scaled by the image range."""
    pytest.importorskip("tifffile")
    content, values = TIFFS[name]
    assert np.array_equal(decode(None, content, True), values)
    header = read_header(None, content, True)
    assert header == (values.shape[1], values.shape[0], values.dtype == np.uint16)
    bands = tuple(range(values.shape[2], 0, -2))
    chosen = values[:, :, [band - 1 for band in bands]]
    if values.dtype == np.uint8:
        assert np.array_equal(rgb_array(decode(None, content, True), str, None, bands), chosen)
    else:
        levels = rgb_array(decode(None, content, True), str, (0, 65535), bands)
        assert np.allclose(levels, chosen / 257, atol=1e-4)


@pytest.mark.parametrize("name", ["L", "LA", "RGB", "RGBA", "P", "16-bit RGB", "16-bit gray"])
def test_bands_of_files_that_pillow_reads(tmp_path, name):
    """Gray has one band, a palette three; alpha is the last one. The first three of RGB are equal to reading without bands."""
    if name == "16-bit RGB":
        content, count, three = tiff(noise(3, np.uint16), RGB), 3, noise(3, np.uint16)
        image = decode(None, content, True)
        assert np.array_equal(rgb_array(image, str, (0, 255), (3, 1)), np.minimum(three[:, :, [2, 0]], 255))
    elif name == "16-bit gray":
        image, count = decode(None, tiff(noise(1, np.uint16), GRAY), True), 1
    else:
        picture = Image.fromarray(noise(4), "RGBA").convert("RGB").convert(name) if name == "P" else None
        values = noise({"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 3}[name])
        picture = picture or Image.fromarray(values[:, :, 0] if name == "L" else values, name)
        picture.save(tmp_path / "x.png")
        image, count = decode(tmp_path / "x.png", None, True), values.shape[2]
        if name != "P":
            assert np.array_equal(rgb_array(image, str, None, tuple(range(1, count + 1))), values)
        if count >= 3:
            assert np.array_equal(rgb_array(image, str, None, (1, 2, 3)), rgb_array(image, str))
    with pytest.raises(BadSample, match=rf"has {count} band\(s\); expected at least {count + 1}, since the bands {count + 1} are read"):
        rgb_array(image, str, (0, 65535), (count + 1,))


def test_floating_point_bands_need_a_range(tmp_path):
    """Reflectances in [0, 1] become levels, NaN becomes LOW; without a range the error names the option."""
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).random((6, 8, 5), np.float32)
    values[2, 3] = np.nan
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig")
    options = DataConfig("folder", str(tmp_path), bands=[5, 1, 2, 3])
    with pytest.raises(ValueError, match="hold floating-point values of 0 to 1; .*Give the values of black and white by --image-range"):
        with_image_range(options, log=silent)
    assert with_image_range(replace(options, image_range=[0, 1]), log=silent).image_range == [0, 1]
    image = load_data("folder", "train", tmp_path, unlabelled=True, image_range=(0, 1), bands=options.bands).read(0).image
    wanted = values[:, :, [4, 0, 1, 2]] * 255
    assert image.dtype == np.float32 and (image[2, 3] == 0).all() and np.allclose(image, np.nan_to_num(wanted), atol=1e-4)
    with pytest.raises(BadSample, match="holds more than 8 bits and there is no image range"):
        load_data("folder", "train", tmp_path, unlabelled=True, bands=options.bands).read(0)


def test_pages_that_are_no_bands(tmp_path):
    """Pages of several bands or of different sizes are no image, also with bands."""
    for following in ([(noise(1, height=3), 0)], [(noise(1), 0), (noise(1, np.uint16), 0)]):
        with pytest.raises(ValueError, match=f"is a TIFF of {1 + len(following)} pages, .*expected pages of one size and one band each"):
            decode(None, tiff(noise(1), GRAY, following=following), True)


def test_damaged_files_of_bands_are_one_sentence():
    """Cut anywhere, a file is read as it is or rejected by one of the errors that the readers of data expect."""
    pytest.importorskip("tifffile")
    content = tiff(noise(5), GRAY)
    for length in range(0, len(content), 7):
        try:
            decode(None, content[:length], True)
        except DECODE_ERRORS as error:
            assert "\n" not in str(error)


def test_more_values_than_the_limit_are_not_decoded(tmp_path, monkeypatch):
    """Pillow's limit of pixels, which have four values, holds for the values of all bands."""
    (tmp_path / "x.tif").write_bytes(tiff(noise(8), GRAY))  # 6 x 8 px of 8 bands: as many values as 96 px of 4
    for limit, fits in ((96, True), (95, False)):
        if fits:
            pytest.importorskip("tifffile")
            assert read_image_file(tmp_path / "x.tif", None, limit, (8,)).levels.shape == (6, 8, 1)
        else:
            with pytest.raises(BadSample, match="has more than 95 px"):
                read_image_file(tmp_path / "x.tif", None, limit, (8,))


def test_files_that_a_tiff_names_are_not_opened(tmp_path):
    """An OME-TIFF whose description names another file for its second channel has its own bands only."""
    tifffile = pytest.importorskip("tifffile")
    for name, seed in (("a.ome.tif", 0), ("b.ome.tif", 1)):
        tifffile.imwrite(tmp_path / name, noise(5, seed=seed), photometric="minisblack", planarconfig="contig", description="PLACE" * 300)
    data = "".join(
        f'<TiffData FirstC="{number}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData>'
        for number, name in enumerate(("a.ome.tif", "b.ome.tif"))
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="6" SizeC="10" SizeZ="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="5"/><Channel ID="Channel:0:1" SamplesPerPixel="5"/>{data}</Pixels></Image></OME>'
    ).encode()
    content = (tmp_path / "a.ome.tif").read_bytes().replace(b"PLACE" * 300, xml.ljust(1500))
    (tmp_path / "a.ome.tif").write_bytes(content)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff_file:
        assert tiff_file.is_ome
    (tmp_path / "b.ome.tif").unlink()
    (tmp_path / "b.ome.tif").mkdir()  # opening it would fail
    assert np.array_equal(decode(tmp_path / "a.ome.tif", None, True), noise(5))


def test_without_tifffile_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"pip install 'mscl_hf\[tiff\]'"):
        decode(None, tiff(noise(5), GRAY), True)


# views


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_bands_are_resized_and_cut_one_by_one(count):
    """Each band equals itself alone: none is taken for alpha. RGB by bands equals RGB at once."""
    values, rgb = noise(count, height=20, width=30), noise(3, height=20, width=30)
    small = resized(values, (13, 9), Image.Resampling.BILINEAR)
    crop = Crop(-3.0, 2.0, 25.0, True)
    view = cut_image(Sample(values, None, ""), crop, 16)
    for band in range(count):
        alone = values[:, :, band]
        assert np.array_equal(small[:, :, band], np.asarray(Image.fromarray(alone).resize((13, 9), Image.Resampling.BILINEAR)))
        assert torch.equal(view[band], cut_image(Sample(alone[:, :, None].copy(), None, ""), crop, 16)[0])
    at_once = resized(rgb, (13, 9), Image.Resampling.BILINEAR)
    by_band = [resized(rgb[:, :, band : band + 1], (13, 9), Image.Resampling.BILINEAR)[:, :, 0] for band in range(3)]
    assert np.array_equal(at_once, np.stack(by_band, 2))


def test_outside_of_an_image_bands_have_the_mean_of_the_part_inside():
    values = np.stack([np.full((8, 8), level, np.uint8) for level in (10, 200, 30, 77)], 2)
    view = cut_image(Sample(values, None, ""), Crop(-8.0, -8.0, 24.0, False), 24)
    assert torch.equal(view, torch.tensor([10, 200, 30, 77], dtype=torch.uint8)[:, None, None].expand(4, 24, 24))


@pytest.mark.parametrize("count", [1, 4])
def test_colors_of_bands(count):
    """Brightness is x -> f x and contrast about the mean of each band; hue, saturation and gray change nothing."""
    images = torch.rand(2, count, 6, 8, generator=torch.Generator().manual_seed(0)).mul(100).add(50)
    for seed in range(20):
        colors = Colors(saturation=0.8, hue=0.4, jitter=1.0, gray=0.5)
        drawn = torch.stack([draw_color(colors, np.random.default_rng([seed, number])) for number in range(2)])
        assert torch.allclose(distort_color(images, drawn), images, atol=1e-3)
    colors = Colors(contrast=0.5, saturation=0.5, jitter=1.0, gray=1.0)
    drawn = torch.stack([draw_color(colors, np.random.default_rng(number)) for number in range(2)])
    factors = [1 - float(row[:-3].view(-1, 3)[:, 2].max() or row[:-3].view(-1, 3)[:, 2].min()) for row in drawn]
    mean = images.mean((2, 3), keepdim=True)
    wanted = torch.stack([f * (x - m) + m for f, x, m in zip(factors, images, mean)])
    assert torch.allclose(distort_color(images, drawn), wanted, atol=1e-2)


def test_displayed_bands():
    """The first three, or the first one as gray."""
    values = noise(5)
    assert np.array_equal(displayed(values), values[:, :, :3])
    for count in (1, 2):
        assert np.array_equal(displayed(values[:, :, :count]), np.repeat(values[:, :, :1], 3, 2))


# training


def test_statistics_are_those_of_all_pixels(tmp_path):
    data = write_scenes(tmp_path, save_png)
    mean, std = band_statistics_of(DataConfig("folder", str(data), bands=[4, 2]), log=silent)
    pixels = np.stack([scene(number)[0] for number in range(6)]).reshape(-1, 4)[:, [3, 1]] / 255
    assert np.allclose(mean, pixels.mean(0), atol=1e-5) and np.allclose(std, pixels.std(0), atol=1e-5)


def test_a_stream_of_bands(tmp_path):
    """Streamed rows have the same bands, and the statistics of the first rows."""
    write_scenes(tmp_path / "data", save_png)
    images, masks = ([(tmp_path / "data" / kind / "train" / f"{n}.png").read_bytes() for n in range(6)] for kind in ("images", "masks"))
    rows = datasets.Dataset.from_dict({name: [{"bytes": b, "path": None} for b in of] for name, of in (("image", images), ("mask", masks))})
    rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    options = DataConfig("hf", str(tmp_path / "train.parquet"), num_classes=2, streaming=True, bands=[4, 2])
    mean, std = band_statistics_of(options, log=silent)
    pixels = np.stack([scene(number)[0] for number in range(6)]).reshape(-1, 4)[:, [3, 1]] / 255
    assert np.allclose(mean, pixels.mean(0), atol=1e-5) and np.allclose(std, pixels.std(0), atol=1e-5)
    stream = load_data("hf", "train", options.data_dir, num_classes=2, streaming=True, bands=options.bands)
    (sample, bad), = next(stream.batches(0, 1, [0]))
    assert not bad and any(np.array_equal(sample.image, scene(number)[0][:, :, [3, 1]]) for number in range(6))


def test_pretrained_weights_are_adapted_as_timm_does(tmp_path):
    """The first convolution of four channels is timm's, the other weights are unchanged."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = timm.create_model("test_resnet")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    network = MsclForPreTraining(build_config("test_resnet", image_size=32, num_channels=4, heads=[]))
    load_timm_weights(network, file=str(tmp_path / "w.safetensors"))
    overlay = {"state_dict": source.state_dict()}
    wanted = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=4).state_dict()
    state = network.backbone.timm_model.state_dict()
    assert state["conv1.0.weight"].shape[1] == 4
    assert all(torch.equal(value, wanted[key]) for key, value in state.items())


def flags_of(data, *more) -> tuple:
    return ("--dataset", "folder", "--data-dir", data, *more)


STEPS = ("--batch-size", 4, "--dataloader-num-workers", 0, "--image-cache-gb", 0, "--warmup-steps", 1, "--save-steps", 1000)
QUIET = {"draw_training": silent, "draw_features": silent}


def train(root, data, *flags, steps: int = 40, name: str = "") -> None:
    model = root / f"pretrained{name}"
    run("pretrain", *flags_of(data), *NETWORK, *STEPS, "--method", "none", *flags, "--output-dir", model, **QUIET)
    rate = ("--learning-rate", 3e-2, "--max-steps", steps, "--min-scale", 1, "--max-scale", 1)
    run("finetune", *flags_of(data), *STEPS, *rate, "--model", model, "--output-dir", root / f"tuned{name}", **QUIET)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A network trained on all four bands, and one on the first three, which are noise."""
    root = tmp_path_factory.mktemp("bands")
    write_scenes(root / "data", save_png)
    train(root, root / "data", "--bands", 4, 3, 2, 1)
    train(root, root / "data", name="_rgb")
    return root


def scores(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_fourth_band_that_alone_shows_the_mask_is_used(chain):
    """Without it the mean IoU is that of a constant, with it nearly 1."""
    assert scores(chain / "tuned")["mean_iou"] > 0.8 > 0.6 > scores(chain / "tuned_rgb")["mean_iou"]


@pytest.mark.parametrize("stage", ["pretrained", "tuned"])
def test_bands_and_their_statistics_are_in_the_configuration(chain, stage):
    """And in its card; the first convolution has as many channels."""
    config = MsclConfig.from_pretrained(chain / stage)
    pixels = np.stack([scene(number)[0] for number in range(6)]).reshape(-1, 4)[:, ::-1] / 255
    assert config.bands == [4, 3, 2, 1] and config.num_channels == 4
    assert np.allclose(config.image_mean, pixels.mean(0), atol=1e-5) and np.allclose(config.image_std, pixels.std(0), atol=1e-5)
    assert load_file(chain / stage / "model.safetensors")["backbone.timm_model.conv1.0.weight"].shape[1] == 4
    card = (chain / stage / "README.md").read_text()
    assert ("| bands | 4 3 2 1 |" in card) == (stage == "tuned")  # --method none has no training
    assert "The network reads the bands 4, 3, 2, 1" in card and 'convert("RGB")' not in card
    assert json.loads((chain / "pretrained_rgb" / "config.json").read_text()).get("bands") is None


def test_evaluation_and_prediction_take_the_bands_of_the_model(chain, tmp_path):
    """Without an option the score is that of the training, and each mask has the ids that the network computes from the four bands."""
    run("evaluate_model", *flags_of(chain / "data"), "--split", "val", "--model", chain / "tuned", "--output-dir", tmp_path / "scores")
    assert scores(tmp_path / "scores")["mean_iou"] == pytest.approx(scores(chain / "tuned")["mean_iou"], abs=1e-9)
    images = chain / "data" / "images" / "val"
    run("predict", "--model", chain / "tuned", "--images", images, "--output-dir", tmp_path / "masks", "--overlays")
    network = MsclForSemanticSegmentation.from_pretrained(chain / "tuned").eval()
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (network.config.image_mean, network.config.image_std))
    pixels = torch.from_numpy(scene(100)[0][:, :, ::-1].copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = network((pixels / 255 - mean) / std).logits
    ids = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear").argmax(1)[0].numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "masks" / "0.png")), ids)
    assert np.asarray(Image.open(tmp_path / "masks" / "overlays" / "0.png")).shape == (SIDE, SIDE, 3)


def test_a_tiff_of_four_bands_gives_the_same_weights(chain, tmp_path):
    """As PNG and as TIFF, with the same bands: pre-trained by contrast of two views."""
    pytest.importorskip("tifffile")
    write_scenes(tmp_path / "data", save_tiff)
    weights = []
    for number, data in enumerate((chain / "data", tmp_path / "data")):
        out = tmp_path / str(number)
        flags = ("--losses", "g+l+p", "--local-grid", 2, "--geometry", "shared", "--max-steps", 2, "--bands", 1, 2, 3, 4)
        run("pretrain", *flags_of(data), *NETWORK, *STEPS, *flags, "--output-dir", out)
        weights.append(load_file(out / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("method", ["moco_v2", "byol", "cp2", "none"])
def test_every_kind_of_view_takes_bands(chain, tmp_path, method, capsys):
    """The presets of other methods too; what they leave out is logged."""
    steps = () if method == "none" else ("--max-steps", 1)
    bands = ("--method", method, "--bands", 1, 2, 3, 4, "--output-dir", tmp_path / "out")
    run("pretrain", *flags_of(chain / "data"), *NETWORK, *STEPS, *steps, *bands, **QUIET)
    assert ("hue, saturation and gray need 3 channels" in capsys.readouterr().out) == (method != "none")


def test_three_bands_of_rgb_are_no_option(tmp_path):
    """--bands 1 2 3 of RGB files gives the same weights, bit for bit."""
    write_scenes(tmp_path / "data", save_rgb)
    weights = []
    for name, bands in (("without", ()), ("with", ("--bands", 1, 2, 3))):
        train(tmp_path, tmp_path / "data", *bands, steps=2, name=name)
        weights.append(load_file(tmp_path / f"tuned{name}" / "model.safetensors"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_training_continues_with_the_bands_of_the_model(chain, tmp_path):
    """--start-from needs no --bands, and keeps mean and deviation."""
    flags = ("--losses", "g", "--max-steps", 1, "--start-from", chain / "pretrained")
    run("pretrain", *flags_of(chain / "data"), *NETWORK, *STEPS, *flags, "--output-dir", tmp_path / "out", **QUIET)
    before, after = (MsclConfig.from_pretrained(folder) for folder in (chain / "pretrained", tmp_path / "out"))
    assert (after.bands, after.image_mean, after.image_std) == (before.bands, before.image_mean, before.image_std)


# wrong input

WRONG = {
    "a band twice": ("pretrain", ("--bands", 1, 1), "--bands is 1 1; expected one or more bands, each once"),
    "no such number": ("pretrain", ("--bands", 0), "--bands is 0; expected at least 1"),
    "a band that the files lack": ("pretrain", ("--bands", 5), "has 4 band(s); expected at least 5, since the bands 5 are read"),
    "towers of color": ("pretrain", ("--bands", 1, 2, 3, 4, "--method", "cmc"), "num_channels is 4; expected 3, as two towers convert RGB"),
    "other bands": ("finetune", ("--model", "{}/pretrained", "--bands", 1, 2, 3, 4), "--bands is 1 2 3 4; expected 4 3 2 1, with which"),
    "more bands than channels": ("finetune", ("--model", "{}/pretrained_rgb", "--bands", 1, 2, 3, 4),
                                 "--bands is 1 2 3 4; expected 3, the input channels of {}/pretrained_rgb"),
    "scores of other bands": ("evaluate_model", ("--model", "{}/tuned", "--split", "val", "--bands", 1), "--bands is 1; expected 4 3 2 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bands_are_one_sentence(chain, tmp_path, name):
    recipe, flags, message = WRONG[name]
    flags = [flag.format(chain) if isinstance(flag, str) else flag for flag in flags]
    more = {"pretrain": (*NETWORK, *SHORT, "--train-count", 4), "finetune": (*SHORT, "--train-count", 4)}.get(recipe, ())
    said = rejected(recipe, *flags_of(chain / "data"), *more, *flags, "--output-dir", tmp_path / "out")
    assert message.format(chain) in said


def test_a_model_of_four_channels_on_images_of_three(chain, tmp_path):
    write_scenes(tmp_path / "data", save_rgb)
    flags = ("--model", chain / "tuned", "--split", "val", "--output-dir", tmp_path / "out")
    said = rejected("evaluate_model", *flags_of(tmp_path / "data"), *flags)
    assert "has 3 band(s); expected at least 4, since the bands 4 3 2 1 are read" in said


def test_a_network_that_names_no_bands(tmp_path):
    """Four channels need four bands; a network of three takes any three."""
    options = DataConfig()
    with pytest.raises(ValueError, match="--bands is missing; expected 4, the input channels of m"):
        options.with_bands_of("m", None, 4)
    assert replace(options, bands=[8, 1, 2, 3]).with_bands_of("m", None, 4).bands == [8, 1, 2, 3]
    assert replace(options, bands=[8, 4, 3]).with_bands_of("m", None, 3).bands == [8, 4, 3]
    assert options.with_bands_of("m", None, 3).bands is None and options.with_bands_of("m", [2], 1).bands == [2]


@pytest.mark.parametrize("value", [[0], [1, 2], ["1"], 4, [70_000]])
def test_hostile_bands_of_a_configuration(value):
    """Not positive, not as many as channels, not numbers."""
    with pytest.raises(ValueError, match="bands is"):
        MsclConfig(bands=value, num_channels=1)


def test_predict_checks_its_bands():
    with pytest.raises(ValueError, match="--bands is 2 2; expected one or more bands, each once"):
        PredictConfig().run.__class__(bands=[2, 2])


def test_check_of_data_names_the_option(tmp_path):
    """mscl-data check: without bands, the problem tells to name them."""
    write_scenes(tmp_path / "data", save_tiff)
    with pytest.raises(BadSample, match="is a TIFF of 4 bands .*Name the bands to read, such as --bands 1 2 3"):
        load_data("folder", "train", tmp_path / "data", num_classes=2).read(0)
