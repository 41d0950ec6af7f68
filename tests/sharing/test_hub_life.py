"""A model on a Hub over loopback, pushed and loaded by the real clients: huggingface_hub, transformers, evaluate, timm."""

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
    """work(arguments, path, offline): run tests/hub_worker.py, since HF_ENDPOINT is read at import, and return its facts."""
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
    """The facts of tests/hub_pinned.py."""
    return life["commits of runs"]


def test_pushed_model_loads_by_name(life):
    """A pushed model has bit-equal logits when it is loaded by name, by its class and by the Auto class. The image processor loads, and
    run.json was not pushed."""
    assert life["loaded"] == life["auto"] == life["first"] and life["processor"].startswith("Segformer")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(life["files"])
    assert "run.json" not in life["files"]
    assert "pushed: http://127.0.0.1:" in life["output"]


def test_pipeline_by_name(life):
    """The image-segmentation pipeline loads the model by name; its masks partition the image, and nothing is logged as unsupported."""
    assert all(size == [120, 90] for _, size, _ in life["segments"])
    assert sum(count for *_, count in life["segments"]) == 120 * 90
    assert "is not supported" not in life["output"]


def test_auto_backbone_by_name(life):
    """AutoBackbone loads the backbone of a pushed segmentation model with bit-equal feature maps."""
    assert life["feature_maps"] == life["own_feature_maps"] and len(life["feature_maps"]) > 1
    assert life["channels"][0] == life["channels"][1]


def test_second_push_and_pinned_revision(life):
    """A second push of the same folder makes no commit, other weights make one; the first commit still loads the first weights."""
    assert life["after_same"] == life["first_sha"]
    assert life["commits"] == [life["first_sha"], 3]  # creation, first, second
    assert life["main_now"] == life["second"] != life["first"] == life["pinned"]


def test_load_never_mixes_commits(life):
    """A load requests all files by the id of one commit, also if main moves during the load."""
    assert life["requested"] and all(f"/resolve/{life['first_sha']}/" in path for path in life["requested"])
    assert life["moved"] and life["while_moving"] == life["second"] and life["snapshots"] == [life["before_move"]]
    assert life["after_move"] == life["first"]


def test_broken_downloads(life):
    """An interrupted download is continued. Weights of the wrong length are an error and are not cached, so that the next load succeeds.
    Wrong bytes of the right length are detected by checksums."""
    assert life["continued"] == ["drop_midway", 206] and life["after_cut"] == life["first"]
    assert "file should be of size" in life["short"] and life["short_cached"] == []
    assert life["short_repaired"] == life["first"]
    assert life["wrong"] == ["model.safetensors"]


def test_metric_as_a_space(life):
    """evaluate.load downloads the metric, which was pushed as a Space, by name."""
    assert {"mean_iou.py", "README.md", "app.py", "requirements.txt"} <= set(life["spaces"]["org/mean_iou"])
    module, value = life["metric"]
    assert "org--mean_iou" in module and value == 0.5


def test_timm_loads_by_name(life):
    """A pushed timm export loads as hf-hub:NAME with bit-equal output."""
    assert life["timm"][0] == life["timm"][1]


def test_space_and_cache_without_a_network(life, work):
    """Offline, the copy of mscl_hf in the pushed Space loads both revisions of the model from the cache."""
    files = {"app.py", "README.md", "requirements.txt", "mscl_hf/__init__.py", "mscl_hf/models/modeling_mscl.py"}
    assert files <= set(life["spaces"]["org/demo"])
    facts = work(life["first_sha"], path=life["space_folder"], offline="1")
    assert facts["package"] == f"{life['space_folder']}/mscl_hf/__init__.py"
    assert facts["from_cache"] == life["second"] and facts["first_from_cache"] == life["first"]


def test_a_name_is_pinned_to_its_newest_commit(pinned_facts):
    """NAME becomes NAME@COMMIT before it is opened, and all files of the run are requested by that commit."""
    first, newest = pinned_facts["commits"]
    assert pinned_facts["head"] == f"org/start@{newest}" and pinned_facts["by commit"] == f"org/start@{first}"
    for name, commit in (("newest", newest), ("first", first)):
        assert pinned_facts[f"{name} requests"] and all(f"/resolve/{commit}/" in path for path in pinned_facts[f"{name} requests"])
    assert all(f"/resolve/{first}/" in path for path in pinned_facts["exported requests"])
    assert pinned_facts["first weights"]


def test_the_commit_is_recorded(pinned_facts):
    """The commit is in the facts and the command of the card and in run.json; the base model of the card is the name without it."""
    for name, commit in zip(("first", "newest"), pinned_facts["commits"]):
        record = pinned_facts[name]
        assert record["facts"]["started from"] == f"org/start@{commit}" and record["base_model"] == "org/start"
        assert f"--model org/start@{commit}" in record["command"]
        assert f"org/start@{commit}" in pinned_facts[f"{name} run"]
    assert pinned_facts["start_from"] == f"org/start@{pinned_facts['commits'][1]}"


def test_the_commit_of_the_data_is_recorded(pinned_facts):
    """Without --data-revision the newest commit is used, and recorded in the card and its command."""
    record = pinned_facts["first"]
    assert record["facts"]["data"] == f"org/scenes, train at {pinned_facts['data commit']}" and record["data_set"] == "org/scenes"
    assert f"--data-revision {pinned_facts['data commit']}" in record["command"]


def test_a_resumed_run_keeps_its_commits(pinned_facts):
    """The same command with --resume uses the commits of run.json, although the repositories have new ones."""
    before, after = pinned_facts["continued"]
    assert before == after == [f"org/start@{pinned_facts['commits'][1]}", pinned_facts["data commit"]]
    assert pinned_facts["new run"] == pinned_facts["moved"] != pinned_facts["data commit"]


def test_a_stream_requests_files_of_its_own_repository_only(pinned_facts):
    """Image files of a repository are streamed at one commit; URLs of other repositories in its rows are not requested."""
    assert pinned_facts["loose"] == pinned_facts["loose whole"] == [[48, 64, 3]] * 4
    assert pinned_facts["loose stored"] == [True] * 4  # as an evaluation reads them
    pictures = {path for path in pinned_facts["loose requests"] if path.endswith(".png")}
    assert len(pictures) == 4 and all(path.startswith("/datasets/org/loose/resolve/") for path in pinned_facts["loose requests"])
    assert pinned_facts["foreign"] == [None] * 3 and pinned_facts["foreign requests"] == 0


def test_no_pickle_of_the_hub_is_downloaded(pinned_facts):
    """A repository without safetensors is rejected in one sentence; no other weights are downloaded, and no conversion is requested."""
    for name, message in {
        "org/pickled": "pytorch_model.bin, which could run code", "org/shards": "pytorch_model.bin.index.json, which could run code",
        "org/renamed": "names 'pytorch_model-1.bin'", "org/empty": "has no model.safetensors",
    }.items():  # fmt: skip
        assert message in pinned_facts["rejected"][name] and "\n" not in pinned_facts["rejected"][name]
    assert "has no model.safetensors" in pinned_facts["rejected by a command"]
    downloads = [path for method, path in pinned_facts["requests"] if method == "GET" and "/timm/" not in path]
    assert not any(".bin" in path for path in downloads)
    assert not any("convert" in path or "discussions" in path for _, path in pinned_facts["requests"])


def test_integers_in_a_shard_are_rejected(pinned_facts):
    """Integer tensors in a later shard are detected after the download."""
    assert "as I32; expected" in pinned_facts["rejected"]["org/integers"]


def test_a_teacher_of_the_hub_is_recorded_with_its_commit(pinned_facts):
    """--teacher-pretrained downloads timm's weights; the record has their name, commit and license."""
    assert pinned_facts["teacher"] == [pinned_facts["teacher commit"], "apache-2.0"]


def test_no_code_of_timm_repositories_is_run(pinned_facts):
    """timm reads a pickle where there are no safetensors, but only tensors: one with code in it is rejected."""
    (message,) = (text for name, text in pinned_facts["rejected"].items() if name.startswith("timm/"))
    assert "test_resnet cannot be" in message and not pinned_facts["code was run"]


def test_a_folder_is_no_revision(tmp_path, monkeypatch):
    """The name of an existing folder is not split at @."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert split_revision("a@b") == ("a@b", None) and pinned("a@b") == "a@b"
    assert split_revision("org/net@refs/pr/1") == ("org/net", "refs/pr/1")
    assert split_revision("org/net") == ("org/net", None) and split_revision("@x") == ("@x", None)
    assert pinned(None) is None
