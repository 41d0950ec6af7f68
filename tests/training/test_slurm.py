"""The SLURM script with stand-ins for `srun` and `scontrol`: a preempted job is queued again and goes on, a wrong one is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
from accelerate.commands.config.config_args import load_config_from_file

from mscl_hf.training import checkpoint_folder

SCRIPT = harness.ROOT / "recipes" / "slurm.sh"
SRUN = """#!/bin/bash
echo "cpus $SRUN_CPUS_PER_TASK $*" >> "$STUBS/asked"
while [[ "$1" == --* ]]; do shift; done
"$@" &
echo $! > "$STUBS/pid"
wait $!
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$STUBS/requeued"; fi
"""
FLAGS = (*harness.TINY, *harness.SHORT, "--val-split", "none", "--save-steps", 5)


@pytest.fixture
def sbatch(tmp_path):
    """Return a function that starts the script as SLURM does, on one node."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*flags, restarts: int = 0) -> subprocess.Popen:
        job = {"SLURM_SUBMIT_DIR": harness.ROOT, "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": 1, "SLURM_GPUS_ON_NODE": 1,
               "SLURM_CPUS_PER_TASK": 12,
               "SLURM_JOB_ID": os.getpid(), "SLURM_RESTART_COUNT": restarts, "STUBS": tmp_path, "PYTHONWARNINGS": "ignore",
               "PYTHONPATH": harness.ROOT, "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
        environment = {**os.environ, **{key: str(value) for key, value in job.items()}}
        return subprocess.Popen([str(word) for word in (SCRIPT, *flags)], env=environment, cwd=tmp_path, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)  # fmt: skip

    return start


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_goes_on(sbatch, tmp_path):
    """After SIGTERM to torchrun the step is finished and saved, the job is queued again, and the next start completes it."""
    out = tmp_path / "run"
    flags = (*FLAGS, "--max-steps", 300, "--output-dir", out)
    job = sbatch(*flags)
    deadline = time.monotonic() + 120
    while not checkpoint_folder.complete(out) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    output = job.communicate(timeout=300)[0]
    assert job.returncode != 0 and "checkpoint saved" in output and "queued again" in output, output[-3000:]
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    stopped = int(checkpoint_folder.complete(out)[-1].name[5:])
    job = sbatch(*flags, restarts=1)
    output = job.communicate(timeout=300)[0]
    assert job.returncode == 0 and f"resuming from step {stopped}" in output, output[-3000:]
    assert (out / "model.safetensors").is_file() and len((tmp_path / "requeued").read_text().splitlines()) == 1
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 and all(line.startswith("cpus 12 --kill-on-bad-exit=1 torchrun ") for line in asked)
    # Other settings for a run that has checkpoints: rejected each time, with nothing new saved
    job = sbatch(*flags, "--batch-size", 8, restarts=2)
    output = job.communicate(timeout=300)[0]
    assert job.returncode != 0 and "other settings" in output and "without a new checkpoint: not queued again" in output, output[-3000:]
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_wrong_option_is_not_tried_for_ever(sbatch, tmp_path):
    """A job that fails before its first step is not queued again."""
    job = sbatch(*FLAGS, "--max-steps", 3, "--method", "msl", "--output-dir", tmp_path / "run")
    output = job.communicate(timeout=300)[0]
    assert job.returncode != 0 and "--method is 'msl'" in output and not (tmp_path / "requeued").exists()


def test_requeues_end(sbatch, tmp_path, monkeypatch):
    """After MAX_REQUEUES a job that makes progress is not queued again. torchrun is replaced by a script that saves and fails."""
    out = tmp_path / "run"
    (tmp_path / "torchrun").write_text(f'#!/bin/bash\nmkdir -p "{out}/checkpoints/step-0000000$SLURM_RESTART_COUNT"; exit 1\n')
    (tmp_path / "torchrun").chmod(0o755)
    monkeypatch.setenv("MAX_REQUEUES", "2")
    for restarts, says in enumerate(("queued again", "queued again", "after 2 requeues: not queued again")):
        job = sbatch(f"--output-dir={out}", restarts=restarts)
        assert says in job.communicate(timeout=60)[0] and job.returncode == 1
    assert len((tmp_path / "requeued").read_text().splitlines()) == 2
    job = sbatch(f"--output-dir={out}", restarts=2)
    assert "without a new checkpoint: not queued again" in job.communicate(timeout=60)[0]


@pytest.mark.parametrize("name", sorted(path.name for path in (harness.ROOT / "recipes" / "configs").glob("accelerate_*.yaml")))
def test_accelerate_takes_our_configurations(name):
    """Accelerate reads each file, and its numbers of machines and processes are those of its name."""
    config = load_config_from_file(str(harness.ROOT / "recipes" / "configs" / name))
    numbers = [int(part) for part in name.removeprefix("accelerate_").removesuffix("gpu.yaml").split("x")]
    machines, per_machine = numbers if len(numbers) == 2 else (1, *numbers)
    assert config.num_processes == machines * per_machine and getattr(config, "num_machines", 1) == machines
