"""Two nodes, each a network of its own on this machine, that meet by torchrun's rendezvous: one is lost in the middle of a run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
import torch
from safetensors.torch import load_file

from mscl_hf.training import checkpoint_folder

IP = shutil.which("ip")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IP or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="network namespaces need `ip` and root"),
]
STEPS = 30
FLAGS = (*harness.TINY, *harness.SHORT, "--max-steps", STEPS, "--save-steps", 2, "--learning-rate", 0.01, "--val-split", "none", "--resume")


def ip(*words) -> None:
    subprocess.run([IP, *map(str, words)], check=True, capture_output=True)


class Node:
    """A network namespace with one address. number: 0 or 1; the rendezvous is held by node 0."""

    def __init__(self, number: int, logs: Path):
        self.number, self.logs, self.starts = number, logs, 0
        self.name, self.link, self.address = f"mscl{os.getpid()}n{number}", f"ms{os.getpid() % 100000}e{number}", f"10.77.0.{number + 1}"
        self.process: subprocess.Popen | None = None
        ip("netns", "add", self.name)

    def connect(self) -> None:
        ip("link", "set", self.link, "netns", self.name)
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", self.link)
        for link in ("lo", self.link):
            ip("-n", self.name, "link", "set", link, "up")

    def start(self, out: Path, *more) -> None:
        """Start the same command as on the other node, except for the address."""
        rendezvous = ("--rdzv_backend", "c10d", "--rdzv_endpoint", "10.77.0.1:29400", "--rdzv_id", "trial", "--local_addr", self.address)
        settings = f"is_host={int(self.number == 0)},join_timeout=120,last_call_timeout=1"
        words = [IP, "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
                 "--max_restarts", "3", "--monitor_interval", "0.2", *rendezvous, "--rdzv_conf", settings]  # fmt: skip
        words += [str(harness.ROOT / "recipes" / "pretrain.py"), *FLAGS, *more, "--output-dir", out]
        # torchrun's agents share a store that a node which comes back does not find (torch 2.14): each round makes its own instead.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore",
                       "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": self.link}  # fmt: skip
        self.log = self.logs / f"node{self.number}-{self.starts}.log"
        self.starts += 1
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, words)), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def processes(self) -> list[int]:
        """Return the processes of this network."""
        found = subprocess.run([IP, "netns", "pids", self.name], check=True, capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    def kill(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def remove(self) -> None:
        self.kill()
        ip("netns", "delete", self.name)


@pytest.fixture
def nodes(tmp_path):
    made = [Node(number, tmp_path) for number in range(2)]
    try:
        ip("link", "add", made[0].link, "type", "veth", "peer", "name", made[1].link)
        for node in made:
            node.connect()
        yield made
    finally:
        for node in made:
            node.remove()


def until(what, node: Node, seconds: float = 150):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline and node.process.poll() is None, node.log.read_text()[-4000:]
        time.sleep(0.05)
    return found


def steps_of(out: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in checkpoint_folder.complete(out)]


@pytest.mark.parametrize("loss", ["killed", "cut off"])
def test_a_lost_node_comes_back_and_the_run_ends_as_if_nothing_had_happened(tmp_path, nodes, loss):
    """All processes of a node are killed, or its link is cut first. The same command on that node joins the other one again: torchrun
    restarts the other worker, and the weights equal those of two processes on one machine."""
    out, straight = tmp_path / "run", tmp_path / "straight"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words.append(harness.ROOT / "recipes" / "pretrain.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run([str(word) for word in (*words, *FLAGS, "--output-dir", straight)], env=environment, check=True, capture_output=True)
    first, second = nodes
    for node in nodes:
        node.start(out)
    until(lambda: steps_of(out)[-1:] >= [4], first)
    if loss == "cut off":
        ip("-n", second.name, "link", "set", second.link, "down")
    second.kill()
    lost = steps_of(out)[-1]
    assert lost < STEPS
    if loss == "cut off":
        ip("-n", second.name, "link", "set", second.link, "up")
    time.sleep(3)
    assert first.process.poll() is None  # it waits for the other one
    second.start(out)
    for node in nodes:
        assert node.process.wait(timeout=240) == 0, node.log.read_text()[-4000:]
    output = "".join(path.read_text() for path in sorted(tmp_path.glob("node*.log")))
    assert "resuming from step" in output
    one, other = (load_file(place / "model.safetensors") for place in (out, straight))
    assert all(torch.equal(one[key], other[key]) for key in other)
