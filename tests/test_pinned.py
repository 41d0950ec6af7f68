"""A model or a data set from the Hub is one commit, which the run records, and no pickle of the Hub is opened."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from minihub import TOKEN

from mscl_hf.publish import pinned, split_revision


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict:
    """What tests/pinned_worker.py saw, in a process of its own, since HF_ENDPOINT is read at import."""
    folder = tmp_path_factory.mktemp("pinned")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(ROOT / "tests" / "pinned_worker.py"), str(folder)]
    done = subprocess.run(worker, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert TOKEN not in done.stdout + done.stderr
    return json.loads((folder / "facts.json").read_text())


def test_a_name_stands_for_its_newest_commit(facts):
    """NAME becomes NAME@COMMIT before anything is opened, and all files of the run are asked for by that commit."""
    first, newest = facts["commits"]
    assert facts["head"] == f"org/net@{newest}" and facts["by commit"] == f"org/net@{first}"
    for name, commit in (("newest", newest), ("first", first)):
        assert facts[f"{name} asked for"] and all(f"/resolve/{commit}/" in path for path in facts[f"{name} asked for"])
    assert all(f"/resolve/{first}/" in path for path in facts["exported asked for"])
    assert facts["first weights"]


def test_the_commit_is_recorded(facts):
    """In the card's facts, in the command to run again, in run.json; the card's base model is the bare name."""
    for name, commit in zip(("first", "newest"), facts["commits"]):
        record = facts[name]
        assert record["facts"]["started from"] == f"org/net@{commit}" and record["base_model"] == "org/net"
        assert f"--model org/net@{commit}" in record["command"]
        assert f"org/net@{commit}" in facts[f"{name} run"]
    assert facts["onward"] == f"org/net@{facts['commits'][1]}"


def test_the_commit_of_the_data_is_recorded(facts):
    """Without --data-revision the newest one is taken, named in the card, and given in the command to run again."""
    record = facts["first"]
    assert record["facts"]["data"] == f"org/scenes, train at {facts['data commit']}" and record["data_set"] == "org/scenes"
    assert f"--data-revision {facts['data commit']}" in record["command"]


def test_no_pickle_of_the_hub_is_fetched(facts):
    """A repository without safetensors is refused in one sentence, its other weights stay there, and nobody is asked to convert them."""
    for name, says in {
        "org/pickled": "pytorch_model.bin, which could run code", "org/shards": "pytorch_model.bin.index.json, which could run code",
        "org/renamed": "names 'pytorch_model-1.bin'", "org/empty": "has no model.safetensors",
    }.items():  # fmt: skip
        assert says in facts["refused"][name] and "\n" not in facts["refused"][name]
    assert "has no model.safetensors" in facts["refused by a command"]
    assert [(method, path) for method, path in facts["asked"] if method == "GET" and ".bin" in path and "/timm/" not in path] == []
    assert not any("convert" in path or "discussions" in path for _, path in facts["asked"])


def test_no_code_of_timms_repositories_is_run(facts):
    """timm would read a pickle where there is no safetensors, but tensors only: one with more in it is refused."""
    (said,) = (text for name, text in facts["refused"].items() if name.startswith("timm/"))
    assert "cannot be fetched" in said and not facts["code was run"]


def test_a_folder_is_no_revision(tmp_path, monkeypatch):
    """A folder whose name has an @ is that folder, and stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert split_revision("a@b") == ("a@b", None) and pinned("a@b") == "a@b"
    assert split_revision("org/net@refs/pr/1") == ("org/net", "refs/pr/1")
    assert split_revision("org/net") == ("org/net", None) and split_revision("@x") == ("@x", None)
    assert pinned(None) is None
