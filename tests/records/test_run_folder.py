"""run.json: which options a run must keep on --resume, and what a rejected resume leaves behind."""

import json
from dataclasses import fields

import harness
import pytest
from accelerate import Accelerator
from test_recipes import write_folder

from mscl_hf.cli import flat
from mscl_hf.config import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig
from mscl_hf.messages import RENAMED
from mscl_hf.records import run_folder
from mscl_hf.records.run_folder import COMMANDS, FILES, FREE_TO_CHANGE, MAY_CHANGE, open_run

CONFIGS = (PretrainConfig, FinetuneConfig, EvaluateConfig, PredictConfig)
# Entries of run.json as an earlier version wrote them.
OLD = {"method": "mscl", "lr": 0.05, "tau_p": 0.07, "clip_norm": 5.0, "precision": "fp32", "num_workers": 2, "seed": 0, "commit": "a1b2"}


def start(out, **options):
    """Claim the folder for a run that has saved a checkpoint."""
    open_run(out, options, False, Accelerator())
    (out / "checkpoints").mkdir()


def test_a_run_that_stopped_before_its_first_step_is_claimed_anew(tmp_path):
    """Its records block no corrected command, and its list of held-out images, maybe of other data, is removed; that of a run is kept."""
    out = tmp_path / "run"
    open_run(out, {"method": "mscl", "data_dir": "wrong"}, False, Accelerator())
    for name in ("config.yaml", "val_split.txt"):
        (out / name).write_text("")
    assert open_run(out, {"method": "mscl", "data_dir": "right"}, False, Accelerator()) is None
    assert json.loads((out / "run.json").read_text())["data_dir"] == "right" and not (out / "val_split.txt").exists()
    (out / "checkpoints").mkdir()
    (out / "val_split.txt").write_text("")
    assert open_run(out, {"method": "mscl", "data_dir": "right"}, True, Accelerator()) and (out / "val_split.txt").exists()


@pytest.mark.parametrize("names", [FREE_TO_CHANGE, MAY_CHANGE, FILES, COMMANDS])
def test_lists_hold_names_of_options(names):
    """Every name in the lists is an option of a recipe today; `config` and `commit` are no fields."""
    options = {name for config in CONFIGS for name in flat(config())} | {"config", "commit"}
    assert set(names) <= options and not {name.replace("_", "-") for name in names} & set(RENAMED)


def test_commands_are_told_apart():
    """One option of each command is in no other one."""
    for config, command in zip(CONFIGS, COMMANDS.values()):
        assert run_folder._command_of(flat(config())) == command


@pytest.mark.parametrize("current", [{}, {"learning_rate": 0.05, "pixel_temperature": 0.07, "mixed_precision": "no", "max_grad_norm": 5.0}])
def test_run_of_another_version(tmp_path, current):
    """A run with other names of options is named as such, without a list of differences; its record stays."""
    out = tmp_path / "run"
    start(out, **OLD)
    with pytest.raises(ValueError, match="another version of mscl_hf.*give another --output-dir") as error:
        open_run(out, {"method": "mscl", "seed": 0, "commit": "9876fedc"} | current, True, Accelerator())
    assert "->" not in str(error.value) and str(out) in str(error.value)
    assert json.loads((out / "run.json").read_text()) == OLD


def test_run_of_another_version_by_a_recipe(tmp_path):
    """The same for a whole pre-training configuration; without --resume, the folder is in use."""
    out = tmp_path / "run"
    old = {name: value for name, value in flat(PretrainConfig()).items() if name.replace("_", "-") not in RENAMED.values()}
    start(out, **old | OLD)
    flags = ("pretrain", "--output-dir", out, *harness.TINY, *harness.SHORT)
    assert "another version of mscl_hf" in harness.rejected(*flags, "--resume")
    assert "already holds a run" in harness.rejected(*flags)


def test_new_option_without_a_value_is_no_other_version(tmp_path):
    """An option that is unset, or that changes no number, may be missing in an older run.json."""
    out = tmp_path / "run"
    start(out, method="mscl", seed=0, commit="0123abcd")
    open_run(out, {"method": "mscl", "seed": 0, "temperature": None, "save_steps": 3, "commit": None}, True, Accelerator())


def test_rejected_resume_keeps_the_record(tmp_path):
    """Other images, or none, end a resume without a trace in run.json; an accepted one records the new place."""
    first, other = (write_folder(tmp_path / name, splits=("",), count=4, seed=seed) for seed, name in enumerate(("first", "other")))
    out = tmp_path / "run"

    def flags(data):
        return ("pretrain", "--dataset", "folder", "--data-dir", data, "--num-classes", 8, "--val-split", "none", "--max-steps", 1,
                "--output-dir", out, *harness.TINY, "--batch-size", 4, "--dataloader-num-workers", 0, "--warmup-steps", 0)  # fmt: skip

    harness.run(*flags(first), pictures=False)
    record = (out / "run.json").read_text()
    assert "are not those of the checkpoint" in harness.rejected(*flags(other), "--resume")
    assert (out / "run.json").read_text() == record
    assert "nowhere" in harness.rejected(*flags(tmp_path / "nowhere"), "--resume")
    assert (out / "run.json").read_text() == record
    first.rename(tmp_path / "moved")
    harness.run(*flags(tmp_path / "moved"), "--resume", pictures=False)
    assert json.loads((out / "run.json").read_text())["data_dir"] == str(tmp_path / "moved")


def test_configurations_have_sections():
    """flat() lists every option once: no two sections share a name."""
    for config in CONFIGS:
        names = [option.name for section in fields(config) for option in fields(getattr(config(), section.name))]
        assert len(names) == len(set(names)) == len(flat(config()))
