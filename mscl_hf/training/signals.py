"""Being asked to stop, by a scheduler (SIGTERM) or at a keyboard (SIGINT), and what becomes of the processes that read images."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb

STOPPED_BY_SIGNAL = 75  # exit status: not done, but resumable


class StopSignal:
    requested = False


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """SIGTERM and SIGINT set a flag, which the loop reads between steps; the old handlers come back at the end."""
    stop = StopSignal()

    def ask(*_):
        stop.requested = True

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def children_die_in_silence() -> Iterator[None]:
    """torch raises whenever a child process ends while one of its data workers is dead: not while the first such error is dealt with."""
    old = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        if old is not None:
            signal.signal(signal.SIGCHLD, old)


@contextmanager
def reading(coming: Iterator[dict]) -> Iterator[None]:
    """End the workers when what is inside ends, and say in one sentence what torch does not: that one of them had died."""
    try:
        yield
    except Exception as error:
        with children_die_in_silence():
            coming.close()
        if not _is_of_dead_worker(error):
            raise
        raise OSError(
            f"a process that reads images ended ({str(error).splitlines()[0]}), as when memory runs out; lower --dataloader-num-workers, and go on "
            "with --resume"
        ) from error


def _is_of_dead_worker(error: Exception) -> bool:
    """torch says so, or the pipe to it is heard of first."""
    reading = any(frame.name == "_try_get_data" for frame in extract_tb(error.__traceback__))
    return "DataLoader worker (pid" in str(error) or reading and isinstance(error, ConnectionError | EOFError)


@contextmanager
def leave_on_signal(message: str) -> Iterator[None]:
    """Around a recipe, also as its decorator, for where no step is under way: SIGTERM and SIGINT end the process with STOPPED_BY_SIGNAL,
    and more of them change nothing. Only the main thread may set handlers; elsewhere nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def leave(*_):
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        print(message, flush=True)
        sys.exit(STOPPED_BY_SIGNAL)

    old = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
