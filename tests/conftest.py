"""Fixtures that several test files share, and the marker for long tests."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per core runs tests; threads of each would get in the others' way
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MSCL_HF_CACHE"] = tempfile.mkdtemp(prefix="mscl_hf_tests_")
atexit.register(shutil.rmtree, os.environ["MSCL_HF_CACHE"], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    for name in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{name}: set by transformers' own tests, see test_transformers_common.py")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: pass --runslow"))


def pytest_collection_finish():
    """Freeze what the imports have made: Accelerate collects garbage after each run, and would visit all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CamVid/ and VOCdevkit/; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("MSCL_HF_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "CamVid" / "train.txt").is_file():
        pytest.skip(f"no real images in {folder}; set MSCL_HF_DATA")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small data sets that users sent, one sub-folder each; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("MSCL_HF_CASES", ROOT.parent / "shared" / "cases"))
    if not folder.is_dir():
        pytest.skip(f"no small data sets in {folder}; set MSCL_HF_CASES")
    return folder


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    """The cache of `datasets` and that of decoded images lie in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))
    monkeypatch.setenv("MSCL_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe():
    """Run a recipe as a user does, in a process of its own: recipe("pretrain", "--max-steps", 3) -> CompletedProcess."""

    def run(name: str, *arguments, check: bool = True, processes: int = 1, timeout: int = 300, **environment):
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        done = subprocess.run(
            [*launcher, str(ROOT / "recipes" / f"{name}.py"), *map(str, arguments)],
            env=environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{name} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """How many cases were drawn (tests/fuzz.py) travels with the report, from whichever process ran the test."""
    report = (yield).get_result()
    if call.when == "call" and getattr(item.obj, "cases", 0):
        report.user_properties.append(("cases", item.obj.cases))


def pytest_terminal_summary(terminalreporter):
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, ()) if report.when == "call"]
    counts = {report.nodeid: count for report in reports for name, count in report.user_properties if name == "cases"}
    if counts:
        terminalreporter.section("drawn cases")
        for node, count in sorted(counts.items()):
            terminalreporter.line(f"{count:8d}  {node}")
        terminalreporter.line(f"{sum(counts.values()):8d}  in all")
