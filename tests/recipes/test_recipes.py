"""The recipes as a user runs them: the whole chain on real images, other backbones, other data, two processes, trackers."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import harness
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from mscl_hf import MsclForPreTraining, MsclForSemanticSegmentation, training
from mscl_hf.config import ContrastConfig
from mscl_hf.data import load_data
from mscl_hf.data.layouts import CAMVID_CLASSES
from mscl_hf.methods import METHODS
from mscl_hf.methods.finetuning_losses import FINETUNING_LOSSES
from mscl_hf.methods.semi_supervised import SEMI_SUPERVISED
from mscl_hf.records.versions import commit
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log

LOGGED = {"step", "loss", "loss_global", "loss_local", "loss_pixel", "floor_pixel", "excess_pixel", "grad_norm", "lr",
          "images_per_second", "data_wait"}  # fmt: skip
SPACES = ("backbone", "global", "local", "pixel")
HEALTH = {"probe_mean_iou"} | {f"{what}_{space}" for what in ("effective_rank", "spread") for space in SPACES}
PARTS = ("base", "blocks", "checks", "configuration", "cross_entropy", "decoders", "fields", "heads", "modeling", "timm", "towers")
CODE = {f"{name}_mscl.py" for name in PARTS}
HUB_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", ".card.sha256", "provenance.json"} | CODE
RESULTS = {"mean_iou", "per_class_iou", "overall_accuracy", "split", "num_images", "seed", "config"}


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}  # which says no more than who runs


def finite(value: float) -> bool:
    return isinstance(value, float) and math.isfinite(value)


@pytest.fixture(scope="session")
def few_camvid(real_data, tmp_path_factory) -> Path:
    """CamVid with the first images of each split only."""
    root = tmp_path_factory.mktemp("CamVid")
    for part in (real_data / "CamVid").iterdir():
        if part.is_dir():
            (root / part.name).symlink_to(part)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        lines = (real_data / "CamVid" / f"{split}.txt").read_text().splitlines()
        (root / f"{split}.txt").write_text("\n".join(lines[:count]) + "\n")
    return root


# -- the chain ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(real_data, few_camvid, tmp_path_factory):
    """The three commands of the interface, with their flags, in processes of their own; few steps, few images."""
    root = tmp_path_factory.mktemp("chain")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    shown = {}

    def launch(name, *flags):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_cpu_threads_per_process", "1"]
        command += [harness.ROOT / "recipes" / f"{name}.py", *flags]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=900, check=False, cwd=root)
        assert done.returncode == 0, done.stderr[-3000:]
        shown[name] = done.stdout

    data = ("--dataset", "camvid", "--data-dir", few_camvid)
    launch("pretrain", *data, "--backbone", "resnet18", "--method", "mscl", "--losses", "g+l+p", "--image-size", 64, "--batch-size", 4,
           "--max-steps", 3, "--train-count", 5, "--mixed-precision", "bf16", "--seed", 0, "--save-steps", 2, "--health-steps", 2,
           "--unlabelled", "rest", "--logging-steps", 1, "--output-dir", "OUT")  # fmt: skip
    launch("finetune", "--model", "OUT", *data, "--train-count", 5, "--batch-size", 4, "--max-steps", 3, "--seed", 1,
           "--logging-steps", 1, "--output-dir", "OUT2")  # fmt: skip
    launch("evaluate_model", "--model", "OUT2", *data, "--split", "test", "--output-dir", "OUT3")
    return root, shown


def test_pretraining_leaves_a_model_its_log_and_pictures(chain):
    """Hub folder, checkpoints, every logged quantity in every line, health before training, at the asked steps and the end, figures."""
    out = chain[0] / "OUT"
    assert listed(out) == HUB_FILES | {"config.yaml", "run.json", "log.jsonl", "checkpoints", "training.png", "features.png"}
    assert listed(out / "checkpoints") == {"step-00000002", "step-00000003"}
    rows = read_log(out / "log.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3] and all(set(row) == LOGGED for row in steps)
    health = [row for row in rows if "probe_mean_iou" in row]
    assert [row["step"] for row in health] == [0, 2, 3]
    # The three held-out images give too few global embeddings only if fewer than eight training images were looked at.
    assert all(HEALTH - set(row) <= {"effective_rank_global", "spread_global"} for row in health)
    assert all(finite(value) for row in rows for name, value in row.items() if name != "step")
    assert all(0 <= row["data_wait"] <= 1 and row["images_per_second"] > 0 and row["excess_pixel"] >= -1e-3 for row in steps)
    for picture in ("training.png", "features.png"):
        assert Image.open(out / picture).size[0] > 300
    model = MsclForPreTraining.from_pretrained(out)
    assert model.config.backbone == "resnet18" and model.config.contrast["losses"] == "global+local+pixel" and model.dtype == torch.float32


def test_fine_tuning_leaves_a_model_and_its_results(chain):
    """results.json has the promised keys and ranges; the decoder came from pre-training and went on from there."""
    out = chain[0] / "OUT2"
    assert listed(out) == HUB_FILES | {"config.yaml", "run.json", "log.jsonl", "checkpoints"} | {
        "training.png", "results.json", "predictions.png", "confusion.png"
    }  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert set(results) >= RESULTS and results["split"] == "val" and results["num_images"] == 3 and results["seed"] == 1
    assert 0 <= results["mean_iou"] <= 1 and 0 <= results["overall_accuracy"] <= 1
    assert list(results["per_class_iou"]) == list(CAMVID_CLASSES)
    assert results["config"]["train_count"] == 5 and results["config"]["model"] == "OUT"
    assert f"mean IoU on val: {results['mean_iou']:.4f}" in chain[1]["finetune"]
    before, after = (load_file(chain[0] / name / "model.safetensors") for name in ("OUT", "OUT2"))
    shared = [name for name in before if name.startswith(("backbone.", "decoder.")) and before[name].dtype == torch.float32]
    weights = [name for name in shared if name.endswith(".weight")]
    distance = [float((before[name] - after[name]).norm() / before[name].norm().clamp(min=1e-6)) for name in weights]
    assert len(distance) > 40 and max(distance) > 0 and np.median(distance) < 0.1  # of unrelated weights: 1.4


def test_evaluation_measures_the_split_that_was_asked_for(chain):
    """The same keys, on test; a line for each class."""
    out = chain[0] / "OUT3"
    assert listed(out) == {"config.yaml", "run.json", "results.json", "predictions.png", "confusion.png"}
    results = json.loads((out / "results.json").read_text())
    assert set(results) >= RESULTS and results["split"] == "test" and results["num_images"] == 3
    assert all(value is None or 0 <= value <= 1 for value in results["per_class_iou"].values())
    assert all(name in chain[1]["evaluate_model"] for name in (*CAMVID_CLASSES, "mean IoU"))


def test_fine_tuned_folder_opens_in_a_pipeline(chain, few_camvid):
    """transformers' image-segmentation pipeline reads the folder: masks of the picture's size, with CamVid's class names."""
    from transformers import pipeline

    picture = next((few_camvid / "test").iterdir())
    network = MsclForSemanticSegmentation.from_pretrained(chain[0] / "OUT2")
    pipe = pipeline("image-segmentation", model=str(chain[0] / "OUT2"), device="cpu")
    width, height = Image.open(picture).size
    seen = pipe.image_processor(Image.open(picture), return_tensors="pt")["pixel_values"].shape[-2:]
    assert min(seen) == network.config.base_size and max(seen) / min(seen) == pytest.approx(width / height, rel=0.02)  # as evaluation
    segments = pipe(str(picture))
    assert segments and {segment["label"] for segment in segments} <= set(CAMVID_CLASSES)
    assert {segment["mask"].size for segment in segments} == {Image.open(picture).size}


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "convnext_atto",
        "vit_tiny_patch16_224",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_dinov2", marks=pytest.mark.slow),
    ],
)
def test_backbone_is_swapped_by_name_alone(few_camvid, tmp_path, backbone):
    """Pre-training, fine-tuning and a score on CamVid, with nothing but the name changed."""
    flags = ("--dataset", "camvid", "--data-dir", few_camvid, "--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 2)
    quick = {"draw_training": lambda *_: None}
    harness.run("pretrain", *flags, "--backbone", backbone, "--image-size", 64, "--output-dir", tmp_path / "a", **quick,
                draw_features=lambda *_: None)  # fmt: skip
    harness.run("finetune", *flags, "--model", tmp_path / "a", "--output-dir", tmp_path / "b", **quick)
    model = MsclForSemanticSegmentation.from_pretrained(tmp_path / "b")
    assert model.config.backbone == backbone
    assert 0 <= json.loads((tmp_path / "b" / "results.json").read_text())["mean_iou"] <= 1


def test_real_voc_chain(real_data, tmp_path):
    """VOC's layout goes through both stages; the train split names its 21 classes."""
    flags = ("--dataset", "voc2012", "--data-dir", real_data / "VOCdevkit", "--train-count", 6, "--batch-size", 2,
             "--dataloader-num-workers", 0,
             "--max-steps", 1, "--val-split", "none")  # fmt: skip
    harness.run("pretrain", *harness.TINY, *flags, "--output-dir", tmp_path / "a")
    harness.run("finetune", *flags, "--model", tmp_path / "a", "--output-dir", tmp_path / "b")
    assert MsclForSemanticSegmentation.from_pretrained(tmp_path / "b").config.num_labels == 21
    assert not (tmp_path / "b" / "results.json").exists()


# -- small things of the interface ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe_name", "option", "registry"), [
    ("pretrain", "--list-methods", METHODS), ("finetune", "--list-losses", FINETUNING_LOSSES),
    ("finetune", "--list-semi-supervised", SEMI_SUPERVISED),
], ids=["methods", "losses", "semi-supervised"])  # fmt: skip
def test_methods_and_losses_are_listed(recipe_name, option, registry, capsys):
    """The list has a line for each entry, and nothing is started."""
    harness.run(recipe_name, option, "--output-dir", "/nowhere/at/all")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "name" and [line.split()[0] for line in lines[1:]] == list(registry)


def test_yaml_file_configures_a_run_and_flags_win(tmp_path):
    """--config gives every option of the recipe; a flag beside it is the last word; the record holds what was used."""
    (tmp_path / "run.yaml").write_text(
        "backbone: test_resnet\nimage-size: 32\ndecoder_channels: 16\nlearning_rate: 1e-2\nmax_steps: 7\nbatch_size: 4\n"
        "dataloader_num_workers: 0\n"
        "train_count: 8\nval_split: none\nreport_to: []\nexclude_classes: [0, 1]\n"
    )
    harness.run("pretrain", "--config", tmp_path / "run.yaml", "--max-steps", 1, "--output-dir", tmp_path / "out", pictures=False)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["max_steps"], record["learning_rate"], record["image_size"], record["exclude_classes"]) == (1, 0.01, 32, [0, 1])


def test_tracker_gets_the_numbers(tmp_path):
    """--report-to tensorboard writes an event file that holds the losses."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--max-steps", 2, "--val-split", "none", "--report-to", "tensorboard",
                "--output-dir", tmp_path / "out", pictures=False)  # fmt: skip
    scalars = {}
    for folder in {path.parent for path in (tmp_path / "out").rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder)).Reload()
        scalars |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["loss"] == [1, 2] and {"loss_global", "grad_norm"} <= set(scalars)


# -- other data ----------------------------------------------------------------------------------------------------------------


def write_folder(root: Path, masks: bool = True, splits=("train", "val"), count: int = 6, seed: int = 1) -> Path:
    """images/SPLIT/*.png and masks/SPLIT/*.png with synthetic scenes; without SPLIT where it is empty."""
    for number, split in enumerate(splits, seed):
        data = load_data("synthetic", "train", scenes=count, scene_seed=number, scene_height=48, scene_width=64)
        for part in ("images", "masks") if masks else ("images",):
            (root / part / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            sample = data.read(i)
            Image.fromarray(sample.image).save(root / "images" / split / f"{i}.png")
            if masks:
                Image.fromarray(sample.mask).save(root / "masks" / split / f"{i}.png")
    return root


BRIEF = ("--batch-size", 2, "--dataloader-num-workers", 0, "--max-steps", 2, "--warmup-steps", 1)


def test_folder_of_images_and_masks(tmp_path):
    """Through all three recipes. Classes are those in the masks of the training split, also where other splits lack the last ones."""
    root = write_folder(tmp_path / "data", splits=("train", "val", "test"), count=3)
    for split in ("val", "test"):
        for path in (root / "masks" / split).iterdir():
            mask = np.array(Image.open(path))
            Image.fromarray(np.minimum(mask, 3)).save(path)
    data = ("--dataset", "folder", "--data-dir", root)
    harness.run("pretrain", *harness.TINY, *data, *BRIEF, "--output-dir", tmp_path / "a", draw_training=lambda *_: None)
    harness.run("finetune", "--model", tmp_path / "a", *data, *BRIEF, "--output-dir", tmp_path / "b", draw_training=lambda *_: None)
    harness.run("evaluate_model", "--model", tmp_path / "b", *data, "--output-dir", tmp_path / "c")
    for name in ("b", "c"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["num_images"] == 3 and list(results["per_class_iou"]) == [f"class_{i}" for i in range(8)]


def test_many_images_and_few_masks_in_one_folder(tmp_path, capsys, monkeypatch):
    """Images without a mask serve as unlabelled ones, by name: none of the labelled ones comes twice, none is lost."""
    root = write_folder(tmp_path / "data", splits=("train",), count=6)
    for name in ("0", "3", "4"):
        (root / "masks" / "train" / f"{name}.png").unlink()
    seen = []
    spy = training.fit

    def fit(method, data, *rest, **more):
        seen.append((data.labelled.names, data.unlabelled.names))
        return spy(method, data, *rest, **more)

    data = ("--dataset", "folder", "--data-dir", root, "--masked-only", "--unlabelled", "rest", "--val-split", "none")
    harness.run("pretrain", *harness.TINY, *data, *BRIEF, "--output-dir", tmp_path / "a", pictures=False, fit=fit)
    assert seen == [(["1", "2", "5"], ["0", "3", "4"])]
    assert "classes inferred from the masks" in capsys.readouterr().out
    whole = ("--dataset", "folder", "--data-dir", write_folder(tmp_path / "whole", splits=("train",)), *data[4:])
    harness.run("pretrain", *harness.TINY, *whole, *BRIEF, "--output-dir", tmp_path / "b", pictures=False)
    assert "every training image is used with its mask" in capsys.readouterr().out
    # The control differs in the method's name alone.
    harness.run("pretrain", *harness.TINY, *data, *BRIEF, "--method", "none", "--output-dir", tmp_path / "c", pictures=False)


def test_images_only_pretrain_without_the_pixel_loss(tmp_path):
    """A folder of pictures and nothing else: g+l trains, says that no masks are held out, and draws features."""
    root = write_folder(tmp_path / "data", masks=False, splits=("a", "b"))
    data = ("--dataset", "folder", "--data-dir", root)
    harness.run("pretrain", *harness.TINY, *data, "--losses", "g+l", *BRIEF, "--output-dir", tmp_path / "a")
    assert (tmp_path / "a" / "features.png").is_file()
    rows = read_log(tmp_path / "a" / "log.jsonl")
    assert "probe_mean_iou" not in rows[-1] and "effective_rank_backbone" in rows[-1]


def test_another_folder_serves_as_unlabelled_images(tmp_path):
    """--unlabelled DIR fills up the batches."""
    write_folder(tmp_path / "more", masks=False, splits=("a",))
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--unlabelled", tmp_path / "more", "--labelled-share", 0.25, "--max-steps", 2,
                "--val-split", "none", "--output-dir", tmp_path / "a", pictures=False)  # fmt: skip
    assert all("loss_pixel" in row for row in read_log(tmp_path / "a" / "log.jsonl") if "loss" in row)


def write_parquet(root: Path, count: int = 8) -> Path:
    """A folder that `datasets` reads: train and validation as parquet, images and masks inside."""
    root.mkdir()
    for number, split in enumerate(("train", "validation"), 1):
        data = load_data("synthetic", "train", scenes=count, scene_seed=number, scene_height=48, scene_width=64)
        samples = [data.read(i) for i in range(count)]
        columns = {"image": [Image.fromarray(s.image) for s in samples], "mask": [Image.fromarray(s.mask) for s in samples]}
        features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def no_sleep(monkeypatch):
    """`datasets` rests for seconds whenever a stream is closed."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.mark.usefixtures("no_sleep")
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_through_both_stages(tmp_path, streaming):
    """dataset hf, downloaded or streamed; the held-out split is scored whole either way."""
    data = ("--dataset", "hf", "--data-dir", write_parquet(tmp_path / "data"), "--num-classes", 8, *(("--streaming",) if streaming else ()))
    harness.run("pretrain", *harness.TINY, *data, *BRIEF, "--output-dir", tmp_path / "a", draw_training=lambda *_: None)
    assert "probe_mean_iou" in read_log(tmp_path / "a" / "log.jsonl")[-1] and (tmp_path / "a" / "features.png").is_file()
    harness.run("finetune", "--model", tmp_path / "a", *data, *BRIEF, "--output-dir", tmp_path / "b", draw_training=lambda *_: None)
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert results["split"] == "validation" and results["num_images"] == 8
    harness.run("evaluate_model", "--model", tmp_path / "b", *data, "--split", "validation", "--output-dir", tmp_path / "c")
    again = json.loads((tmp_path / "c" / "results.json").read_text())
    assert again["per_class_iou"] == results["per_class_iou"]


@pytest.mark.usefixtures("no_sleep")
def test_stream_without_masks_or_held_out_images(tmp_path):
    """Nothing to look at between the steps: it trains, and draws no features."""
    root = write_parquet(tmp_path / "data")
    (root / "validation-00000-of-00001.parquet").unlink()
    harness.run("pretrain", *harness.TINY, "--dataset", "hf", "--data-dir", root, "--streaming", "--losses", "g+l", *BRIEF,
                "--output-dir", tmp_path / "a", draw_training=lambda *_: None)  # fmt: skip
    assert (tmp_path / "a" / "model.safetensors").is_file() and not (tmp_path / "a" / "features.png").exists()


# -- two processes -------------------------------------------------------------------------------------------------------------


def on_two(tmp_path: Path, *arguments) -> tuple[list[dict], str]:
    """Records of both processes, and what was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [harness.ROOT / "tests" / "distributed" / "train_worker.py", tmp_path, *arguments]
    launched = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        shown, errors = launched.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.pid, signal.SIGKILL)  # a hang leaves no process behind
    assert launched.returncode == 0, errors[-4000:]
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)], shown


def in_one(tmp_path, monkeypatch, *arguments) -> list[list[str]]:
    """The global batches of the same run in this process."""
    from mscl_hf.data import training_data

    seen, to_device = [], training_data.to_device
    monkeypatch.setattr(training_data, "to_device", lambda batch, device: seen.append(batch["name"]) or to_device(batch, device))
    harness.run(*arguments, pictures=False)
    return seen[1:]


def test_two_processes_pretrain_like_one(tmp_path, monkeypatch):
    """Same global batches, labelled and not; equal weights on both; losses and gradient norms of one process to rounding, since
    negatives are gathered and nothing here has batch statistics; one log."""
    flags = ("--backbone", "test_convnext", "--image-size", 32, "--decoder-channels", 16, "--attach", "backbone", "--pixel-bn", "false",
             "--pixel-scope", "batch", "--unlabelled", "rest", "--train-count", 8, "--batch-size", 4,
              "--dataloader-num-workers", 0, "--max-steps", 4,
             "--logging-steps", 1, "--gradient-accumulation-steps", 2, "--val-split", "none")  # fmt: skip
    records, shown = on_two(tmp_path, "pretrain", *flags, "--output-dir", tmp_path / "two")
    whole = in_one(tmp_path, monkeypatch, "pretrain", *flags, "--output-dir", tmp_path / "one")
    assert len(whole) == 8
    for batch, first, second in zip(whole, *(record["batches"] for record in records)):
        assert sorted(batch) == sorted(first + second) and len(first) == len(second) == 2
    assert records[0]["weights"] == records[1]["weights"]
    assert shown.count("pre-trained model") == 1
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two if "loss" in row] == [1, 2, 3, 4]
    for a, b in zip(one, two):
        for name in ("loss", "loss_global", "loss_local", "loss_pixel", "floor_pixel", "grad_norm"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=2e-3), (name, a["step"])
    assert (tmp_path / "two" / "model.safetensors").is_file()


def test_two_processes_fine_tune_and_score(tmp_path):
    """With batch statistics, dropout and uneven evaluation: it ends, with equal weights, one log and one result."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", tmp_path / "start",
                draw_features=lambda *_: None)  # fmt: skip
    data = write_folder(tmp_path / "data", count=5)
    records, shown = on_two(
        tmp_path, "finetune", "--model", tmp_path / "start", "--dataset", "folder", "--data-dir", data, "--batch-size", 4,
        "--dataloader-num-workers", 0, "--max-steps", 3, "--logging-steps", 1, "--output-dir", tmp_path / "two",
    )  # fmt: skip
    assert records[0]["weights"] == records[1]["weights"]
    assert shown.count("fine-tuned model") == 1
    assert [row["step"] for row in read_log(tmp_path / "two" / "log.jsonl")] == [1, 2, 3]
    assert json.loads((tmp_path / "two" / "results.json").read_text())["num_images"] == 5


def test_two_processes_skip_the_same_steps_in_fp16(tmp_path):
    """The first loss scale is too large for this network: both processes skip these steps, and then have equal weights."""
    flags = ("--max-steps", 12, "--val-split", "none", "--mixed-precision", "fp16")
    records, _ = on_two(tmp_path, "pretrain", *harness.TINY, *harness.SHORT, *flags, "--output-dir", tmp_path / "two")
    assert records[0]["weights"] == records[1]["weights"]
    rows = [row for row in read_log(tmp_path / "two" / "log.jsonl") if "skipped_steps" in row]
    assert rows[0]["skipped_steps"] == 1 and "loss" in rows[-1] and len(rows) == 12


def test_another_rate_in_the_middle_of_a_run(tmp_path):
    """A stopped run goes on with another --learning-rate and mended sources, and the record keeps both; with another batch it does not."""
    flags = ("pretrain", *harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 6, "--output-dir", tmp_path / "a")
    spy = training.fit

    def fit(method, *rest, **more):
        harness.stop_after(method, 3, 6)
        return spy(method, *rest, **more)

    with pytest.raises(SystemExit) as stopped:
        harness.run(*flags, "--learning-rate", 0.05, pictures=False, fit=fit, commit=lambda: "before")
    assert stopped.value.code == 75
    assert "other settings (--batch-size: 4 -> 2)" in harness.rejected(*flags, "--learning-rate", 0.05, "--resume", "--batch-size", 2)
    harness.run(*flags, "--learning-rate", 0.01, "--resume", pictures=False, commit=lambda: "after")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["learning_rate"] == 0.01 and record["changed"] == [{"commit": ["before", "after"], "learning_rate": [0.05, 0.01]}]
    rates = [row["lr"] for row in read_log(tmp_path / "a" / "log.jsonl") if "lr" in row]
    assert len(rates) == 6 and rates[2] > 0.02 > 0.01 >= rates[3]


def test_the_commit_is_that_of_the_process(monkeypatch):
    """Sources that change while a run is going on are not what it runs."""
    commit.cache_clear()
    monkeypatch.setenv("MSCL_HF_COMMIT", "first")
    assert commit() == "first"
    monkeypatch.setenv("MSCL_HF_COMMIT", "second")
    assert commit() == "first"
    commit.cache_clear()


def test_evaluation_beside_the_library_as_a_script(tmp_path):
    """Run as a file, the recipe's own folder leads sys.path and holds an evaluate.py: the library must be found all the same."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--output-dir", tmp_path / "a",
                draw_features=lambda *_: None)  # fmt: skip
    harness.run("finetune", "--model", tmp_path / "a", *harness.SHORT, "--max-steps", 1, "--val-split", "none",
                "--output-dir", tmp_path / "b")  # fmt: skip
    script, module = harness.ROOT / "recipes" / "evaluate_model.py", harness.ROOT / "hub" / "mean_iou"
    words = ["--model", tmp_path / "b", "--split", "val", "--pictures", 1, "--by-evaluate", module, "--output-dir", tmp_path / "c"]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    done = subprocess.run([sys.executable, script, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "c" / "results.json").read_text())
    assert results["mean_iou_by_evaluate"] == results["mean_iou_all_classes"]
    assert 'pipeline("image-segmentation"' in (tmp_path / "b" / "README.md").read_text()


# -- two stages ----------------------------------------------------------------------------------------------------------------

STAGED = ("--method", "chaitanya_global_local", "--image-size", 64, "--output-stride", 8, "--max-steps", 6, "--save-steps", 2,
          "--health-steps", 0)  # fmt: skip


def test_a_method_of_two_stages_trains_the_encoder_then_the_decoder(tmp_path):
    """Half of the steps each: the first moves the backbone and leaves the decoder, the second the other way round; one model comes out."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", *STAGED[2:6], "--output-dir", tmp_path / "start")
    harness.run("pretrain", *harness.TINY, *harness.SHORT, *STAGED, "--output-dir", tmp_path / "out")
    start, end = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "out"))
    middle = load_file(checkpoint_folder.complete(tmp_path / "out" / "stage1")[-1] / "method.safetensors")
    middle = {key.removeprefix("network."): value for key, value in middle.items() if key.startswith("network.")}
    weight = next(key for key in end if key.startswith("backbone.") and key.endswith("weight"))
    decoder = next(key for key in end if key.startswith("decoder.") and key.endswith("weight"))
    assert not torch.equal(start[weight], middle[weight]) and torch.equal(middle[weight], end[weight])
    assert torch.equal(start[decoder], middle[decoder]) and not torch.equal(middle[decoder], end[decoder])
    statistics = next(key for key in end if key.startswith("backbone.") and key.endswith("running_mean"))
    assert torch.equal(middle[statistics], end[statistics])
    assert [row["step"] for row in read_log(tmp_path / "out" / "log.jsonl") if "loss" in row] == [1, 2, 3]


def test_two_stages_resume(tmp_path):
    """Stopped in the second stage, the first is not run again, and the end is the same."""
    flags = (*harness.TINY, *harness.SHORT, *STAGED)
    harness.run("pretrain", *flags, "--output-dir", tmp_path / "whole", pictures=False)
    harness.run("pretrain", *flags, "--output-dir", tmp_path / "cut", pictures=False)
    shutil.rmtree(checkpoint_folder.complete(tmp_path / "cut")[-1])
    written = checkpoint_folder.complete(tmp_path / "cut" / "stage1")[-1].stat().st_mtime_ns
    harness.run("pretrain", *flags, "--output-dir", tmp_path / "cut", "--resume", pictures=False)
    assert checkpoint_folder.complete(tmp_path / "cut" / "stage1")[-1].stat().st_mtime_ns == written
    one, other = (load_file(checkpoint_folder.complete(tmp_path / name)[-1] / "method.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_stages_on_two_processes(tmp_path, recipe):
    """The second stage's DDP does not meet the first one's."""
    recipe("pretrain", *harness.TINY, *harness.SHORT, *STAGED, "--val-split", "none", "--output-dir", tmp_path / "out", processes=2)
    assert (tmp_path / "out" / "model.safetensors").is_file()


# -- every method by its flag ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_pretrains_and_fine_tunes_by_command(tmp_path, name, capsys):
    """Two steps by its name, then one of fine-tuning from the folder: files, finite logs, what was derived said in words."""
    backbone = ("--backbone", "resnet10t") if METHODS[name].two_towers else ()
    sizes = ("--image-size", 56, "--output-stride", 8) if METHODS[name].min_positions > 2 else ()
    first, then = tmp_path / "first", tmp_path / "then"
    short = (*harness.SHORT, "--max-steps", 2)
    rest = ("--unlabelled", "rest") if METHODS[name].uses_unlabelled(ContrastConfig()) else ()
    harness.run("pretrain", *harness.TINY, *short, *backbone, *sizes, *harness.needed_flags(name), "--method", name, *rest,
                "--health-steps", 1, "--output-dir", first, draw_features=lambda *_: None)  # fmt: skip
    said = capsys.readouterr().out
    assert ("--queue-size is" in said) == (name in ("moco_v1", "moco_v2", "densecl", "cp2", "distill"))
    assert ("--temperature is 0.1" in said) == (name in ("instdisc", "cmc"))
    if METHODS[name].trains:
        rows = read_log(first / "log.jsonl")
        assert all(math.isfinite(value) for row in rows for value in row.values()) and (first / "training.png").is_file()
        assert any(key.startswith("spread_") and key != "spread_backbone" for key in rows[-1])
    if name == "imagenet":
        wanted, found = load_file(harness.weights_file()), load_file(first / "model.safetensors")
        assert all(torch.equal(value, found[f"backbone.timm_model.{key}"]) for key, value in wanted.items())
    harness.run("finetune", "--model", first, *harness.SHORT, "--max-steps", 1, "--val-split", "none", "--output-dir", then, pictures=False)
    assert math.isfinite(read_log(then / "log.jsonl")[-1]["loss"])


def test_pretraining_goes_on_from_a_folder(tmp_path):
    """--start-from: backbone and decoder are the folder's, whatever method made them; another network is rejected, by name and not by a
    shape that happens to fit."""
    first, then, short = tmp_path / "first", tmp_path / "then", (*harness.SHORT, "--max-steps", 2)
    harness.run("pretrain", *harness.TINY, *short, "--method", "moco_v2", "--output-dir", first, draw_features=lambda *_: None)
    harness.run("pretrain", *harness.TINY, *short, "--method", "none", "--start-from", first, "--output-dir", tmp_path / "same")
    one, same = (load_file(place / "model.safetensors") for place in (first, tmp_path / "same"))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    harness.run("pretrain", *harness.TINY, *short, "--method", "cp2", "--start-from", first, "--output-dir", then,
                draw_features=lambda *_: None)  # fmt: skip
    more = load_file(then / "model.safetensors")
    assert one.keys() == more.keys()
    moved = [(one[key] - more[key]).abs().max() for key in one if key.endswith("weight")]
    assert 0 < max(moved) < 0.5
    flags = (*harness.TINY, *short, "--start-from", first)
    for option, value, says in (
        ("--decoder-channels", 8, "with decoder_channels 16; expected 8"), ("--decoder", "fcn", "expected fcn"),
        ("--backbone", "test_vit", "with backbone test_resnet; expected test_vit"),
    ):  # fmt: skip
        assert says in harness.rejected("pretrain", *flags, option, value, "--output-dir", tmp_path / "a")
    assert "Leave out --pretrained" in harness.rejected("pretrain", *flags, "--pretrained", "--output-dir", tmp_path / "b")
    flags = (*harness.TINY, "--start-from", tmp_path / "gone")
    assert "no model folder" in harness.rejected("pretrain", *flags, "--output-dir", tmp_path / "c")


@pytest.mark.parametrize(("method", "flags", "wanted"), [
    ("byol", (), "separate"), ("simsiam", (), "separate"), ("simclr", (), "joint"), ("mscl", (), "joint"),
    ("byol", ("--bn-views", "joint"), "joint"), ("simclr", ("--bn-views", "separate"), "separate"),
])  # fmt: skip
def test_batch_statistics_of_the_views_are_the_methods_own_or_as_asked(tmp_path, method, flags, wanted):
    """The network that trains has the method's published way, unless --bn-views says otherwise."""
    taken = []

    def no_training(method, *rest, **more):
        taken.append(method.network.config.bn_views)
        return method

    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--max-steps", 1, "--val-split", "none", "--method", method, *flags,
                "--output-dir", tmp_path / "out", pictures=False, fit=no_training)  # fmt: skip
    assert taken == [wanted]


CHAITANYA = ("--method", "chaitanya_global_local", "--image-size", 112, "--output-stride", 8)  # in two stages
BATCH_LARGER_THAN_DATA = (
    (("--losses", "g+l"), 1), (("--losses", "p"), 0), (("--method", "byol"), 0), (("--method", "none"), 0), (CHAITANYA, 1),
)  # fmt: skip


@pytest.mark.parametrize(("flags", "count"), BATCH_LARGER_THAN_DATA)
def test_small_data_is_reported_once_where_images_are_contrasted(tmp_path, capsys, flags, count):
    """A batch larger than the data contrasts an image with itself; methods without such a loss, and later stages, report nothing."""
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--train-count", 3, "--max-steps", 2, "--val-split", "none", *flags,
                "--output-dir", tmp_path / "run", pictures=False)  # fmt: skip
    assert capsys.readouterr().out.count("contrasted with themselves") == count


def test_each_command_ends_with_the_next_one(tmp_path, capfd):
    """What was reached is printed, then a command that runs as it is, with the data options; lines replace bars where stderr is a file."""
    write_folder(tmp_path / "data", splits=("train", "val", "test"))
    data = ("--dataset", "folder", "--data-dir", tmp_path / "data", "--num-classes", 8, "--train-count", 4)
    more = ("--batch-size", 2, "--dataloader-num-workers", 0, "--logging-steps", 1, "--max-steps", 2)
    harness.run("pretrain", *harness.TINY, *data, *more, "--output-dir", tmp_path / "a")
    printed, lines = capfd.readouterr()
    assert "warm-up shortened to 1 steps, half of --max-steps 2" in printed
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["warmup_steps"] == 1
    assert re.search(r"pre-trained model: .* \(loss [\d.]+, linear probe mean IoU [\d.]+ after 2 steps\)", printed)
    assert re.findall(r"^step (\d)/2: loss [\d.]+, .*$", lines, re.MULTILINE) == ["1", "2"] and "\r" not in lines
    command = next_command(printed)
    assert command == list(map(str, ["mscl-finetune", "--model", tmp_path / "a", *data]))
    harness.run("finetune", *command[1:], *more, "--output-dir", tmp_path / "b")
    printed, lines = capfd.readouterr()
    assert "fine-tuning on 4 masks of data, train" in printed and "note: " not in printed and "\r" not in lines
    assert next_command(printed) == list(map(str, ["mscl-evaluate", "--model", tmp_path / "b", *data[:-2]]))
    harness.run("finetune", *command[1:-2], *more, "--output-dir", tmp_path / "c")
    note = f"note: {tmp_path / 'a'} was trained on 4 masks of data, train, and 6 are used now; --train-count 4 uses as many"
    assert note in capfd.readouterr().out
    harness.run("evaluate_model", *next_command(printed)[1:], "--output-dir", tmp_path / "d")
    printed, lines = capfd.readouterr()
    assert next_command(printed) == ["mscl-demo", "--model", str(tmp_path / "b")] and "\r" not in lines
    used = json.loads((tmp_path / "d" / "results.json").read_text())
    assert used["inference"]["base_size"] == used["config"]["base_size"] == 32 and used["inference"]["window"] is None
    assert yaml.safe_load((tmp_path / "d" / "config.yaml").read_text())["base_size"] == 32


def next_command(printed: str) -> list[str]:
    """The words of the command in the last line."""
    return shlex.split(printed.splitlines()[-1].removeprefix("next: "))


def test_freeze_steps_on_two_processes(tmp_path, recipe):
    """The parameters that train change during the run, which DistributedDataParallel is told."""
    model, out = tmp_path / "model", tmp_path / "out"
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--method", "none", "--val-split", "none", "--output-dir", model,
                draw_features=lambda *_: None)  # fmt: skip
    recipe("finetune", *harness.SHORT, "--model", model, "--val-split", "none", "--max-steps", 4, "--freeze", "backbone",
           "--freeze-steps", 2, "--output-dir", out, processes=2)  # fmt: skip
    name = "backbone.timm_model.conv1.0.weight"
    assert not torch.equal(load_file(model / "model.safetensors")[name], load_file(out / "model.safetensors")[name])
    assert "| not trained | backbone, for the first 2 of 4 steps |" in (out / "README.md").read_text()
