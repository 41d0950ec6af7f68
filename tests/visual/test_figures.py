"""Pictures: distinguishable colors, overlays, sheets and figures."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mscl_hf.visual import curves, figures
from mscl_hf.visual.palette import class_colors, class_palette, overlay, pca_colors

CLASSES = ("sky", "road", "car")

# Machado, Oliveira & Fernandes (IEEE TVCG 2009), severity 1, on linear RGB: protanopia, deuteranopia.
COLOR_BLIND = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab_as_seen(colors: np.ndarray) -> np.ndarray:
    """Return (3, N, 3) CIELAB of sRGB colors (N, 3) uint8 for usual, red-blind and green-blind sight."""
    fraction = colors / 255
    linear = np.where(fraction <= 0.04045, fraction / 12.92, ((fraction + 0.055) / 1.055) ** 2.4)
    sights = np.concatenate([np.eye(3)[None], COLOR_BLIND])
    xyz = (linear @ sights.transpose(0, 2, 1)).clip(0, 1) @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(1)
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def picture(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.std() > 5, "the picture is blank"
    return pixels


def has_color(pixels, color):
    return (np.abs(pixels - np.asarray(color)).max(-1) <= 2).any()


@pytest.mark.parametrize(("count", "apart"), [(11, 15), (21, 15), (150, 4), (255, 2)])
def test_colors_are_distinguishable(count, apart):
    """The two closest colors differ by at least `apart` (CIELAB), also for red- and green-blind eyes."""
    seen = lab_as_seen(class_palette(count))
    assert seen.shape == (3, count, 3)
    for colors in seen:
        distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e3 * np.eye(count)
        assert distance.min() > apart


def test_lab_of_known_colors():
    """White, black and pure red have the CIELAB values of the textbook for the usual eye."""
    lab = lab_as_seen(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], dtype=np.uint8))[0]
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.05)
    gray = lab_as_seen(np.array([[120, 120, 120]], dtype=np.uint8))
    np.testing.assert_allclose(gray, np.broadcast_to(gray[0], gray.shape), atol=0.1)  # gray is gray for all


def test_a_class_keeps_its_color():
    """Colors do not depend on the number of classes; background is gray and uses none of the palette."""
    assert np.array_equal(class_palette(150)[:21], class_palette(21))
    colors = class_colors(("background", *CLASSES))
    assert len(set(colors[0].tolist())) == 1 and np.array_equal(colors[1:], class_palette(3))
    with pytest.raises(ValueError, match="read-only"):
        class_palette(3)[0] = 0


def test_overlay_leaves_ignored_pixels_and_its_inputs_unchanged():
    """255 shows the image; a class moves a pixel towards its color; the inputs are unchanged."""
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    mask = np.full((4, 6), 255, dtype=np.uint8)
    mask[:2] = 1
    before = image.copy(), mask.copy()
    blended = overlay(image, mask, CLASSES)
    assert np.array_equal(blended[2:], image[2:]) and blended.dtype == np.uint8
    color = class_colors(CLASSES)[1].astype(float)
    assert np.abs(blended[:2] - color).max() < 0.31 * 191 + 1
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])
    with pytest.raises(ValueError, match="Scale one of them"):
        overlay(image, mask[:3], CLASSES)


def test_prediction_sheet_shows_wrong_pixels_and_the_classes_present(tmp_path):
    """Wrong pixels have the error color, correct ones do not; the legend lists the classes that occur."""
    image = np.random.default_rng(0).integers(60, 200, (60, 80, 3)).astype(np.uint8)
    truth = np.zeros((60, 80), np.uint8)
    truth[:, 40:], truth[:5] = 1, 255
    wrong = truth.copy()
    wrong[20:40, 10:30] = 2
    errors = figures._errors(image, truth, wrong, 3).astype(int)
    red = errors[..., 0] - errors[..., 1] > 60
    assert np.array_equal(red, (truth != wrong) & (truth != 255)) and not errors[:5].any()
    assert set(figures.present(CLASSES, [truth, None])) == {"sky", "road"}
    long = "a name much longer than the row is high"
    rows = [(image, truth, wrong, "first"), (image[:, :50], None, wrong[:, :50], long)]
    figures.prediction_sheet(rows, CLASSES, tmp_path / "new" / "sheet.png")
    pixels = picture(tmp_path / "new" / "sheet.png")
    assert all(has_color(pixels, color) for color in class_colors(CLASSES))  # the legend's swatches
    figures.prediction_sheet([(image, truth, truth, "")], CLASSES, tmp_path / "right.png")
    assert not has_color(picture(tmp_path / "right.png"), class_colors(CLASSES)[2])
    with pytest.raises(ValueError, match="rows is empty"):
        figures.prediction_sheet([], CLASSES, tmp_path / "x.png")


STRANGE = ("$\\x$", "a $ b", "$x$ $", r"\$y\$", "100 % _^{}", "half \udcff")


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's of what it cannot draw
def test_names_are_no_mathematics(tmp_path):
    """Names of classes, files, columns and runs are drawn literally in every picture."""
    from matplotlib.text import Text

    image, mask = np.full((40, 60, 3), 128, np.uint8), np.arange(40 * 60).reshape(40, 60).astype(np.uint8) % len(STRANGE)
    figures.prediction_sheet([(image, mask, mask, name) for name in STRANGE], STRANGE, tmp_path / "predictions.png")
    figures.comparison_strip([image], {name: [mask] for name in STRANGE}, STRANGE, tmp_path / "strip.png")
    figures.feature_maps_sheet([image], [mask], torch.randn(1, 8, 4, 6), tmp_path / "features.png", STRANGE)
    log = [{"step": step} | dict.fromkeys((*STRANGE, "loss_$x_\\y$", "loss_b"), 1.0) for step in range(3)]
    curves.training_figure(log, tmp_path / "training.png", title=STRANGE[0])
    assert len(list(tmp_path.glob("*.png"))) == 4
    for name in STRANGE[:-1]:
        assert Text(text=figures.literal(name))._preprocess_math(figures.literal(name)) == (name, False)


def test_comparison_strip_shows_the_same_images_in_every_column(tmp_path):
    """Masks in the colors of their classes, a legend of those that occur; columns of another length raise."""
    images = [np.full((40, 60, 3), 128, np.uint8)] * 2
    truth, wrong = [np.zeros((40, 60), np.uint8)] * 2, [np.full((40, 60), 2, np.uint8)] * 2
    figures.comparison_strip(images, {"truth": truth, "none": wrong, "ours": truth}, CLASSES, tmp_path / "strip.png")
    pixels, colors = picture(tmp_path / "strip.png"), class_colors(CLASSES)
    assert has_color(pixels, colors[0]) and has_color(pixels, colors[2]) and not has_color(pixels, colors[1])
    sky, car = ((np.abs(pixels - (0.3 * 128 + 0.7 * colors[i])).max(-1) <= 2).sum() for i in (0, 2))
    assert sky == pytest.approx(2 * car, rel=0.05) and car > 10_000
    with pytest.raises(ValueError, match="Got 2 images and these masks: 2 for truth, 1 for none"):
        figures.comparison_strip(images, {"truth": truth, "none": wrong[:1]}, CLASSES, tmp_path / "x.png")


def log_of(steps):
    log = []
    for step in range(steps):
        row = {"step": step, "loss": 5.0 / (step + 1), "loss_global": 1.0, "loss_pixel": 2.0, "floor_pixel": 1.5}
        row |= {"excess_pixel": 0.5, "lr": 0.1, "grad_norm": 10.0 ** (step % 4), "note": "text"}
        row |= {"images_per_second": 50.0, "data_wait": 0.1}
        if step % 10 == 0:
            row |= {"probe_mean_iou": 0.2, "effective_rank_pixel": 9.0, "spread_pixel": 0.1}
            row |= {"effective_rank_global": 3.0, "spread_global": 0.2}
        log.append(row | {"ema_momentum": 0.99})
    return log


def test_every_number_of_the_log_has_a_panel():
    """Each key is drawn once, related ones together, others in separate panels; text is left out."""
    panels = curves._panels(log_of(20))
    drawn = [key for curves in panels.values() for key in curves]
    numbers = {key for row in log_of(20) for key, value in row.items() if isinstance(value, float)}
    assert sorted(drawn) == sorted(numbers)
    assert set(panels["loss"]) == {"loss", "loss_global", "loss_pixel", "floor_pixel"} and "ema momentum" in panels
    assert panels["linear probe mean IoU"]["probe_mean_iou"].tolist() == [[0, 0.2], [10, 0.2]]
    assert "linear probe mean IoU" not in curves._panels([{"step": 1, "loss": 1.0}])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_logged_steps_are_seen(count):
    """Each curve, the floor too, has markers, and the steps are whole numbers on the axis."""
    axis = figures.new_figure(4, 3).subplots()
    log = [{"step": 10 * step, "loss": 3.0 + step, "floor_pixel": 1.5} for step in range(1, count + 1)]
    curves._draw_panel(axis, "loss", curves._panels(log)["loss"], from_zero=False)
    assert [line.get_marker() for line in axis.lines] == ["o", "_"]
    left, right = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if left <= tick <= right]
    assert ticks and all(tick == round(tick) for tick in ticks) and left < 10 and right > 10 * count


def test_running_mean_keeps_a_straight_line():
    """Steps and values are averaged alike: a straight curve stays on itself, ends included."""
    line = np.stack([np.arange(200.0), 3 * np.arange(200.0) + 1], axis=1)
    smooth = curves._smoothed(line, 7)
    assert len(smooth) == 194
    np.testing.assert_allclose(smooth[:, 1], 3 * smooth[:, 0] + 1)


@pytest.mark.parametrize("steps", [1, 30, 300])
def test_training_figure_is_drawn_for_short_and_long_logs(tmp_path, steps):
    """One logged step, some, many, with a NaN among them: always a picture."""
    log = log_of(steps)
    log[steps // 2]["loss"] = float("nan")
    curves.training_figure(log, tmp_path / "training.png", "mscl")
    picture(tmp_path / "training.png")


def test_small_changes_of_the_mean_iou_look_small(tmp_path, monkeypatch):
    """Its axis starts at zero: a probe that falls from 0.098 to 0.096 is no collapse."""
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.extend(figure.axes))
    log = [{"step": step, "probe_mean_iou": probe, "val_mean_iou": probe} for step, probe in ((0, 0.098), (10, 0.096))]
    curves.training_figure(log, tmp_path / "training.png")
    assert len(drawn) == 2 and all(axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 0.098 for axis in drawn)


def test_class_figure_has_a_panel_for_each_class(tmp_path, monkeypatch):
    """Curves of both networks, without the steps at which a class did not occur; no picture without held-out values."""
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.extend(figure.axes))
    curves.class_figure([{"step": 5, "loss": 1.0}], tmp_path / "classes.png")
    assert not drawn
    log = [{"step": step, "val_class_iou": {"sky": 0.1 * step, "car": None}, "val_class_iou_network": {"sky": 0.2, "car": 0.3}}
           for step in (1, 2)]  # fmt: skip
    curves.class_figure([{"step": 1, "loss": 1.0}, *log], tmp_path / "classes.png")
    assert [axis.get_title() for axis in drawn] == ["sky", "car"]
    lines = [{line.get_label(): line.get_ydata().tolist() for line in axis.lines} for axis in drawn]
    assert lines == [{"published": [0.1, 0.2], "network": [0.2, 0.2]}, {"network": [0.3, 0.3]}]


def test_training_figure_without_numbers_raises(tmp_path):
    """A log without numbers raises."""
    with pytest.raises(ValueError, match="no number"):
        curves.training_figure([{"step": 1}], tmp_path / "training.png")


def test_pca_colors_show_the_main_directions():
    """Two groups of pixels get two colors; a rotation of the features changes colors to their complement at most."""
    generator = torch.Generator().manual_seed(0)
    group = torch.zeros(2, 1, 8, 8)
    group[:, :, :, 4:] = 1
    direction = torch.randn(1, 16, 1, 1, generator=generator)
    features = group * direction * 5 + 0.1 * torch.randn(2, 16, 8, 8, generator=generator)
    colors = pca_colors(features).astype(int)
    assert colors.shape == (2, 8, 8, 3)
    left, right = colors[:, :, :4, 0], colors[:, :, 4:, 0]
    assert abs(left.mean() - right.mean()) > 200 and left.std() < 20 and right.std() < 20
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    turned = pca_colors(torch.einsum("ij,njhw->nihw", turn, features)).astype(int)
    for channel in range(3):
        one, other = colors[..., channel], turned[..., channel]
        assert min(np.abs(one - other).max(), np.abs(one - 255 + other).max()) <= 2


def test_pca_is_robust_and_total():
    """One outlier does not hide the rest; constant features and two channels work; NaN raises."""
    features = torch.rand(2, 8, 20, 20, generator=torch.Generator().manual_seed(0))
    features[0, 0] += torch.linspace(0, 20, 20)
    features[0, 3, 0, 0] = 1e4
    assert all(pca_colors(features)[..., channel].std() > 20 for channel in range(3))
    assert len(np.unique(pca_colors(torch.ones(1, 4, 3, 3)))) == 1
    assert pca_colors(torch.rand(1, 2, 3, 3)).shape == (1, 3, 3, 3)
    features[1, 1, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        pca_colors(features)


@pytest.mark.parametrize("labelled", [True, False])
def test_feature_maps_sheet_is_drawn(tmp_path, labelled):
    """With masks or without, at a feature resolution below the image's."""
    images = [np.random.default_rng(i).integers(0, 256, (32, 48, 3)).astype(np.uint8) for i in range(2)]
    masks = [np.full((32, 48), i, np.uint8) if labelled else None for i in range(2)]
    features = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    figures.feature_maps_sheet(images, masks, features, tmp_path / "one.png")
    figures.feature_maps_sheet(images, masks, features, tmp_path / "two.png", CLASSES)
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png")
    assert (two.shape[0] > one.shape[0]) == labelled, "a legend is drawn for names with masks"
    with pytest.raises(ValueError, match="2 images, 1 masks"):
        figures.feature_maps_sheet(images, masks[:1], features, tmp_path / "x.png")


def test_real_images_are_drawn(real_data, tmp_path):
    """A CamVid image with its mask, whole chain from file to sheet."""
    image_path, mask_path = (real_data / "CamVid" / "test.txt").read_text().split()[:2]
    image = np.asarray(Image.open(real_data / "CamVid" / image_path).convert("RGB"))
    mask = np.asarray(Image.open(real_data / "CamVid" / mask_path))
    names = [f"class {i}" for i in range(11)]
    row = (image, mask, np.roll(mask, 9, 1) % 11, "camvid")
    figures.prediction_sheet([row], names, tmp_path / "sheet.png")
    picture(tmp_path / "sheet.png")


def test_importing_figures_does_not_import_matplotlib():
    """Training without pictures does not load the plotting library."""
    code = "import sys, mscl_hf.visual.figures, mscl_hf.visual.curves; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
