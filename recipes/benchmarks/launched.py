"""A launcher and the processes that it starts, treated as one process: stopped together, finished when the last of them is."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import TextIO

import psutil

STOPPED = 75  # exit status of a recipe that was stopped by a signal and can be resumed
PR_SET_CHILD_SUBREAPER = 36


def launch(command: list[str], log: TextIO, lock: int) -> int:
    """Run a launcher and wait for all processes that it starts; this process must do nothing else.

    Returns the launcher's exit status, or STOPPED after SIGTERM or SIGINT, which is passed on to all of them as SIGTERM. Launchers start
    workers in sessions of their own and may end before these: on Linux this process then becomes the workers' parent, and so keeps the lock
    for as long as one of them lives.
    lock: file descriptor that the launcher keeps open too, in case this process is killed.
    """
    stop_requests = []

    def stop_all(*_) -> None:
        stop_requests.append(True)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_all)
    launcher = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock], start_new_session=True)
    if stop_requests:  # the signal came before the launcher existed
        stop_all()
    status = launcher.wait()
    with contextlib.suppress(ChildProcessError):  # no process is left
        while True:
            os.wait()
    return STOPPED if stop_requests else status
