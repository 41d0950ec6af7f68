"""Faults in one of several processes: it dies, raises, gets a signal or a NaN; other numbers of processes; sharding."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
import torch
from safetensors.torch import load_file

from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log

pytestmark = pytest.mark.slow
WITH_FAULT = Path(__file__).parents[1] / "faults" / "with_fault.py"
STEPS = 6
# Nothing here has batch statistics, and negatives are gathered: any number of processes computes the same losses, but for rounding.
FLAGS = ("--backbone", "test_convnext", "--image-size", 32, "--decoder-channels", 16, "--attach", "backbone", "--pixel-bn", "false",
         "--pixel-scope", "batch", *harness.SHORT, "--max-steps", STEPS, "--save-steps", 1, "--optim", "sgd", "--learning-rate", 0.01,
         "--val-split", "none",
         "--no-channels-last", "--resume")  # fmt: skip
SEMI_SUPERVISED = (*harness.SHORT, "--unlabelled", "rest", "--semi-supervised", "fixmatch", "--unlabelled-batch-size", 8,
                   "--class-thresholds", "--save-steps", 1, "--val-split", "none", "--resume")  # fmt: skip


def launch(tmp_path: Path, *flags, fault: str = "none", processes: int = 2, recipe: str = "pretrain", timeout: int = 90):
    """Run a recipe by torchrun; return the ended process, and the file that exists if the fault happened. A hang is a failure."""
    fired = tmp_path / f"fired-{len(list(tmp_path.iterdir()))}"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, WITH_FAULT, fault, fired, recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(word) for word in (*words, *flags)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    return done, fired


def finishes(tmp_path: Path, out: Path, straight: Path, *more, **how) -> str:
    done, _ = launch(tmp_path, *FLAGS, *more, "--output-dir", out, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(place / "model.safetensors") for place in (out, straight))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return done.stdout


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    done, _ = launch(folder, *FLAGS, "--output-dir", folder / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def published_whole(out: Path) -> list[int]:
    assert not list(out.glob("checkpoints/.tmp-*"))
    for folder in checkpoint_folder.complete(out):
        checkpoint_folder.verify(folder)
    return [int(folder.name[5:]) for folder in checkpoint_folder.complete(out)]


@pytest.mark.parametrize("on", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, straight, on):
    """All stop after the same step, save it once, and the same command completes the run. torchrun replaces the status by 1."""
    done, fired = launch(tmp_path, *FLAGS, "--output-dir", tmp_path / "run", fault=f"signal_at:{on}:3")
    assert fired.exists() and done.returncode != 0 and "stopped after step 3, checkpoint saved" in done.stdout
    assert published_whole(tmp_path / "run")[-1] == 3 and "exitcode  : 75" in done.stderr
    assert "resuming from step 3" in finishes(tmp_path, tmp_path / "run", straight)


def test_bad_images_are_counted_over_all_processes(tmp_path, straight):
    """Each process reports one image twice, two in all: above the limit all end with the same error and a checkpoint."""
    many = (*FLAGS, "--output-dir", tmp_path / "run")
    done, fired = launch(tmp_path, *many, "--max-bad-images", 1, fault="bad_images:3")
    assert fired.exists() and done.returncode != 0 and "stopped after" not in done.stdout
    sentence = "error: --max-bad-images is 1 and 2 image(s) cannot be read, the last: 1.png cannot be read."
    assert done.stderr.count(sentence) == 2 and published_whole(tmp_path / "run")[-1] == 3
    finishes(tmp_path, tmp_path / "run", straight, "--max-bad-images", 2, fault="bad_images:4")


def test_a_process_that_dies_ends_the_job(tmp_path, straight):
    """The job ends within a minute and names rank and status; checkpoints are complete, and the same command continues."""
    started = time.monotonic()
    done, fired = launch(tmp_path, *FLAGS, "--output-dir", tmp_path / "run", fault="leave:1:3")
    assert fired.exists() and done.returncode != 0 and time.monotonic() - started < 60
    root = done.stderr[done.stderr.index("Root Cause") :]
    assert "rank      : 1" in root and "exitcode  : 9" in root
    assert published_whole(tmp_path / "run") == [1, 2]
    assert "resuming from step 2" in finishes(tmp_path, tmp_path / "run", straight)


def test_only_the_main_process_fails_to_save(tmp_path):
    """The other process ends too, and no unfinished files are left."""
    started = time.monotonic()
    done, fired = launch(tmp_path, *FLAGS, "--output-dir", tmp_path / "run", fault="raise_in_save")
    assert fired.exists() and done.returncode != 0 and time.monotonic() - started < 60
    assert "the planted fault" in done.stderr and "saving failed on another process; see the message there" in done.stderr
    assert published_whole(tmp_path / "run") == []


def test_one_process_fails_to_evaluate(tmp_path, straight):
    """The other process, which waits for the sum of the counts, reports a failure too; the model is complete."""
    flags = ("--model", straight, *harness.SHORT, "--max-steps", 1, "--train-count", 4, "--output-dir", tmp_path / "run")
    done, fired = launch(tmp_path, *flags, fault="raise_in_evaluation:1", recipe="finetune")
    assert fired.exists() and done.returncode != 0 and (tmp_path / "run" / "model.safetensors").is_file()
    assert "the planted fault" in done.stdout and "failed on another process" in done.stdout


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_a_number_on_one_process_stops_all_before_the_weights_move(tmp_path, straight, what):
    """Each process writes a report with its samples; the weights of the step before are saved, and the same command continues."""
    out = tmp_path / "run"
    done, fired = launch(tmp_path, *FLAGS, "--output-dir", out, fault=f"nan:1:4:{what}")
    assert fired.exists() and done.returncode != 0 and done.stderr.count("error: step 4 gave loss") == 2
    assert published_whole(out)[-1] == 3
    reports = [json.loads(path.read_text()) for path in out.glob("reports/*/report.json")]
    assert sorted(report["process"] for report in reports) == [0, 1] and {report["step"] for report in reports} == {4}
    assert len(set(reports[0]["samples"]) | set(reports[1]["samples"])) == harness.BATCH
    assert what == "gradient" or "process 1: loss nan" in done.stderr and "process 0: loss nan" not in done.stderr
    assert "resuming from step 3" in finishes(tmp_path, out, straight)


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_another_number_of_processes_goes_on_with_the_same_run(tmp_path, recipe):
    """One, two, one and four processes have the same samples in each global batch and equal losses up to rounding; three are an error.

    Fine-tuning is semi-supervised. Its decoder has batch statistics, so that only its samples are compared.
    """
    many = (*FLAGS, "--max-steps", 8)
    if recipe == "finetune":
        done, _ = launch(tmp_path, *FLAGS, "--method", "none", "--output-dir", tmp_path / "model", processes=1)
        assert done.returncode == 0, done.stderr[-2000:]
        many = (*SEMI_SUPERVISED, "--model", tmp_path / "model", "--max-steps", 8)
    start = functools.partial(launch, tmp_path, *many, recipe=recipe)
    whole, fired = start("--output-dir", tmp_path / "one", fault="record", processes=1)
    assert whole.returncode == 0, whole.stderr[-2000:]
    wanted = {row["step"]: row for row in map(json.loads, Path(f"{fired}.0").read_text().splitlines())}
    found: dict[int, list[dict]] = {}
    for number, (processes, stop) in enumerate(((1, 2), (2, 4), (1, 6), (4, 8))):
        if number:
            kept = checkpoint_folder.complete(tmp_path / "changing")[-1]
            assert kept.name == f"step-{stop - 2:08d}"
        fault = f"record+signal_at:0:{stop}" if stop < 8 else "record"
        done, fired = start("--output-dir", tmp_path / "changing", fault=fault, processes=processes)
        assert (done.returncode == 0) == (stop == 8), done.stderr[-2000:]
        for rank in range(processes):
            for row in map(json.loads, Path(f"{fired}.{rank}").read_text().splitlines()):
                found.setdefault(row["step"], []).append(row)
    assert found.keys() == wanted.keys()
    for step, rows in found.items():
        assert sorted(name for row in rows for name in row["names"]) == sorted(wanted[step]["names"])
        if recipe == "pretrain":
            assert all(row["loss"] == pytest.approx(wanted[step]["loss"], rel=2e-5) for row in rows), step
    done, _ = start("--output-dir", tmp_path / "three", processes=3)
    assert done.returncode != 0 and re.search("batch-size is .; expected a multiple of [36]", done.stderr)


@pytest.mark.parametrize("method", ["mscl", "moco_v2", "distill"])
def test_sharded_training_is_replicated_training(tmp_path, method):
    """Sharded training on two processes is killed, continues and publishes the files and configuration of DDP, with equal weights up to
    rounding; each continues a checkpoint of the other, and a single process continues a sharded one."""
    flags = (*FLAGS, "--method", method) if method == "mscl" else (
        *harness.TINY, *harness.SHORT, "--max-steps", STEPS, "--save-steps", 1, "--learning-rate", 0.01, "--val-split", "none",
        "--no-channels-last", "--resume", "--method", method, *harness.needed_flags(method),
    )  # fmt: skip
    places = {name: tmp_path / name for name in ("replicated", "sharded", "crossed", "alone")}
    done, _ = launch(tmp_path, *flags, "--output-dir", places["replicated"])
    assert done.returncode == 0, done.stderr[-3000:]
    for fault in ("leave:1:4", "none"):
        done, fired = launch(tmp_path, *flags, "--shard", "--output-dir", places["sharded"], fault=fault)
        assert fired.exists() == (fault != "none")
    assert done.returncode == 0 and "resuming from step 3" in done.stdout, done.stderr[-3000:]
    files = {path.name for path in checkpoint_folder.complete(places["sharded"])[-1].iterdir()}
    assert {"manifest.json", "state.json"} < files and sum(name.startswith("shard-") for name in files) == 2
    for name, options, processes in (("crossed", ("--shard",), 2), ("alone", (), 1)):
        source = places["replicated"] if name == "crossed" else places["sharded"]
        (places[name] / "checkpoints").mkdir(parents=True)
        for part in ("run.json", f"checkpoints/{checkpoint_folder.complete(source)[0].name}"):
            subprocess.run(["cp", "-r", source / part, places[name] / part], check=True)
        done, _ = launch(tmp_path, *flags, *options, "--output-dir", places[name], processes=processes)
        assert done.returncode == 0 and f"resuming from step {STEPS - 1}" in done.stdout, done.stderr[-3000:]
    wanted = load_file(places["replicated"] / "model.safetensors")
    kept = {path.name for path in places["replicated"].iterdir()}
    for name in ("sharded", "crossed", "alone"):
        found = load_file(places[name] / "model.safetensors")
        assert found.keys() == wanted.keys()
        if name != "alone" or method == "mscl":  # one process has other batch statistics
            for key, value in wanted.items():
                torch.testing.assert_close(found[key], value, rtol=2e-4, atol=1e-5, msg=lambda m, key=key: f"{name} {key}: {m}")
        assert {path.name for path in places[name].iterdir()} - {"reports"} == kept
        assert (places[name] / "config.json").read_text() == (places["replicated"] / "config.json").read_text()
    one, other = ([row["loss"] for row in read_log(places[name] / "log.jsonl") if "loss" in row] for name in ("replicated", "sharded"))
    assert one == pytest.approx(other, rel=1e-4)


def test_sharding_is_rejected_where_it_cannot_be(tmp_path):
    """With one process, with --torch-compile, and by Accelerate's own settings."""
    flags = (*harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 1, "--output-dir", tmp_path / "a")
    assert "there is one" in harness.rejected("pretrain", *flags, "--shard")
    assert "--torch-compile" in harness.rejected("pretrain", *flags, "--shard", "--torch-compile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        assert "--shard" in harness.rejected("pretrain", *flags)
