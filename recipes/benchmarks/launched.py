"""A launcher and the processes that it starts, as one: over when the last of them is, told to stop when it is."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import TextIO

import psutil

STOPPED = 75  # as a recipe ends that was told to stop
PR_SET_CHILD_SUBREAPER = 36


def launch(command: list[str], log: TextIO, held: int) -> int:
    """Run it, and wait for all that it starts; returns its status, or STOPPED after a SIGTERM or SIGINT, which all of them got as SIGTERM.

    Launchers start workers in sessions of their own, and may end before them, without telling them or by SIGKILL: this process inherits
    such workers (on Linux), so that what it holds is held for as long as one of them lives. It does nothing else.
    held: a descriptor that the launcher also keeps open, whatever becomes of this process.
    """
    told = []

    def tell(*_) -> None:
        told.append(True)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    launcher = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[held], start_new_session=True)
    if told:  # too early for it
        tell()
    status = launcher.wait()
    with contextlib.suppress(ChildProcessError):  # there is no other any more
        while True:
            os.wait()
    return STOPPED if told else status
