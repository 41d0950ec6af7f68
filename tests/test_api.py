"""The Python functions: the files of the commands, the checks of the commands, and a result that notebooks show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mscl_hf
from mscl_hf.api import configured
from mscl_hf.config import PretrainConfig
from mscl_hf.config.training import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"max_steps": 2, "batch_size": 4, "train_count": 8, "dataloader_num_workers": 0, "val_split": "none"}
NETWORK = {"backbone": "test_resnet", "image_size": 64, "decoder_channels": 16, "health_steps": 0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return mscl_hf.pretrain(**SMALL, **NETWORK, output_dir=tmp_path_factory.mktemp("api") / "pretrained")


def test_the_function_writes_what_the_command_writes(pretrained, tmp_path):
    """The same options give the same weights, to the bit, and the same config.yaml apart from the folder."""
    words = [word for name, value in (SMALL | NETWORK).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), *words, "--output-dir", str(tmp_path / "command")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for name in ("model.safetensors", "config.json"):
        assert (pretrained.out / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    lines = [[line for line in (out / "config.yaml").read_text().splitlines() if "output_dir" not in line]
             for out in (pretrained.out, tmp_path / "command")]  # fmt: skip
    assert lines[0] == lines[1]


def test_the_chain_of_functions(pretrained, tmp_path):
    """A result is the model of the next function; metrics are numbers; the result is shown with them and its pictures."""
    tuned = mscl_hf.finetune(model=pretrained, **SMALL | {"val_split": "val"}, output_dir=tmp_path / "tuned")
    scores = mscl_hf.evaluate(model=tuned, split="val", output_dir=tmp_path / "scores", pictures=1)
    assert scores.metrics["mean_iou"] == pytest.approx(tuned.metrics["mean_iou"], abs=1e-12)
    assert json.loads((scores.out / "results.json").read_text())["mean_iou"] == scores.metrics["mean_iou"]
    assert "mean_iou" in scores._repr_html_() and "data:image/png;base64," in scores._repr_html_()
    images = tmp_path / "images"
    images.mkdir()
    mscl_hf.load_data("synthetic", "test").rows[0]["image"].save(images / "a.png")
    predicted = mscl_hf.predict(model=tuned, images=images, output_dir=tmp_path / "predicted")
    assert sum(predicted.metrics.values()) == pytest.approx(1) and (tmp_path / "predicted" / "masks" / "a.png").is_file()
    assert isinstance(tuned.model, torch.nn.Module) and Path(tuned) == tmp_path / "tuned"


def test_options_replace_those_of_the_configuration():
    """Single options replace those of a configuration, and nothing else; None leaves an option as it is."""
    base = PretrainConfig(training=TrainingConfig(max_steps=7, learning_rate=0.5))
    config = configured(PretrainConfig, base, {"max_steps": 9, "label_map": {255: 1}, "seed": None, "exclude_classes": (1, 2)})
    assert (config.training.max_steps, config.training.learning_rate, config.data.label_map) == (9, 0.5, "255:1")
    assert config.contrast.exclude_classes == [1, 2] and config.network == base.network


@pytest.mark.parametrize(
    "options, words", [({"lr": 0.1}, "--learning-rate"), ({"max_steps": "many"}, "--max-steps"), ({"loss": "ce"}, "mscl-finetune")]
)
def test_wrong_options_are_errors_of_one_sentence(options, words, tmp_path):
    """A wrong name or value raises ValueError, which names the option, before anything is written."""
    with pytest.raises(ValueError, match=words):
        mscl_hf.pretrain(**options, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_notebook_runs(tmp_path):
    """docs/own_images.ipynb runs from top to bottom in a kernel of its own, shortened to two steps."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "own_images.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    sources = "".join(cell.source for cell in notebook.cells)
    assert "STEPS = 300" in sources
    for cell in notebook.cells:
        cell.source = cell.source.replace("STEPS = 300", "STEPS = 2").replace('backbone="resnet18"', 'backbone="test_resnet"')
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", {}) for output in shown) and any("image/png" in output.get("data", {}) for output in shown)
    assert len(list((tmp_path / "own_images" / "predicted" / "masks").rglob("*.png"))) == 4
