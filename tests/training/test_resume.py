"""A stopped and resumed run equals an uninterrupted one bit for bit, at any step, with any number of workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import datasets
import harness
import pytest
import torch
from same_run import differences, logged
from test_recipes import write_folder

from mscl_hf.data.hub_layout import streamed_shards
from mscl_hf.data.stream import SegmentationStream
from mscl_hf.data.training_data import TrainingStream
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log
from mscl_hf.training.signals import STOPPED_BY_SIGNAL
from mscl_hf.transforms.views import TrainView

STEPS = 6
# stage and network, options of the loop, step of the stop. 8 scenes, batches of 4: an epoch is two forward passes.
CASES = {
    "sgd, middle of an epoch": ("pretrain", {}, {}, 1),
    "sgd, workers, end of an epoch": ("pretrain", {}, {"dataloader_num_workers": 2}, 4),
    "adamw, accumulation": ("pretrain", {}, {"optim": "adamw", "learning_rate": 1e-3, "gradient_accumulation_steps": 2}, 5),
    "lars": ("pretrain", {}, {"optim": "lars", "learning_rate": 0.5}, 3),
    "random partners of pixels": ("pretrain", {"contrast": {"pixel_scope": "cross"}}, {}, 2),
    "a queue, random pixels": ("pretrain", {"contrast": {"queue_size": 6, "pixel_sample": "random", "pixel_count": 3}}, {}, 3),
    "fine-tuning, sgd": ("finetune", {}, {}, 3),
    "fine-tuning, adamw, accumulation, workers": (
        "finetune", {}, {"optim": "adamw", "learning_rate": 1e-3, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2}, 2,
    ),
    "fine-tuning, transformer": ("finetune", {"backbone": "test_vit"}, {"optim": "adamw", "learning_rate": 1e-3}, 3),
}  # fmt: skip


def make(stage: str, fields: dict):
    return harness.pretraining(**fields) if stage == "pretrain" else harness.finetuning(**fields)


def mixed_data(stage: str):
    """Pre-training data has one crop per view, and unlabelled images."""
    return harness.training_data(stage, unlabelled=6, geometry="crops") if stage == "pretrain" else harness.training_data(stage)


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_equals_straight(tmp_path, case):
    """SIGTERM after step k, then a resumed run: weights, optimizer and every logged number equal those of an undisturbed run."""
    stage, fields, options, stop = CASES[case]
    options |= {"max_steps": STEPS, "save_steps": STEPS}
    harness.train(make(stage, fields), mixed_data(stage), tmp_path / "straight", **options)
    method = make(stage, fields)
    harness.stop_after(method, stop, STEPS)
    with pytest.raises(SystemExit) as ended:
        harness.train(method, mixed_data(stage), tmp_path / "stopped", **options)
    assert ended.value.code == STOPPED_BY_SIGNAL
    assert [folder.name for folder in checkpoint_folder.complete(tmp_path / "stopped")] == [f"step-{stop:08d}"]
    resumed = make(stage, fields | {"seed": 99})  # what it starts from must not matter
    harness.train(resumed, mixed_data(stage), tmp_path / "stopped", **options)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []


def test_stop_between_two_health_checks_leaves_no_trace(tmp_path):
    """A stop neither adds a health check nor loses one, and the checks of the resumed run fall on the same steps."""

    def health_check(method, step, row):
        return {"probe": float(torch.rand(1)) if step < 0 else float(sum(p.double().sum() for p in method.parameters()))}

    harness.train(harness.pretraining(), harness.training_data(), tmp_path / "straight", health_check, 2, save_steps=3)
    method = harness.pretraining()
    harness.stop_after(method, 3, STEPS)
    with pytest.raises(SystemExit):
        harness.train(method, harness.training_data(), tmp_path / "stopped", health_check, 2)
    harness.train(harness.pretraining(), harness.training_data(), tmp_path / "stopped", health_check, 2)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []
    assert [row["step"] for row in logged(tmp_path / "stopped") if "probe" in row] == [2, 4, 6]


def test_dropout_is_active_while_fine_tuning():
    """The cases above test the random state only if dropout is active."""
    method = harness.finetuning().train()
    batch = next(iter(harness.training_data("finetune").batches(0, 1)))
    torch.manual_seed(0)
    assert method(**batch)["loss"] != method(**batch)["loss"]


def test_number_of_workers_changes_nothing(tmp_path):
    """Zero or two worker processes: the same batches, the same weights."""
    for workers in (0, 2):
        harness.train(harness.finetuning(), harness.training_data("finetune"), tmp_path / str(workers), dataloader_num_workers=workers)
    assert differences(tmp_path / "2", tmp_path / "0") == []


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_goes_on_where_it_stopped(tmp_path, workers):
    """A resumed run continues a stream in the same pass, with the same order and crops."""
    data = harness.scenes()
    rows = [{"image": data.rows[i]["image"], "mask": data.rows[i]["mask"]} for i in range(len(data))]
    features = datasets.Features({"image": datasets.Image(decode=False), "mask": datasets.Image(decode=False)})
    shards = streamed_shards(datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=2), "drawn/train")
    stream = SegmentationStream(shards, data.classes, "drawn", "train")
    ready = TrainingStream(stream, TrainView(harness.SIZE, harness.SIZE), 0, harness.BATCH)
    harness.train(harness.finetuning(), ready, tmp_path / "straight")
    method = harness.finetuning()
    harness.stop_after(method, 3, STEPS)  # in the second pass
    with pytest.raises(SystemExit):
        harness.train(method, ready, tmp_path / "stopped", dataloader_num_workers=workers)
    harness.train(harness.finetuning(), ready, tmp_path / "stopped", dataloader_num_workers=workers)
    assert differences(tmp_path / "stopped", tmp_path / "straight") == []


def test_lines_after_the_checkpoint_are_written_anew(tmp_path):
    """Lines after the last checkpoint of a killed run are replaced, and a truncated line is dropped."""
    harness.train(harness.pretraining(), harness.training_data(), tmp_path / "straight", logging_steps=1)
    killed = tmp_path / "killed"
    method = harness.pretraining()
    harness.stop_after(method, 3, STEPS)
    with pytest.raises(SystemExit):
        harness.train(method, harness.training_data(), killed, logging_steps=1)
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 123.0}\n{"step": 5, "lo')
    harness.train(harness.pretraining(), harness.training_data(), killed, logging_steps=1)
    assert differences(killed, tmp_path / "straight") == []


def test_checkpoints_rotate_and_are_not_pickles(tmp_path):
    """The newest two stay; a checkpoint has safetensors and JSON files; no unfinished folder remains."""
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, save_steps=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    for folder in checkpoint_folder.complete(tmp_path):
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["manifest.json", "method.safetensors", "optimizer.safetensors", "state.json"]


def pretrain(out, *more, **patches):
    harness.run("pretrain", *harness.TINY, *harness.SHORT, "--val-split", "none", "--output-dir", out, *more, **patches)


def rejected(out, *more) -> str:
    return harness.rejected("pretrain", *harness.TINY, *harness.SHORT, "--val-split", "none", "--output-dir", out, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of two steps; tests that write into it use a copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain(out, "--max-steps", 2, draw_training=lambda *_: None, draw_features=lambda *_: None)
    return out


def test_resume_of_a_finished_run_ends_well(finished, tmp_path, capsys):
    """In a renamed folder, and with other intervals of saving and logging: nothing is trained again, and the recipe ends normally."""
    out = shutil.copytree(finished, tmp_path / "renamed")
    harmless = ("--save-steps", 1, "--dataloader-num-workers", 1, "--save-total-limit", 5, "--health-steps", 7)
    pretrain(out, "--max-steps", 2, "--resume", *harmless, draw_training=lambda *_: None, draw_features=lambda *_: None)
    assert "pre-trained model" in capsys.readouterr().out
    assert differences(out, finished) == []


def test_resume_in_an_empty_place_starts(tmp_path):
    """--resume in an empty folder starts a run."""
    pretrain(tmp_path / "new", "--max-steps", 1, "--resume", pictures=False)
    assert checkpoint_folder.complete(tmp_path / "new")


def test_other_images_give_a_warning(tmp_path, capsys):
    """The folder of the data may change; its images are compared by number and names."""
    for steps, count, warned in ((1, 8, False), (2, 8, False), (3, 6, True)):
        harness.train(harness.pretraining(), harness.training_data(labelled=count), tmp_path, max_steps=steps)
        warning = "warning: the images are not those of the checkpoint (8 images, now 6 images)"
        assert (warning in capsys.readouterr().out) == warned


def test_resume_with_other_settings_is_rejected(finished):
    """The error names each changed option with its old and new value, at most six, and the number of the others."""
    message = rejected(finished, "--max-steps", 4, "--pixel-temperature", 0.2, "--resume")
    assert "--max-steps: 2 -> 4" in message and "--pixel-temperature: 0.07 -> 0.2" in message and "seed" not in message
    temperatures = ("--global-temperature", 0.2, "--local-temperature", 0.2, "--pixel-temperature", 0.2)
    options = (*temperatures, "--seed", 5, "--color-strength", 0.5, "--blur", 0, "--max-scale", 1.5)
    message = rejected(finished, "--max-steps", 4, *options, "--resume")
    assert message.count("->") == 6 and " and 1 more)" in message and "--max-steps: 2 -> 4" in message
    message = rejected(finished, "--max-steps", 2, "--train-fraction", 0.5, "--symmetric", "--decoder-rates", 1, 2, "--resume")
    assert "--train-fraction: all -> 0.5" in message and "--symmetric: false -> true" in message
    assert "--decoder-rates: by the image size -> 1 2" in message


def test_a_folder_of_another_command_is_named(finished):
    """The error names the command of the run in the folder, with --resume or without."""
    for recipe, *more in (("finetune",), ("finetune", "--resume"), ("evaluate_model",)):
        message = harness.rejected(recipe, "--model", finished, "--output-dir", finished, *more)
        assert str(finished) in message and "mscl-pretrain" in message and "--output-dir" in message


def test_a_longer_run_is_told_how_to_go_on(finished):
    """Where only --max-steps grew, the error names the option that continues from the model."""
    message = rejected(finished, "--max-steps", 4, "--resume")
    assert "--max-steps is 4" in message and "2 steps" in message
    assert f"--start-from {finished}" in message and "--output-dir" in message


def test_used_folder_is_rejected_and_untouched(finished, tmp_path):
    """A folder with a run, or with other files, is an error and stays unchanged."""
    content = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message = rejected(finished, "--max-steps", 2)
    assert str(finished) in message and "--resume" in message
    assert content == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("precious")
    for more in ((), ("--resume",)):
        message = rejected(tmp_path / "b", "--max-steps", 1, *more)
        assert str(tmp_path / "b") in message and "--output-dir" in message
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def test_folder_of_a_run_that_never_started_can_be_used(tmp_path):
    """A folder of a run that was rejected for its data can be used again."""
    assert "nowhere" in rejected(tmp_path / "a", "--max-steps", 1, "--dataset", "camvid", "--data-dir", tmp_path / "nowhere")
    pretrain(tmp_path / "a", "--max-steps", 1, pictures=False)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["dataset"] == "synthetic"


def test_sigterm_to_the_process_group(tmp_path):
    """After a signal to the run and its workers the step is finished and saved, and --resume completes the run."""
    steps = 100
    arguments = [*harness.TINY, *harness.SHORT, "--max-steps", steps, "--val-split", "none", "--save-steps", 0]
    arguments += ["--dataloader-num-workers", 2]
    out, straight = tmp_path / "stopped", tmp_path / "straight"
    command = [sys.executable, harness.ROOT / "recipes" / "pretrain.py", *arguments, "--output-dir", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while sum("loss" in row for row in read_log(out / "log.jsonl")) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    shown, errors = process.communicate(timeout=600)
    assert process.returncode == STOPPED_BY_SIGNAL, errors[-2000:]
    stopped = int(checkpoint_folder.complete(out)[-1].name.removeprefix("step-"))
    assert 3 <= stopped < steps
    assert f"stopped after step {stopped}, checkpoint saved; the same command with --resume continues" in shown
    assert "Traceback" not in errors and not (out / "model.safetensors").exists()
    harness.run("pretrain", *arguments, "--output-dir", out, "--resume", pictures=False)
    harness.run("pretrain", *arguments, "--output-dir", straight, pictures=False)
    assert differences(out, straight) == []


def folder_flags(data, *more):
    return ("--dataset", "folder", "--num-classes", 8, "--data-dir", data, "--max-steps", 2, *more)


def test_data_at_another_path_is_compared_by_what_it_holds(tmp_path):
    """--resume accepts the same images, masks and unlabelled images in other folders, and rejects different ones."""
    places = ("data", "other", "more")
    data, other, more = (write_folder(tmp_path / name, splits=("",), count=8, seed=seed) for seed, name in enumerate(places))
    moved, moved_more = shutil.copytree(data, tmp_path / "moved"), shutil.copytree(more / "images", tmp_path / "moved_more")
    out = tmp_path / "run"

    def flags(folder, masks, extra):
        return folder_flags(folder, "--image-dir", folder / "images", "--mask-dir", masks / "masks", "--unlabelled", extra)

    pretrain(out, *flags(data, data, more / "images"), pictures=False)
    pretrain(out, *flags(moved, moved, moved_more), "--resume", pictures=False)
    for places in ((other, moved, moved_more), (moved, other, moved_more), (moved, moved, other / "images")):
        assert "their content changed" in rejected(out, *flags(*places), "--resume")
    few = write_folder(tmp_path / "few", splits=("",))
    assert "16 images, now 14 images" in rejected(out, *flags(moved, moved, few / "images"), "--resume")


def test_images_that_change_in_their_place_are_a_warning(tmp_path, capsys):
    """Images may become unreadable during a run, which --max-bad-images allows."""
    data = write_folder(tmp_path / "data", splits=("",), count=8)
    pretrain(tmp_path / "run", *folder_flags(data), pictures=False)
    shutil.copy(data / "images" / "1.png", data / "images" / "0.png")
    pretrain(tmp_path / "run", *folder_flags(data), "--resume", pictures=False)
    assert "warning: the images are not those of the checkpoint (their content changed)" in capsys.readouterr().out


def test_a_model_at_another_path_is_compared_by_its_weights(tmp_path):
    """Models and files of classes may move; other weights are rejected, also at the old path."""
    for name, seed in (("first", 0), ("second", 1)):
        pretrain(tmp_path / name, "--max-steps", 1, "--seed", seed, "--losses", "g+l")
    moved = shutil.copytree(tmp_path / "first", tmp_path / "moved")
    names = write_folder(tmp_path / "data", splits=("",), count=8) / "classes.txt"
    names.write_text("\n".join("abcdefgh"))
    shutil.copy(names, tmp_path / "names.txt")

    def flags(model, classes=names):
        return ("--model", model, "--dataset", "folder", "--data-dir", tmp_path / "data", "--classes", classes, *harness.SHORT,
                "--val-split", "none", "--max-steps", 2, "--output-dir", tmp_path / "tuned")  # fmt: skip

    harness.run("finetune", *flags(tmp_path / "first"), pictures=False)
    harness.run("finetune", *flags(moved, tmp_path / "names.txt"), "--resume", pictures=False)
    assert "with other contents" in harness.rejected("finetune", *flags(tmp_path / "second"), "--resume")
    (tmp_path / "second" / "model.safetensors").replace(moved / "model.safetensors")
    assert "have changed" in harness.rejected("finetune", *flags(moved), "--resume")
    (tmp_path / "names.txt").write_text("\n".join("abcdefgx"))
    assert "classes" in harness.rejected("finetune", *flags(tmp_path / "first", tmp_path / "names.txt"), "--resume")
    run = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert run["model"] == str(moved)
