"""Stages in processes of their own: no worker of a launcher is left without its lock, and no stage misses the word to stop."""

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

sys.path.append(str(harness.ROOT / "recipes"))
import launched  # noqa: E402
import stages  # noqa: E402

WORKER = """
import os, signal, sys
def told(*_):
    open("told", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, told)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, 'worker.py'], start_new_session=True)"
HOLDER = """
import fcntl, json, sys
import launched
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
sys.exit(launched.launch(json.loads(sys.argv[1]), open("log", "w"), lock.fileno()))
"""


def until(what):
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + 300
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def is_free(path):
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody inherits orphans")
@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_is_held_while_a_worker_lives(tmp_path, killed):
    """Though it is in a session of its own and its launcher is gone; it is told to stop, and the status says so."""
    (tmp_path / "worker.py").write_text(WORKER)
    words = [sys.executable, "-c", HOLDER, json.dumps([sys.executable, "-c", LAUNCHER])]
    holder = subprocess.Popen(words, cwd=tmp_path, env={"PYTHONPATH": str(harness.ROOT / "recipes")})
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
        assert (tmp_path / "told").is_file() and not worker.is_running() and is_free(tmp_path / "lock")
    finally:
        holder.kill()
        with contextlib.suppress(AttributeError, psutil.NoSuchProcess):
            worker.kill()


def test_status_is_that_of_the_launcher(tmp_path):
    """When nobody told it to stop."""
    for status in (0, 3):
        words = [sys.executable, "-c", HOLDER, json.dumps([sys.executable, "-c", f"raise SystemExit({status})"])]
        done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(harness.ROOT / "recipes")}, timeout=300, check=False)
        assert done.returncode == status


def test_a_stage_that_has_just_been_started_can_be_stopped(tmp_path, monkeypatch):
    """Until it minds SIGTERM itself, it has the benchmark's way with it, which is to go on: the signal waits."""
    locked = stages._locked

    def late(*arguments):
        time.sleep(1)  # SIGTERM is there by now
        locked(*arguments)

    monkeypatch.setattr(stages, "_locked", late)
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
    """Its commit is that of the benchmark's first start, though the sources are others by the time it asks."""
    locked = stages._locked

    def later(*arguments):
        os.environ["MSCL_HF_COMMIT"] = "second"
        locked(*arguments)

    commit.cache_clear()
    monkeypatch.setenv("MSCL_HF_COMMIT", "first")
    monkeypatch.setattr(stages, "_locked", later)
    monkeypatch.setattr(stages, "_run", lambda *_: sys.exit(commit() != "first"))
    process = stages.start(stages.Stage("evaluate", tmp_path / "cell", {}))
    process.join(timeout=300)
    assert process.exitcode == 0
    commit.cache_clear()
