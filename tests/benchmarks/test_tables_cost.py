"""The cost of the grid behind the paper's tables: types of runs, sums over stages, FLOPs, a timed grid; the settings of full scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import torch
import yaml
from torch import nn

from mscl_hf.cli import as_words, parse
from mscl_hf.config import NetworkConfig
from mscl_hf.methods import METHODS
from mscl_hf.models.backbones import config_of
from mscl_hf.models.modeling_mscl import MsclForSemanticSegmentation
from recipes import pretrain
from recipes.benchmarks.stages import RECIPES, Stage
from recipes.benchmarks.tables import cost as tables_cost
from recipes.benchmarks.tables import grid as plan

TINY = {
    "shares": {"1/10": 4, "1/5": 8, "1/2": 16, "all": 24}, "seeds": [0, 1], "seeds_of_others": [0], "leave_out": ["cmc"], "passes": 32,
    "common": {"image-size": 32, "mixed-precision": "no", "dataloader-num-workers": 0, "save-steps": 2},
    "network": {"backbone": "test_resnet", "decoder-channels": 16},
    "pretrain": {"batch-size": 4, "learning-rate": 0.01, "health-steps": 0, "val-split": "none"},
    "finetune": {"batch-size": 4, "max-steps": 3, "dropout": 0, "val-split": "none"}, "finetune_random": {"learning-rate": 0.2},
    "evaluate": {"split": "val", "pictures": 1},
}  # fmt: skip
FULL = [(name, start, reading) for name in ("voc2012", "cityscapes") for start in ("imagenet", "random") for reading in ("best", "printed")]


def grid_of(spec, dataset="synthetic", **options):
    options = plan.TablesOptions(dataset=dataset, **options)
    return {number: list(plan.cells_of(number, spec, options)) for number in options.table}


def full(dataset, **options):
    options = {"scale": "full", "dataset": dataset} | options
    return grid_of(plan.read_spec(plan.TablesOptions(**options)), **options)


def all_stages(grid):
    """Stages by folder; a stage of several cells occurs once."""
    return {stage.folder: stage for cells in grid.values() for cell in cells for stage in cell.stages}


def rows_of(markdown):
    """The rows of all tables, without the lines below their heads."""
    rows = [line for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("start", ["imagenet", "random"])
def test_types_differ_in_the_time_of_a_step(start):
    """Methods, losses and unlabelled images make types; seeds, masks, learning rates and steps do not; what trains nothing is one type."""
    grid = grid_of(TINY, start=start)
    stages = all_stages(grid)
    types = tables_cost.types_of(tables_cost.stages_of(cell for cells in grid.values() for cell in cells))
    assert sorted(stage.folder for members in types.values() for stage in members) == sorted(stages)

    def expected_type(stage):
        flags = stage.flags
        if stage.recipe != "pretrain":
            return stage.recipe, flags.get("loss"), flags.get("semi-supervised")
        method = flags["method"] if METHODS[flags["method"]].trains else "nothing"
        return stage.recipe, method, flags.get("losses"), flags.get("unlabelled")

    assert all(len({expected_type(stage) for stage in members}) == 1 for members in types.values())
    assert len(types) == len({expected_type(stage) for stage in stages.values()})
    order = [name[0] for name in types]
    assert order == sorted(order, key=list(RECIPES).index)


def test_what_a_method_changes_makes_types():
    """Image size and batch of a method make a type; two towers also make one of later stages, the image size of a method does not."""
    spec = TINY | {"leave_out": [], "methods": {"simclr": {"image-size": 48, "batch-size": 8}}}
    grid = grid_of(spec, table=[3], rows=["simclr", "byol", "cmc"], seeds=[0], shares=["1/5"])
    types = tables_cost.types_of(tables_cost.stages_of(grid[3]))
    titles = [tables_cost.title(members[0]) for members in types.values()]
    assert titles == [
        "pretrain simclr 8 x 48 px", "pretrain byol 4 x 32 px", "pretrain cmc two towers 4 x 32 px",
        "finetune ce 4 x 32 px", "finetune ce two towers 4 x 32 px", "evaluate", "evaluate two towers",
    ]  # fmt: skip


def test_totals_are_the_sums_over_the_stages():
    """Hours and FLOPs of each table, and of all tables with shared stages counted once."""
    grid = grid_of(TINY)
    types = tables_cost.types_of(tables_cost.stages_of(cell for cells in grid.values() for cell in cells))
    timings = {name: tables_cost.Timing(3600 * 2.0**number, 36.0 * (number + 1)) for number, name in enumerate(types)}
    pace = {stage.folder: timings[name] for name, members in types.items() for stage in members}

    def hours(*tables):
        once = {stage.folder: stage for cells in tables for cell in cells for stage in cell.stages}
        return sum((pace[folder].once + stage.flags.get("max-steps", 0) * pace[folder].step) / 3600 for folder, stage in once.items())

    rows = rows_of(tables_cost.report(grid, types, timings, steps=8))
    *by_table, together = [float(row[3].replace(",", "")) for row in rows[1:5]]
    assert by_table == pytest.approx([hours(cells) for cells in grid.values()], rel=0.006)
    assert together == pytest.approx(hours(*grid.values()), rel=0.006) and together < sum(by_table)
    by_type = rows[rows.index(next(row for row in rows if row[0] == "type of stage")) + 1 :]
    assert len(by_type) == len(types) and sum(int(row[1]) for row in by_type) == len(all_stages(grid))
    assert sum(float(row[5].replace(",", "")) for row in by_type) == pytest.approx(together, rel=0.006)


def test_timing_of_a_run(tmp_path):
    """A step is the median without the first quarter; the slower start counts as once; two stages of a method are averaged."""
    stage = Stage("pretrain", tmp_path / "run", {})
    (stage.folder / "stage1").mkdir(parents=True)
    (stage.folder / "run.json").write_text(json.dumps({"batch_size": 8, "gradient_accumulation_steps": 2}))
    stage.record_path.write_text(json.dumps({"seconds": 100.0}))
    rows = [{"step": 1, "images_per_second": 1.0}, *({"step": n, "images_per_second": 16 / n} for n in (2, 3, 4)), {"step": 4, "g": 0.5}]
    (stage.folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tables_cost.timing(stage) == (100.0 - 4 * 3.0, 3.0)
    (stage.folder / "stage1" / "log.jsonl").write_text('{"step": 1, "images_per_second": 16}\n')
    assert tables_cost.timing(stage) == (100.0 - 4 * 3.0 - 1.0, 2.0)
    for path in stage.folder.rglob("log.jsonl"):
        path.unlink()
    assert tables_cost.timing(stage) == (100.0, 0.0)


def test_flops_are_those_of_the_convolutions():
    """FLOPs are three times those of a forward pass through the trained parts, which hooks count here on an image."""
    model = MsclForSemanticSegmentation(config_of(NetworkConfig("test_resnet", decoder_channels=16, image_size=32))).eval()
    done = {}

    def count(name):
        def hook(layer, _, out):
            done[name] = 2 * out.numel() * layer.weight[0].numel()

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count(name))
    with torch.no_grad():
        model.both_logits(torch.zeros(1, 3, 32, 32))
    of = {part: 3e-12 * sum(done[name] for name in done if name.startswith(part)) for part in ("backbone", "decoder", "auxiliary")}
    stages = {stage.flags.get("losses") or stage.flags.get("method") or stage.recipe: stage for stage in all_stages(grid_of(TINY)).values()}
    counted = {name: tables_cost.tflop_per_pass(stage) for name, stage in stages.items()}
    backbone, both, every = of["backbone"], of["backbone"] + of["decoder"], sum(of.values())
    for name, expected in {"g": backbone, "simclr": backbone, "g+p": both, "cp2": both, "zhao_cross": both, "finetune": every}.items():
        assert counted[name] == pytest.approx(expected, rel=1e-6 if name != "finetune" else 0.02), name  # classifiers by the classes
    assert counted["none"] == counted["imagenet"] == counted["evaluate"] == 0
    assert tables_cost.passes_of(stages["simclr"]) == tables_cost.passes_of(stages["instdisc"]) == TINY["passes"]


def test_a_short_run_downloads_nothing():
    """It starts from random weights instead of those of the Hub or a file, logs each step, and keeps all other flags."""
    for weights in (None, "weights.safetensors"):
        stages = all_stages(grid_of(TINY, rows=["imagenet", "mscl"], seeds=[0], table=[1], weights=weights)).values()
        for stage in stages:
            short = tables_cost.shortened(stage, 7, Path("short"), None if stage.after is None else Path("m"))
            assert short.folder == Path("short") and not {"pretrained", "backbone-weights"} & short.flags.keys()
            assert short.flags.get("method") in (None, "none", "mscl") and short.flags.get("model") == (stage.after and "m")
            changed = {"method", "model", "max-steps", "save-steps", "val-split", "pretrained", "backbone-weights"}
            assert short.flags.items() >= {name: value for name, value in stage.flags.items() if name not in changed}.items()
            assert stage.recipe == "evaluate" or (short.flags["max-steps"], short.flags["logging-steps"]) == (7, 1)


def test_a_grid_is_timed(tmp_path):
    """One run of each type is made and leaves no files; a failure is an error that names the cell."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    script = """
import sys, yaml
from recipes.benchmarks.tables import cost as tables_cost, grid as plan
spec = yaml.safe_load(open(sys.argv[1]))
options = plan.TablesOptions(dataset="synthetic", start="imagenet", shares=["1/5"], rows=["mscl"], work_dir="work")
grid = {number: list(plan.cells_of(number, spec, options)) for number in (1, 3)}
print(tables_cost.cost(grid, 4))
spec["network"]["backbone"] = "resnet17"
try:
    tables_cost.cost({1: list(plan.cells_of(1, spec, options))[:1]}, 1)
except ValueError as error:
    print("error:", error)
"""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "TMPDIR": str(tmp_path / "temporary")}
    words = [sys.executable, "-c", script, "tiny.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    head, *rows = rows_of(done.stdout)
    assert head == ["table", "stages", "PFLOP", "hours"] and [row[0] for row in rows[:3]] == ["1", "3", "together, shared stages once"]
    types = {row[0]: row[1:] for row in rows[4:]}
    assert list(types) == ["pretrain mscl g+l+p 4 x 32 px", "finetune ce 4 x 32 px", "evaluate"]
    assert [(int(row[0]), int(row[1])) for row in types.values()] == [(2, 2 * 4), (2, 2 * 3), (2, 0)]
    assert [float(row[5]) > 0 for row in types.values()] == [True, True, False] and all(float(row[6]) > 0 for row in types.values())
    assert f"torch {torch.__version__}" in done.stdout and "4 steps" in done.stdout
    assert "error: the pretrain stage of mscl-g+l+p-best-imagenet-8-seed0 failed: error: " in done.stdout
    assert not any((tmp_path / "temporary").glob("*/0")) and not (tmp_path / "work").exists()


@pytest.mark.parametrize(("dataset", "start", "reading"), FULL)
def test_settings_of_full_scale(dataset, start, reading):
    """The recipes accept the flags of every cell; all methods have the same passes and the same fine-tuning, and can run on 8 processes."""
    grid = full(dataset, start=start, reading=reading)
    spec = yaml.safe_load((harness.ROOT / "recipes" / "benchmarks" / "configs" / f"tables_full_{dataset}.yaml").read_text())
    seen, tuned = set(), set()
    for stage in all_stages(grid).values():
        flags = {name: value for name, value in stage.flags.items() if name not in ("model", "seed")}
        if (stage.recipe, *map(str, flags.items())) in seen:
            continue
        seen.add((stage.recipe, *map(str, flags.items())))
        config = parse(RECIPES[stage.recipe][1], "", as_words(stage.flags))
        if stage.recipe == "finetune":
            train = config.training
            tuned.add((config.crops.image_size, config.crops.base_size, train.batch_size, train.mixed_precision, train.learning_rate))
        if stage.recipe == "pretrain" and METHODS[config.run.method].trains:
            pretrain.check_options(config)
            train = config.training
            assert 0 <= spec["passes"] - tables_cost.passes_of(stage) < 3 * train.batch_size and train.batch_size % 8 == 0
            assert config.network.decoder_rates == [6, 12, 18] and train.warmup_steps < train.max_steps / 10
            assert train.mixed_precision == "bf16"
    assert tuned == {(spec["common"]["image-size"], 0, 16, "bf16", 0.01)}
    assert {stage.recipe for stage in all_stages(grid).values()} == set(RECIPES)


def test_flops_of_full_scale():
    """A pass of a ResNet-50 with DeepLabV3 at 513 px has the published FLOPs; the rates of the decoder do not depend on the crop."""
    grid = full("voc2012", rows=["mscl", "simclr"], seeds=[0], table=[3], shares=["1/5"])
    mscl, simclr = (cell.stages for cell in sorted(grid[3], key=lambda cell: cell.name))
    tflop = {stage: tables_cost.tflop_per_pass(stage) for stage in (mscl[0], simclr[0], mscl[1])}
    assert 0.28 < tflop[mscl[0]] < tflop[mscl[1]] < 0.4 and 0.03 < tflop[simclr[0]] < 0.045
    markdown = tables_cost.cost(grid, 0)
    assert "hours" not in markdown and "nothing was run" in markdown and not Path("runs/tables/full_voc2012").exists()


def test_decoder_rates_can_be_given():
    """Explicit rates hold for any image size; the default rates depend on it; rates below 1 are errors."""
    config = config_of(NetworkConfig("test_resnet", decoder_rates=[6, 12, 18], image_size=32))
    assert config.decoder_rates == [6, 12, 18] != config_of(NetworkConfig("test_resnet", image_size=32)).decoder_rates
    with pytest.raises(ValueError, match="--decoder-rates is 0"):
        NetworkConfig(decoder_rates=[0, 3])
