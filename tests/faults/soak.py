"""Trains for half an hour while data workers are killed, image files are cut short, the disk fills up, and the run itself is killed.

    python tests/faults/soak.py --minutes 30 --results results/soak.md

The run goes on by the same command after each of them. Asserted: every fault is named (or, for a SIGKILL, survived), no step takes a
minute, memory is flat. Needs root, for a small file system of its own that can be filled. The first part of the time, in which nothing but
files breaks, is one life of one process: its memory is what the slope is taken of.
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
NAMED = {"worker killed": "error: a process that reads images ended", "disk full": "No space left on device",
         "file cut short": "cannot be read as an image"}  # fmt: skip
MEGABYTE = 1 << 20


class Soak:
    """The run, what is done to it, and what is seen of it."""

    def __init__(self, zygote: Zygote, work: Path, seed: int):
        self.zygote, self.work, self.draw = zygote, work, random.Random(seed)
        self.data, self.disk, self.out = work / "data", work / "disk", work / "disk" / "run"
        self.faults, self.steps, self.lives, self.slowest = Counter(), 0, 0, 0.0
        self.memory: list[tuple[float, float, float]] = []  # s, MB of the process, MB with its workers; of the present life
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
        self.mend()
        data = ("--dataset", "folder", "--data-dir", self.data, "--num-classes", 8, "--val-split", "none", "--image-cache-gb", 0)
        budget = ("--batch-size", 4, "--dataloader-num-workers", 2, "--max-bad-images", 1000, "--max-steps", 10**6, "--learning-rate", 1e-3)
        often = ("--save-steps", 100, "--logging-steps", 20, "--health-steps", 500)
        flags = (*harness.TINY, *data, *budget, *often, "--resume", "--output-dir", self.out)
        self.run, self.lives, self.memory = self.zygote.start("pretrain", *flags), self.lives + 1, []
        before, begun = self.step(), time.monotonic()
        while self.step() <= before:
            self.must_live(begun, 90)

    def step(self) -> int:
        rows = read_log(self.out / "log.jsonl")
        return rows[-1]["step"] if rows else 0

    def must_live(self, since: float, seconds: float) -> None:
        if not self.run.alive or time.monotonic() - since > seconds:
            raise AssertionError(f"no step in {time.monotonic() - since:.0f} s\n{self.run.output[-3000:]}")
        time.sleep(0.1)

    def watch(self, seconds: float) -> None:
        """Let it train; look at its memory, and that it goes on."""
        end, last, seen = time.monotonic() + seconds, self.step(), time.monotonic()
        while time.monotonic() < end:
            self.must_live(seen, 60)
            if (step := self.step()) > last:
                self.slowest, last, seen = max(self.slowest, time.monotonic() - seen), step, time.monotonic()
            self.look()
            time.sleep(0.9)

    def look(self) -> None:
        # What is resident. What is its own would rise by itself: pages shared with the process that forked it are copied one by one.
        process = psutil.Process(self.run.pid)
        own = process.memory_info().rss / MEGABYTE
        workers = sum(child.memory_info().rss for child in process.children()) / MEGABYTE
        self.memory.append((time.monotonic(), own, own + workers))

    def cut_file(self) -> None:
        """An image becomes half of itself, as after a copy that was broken off; not fatal."""
        path = self.draw.choice(sorted((self.data / "images").iterdir()))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        self.cut, begun = (path, content), time.monotonic()
        while f"skipped: {path}" not in self.run.output:
            self.must_live(begun, 60)
        self.faults["file cut short"] += 1
        self.mend()

    def mend(self) -> None:
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
        """It ends with this status and a sentence about the fault; then it goes on from where it was."""
        found = self.run.wait(90)
        if found != status or NAMED.get(fault, "") not in self.run.output:
            raise AssertionError(f"{fault}: status {found}\n{self.run.output[-3000:]}")
        self.faults[fault] += 1
        newest = checkpoint_folder.complete(self.out)[-1]
        checkpoint_folder.verify(newest)
        self.start()
        if f"resuming from step {int(newest.name[5:])} (" not in self.run.output:
            raise AssertionError(f"{fault}: {self.run.output[-3000:]}")

    def slope(self, column: int) -> tuple[float, float]:
        """MB per minute by least squares, and the mean in MB, without the first eighth of the life."""
        table = np.array(self.memory[len(self.memory) // 8 :])
        return np.polyfit(table[:, 0] / 60, table[:, column], 1)[0], table[:, column].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quiet-share", type=float, default=0.4, help="of the time in which only files break")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mscl_hf_soak_"))
    for name in ("logs", "disk"):
        (work / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", work / "disk"], check=True)
    try:
        with Zygote(work / "logs") as zygote:
            soak = Soak(zygote, work, given.seed)
            report(given, soak, *trial(given, soak))
            soak.run.kill(group=True)
            soak.run.wait()
    finally:
        subprocess.run(["umount", "-l", work / "disk"], check=True)
        shutil.rmtree(work, ignore_errors=True)


def trial(given: argparse.Namespace, soak: Soak) -> tuple[list[tuple[float, float]], float]:
    """Slopes and means of the long life's memory, of the process and with its workers; and its length in minutes."""
    soak.write_data()
    soak.start()
    begun = time.monotonic()
    while time.monotonic() - begun < 60 * given.minutes * given.quiet_share:
        soak.watch(15)
        soak.cut_file()
    slopes, length = [soak.slope(1), soak.slope(2)], (time.monotonic() - begun) / 60
    print(f"MB a minute, and mean: {slopes}", flush=True)
    deeds = []
    while time.monotonic() - begun < 60 * given.minutes:
        soak.watch(soak.draw.uniform(3, 20))
        if not deeds:
            deeds = [soak.kill_worker, soak.fill_disk, soak.kill_run, soak.cut_file]
            soak.draw.shuffle(deeds)
        deeds.pop()()
        print(f"{(time.monotonic() - begun) / 60:.1f} min: {dict(soak.faults)}, step {soak.step()}", flush=True)
    return slopes, length


def report(given: argparse.Namespace, soak: Soak, slopes: list[tuple[float, float]], length: float) -> None:
    (own, mean), (all_, all_mean) = slopes
    text = f"""# A run under faults

`python tests/faults/soak.py --minutes {given.minutes:g} --seed {given.seed}`, commit {commit()}, torch {torch.__version__},
{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores.

{soak.step():,} steps in {given.minutes:g} minutes and {soak.lives} lives, each of which went on from the newest checkpoint by the same
command.

| fault | times | message |
|---|---|---|
"""
    for fault, count in soak.faults.most_common():
        text += f"| {fault} | {count} | {NAMED.get(fault, 'nothing (SIGKILL); it went on')} |\n"
    text += f"""
Longest time between two lines of the log (20 steps each): {soak.slowest:.1f} s. Resident memory, over one life of
{length:.1f} minutes without its first eighth: training process {own:+.3f} MB a minute (mean {mean:.0f} MB), with its two data workers
{all_:+.3f} MB a minute (mean {all_mean:.0f} MB).
"""
    print(text)
    if given.results:
        given.results.write_text(text)
    if abs(all_) > max(0.5, 0.001 * all_mean):
        raise AssertionError(f"memory is not flat: {all_:+.3f} MB a minute")


if __name__ == "__main__":
    main()
