"""Start recipes in their own processes within milliseconds, by forks of a process that has imported all modules.

A fork is a real process: it can be killed, limited and signalled, and it has an exit status. Tests use the class `Zygote`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass
class Run:
    """A started recipe. pid: its process, which leads its own session."""

    zygote: "Zygote"
    pid: int
    log: Path

    def wait(self, timeout: float = 300) -> int:
        """Return the exit status, negative for a signal. After `timeout` seconds the process is killed, and AssertionError is raised."""
        return self.zygote.wait(self, timeout)

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def alive(self) -> bool:
        return self.zygote.poll(self) is None

    @property
    def output(self) -> str:
        return self.log.read_text()


class Zygote:
    """Start runs by `start`. As a context manager it ends all runs that it started."""

    def __init__(self, logs: Path, **environment: str):
        self.logs, self.count = logs, 0
        self.statuses: dict[int, int] = {}
        defaults = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **defaults, **environment}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def start(self, recipe: str, *flags, fault: str = "none", fired: Path | None = None) -> Run:
        self.count += 1
        log = self.logs / f"{self.count:04d}.log"
        log.touch()
        request = {"recipe": recipe, "flags": [str(flag) for flag in flags], "fault": fault, "fired": str(fired or log), "log": str(log)}
        return Run(self, self._send(request), log)

    def run(self, recipe: str, *flags, **more) -> tuple[int, str]:
        """Start a run and wait for it; return its exit status and its output."""
        run = self.start(recipe, *flags, **more)
        return run.wait(), run.output

    def poll(self, run: Run) -> int | None:
        if run.pid not in self.statuses:
            status = self._send({"poll": run.pid})
            if status is None:
                return None
            self.statuses[run.pid] = status
        return self.statuses[run.pid]

    def wait(self, run: Run, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll(run)) is None:
            if time.monotonic() > deadline:
                run.kill(group=True)
                raise AssertionError(f"process {run.pid} hangs\n{run.output[-3000:]}")
            time.sleep(0.01)
        return status

    def _send(self, request: dict):
        self.process.stdin.write(json.dumps(request) + "\n")
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()


def child(request: dict) -> None:
    import with_fault

    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    status = 0
    try:
        with_fault.run(request["fault"], Path(request["fired"]), request["recipe"], request["flags"])
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    sys.path.insert(0, str(HERE))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import with_fault

    for recipe in ("pretrain", "finetune", "evaluate_model"):
        with_fault.harness.load_recipe(recipe)
    started: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            started -= {pid}
        else:
            answer = os.fork()
            if not answer:
                child(request)
            started.add(answer)
        answers.write(json.dumps(answer) + "\n")
    for pid in started:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
