"""A checkpoint's whole life on a Hub over loopback, by the real clients: huggingface_hub, transformers, evaluate, timm."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from minihub import TOKEN

from mscl_hf.models.loading import pinned, split_revision

WORKER = ROOT / "tests" / "hub_worker.py"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """work(arguments, path, offline) -> facts: the worker's, which runs as a process of its own, since HF_ENDPOINT is read at import."""
    folder = tmp_path_factory.mktemp("life")

    def run(*arguments: str, path, offline: str) -> dict:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        environment |= {
            "PYTHONPATH": str(path), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(WORKER), str(folder), *arguments],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        assert TOKEN not in done.stdout + done.stderr
        return json.loads((folder / "facts.json").read_text()) | {"output": done.stdout + done.stderr}

    return run


@pytest.fixture(scope="module")
def life(work) -> dict:
    return work(path=ROOT, offline="0")


@pytest.fixture(scope="module")
def pinned_facts(life) -> dict:
    """What tests/hub_pinned.py saw."""
    return life["commits of runs"]


def test_pushed_model_loads_by_name(life):
    """What was pushed gives, loaded by its name, the same logits to the bit, through our class and through the Auto class; so does the
    image processor, and nothing that belongs to the machine went along."""
    assert life["loaded"] == life["auto"] == life["first"] and life["processor"].startswith("Segformer")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(life["files"])
    assert "run.json" not in life["files"]
    assert "pushed: http://127.0.0.1:" in life["output"]


def test_pipeline_by_name(life):
    """The image-segmentation pipeline takes the name: its masks have the image's size and share out its pixels; no complaint."""
    assert all(size == [120, 90] for _, size, _ in life["segments"])
    assert sum(count for *_, count in life["segments"]) == 120 * 90
    assert "is not supported" not in life["output"]


def test_auto_backbone_by_name(life):
    """AutoBackbone loads the backbone out of a pushed segmentation model: its feature maps, to the bit."""
    assert life["feature_maps"] == life["own_feature_maps"] and len(life["feature_maps"]) > 1
    assert life["channels"][0] == life["channels"][1]


def test_second_push_and_pinned_revision(life):
    """The same folder again makes no commit; other weights make one, after the first; the first commit still gives the first weights."""
    assert life["after_same"] == life["first_sha"]
    assert life["commits"] == [life["first_sha"], 3]  # creation, first, second
    assert life["main_now"] == life["second"] != life["first"] == life["pinned"]


def test_load_never_mixes_commits(life):
    """A load asks for the files of one commit, by its id; if main moves in the middle, all of them are those of the commit before."""
    assert life["asked_for"] and all(f"/resolve/{life['first_sha']}/" in path for path in life["asked_for"])
    assert life["moved"] and life["while_moving"] == life["second"] and life["snapshots"] == [life["before_move"]]
    assert life["after_move"] == life["first"]


def test_broken_downloads(life):
    """A cut download is continued where it stopped. Weights that are not as long as announced are an error, and not in the cache: the next
    load, from a server in order, is right. Wrong bytes of the right length are found by the checksums."""
    assert life["continued"] == ["drop_midway", 206] and life["after_cut"] == life["first"]
    assert "file should be of size" in life["short"] and life["short_cached"] == []
    assert life["short_repaired"] == life["first"]
    assert life["wrong"] == ["model.safetensors"]


def test_metric_as_a_space(life):
    """The metric, pushed as a Space, is what evaluate.load fetches by its name, and it computes."""
    assert {"mean_iou.py", "README.md", "app.py", "requirements.txt"} <= set(life["spaces"]["org/mean_iou"])
    module, value = life["metric"]
    assert "org--mean_iou" in module and value == 0.5


def test_timm_loads_by_name(life):
    """A folder that timm wrote, pushed by mscl-push, loads as hf-hub:NAME with the same output to the bit."""
    assert life["timm"][0] == life["timm"][1]


def test_space_and_cache_without_a_network(life, work):
    """Offline, in the files of the pushed Space alone: its own copy of mscl_hf loads the model, both revisions, out of the cache."""
    files = {"app.py", "README.md", "requirements.txt", "mscl_hf/__init__.py", "mscl_hf/models/modeling_mscl.py"}
    assert files <= set(life["spaces"]["org/demo"])
    facts = work(life["first_sha"], path=life["space_folder"], offline="1")
    assert facts["package"] == f"{life['space_folder']}/mscl_hf/__init__.py"
    assert facts["from_cache"] == life["second"] and facts["first_from_cache"] == life["first"]


def test_a_name_stands_for_its_newest_commit(pinned_facts):
    """NAME becomes NAME@COMMIT before anything is opened, and all files of the run are asked for by that commit."""
    first, newest = pinned_facts["commits"]
    assert pinned_facts["head"] == f"org/start@{newest}" and pinned_facts["by commit"] == f"org/start@{first}"
    for name, commit in (("newest", newest), ("first", first)):
        assert pinned_facts[f"{name} asked for"] and all(f"/resolve/{commit}/" in path for path in pinned_facts[f"{name} asked for"])
    assert all(f"/resolve/{first}/" in path for path in pinned_facts["exported asked for"])
    assert pinned_facts["first weights"]


def test_the_commit_is_recorded(pinned_facts):
    """In the card's facts, in the command to run again, in run.json; the card's base model is the bare name."""
    for name, commit in zip(("first", "newest"), pinned_facts["commits"]):
        record = pinned_facts[name]
        assert record["facts"]["started from"] == f"org/start@{commit}" and record["base_model"] == "org/start"
        assert f"--model org/start@{commit}" in record["command"]
        assert f"org/start@{commit}" in pinned_facts[f"{name} run"]
    assert pinned_facts["onward"] == f"org/start@{pinned_facts['commits'][1]}"


def test_the_commit_of_the_data_is_recorded(pinned_facts):
    """Without --data-revision the newest one is taken, named in the card, and given in the command to run again."""
    record = pinned_facts["first"]
    assert record["facts"]["data"] == f"org/scenes, train at {pinned_facts['data commit']}" and record["data_set"] == "org/scenes"
    assert f"--data-revision {pinned_facts['data commit']}" in record["command"]


def test_a_run_goes_on_with_its_commits(pinned_facts):
    """The same command with --resume takes the model and the data that it began with, though their repositories have moved on."""
    before, after = pinned_facts["continued"]
    assert before == after == [f"org/start@{pinned_facts['commits'][1]}", pinned_facts["data commit"]]
    assert pinned_facts["a new one"] == pinned_facts["moved"] != pinned_facts["data commit"]


def test_a_stream_asks_for_files_of_its_own_repository(pinned_facts):
    """Images that lie loose in a repository can be streamed, at one commit; what a row names elsewhere is not asked for."""
    assert pinned_facts["loose"] == pinned_facts["loose whole"] == [[48, 64, 3]] * 4
    assert pinned_facts["loose stored"] == [True] * 4  # as an evaluation reads them
    pictures = {path for path in pinned_facts["loose asked for"] if path.endswith(".png")}
    assert len(pictures) == 4 and all(path.startswith("/datasets/org/loose/resolve/") for path in pinned_facts["loose asked for"])
    assert pinned_facts["strays"] == [None] * 3 and pinned_facts["strays asked for"] == 0


def test_no_pickle_of_the_hub_is_fetched(pinned_facts):
    """A repository without safetensors is refused in one sentence, its other weights stay there, and nobody is asked to convert them."""
    for name, says in {
        "org/pickled": "pytorch_model.bin, which could run code", "org/shards": "pytorch_model.bin.index.json, which could run code",
        "org/renamed": "names 'pytorch_model-1.bin'", "org/empty": "has no model.safetensors",
    }.items():  # fmt: skip
        assert says in pinned_facts["refused"][name] and "\n" not in pinned_facts["refused"][name]
    assert "has no model.safetensors" in pinned_facts["refused by a command"]
    assert [(method, path) for method, path in pinned_facts["asked"] if method == "GET" and ".bin" in path and "/timm/" not in path] == []
    assert not any("convert" in path or "discussions" in path for _, path in pinned_facts["asked"])


def test_integers_in_a_shard_of_the_hub_are_refused(pinned_facts):
    """A later shard whose tensors are of another kind is found when it has come."""
    assert "as I32; expected" in pinned_facts["refused"]["org/integers"]


def test_no_code_of_timms_repositories_is_run(pinned_facts):
    """timm would read a pickle where there is no safetensors, but tensors only: one with more in it is refused."""
    (said,) = (text for name, text in pinned_facts["refused"].items() if name.startswith("timm/"))
    assert "cannot be fetched" in said and not pinned_facts["code was run"]


def test_a_folder_is_no_revision(tmp_path, monkeypatch):
    """A folder whose name has an @ is that folder, and stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert split_revision("a@b") == ("a@b", None) and pinned("a@b") == "a@b"
    assert split_revision("org/net@refs/pr/1") == ("org/net", "refs/pr/1")
    assert split_revision("org/net") == ("org/net", None) and split_revision("@x") == ("@x", None)
    assert pinned(None) is None
