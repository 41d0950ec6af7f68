"""Runs a small chain in a process whose sockets tell on whoever would reach out; FOLDER/attempts.json: {stage: [what was tried]}.

    python tests/quiet_worker.py FOLDER
"""

import contextlib
import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ATTEMPTS: list[str] = []
LOCAL = ("127.0.0.1", "localhost", "::1")


def telling(name: str, function, where, also_local: bool):
    """The function, that raises and is written down; but not for sockets that are files, nor, unless also_local, for this machine."""
    def inner(*arguments, **options):
        address = where(arguments)
        of_files = isinstance(address, (str, bytes)) and name.startswith("socket")
        host = address[0] if isinstance(address, tuple) else address
        if of_files or (host in LOCAL and not also_local):
            return function(*arguments, **options)
        ATTEMPTS.append(f"{name} {address}")
        raise OSError(f"no network: {address}")

    return inner


@contextlib.contextmanager
def watched(also_local: bool = True):
    """No socket of this process connects, and no name is resolved."""
    kept = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    resolvers = {name: getattr(socket, name) for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex")}
    for name, function in kept.items():
        setattr(socket.socket, name, telling(f"socket.{name}", function, lambda given: given[-1], also_local))
    for name, function in resolvers.items():
        setattr(socket, name, telling(name, function, lambda given: given[0], also_local))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(socket.socket, name, function)
        for name, function in resolvers.items():
            setattr(socket, name, function)


def main(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    def told(stage: str) -> None:
        found[stage] = list(ATTEMPTS)
        ATTEMPTS.clear()

    with watched():
        import harness

        told("import")
        small = ("--train-count", 8, "--batch-size", 4, "--max-steps", 1)
        harness.run("pretrain", *harness.TINY, *small, "--output-dir", folder / "a")
        told("pretrain")
        harness.run("finetune", *small, "--val-split", "none", "--model", folder / "a", "--output-dir", folder / "b")
        told("finetune")
        harness.run("evaluate_model", "--model", folder / "b", "--output-dir", folder / "c")
        told("evaluate")
        from mscl_hf.export import export

        export(str(folder / "b"), "timm", folder / "d")
        told("export")
        with mock.patch("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None)):  # it tries again, for a while
            harness.rejected("finetune", *small, "--model", "nobody/nothing", "--output-dir", folder / "e")
        told("a name on the Hub")
    with watched(also_local=False):  # a page is served to this machine
        if importlib.util.find_spec("gradio"):
            from mscl_hf.demo import page as demo

            page = demo.build([str(folder / "b")])
            demo.launch(page, prevent_thread_lock=True, server_port=None, quiet=True)
            page.close()
        told("page")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    attempts = main(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "attempts.json").write_text(json.dumps(attempts))
