"""A trained model is never lost: it is written first, and the steps after it may fail."""

import contextlib
import json
import os
import subprocess
import sys
from unittest import mock

import harness
import pytest
from test_labels import folder_flags, start, write_masks  # noqa: F401 (a fixture)
from test_recipes import BRIEF

from mscl_hf import MsclForPreTraining, MsclForSemanticSegmentation
from mscl_hf.config import DataConfig
from mscl_hf.evaluation import evaluate_model
from mscl_hf.sharing.provenance import data_name
from mscl_hf.training import HealthCheck, Run
from mscl_hf.training.log import read_log
from mscl_hf.training.run import STEPS_FAILED


def fails(*_, **__):
    raise RuntimeError("no luck")


def status(name: str, *flags, **patches) -> int:
    """Return the exit status of a recipe."""
    try:
        harness.run(name, *flags, **patches)
    except SystemExit as ended:
        return ended.code
    return 0


STEPS = {
    "evaluate_model": "scoring", "draw_predictions": "pictures", "draw_training": "pictures", "write_card": "model card",
    "push_result": "push",
}  # fmt: skip
MADE = {
    "evaluate_model": "results.json", "draw_predictions": "predictions.png", "draw_training": "training.png", "write_card": "README.md",
}  # fmt: skip


@pytest.mark.parametrize("part", STEPS)
def test_a_step_behind_the_model_costs_no_other(tmp_path, start, capsys, part):  # noqa: F811
    """A failed step is named with its reason; the model is complete, the other steps run, and the status is 77.

    --resume runs the failed steps again, and measures nothing twice.
    """
    out, root = tmp_path / "out", write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    flags = ("--model", start, *folder_flags(root), "--output-dir", out)
    with mock.patch(f"mscl_hf.sharing.upload.{part}", fails) if part == "push_result" else contextlib.nullcontext():
        assert status("finetune", *flags, **{} if part == "push_result" else {part: fails}) == STEPS_FAILED
    shown = capsys.readouterr().out
    assert f"{STEPS[part]} failed (RuntimeError: no luck); the model in {out} is complete" in shown
    assert f"failed: {STEPS[part]}; the same command with --resume" in shown
    MsclForSemanticSegmentation.from_pretrained(out)
    drawn_after = {"predictions.png"} if part == "draw_training" else set()  # the same step
    wanted = {*MADE.values()} - {MADE.get(part)} - drawn_after
    assert wanted <= {path.name for path in out.iterdir()} and not (out / MADE.get(part, "none")).exists()
    assert list(out.glob("reports/*/traceback.txt"))

    weights = (out / "model.safetensors").read_bytes()
    scoring = mock.Mock(wraps=evaluate_model)
    assert status("finetune", *flags, "--resume", evaluate_model=scoring) == 0
    assert {*MADE.values()} <= {path.name for path in out.iterdir()} and (out / "model.safetensors").read_bytes() == weights
    assert scoring.call_count == (part == "evaluate_model")
    results = json.loads((out / "results.json").read_text())
    assert f"{100 * results['mean_iou']:.1f}" in (out / "README.md").read_text()
    assert f"mean IoU on val: {results['mean_iou']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["draw_training", "draw_features", "write_card"])
def test_pretraining_is_kept_too(tmp_path, part):
    """A failed picture or card leaves a complete model, and --resume makes the missing files."""
    flags = (*harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 1, "--output-dir", tmp_path)
    assert status("pretrain", *flags, **{part: fails}) == STEPS_FAILED
    MsclForPreTraining.from_pretrained(tmp_path)
    assert (tmp_path / "README.md").exists() == (part != "write_card")
    assert status("pretrain", *flags, "--resume") == 0
    assert {"README.md", "training.png", "features.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("part", ["evaluate_model", "write_card"])
def test_a_model_without_scores_or_card_is_not_pushed(tmp_path, start, capsys, part):  # noqa: F811
    """The failed step is named, and nothing is pushed."""
    push, root = mock.Mock(), write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    flags = ("--model", start, *folder_flags(root), "--output-dir", tmp_path / "out", "--push-to-hub", "org/name")
    assert status("finetune", *flags, **{part: fails, "push_result": push}, **harness.UNCHECKED) == STEPS_FAILED
    assert f"push failed (ValueError: {STEPS[part]} failed" in capsys.readouterr().out and not push.called


def test_scores_of_an_earlier_version_are_measured_again(tmp_path, start, capsys):  # noqa: F811
    """A results.json without class counts is measured again by --resume."""
    out, root = tmp_path / "out", write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    flags = ("--model", start, *folder_flags(root), "--output-dir", out)
    harness.run("finetune", *flags)
    results = json.loads((out / "results.json").read_text())
    earlier = {key: value for key, value in results.items() if key not in ("classes_scored", "num_classes", "warnings")}
    (out / "results.json").write_text(json.dumps(earlier | {"mean_iou": 0.123}))
    assert status("finetune", *flags, "--resume") == 0
    assert json.loads((out / "results.json").read_text())["mean_iou"] == results["mean_iou"]


PATCHED = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import harness
from mscl_hf import evaluation
from mscl_hf.data.dataset import BadSample
scored = evaluation.evaluate_model
def fails(network, data, *rest, **options):
    def read(index):
        if os.environ["RANK"] == "1":
            raise BadSample("the mask 17.png is truncated")
        return type(data).read(data, index)
    object.__setattr__(data, "read", read)
    try:
        return scored(network, data, *rest, **options)
    finally:
        object.__delattr__(data, "read")
evaluation.evaluate_model = fails
harness.load_recipe("finetune").main()
"""


def test_scoring_that_fails_on_one_of_two_processes(tmp_path, start):  # noqa: F811
    """The process that fails prints the reason; the main process writes pictures and card, and ends with 77."""
    out, root = tmp_path / "out", write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    script = tmp_path / "run.py"
    script.write_text(PATCHED.format(root=str(harness.ROOT), tests=str(harness.ROOT / "tests")))
    flags = ("--model", start, *folder_flags(root), "--output-dir", out)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, *flags]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "scoring failed (BadSample: the mask 17.png is truncated)" in done.stdout
    assert "scoring failed (OSError: Evaluation failed on another process" in done.stdout and f"exitcode  : {STEPS_FAILED}" in done.stderr
    assert {"README.md", "predictions.png", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob("reports/*"))


def test_a_health_check_that_fails_costs_its_row_alone(tmp_path, capsys):
    """The failure is logged, and training continues to its end."""
    flags = (*harness.TINY, *harness.SHORT, "--val-split", "none", "--max-steps", 2, "--save-steps", 0, "--output-dir", tmp_path)
    with mock.patch.object(HealthCheck, "__call__", fails):
        harness.run("pretrain", *flags)
    assert "health check of step 2 failed (RuntimeError: no luck); training continues" in capsys.readouterr().out
    assert list(tmp_path.glob("reports/*/traceback.txt"))
    assert (tmp_path / "model.safetensors").exists() and [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_a_figure_outlives_the_card_of_an_evaluation(tmp_path, start, monkeypatch):  # noqa: F811
    """results.json is written before the card."""
    root = write_masks(tmp_path / "data", train=(0, 1), val=(0, 1))
    harness.run("finetune", "--model", start, *folder_flags(root), "--output-dir", tmp_path / "tuned")
    flags = ("--model", tmp_path / "tuned", "--dataset", "folder", "--data-dir", root, "--split", "val", "--push-to-hub", "org/name")
    with pytest.raises(RuntimeError, match="no luck"):
        harness.run("evaluate_model", *flags, "--output-dir", tmp_path / "out", write_card=fails, **harness.UNCHECKED)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["num_images"] == 4


def test_reports_are_for_crashes_alone(tmp_path, capsys):
    """Wrong input and full disks leave no report, and SystemExit is not caught."""
    run = Run(tmp_path, mock.Mock(is_main_process=True))
    with run.step("first"):
        raise OSError("disk full")
    with pytest.raises(SystemExit, match="76"), run.step("second"):
        raise SystemExit(76)
    assert run.failed == ["first"] and not list(tmp_path.iterdir()) and "disk full" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=str(STEPS_FAILED)):
        run.exit_if_failed()
    Run(tmp_path, mock.Mock(is_main_process=True)).exit_if_failed()
    other_process = Run(tmp_path, mock.Mock(is_main_process=False))
    with other_process.step("first"):
        raise OSError("disk full")
    other_process.exit_if_failed()


def test_folders_of_images_and_masks_without_a_data_folder(tmp_path):
    """All three recipes work with --image-dir and --mask-dir only, and cards have a title."""
    root = write_masks(tmp_path / "streets", train=(0, 1), val=(0, 1))
    data = ("--dataset", "folder", "--image-dir", root / "images", "--mask-dir", root / "masks")
    harness.run("pretrain", *harness.TINY, *data, *BRIEF, "--output-dir", tmp_path / "a", draw_features=lambda *_: None)
    for more in ((), ("--resume",)):
        harness.run("finetune", "--model", tmp_path / "a", *data, *BRIEF, "--output-dir", tmp_path / "b", *more)
    harness.run("evaluate_model", "--model", tmp_path / "b", *data, "--split", "val", "--output-dir", tmp_path / "c")
    for out, words in (("a", "on streets"), ("b", "fine-tuned on streets")):
        assert (tmp_path / out / "model.safetensors").is_file()
        card = (tmp_path / out / "README.md").read_text()
        assert words in card.split("\n# ")[1].splitlines()[0] and str(tmp_path) not in card
    evaluations = json.loads((tmp_path / "b" / "provenance.json").read_text())["evaluations"]
    assert [found["dataset"] for found in evaluations] == ["streets"]


def test_names_of_folders(tmp_path, monkeypatch):
    """`.` and `..` are resolved; folders called images or train, in any case, give the name of their parent."""
    (tmp_path / "streets" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "streets" / "images")

    def name(dataset="folder", **where) -> str:
        return data_name(DataConfig(dataset=dataset, **where))

    assert name(data_dir="..") == name(data_dir=".") == name(image_dir=".") == name(data_dir=str(tmp_path / "streets")) == "streets"
    assert name(data_dir="../..") == tmp_path.name and name("hf", data_dir="..") == "streets"
    assert name(data_dir="/") == "folder" and name("synthetic") == "synthetic"
    assert name("hf", data_dir="s3://bucket/images") == "images"
    for folder in ("streets/images/train", "streets/Images", "streets/Train/JPEGImages", "streets/imgs/validation"):
        assert name(image_dir=f"/home/me/{folder}") == name(data_dir=f"/home/me/{folder}") == "streets"
    assert name(data_dir="/train") == "train"
