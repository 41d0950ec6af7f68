"""Two processes with half the batch each are one process with the whole batch: same loss, same gradient."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "distributed" / "losses_worker.py"
spec = importlib.util.spec_from_file_location("losses_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both processes found: [rank][case][term]."""
    folder = tmp_path_factory.mktemp("two")
    paths = [str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", worker.CASES)
def test_two_processes_are_one(two_processes, name):
    """Means over processes of loss, terms and gradient equal those of the whole batch; both processes agree."""
    labelled = sum(worker.CASES[name][1], ())
    wanted = worker.step(name, range(worker.IMAGES), labelled)
    assert wanted["gradient"].abs().max() > 1e-3
    for rank in range(2):
        found = two_processes[rank][name]
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
