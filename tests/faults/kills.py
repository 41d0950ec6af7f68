"""Kill real runs at random moments of training, saving, evaluating and publishing, and compare their results with undisturbed runs.

    python tests/faults/kills.py --kills 200 --results results/kills.md

Each method pre-trains, and one network is fine-tuned and measured. A run is started, killed by SIGKILL, and started again by the same
command, for its share of the kills. Checked: each complete checkpoint is complete after a kill (except deleted old ones), the run resumes
from the newest, and its final weights, optimizer, model and log equal those of the undisturbed run.
"""

import argparse
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import torch
from same_run import differences
from zygote import Run, Zygote

from mscl_hf.methods import METHODS
from mscl_hf.records.versions import commit
from mscl_hf.training import checkpoint_folder

STEPS = 8
SHORT = (*harness.SHORT, "--max-steps", STEPS, "--save-steps", 2, "--resume")


@dataclass
class Case:
    """A command, the folder of its undisturbed run, and the duration of that run."""

    name: str
    recipe: str
    flags: tuple
    straight: Path
    seconds: float = 0.0
    kills: int = 0
    phases: Counter = field(default_factory=Counter)


def pretraining(method: str, workers: int) -> tuple:
    """Return the flags of a tiny run; some methods need a larger feature map, or a backbone that can have half its width."""
    size = harness.method_size(method)
    backbone = "resnet18" if METHODS[method].two_towers else "test_resnet"
    flags = ("--method", method, "--backbone", backbone, "--decoder-channels", 16, *SHORT, "--learning-rate", 0.01)
    flags += ("--dataloader-num-workers", workers)
    flags += tuple(word for name, value in size.items() for word in (f"--{name.replace('_', '-')}", value))
    return flags + harness.needed_flags(method)


def phase(out: Path) -> str:
    """Return the phase that a killed run was in, judged by its files."""
    if any(out.glob("checkpoints/.tmp-*")):
        return "saving"
    if (out / "model.safetensors").exists() or any(out.glob(".tmp-*")):
        return "publishing"
    if any(folder.name == f"step-{STEPS:08d}" for folder in checkpoint_folder.published(out)):
        return "evaluating or drawing"
    return "training" if (out / "log.jsonl").exists() else "starting"


def whole(out: Path) -> dict[str, str]:
    return {folder.name: (folder / "manifest.json").read_text() for folder in checkpoint_folder.complete(out)}


def kill_once(case: Case, run: Run, out: Path, moment: float) -> bool:
    """Kill the run `moment` seconds after its start; False if it ended before. Raises AssertionError for a lost checkpoint."""
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and run.alive:
        time.sleep(0.002)
    before = whole(out)
    run.kill()
    status = run.wait()
    if status == 0:
        return False
    if status != -signal.SIGKILL:
        raise AssertionError(f"{case.name} ended with {status} by itself\n{run.output[-3000:]}")
    after = whole(out)
    newest = max(before, default="")
    if newest and (newest > max(after, default="") or after.get(newest, before[newest]) != before[newest]):
        raise AssertionError(f"{case.name}: {newest} was lost; left: {sorted(after)}")
    for folder in checkpoint_folder.complete(out):
        checkpoint_folder.verify(folder)
    case.phases[phase(out)] += 1
    case.kills += 1
    return True


def campaign(case: Case, zygote: Zygote, kills: int, draw: random.Random, work: Path) -> int:
    """Start and kill runs of a case `kills` times; return how many runs ended and were compared."""
    ended = 0
    while case.kills < kills:
        out, goal = work / f"{case.name}-{ended}", min(kills, case.kills + draw.randint(2, 6))
        while case.kills < goal:
            newest = newest_step(out)
            run = zygote.start(case.recipe, *case.flags, "--output-dir", out)
            killed = kill_once(case, run, out, draw.uniform(0.05, case.seconds))
            check_start(case, run.output, out, newest, ended=not killed)
            if not killed:
                break
        newest = newest_step(out)
        status, output = zygote.run(case.recipe, *case.flags, "--output-dir", out)
        check_start(case, output, out, newest, ended=True)
        wrong = [f"status {status}: {output[-2000:]}"] if status else differences(out, case.straight)
        if wrong:
            raise AssertionError(f"{case.name} {out}: {wrong[:5]}")
        shutil.rmtree(out)
        ended += 1
    return ended


def newest_step(out: Path) -> int:
    return max((int(name[5:]) for name in whole(out)), default=0)


def check_start(case: Case, output: str, out: Path, newest: int, ended: bool) -> None:
    """Raise AssertionError unless a run resumed from the newest checkpoint; a killed one may not have reached that."""
    starts = [line for line in output.splitlines() if line.startswith("resuming from step") and f"({out}/checkpoints/" in line]
    expected = [f"resuming from step {newest} ({out}/checkpoints/step-{newest:08d})"] if newest else []
    if starts != expected and (ended or starts):
        raise AssertionError(f"{case.name} had step {newest} and resumed from {starts}")


def straight_runs(zygote: Zygote, work: Path, only: list[str] | None) -> list[Case]:
    cases = []
    for number, method in enumerate(METHODS):
        if only and method not in (*only, "mscl"):
            continue
        cases.append(Case(method, "pretrain", pretraining(method, workers=2 * (number % 3 == 0)), work / "straight" / method))
    start = work / "straight" / "mscl"
    tuning = ("--model", start, *SHORT, "--train-count", 8)
    cases.append(Case("finetune", "finetune", tuning, work / "straight" / "finetune"))
    measuring = ("--model", work / "straight" / "finetune", "--split", "val")
    cases.append(Case("evaluate", "evaluate_model", measuring, work / "straight" / "evaluate"))
    for case in cases:
        started = time.monotonic()
        status, output = zygote.run(case.recipe, *case.flags, "--output-dir", case.straight)
        if status:
            raise AssertionError(f"{case.name} ended with {status}\n{output[-3000:]}")
        case.seconds = time.monotonic() - started
        print(f"{case.name}: {case.seconds:.1f} s undisturbed", flush=True)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of runs to kill; the others run undisturbed where these need them")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mscl_hf_kills_"))
    (work / "logs").mkdir()
    torch.manual_seed(0)

    started, draw = time.monotonic(), random.Random(args.seed)
    with Zygote(work / "logs") as zygote:
        cases = [case for case in straight_runs(zygote, work, args.only) if not args.only or case.name in args.only]
        ended = []
        for number, case in enumerate(cases):
            share = args.kills * (number + 1) // len(cases) - args.kills * number // len(cases)
            ended.append(campaign(case, zygote, share, draw, work))
            print(f"{case.name}: {case.kills} kills, {ended[-1]} runs ended equal; {dict(case.phases)}", flush=True)
    report(args, cases, ended, time.monotonic() - started)
    shutil.rmtree(work)


def report(args: argparse.Namespace, cases: list[Case], ended: list[int], seconds: float) -> None:
    phases = sum((case.phases for case in cases), Counter())
    lines = [
        "# Runs killed at random moments", "",
        f"`python tests/faults/kills.py --kills {args.kills} --seed {args.seed}`, commit {commit()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {seconds / 60:.0f} min.", "",
        f"**{sum(case.kills for case in cases)} kills, {sum(ended)} runs completed with the same command, all equal to the "
        "undisturbed ones bit for bit (weights, optimizer, model, log); no complete checkpoint was lost.**", "",
        "Phases: " + ", ".join(f"{name} {count}" for name, count in phases.most_common()) + ".", "",
        "| run | kills | runs that ended equal | undisturbed, s |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {case.name} | {case.kills} | {count} | {case.seconds:.1f} |" for case, count in zip(cases, ended)]
    print("\n".join(lines))
    if args.results:
        args.results.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
