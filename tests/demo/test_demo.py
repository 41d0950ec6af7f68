"""The demo without a browser: what it shows of a checkpoint, invalid inputs, and separate visitors."""

import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from mscl_hf import MsclBackbone
from mscl_hf.config import InferenceConfig
from mscl_hf.data.synthetic import draw_scene
from mscl_hf.demo import command, markup, similarity
from mscl_hf.demo import visit as visits
from mscl_hf.demo.similarity import (
    View,
    enlargement,
    heat_map,
    open_checkpoint,
    read_image,
    segmentation_picture,
    similarity_picture,
    view_of,
)
from mscl_hf.evaluation.inference import predict_logits
from mscl_hf.models.backbones import build_config
from mscl_hf.models.modeling_mscl import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.visual.palette import class_colors

gradio = pytest.importorskip("gradio", reason="the demo needs gradio")
from mscl_hf.demo import page as demo  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "hub" / "space"
REMEDY = re.compile("[;:.] (give|choose|crop|expected|load|save|use) ", re.IGNORECASE)
NAMES = ("meadow", "<b>wood</b>", "river & sea")


def tiny(network_cls=MsclForSemanticSegmentation, backbone: str = "test_resnet", seed: int = 0, image: np.ndarray | None = None, **options):
    """Return a random network that predicts several classes in an image, by default scene()."""
    config = build_config(backbone, image_size=64, decoder_channels=16, num_labels=3, **options)
    torch.manual_seed(seed)
    config.id2label, config.label2id = dict(enumerate(NAMES)), {name: i for i, name in enumerate(NAMES)}
    network = network_cls(config).eval()
    if network_cls is MsclForSemanticSegmentation:
        network.classifier.weight.data.normal_()
        pixels = normalized(scene() if image is None else image, config)
        with torch.no_grad():  # the mean logit over the image becomes 0 for every class, so that each class occurs
            network.classifier.bias -= predict_logits(network, pixels, (32, 48), InferenceConfig(base_size=64)).mean(dim=(0, 2, 3))
    return network


def scene(index: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    return draw_scene(0, "val", index, height, width)[0]


def normalized(image: np.ndarray, config) -> torch.Tensor:
    scaled = (image / np.float32(255) - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Checkpoints on disk: two fine-tuned ones and a pre-trained one."""
    base = tmp_path_factory.mktemp("checkpoints")
    networks = {"tuned": tiny(), "other": tiny(seed=1), "pretrained": tiny(MsclForPreTraining)}
    for name, network in networks.items():
        network.save_pretrained(base / name)
    return {name: str(base / name) for name in networks}


@pytest.fixture
def scene_file(tmp_path) -> str:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def visit(path: str, *names: str, local: bool = True, max_side: int = 1280, start=None) -> visits.Visit:
    return (start or visits.Visit()).with_inputs(path, (*names, "", "")[:2], names, local, max_side)


def shown(of: visits.Visit, opacity: float = 0.5) -> dict:
    """The page's parts by name."""
    parts = demo.updates(of, opacity)
    names = ["visit", "messages", "empty", "controls", "x", "y"]
    for side in "12":
        names += [f"{part}{side}" for part in ("left", "right", "heading", "segmentation", "legend", "title", "similarity", "scale")]
    return dict(zip(names, parts, strict=True))


@pytest.mark.parametrize("backbone, base_size", [("test_resnet", 64), ("test_resnet", 0), ("test_vit", 64)])
def test_the_segmentation_is_the_one_that_is_evaluated(backbone, base_size):
    """The mask is the argmax of predict_logits with the checkpoint's own base size, mean and deviation, pixel for pixel."""
    network, image = tiny(backbone=backbone), scene()
    network.config.base_size = base_size
    logits = predict_logits(network, normalized(image, network.config), image.shape[:2], InferenceConfig(base_size=base_size))
    view = view_of(network, image)
    assert len(np.unique(view.mask)) > 1
    assert (view.mask == logits[0].argmax(0).numpy()).all() and view.classes == NAMES


def slow_embedding(embeddings: np.ndarray, row: float, column: float) -> np.ndarray:
    """Return the embedding at (row, column) in [0, 1] of a map (E, h, w), interpolated bilinearly, of unit length."""
    height, width = embeddings.shape[1:]
    y, x = (min(max(at * side - 0.5, 0), side - 1) for at, side in ((row, height), (column, width)))
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    total = np.zeros(len(embeddings))
    for i in {top, min(top + 1, height - 1)}:
        for j in {left, min(left + 1, width - 1)}:
            total += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * embeddings[:, i, j]
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("network_cls", [MsclForSemanticSegmentation, MsclForPreTraining])
def test_similarity_is_the_cosine_of_the_networks_embeddings(network_cls):
    """Of the decoder's output for a fine-tuned checkpoint, of the pixel head's for a pre-trained one, up-sampled; by a slow loop."""
    network, image, kept = tiny(network_cls), scene(), []
    part = network.decoder if network_cls is MsclForSemanticSegmentation else network.pixel_head
    hook = part.register_forward_hook(lambda module, inputs, out: kept.append(out))
    view = view_of(network, image)
    hook.remove()
    embeddings, (x, y) = kept[0][0].detach().numpy().astype(np.float64), (70, 12)
    result = view.similarity((x, y))
    height, width = result.shape
    assert (height, width) == (86, 128)
    clicked = slow_embedding(embeddings, (y * height // 60 + 0.5) / height, (x * width // 90 + 0.5) / width)
    for i, j in np.random.default_rng(0).integers((height, width), size=(200, 2)):
        expected = clicked @ slow_embedding(embeddings, (i + 0.5) / height, (j + 0.5) / width)
        assert result[i, j] == pytest.approx(expected, abs=1e-5)
    assert result.max() == pytest.approx(result[y * height // 60, x * width // 90], abs=1e-5) == pytest.approx(1, abs=1e-5)


def test_the_page_names_the_embeddings_that_it_compares():
    """The pixel head's; without one the decoder's output where pre-training trains it, else the backbone's last map."""
    image = scene()
    cases = [
        ({"heads": ["global", "pixel"]}, "mscl", "pixel head"),
        ({"heads": ["global"]}, "mscl", "backbone"),
        ({"heads": []}, "simclr", "backbone"),
        ({"heads": [], "attach": "decoder"}, "simclr", "decoder"),
        ({"heads": []}, "cp2", "decoder"),
    ]
    for options, method, words in cases:
        network, seen = tiny(MsclForPreTraining, **options), {}
        network.config.contrast = {"method": method}
        parts = {"decoder": network.decoder, "pixel head": network.pixel_head}
        for name, part in parts.items():
            if part is not None:
                part.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out}))
        network.backbone.register_forward_hook(lambda module, inputs, out: seen.update(backbone=out.feature_maps[-1]))
        view = view_of(network, image)
        assert words in view.source.split(",")[0], (options, method)
        corner = seen[words][0, :, 0, 0]
        assert np.allclose(view.embeddings[:, 0, 0], corner / corner.norm(), atol=1e-6), (options, method)
        assert view.mask is None and view.classes == ()


def test_shares_are_percentages_of_the_pixels():
    """They equal counts of the mask, sum to 100 and decrease; classes without a pixel are named, and names are escaped."""
    mask = np.array([[2, 2, 2], [1, 2, 2]], dtype=np.uint8)
    view = View("", (2, 3), NAMES, mask, np.ones((1, 2, 3), np.float32), "")
    assert view.shares() == [(2, pytest.approx(100 * 5 / 6)), (1, pytest.approx(100 / 6)), (0, 0)]
    assert sum(share for _, share in view_of(tiny(), scene()).shares()) == pytest.approx(100)
    table = markup.shares_table(view)
    assert re.findall(r"([\d.]+) %", table) == ["83.3", "16.7"]
    assert "Not found: meadow." in table and "<b>" not in table and "river &amp; sea" in table
    assert table.index("river") < table.index("wood")
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(NAMES)]
    assert re.findall(r"<th[^>]*><i style=\"background:(#\w+)\"", table) == [colors[2], colors[1]]


def test_the_heat_map_goes_from_the_least_to_the_greatest_cosine():
    """Every pixel has the color of its cosine, mixed with the gray image by the opacity: compared with a slow loop."""
    from matplotlib import colormaps

    rng = np.random.default_rng(0)
    image, cosine = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), rng.uniform(-1, 1, (5, 7)).astype(np.float32)
    for opacity in (0.0, 0.4, 1.0):
        result = heat_map(image, cosine, opacity)
        for i in range(5):
            for j in range(7):
                fraction = (cosine[i, j] - cosine.min()) / (cosine.max() - cosine.min())
                color = np.array(colormaps["viridis"](float(fraction))[:3]) * 255
                gray = image[i, j].mean() * 0.5 + 64
                assert np.abs(result[i, j] - (gray * (1 - opacity) + color * opacity)).max() <= 2, (i, j)
    assert (heat_map(image, np.ones((2, 3), np.float32), 1.0) == heat_map(image, np.ones((2, 3), np.float32), 1.0)[0, 0]).all()


def test_the_clicked_pixel_is_marked_and_the_most_alike():
    """Pictures are enlarged by integer factors; the ring and the highest similarity are at the clicked pixel in both pictures."""
    network, image = tiny(), scene()
    view, times, point = view_of(network, image), enlargement((60, 90)), (70, 12)
    assert times == 9
    for draw in (segmentation_picture, similarity_picture):
        marked, plain = (np.asarray(draw(image, view, 1.0, at)).astype(int) for at in (point, (0, 59)))
        assert marked.shape == (540, 810, 3)
        changed = np.argwhere((marked[: 540 - 60, 60:] != plain[: 540 - 60, 60:]).any(-1)) if draw is segmentation_picture else None
        if changed is not None:
            center = changed.mean(0) + (0, 60)
            assert np.abs(center - ((12 + 0.5) * times, (70 + 0.5) * times)).max() < 1
    cosine = view.similarity(point)
    y, x = np.unravel_index(cosine.argmax(), cosine.shape)
    assert abs((x + 0.5) / 128 * 90 - 70.5) < 1 and abs((y + 0.5) / 86 * 60 - 12.5) < 1


def test_only_what_is_new_is_computed(folders, scene_file, monkeypatch):
    """Opacity and clicks run no network; another checkpoint runs that one alone; another image runs both."""
    ran = []
    monkeypatch.setattr(visits, "view_of", lambda network, image: ran.append(type(network).__name__) or view_of(network, image))
    first = visit(scene_file, folders["tuned"])
    assert ran == ["MsclForSemanticSegmentation"]
    pictures = [shown(first, opacity)["segmentation1"].value["path"] for opacity in (0.2, 0.9)]
    colors = [np.asarray(Image.open(path)).astype(int) for path in pictures]
    assert np.abs(colors[0] - colors[1]).mean() > 10
    clicked = first.with_point(5, 6)
    shown(clicked)
    assert len(ran) == 1
    both = visit(scene_file, folders["tuned"], folders["pretrained"], start=clicked)
    assert ran[1:] == ["MsclForPreTraining"] and both.point == (5, 6)
    Image.fromarray(scene(1)).save(Path(scene_file).with_name("second.png"))
    other = visit(str(Path(scene_file).with_name("second.png")), folders["tuned"], folders["pretrained"], start=both)
    assert len(ran) == 4 and other.point is None


def test_two_checkpoints_side_by_side(folders, scene_file):
    """Both show the same image and pixel; the page tells that a pre-training checkpoint has no segmentation."""
    page = shown(visit(scene_file, folders["tuned"], folders["pretrained"]).with_point(40, 30))
    assert all(page[part].visible for part in ("left1", "left2", "right1", "right2", "controls")) and not page["empty"].visible
    assert (page["x"], page["y"]) == (40, 30)
    assert "40, 30" in page["scale1"] and "40, 30" in page["scale2"]
    assert page["segmentation1"].value and page["segmentation2"].value is None
    assert "no classifier" in page["legend2"] and "decoder" in page["scale1"] and "pixel head" in page["scale2"]
    alone = shown(visit(scene_file, folders["pretrained"]))
    assert not alone["left1"].visible and alone["right1"].visible and "without a segmentation" in alone["scale1"]


def sentence(call, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and REMEDY.search(text), text
    return text


def test_invalid_checkpoints_raise_one_message(folders, tmp_path):
    """A missing folder, no model, another library's model, a backbone, a damaged or pickled file, an invalid configuration."""

    def copy(name: str, **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads(Path(folders["tuned"], "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(Path(folders["tuned"], "model.safetensors").read_bytes())
        return folder

    assert "no/such/folder" in sentence(open_checkpoint, "no/such/folder")
    sentence(open_checkpoint, "nobody/nothing")
    assert "config.json" in sentence(open_checkpoint, str(tmp_path))
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    assert "BertModel" in sentence(open_checkpoint, str(tmp_path / "bert"))
    MsclBackbone(tiny().config).save_pretrained(tmp_path / "bare")
    assert "MsclBackbone" in sentence(open_checkpoint, str(tmp_path / "bare"))
    sentence(open_checkpoint, str(copy("nonsense", backbone="no_such_network")))
    sentence(open_checkpoint, str(copy("swapped", backbone="test_vit", backbone_kwargs={})))
    assert "channels" in sentence(open_checkpoint, str(copy("gray", num_channels=1)))
    assert "reads the bands 4 3 2" in sentence(open_checkpoint, str(copy("bands", bands=[4, 3, 2])))
    damaged = copy("damaged")
    os.truncate(damaged / "model.safetensors", 1000)
    sentence(open_checkpoint, str(damaged))
    pickled = copy("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(tiny().state_dict(), pickled / "pytorch_model.bin")
    assert "safetensors" in sentence(open_checkpoint, str(pickled))
    headless = copy("headless")
    weights = load_file(headless / "model.safetensors")
    save_file({key: value for key, value in weights.items() if not key.startswith("classifier.")}, headless / "model.safetensors")
    assert "classifier" in sentence(open_checkpoint, str(headless))


SIZES = {
    "fixed": (MsclForSemanticSegmentation, {"fixed_size": 16384}, "to 16384 x 16384"),
    "multiple": (MsclForSemanticSegmentation, {"size_multiple": 16384}, "to 16384 x 16384"),
    "base": (MsclForSemanticSegmentation, {"base_size": 16384}, "base_size 16384"),
    "grid": (MsclForPreTraining, {"pixel_grid": 16384}, "pixel_grid"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_of_a_configuration_are_bounded_before_the_network_runs(case, monkeypatch):
    """The input sizes of the backbone and the pixel head are computed from every field that changes them."""
    network_cls, fields, message = SIZES[case]
    network = tiny(network_cls, image=scene())
    for name, value in fields.items():
        setattr(network.config, name, value)
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)  # which would need the memory
    monkeypatch.setattr(type(network), "forward", None)
    assert message in sentence(view_of, network, scene())


def test_any_error_in_a_network_is_a_short_message(folders, scene_file, monkeypatch, caplog):
    """The page shows one message, the log has the traceback, and the other checkpoint is shown."""
    def fails(network, image):
        if network is visits.open_cached(folders["tuned"], None):
            raise TypeError("unhashable type: 'list'\nline 2")
        return view_of(network, image)

    monkeypatch.setattr(visits, "view_of", fails)
    page = shown(visit(scene_file, folders["tuned"], folders["other"]))
    assert "failed (TypeError" in page["messages"].value and "line 2" not in page["messages"].value
    assert page["left2"].visible and "unhashable" in caplog.text


def test_a_pixel_head_without_weights_is_not_shown(folders, tmp_path):
    """A pre-training checkpoint without weights of its pixel head shows the backbone's map, not random numbers."""
    weights = load_file(Path(folders["pretrained"], "model.safetensors"))
    save_file({key: value for key, value in weights.items() if not key.startswith("pixel_head.")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(Path(folders["pretrained"], "config.json").read_bytes())
    assert "pixel head" in view_of(open_checkpoint(folders["pretrained"]), scene()).source
    assert view_of(open_checkpoint(str(tmp_path)), scene()).source.startswith("last map of the backbone")


def test_code_of_a_checkpoint_is_never_run(folders, tmp_path):
    """A checkpoint with code is opened with the classes of this package; its files are not imported."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(Path(folders["tuned"], name).read_bytes())
    trap = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSemanticSegmentation": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(open_checkpoint(str(tmp_path))) is MsclForSemanticSegmentation and not trap.exists()


def test_in_a_space_only_hub_names_can_be_typed(folders, tmp_path, monkeypatch):
    """Folders, relative paths and names that are local folders raise, but not the models that the Space offers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    for typed in (folders["tuned"], "owner/folder", "../etc", "owner", "a/b/c", "hf-hub:a/b", "https://hub/x/y"):
        assert "Hub" in sentence(visits.checkpoint_name, typed, ["offered"], False)
        assert visits.checkpoint_name(typed, ["offered"], True) == typed
    for typed, name in ((" owner/model ", "owner/model"), ("offered", "offered"), (None, ""), ("", "")):
        assert visits.checkpoint_name(typed, ["offered"], False) == name


def test_a_wrong_name_leaves_the_other_checkpoint_on_the_page(folders, scene_file):
    """The page shows the message, escaped, and the second checkpoint."""
    page = shown(visit(scene_file, "no/<i>such</i>/folder", folders["tuned"]))
    assert "no/&lt;i&gt;such" in page["messages"].value and page["messages"].visible
    assert not page["left1"].visible and page["left2"].visible


def odd_images() -> dict[str, tuple]:
    """Return {name: (picture, save options, expected pixels)}."""
    color = scene()
    gray = color[:, :, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees to the right
    palette = Image.fromarray(color).quantize(16)
    on_white = np.where((np.asarray(palette) == 3)[:, :, None], 255, np.asarray(palette.convert("RGB")))
    transparent = Image.fromarray(np.dstack([color, gray]))
    repeated = np.repeat(gray[:, :, None], 3, 2)
    return {
        "turned.png": (Image.fromarray(color), {"exif": exif}, np.rot90(color, -1)),
        "alpha.png": (transparent, {}, color),
        "gray.png": (Image.fromarray(gray), {}, repeated),
        "gray_alpha.png": (transparent.convert("LA"), {}, None),
        "bits.png": (Image.fromarray(gray > 128), {}, np.repeat(((gray > 128) * np.uint8(255))[:, :, None], 3, 2)),
        "palette.png": (palette, {"transparency": 3}, on_white),
        "cmyk.jpg": (Image.fromarray(color).convert("CMYK"), {}, None),
        "palette.gif": (palette, {}, np.asarray(palette.convert("RGB"))),
        "dot.png": (Image.fromarray(color[:1, :1]), {}, color[:1, :1]),
        "line.png": (Image.fromarray(color[:1, :20]), {}, color[:1, :20]),
    }


def test_images_of_every_mode_are_shown(folders, tmp_path):
    """Rotated by EXIF, transparent, gray, black and white, with a palette, CMYK, of one pixel."""
    for name, (picture, options, expected) in odd_images().items():
        picture.save(tmp_path / name, **options)
        seen = visit(str(tmp_path / name), folders["tuned"]).with_point(1000, -5)
        assert seen.errors == () and seen.note is None, name
        assert expected is None or (seen.image == expected).all(), name
        assert seen.point == (seen.image.shape[1] - 1, 0)
        page = shown(seen)
        assert page["segmentation1"].value and page["similarity1"].value, name
        assert sum(share for _, share in seen.views[folders["tuned"]].shares()) == pytest.approx(100)


def test_large_images_are_reduced_with_a_note(folders, tmp_path):
    """The longer side becomes max_side, and the note has both sizes; a strip that is too long for one pass raises."""
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "large.png")
    image, note = read_image(str(tmp_path / "large.png"), 1280)
    assert image.shape == (640, 1280, 3) and (image == (255, 0, 0)).all()
    assert "3000 x 1500" in note and "1280 x 640" in note
    page = shown(visit(str(tmp_path / "large.png"), folders["tuned"], max_side=200))
    assert "200 x 100" in page["messages"].value
    assert "128000 x 64" in sentence(view_of, tiny(), np.zeros((1, 2000, 3), np.uint8))


def test_invalid_images_raise_one_message(folders, tmp_path, monkeypatch):
    """Text, half a file, an image of unknown range, a decompression bomb, an animation, 16 bits: the page shows the message, with the
    name of the file and not its path."""
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(scene()).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.fromarray(scene()[:, :, 0].astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("text.png", "half.png", "float.tif"):
        message = sentence(read_image, str(tmp_path / name), 1280)
        assert message.startswith(name) and str(tmp_path) not in message
        page = shown(visit(str(tmp_path / name), folders["tuned"]))
        assert name in page["messages"].value and page["empty"].visible and not page["left1"].visible
    Image.fromarray(scene()).save(tmp_path / "film.gif", save_all=True, append_images=[Image.fromarray(255 - scene())])
    Image.fromarray(scene()[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name, message in (("film.gif", "film.gif is an animated GIF of 2 frames"), ("deep.png", "the image holds more than 8 bits and")):
        assert message in shown(visit(str(tmp_path / name), folders["tuned"]))["messages"].value
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "whole.png" in sentence(read_image, str(tmp_path / "whole.png"), 1280)


def test_visitors_do_not_see_each_other(folders, tmp_path):
    """Two clients of one server open different images in turn; each client's click refers to its own image."""
    from gradio_client import Client, handle_file

    page = demo.build([folders["tuned"]])
    _, url, _ = demo.launch(page, prevent_thread_lock=True, quiet=True)
    try:
        clients = [Client(url, verbose=False) for _ in range(3)]
        legends = []
        for index, client in enumerate(clients[:2]):
            Image.fromarray(scene(index, 40 + 20 * index, 80)).save(tmp_path / f"{index}.png")
            out = client.predict(handle_file(str(tmp_path / f"{index}.png")), folders["tuned"], "", 0.5, api_name="/look")
            legends.append([part for part in out if isinstance(part, str) and "<table" in part])
        assert legends[0] != legends[1]
        for index, client in enumerate(clients[:2]):
            out = client.predict(999, 999, 0.5, api_name="/point")
            assert f"to the pixel at 79, {39 + 20 * index}" in str(out)
            assert [part for part in out if isinstance(part, str) and "<table" in part] == legends[index]
        assert "There is no image" in str(clients[2].predict(1, 1, 0.5, api_name="/point"))
    finally:
        page.close()


def error_of(*arguments, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", ["mscl-demo", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert str(ended.value.code).startswith("error: ") and "\n" not in ended.value.code
    return ended.value.code


def test_examples_that_are_no_folder(monkeypatch, tmp_path):
    """A wrong folder is named before any model is opened."""
    message = error_of("--examples", str(tmp_path / "no"), "--model", str(tmp_path / "none"), monkeypatch=monkeypatch)
    assert f"--examples is {tmp_path / 'no'}; expected a folder of images" in message


def test_invalid_flags_raise_one_message(folders, tmp_path, monkeypatch):
    """A missing folder, a missing second one, examples without images, an invalid port: before a page is served."""
    assert "nowhere/at/all" in error_of("--model", "nowhere/at/all", monkeypatch=monkeypatch)
    assert "not/there/either" in error_of("--model", folders["tuned"], "--compare", "not/there/either", monkeypatch=monkeypatch)
    assert "no images" in error_of("--model", folders["tuned"], "--examples", str(tmp_path), monkeypatch=monkeypatch)
    message = error_of("--model", folders["tuned"], "--port", "99999", monkeypatch=monkeypatch)
    assert "--port is 99999; expected at least 1 and at most 65535" in message


@pytest.mark.parametrize(("host", "local"), [
    ("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True),
    ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("localhost.example.org", False), ("", False),
])  # fmt: skip
def test_a_page_for_others_opens_no_folders(folders, monkeypatch, host, local):
    """Served to other machines, it opens only the folders of its command line, and uses no token for names that visitors type."""
    opened, built = [], {}
    for module in (demo, visits):
        monkeypatch.setattr(module, "open_cached", lambda name, token: opened.append((name, token)))
    monkeypatch.setattr(demo, "build", lambda models, *_, local, **__: built.update(models=models, local=local))
    monkeypatch.setattr(demo, "launch", lambda page, **_: None)
    monkeypatch.setattr(sys, "argv", ["mscl-demo", "--model", folders["tuned"], "--host", host])
    command.main()
    assert built["local"] is local and opened == [(folders["tuned"], None)]
    opened.clear()
    for typed in (folders["other"], "owner/name", folders["tuned"]):
        visits.Visit().with_inputs(None, (typed,), built["models"], built["local"], 100)
    assert opened == [*[(folders["other"], None)] * local, ("owner/name", None if local else False), (folders["tuned"], None)]


def test_without_gradio_the_command_names_the_package(monkeypatch):
    """Without gradio the command ends with one message and status 1."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["mscl-demo"])
    with pytest.raises(SystemExit, match="^error: .* needs gradio, .* pip install gradio"):
        command.main()


def installed(requirements: list[Requirement], folder: Path) -> Path:
    """Return a folder with links to these installed distributions and to those that they require, and to no others."""
    folder.mkdir()
    seen, todo = set(), list(requirements)
    while todo:
        expected = todo.pop()
        if (expected.name, key := frozenset(expected.extras)) in seen:
            continue
        seen.add((expected.name, key))
        try:
            distribution = importlib.metadata.distribution(expected.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, distribution.requires or []):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (expected.extras or {""})):
                todo.append(need)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(distribution.locate_file(top)))
    return folder


def test_the_space_offers_the_models_of_its_variable(monkeypatch):
    """app.py builds its page; MSCL_HF_MODELS gives the choices, and can be empty, because names can be typed."""
    for models in ("owner/one  owner/two", ""):
        monkeypatch.setenv("MSCL_HF_MODELS", models)
        page = runpy.run_path(str(SPACE / "app.py"))["demo"]
        first, second = (block for block in page.blocks.values() if isinstance(block, gradio.Dropdown))
        assert [name for _, name in first.choices] == models.split()
        assert [name for _, name in second.choices] == ["", *models.split()]
        assert page.analytics_enabled is False


@pytest.mark.slow
def test_the_space_needs_only_its_requirements(tmp_path):
    """app.py builds its page with the packages of requirements.txt alone, and fails without one of them; the versions here satisfy it."""
    requirements = [Requirement(line) for line in (SPACE / "requirements.txt").read_text().split()]
    for expected in requirements:
        assert importlib.metadata.version(expected.name).split("+")[0] in expected.specifier, expected
    for missing in (None, "timm"):
        folder = installed([expected for expected in requirements if expected.name != missing], tmp_path / f"without_{missing}")
        command = [sys.executable, "-S", "-c", f"import runpy; print(runpy.run_path({str(SPACE / 'app.py')!r})['demo'])"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert ("Gradio Blocks" in done.stdout) is (missing is None), done.stderr[-2000:]


def test_the_front_matter_of_the_space():
    """It names the app, the license, and a version of gradio that requirements.txt accepts and that is not newer than the installed one."""
    matter = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert matter["sdk"] == "gradio" and (SPACE / matter["app_file"]).is_file() and matter["license"] == "apache-2.0"
    floor = re.search(r"gradio>=([\d.]+)", (SPACE / "requirements.txt").read_text())[1]
    assert Version(floor) <= Version(matter["sdk_version"]) <= Version(gradio.__version__)
    assert len(matter["short_description"]) <= 60
    assert similarity.MAX_CLASSES == 255
