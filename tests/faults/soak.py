"""Train for half an hour while data workers are killed, image files are truncated, the disk fills up, and the run itself is killed.

    python tests/faults/soak.py --minutes 30 --results results/soak.md

The same command continues the run after each fault. Checked: each fault is reported (or survived, for SIGKILL), no step takes a minute,
and memory does not grow. Needs root, for a small file system that is filled. In the first part only files break, so that one process
runs for a long time: the growth of memory is measured there.
"""

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import numpy as np
import psutil
import torch
from PIL import Image
from zygote import Run, Zygote

from mscl_hf.records.versions import commit
from mscl_hf.training import checkpoint_folder
from mscl_hf.training.log import read_log

IMAGES, DISK = 24, 24 << 20
NAMED = {"worker killed": "error: a data worker ended", "disk full": "No space left on device",
         "file cut short": "cannot be read as an image"}  # fmt: skip
MEGABYTE = 1 << 20


class Soak:
    """The run, the faults that it gets, and measurements of it."""

    def __init__(self, zygote: Zygote, work: Path, seed: int):
        self.zygote, self.work, self.draw = zygote, work, random.Random(seed)
        self.data, self.disk, self.out = work / "data", work / "disk", work / "disk" / "run"
        self.faults, self.steps, self.starts, self.slowest = Counter(), 0, 0, 0.0
        self.memory: list[tuple[float, float, float]] = []  # s, MB of the process, MB with its workers; since the last start
        self.run: Run | None = None
        self.cut: tuple[Path, bytes] | None = None

    def write_data(self) -> None:
        scenes = harness.scenes(IMAGES)
        for part in ("images", "masks"):
            (self.data / part).mkdir(parents=True)
        for index in range(IMAGES):
            row = scenes.rows[index]
            row["image"].convert("RGB").save(self.data / "images" / f"{index:02d}.jpg", quality=95)
            Image.fromarray(np.asarray(row["mask"])).save(self.data / "masks" / f"{index:02d}.png")

    def start(self) -> None:
        self.repair()
        data = ("--dataset", "folder", "--data-dir", self.data, "--num-classes", 8, "--val-split", "none", "--image-cache-gb", 0)
        budget = ("--batch-size", 4, "--dataloader-num-workers", 2, "--max-bad-images", 1000, "--max-steps", 10**6, "--learning-rate", 1e-3)
        often = ("--save-steps", 100, "--logging-steps", 20, "--health-steps", 500)
        flags = (*harness.TINY, *data, *budget, *often, "--resume", "--output-dir", self.out)
        self.run, self.starts, self.memory = self.zygote.start("pretrain", *flags), self.starts + 1, []
        before, started = self.step(), time.monotonic()
        while self.step() <= before:
            self.must_live(started, 90)

    def step(self) -> int:
        rows = read_log(self.out / "log.jsonl")
        return rows[-1]["step"] if rows else 0

    def must_live(self, since: float, seconds: float) -> None:
        if not self.run.alive or time.monotonic() - since > seconds:
            raise AssertionError(f"no step in {time.monotonic() - since:.0f} s\n{self.run.output[-3000:]}")
        time.sleep(0.1)

    def observe(self, seconds: float) -> None:
        """Let it train, measure its memory, and check that it makes steps."""
        end, last, seen = time.monotonic() + seconds, self.step(), time.monotonic()
        while time.monotonic() < end:
            self.must_live(seen, 60)
            if (step := self.step()) > last:
                self.slowest, last, seen = max(self.slowest, time.monotonic() - seen), step, time.monotonic()
            self.measure()
            time.sleep(0.9)

    def measure(self) -> None:
        # Resident memory: private memory would grow by copies of pages that are shared with the parent process.
        process = psutil.Process(self.run.pid)
        alone = process.memory_info().rss / MEGABYTE
        workers = sum(child.memory_info().rss for child in process.children()) / MEGABYTE
        self.memory.append((time.monotonic(), alone, alone + workers))

    def cut_file(self) -> None:
        """Truncate an image to half its size, as after an interrupted copy; training continues."""
        path = self.draw.choice(sorted((self.data / "images").iterdir()))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        self.cut, started = (path, content), time.monotonic()
        while f"skipped: {path}" not in self.run.output:
            self.must_live(started, 60)
        self.faults["file cut short"] += 1
        self.repair()

    def repair(self) -> None:
        (self.disk / "filled").unlink(missing_ok=True)
        if self.cut is not None:
            self.cut[0].write_bytes(self.cut[1])
            self.cut = None

    def kill_worker(self) -> None:
        self.draw.choice(psutil.Process(self.run.pid).children()).kill()
        self.ends("worker killed", 1)

    def fill_disk(self) -> None:
        with (self.disk / "filled").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        self.ends("disk full", 1)

    def kill_run(self) -> None:
        self.run.kill()
        self.ends("run killed", -signal.SIGKILL)

    def ends(self, fault: str, status: int) -> None:
        """Check that the run ends with this status and names the fault, and start it again."""
        actual = self.run.wait(90)
        if actual != status or NAMED.get(fault, "") not in self.run.output:
            raise AssertionError(f"{fault}: status {actual}\n{self.run.output[-3000:]}")
        self.faults[fault] += 1
        newest = checkpoint_folder.complete(self.out)[-1]
        checkpoint_folder.verify(newest)
        self.start()
        if f"resuming from step {int(newest.name[5:])} (" not in self.run.output:
            raise AssertionError(f"{fault}: {self.run.output[-3000:]}")

    def slope(self, column: int) -> tuple[float, float]:
        """Return MB per minute by least squares, and the mean in MB, without the first eighth of the measurements."""
        table = np.array(self.memory[len(self.memory) // 8 :])
        return np.polyfit(table[:, 0] / 60, table[:, column], 1)[0], table[:, column].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quiet-share", type=float, default=0.4, help="share of the time in which only files break")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mscl_hf_soak_"))
    for name in ("logs", "disk"):
        (work / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", work / "disk"], check=True)
    try:
        with Zygote(work / "logs") as zygote:
            soak = Soak(zygote, work, args.seed)
            report(args, soak, *trial(args, soak))
            soak.run.kill(group=True)
            soak.run.wait()
    finally:
        subprocess.run(["umount", "-l", work / "disk"], check=True)
        shutil.rmtree(work, ignore_errors=True)


def trial(args: argparse.Namespace, soak: Soak) -> tuple[list[tuple[float, float]], float]:
    """Return slope and mean of the memory of the process, alone and with its workers, and the length of the first part in minutes."""
    soak.write_data()
    soak.start()
    started = time.monotonic()
    while time.monotonic() - started < 60 * args.minutes * args.quiet_share:
        soak.observe(15)
        soak.cut_file()
    slopes, length = [soak.slope(1), soak.slope(2)], (time.monotonic() - started) / 60
    print(f"MB per minute, and mean: {slopes}", flush=True)
    faults = []
    while time.monotonic() - started < 60 * args.minutes:
        soak.observe(soak.draw.uniform(3, 20))
        if not faults:
            faults = [soak.kill_worker, soak.fill_disk, soak.kill_run, soak.cut_file]
            soak.draw.shuffle(faults)
        faults.pop()()
        print(f"{(time.monotonic() - started) / 60:.1f} min: {dict(soak.faults)}, step {soak.step()}", flush=True)
    return slopes, length


def report(args: argparse.Namespace, soak: Soak, slopes: list[tuple[float, float]], length: float) -> None:
    (alone, mean), (total, total_mean) = slopes
    text = f"""# A run under faults

`python tests/faults/soak.py --minutes {args.minutes:g} --seed {args.seed}`, commit {commit()}, torch {torch.__version__},
{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores.

{soak.step():,} steps in {args.minutes:g} minutes and {soak.starts} starts with the same command, each of which resumed from the newest
checkpoint.

| fault | times | message |
|---|---|---|
"""
    for fault, count in soak.faults.most_common():
        text += f"| {fault} | {count} | {NAMED.get(fault, 'none (SIGKILL)')} |\n"
    text += f"""
Longest time between two lines of the log (20 steps each): {soak.slowest:.1f} s. Resident memory, of one process over
{length:.1f} minutes without the first eighth: training process {alone:+.3f} MB per minute (mean {mean:.0f} MB), with its two data workers
{total:+.3f} MB per minute (mean {total_mean:.0f} MB).
"""
    print(text)
    if args.results:
        args.results.write_text(text)
    if abs(total) > max(0.5, 0.001 * total_mean):
        raise AssertionError(f"memory grows: {total:+.3f} MB per minute")


if __name__ == "__main__":
    main()
