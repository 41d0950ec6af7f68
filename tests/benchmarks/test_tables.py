"""The grid behind the paper's tables: its runs, and that kills, other benchmarks and reruns change or repeat none of them."""

import csv
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import harness
import pytest
import yaml
from filelock import FileLock

from mscl_hf.methods import METHODS
from recipes.benchmarks import stages
from recipes.benchmarks.common import read_csv
from recipes.benchmarks.tables import grid as plan
from recipes.benchmarks.tables import run as tables

SETTINGS = {
    "shares": {"1/10": 4, "1/5": 8, "1/2": 16, "all": None}, "seeds": [0, 1], "seeds_of_others": [0], "passes": 48,
    "common": {"image-size": 32, "dataloader-num-workers": 0, "save-steps": 1},
    "network": {"backbone": "test_resnet", "decoder-channels": 16},
    "pretrain": {"batch-size": 4, "learning-rate": 0.01, "health-steps": 0, "val-split": "none"},
    "finetune": {"batch-size": 4, "max-steps": 3, "dropout": 0, "val-split": "none"},
    "finetune_random": {"learning-rate": 0.2},
    "evaluate": {"split": "val", "pictures": 0},
}  # fmt: skip
CELLS = ("--start", "random", "--table", 3, "--rows", "none", "simclr", "--shares", "1/5", "--seeds", 0)


def options(**changes):
    return plan.TablesOptions(**{"dataset": "camvid", "weights": "w.safetensors", "work_dir": "W"} | changes)


def grid(table, spec=SETTINGS, **changes):
    return list(plan.cells_of(table, spec, options(**changes)))


def command(tmp_path, *words):
    settings = tmp_path / "settings.yaml"
    if not settings.is_file():
        settings.write_text(yaml.safe_dump(SETTINGS))
    words = ("--dataset", "synthetic", "--settings", settings, "--work-dir", tmp_path / "work", "--results", tmp_path / "results", *words)
    return [sys.executable, "-m", "recipes.benchmarks", "tables", *map(str, words)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "MSCL_HF_COMMIT": "of-this-test"}


def run(tmp_path, *words):
    return subprocess.run(command(tmp_path, *words), capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=500)


def scores(tmp_path):
    with (tmp_path / "results" / "table3.csv").open() as file:
        return {(row["cell"], row["share"], row["seed"]): row["mean_iou"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, testrun_uid):
    """Folder of the cells, run once for all test workers; tests only read it."""
    folder = tmp_path_factory.getbasetemp().parent / f"undisturbed-{testrun_uid}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            folder.mkdir()
            done = run(folder, *CELLS)
            assert done.returncode == 0, done.stderr[-2000:]
    return folder


def copy_of_none(undisturbed, tmp_path):
    """Copy the work folder with the cell `none`, which is finished, alone."""
    shutil.copytree(undisturbed / "work", tmp_path / "work", ignore=shutil.ignore_patterns("simclr*"))


# -- the plan ----------------------------------------------------------------------------------------------------------------


def test_tables_have_the_papers_rows_and_all_methods():
    """Table 1 has four label counts, table 2 none and the seven sums, table 3 the paper's five rows and the other methods."""
    one, two, three = (grid(table) for table in (1, 2, 3))
    assert {(c.name, c.share) for c in one if c.seed == 0} >= {(n, s) for n in ("none", "none_long", "mscl") for s in SETTINGS["shares"]}
    assert {c.name for c in two} == {"none", "imagenet", "g", "l", "p", "g+l", "g+p", "l+p", "g+l+p"} and {c.share for c in two} == {"1/2"}
    names = {seed: {c.name for c in three if c.seed == seed} for seed in (0, 1)}
    assert names[1] == {"none", "imagenet", "simclr", "aaf", "rmi", "mscl", "semi", "mscl_semi"}
    assert names[0] == names[1] | set(METHODS) - {"distill"}  # which needs the weights of a second network
    assert [c.seed for c in one] == sorted(c.seed for c in one)  # a whole table with one seed before the next seed
    without = grid(1, start="random")
    assert not [c for c in without if "imagenet" in c.name]
    assert not [c for c in (*one, *three) if c.share == "all" and c.name in ("mscl_unlabelled", "semi", "mscl_semi")]


def test_cells_share_the_runs_that_they_have_in_common():
    """All tables share the fine-tuning of none; g+l+p is mscl; a method without masks is pre-trained once for all label counts."""
    cells = {(table, c.name, c.share): c for table in (1, 2, 3) for c in grid(table, seeds=[0])}
    assert cells[1, "none", "1/2"].stages == cells[2, "none", "1/2"].stages
    assert cells[1, "mscl", "1/2"].stages == cells[2, "g+l+p", "1/2"].stages
    assert cells[1, "mscl", "all"].stages == cells[3, "mscl", "all"].stages
    first = {key: cell.stages[0] for key, cell in cells.items()}
    assert first[3, "simclr", "1/5"] == first[3, "simclr", "all"] and first[1, "mscl", "1/5"] != first[1, "mscl", "1/2"]
    assert first[1, "none", "1/10"] == first[1, "none_long", "all"] != first[1, "imagenet", "1/10"] == first[3, "aaf", "1/5"]
    assert first[3, "zhao_within", "1/5"] != first[3, "zhao_within", "all"]  # reads masks
    everything = [stage for cell in cells.values() for stage in cell.stages]
    by_folder = {stage.folder: stage.flags for stage in everything}
    assert all(by_folder[stage.folder] == stage.flags for stage in everything)  # one run per folder


@pytest.mark.parametrize("reading", ["best", "printed"])
def test_budgets_are_equal(reading):
    """Every pre-training passes the same number of views, every fine-tuning makes the same steps; `_long` adds the former to the latter."""
    for cell in [c for table in (1, 2, 3) for c in grid(table, reading=reading, seeds=[0])]:
        pretrain, finetune, _ = (stage.flags for stage in cell.stages)
        method_cls = METHODS[pretrain["method"]]
        if method_cls.trains:
            assert pretrain["max-steps"] * pretrain["batch-size"] * plan.VIEWS_PER_SAMPLE[method_cls.views] == SETTINGS["passes"]
        steps = 3 + 48 // 4 * (cell.name.endswith("_long") or cell.name == "semi")
        assert finetune["max-steps"] == (steps // 2 if "semi" in cell.name else steps)  # of twice as many images
        assert (finetune.get("semi-supervised") == "fixmatch") is ("semi" in cell.name)
        assert (finetune.get("learning-rate") == 0.2) is (pretrain["method"] == "none" or method_cls.two_towers)
        assert finetune.get("train-count") == SETTINGS["shares"][cell.share]
        masks = pretrain.get("train-count", SETTINGS["shares"][cell.share])
        assert masks == SETTINGS["shares"][cell.share] or method_cls.reads_masks == "no"  # no mask that fine-tuning does not see
        assert (pretrain.get("geometry") == "shared") is (reading == "printed" and pretrain["method"] == "mscl")
        weights = "backbone-weights" in pretrain
        assert weights is (pretrain["method"] not in ("none", "cmc"))


def test_rows_in_the_repository_are_those_of_its_settings():
    """Each row has the digest of its cell in the current plan, with a file of weights: the same command adds to these tables."""
    planned, stored = {}, {}
    for scale, dataset, reading in itertools.product(("small", "medium"), ("camvid", "voc2012"), ("best", "printed")):
        chosen = options(scale=scale, dataset=dataset, reading=reading, results=harness.ROOT / "results")
        spec = plan.read_spec(chosen)
        for table in (1, 2, 3):
            stored |= {tables.key_of(row): row["config"] for row in read_csv(tables.path_of(table, chosen))}
            cells = plan.cells_of(table, spec, chosen)
            planned |= {tables.key_of(tables.identity_of(cell, chosen)): tables.config_of(cell) for cell in cells}
    assert stored and stored.items() <= planned.items()


def test_settings_in_the_repository_make_a_grid():
    """Each settings file makes all three tables, in both readings, from both starts."""
    files = sorted((harness.ROOT / "recipes" / "benchmarks" / "configs").glob("tables_*_*.yaml"))
    assert len(files) >= 2
    for path in files:
        for changes in ({}, {"reading": "printed"}, {"start": "random"}):
            assert all(grid(table, yaml.safe_load(path.read_text()), **changes) for table in (1, 2, 3))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--table", 4), "--table is 4"), (("--rows", "mocov2"), "--rows is mocov2"), (("--shares", "1/3"), "--shares is 1/3"),
        (("--start", "coco"), "--start is .coco."), (("--reading", "mine"), "--reading is .*best, printed"), (("--jobs", 0), "--jobs is 0"),
        (("--rows", "moco_v2", "--table", 1), "no cell of these tables"), (("--settings", "no.yaml"), "no file no.yaml"),
        (("--weights", "no.safetensors"), "--weights is no.safetensors"),
    ],
)  # fmt: skip
def test_wrong_options_are_rejected(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        tables.main(command(tmp_path, *words)[4:])
    assert not (tmp_path / "work").exists() and not (tmp_path / "results").exists()


# -- the runs ----------------------------------------------------------------------------------------------------------------


def test_cells_are_measured_and_written_down(undisturbed):
    """Each cell has a row with steps, versions and times; Markdown and a picture are written; checkpoints are removed, models are kept."""
    with (undisturbed / "results" / "table3.csv").open() as file:
        none, simclr = csv.DictReader(file)
    assert (none["cell"], none["pretrain_passes"], none["finetune_passes"], none["labels"]) == ("none", "0", "12", "-")
    assert (simclr["cell"], simclr["pretrain_passes"], simclr["finetune_steps"], simclr["labels"]) == ("simclr", "48", "3", "no")
    planned = {(cell.name, cell.share): cell for cell in grid(3, dataset="synthetic", start="random", seeds=[0])}
    for row in (none, simclr):
        assert row["config"] == tables.config_of(planned[row["cell"], row["share"]])
        assert 0 < float(row["mean_iou"]) < 1 and float(row["hours"]) > 0 and row["threads"] == "1"
        assert (row["commit"], row["torch"]) == ("of-this-test", version("torch"))
        assert (row["share"], row["train_count"], row["start"], row["reading"], row["loss"]) == ("1/5", "8", "random", "best", "ce")
        assert int(row["parameters"]) == int(none["parameters"]) > 1e5
    assert {path.name for path in (undisturbed / "results").iterdir()} >= {"table3.csv", "table3.md", "table3.png", "hypotheses.md"}
    assert not list((undisturbed / "work").rglob("checkpoints")) and len(list((undisturbed / "work").rglob("model.safetensors"))) == 4


def test_finished_cells_are_not_run_again(tmp_path, undisturbed):
    """The same command a second time changes no run; other rows of the table are kept."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.log")}
    table = tmp_path / "results" / "table3.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows, rows[0].replace("synthetic,none", "camvid,none")]) + "\n")
    tables.main(command(tmp_path, *CELLS)[4:])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.log")} == before
    assert sorted(table.read_text().splitlines()[1:]) == sorted([*rows, rows[0].replace("synthetic,none", "camvid,none")])


def test_one_process_writes_the_tables_at_a_time(tmp_path, undisturbed, monkeypatch):
    """A lock is held while CSV files, Markdown and pictures are written."""
    shutil.copytree(undisturbed / "work", tmp_path / "work")
    seen = []

    def seeing(name, write):
        def inner(*arguments):
            handle = os.open(tmp_path / "results", os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(handle)
            seen.append(name)
            return write(*arguments)

        return inner

    for name in ("position_of", "write_tables"):  # rows are sorted while the lock is held
        monkeypatch.setattr(tables, name, seeing(name, getattr(tables, name)))
    tables.main(command(tmp_path, *CELLS, "--finished-only", "true")[4:])
    assert seen == ["position_of", "position_of", "write_tables"] and (tmp_path / "results" / "table3.md").is_file()


def test_rows_with_other_settings_are_replaced_on_request(tmp_path, undisturbed):
    """Without --replace they are an error that names the cell, and are not changed."""
    shutil.copytree(undisturbed / "work", tmp_path / "work")
    words, table = command(tmp_path, *CELLS, "--finished-only", "true")[4:], tmp_path / "results" / "table3.csv"
    tables.main(words)
    right, (none, _) = table.read_text(), read_csv(table)
    table.write_text(other := right.replace(none["config"], "00000000"))
    with pytest.raises(ValueError, match="table3.csv has a row with other settings for none, .* --results, or --replace"):
        tables.main(words)
    assert table.read_text() == other
    tables.main([*words, "--replace", "true"])
    assert table.read_text() == right


def test_a_row_names_the_commits_and_versions_of_its_runs(tmp_path, undisturbed):
    """Commits and versions of all runs and attempts are listed once each; those of the process that writes the table are not."""
    shutil.copytree(undisturbed / "work", tmp_path / "work")
    made = {"pretrain": ("aaa", "1.0"), "finetune": ("aaa bbb", "2.0"), "evaluate": ("ccc", "1.0")}
    for path in (tmp_path / "work").rglob("*.done.json"):
        commits, torch = made[path.parent.name]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commits, "torch": torch}))
    tables.main(command(tmp_path, *CELLS, "--finished-only", "true")[4:])
    with (tmp_path / "results" / "table3.csv").open() as file:
        assert {(row["commit"], row["torch"]) for row in csv.DictReader(file)} == {("aaa bbb ccc", "1.0 2.0")}
    assert "commit aaa and bbb and ccc, torch 1.0 and 2.0, " in (tmp_path / "results" / "table3.md").read_text()


def test_a_stage_names_all_commits_that_it_was_run_with(tmp_path):
    """Earlier attempts count too; "-" stands for sources without a commit."""
    stage = stages.Stage("pretrain", tmp_path / "cell", {})
    stage.folder.mkdir()
    for changed, known in (([], "ccc"), ([{"lr": [1, 2]}, {"commit": [None, "bbb"]}, {"commit": ["bbb", "ccc"]}], "- bbb ccc")):
        (stage.folder / "run.json").write_text(json.dumps({"commit": "ccc", "changed": changed}))
        assert stages._commits(stage) == known


@pytest.mark.slow
def test_a_killed_benchmark_continues_to_the_same_table(tmp_path, undisturbed):
    """After SIGKILL of all processes during pre-training, then of the benchmark during fine-tuning, the figures are the same."""
    for alone, sign in ((False, "pretrain/simclr*/checkpoints/step-00000002"), (True, "finetune/simclr*/checkpoints/step-00000001")):
        process = subprocess.Popen(command(tmp_path, *CELLS), stderr=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True)
        deadline = time.monotonic() + 400
        while not list((tmp_path / "work").glob(f"*/{sign}")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None  # killed in the middle of a cell
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.done.json")}
        assert len(finished) >= (3 if not alone else 4)
    done = run(tmp_path, *CELLS)  # a stage of the second benchmark may still be running
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert scores(tmp_path) == scores(undisturbed)


@pytest.mark.slow
def test_two_benchmarks_share_the_cells(tmp_path, undisturbed):
    """Two benchmarks in one folder run every stage once, and make the table that one of them makes alone."""
    both = [subprocess.Popen(command(tmp_path, *CELLS), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)]
    assert [process.communicate(timeout=500)[1][-300:] * process.returncode for process in both] == ["", ""]
    logs = [path.read_text() for path in (tmp_path / "work").rglob("*.log")]
    assert len(logs) == 6 and all(log.count("ed model:") + log.count("pictures and results.json") == 1 for log in logs)
    assert scores(tmp_path) == scores(undisturbed)


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stopped_benchmark_continues_the_next_time(tmp_path, undisturbed, launched):
    """After SIGTERM during pre-training the benchmark ends with 75 when its stages have ended, also when a launcher dies and its worker
    lives; finished cells are in the table, and the same command continues to the same figures."""
    copy_of_none(undisturbed, tmp_path)
    launcher = tmp_path / "launch.sh"
    launcher.write_text(f'#!/bin/sh\n{sys.executable} "$@" &\nwait $!\n')
    launcher.chmod(0o755)
    words = (*CELLS, "--launcher", launcher) if launched else CELLS
    process = subprocess.Popen(command(tmp_path, *words), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "work").glob("*/pretrain/simclr*/checkpoints/step-00000002")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=500)[1]
    assert process.returncode == 75 and "the same command continues" in errors
    for path in (tmp_path / "work").rglob("*.lock"):
        with path.open("w") as lock:
            assert stages._take(lock), path
    assert set(scores(tmp_path)) == {("none", "1/5", "0")}
    assert run(tmp_path, *CELLS).returncode == 0
    assert scores(tmp_path) == scores(undisturbed)


def test_failures_are_named_and_other_cells_are_written(tmp_path, undisturbed):
    """A method that fails does not cost the others; other settings for a finished run or a row are errors that name it."""
    copy_of_none(undisturbed, tmp_path)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS | {"methods": {"simclr": {"start-from": "no/such/folder"}}}))
    done = run(tmp_path, *CELLS)
    logs = list((tmp_path / "work").glob("*/pretrain/simclr*.log"))
    assert done.returncode == 1 and f"see {logs[0]}" in done.stderr and "no/such/folder" in logs[0].read_text()
    assert set(scores(tmp_path)) == {("none", "1/5", "0")}
    spec = SETTINGS | {"finetune": SETTINGS["finetune"] | {"max-steps": 3, "weight-decay": 0.1}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(ValueError, match=r"other settings \(weight_decay\).* --work-dir"):
        tables.main(command(tmp_path, *CELLS)[4:])
    with pytest.raises(ValueError, match="table3.csv has a row with other settings for none, 1/5 of the labels, seed 0"):
        tables.main(command(tmp_path, *CELLS, "--work-dir", tmp_path / "another")[4:])
    for flags, message in (({"preset": "sepia"}, "--preset is 'sepia'"), ({"variant": "GD"}, "--variant")):
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS | {"methods": {"simclr": flags}}))
        with pytest.raises(ValueError, match=message):
            tables.main(command(tmp_path, *CELLS, "--work-dir", tmp_path / "another")[4:])
    assert not (tmp_path / "another").exists()


def test_settings_include_defaults_and_weights_but_no_paths(tmp_path):
    """Another default or other content of the file of weights makes other settings, also of the stages after it; another path does not."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    flags = {"method": "imagenet", "backbone-weights": weights, "data-dir": tmp_path, "dataloader-num-workers": 2}
    stage = stages.Stage("pretrain", tmp_path / "cell", flags)
    stage.record_path.write_text(json.dumps({"settings": stages.settings(stage)}))
    (tmp_path / "copy").write_bytes(b"1")
    paths = {"backbone-weights": tmp_path / "copy", "data-dir": "elsewhere", "dataloader-num-workers": 0}
    moved = stages.Stage("pretrain", stage.folder, flags | paths)
    assert stages.finished(stage) and stages.finished(moved) and stages.settings(stage)["learning_rate"]["sgd"] == 0.05
    tuned = stages.Stage("finetune", tmp_path / "tuned", {"model": "a"}, stage)
    tuned.record_path.write_text(json.dumps({"settings": stages.settings(tuned)}))
    assert stages.finished(stages.Stage("finetune", tuned.folder, {"model": "b"}, moved))
    (tmp_path / "other").write_bytes(b"2")
    for changed, name in (({"backbone-weights": tmp_path / "other"}, "backbone_weights"), ({"learning-rate": 0.1}, "learning_rate")):
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            stages.finished(other := stages.Stage("pretrain", stage.folder, flags | changed))
        with pytest.raises(ValueError, match=r"tuned was made with other settings \(model\)"):
            stages.finished(stages.Stage("finetune", tuned.folder, {"model": "a"}, other))


def test_settings_include_the_defaults_of_the_method(tmp_path):
    """Values that the method chooses are settings, so that other values in a later release are noticed; explicit values replace them."""
    left = stages.settings(stages.Stage("pretrain", tmp_path, {"method": "cp2"}))
    assert (left["temperature"], left["ema_momentum"], left["preset"]) == (0.2, 0.999, "moco_v2")
    flags = {"method": "cp2", "temperature": 0.5, "queue_size": 64, "preset": "byol"}
    assert stages.settings(stages.Stage("pretrain", tmp_path, flags)) == left | {name.replace("-", "_"): flags[name] for name in flags}
    with_head = [stages.settings(stages.Stage("pretrain", tmp_path, {"method": name})) for name in ("mscl", "zhao_within", "cp2")]
    assert [of_method["pixel_layers"] for of_method in with_head] == [1, 3, None]  # CP2 has no pixel head
    both = stages.settings(stages.Stage("pretrain", tmp_path, {"method": "chaitanya_global_local"}))
    assert (both["partitions"], both["variant"], both["bn_views"]) == (4, "GR", "joint")  # of the stage before


def test_a_lock_ends_with_its_process(tmp_path):
    """A stage is busy while a live process has its lock, and free after that."""
    stage = stages.Stage("evaluate", tmp_path / "cell", {})
    with stages._lock_file(stage) as lock:
        assert stages._take(lock)
        assert stages.start(stage) is None
    with stages._lock_file(stage) as lock:
        assert stages._take(lock)
    stage.record_path.write_text(json.dumps({"settings": stages.settings(stage) | {"seed": 1}}))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        stages.finished(stage)
