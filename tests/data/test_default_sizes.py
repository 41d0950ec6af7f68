"""Crop and base size that are derived from the training images, and which sizes are kept."""

import json
from types import SimpleNamespace

import harness
import pytest
import torch
import yaml
from test_size_checks import mask_of, write

from mscl_hf.config import DataConfig, NetworkConfig
from mscl_hf.data import default_sizes
from mscl_hf.data.default_sizes import Limit, machine_limit, with_derived_sizes, with_known_sizes

SMALL = ("--backbone", "test_resnet", "--decoder-channels", 16, "--batch-size", 4, "--dataloader-num-workers", 0, "--max-steps", 1)


@pytest.mark.parametrize(
    "height, small, side, image_size, base_size, sizes",
    [(550, 0, 160, None, None, (160, 160)), (550, 30, 160, None, None, (160, 320)), (550, 80, 160, None, None, (160, 224)),
     (550, 30, 512, None, None, (512, 550)), (550, 80, 512, None, None, (512, 512)), (120, 4, 160, None, None, (128, 128)),
     (40, 0, 160, None, None, (96, 96)), (550, 0, 160, None, 0, (160, 0)), (550, 0, 160, None, 128, (128, 128)),
     (550, 30, 160, 96, None, (96, None)), (550, 30, 160, 96, 0, (96, 0))],
)  # fmt: skip
def test_derived_sizes(tmp_path, height, small, side, image_size, base_size, sizes):
    """The crop is as large as images and machine allow; the smallest class decides how far images are reduced; given sizes are kept."""
    write(tmp_path, "train", [mask_of(height, 2 * height, small) for _ in range(2)])
    lines, network = [], NetworkConfig(image_size=image_size, base_size=base_size)
    derived = with_derived_sizes(network, DataConfig("folder", str(tmp_path)), Limit(side, "limited by the test"), lines.append)
    assert (derived.image_size, derived.base_size) == sizes
    assert lines == [] if image_size else "sizes from the data: crop" in lines[0]
    if not image_size:
        assert ("limited by the test" in lines[0]) == (sizes[0] == side < (base_size or height))
        assert f"short side of the images {height} px, the smallest class" in lines[0]


def test_images_alone(tmp_path):
    """Where no mask is read, images are scaled to twice the crop, or stay as they are."""
    write(tmp_path, "train", [mask_of(550, 600)])
    options, limit, lines = DataConfig("folder", str(tmp_path)), Limit(160, ""), []
    derived = with_derived_sizes(NetworkConfig(), options, limit, lines.append, uses_labels=False)
    assert (derived.image_size, derived.base_size) == (160, 320) and "class" not in lines[0]


@pytest.mark.parametrize("tile, crop", [([128, 16], 128), ([512, 0], 160), ([64, 0], 96)])
def test_tiles_are_not_scaled(tmp_path, tile, crop):
    """The crop fits a tile, which has the stored size, so that --base-size is 0."""
    write(tmp_path, "train", [mask_of(550, 600)])
    lines, options = [], DataConfig("folder", str(tmp_path), tile=tile)
    derived = with_derived_sizes(NetworkConfig(), options, Limit(160, ""), lines.append)
    assert (derived.image_size, derived.base_size) == (crop, 0) and f"of the tiles {tile[0]} px;" in lines[0]
    assert options.scale_of_tiles(derived.base_size) == 0


@pytest.mark.parametrize(
    "gigabytes, batch_size, side, words",
    [(None, 16, 160, "speed of the CPU at --batch-size 16"), (None, 1000, 96, "CPU"), (8, 16, 224, "8 GB of GPU memory"),
     (24, 16, 416, "24 GB of GPU"), (80, 16, 512, ""), (80, 128, 256, "80 GB of GPU")],
)  # fmt: skip
def test_limits_of_machines(monkeypatch, gigabytes, batch_size, side, words):
    """A CPU is limited by its speed, a GPU by its memory; batches of larger crops would not fit."""
    memory = SimpleNamespace(total_memory=(gigabytes or 0) * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    limit = machine_limit(torch.device("cpu" if gigabytes is None else "cuda"), batch_size)
    assert limit.side == side and words in limit.reason and bool(words) == bool(limit.reason)


def test_fixed_and_recorded_sizes(tmp_path):
    """Published data sets have fixed sizes; a resumed run keeps those in its config.yaml, a new one reads none."""
    assert with_known_sizes(NetworkConfig(), DataConfig("camvid"), True, str(tmp_path)) == NetworkConfig(image_size=96)
    (tmp_path / "config.yaml").write_text("image_size: 224\nbase_size: 448\n")
    own = DataConfig("coco")
    assert with_known_sizes(NetworkConfig(), own, True, str(tmp_path)) == NetworkConfig(image_size=224, base_size=448)
    assert with_known_sizes(NetworkConfig(), own, False, str(tmp_path)) == NetworkConfig()
    assert with_known_sizes(NetworkConfig(image_size=64), own, True, str(tmp_path)) == NetworkConfig(image_size=64)


def test_one_size_in_training_resuming_and_evaluation(tmp_path, capsys, monkeypatch, own_caches):
    """Pre-training derives the sizes and records them; a resumed run keeps them on another machine; later commands use the model's."""
    for split in ("train", "val"):
        write(tmp_path, split, [mask_of(200, 240, 24) for _ in range(4)])
    data = ("--dataset", "folder", "--data-dir", tmp_path)
    pretraining = ("pretrain", *data, *SMALL, "--health-steps", 0, "--output-dir", tmp_path / "a", "--warmup-steps", 0)
    harness.run(*pretraining)
    assert "sizes from the data: crop 192 px, base size 200 px" in capsys.readouterr().out
    monkeypatch.setattr(default_sizes, "CPU_PIXELS", 1)
    harness.run(*pretraining, "--resume")
    assert "sizes from the data" not in capsys.readouterr().out
    harness.run("finetune", *data, *SMALL[4:], "--model", tmp_path / "a", "--output-dir", tmp_path / "b", "--warmup-steps", 0)
    harness.run("evaluate_model", *data, "--split", "val", "--model", tmp_path / "b", "--output-dir", tmp_path / "c")
    for folder in ("a", "b"):
        for name, load in (("config.json", json.loads), ("config.yaml", yaml.safe_load)):
            content = load((tmp_path / folder / name).read_text())
            assert (content["image_size"], content["base_size"]) == (192, 200)
    assert json.loads((tmp_path / "c" / "results.json").read_text())["inference"]["base_size"] == 200
