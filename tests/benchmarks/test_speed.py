"""The speed benchmark and the comparisons on a small scale: every part runs, its figures add up, pages are written, errors are clear."""

import csv
import json
import os
import subprocess
import sys

import harness
import pytest
import yaml

from mscl_hf import MsclForPreTraining
from recipes.benchmarks import common, compare, runner, stages
from recipes.benchmarks.speed import memory, waits
from recipes.benchmarks.speed import report as speed_report
from recipes.benchmarks.speed import run as speed_run
from recipes.benchmarks.speed.processes import run_worker
from recipes.benchmarks.speed.step import step

SMALL = ("--rounds", 1, "--steps", 2, "--backbone", "test_resnet", "--image-size", 32, "--batch-size", 4, "--largest", 1024)


def run_speed(*words):
    return run_benchmark("speed", *words)


def run_benchmark(*words):
    command = [sys.executable, "-m", "recipes.benchmarks", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)


@pytest.mark.slow
def test_costs_of_methods_are_measured(tmp_path):
    """One command pre-trains, fine-tunes, evaluates and times a method and the bare backbone, and counts weights by their use."""
    spec = {
        "dataset": "synthetic", "baseline": "simclr", "seeds": [0], "cells": {"moco_v2": {"pretrain": {"method": "moco_v2"}}},
        "common": {"train-count": 8, "image-size": 32, "mixed-precision": "no", "dataloader-num-workers": 0},
        "pretrain": {"backbone": "test_resnet", "decoder-channels": 16, "batch-size": 4, "max-steps": 2, "health-steps": 0},
        "finetune": {"batch-size": 4, "max-steps": 1, "val-split": "none"}, "evaluate": {"split": "val"},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    words = ("--spec", tmp_path / "spec.yaml", "--work-dir", tmp_path / "work", "--results", tmp_path / "m.csv", "--timed-steps", 4)
    done = run_benchmark("methods", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    bare, row = csv.DictReader((tmp_path / "m.csv").open())
    assert float(bare["ms_per_step"]) > 0 and float(row["ms_per_step"]) > 0 and 200 < float(row["peak_mb"]) < 5000
    network = MsclForPreTraining.from_pretrained(tmp_path / "work" / "moco_v2-seed0" / "pretrain")
    backbone, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.backbone, network.decoder))
    assert float(bare["handed_on_m"]) == pytest.approx(backbone, abs=0.006)
    assert float(row["handed_on_m"]) == pytest.approx(backbone + decoder, abs=0.006)
    assert float(row["teacher_m"]) == pytest.approx(backbone + float(row["heads_m"]), abs=0.02)
    assert 0 < float(row["mean_iou"]) < 1 and row["labels"] == "no" and "| moco_v2 | no |" in (tmp_path / "m.md").read_text()


@pytest.mark.slow
def test_loss_step_and_metric_are_measured(tmp_path):
    """One command writes figures, a page and a picture; the phases of a step add up to it; a part measured later is added."""
    out = tmp_path / "speed.json"
    done = run_speed("--parts", "loss", "step", *SMALL, "--results", out)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert {(row["n"], row["route"]) for row in found["loss"]["rows"]} == {(1024, route) for route in ("plain", "fp32", "bf16")}
    assert all(row["seconds"] > 0 for row in found["loss"]["rows"])
    for row in found["step"]["rows"]:
        phases = {name: row["milliseconds"][name] for name in speed_report.PHASES}
        assert all(value >= 0 for value in phases.values()) and phases["backward"] > 0 < phases["decode"]
        assert sum(phases.values()) == pytest.approx(row["milliseconds"]["step"], rel=0.3)  # medians of two steps
        assert row["images_per_second"] == pytest.approx(4e3 / row["milliseconds"]["step"], rel=0.01)
    done = run_speed("--parts", "metric", *SMALL, "--results", out)
    assert done.returncode == 0, done.stderr[-3000:]
    added = json.loads(out.read_text())
    assert added["step"] == found["step"]
    (row,) = added["metric"]["rows"]
    assert 0 < row["mean_iou"] < 1
    assert "| streamed |" in out.with_suffix(".md").read_text() and out.with_suffix(".png").stat().st_size > 10_000


def test_wrong_options_are_rejected(tmp_path):
    """Unknown parts, peers without a folder, zero rounds: one error, and nothing is written."""
    cases = {
        "--parts waits --waits tea": "--waits is tea", "--parts waits": "needs --data-dir of CamVid", "--parts lose": "--parts is lose",
        "--parts peers": "--peers", "--parts finetune_peers --data-dir x": "--parts has finetune_peers",
        f"--parts finetune_peers --data-dir x --peers {tmp_path}": "has no smp", "--parts loss --fly": "--fly",
        "--rounds 0": "--rounds is 0",
    }  # fmt: skip
    for words, message in cases.items():
        with pytest.raises(ValueError, match=message):
            speed_run.main([*words.split(), "--results", str(tmp_path / "x.json")])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [
    "camvid", "losses_camvid", "synthetic", "voc2012", "semi_supervised_camvid", "semi_supervised_synthetic", "semi_supervised_voc2012",
    "frozen_camvid", "distillation_camvid", "distillation_voc2012",
])  # fmt: skip
def test_summaries_follow_from_the_rows(tmp_path, monkeypatch, name):
    """Each comparison in results/ has the Markdown of its rows; a cell that fine-tunes the network of another has its pre-training."""
    source, results = f"recipes/benchmarks/configs/compare_{name}.yaml", harness.ROOT / "results"
    spec, rows = common.read_yaml(harness.ROOT / source), common.read_csv(results / f"compare_{name}.csv")
    rows = [row | {"mean_iou": float(row["mean_iou"])} for row in rows]
    assert compare.summary(spec, rows, source) == (results / f"compare_{name}.md").read_text()
    cells = {cell.name: cell for cell in compare.cells_of(spec, compare.CompareOptions(source, seeds=[0]))}
    for cell, content in spec["cells"].items():
        assert cells[cell].stages[0] == cells[content.get("from", cell)].stages[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite0.safetensors").touch()
    runner.check(list(cells.values()))


def test_the_page_has_the_figures():
    """Medians with ranges, factors over plain autograd, the exponent of a power law; parts that were not measured are left out."""
    assert speed_report.exponent([1, 10, 100], [3, 3 * 10**1.7, 3 * 10**3.4]) == pytest.approx(1.7)
    machine = {"machine": "m", "threads": 2, "torch": "t", "commit": "c"}
    routes = (("plain", 12.0, 4000), ("plain", 8.0, 4000), ("plain", 9.0, 4000), ("bf16", 0.5, 100))
    rows = [{"n": 16384, "route": route, "seconds": seconds, "added_mb": mb} for route, seconds, mb in routes]
    page = speed_report.report({"loss": {"rows": rows, "machine": machine}})
    assert "| 9.000 (8.000 to 12.000) | 1.0x |" in page and "| 0.500 | 18.0x | 100 | 1/40 |" in page and "Mean IoU" not in page
    grown = [{"grows": "image size", "size": s, "milliseconds": {"step": s**2 / 10}} for s in (96, 128, 256)]
    assert "| image size | 96: 922, 128: 1,638, 256: 6,554 | 1.00 |" in speed_report.report({"growth": {"rows": grown, "machine": machine}})


@pytest.mark.slow
def test_fine_tuning_is_timed_as_in_other_libraries(real_data):
    """The real command on CamVid, timed from optimizer step to optimizer step; a library without the network is an error."""
    script = harness.ROOT / "recipes" / "benchmarks" / "speed" / "finetune_peers.py"

    def timed(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        sizes = ("--data-dir", real_data / "CamVid", "--image-size", 32, "--batch-size", 2, "--steps", 4, "--warmup", 1, "--workers", 0)
        command = [sys.executable, script, *words, *sizes]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False, timeout=280)

    done = timed("mscl_hf", "--backbone", "resnet18")
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["images_per_second"] > 0 and 15.2e6 < row["parameters"] < 15.4e6
    wrong = timed("lightly_train", "--backbone", "resnet18")
    assert wrong.returncode == 2 and "expected mscl_hf or smp" in wrong.stderr


def test_other_libraries_are_compared_by_network_and_precision():
    """Images per second as medians, and the factor over each library on the same network."""
    rows = [
        {"backbone": "a", "precision": "bf16", "library": library, "version": "1.2", "parameters": 11_260_000, "images_per_second": rate,
         "image_size": 224, "batch_size": 8, "workers": 0}
        for library, rates in (("mscl_hf", (30.0, 20.0, 40.0)), ("other", (10.0, 12.0, 15.0)))
        for rate in rates
    ]
    page = speed_report.report({"finetune_peers": {"rows": rows, "machine": {"machine": "m", "threads": 2, "torch": "t", "commit": "c"}}})
    assert "| a | bf16 | mscl_hf | 11.3 | 30.0 (20.0 to 40.0) | 1.00 |" in page
    assert "| a | bf16 | other 1.2 | 11.3 | 12.0 (10.0 to 15.0) | 2.50 |" in page


def test_memory_of_a_step_gives_the_largest_batch():
    """A line through the peaks: 1,000 MB and 200 MB per image leave 31, 68, 105 and 363 images; each mode is measured."""
    assert memory.largest_batches([2, 4, 6], [1400, 1800, 2200])[2] == [31, 68, 105, 363]
    assert memory.largest_batches([2, 4], [90_000, 100_000])[2][:3] == [0, 0, 0]
    for mode in memory.MODES:  # in new processes, as memory that this one has freed would not count
        assert run_worker("memory", backbone="resnet10t", size=128, mode=mode, batch=4)["peak_mb"] > 0
    cell = {"backbone": "a", "size": 64, "mode": "plain", "device": "cuda"}
    rows = [cell | {"batch": batch, "peak_mb": 1000 + 200 * batch} for batch in (2, 4)]
    page = speed_report.report({"memory": {"rows": rows, "machine": {"machine": "m", "threads": 2, "torch": "t", "commit": "c"}}})
    assert "| a | 64 | plain | 1,000 | 200 | 31 | 68 | 105 | 363 |" in page


def test_waits():
    """Fine-tuning is timed beside its network, in seconds and MB; rows are shown as ratios, one for each comparison."""
    bare, whole = (waits.finetune(3, route, batch_size=1, steps=2, size=65) for route in ("bare", "fine-tuning"))
    assert bare["seconds"] > 0 < whole["seconds"] and whole["peak_mb"] > 100
    (row,) = waits.command_help("mscl-evaluate")
    assert 0.1 < row["ours"] < 60
    rows = [waits.row("a wait", ours, "a loop", theirs, peak_mb=1500) for ours, theirs in ((3.0, 2.0), (5.0, 2.5), (1.0, 1.0))]
    page = speed_report.report({"waits": {"rows": rows, "machine": {"machine": "m", "threads": 2, "torch": "t", "commit": "c"}}})
    assert "| a wait | 3.00 (1.00 to 5.00) | a loop | 2.00 (1.00 to 2.50) | 1.50 (1.00 to 2.00) | peak MB 1,500 (1,500 to 1,500) |" in page


def test_a_step_is_timed_by_its_phases():
    """On the real training loop: every phase has a time, and together they are the step."""
    flags = [*map(str, harness.TINY), "--batch-size", "4", "--train-count", "8", "--dataloader-num-workers", "0", "--val-split", "none"]
    row = step("tiny", flags, steps=2, warmup=1)
    phases = row["milliseconds"]
    assert min(phases.values()) >= 0 and phases["bare"] > 0 and phases["step"] > max(phases["forward"], phases["backward"])
    assert row["images_per_second"] > 0 and row["peak_mb"] > 0


def test_curves_over_time(tmp_path):
    """Points at steps times the median time of a step; cells without evaluations on the way have none, and draw nothing."""
    folder = tmp_path / "a-seed0" / "finetune"
    folder.mkdir(parents=True)
    rows = [{"step": 10, "images_per_second": 2.0}, {"step": 20, "images_per_second": 4.0}, {"step": 20, "val_mean_iou": 0.25},
            {"step": 30, "images_per_second": 4.0}]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"batch_size": 8, "gradient_accumulation_steps": 1}))
    last = stages.Stage("evaluate", tmp_path / "a-seed0" / "evaluate", {})
    cell = runner.Cell("a", 0, (stages.Stage("finetune", folder, {}), last))
    assert compare.curve_of(cell) == [(20 * 2 / 60, 25.0)]
    compare.draw_curves({"a": compare.curve_of(cell), "b": []}, tmp_path / "curves.png")
    compare.draw_curves({"b": []}, tmp_path / "none.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000 and not (tmp_path / "none.png").exists()
