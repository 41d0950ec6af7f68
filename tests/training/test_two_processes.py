"""Two processes with half the batch each are one process with the whole batch: same loss, same gradient."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

FOLDER = Path(__file__).parents[1] / "distributed"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


losses, methods = load("losses_worker"), load("methods_worker")


def run_two(name, folder):
    """Return the results of both processes of a worker: [rank][case]."""
    paths = [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, str(FOLDER / f"{name}.py")]
    started = [subprocess.Popen([*words, str(r), "2", str(folder)], env=environment, stderr=subprocess.PIPE, text=True) for r in range(2)]
    try:
        for process in started:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def two_losses(tmp_path_factory):
    return run_two("losses_worker", tmp_path_factory.mktemp("losses"))


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory, testrun_uid):
    """The results of both processes, which are started once for all test workers."""
    folder = tmp_path_factory.getbasetemp().parent / f"methods-{testrun_uid}"
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        if not (folder / "rank1.pt").is_file():
            run_two("methods_worker", folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", losses.CASES)
def test_two_processes_are_one(two_losses, name):
    """Means over processes of loss, terms and gradient equal those of the whole batch; both processes agree."""
    labelled = sum(losses.CASES[name][1], ())
    expected = losses.step(name, range(losses.IMAGES), labelled)
    assert expected["gradient"].abs().max() > 1e-3
    for rank in range(2):
        actual = two_losses[rank][name]
        assert actual.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(actual[key], expected[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("case", methods.CASES)
def test_two_processes_are_one_for_every_method(two_methods, case):
    """Under DDP, BatchNorm synchronized: losses, the gradient of every parameter, queues and banks are those of the whole batch."""
    expected = methods.step(case)
    assert max(gradient.abs().max() for gradient in expected[1].values()) > 1e-3
    for rank in range(2):
        for actual, part in zip(two_methods[rank][case], expected):
            assert actual.keys() == part.keys()
            for key in part:
                torch.testing.assert_close(actual[key], part[key], atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
