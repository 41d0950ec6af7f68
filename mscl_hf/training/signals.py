"""Signals to stop, SIGTERM from a scheduler and SIGINT from a keyboard, and the end of data workers."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb
from types import SimpleNamespace

STOPPED_BY_SIGNAL = 75  # exit status of a run that --resume continues
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handlers(handler) -> Iterator[None]:
    """Handle SIGTERM and SIGINT by a function; the old handlers are restored at the end."""
    old = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old_handler in old.items():
            signal.signal(number, old_handler)


@contextmanager
def stop_signal() -> Iterator[SimpleNamespace]:
    """Yield an object whose `requested` is True after SIGTERM or SIGINT; the training loop reads it after each step."""
    stop = SimpleNamespace(requested=False)
    with handlers(lambda *_: vars(stop).update(requested=True)):
        yield stop


@contextmanager
def ignore_ended_workers() -> Iterator[None]:
    """Ignore the end of child processes: torch raises at each one after a data worker died, also while that error is handled."""
    old = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        if old is not None:
            signal.signal(signal.SIGCHLD, old)


@contextmanager
def reading(batches: Iterator[dict]) -> Iterator[None]:
    """Close the data workers after an error in the context, and raise OSError where the cause is a worker that died."""
    try:
        yield
    except Exception as error:
        with ignore_ended_workers():
            batches.close()
        if not _is_dead_worker(error):
            raise
        raise OSError(
            f"a data worker ended ({str(error).splitlines()[0]}), as happens when memory runs out. "
            "Lower --dataloader-num-workers, and continue with --resume."
        ) from error


def _is_dead_worker(error: Exception) -> bool:
    """Return whether torch reports a dead data worker, or the pipe to one broke."""
    while_reading = any(frame.name == "_try_get_data" for frame in extract_tb(error.__traceback__))
    return "DataLoader worker (pid" in str(error) or while_reading and isinstance(error, ConnectionError | EOFError)


@contextmanager
def leave_on_signal(message: str) -> Iterator[None]:
    """Exit with STOPPED_BY_SIGNAL and a message at the first SIGTERM or SIGINT; further ones are ignored.

    For a whole recipe, as its decorator; the training loop handles signals itself. Without effect outside the main thread, which
    alone may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_):
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print(message, flush=True)
        sys.exit(STOPPED_BY_SIGNAL)

    with handlers(leave):
        yield
