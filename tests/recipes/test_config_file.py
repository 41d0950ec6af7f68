"""config.yaml reproduces a run: the same configuration again, and the same weights or results, for all recipes and methods."""

import json
from pathlib import Path

import harness
import pytest
from test_recipes import write_folder

from mscl_hf.cli import flat
from mscl_hf.config import PretrainConfig
from mscl_hf.methods import METHODS

# One method for each way in which options are resolved; the others take the same ways.
QUICK = ("none", "mscl", "moco_v2", "byol", "instdisc", "zhao_cross", "chaitanya_global_local", "cp2")
BUDGET = ("--max-steps", 2, "--save-steps", 0, *harness.SHORT)
SKIPPED = ("draw_training", "draw_features", "draw_predictions", "write_card")


def run(recipe: str, *flags) -> None:
    harness.run(recipe, *flags, **{name: lambda *_, **__: None for name in SKIPPED if is_used(recipe, name)})


def is_used(recipe: str, name: str) -> bool:
    return name in Path(harness.load_recipe(recipe).__file__).read_text()


def flags_of(method: str) -> tuple:
    """A tiny network on synthetic scenes; some methods need a larger feature map, two towers, or weights."""
    backbone = "resnet18" if METHODS[method].two_towers else "test_resnet"
    size = [word for name, value in harness.method_size(method).items() for word in (f"--{name.replace('_', '-')}", value)]
    network = ("--backbone", backbone, "--decoder-channels", 16, *size)
    return ("--method", method, *network, *harness.needed_flags(method), "--val-split", "none", *BUDGET)


def options(out: Path) -> dict[str, str]:
    """The options in config.yaml, without the output folder."""
    lines = [line.split(": ", 1) for line in (out / "config.yaml").read_text().splitlines() if ": " in line]
    return {name: value for name, value in lines if name != "output_dir"}


def assert_reproduces(recipe: str, out: Path) -> Path:
    """Run again with config.yaml alone, and compare what it writes; returns the new folder."""
    again = out.with_name(f"{out.name}-again")
    run(recipe, "--config", out / "config.yaml", "--output-dir", again)
    assert options(again) == options(out)
    if (out / "model.safetensors").exists():
        assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    return again


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in METHODS])
def test_pretraining(tmp_path, method):
    """For every method, with the options that it leaves to its paper or to the size of the data."""
    run("pretrain", *flags_of(method), "--output-dir", tmp_path / "a")
    assert options(tmp_path / "a")["method"] == method
    assert_reproduces("pretrain", tmp_path / "a")


def test_fine_tuning_and_evaluation(tmp_path):
    """The sizes of the model, its label map and its start become options of the next recipe."""
    data = ("--dataset", "folder", "--data-dir", write_folder(tmp_path / "data", count=harness.SCENES))
    mapped = (*data, "--num-classes", 3, "--label-map", "0:0,1:1,2:1,3:2,4:2,5:2,6:2,7:2")
    run("pretrain", *harness.TINY, *data, *BUDGET, "--num-classes", 8, "--losses", "g+l", "--output-dir", tmp_path / "first")
    start = ("--start-from", tmp_path / "first", "--method", "simclr", "--num-classes", 8)
    run("pretrain", *harness.TINY, *data, *BUDGET, *start, "--output-dir", tmp_path / "start")
    assert_reproduces("pretrain", tmp_path / "start")
    run("finetune", "--model", tmp_path / "start", *mapped, *BUDGET, "--output-dir", tmp_path / "tuned")
    assert options(tmp_path / "tuned")["image_size"] == str(harness.SIZE)
    assert_reproduces("finetune", tmp_path / "tuned")
    measure = ("--model", tmp_path / "tuned", *data, "--split", "val")
    run("evaluate_model", *measure, "--pictures", 0, "--output-dir", tmp_path / "scores")
    assert options(tmp_path / "scores")["label_map"] == options(tmp_path / "tuned")["label_map"]
    again = assert_reproduces("evaluate_model", tmp_path / "scores")
    assert results(again) == results(tmp_path / "scores")


def results(out: Path) -> dict:
    """The results of an evaluation, without the time it took and its folder."""
    content = json.loads((out / "results.json").read_text())
    content["config"] = {name: value for name, value in content["config"].items() if name != "output_dir"}
    return {name: value for name, value in content.items() if name != "seconds"}


def test_file_holds_every_option(tmp_path):
    """Every option of the recipe is in the file, by its name, and the file continues its own run."""
    run("pretrain", *flags_of("none"), "--output-dir", tmp_path / "a")
    assert {*options(tmp_path / "a"), "output_dir", "resume"} == flat(PretrainConfig()).keys()
    run("pretrain", "--config", tmp_path / "a" / "config.yaml", "--resume")
    run("pretrain", *flags_of("none"), "--output-dir", tmp_path / "a", "--resume")
    assert "already holds a run" in harness.rejected("pretrain", "--config", tmp_path / "a" / "config.yaml")
