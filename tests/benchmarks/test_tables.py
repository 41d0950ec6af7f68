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
    "evaluate": {"split": "val"},
}  # fmt: skip
CELLS = ("--start", "random", "--table", 3, "--rows", "none", "simclr", "--shares", "1/5", "--seeds", 0)


def options(**given):
    return plan.TablesOptions(**{"dataset": "camvid", "weights": "w.safetensors", "work_dir": "W"} | given)


def grid(table, spec=SETTINGS, **given):
    return list(plan.cells_of(table, spec, options(**given)))


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
    """The cells, run once for all workers; only to be read."""
    folder = tmp_path_factory.getbasetemp().parent / f"undisturbed-{testrun_uid}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            folder.mkdir()
            done = run(folder, *CELLS)
            assert done.returncode == 0, done.stderr[-2000:]
    return folder


# -- the plan ----------------------------------------------------------------------------------------------------------------


def test_tables_have_the_papers_rows_and_all_methods():
    """Table 1: four label counts; table 2: none and the seven sums; table 3: the paper's five and every other method, fewer seeds."""
    one, two, three = (grid(table) for table in (1, 2, 3))
    assert {(c.name, c.share) for c in one if c.seed == 0} >= {(n, s) for n in ("none", "none_long", "mscl") for s in SETTINGS["shares"]}
    assert {c.name for c in two} == {"none", "imagenet", "g", "l", "p", "g+l", "g+p", "l+p", "g+l+p"} and {c.share for c in two} == {"1/2"}
    names = {seed: {c.name for c in three if c.seed == seed} for seed in (0, 1)}
    assert names[1] == {"none", "imagenet", "simclr", "aaf", "rmi", "mscl"} and names[0] == names[1] | set(METHODS)
    assert [c.seed for c in one] == sorted(c.seed for c in one)  # a whole table with one seed before the next seed
    without = grid(1, start="random")
    assert not [c for c in without if "imagenet" in c.name] and not [c for c in one if (c.name, c.share) == ("mscl_unlabelled", "all")]


def test_cells_share_the_runs_that_they_have_in_common():
    """none is fine-tuned in all tables by one run; g+l+p is mscl; a method without masks is pre-trained once for all label counts."""
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
    assert all(by_folder[stage.folder] == stage.flags for stage in everything)  # a folder means one run


@pytest.mark.parametrize("reading", ["best", "printed"])
def test_budgets_are_equal(reading):
    """Every pre-training passes the same number of views, every fine-tuning makes the same steps; `_long` adds the former to the latter."""
    for cell in [c for table in (1, 2, 3) for c in grid(table, reading=reading, seeds=[0])]:
        pretrain, finetune, _ = (stage.flags for stage in cell.stages)
        kind = METHODS[pretrain["method"]]
        if kind.trains:
            assert pretrain["max-steps"] * pretrain["batch-size"] * plan.VIEWS_PER_SAMPLE[kind.views] == SETTINGS["passes"]
        assert finetune["max-steps"] == 3 + 48 // 4 * cell.name.endswith("_long")
        assert (finetune.get("learning-rate") == 0.2) is (pretrain["method"] == "none" or kind.two_towers)
        assert finetune.get("train-count") == SETTINGS["shares"][cell.share]
        masks = pretrain.get("train-count", SETTINGS["shares"][cell.share])
        assert masks == SETTINGS["shares"][cell.share] or kind.labels == "no"  # pre-training sees no mask that fine-tuning does not
        assert (pretrain.get("geometry") == "shared") is (reading == "printed" and pretrain["method"] == "mscl")
        weights = "backbone-weights" in pretrain
        assert weights is (pretrain["method"] not in ("none", "cmc"))


def test_rows_in_the_repository_are_those_of_its_settings():
    """Each row's digest is that of the cell as it is planned today, from a file of weights: the same command goes on with these tables."""
    planned, there = {}, {}
    for scale, dataset, reading in itertools.product(("small", "medium"), ("camvid", "voc2012"), ("best", "printed")):
        given = options(scale=scale, dataset=dataset, reading=reading, results=harness.ROOT / "results")
        spec = plan.read_spec(given)
        for table in (1, 2, 3):
            there |= {tables.key_of(row): row["config"] for row in read_csv(tables.path_of(table, given))}
            cells = plan.cells_of(table, spec, given)
            planned |= {tables.key_of(tables.identity_of(cell, given)): tables.config_of(cell) for cell in cells}
    assert there and there.items() <= planned.items()


def test_settings_in_the_repository_make_a_grid():
    """Each file gives all three tables, in both readings, from both starts."""
    files = sorted((harness.ROOT / "recipes" / "benchmarks" / "configs").glob("tables_*_*.yaml"))
    assert len(files) >= 2
    for path in files:
        for given in ({}, {"reading": "printed"}, {"start": "random"}):
            assert all(grid(table, yaml.safe_load(path.read_text()), **given) for table in (1, 2, 3))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--table", 4), "--table is 4"), (("--rows", "mocov2"), "--rows is mocov2"), (("--shares", "1/3"), "--shares is 1/3"),
        (("--start", "coco"), "--start is .coco."), (("--reading", "mine"), "--reading is .*best, printed"), (("--jobs", 0), "--jobs is 0"),
        (("--rows", "moco_v2", "--table", 1), "no cell of these tables"), (("--settings", "no.yaml"), "no file no.yaml"),
        (("--weights", "no.safetensors"), "--weights is no.safetensors"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_one_sentence(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        tables.main(command(tmp_path, *words)[4:])
    assert not (tmp_path / "work").exists() and not (tmp_path / "results").exists()


# -- the runs ----------------------------------------------------------------------------------------------------------------


def test_cells_are_measured_and_written_down(undisturbed):
    """A row a cell, with budgets, versions and times; Markdown and a picture beside it; checkpoints are gone, models stay."""
    with (undisturbed / "results" / "table3.csv").open() as file:
        none, simclr = csv.DictReader(file)
    assert (none["cell"], none["pretrain_passes"], none["finetune_passes"], none["labels"]) == ("none", "0", "12", "-")
    assert (simclr["cell"], simclr["pretrain_passes"], simclr["finetune_steps"], simclr["labels"]) == ("simclr", "48", "3", "no")
    planned = {(cell.name, cell.share): cell for cell in grid(3, dataset="synthetic", start="random", seeds=[0])}
    for row in (none, simclr):
        assert row["config"] == tables.config_of(planned[row["cell"], row["share"]])
        assert 0 < float(row["mean_iou"]) < 1 and float(row["hours"]) > 0 and row["threads"] == "1"
        assert (row["commit"], row["torch"]) == ("of-this-test", version("torch"))
        assert (row["share"], row["train_count"], row["start"], row["reading"]) == ("1/5", "8", "random", "best")
        assert int(row["parameters"]) == int(none["parameters"]) > 1e5
    assert {path.name for path in (undisturbed / "results").iterdir()} >= {"table3.csv", "table3.md", "table3.png", "hypotheses.md"}
    assert not list((undisturbed / "work").rglob("checkpoints")) and len(list((undisturbed / "work").rglob("model.safetensors"))) == 4


def test_finished_cells_are_not_run_again(tmp_path, undisturbed):
    """The same command a second time touches no run; other rows of the table stay."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.log")}
    table = tmp_path / "results" / "table3.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows, rows[0].replace("synthetic,none", "camvid,none")]) + "\n")
    assert run(tmp_path, *CELLS).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.log")} == before
    assert sorted(table.read_text().splitlines()[1:]) == sorted([*rows, rows[0].replace("synthetic,none", "camvid,none")])


def test_one_writes_the_tables_at_a_time(tmp_path, undisturbed, monkeypatch):
    """CSV files, Markdown and pictures: whoever else would write them waits."""
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

    for name in ("position_of", "write_tables"):  # a row's place is asked for while a file is written
        monkeypatch.setattr(tables, name, seeing(name, getattr(tables, name)))
    tables.main(command(tmp_path, *CELLS, "--finished-only", "true")[4:])
    assert seen == ["position_of", "position_of", "write_tables"] and (tmp_path / "results" / "table3.md").is_file()


def test_rows_with_other_settings_are_written_over_knowingly(tmp_path, undisturbed):
    """They are refused by name, and untouched, until it is asked for."""
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
    """Each once, whichever run of the cell they are of, and however many attempts a run took; not those of who writes the table."""
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
    """Those of attempts that were stopped first; the sources may be copies that no commit is known of."""
    stage = stages.Stage("pretrain", tmp_path / "cell", {})
    stage.folder.mkdir()
    for changed, known in (([], "ccc"), ([{"lr": [1, 2]}, {"commit": [None, "bbb"]}, {"commit": ["bbb", "ccc"]}], "- bbb ccc")):
        (stage.folder / "run.json").write_text(json.dumps({"commit": "ccc", "changed": changed}))
        assert stages._commits(stage) == known


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_to_the_same_table(tmp_path, undisturbed):
    """SIGKILL to everything in mid pre-training, then to the benchmark alone in mid fine-tuning: the same figures, nothing lost."""
    for alone, sign in ((False, "pretrain/simclr*/checkpoints/step-00000002"), (True, "finetune/simclr*/checkpoints/step-00000001")):
        process = subprocess.Popen(command(tmp_path, *CELLS), stderr=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True)
        deadline = time.monotonic() + 400
        while not list((tmp_path / "work").glob(f"*/{sign}")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None  # the fault fires in mid-cell
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.done.json")}
        assert len(finished) >= (3 if not alone else 4)
    done = run(tmp_path, *CELLS)  # while what the second one left behind may still be running
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert scores(tmp_path) == scores(undisturbed)


@pytest.mark.slow
def test_two_benchmarks_share_the_cells(tmp_path, undisturbed):
    """Started together on one folder, they run every stage once, both finish, and the table is that of one alone."""
    both = [subprocess.Popen(command(tmp_path, *CELLS), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)]
    assert [process.communicate(timeout=500)[1][-300:] * process.returncode for process in both] == ["", ""]
    logs = [path.read_text() for path in (tmp_path / "work").rglob("*.log")]
    assert len(logs) == 6 and all(log.count("ed model:") + log.count("pictures and results.json") == 1 for log in logs)
    assert scores(tmp_path) == scores(undisturbed)


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_benchmark_that_is_told_to_stop_goes_on_another_time(tmp_path, undisturbed, launched):
    """SIGTERM in mid pre-training ends the benchmark with 75 when its stages have ended, though a launcher dies without telling its worker;
    what was done is written down, and the same command goes on to the same figures."""
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
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 75 and "the same command continues" in said
    for path in (tmp_path / "work").rglob("*.lock"):
        with path.open("w") as lock:
            assert stages._take(lock), path
    assert set(scores(tmp_path)) == {("none", "1/5", "0")}
    assert run(tmp_path, *CELLS).returncode == 0
    assert scores(tmp_path) == scores(undisturbed)


def test_failures_are_named_and_the_rest_goes_on(tmp_path):
    """A method that cannot run here fails alone, with its log; other settings for a finished run or a row are refused, by name."""
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


def test_a_stage_is_known_by_defaults_and_weights_but_not_by_places(tmp_path):
    """Another value of an option that was not given, or another content of the file of weights: another run, as is what goes on from it."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    flags = {"method": "imagenet", "backbone-weights": weights, "data-dir": tmp_path, "dataloader-num-workers": 2}
    stage = stages.Stage("pretrain", tmp_path / "cell", flags)
    stage.record_path.write_text(json.dumps({"settings": stages.settings(stage)}))
    (tmp_path / "copy").write_bytes(b"1")
    places = {"backbone-weights": tmp_path / "copy", "data-dir": "elsewhere", "dataloader-num-workers": 0}
    moved = stages.Stage("pretrain", stage.folder, flags | places)
    assert stages.finished(stage) and stages.finished(moved) and stages.settings(stage)["learning_rate"] == 0.05
    tuned = stages.Stage("finetune", tmp_path / "tuned", {"model": "here"}, stage)
    tuned.record_path.write_text(json.dumps({"settings": stages.settings(tuned)}))
    assert stages.finished(stages.Stage("finetune", tuned.folder, {"model": "there"}, moved))
    (tmp_path / "other").write_bytes(b"2")
    for changed, name in (({"backbone-weights": tmp_path / "other"}, "backbone_weights"), ({"learning-rate": 0.1}, "learning_rate")):
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            stages.finished(other := stages.Stage("pretrain", stage.folder, flags | changed))
        with pytest.raises(ValueError, match=r"tuned was made with other settings \(model\)"):
            stages.finished(stages.Stage("finetune", tuned.folder, {"model": "here"}, other))


def test_what_is_left_to_the_method_counts(tmp_path):
    """Its own values stand among the settings, so that others in a later release are other settings; those that were given win."""
    left = stages.settings(stages.Stage("pretrain", tmp_path, {"method": "cp2"}))
    assert (left["temperature"], left["ema_momentum"], left["preset"], left["pixel_layers"]) == (0.2, 0.999, "moco_v2", 3)
    given = {"method": "cp2", "temperature": 0.5, "queue_size": 64, "preset": "byol", "pixel-layers": 2}
    assert stages.settings(stages.Stage("pretrain", tmp_path, given)) == left | {name.replace("-", "_"): given[name] for name in given}
    both = stages.settings(stages.Stage("pretrain", tmp_path, {"method": "chaitanya_global_local"}))
    assert (both["partitions"], both["variant"], both["bn_views"]) == (4, "GR", "joint")  # of the stage before


def test_a_lock_ends_with_its_process(tmp_path):
    """A stage that a dead process had locked can be taken; a live one's is busy."""
    stage = stages.Stage("evaluate", tmp_path / "cell", {})
    with stages._lock_file(stage) as lock:
        assert stages._take(lock)
        assert stages.start(stage) is None
    with stages._lock_file(stage) as lock:
        assert stages._take(lock)
    stage.record_path.write_text(json.dumps({"settings": stages.settings(stage) | {"seed": 1}}))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        stages.finished(stage)
