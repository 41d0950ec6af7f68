"""A small Hub over loopback for the real huggingface_hub client, with planned faults.

It has repositories with commits, branches and tags; uploads (large files separately) and one-commit pushes; downloads by revision;
tokens; metadata checks of README.md; and a log of all requests. To try it by hand:

    python tests/minihub.py --root DIR     # prints the variables to set for mscl-push, from_pretrained, hf download ...
"""

import argparse
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from hub_routes import Rejected, Repo, Routes

TOKEN = "hf_tokenOfTheTestsForOrganizationOrg"


@dataclass
class Fault:
    method: str
    path: re.Pattern
    effect: int | str | Callable  # a status, "drop", "drop_midway", "drop_answer", or a function called before the request is served
    times: float
    headers: dict
    body: bytes | None


class Minihub:
    """The server: `with Minihub(folder) as hub:` serves at hub.url. hub.log holds (method, path, answer)."""

    def __init__(self, root: Path, tokens: dict[str, dict] | None = None, port: int = 0):
        self.root, self.lock = Path(root), threading.RLock()
        self.tokens = {TOKEN: {"name": "tester", "orgs": ["org"], "write": True}} if tokens is None else tokens
        self.repos: dict[str, Repo] = {}
        self.log: list[tuple[str, str, int | str]] = []
        self.faults: list[Fault] = []
        self.signature = secrets.token_hex(8)  # of upload URLs, which need no token
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        if (self.root / "repos.json").is_file():
            self.repos = {name: Repo(**repo) for name, repo in json.loads((self.root / "repos.json").read_text()).items()}
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Minihub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, effect: int | str | Callable, times: float = 1, headers: dict | None = None, body=None) -> None:
        """Let the next `times` requests of this method with a matching path fail.

        effect: a status, or a dropped connection: "drop" at once, "drop_midway" after half of the body, "drop_answer" after the request
        was served, without its answer. A function is called with the path, and the request is served.
        """
        self.faults.append(Fault(method, re.compile(path), effect, times, headers or {}, body))

    def requests(self, method: str, path: str) -> list[int | str]:
        """Return the answers to the matching requests so far."""
        return [answer for m, p, answer in self.log if m == method and re.search(path, p)]

    def repo(self, name: str, repo_type: str = "model") -> Repo:
        if f"{repo_type}s/{name}" not in self.repos:
            raise Rejected(404, "Repository not found", "RepoNotFound")
        return self.repos[f"{repo_type}s/{name}"]

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def store(self, content: bytes, large: bool) -> dict:
        """Return the entry of a file in a tree. oid: git's, of the content or of the LFS pointer."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.blob(sha256).exists():
            self.blob(sha256).write_bytes(content)
        return self.entry(sha256, len(content), large, content)

    @staticmethod
    def entry(sha256: str, size: int, large: bool, content: bytes = b"") -> dict:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        in_git = pointer if large else content
        oid = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        return {"oid": oid, "sha256": sha256, "size": size, "lfs": large, "pointer": len(pointer)}

    def save(self) -> None:
        temporary = self.root / ".repos.json"
        temporary.write_text(json.dumps({name: repo.__dict__ for name, repo in self.repos.items()}))
        temporary.replace(self.root / "repos.json")


class _Handler(Routes, BaseHTTPRequestHandler):
    hub: Minihub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement

    def do_GET(self):
        url = urlsplit(self.path)
        self.query, fault = parse_qs(url.query), self.fault(url.path)
        effect = None if fault is None else fault.effect
        self.body = self.read_body(half=effect == "drop_midway")
        if callable(effect):
            effect(url.path)
        if isinstance(effect, int):
            self.answer(fault.body or {"error": f"planned {effect}"}, effect, dict(fault.headers))
        elif effect != "drop" and (effect != "drop_midway" or self.command == "GET"):
            self.serve(url.path, effect if isinstance(effect, str) else None)
        if isinstance(effect, str):
            self.note(effect)
            self.cut()

    do_HEAD = do_POST = do_PUT = do_GET

    def note(self, answer: int | str) -> None:
        self.hub.log.append((self.command, self.path, answer))

    def fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method == self.command and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None

    def read_body(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    break
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length // 2 if half else length)

    def cut(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def serve(self, path: str, fault: str | None) -> None:
        try:
            with self.hub.lock:
                content, headers = self.route("GET" if self.command == "HEAD" else self.command, path)
            status = 200
        except Rejected as error:
            content, status = error.body, error.status
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)} if error.code else {}
            headers |= {"X-Repo-Commit": error.body["commit"]} if "commit" in error.body else {}
        if fault != "drop_answer":
            self.answer(content, status, headers, half=fault == "drop_midway")

    def answer(self, content: dict | list | bytes, status: int, headers: dict, half: bool = False) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        status = headers.pop("status", status)
        if not half:
            self.note(status)  # before the client continues
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
            self.wfile.flush()

    def log_message(self, *_) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small Hub on this computer.")
    parser.add_argument("--root", required=True, help="folder that keeps the repositories")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    arguments = parser.parse_args()
    with Minihub(Path(arguments.root), port=arguments.port) as demonstration:
        print(f"export HF_ENDPOINT={demonstration.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
