"""mscl-quickstart: the whole chain in one process, equal bit for bit to its stages run as separate commands."""

import json
import re
import subprocess
import sys

import harness
import pytest
from PIL import Image

from mscl_hf.data.synthetic import CLASSES
from mscl_hf.training.setup import make_accelerator
from recipes import quickstart

SHORT = ("--train-count", 4, "--pretrain-steps", 2, "--finetune-steps", 2)
STAGES = {"pretrain": "pretrain", "random": "pretrain", "without": "finetune", "with": "finetune", "scores-with": "evaluate_model"}
MODELS = {"without": "random", "with": "pretrain", "scores-with": "with"}  # the folder of the model that a stage starts from


def start(*arguments) -> subprocess.CompletedProcess:
    """The recipe as a process of its own, with both outputs in pipes."""
    command = [sys.executable, harness.ROOT / "recipes" / "quickstart.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    done = start(*SHORT, "--output-dir", out, "--seed", 3)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done


def test_it_ends_with_a_table_a_picture_and_the_next_commands(finished):
    """In a log file each stage is one line; the table has all classes, and its mean is that of results.json."""
    out, done = finished
    assert re.findall(r"^(\d)/4 .*: \d+ s$", done.stderr, re.MULTILINE) == ["1", "2", "3", "4"] and "\r" not in done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert all(len(rows[name]) == 2 for name in (*CLASSES, "mean"))
    scores = [json.loads((out / f"scores-{name}" / "results.json").read_text()) for name in ("without", "with")]
    assert rows["mean"] == [f"{100 * score['mean_iou']:.1f}" for score in scores]
    assert all(score["split"] == "test" and score["num_images"] == 128 for score in scores)
    assert re.search(r"linear probe mean IoU: 0\.\d+ before pre-training, 0\.\d+ after it", done.stdout)
    assert done.stdout.count("--dataset folder --data-dir DIR") == 2 and "pre-trained model" not in done.stdout
    with Image.open(out / "quickstart.png") as picture:
        assert min(picture.size) > 500
    assert "pre-trained model" in (out / "log.txt").read_text()


def test_its_stages_equal_separate_commands_bit_for_bit(finished, tmp_path):
    """Each stage is repeated by its own command with its config.yaml: weights and scores are the same."""
    out, _ = finished
    for name, recipe in STAGES.items():
        start_from = ("--model", tmp_path / MODELS[name]) if name in MODELS else ()
        harness.run(recipe, "--config", out / name / "config.yaml", *start_from, "--output-dir", tmp_path / name)
        if recipe != "evaluate_model":
            assert (tmp_path / name / "model.safetensors").read_bytes() == (out / name / "model.safetensors").read_bytes(), name
    repeated, first = (json.loads((folder / "scores-with" / "results.json").read_text()) for folder in (tmp_path, out))
    assert repeated["per_class_iou"] == first["per_class_iou"]


def rejected(monkeypatch, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["quickstart", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        quickstart.main()
    return ended.value.code


def test_wrong_folders_and_several_processes_are_rejected(tmp_path, monkeypatch):
    """A folder with files is not written to, and the stages are not divided over processes."""
    (tmp_path / "notes.txt").write_text("mine")
    assert "expected a new or empty folder" in rejected(monkeypatch, "--output-dir", tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected one process" in rejected(monkeypatch, "--output-dir", tmp_path / "new") and not (tmp_path / "new").exists()


def test_runs_of_one_process_may_differ_in_precision():
    """Accelerate keeps one state for each process, and rejects another precision while that is set."""
    assert [make_accelerator(precision).mixed_precision for precision in ("bf16", "no", "bf16")] == ["bf16", "no", "bf16"]
