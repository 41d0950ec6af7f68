"""What `accelerate launch` was told is what a recipe does, unless its own flag says the same."""

import json
import os
import signal
import subprocess
import sys
import time

import harness
import pytest

from mscl_hf.cli import parse_sections
from mscl_hf.config import EvaluateRun, PretrainConfig, TrainingConfig
from mscl_hf.config.launcher import lacks_processes
from mscl_hf.sharing.provenance import command_line


def launch(*arguments, folder) -> subprocess.CompletedProcess:
    """Run `accelerate launch` in its own process."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_settings_of_the_launcher_are_those_of_the_run(tmp_path):
    """Precision and accumulation are in the record and the card, and one process instead of two gives a warning."""
    arguments = ("--max-steps", 2, "--val-split", "none", "--output-dir", "run", *harness.TINY, *harness.SHORT)
    settings = ("--num_processes", 2, "--mixed_precision", "bf16", "--gradient_accumulation_steps", 2)
    done = launch(*settings, harness.ROOT / "recipes" / "pretrain.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["mixed_precision"], record["gradient_accumulation_steps"]) == ("bf16", 2)
    stage = json.loads((tmp_path / "run" / "provenance.json").read_text())["stages"][-1]
    assert stage["facts"]["precision"] == "bf16" and f"2 steps of {2 * harness.BATCH} images" in stage["facts"]["budget"]
    assert "--mixed-precision bf16" in stage["command"] and "--gradient-accumulation-steps 2" in stage["command"]
    assert "started one process instead of several" in done.stdout


def test_a_rejected_command_ends_with_its_sentence(tmp_path):
    """With --quiet, as in the README, the launcher adds no traceback to the error."""
    recipe = harness.ROOT / "recipes" / "finetune.py"
    done = launch("--quiet", "--gradient_accumulation_steps", 4, recipe, "--gradient-accumulation-steps", 2, folder=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --gradient-accumulation-steps is 2 and --gradient_accumulation_steps of the launcher is 4")


@pytest.mark.parametrize("options", [TrainingConfig, EvaluateRun])
@pytest.mark.parametrize(
    ("launched", "flag", "outcome"),
    [(None, None, "no"), ("no", None, "no"), ("no", "bf16", "bf16"), ("bf16", None, "bf16"), ("bf16", "bf16", "bf16"),
     ("bf16", "no", ValueError), ("fp16", None, "fp16"), ("fp16", "bf16", ValueError), ("fp8", None, ValueError)],
)  # fmt: skip
def test_precision(monkeypatch, tmp_path, options, launched, flag, outcome):
    """The launcher's precision is the default; another flag and unsupported precisions are errors, also in YAML."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    (tmp_path / "options.yaml").write_text(f"mixed_precision: '{flag}'\n")
    for words in ([],) if flag is None else (["--mixed-precision", flag], ["--config", str(tmp_path / "options.yaml")]):
        if outcome is ValueError:
            with pytest.raises(ValueError, match="of the launcher is " + launched):
                parse_sections([options], "", words)
        else:
            assert parse_sections([options], "", words)[0].mixed_precision == outcome


def test_accumulation(monkeypatch):
    """The launcher's number is the default; its own default "1" may differ from the flag."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert TrainingConfig().gradient_accumulation_steps == 4
    with pytest.raises(ValueError, match="is 2 and --gradient_accumulation_steps of the launcher is 4"):
        TrainingConfig(gradient_accumulation_steps=2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert TrainingConfig(gradient_accumulation_steps=2).gradient_accumulation_steps == 2
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    with pytest.raises(ValueError, match="is auto; expected a number"):
        TrainingConfig()


def test_accumulation_says_nothing_to_an_evaluation(monkeypatch):
    """Evaluation ignores the launcher's accumulation."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert parse_sections([EvaluateRun], "", [])[0].mixed_precision == "no"


def test_the_command_of_a_card_needs_no_launcher_settings(monkeypatch):
    """Settings of the launcher are written as flags of the recipe."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "--mixed-precision bf16" in command_line(PretrainConfig())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert "--mixed-precision" not in command_line(PretrainConfig())


def test_processes_that_were_not_started(monkeypatch):
    """Accelerate's variables of one process that replaces several are recognized; those of other launchers are not."""
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert not lacks_processes(1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert lacks_processes(1) and not lacks_processes(2)


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
def test_interrupt_under_the_launcher(tmp_path):
    """Ctrl-C reaches launcher and recipe: the recipe saves and prints no traceback."""
    arguments = ("--max-steps", 10_000, "--val-split", "none", "--output-dir", "run", *harness.TINY, *harness.SHORT)
    recipe = harness.ROOT / "recipes" / "pretrain.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", recipe, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    with (tmp_path / "console").open("w") as console:
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=console, stderr=console, start_new_session=True
        )
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 300
    while not (log.is_file() and "loss" in log.read_text()):  # the health check before training is logged too
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=300)
    printed = ""
    while "checkpoint saved; the same command with --resume continues" not in printed:  # the launcher may end before the recipe
        assert time.monotonic() < deadline
        time.sleep(0.1)
        printed = (tmp_path / "console").read_text()
    assert printed.count("Traceback") <= 1 and "recipes/pretrain.py" not in printed and "mscl_hf" not in printed
