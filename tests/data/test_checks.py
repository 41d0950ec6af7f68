"""Checks of the data run on the main process alone, and all processes have the results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mscl_hf.data import checks

WORKER = Path(__file__).parents[1] / "distributed" / "data_worker.py"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes found in a folder with a bad image, and in one whose masks hold unknown ids."""
    folder = tmp_path_factory.mktemp("two")
    masks = np.array([[0, 1, 2], [0, 0, 1]], np.uint8)
    for index in range(6):
        write(folder / "good" / "images" / f"{index}.png", np.full((2, 3), 1000 * (index + 1), np.uint16))
        write(folder / "good" / "masks" / f"{index}.png", masks if index else masks[:, :2])
    for index in range(2):
        write(folder / "bad" / "images" / f"{index}.png", np.zeros((2, 3, 3), np.uint8))
        write(folder / "bad" / "masks" / f"{index}.png", np.array([[0, 1, 7]] * 2, np.uint8))
    paths = [str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    processes = [
        subprocess.Popen([sys.executable, WORKER, str(rank), "2", folder], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_only_the_main_process_reads(results):
    """The image range, the classes, the usable samples and the label counts are equal; the other process opens no image."""
    first, second = results
    assert first["opened"] > 12 and second["opened"] == 0
    assert first["image_range"] == [0, 16383]
    assert first["classes"] == ("class_0", "class_1", "class_2") and first["names"] == ["1", "2", "3", "4", "5"]
    assert first["total"] == 5 and first["pixels"] == [15, 10, 5]
    for name in first.keys() - {"opened"}:
        assert first[name] == second[name], name


def test_errors_are_raised_on_all_processes(results):
    """A BadSample and another ValueError of the main process have the same message on the other one."""
    errors = results[0]["errors"]
    assert [is_bad_sample for is_bad_sample, _ in errors] == [True, False]
    assert "--max-bad-images" in errors[0][1] and "--label-map" in errors[1][1]
    assert results[1]["errors"] == errors


def test_without_a_process_group_the_work_is_called():
    """One process calls it, and its own error is raised."""
    error = KeyError("a")
    assert checks.run_once(lambda: 3) == 3
    with pytest.raises(KeyError) as caught:
        checks.run_once(lambda: (_ for _ in ()).throw(error))
    assert caught.value is error
