"""Stages in separate processes: the lock is held while any worker of a launcher lives, and no stage misses a signal to stop."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import harness
import psutil
import pytest

from mscl_hf.records.versions import commit
from mscl_hf.training.signals import stop_signal
from recipes.benchmarks import launched, stages

WORKER = """
import os, signal, sys
def on_signal(*_):
    open("signalled", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, on_signal)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, 'worker.py'], start_new_session=True)"
HOLDER = """
import fcntl, json, sys
from recipes.benchmarks import launched
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
sys.exit(launched.launch(json.loads(sys.argv[1]), open("log", "w"), lock.fileno()))
"""


def until(condition):
    """Wait until a function returns a true value, and return it."""
    deadline = time.monotonic() + 300
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def is_free(path):
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_is_held_while_a_worker_lives(tmp_path, killed):
    """A worker in its own session keeps the lock when its launcher is gone; it gets SIGTERM, and the exit status is STOPPED."""
    (tmp_path / "worker.py").write_text(WORKER)
    words = [sys.executable, "-c", HOLDER, json.dumps([sys.executable, "-c", LAUNCHER])]
    holder = subprocess.Popen(words, cwd=tmp_path, env={"PYTHONPATH": str(harness.ROOT)})
    worker = None
    try:
        log = until(lambda: holder.poll() is None and (tmp_path / "log").is_file() and (tmp_path / "log").read_text().endswith("\n"))
        worker = psutil.Process(int((tmp_path / "log").read_text())) if log else None
        launcher = worker.parent()
        assert launcher.ppid() == holder.pid
        if killed:
            launcher.kill()
            until(lambda: worker.ppid() != launcher.pid)
            assert worker.ppid() == holder.pid
        assert not is_free(tmp_path / "lock")
        holder.terminate()
        assert holder.wait(timeout=300) == launched.STOPPED
        assert (tmp_path / "signalled").is_file() and not worker.is_running() and is_free(tmp_path / "lock")
    finally:
        holder.kill()
        with contextlib.suppress(AttributeError, psutil.NoSuchProcess):
            worker.kill()


def test_status_is_that_of_the_launcher(tmp_path):
    """The exit status is the launcher's where no signal came."""
    for status in (0, 3):
        words = [sys.executable, "-c", HOLDER, json.dumps([sys.executable, "-c", f"raise SystemExit({status})"])]
        done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(harness.ROOT)}, timeout=300, check=False)
        assert done.returncode == status


def test_a_stage_that_has_just_been_started_can_be_stopped(tmp_path, monkeypatch):
    """SIGTERM before the stage has its own handlers is not handled by those of the benchmark, which ignore it: it is delayed."""
    run_locked = stages._run_locked

    def late(*arguments):
        time.sleep(1)  # SIGTERM has come by now
        run_locked(*arguments)

    monkeypatch.setattr(stages, "_run_locked", late)
    monkeypatch.setattr(stages, "_run", lambda *_: signal.pause())
    with stop_signal() as stop:
        process = stages.start(stages.Stage("evaluate", tmp_path / "cell", {}))
        try:
            process.terminate()
            process.join(timeout=300)
            assert process.exitcode == -signal.SIGTERM and not stop.requested
        finally:
            process.kill()


def test_a_stage_runs_the_sources_that_were_imported(tmp_path, monkeypatch):
    """The commit is that of the benchmark's start, also where the sources change before the stage reads it."""
    run_locked = stages._run_locked

    def later(*arguments):
        os.environ["MSCL_HF_COMMIT"] = "second"
        run_locked(*arguments)

    commit.cache_clear()
    monkeypatch.setenv("MSCL_HF_COMMIT", "first")
    monkeypatch.setattr(stages, "_run_locked", later)
    monkeypatch.setattr(stages, "_run", lambda *_: sys.exit(commit() != "first"))
    process = stages.start(stages.Stage("evaluate", tmp_path / "cell", {}))
    process.join(timeout=300)
    assert process.exitcode == 0
    commit.cache_clear()
